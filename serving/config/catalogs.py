"""The checked-in facts about vLLM and Ray (`data/`), read once each. Made by `tools/schema`, see `make schema`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Removed:
    """An argument or method that vLLM no longer has: `last` still had it, `gone` did not."""

    last: str
    gone: str
    instead: str
    drop: bool = False

    def sentence(self) -> str:
        """When it left, and what to write instead."""
        return f"left vLLM after {self.last} (gone in {self.gone}); {self._way_out()}"

    def _way_out(self) -> str:
        return self.instead if self.instead.startswith("leave it out") else f"today: {self.instead}"


@cache
def engine_arguments() -> dict[str, dict[str, Any]]:
    """vLLM's engine arguments by name."""
    arguments: dict[str, dict[str, Any]] = _json("vllm_engine_arguments.json")["engine"]
    return arguments


@cache
def front_end_arguments() -> dict[str, dict[str, Any]]:
    """Arguments of vLLM's OpenAI front end by name."""
    arguments: dict[str, dict[str, Any]] = _json("vllm_engine_arguments.json")["front_end"]
    return arguments


@cache
def command_line() -> dict[str, Any]:
    """What `vllm serve` has beside those names: `spellings` (`-tp`), options of `several` values, and its `own`."""
    facts: dict[str, Any] = _json("vllm_engine_arguments.json")["command_line"]
    return facts


@cache
def parsers(argument: str) -> dict[str, str]:
    """vLLM's parsers by name, with their classes; `argument` is `tool_call_parser` or `reasoning_parser`."""
    found: dict[str, str] = _json("vllm_parsers.json")[argument]
    return found


@cache
def environment_variables() -> frozenset[str]:
    """The environment variables that vLLM itself reads."""
    return frozenset(_json("vllm_parsers.json")["environment"])


@cache
def vllm_version() -> str:
    """The vLLM that the facts are about."""
    return str(_json("vllm_engine_arguments.json")["version"])


@cache
def serve_options() -> dict[str, Any]:
    """Ray Serve's deployment, autoscaling and actor options, and the keys of a runtime environment."""
    options: dict[str, Any] = _json("ray_serve_options.json")
    return options


@cache
def _removed() -> dict[str, Any]:
    """The whole file, read once for both kinds, and with libyaml where it is there."""
    text = (DATA / "removed_engine_arguments.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Any] = yaml.load(text, Loader=loader)  # noqa: S506  both loaders are safe
    return found


@cache
def removed(kind: str) -> dict[str, Removed]:
    """What vLLM removed: `kind` is `arguments` or `quantization`."""
    entries: dict[str, dict[str, Any]] = _removed()[kind]
    return {
        name: Removed(str(entry["last"]), str(entry["gone"]), entry["instead"], bool(entry.get("drop")))
        for name, entry in entries.items()
    }


def architecture_fault(architecture: str) -> str | None:
    """Why vLLM cannot run a checkpoint whose `config.json` names `architecture`, with the fix; None when it can.

    The result is also None for an architecture that vLLM never knew: it may still run through the Transformers backend.
    """
    known = _json("vllm_architectures.json")
    if last := known["removed_after"].get(architecture):
        way_out = _SUCCESSORS.get(architecture, "use a newer model")
        return f"vLLM ran {architecture} up to {last}, but {known['version']} does not; {way_out}"
    if plugin := known["plugin"].get(architecture):
        return f"vLLM runs {architecture} only with the plugin at {plugin}"
    return None


def architecture_of_id(hf_id: str) -> str | None:
    """The architecture of a retired family of models, by its Hub id; None for any other, whose `config.json` names it.

    Source: vLLM's list of supported models up to 0.28, which names these repositories under the architecture.
    """
    return next((name for pattern, name in _RETIRED.items() if fnmatchcase(hf_id.lower(), pattern)), None)


_SUCCESSORS = {"RWForCausalLM": "use an upload whose config.json names FalconForCausalLM"}
_RETIRED = {"mosaicml/mpt-*": "MPTForCausalLM", "baichuan-inc/baichuan-*": "BaichuanForCausalLM"}


@cache
def _json(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file; its first lines, with `#`, name source and date."""
    with path.open(encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(line for line in stream if not line.startswith("#"))


def capability(text: str) -> tuple[int, int]:
    """A compute capability such as `8.9` as (major, minor)."""
    major, _, minor = text.partition(".")
    return int(major), int(minor)
