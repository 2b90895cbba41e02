"""The command line of `vllm serve` into arguments by their Python names, as vLLM's own parser reads it.

Source: `FlexibleArgumentParser` and `human_readable_int` (vLLM 0.32); names and kinds are the generated facts in
`serving/config/data`, so that nothing here repeats them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import Any

from modelfleet.infra.interchange.workload import Note, readable, unknowns
from modelfleet.serving.config.catalogs import (
    command_line,
    engine_arguments,
    front_end_arguments,
    removed,
    vllm_version,
)
from modelfleet.serving.config.document import shortened
from modelfleet.serving.config.validation import near

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT]?)")
_FACTORS = {"": 1} | {
    letter: base ** (power + 1)
    for power, (small, large) in enumerate((("k", "K"), ("m", "M"), ("g", "G"), ("t", "T")))
    for letter, base in ((small, 1000), (large, 1024))
}
#: Options of older versions that stood alone on the command line; any other unknown option takes the word after it.
_OLD_FLAGS = frozenset(
    {
        "disable_log_requests", "worker_use_ray", "engine_use_ray", "use_v2_block_manager", "enable_reasoning",
        "multi_step_stream_outputs", "disable_async_output_proc", "enable_prompt_adapter", "enable_lora_bias",
        "guided_decoding_disable_fallback", "calculate_kv_scales", "override_attention_dtype", "device_is_cpu",
    }
)  # fmt: skip
#: Their values go no further than the parser.
SECRETS = frozenset({"api_key", "hf_token"})


@dataclass
class Parsed:
    """Arguments by name, and what could not be read."""

    arguments: dict[str, Any] = field(default_factory=dict)
    #: Names of arguments whose value the file does not say.
    unsaid: set[str] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)

    def put(self, name: str, value: Any) -> None:
        """Set an argument; parts of one mapping, as in `--speculative-config.method ngram`, come together."""
        before = self.arguments.get(name)
        self.arguments[name] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value


def parse(words: Sequence[str]) -> Parsed:
    """What follows `vllm serve` or the server's module."""
    parsed, position = Parsed(), 0
    words = list(words)
    while position < len(words):
        word = words[position]
        position += 1
        if not _is_option(word):
            _positional(parsed, word)
            continue
        option, sign, attached = word.partition("=")
        if option.startswith("-O"):
            position += _optimization(parsed, word, words[position : position + 1])
            continue
        name, _, inner = _name_of(option).partition(".")
        values = [attached] if sign else list(_values_after(name, bool(inner), words[position:]))
        position += 0 if sign else len(values)
        _option(parsed, option, name, inner, values)
    return parsed


def _is_option(word: str) -> bool:
    return bool(re.match(r"--?[A-Za-z]", word))


def _positional(parsed: Parsed, word: str) -> None:
    if "model" not in parsed.arguments and "model_tag" not in parsed.arguments:
        parsed.arguments["model_tag"] = word
    elif names := list(unknowns(word)):
        parsed.notes.append(Note(readable(word), f"its value is not in the file: {', '.join(names)}"))
    else:
        parsed.notes.append(Note(shortened(word), "belongs to no option"))


def _name_of(option: str) -> str:
    """`--no-enable-x` → `no_enable_x`, `-tp` → `tensor_parallel_size`; what follows a dot stays."""
    if (known := command_line()["spellings"].get(option.partition(".")[0])) is not None:
        return ".".join([known, *option.split(".")[1:]])
    head, dot, rest = option.lstrip("-").partition(".")
    return _completed(head.replace("-", "_")) + dot + rest


def _completed(name: str) -> str:
    """argparse takes the beginning of an option's name if only one begins so."""
    if name in _known() or name in command_line()["own"] or name in removed("arguments"):
        return name
    begun = [known for known in _known() if known.startswith(name)] if len(name) > 3 else []
    return begun[0] if len(begun) == 1 else name


@cache
def _known() -> dict[str, dict[str, Any]]:
    return engine_arguments() | front_end_arguments()


def _flag(name: str) -> bool:
    """Whether an option stands alone: a switch, or one of vLLM's own without a value."""
    if name in _known():
        kinds = set(_known()[name]["kinds"])
        return "bool" in kinds and kinds <= {"bool", "null"} and name not in command_line()["several"]
    if name in command_line()["own"]:
        return not command_line()["own"][name]
    return name in _OLD_FLAGS or _negated(name) is not None


def _negated(name: str) -> str | None:
    positive = name.removeprefix("no_")
    return positive if positive != name and "bool" in _known().get(positive, {}).get("kinds", ()) else None


def _values_after(name: str, inner: bool, rest: Sequence[str]) -> Iterator[str]:
    if not inner and _flag(name):
        # `--enable-x true` is no vLLM command, but people write it.
        if rest[:1] and rest[0].lower() in ("true", "false"):
            yield rest[0]
        return
    several = name in command_line()["several"] and not inner
    for count, word in enumerate(rest):
        if (count and not several) or (_is_option(word) and not re.match(r"-\d", word)):
            return
        yield word


def _option(parsed: Parsed, option: str, name: str, inner: str, values: list[str]) -> None:
    if name in SECRETS:
        parsed.put(name, None)
        return
    said = " ".join([option, *map(readable, values)])
    if not inner and (positive := _negated(name)) is not None and name not in _known():
        parsed.put(positive, False)
    elif name not in _known() and name != "model_tag":
        parsed.notes.append(Note(shortened(said, 120), _why_unknown(name)))
    elif lost := sorted(set(unknowns(values))):
        parsed.unsaid.add(name)
        if name not in ("model", "model_tag", "served_model_name", "max_model_len", "tensor_parallel_size"):
            parsed.notes.append(Note(shortened(said, 120), f"its value is not in the file: {', '.join(lost)}"))
        elif name == "model":
            parsed.put(name, values[0])
    else:
        try:
            parsed.put(name, _nested(inner, values) if inner else _value(name, values))
        except ValueError as error:
            parsed.notes.append(Note(shortened(said, 120), f"cannot be read: {error}"))


def _why_unknown(name: str) -> str:
    if name in removed("arguments"):
        return removed("arguments")[name].sentence()
    if name == "config":
        return "the options in that file are not here; import the file's options as words of the command"
    if name in command_line()["own"]:
        return "is about the server's processes, which Ray starts here"
    return f"unknown to vLLM {vllm_version()}, {near(name, _known())}"


def _optimization(parsed: Parsed, word: str, after: Sequence[str]) -> int:
    """`-O3`, `-O=3`, `-O 3`, `-O.mode=3` and `-O '{…}'`; returns how many further words it took."""
    value = word.removeprefix("-O").removeprefix("=")
    taken = 0 if value or not after else 1
    value = value or "".join(after)
    if value.startswith("."):
        key, _, inner = value[1:].partition("=")
        parsed.put("compilation_config", _nested(key, [inner]))
    elif value.startswith("{"):
        _option(parsed, "-O", "compilation_config", "", [value])
    else:
        _option(parsed, "-O", "optimization_level", "", [value])
    return taken


def _nested(inner: str, values: Sequence[str]) -> dict[str, Any]:
    """`--speculative-config.method ngram` → `{"method": "ngram"}`."""
    text = values[0] if values else "true"
    key, listed = (inner[:-1], True) if inner.endswith("+") else (inner, False)
    value: Any = text.split(",") if listed else _loose(text)
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _loose(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return _whole(text)
    except ValueError:
        return text


def _value(name: str, values: Sequence[str]) -> Any:
    """The words after an option, by the kinds that vLLM declares for it. Raises `ValueError` with what is expected."""
    kinds = _known()[name]["kinds"] if name in _known() else ["str"]
    if _flag(name):
        return not values or values[0].lower() in ("true", "1", "yes")
    if not values and "bool" in kinds:  # `--hf-token` takes a value or none
        return True
    if not values:
        raise ValueError("has no value")
    if name in command_line()["several"]:
        return _several(name, values)
    text = values[0]
    if (
        choice := next((one for one in _known().get(name, {}).get("choices", ()) if str(one) == text), None)
    ) is not None:
        return choice
    if text in ("None", "none", "null") and "null" in kinds:
        return None
    if "object" in kinds and text.lstrip().startswith(("{", "[")):
        return _json(text)
    if "list" in kinds:
        return _json(text) if text.lstrip().startswith("[") else list(text.split(","))
    if "object" in kinds and "str" not in kinds and "int" not in kinds:
        return _pairs(text)
    return _scalar(text, kinds)


def _scalar(text: str, kinds: Sequence[str]) -> Any:
    if "int" in kinds:
        try:
            return _whole(text)
        except ValueError:
            if "float" not in kinds and "str" not in kinds and text != "auto":
                raise
    if "float" in kinds:
        try:
            return float(text)
        except ValueError:
            if "str" not in kinds:
                raise ValueError("a number is expected") from None
    return text


def _several(name: str, values: Sequence[str]) -> Any:
    if len(values) == 1 and values[0].lstrip().startswith("["):
        return _json(values[0])
    if name == "lora_modules":
        return [_json(value) if value.lstrip().startswith("{") else _adapter(value) for value in values]
    kinds = _known()[name]["kinds"] if name in _known() else []
    return [_loose(value) if "str" not in kinds and value.isdigit() else value for value in values]


def _adapter(value: str) -> dict[str, str]:
    name, sign, path = value.partition("=")
    if not sign:
        raise ValueError("NAME=PATH is expected")
    return {"name": name, "path": path}


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError("is not JSON") from None


def _pairs(text: str) -> dict[str, Any]:
    """`image=4,video=1`: how `--limit-mm-per-prompt` was written before it was JSON."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(sign for _, sign, _ in pairs):
        raise ValueError("JSON is expected")
    return {key: _loose(value) for key, _, value in pairs}


def _whole(text: str) -> int:
    """`4096`, `8k` (8,000), `8K` (8,192), `25.6k`, `-1`."""
    match = _NUMBER.fullmatch(text.strip().removeprefix("-"))
    if match is None:
        raise ValueError("a whole number is expected")
    try:
        number = Decimal(match[1]) * _FACTORS[match[2]]
    except InvalidOperation:
        raise ValueError("a whole number is expected") from None
    if number != int(number):
        raise ValueError("a whole number is expected")
    return -int(number) if text.strip().startswith("-") else int(number)


def _merged(before: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    result = dict(before)
    for key, value in more.items():
        mine = result.get(key)
        result[key] = _merged(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return result
