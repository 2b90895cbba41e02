"""Write the JSON Schemas of model and stack files, for editors that complete and check YAML.

    python -m tools.schema.json_schema [--check]

In VS Code: `"yaml.schemas": {"schemas/model.schema.json": "models/**/*.yaml"}`.
"""

from __future__ import annotations

from typing import Any

from tools.schema.common import DATA, ROOT, as_text, write_or_compare

SCHEMAS = ROOT / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def model_schema() -> dict[str, Any]:
    """The model file's schema, with vLLM's engine arguments completed inside `engine_kwargs`."""
    from modelfleet.serving.config.accelerators import known_gpus
    from modelfleet.serving.config.schema import ModelConfig

    schema = ModelConfig.model_json_schema(mode="validation")
    schema["$defs"]["EngineConfig"]["properties"]["engine_kwargs"] |= {
        "properties": _engine_arguments(),
        "additionalProperties": False,
    }
    schema["$defs"]["Fallback"]["properties"]["accelerator"]["enum"] = list(known_gpus())
    return {"$schema": DIALECT, **_described(schema), "title": "modelfleet model file"}


def stack_schema() -> dict[str, Any]:
    """The schema of `stacks/Pulumi.<env>.yaml`: our keys, and any key of Pulumi and its providers."""
    from modelfleet.infra.stack.load import NAMESPACE
    from modelfleet.infra.stack.schema import SECRET_KEYS, StackConfig

    inner = StackConfig.model_json_schema(mode="validation", by_alias=True)
    keys = {f"{NAMESPACE}{name}": value for name, value in inner.pop("properties").items()}
    secrets = {
        f"{NAMESPACE}{key}": {"description": "Encrypted by `pulumi config set --secret`."} for key in SECRET_KEYS
    }
    required = [f"{NAMESPACE}{name}" for name in inner.pop("required", [])]
    config = {
        "type": "object",
        "properties": {**keys, **secrets, "aws:region": {"type": "string", "description": "AWS region."}},
        "patternProperties": {rf"^(?!{NAMESPACE})": {}},
        "additionalProperties": False,
        "required": required,
    }
    definitions = inner.pop("$defs", {})
    return {
        "$schema": DIALECT,
        "title": "modelfleet stack file",
        "type": "object",
        "properties": {"config": config},
        "required": ["config"],
        "$defs": definitions,
    }


def _engine_arguments() -> dict[str, Any]:
    """vLLM's arguments that a model file may set, as JSON Schema."""
    from modelfleet.serving.config.catalogs import engine_arguments, front_end_arguments
    from modelfleet.serving.config.engine_rules import FRONT_END, RESERVED

    front_end = {name: entry for name, entry in front_end_arguments().items() if name in FRONT_END}
    return {
        name: _argument(entry)
        for name, entry in sorted((front_end | engine_arguments()).items())
        if name not in RESERVED
    }


_TYPES = {
    "int": "integer", "float": "number", "bool": "boolean", "str": "string", "object": "object", "list": "array",
    "null": "null",
}  # fmt: skip
_LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def _argument(entry: dict[str, Any]) -> dict[str, Any]:
    limits = {_LIMITS[name]: entry[name] for name in _LIMITS if name in entry}
    kinds = [_TYPES[kind] for kind in entry["kinds"]]
    default = {"default": entry["default"]} if entry.get("default") is not None else {}
    choices = [{"enum": entry["choices"]}] if entry.get("choices") else []
    typed = [{"type": kinds, **limits}] if kinds else []
    either = [*choices, *typed]
    return {**(either[0] if len(either) == 1 else {"anyOf": either}), **default}


def _described(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema refuses old names and `modelfleet check --fix` rewrites them; the description says so."""
    schema["description"] = "One model. `modelfleet check --fix` rewrites RayLLM's older names, which are still read."
    return schema


def main() -> int:
    """Write or compare both files."""
    assert DATA.is_dir(), "run from the repository"
    return write_or_compare(SCHEMAS / "model.schema.json", as_text(model_schema())) | write_or_compare(
        SCHEMAS / "stack.schema.json", as_text(stack_schema())
    )


if __name__ == "__main__":
    raise SystemExit(main())
