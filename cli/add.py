"""`modelfleet add MODEL`: from a model's name to a reviewed file. It chooses, shows, asks, and then writes."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from modelfleet.cli import output
from modelfleet.cli.add_stack import with_model
from modelfleet.cli.models_bar import memory_bar
from modelfleet.cli.plan_diff import change_json, change_line, changes, rebuild_warnings
from modelfleet.cli.plan_json import plain
from modelfleet.cli.plan_table import FittingTable, range_text, usd
from modelfleet.infra.catalog import Catalog
from modelfleet.infra.catalog.recipes import Recipe, recipe_of
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.cpu_offers import cpu_offers
from modelfleet.infra.planning.fit import memory_of
from modelfleet.infra.planning.fit_findings import fit_findings
from modelfleet.infra.planning.new_model import NewModel, file_text
from modelfleet.infra.planning.offers import Goal, Offer, Wish, checkpoints_of, offers, without_repeats
from modelfleet.infra.planning.recipe_findings import recipe_findings
from modelfleet.infra.planning.signers import from_hub
from modelfleet.infra.reading.measured import known_catalog
from modelfleet.infra.reading.models import Reader, read_facts
from modelfleet.infra.reading.named_model import NamedModel, named_model
from modelfleet.infra.reading.prices import with_known_prices
from modelfleet.infra.reading.workspace import Workspace, plan_workspace, read_workspace
from modelfleet.infra.stack import LoadedStack, stack_file, stack_of
from modelfleet.serving.config.accelerators import CPU
from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.errors import Finding, InputErrors, SetupError, errors_in
from modelfleet.serving.config.load import LoadedModel, model_of
from modelfleet.serving.config.schema import slug_of
from modelfleet.serving.config.validation import near

#: Colours of a diff's lines on a terminal.
DIFF_STYLES = {"+": "green", "-": "red", "@": "cyan"}
#: The length that is planned where nobody names one: enough for a chat with a few documents.
LENGTH = 8192


@dataclass(frozen=True)
class Asked:
    """The options of `modelfleet add`."""

    stack: str | None = None
    accelerator: str | None = None
    length: int | None = None
    concurrency: int = 8
    replicas: str = "1-2"
    goal: Goal = "cheapest"
    yes: bool = False
    dry_run: bool = False
    network: bool = True


@dataclass(frozen=True)
class Change:
    """What would be written: texts by file, the chosen offer, the other ones, and the plan before and after.

    `region` is where prices were looked for.
    """

    texts: Mapping[Path, str]
    chosen: Offer
    others: tuple[Offer, ...]
    findings: tuple[Finding, ...]
    region: str
    before: Plan | None = None
    after: Plan | None = None


def run_add(name: str, asked: Asked, *, as_json: bool = False) -> int:
    """Choose, show, ask and write; returns the exit code. Nothing is written that `check` would refuse."""
    root, catalog = Path.cwd(), known_catalog(Path.cwd())
    model = named_model(name, catalog, network=asked.network)
    low, high = _replicas(asked.replicas)
    wish = Wish(asked.length or min(LENGTH, model.facts.checkpoint.longest), asked.concurrency, low, asked.goal)
    change = _change(root, model, wish, high, asked, catalog)
    written = asked.yes and not asked.dry_run
    if not as_json:
        _show(change, root)
        if not written and not asked.dry_run:
            written = _confirmed()
    if written:
        for path, text in change.texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if as_json:
        output.show_json(_as_json(change, root, written=written))
    elif written:
        output.say(f"wrote {', '.join(_shown(path, root) for path in change.texts)}. Next: modelfleet plan"
                   f"{f' --stack {asked.stack}' if asked.stack else ''}")  # fmt: skip
    return 0


def _replicas(text: str) -> tuple[int, int]:
    """`2` or `1-4`. Raises `SetupError` for anything else."""
    low, _, high = text.partition("-")
    if not low.isdecimal() or (high and not high.isdecimal()):
        raise SetupError(f"--replicas: found {text!r}; write a number, or a range such as 1-4")
    bounds = int(low), int(high or low)
    if bounds[0] > bounds[1] or bounds[1] < 1:
        raise SetupError(f"--replicas: found {text!r}; the first number is at most the second, which is at least 1")
    return bounds


def _change(root: Path, model: NamedModel, wish: Wish, most: int, asked: Asked, catalog: Catalog) -> Change:
    """The best offer that makes a valid file and plan. Raises `InputErrors` with the faults of the first, else."""
    path = root / "models" / f"{slug_of(model.name)}.yaml"
    if path.exists():
        raise InputErrors([Finding(_shown(path, root), 0, "", "exists already; edit it, or move it away")])
    workspace = read_workspace(root, asked.stack) if asked.stack else None
    recipe = recipe_of(model.name, model.facts.architecture)
    names = _accelerators(asked, workspace, catalog)
    if workspace is not None and workspace.stack.config.target.priced and workspace.stack.region:
        wish = replace(wish, region=workspace.stack.region)
        catalog = with_known_prices(catalog, workspace.stack, root, network=asked.network, accelerators=names)
    checkpoints = checkpoints_of(model.name, model.facts, recipe, catalog)
    if names == [CPU]:
        makes_nodes = workspace is None or workspace.stack.config.target.makes_cluster
        found = cpu_offers(checkpoints[0], wish, catalog, whole_node=makes_nodes)
    else:
        found = offers(checkpoints, wish, catalog, names)
    if not found:
        raise SetupError(_nowhere(model, wish, names))
    before = _plan(workspace, root, asked)
    refused: list[Finding] = []
    for offer in found:
        try:
            new = NewModel(model.name, offer, wish, most, card_was_asked=asked.accelerator is not None)
            return _tried(root, path, new, recipe, workspace, before, tuple(without_repeats(found, offer)), asked)
        except InputErrors as error:
            refused = refused or list(error.findings)
    raise InputErrors(refused)


def _accelerators(asked: Asked, workspace: Workspace | None, catalog: Catalog) -> list[str]:
    """Those that may be chosen: the asked one, or, where the stack makes no nodes, those of its pools.

    CPUs alone, where they are asked for or the pools have nothing else: no model that fits a GPU is better there.
    """
    names = list(catalog.accelerators)
    if workspace is not None and not workspace.stack.config.target.makes_cluster:
        pools = {pool.accelerator for pool in workspace.stack.config.pools}
        names = [name for name in (*names, CPU) if name in pools]
        if not names:
            raise SetupError(f"stack {asked.stack} makes no nodes and has no pool; add one to its file first")
    else:
        names.append(CPU)
    if asked.accelerator is None:
        return [name for name in names if name != CPU] or names
    found = {name.lower(): name for name in names}.get(asked.accelerator.lower())
    if found is None:
        raise SetupError(f"--accelerator: found {asked.accelerator!r}; {near(asked.accelerator, names)}")
    return [found]


def _nowhere(model: NamedModel, wish: Wish, names: Sequence[str]) -> str:
    asked = f"{model.name} with requests of {wish.length:,} tokens"
    smaller = f"ask for a smaller --length or --concurrency, or see `modelfleet models show {model.name}`"
    if names == [CPU]:
        return f"no node without a GPU carries {asked}, or its weights are compressed; {smaller}"
    where = f"{names[0]} does not carry" if len(names) == 1 else "no accelerator carries"
    return f"{where} {asked}, {wish.concurrency} at once, on up to 8 GPUs of one node; {smaller}"


def _plan(workspace: Workspace | None, root: Path, asked: Asked) -> Plan | None:
    """The plan as it is. Raises `InputErrors`: what is broken before is mended first."""
    if workspace is None:
        return None
    return plan_workspace(workspace, root, network=asked.network, deploying=False)


def _tried(
    root: Path,
    path: Path,
    new: NewModel,
    recipe: Recipe | None,
    workspace: Workspace | None,
    before: Plan | None,
    others: tuple[Offer, ...],
    asked: Asked,
) -> Change:
    """The change for one offer. Raises `InputErrors` where `check` or the plan would refuse it."""
    text = file_text(new, recipe)
    document = parse_document(text.encode(), _shown(path, root))
    loaded, findings = model_of(document)
    if loaded is None or errors_in(findings):
        raise InputErrors(errors_in(findings))
    if _runs_code_of_the_hub(loaded):
        weights = loaded.config.engine_config.weights_id
        new = replace(new, revision=Reader(root, network=asked.network).commit(weights, "main"))
        text = file_text(new, recipe)
        document = parse_document(text.encode(), _shown(path, root))
        loaded = model_of(document)[0] or loaded
    held = memory_of(loaded.config, new.offer.checkpoint.facts)
    if held is not None and held != new.offer.memory:  # the recipe's batch or cache type changes it
        new = replace(new, offer=replace(new.offer, memory=held))
        text = file_text(new, recipe)
    findings = sorted({*findings, *recipe_findings(document, recipe), *_fit(loaded, root)})
    if errors := errors_in(findings):
        raise InputErrors(errors)
    texts, after = {path: text}, None
    if workspace is not None and asked.stack is not None:
        file = stack_file(root, asked.stack)
        old = file.read_text("utf-8")
        changed = with_model(old, workspace.stack.config, path.stem, new.offer, new.max_replicas)
        stack = workspace.stack if changed == old else _stack(changed, workspace.stack)
        models = (*workspace.models, loaded)
        after = plan_workspace(
            Workspace(models, stack, workspace.code, workspace.findings), root, network=asked.network, deploying=False
        )
        if changed != old:
            texts[file] = changed
    if before is not None and after is not None:
        findings += sorted(set(after.notices) - set(before.notices) - set(findings))
    return Change(texts, new.offer, others, tuple(findings), new.wish.region, before, after)


def _runs_code_of_the_hub(model: LoadedModel) -> bool:
    engine = model.config.engine_config
    return bool(engine.engine_kwargs.get("trust_remote_code")) and from_hub(engine.weights_id)


def _stack(text: str, old: LoadedStack) -> LoadedStack:
    return stack_of(parse_document(text.encode(), old.document.file), old.name)


def _fit(model: LoadedModel, root: Path) -> list[Finding]:
    facts, unrunnable = read_facts([model], root)
    return unrunnable or fit_findings([model], facts)


def _shown(path: Path, root: Path) -> str:
    return str(path.relative_to(root))


def _show(change: Change, root: Path) -> None:
    """The choice with its memory, the alternatives, the diff of files, and what it does to the plan and its price."""
    for line in memory_bar(plain(change.chosen.memory)):
        output.show(line)
    output.show(_table(change))
    for line in _diff(change, root):
        output.say(line, DIFF_STYLES.get(line[:1], ""), stderr=False)
    for finding in change.findings:
        output.say(finding.sentence(), "cyan", stderr=False)
    if change.before is not None and change.after is not None:
        output.show(_price_line(change.before, change.after))
        for one in changes(change.before, change.after):
            output.show(change_line(one))
        for warning in rebuild_warnings(change.before, change.after):
            output.say(f"  ! {warning}", "yellow", stderr=False)


def _table(change: Change) -> FittingTable:
    columns = [("", False), ("checkpoint", False), ("GPUs", False), ("memory", False), ("full sequences", True)]
    columns += [("tokens/s", True), ("USD/h", True), ("USD/10⁶", True)]
    shown = (change.chosen, *change.others)
    elsewhere = {offer.price_region for offer in shown} - {change.region}
    note = f" (~ in {', '.join(elsewhere)}: not known there)" if elsewhere else ""
    table = FittingTable(
        f"USD/h of the nodes at the fewest replicas, on demand in {change.region}{note}; speed is an estimate", columns
    )
    for offer in shown:
        about = "~" if offer.price_region in elsewhere else ""
        table.add_row(
            "→" if offer is change.chosen else "",
            offer.checkpoint.hf_id,
            offer.instance_type or f"{offer.workers} × {offer.accelerator.name}",
            _small_bar(offer),
            f"{offer.memory.full_length_sequences:,}",
            range_text(offer.speed.output_tokens_per_second) if offer.speed else "-",
            about + usd(offer.usd_per_hour),
            about + usd(offer.speed.usd_per_million_tokens) if offer.speed else "-",
        )
    return table


def _small_bar(offer: Offer) -> str:
    """One GPU's memory in ten cells: weights, reserve, KV cache, left free."""
    memory = offer.memory
    parts = ((memory.weights_mib, "█"), (memory.reserve_mib, "▓"), (memory.kv_cache_mib, "▒"))
    cells = "".join(mark * round(10 * mib / memory.total_mib) for mib, mark in parts)
    return f"{cells:░<10}"[:10]


def _diff(change: Change, root: Path) -> list[str]:
    lines: list[str] = []
    for path, text in change.texts.items():
        old = path.read_text("utf-8") if path.exists() else ""
        name = _shown(path, root)
        before = f"a/{name}" if old else "/dev/null"
        lines += difflib.unified_diff(old.splitlines(), text.splitlines(), before, f"b/{name}", lineterm="")
    return lines


def _price_line(before: Plan, after: Plan) -> str:
    """`stack dev: 0.98 → 1.78 USD/h at the fewest replicas, 7.82 → 9.43 at the most`."""
    least = f"{usd(before.cost.min_usd_per_hour)} → {usd(after.cost.min_usd_per_hour)} USD/h at the fewest replicas"
    most = f"{usd(before.cost.max_usd_per_hour)} → {usd(after.cost.max_usd_per_hour)} at the most"
    return f"stack {after.stack}: {least}, {most}"


def _confirmed() -> bool:
    """Ask on a terminal; elsewhere nothing is written without `--yes`."""
    if not sys.stdin.isatty():
        output.say("nothing was written; --yes writes it")
        return False
    return typer.confirm("Write it?", default=False)


def _as_json(change: Change, root: Path, *, written: bool) -> dict[str, Any]:
    plans = {"before": change.before, "after": change.after}
    diff = changes(change.before, change.after) if change.before is not None and change.after is not None else ()
    return {
        "written": written,
        "files": {_shown(path, root): text for path, text in change.texts.items()},
        "diff": "\n".join(_diff(change, root)) if not written else "",
        "chosen": _offer_json(change.chosen),
        "alternatives": [_offer_json(offer) for offer in change.others],
        "findings": [finding.as_json() for finding in change.findings],
        "plan": [change_json(one) for one in diff],
        "cost": {name: plain(plan.cost) if plan is not None else None for name, plan in plans.items()},
    }


def _offer_json(offer: Offer) -> dict[str, Any]:
    row: dict[str, Any] = plain(offer)
    each = offer.speed.usd_per_million_tokens if offer.speed else None
    names = {"checkpoint": offer.checkpoint.hf_id, "accelerator": offer.accelerator.name}
    return {**row, **names, "usd_per_million_tokens": each}
