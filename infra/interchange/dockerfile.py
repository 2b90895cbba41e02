"""Dockerfiles: the last stage's ENV, ENTRYPOINT and CMD."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from modelfleet.infra.interchange.containers import Container, workloads_of
from modelfleet.infra.interchange.shell import interpolate, split
from modelfleet.infra.interchange.workload import Workload

_INSTRUCTION = re.compile(r"\s*(FROM|ARG|ENV|ENTRYPOINT|CMD)\s+(.*)", re.IGNORECASE | re.DOTALL)


def is_dockerfile(text: str) -> bool:
    """Whether a text begins as a Dockerfile does."""
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            return bool(re.match(r"(FROM\s+[^\s=]+(\s+AS\s+\S+)?\s*$|ARG\s+\w+)", line.strip(), re.IGNORECASE))
    return False


def read_dockerfile(text: str, name: str) -> Iterator[Workload]:
    """What the image's last stage starts."""
    variables: dict[str, str] = {}
    image, line = "", 0
    entrypoint: list[str] = []
    command: list[str] = []
    for number, (keyword, rest) in _instructions(text):
        if keyword == "FROM":
            image = interpolate(next((word for word in rest.split() if not word.startswith("--")), ""), variables)
            entrypoint, command = [], []
        elif keyword in ("ARG", "ENV"):
            variables |= _assignments(rest, variables)
        elif keyword == "ENTRYPOINT":
            entrypoint, command, line = _command(rest), [], number
        else:
            command, line = _command(rest), line or number
    if entrypoint or command:
        container = Container(entrypoint, command, variables, image)
        yield from workloads_of(container, f"{name}:{line}")


def _instructions(text: str) -> Iterator[tuple[int, tuple[str, str]]]:
    """Each instruction with the line it begins on; lines that end in a backslash go on."""
    whole, begun = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        begun = begun if whole else number
        stripped = line.rstrip()
        whole += stripped.removesuffix("\\") + " "
        if stripped.endswith("\\"):
            continue
        if match := _INSTRUCTION.fullmatch(whole):
            yield begun, (match[1].upper(), match[2].strip())
        whole = ""
    if match := _INSTRUCTION.fullmatch(whole):
        yield begun, (match[1].upper(), match[2].strip())


def _assignments(rest: str, variables: dict[str, str]) -> dict[str, str]:
    """`NAME=value …`, or the older `NAME value`."""
    words = split(rest)
    if words and "=" not in words[0]:
        return {words[0]: interpolate(" ".join(words[1:]), variables)} if len(words) > 1 else {}
    return {
        name: interpolate(value, variables) for name, sign, value in (word.partition("=") for word in words) if sign
    }


def _command(rest: str) -> list[str]:
    """The exec form is JSON; anything else is a line for `/bin/sh -c`."""
    if rest.startswith("["):
        try:
            words = json.loads(rest)
        except ValueError:
            words = None
        if isinstance(words, list):
            return [str(word) for word in words]
    return ["/bin/sh", "-c", rest]
