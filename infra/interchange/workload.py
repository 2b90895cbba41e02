"""What a foreign file says about one model server, before it becomes a model file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Around the name of something that the file does not say, inside a value. Private use characters: no file has them.
_OPEN, _CLOSE = "\ue000", "\ue001"
_UNKNOWN = re.compile(f"{_OPEN}([^{_CLOSE}]*){_CLOSE}")


def unknown(name: str) -> str:
    """A stand-in for a value that the file does not say, such as a variable without a value."""
    return f"{_OPEN}{name}{_CLOSE}"


def unknowns(value: Any) -> Iterator[str]:
    """The names of what is not said in a value, or inside a list or mapping."""
    if isinstance(value, str):
        yield from _UNKNOWN.findall(value)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from unknowns(key)
            yield from unknowns(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from unknowns(one)


def readable(text: str) -> str:
    """The text with stand-ins as a shell writes them: `${NAME}`."""
    return _UNKNOWN.sub(r"${\1}", text)


@dataclass(frozen=True, order=True)
class Note:
    """Something of the file that the model file does not have, and why or what to do instead."""

    what: str
    why: str


@dataclass(frozen=True)
class Workload:
    """One model server.

    `arguments` are vLLM's, by their Python names; `unsaid` names those whose value is not in the file. `gpus` is how
    many the container asks for, None where the file does not say; `hardware` is whatever names the machine: labels,
    instance types, resource names.
    """

    where: str
    arguments: Mapping[str, Any]
    unsaid: frozenset[str] = frozenset()
    notes: tuple[Note, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    gpus: int | None = None
    hardware: tuple[str, ...] = ()
    replicas: int | None = None
    autoscaling: Mapping[str, Any] = field(default_factory=dict)
    deployment: Mapping[str, Any] = field(default_factory=dict)
    #: Hub ids by the folder into which an earlier step downloads them; "" where it does not say.
    downloads: Mapping[str, str] = field(default_factory=dict)
    #: A merge patch (RFC 7396) for the model file, from an export of ours.
    patch: Mapping[str, Any] = field(default_factory=dict)
