"""The checked-in facts about vLLM and Ray (`data/`), read once each. Made by `tools/schema`, see `make schema`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Removed:
    """An argument or method that vLLM no longer has: `last` had it, `gone` had it no more."""

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
def vllm_version() -> str:
    """The vLLM that the facts are about."""
    return str(_json("vllm_engine_arguments.json")["version"])


@cache
def serve_options() -> dict[str, Any]:
    """Ray Serve's deployment, autoscaling and actor options, and the keys of a runtime environment."""
    options: dict[str, Any] = _json("ray_serve_options.json")
    return options


@cache
def removed(kind: str) -> dict[str, Removed]:
    """What vLLM removed: `kind` is `arguments` or `quantization`."""
    text = (DATA / "removed_engine_arguments.yaml").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = yaml.safe_load(text)[kind]
    return {
        name: Removed(str(entry["last"]), str(entry["gone"]), entry["instead"], bool(entry.get("drop")))
        for name, entry in entries.items()
    }


def architecture_fault(architecture: str) -> str | None:
    """Why vLLM cannot run a checkpoint whose `config.json` names `architecture`, with the way out; None when it can.

    An architecture that vLLM never knew may still run through its Transformers backend: that is None too.
    """
    known = _json("vllm_architectures.json")
    if last := known["removed_after"].get(architecture):
        way_out = _SUCCESSORS.get(architecture, "use a newer model")
        return f"vLLM runs {architecture} up to {last} and no longer in {known['version']}; {way_out}"
    if plugin := known["plugin"].get(architecture):
        return f"vLLM runs {architecture} with the plugin at {plugin} only"
    return None


def architecture_of_id(hf_id: str) -> str | None:
    """The architecture of a retired family of models, by its Hub id; None for every other (`config.json` says it).

    Source: vLLM's list of supported models up to 0.28, which names these repositories under the architecture.
    """
    return next((name for pattern, name in _RETIRED.items() if fnmatchcase(hf_id.lower(), pattern)), None)


_SUCCESSORS = {"RWForCausalLM": "use an upload whose config.json names FalconForCausalLM"}
_RETIRED = {"mosaicml/mpt-*": "MPTForCausalLM", "baichuan-inc/baichuan-*": "BaichuanForCausalLM"}


@cache
def _json(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))
