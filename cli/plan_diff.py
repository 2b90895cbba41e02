"""`modelfleet plan --diff REV`: what a branch changes about a stack, as text and as Markdown for a pull request."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from modelfleet.cli.plan_table import UNKNOWN, nodes_text, replicas_text, schedule_text, usd
from modelfleet.infra.kubernetes.rollout import rebuild_reasons, sentence
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.plan import ModelPlan, PoolPlan
from modelfleet.infra.planning.system_roll import system_nodes_of, system_roll
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.infra.stack.load import NAMESPACE
from modelfleet.serving.config.errors import Finding, InputErrors, SetupError

MODELS_AND_STACKS = ("models", "stacks")
#: Sections of the stack file whose effects are shown at pools and models.
ELSEWHERE: Final = {"models", "pools", "schedule"}
#: A value that a side does not have.
UNSET: Final = "unset"


@dataclass(frozen=True)
class Change:
    """One line: `sign` is `+`, `-` or `~`; `what` is `model`, `pool`, or `setting`, any other key of the stack file."""

    sign: str
    what: str
    name: str
    detail: str


@dataclass(frozen=True)
class Difference:
    """What changed between two plans of a stack; `before` is None when the revision has no such plan."""

    stack: str
    revision: str
    before: Plan | None
    after: Plan
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]


def difference(root: Path, revision: str, after: Plan) -> Difference:
    """Also plan the revision, and compare. Raises `InputErrors` for an unknown revision, `SetupError` without git."""
    before, reason = _plan_of(root, revision, after.stack)
    warnings = [f"{revision} has no plan of stack {after.stack}: {reason}"] if reason else []
    if before is not None:
        warnings += [*rebuild_warnings(before, after), *roll_warnings(before, after)]
    return Difference(after.stack, revision, before, after, tuple(changes(before, after)), tuple(warnings))


def _plan_of(root: Path, revision: str, stack: str) -> tuple[Plan | None, str]:
    """The plan of a revision's models/ and stacks/, or why there is none."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-") as folder:
        old = Path(folder)
        with tarfile.open(fileobj=io.BytesIO(_archive(root, revision))) as archive:
            archive.extractall(old, filter="data")
        link_rest(root, old)
        try:
            return make_plan(old, stack, deploying=False), ""
        except InputErrors as error:
            return None, error.findings[0].sentence()


def link_rest(root: Path, there: Path) -> None:
    """What a plan reads beside models/ and stacks/: an issuer's keys, measured figures, what .modelfleet knows."""
    for path in root.iterdir():
        if path.name not in MODELS_AND_STACKS:
            (there / path.name).symlink_to(path.resolve(), target_is_directory=path.is_dir())


def _archive(root: Path, revision: str) -> bytes:
    """models/ and stacks/ of the revision as a tar file."""
    if revision.startswith("-"):
        raise _wrong(f"found {revision!r}; name a git revision, e.g. main or HEAD~1")
    try:
        there = _git(root, "ls-tree", "--name-only", revision, *MODELS_AND_STACKS)
        if there.returncode == 0:
            names = there.stdout.decode().split()
            return _git(root, "archive", "--format=tar", revision, "--", *names).stdout if names else _empty_tar()
    except FileNotFoundError:
        raise SetupError("git is missing, and --diff reads the other revision from it; install git") from None
    message = there.stderr.decode(errors="replace").strip().splitlines()
    raise _wrong(f"git does not know {revision!r}: {message[-1] if message else 'unknown revision'}")


def _wrong(message: str) -> InputErrors:
    return InputErrors([Finding("--diff", 0, "", message)])


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)


def _empty_tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w"):
        pass
    return stream.getvalue()


def changes(before: Plan | None, after: Plan) -> Iterator[Change]:
    """What differs between two plans, pools first; without a first plan all is new, and no setting is a change."""
    old_pools, new_pools = _named(before.pools if before else ()), _named(after.pools)
    for name in [*new_pools, *(n for n in old_pools if n not in new_pools)]:
        yield from _change("pool", name, _pool_facts(old_pools.get(name)), _pool_facts(new_pools.get(name)))
    old_models = {model.model_id: model for model in (before.models if before else ())}
    new_models = {model.model_id: model for model in after.models}
    for name in sorted(old_models.keys() | new_models.keys()):
        old, new = old_models.get(name), new_models.get(name)
        for change in _change("model", name, _model_facts(old), _model_facts(new)):
            restarts = old is not None and new is not None and old.application.args != new.application.args
            yield replace(change, detail=f"{change.detail}; {new.gap.sentence}") if new and restarts else change
    if before is not None:
        yield from _setting_changes(_settings(before), _settings(after))
        yield from _secret_changes(before, after)


def _settings(plan: Plan) -> dict[str, str]:
    """The stack file's other keys with their values, defaults too: to write one out is no change."""
    sections = plan.config.model_dump(mode="json", by_alias=True, exclude=ELSEWHERE)
    values = {key: _yaml(value) for key, value in _leaves(sections) if value not in (None, [], {})}
    return values | dict.fromkeys(sorted(plan.source.secrets), "a secret")


def _yaml(value: Any) -> str:
    """As the stack file has it, in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _setting_changes(old: dict[str, str], new: dict[str, str]) -> Iterator[Change]:
    for key in [*new, *(one for one in old if one not in new)]:
        was, will = old.get(key, UNSET), new.get(key, UNSET)
        if was != will:
            # A certificate says nobody anything.
            yield Change("~", "setting", key, "changed" if "\n" in was + will else f"{was} → {will}")


def _secret_changes(before: Plan, after: Plan) -> Iterator[Change]:
    """Secrets that were encrypted anew; what they are Pulumi alone knows."""
    was, will = ({key: _encrypted(plan, key) for key in plan.source.secrets} for plan in (before, after))
    for key in sorted(was.keys() & will.keys()):
        if was[key] != will[key]:
            yield Change("~", "setting", key, "encrypted anew")


def _encrypted(plan: Plan, key: str) -> Any:
    return plan.source.document.data["config"].get(f"{NAMESPACE}{key}")


def _named(pools: tuple[PoolPlan, ...]) -> dict[str, PoolPlan]:
    return {pool.name: pool for pool in pools}


def _pool_facts(pool: PoolPlan | None) -> dict[str, str]:
    if pool is None:
        return {}
    return {
        "accelerator": pool.accelerator,
        "instance types": ", ".join(pool.instance_types) or "given node",
        "purchase": pool.purchases,
        **{
            f"on {rung.accelerator}": ", ".join(rung.instance_types)
            for rung in pool.rungs
            if rung.accelerator != pool.accelerator
        },
        "nodes": nodes_text(pool),
        "maxNodes": str(pool.max_nodes),
        "USD/h": f"{usd(pool.cost.min_usd_per_hour)}–{usd(pool.cost.max_usd_per_hour)}",
    }


def _model_facts(model: ModelPlan | None) -> dict[str, str]:
    if model is None:
        return {}
    facts = {
        "accelerator": model.accelerator,
        "pool": model.pool,
        "replicas": replicas_text(model),
        "workers": str(model.workers),
        "USD/h": f"{usd(model.cost.min_usd_per_hour)}–{usd(model.cost.max_usd_per_hour)}",
    }
    weights = {"weights": model.mirror.source, "revision": model.mirror.revision or "main"}
    adapters = (model.application.user_config or {}).get("lora", [])
    named = {"lora": ", ".join(f"{one['name']} of {one['source']}" for one in adapters)} if adapters else {}
    times = {"schedule": schedule_text(model.schedule)} if model.schedule else {}
    traces = {"traces": str(to)} if (to := model.application.args.get("traces")) else {}
    goals = {f"slo {one.name}": one.sentence for one in model.slo}
    file = {key: str(value) for key, value in _leaves(model.application.args["model"])}
    return {**facts, **weights, **named, **times, **traces, **goals, **file}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """A file's keys with their values."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _change(what: str, name: str, old: dict[str, str], new: dict[str, str]) -> Iterator[Change]:
    if not old:
        shown = [f"{key} {new[key]}" for key in ("instance types", "pool", "nodes", "replicas", "USD/h") if key in new]
        yield Change("+", what, name, ", ".join(shown))
    elif not new:
        yield Change("-", what, name, f"was {old['USD/h']} USD/h")
    else:
        keys = [key for key in [*new, *(k for k in old if k not in new)] if old.get(key) != new.get(key)]
        texts = [f"{key} {old.get(key, UNSET)} → {new.get(key, UNSET)}" for key in keys]
        if texts:
            yield Change("~", what, name, "; ".join(texts))


def rebuild_warnings(before: Plan, after: Plan) -> list[str]:
    """Warnings that the change rebuilds a live Ray cluster; none on this machine, where KubeRay does not run."""
    if before.target.on_this_machine or after.target.on_this_machine:
        return []
    reasons = rebuild_reasons(before, after)
    return [f"the Ray cluster changes ({', '.join(reasons)}): {sentence(after)}"] if reasons else []


def roll_warnings(before: Plan, after: Plan) -> list[str]:
    """A warning that the change replaces the system nodes, with what that interrupts."""
    survives = before.head_survives and after.head_survives
    roll = system_roll(system_nodes_of(before), after, head_survives=survives)
    if roll is None:
        return []
    changes = ", ".join(f"{'.'.join(one.path)} {one.was} → {one.will}" for one in roll.changes)
    return [f"{changes}: {roll.sentence}"]


def cost_line(diff: Difference) -> str:
    """`at most 12.00 → 14.50 USD/h (+2.50)`."""
    new = diff.after.cost.max_usd_per_hour
    old = diff.before.cost.max_usd_per_hour if diff.before else 0.0
    delta = f" ({new - old:+,.2f})" if new is not None and old is not None else ""
    return f"at most {usd(old) if diff.before else UNKNOWN if old is None else '0.00'} → {usd(new)} USD/h{delta}"


def change_line(change: Change) -> str:
    """`  + model org/new: pool l4, replicas 1–2, USD/h 0.80–1.61`."""
    return f"  {change.sign} {change.what} {change.name}: {change.detail}"


def change_json(change: Change) -> dict[str, str]:
    """For machines."""
    return {"sign": change.sign, "what": change.what, "name": change.name, "detail": change.detail}


def as_text(diff: Difference) -> str:
    """For a terminal."""
    lines = [f"Stack {diff.stack} since {diff.revision}: {cost_line(diff)}"]
    lines += [change_line(change) for change in diff.changes] or ["  nothing changes"]
    lines += [f"  ! {warning}" for warning in diff.warnings]
    return "\n".join(lines)


def as_markdown(diff: Difference) -> str:
    """For a pull request."""
    lines = [f"### `{diff.stack}`: {cost_line(diff)}", ""]
    if diff.changes:
        lines += ["| | | | change |", "|---|---|---|---|"]
        lines += [f"| {c.sign} | {c.what} | {_code(c.name)} | {_cell(c.detail)} |" for c in diff.changes]
    else:
        lines.append("Nothing changes.")
    lines += ["", *(f"> **Warning:** {warning}" for warning in diff.warnings)] if diff.warnings else []
    return "\n".join(lines)


def _code(text: str) -> str:
    """A name as code; those of labels and tags are anybody's."""
    safe = text.replace("`", "'").replace("|", "\\|").replace("\n", " ")
    return f"`{safe}`"


def _cell(text: str) -> str:
    """Text that cannot leave its table cell or become markup."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def as_json(diff: Difference) -> dict[str, Any]:
    """For machines."""
    return {
        "stack": diff.stack,
        "revision": diff.revision,
        "max_usd_per_hour_before": diff.before.cost.max_usd_per_hour if diff.before else None,
        "max_usd_per_hour_after": diff.after.cost.max_usd_per_hour,
        "changes": [change_json(change) for change in diff.changes],
        "warnings": list(diff.warnings),
    }
