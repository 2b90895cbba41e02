"""What a model file lacks of its recipe, and what its recipe knows not to work. Pure; `cli/check.py` asks.

A key that the file has counts as decided, whatever its value: `enable_auto_tool_choice: false` says no, and so does
`reasoning_parser: ""`. Only a parser of another format is questioned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from modelfleet.infra.catalog.recipes import (
    Checkpoints,
    KnownBad,
    Recipe,
    Setting,
    Sourced,
    When,
    id_matches,
    recipe_of,
    within,
)
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.serving.config.accelerators import Accelerator, accelerator_of, known_gpus
from modelfleet.serving.config.catalogs import parsers
from modelfleet.serving.config.document import Document, KeyPath
from modelfleet.serving.config.engine_rules import KWARGS, PARSERS
from modelfleet.serving.config.engine_schema import RAYLLM_LENGTH
from modelfleet.serving.config.errors import Finding, Severity
from modelfleet.serving.config.load import LoadedModel
from modelfleet.serving.config.rayllm.yaml_text import one_line

ENGINE: KeyPath = ("engine_config",)
ENVIRONMENT: KeyPath = (*ENGINE, "runtime_env", "env_vars")
LENGTH: KeyPath = (*ENGINE, "max_total_tokens")
#: The length of a file with a prompt_format that names none; other files have the checkpoint's.
DEFAULT_LENGTH: int = RAYLLM_LENGTH

#: Keys that say which weights, beside the model's name.
NAMES_WEIGHTS = ("hf_model_id", "s3_mirror_config", "gcs_mirror_config", "azure_mirror_config")

Lines = dict[KeyPath, Any]


@dataclass(frozen=True)
class Case:
    """What a model file says that a recipe depends on; `gpu` is None on CPUs."""

    hf_id: str
    gpu: Accelerator | None
    workers: int
    length: int | None
    kwargs: Mapping[str, Any]
    env_vars: Mapping[str, Any]
    own_prompt_format: bool
    names_weights: bool


def case_of(data: Any) -> Case:
    """The case of a file's normalised data, which may have faults of any kind."""
    engine, scaling = _section(data, "engine_config"), _section(data, "scaling_config")
    kwargs = dict(_section(engine, "engine_kwargs"))
    if engine.get("model_type") == "embedding":  # serving/engine_args.py does the same
        kwargs.setdefault("runner", "pooling")
    if parser := _section(kwargs, "structured_outputs_config").get("reasoning_parser"):
        kwargs.setdefault("reasoning_parser", parser)
    named = [accelerator_of(str(name)) for name in _section(scaling, "resources_per_worker")]
    length, workers, ranks = (
        engine.get("max_total_tokens"),
        scaling.get("num_workers"),
        kwargs.get("data_parallel_size"),
    )
    if isinstance(workers, int) and isinstance(ranks, int) and ranks > 1:
        workers //= ranks  # recipes mean those that share a layer
    return Case(
        hf_id=_hf_id(engine),
        gpu=next((gpu for name in named if name is not None and (gpu := known_gpus().get(name))), None),
        workers=workers if isinstance(workers, int) else 1,
        length=length if isinstance(length, int) else None,
        kwargs=kwargs,
        env_vars=_section(engine, "runtime_env", "env_vars"),
        own_prompt_format=bool(_section(engine, "generation").get("prompt_format")),
        names_weights=any(engine.get(key) for key in NAMES_WEIGHTS),
    )


def _hf_id(engine: Mapping[str, Any]) -> str:
    """The Hub id; for weights in a folder the name that the model goes by, which may be that of the Hub."""
    weights = engine.get("hf_model_id")
    return str(weights if weights and not str(weights).startswith("/") else engine.get("model_id") or "")


def recipe_findings(document: Document, recipe: Recipe | None) -> list[Finding]:
    """Notices of what a file lacks, and errors and warnings of what is known not to work."""
    if recipe is None:
        return []
    case = case_of(document.data)
    found = [
        document.finding(next(iter(lines)), _lack(recipe, setting, lines, case), Severity.NOTICE)
        for setting, lines in lacking(recipe, case)
    ]
    advice = [*_other_parsers(recipe, case), *_short_for_thoughts(recipe, case), *_smaller_checkpoint(recipe, case)]
    found += [document.finding(path, message, Severity.NOTICE) for path, message in advice]
    return sorted([*found, *known_bad_findings(document, recipe)])


def bad_combinations(models: Iterable[LoadedModel], facts: Mapping[str, ModelFacts | None]) -> list[Finding]:
    """What the models' recipes know not to work, for a plan; what files lack is `check`'s to say."""
    found: list[Finding] = []
    for model in models:
        known = facts.get(model.config.model_id)
        recipe = recipe_of(case_of(model.document.data).hf_id, known.architecture if known else None)
        found += known_bad_findings(model.document, recipe, model.config.engine_config.length)
    return found


def known_bad_findings(document: Document, recipe: Recipe | None, length: int | None = None) -> list[Finding]:
    """Errors and warnings of combinations that the recipe knows not to work; `length` is a plan's."""
    if recipe is None:
        return []
    case = case_of(document.data)
    case = replace(case, length=case.length or length)
    return sorted(
        document.finding(tuple(bad.at.split(".")), _bad(recipe, bad, case), Severity(bad.severity))
        for bad in recipe.known_bad
        if _holds(bad.when, case)
    )


def lacking(recipe: Recipe, case: Case) -> list[tuple[Setting, Lines]]:
    """The settings that hold for a case, each with the lines of it that the file does not have."""
    by_setting: dict[int, tuple[Setting, Lines]] = {}
    for path, (setting, value) in _advice(recipe, case).items():
        if not _decided(path, case):
            by_setting.setdefault(id(setting), (setting, {}))[1][path] = value
    return list(by_setting.values())


def _advice(recipe: Recipe, case: Case) -> dict[KeyPath, tuple[Setting, Any]]:
    """Every line that the recipe has for a case; of two for one key the later counts."""
    return {
        path: (setting, value)
        for setting in recipe.settings
        if _wanted(setting, case)
        for path, value in _lines(setting).items()
    }


def missing_lines(recipe: Recipe | None, document: Document) -> Lines:
    """Every line that `check --fix --recipes` adds. Not the length: it costs memory, so somebody must want it."""
    if recipe is None:
        return {}
    found = lacking(recipe, case_of(document.data))
    return {path: value for _, lines in found for path, value in lines.items() if path != LENGTH}


def _wanted(setting: Setting, case: Case) -> bool:
    if setting.purpose == "tools" and (case.own_prompt_format or case.kwargs.get("enable_auto_tool_choice") is False):
        return False
    if setting.purpose == "fast" and case.gpu is None:
        return False
    return _holds(setting.when, case)


def _lines(setting: Setting) -> Lines:
    length = {} if setting.max_total_tokens is None else {LENGTH: setting.max_total_tokens}
    return {
        **{(*KWARGS, name): value for name, value in setting.engine_kwargs.items()},
        **{(*ENVIRONMENT, name): value for name, value in setting.env_vars.items()},
        **length,
    }


def _decided(path: KeyPath, case: Case) -> bool:
    if path == LENGTH:
        return case.length is not None
    return path[-1] in (case.env_vars if path[:-1] == ENVIRONMENT else case.kwargs)


def _holds(when: When, case: Case) -> bool:
    ids_hold = not when.ids or any(id_matches(case.hf_id, pattern) for pattern in when.ids)
    return (
        ids_hold
        and not any(id_matches(case.hf_id, pattern) for pattern in when.not_ids)
        and _gpu_holds(when, case.gpu)
        and (not when.workers or case.workers in when.workers)
        and (when.above_length is None or (case.length or DEFAULT_LENGTH) > when.above_length)
        and all(case.kwargs.get(name) in values for name, values in when.engine_kwargs.items())
    )


def _gpu_holds(when: When, gpu: Accelerator | None) -> bool:
    if gpu is None:
        return not (when.from_capability or when.below_capability or when.below_gpu_memory_gib)
    return within(gpu.compute_capability, when.from_capability, when.below_capability) and (
        when.below_gpu_memory_gib is None or gpu.memory_mib < when.below_gpu_memory_gib * 1024
    )


def _lack(recipe: Recipe, setting: Setting, lines: Lines, case: Case) -> str:
    what = " and ".join(_line(path, value) for path, value in lines.items())
    why = f"; {setting.why}" if setting.why else ""
    basis = _basis(recipe, setting, case)
    match setting.purpose:
        case "tools":
            reason, way_out = _tools(recipe, case)
            return f"{reason}; add {what}{way_out}{why} ({basis})"
        case "reasoning":
            reason = f"{recipe.family} thinks before it answers, and no reasoning_parser takes the thoughts out"
            return f"{reason}; add {what}{why} ({basis})"
        case _:
            return f"{setting.why}; add {what} (recipe of {recipe.family}: {basis})"


def _line(path: KeyPath, value: Any) -> str:
    where = " in runtime_env.env_vars" if path[:-1] == ENVIRONMENT else ""
    return f"`{path[-1]}: {one_line(value)}`{where}"


def _tools(recipe: Recipe, case: Case) -> tuple[str, str]:
    if case.kwargs.get("enable_auto_tool_choice") is True:
        missing = " but no tool_call_parser is set" if not case.kwargs.get("tool_call_parser") else ""
        return f"tools are asked of {recipe.family}{missing}", ""
    if case.kwargs.get("tool_call_parser"):
        return "a tool_call_parser is set but tools are not on", ""
    return (
        f"{recipe.family} can call tools, but vLLM refuses requests that leave the choice to it",
        ", or `enable_auto_tool_choice: false` to keep it so",
    )


def _other_parsers(recipe: Recipe, case: Case) -> Iterator[tuple[KeyPath, str]]:
    """A parser of another format than the recipe's; two names of one class are the same format."""
    for path, (setting, ours) in _advice(recipe, case).items():
        name = str(path[-1])
        asked = str(case.kwargs.get(name))
        if name in PARSERS and asked in parsers(name) and parsers(name)[asked] != parsers(name)[ours]:
            yield path, f"found {asked!r}; the recipe of {recipe.family} has {ours!r} ({_basis(recipe, setting, case)})"


def _short_for_thoughts(recipe: Recipe, case: Case) -> Iterator[tuple[KeyPath, str]]:
    """RayLLM's default length, for a model that spends thousands of tokens before its answer begins."""
    thinks = any(setting.purpose == "reasoning" and _wanted(setting, case) for setting in recipe.settings)
    if thinks and case.own_prompt_format and case.length is None and LENGTH not in _advice(recipe, case):
        message = (
            f"is left out, so a request has {DEFAULT_LENGTH} tokens for its prompt, the thoughts of {recipe.family} "
            "and the answer; write the length that you need"
        )
        yield LENGTH, message


def _smaller_checkpoint(recipe: Recipe, case: Case) -> Iterator[tuple[KeyPath, str]]:
    """The same model with smaller weights that this GPU gains by, where the file leaves the choice to `model_id`.

    Never by `--fix`: other weights answer a little differently, and somebody must want that.
    """
    if case.gpu is None or case.names_weights or case.kwargs.get("quantization"):
        return
    for group in reversed(recipe.checkpoints):
        if (smaller := group.of(case.hf_id)) is not None and gains(recipe, group, case):
            message = (
                f"the model is published in {group.format} too: {group.why}; add `hf_model_id: {smaller}`, or "
                f"`hf_model_id: {case.hf_id}` to keep this one ({_basis(recipe, group, case)})"
            )
            yield (*ENGINE, "hf_model_id"), message
            return


def smaller_here(recipe: Recipe | None, hf_id: str, gpu: Accelerator) -> str | None:
    """The smaller checkpoint that `check` would name for a model on this GPU."""
    case = Case(hf_id, gpu, 1, None, {}, {}, own_prompt_format=False, names_weights=False)
    for group in reversed(recipe.checkpoints if recipe is not None else ()):
        if recipe is not None and group.of(hf_id) is not None and gains(recipe, group, case):
            return group.of(hf_id)
    return None


def gains(recipe: Recipe, group: Checkpoints, case: Case) -> bool:
    """Whether a case gains by a group's checkpoint, and the recipe knows nothing that stops it."""
    chosen = replace(case, hf_id=group.of(case.hf_id) or case.hf_id)
    broken = any(bad.severity == "error" and _holds(bad.when, chosen) for bad in recipe.known_bad)
    return _holds(group.when, case) and not broken


def _bad(recipe: Recipe, bad: KnownBad, case: Case) -> str:
    return f"{bad.message}; {bad.fix} (recipe of {recipe.family}: {_basis(recipe, bad, case)})"


def _basis(recipe: Recipe, part: Sourced, case: Case) -> str:
    """Source and date, and that only the model's type led to the recipe: a fine-tune may have another format."""
    by_type = "" if recipe.longest_match(case.hf_id) else "; chosen by model_type alone"
    return f"{recipe.basis(part)}{by_type}"


def _section(data: Any, *path: str) -> Mapping[str, Any]:
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}
