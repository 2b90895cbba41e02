"""`modelfleet check`: every fault of every file, sorted, `--fix` for old names, and `--recipes` for what is lacking."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelfleet.cli import output
from modelfleet.cli.schemas import refresh_schemas
from modelfleet.serving.config.errors import EXIT_INPUT, Finding, InputErrors, Severity, errors_in
from modelfleet.serving.config.load import LoadedModel, load_model

STACK_FILE = re.compile(r"Pulumi\.(?P<stack>[^/]+)\.ya?ml")
MODEL_SUFFIXES = (".yaml", ".yml")


@dataclass
class Checked:
    """What was checked and found."""

    files: int = 0
    models: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    lacking: bool = False
    older: bool = False
    """Whether a file has old names, which `--fix` rewrites."""

    def count(self, severity: Severity) -> int:
        """How many findings have this severity."""
        return sum(finding.severity is severity for finding in self.findings)


def run_check(
    paths: list[Path], *, stack: str | None, as_json: bool, fix: bool, recipes: bool = False, pin: bool = False
) -> int:
    """Check model and stack files, print what was found, and return the exit code.

    `fix` rewrites old names; with `recipes` it also adds what a model's recipe has and its file lacks, with `pin` the
    commit of weights that a file names by a branch.
    """
    refresh_schemas(Path.cwd())
    checked = Checked()
    chosen = list(map(str, paths)) or ([] if stack else ["models"])
    files, missing = files_of(chosen)
    checked.findings += missing
    for path in files:
        _check_file(path, checked, fix=fix, recipes=recipes, pin=pin)
    if stack is not None:
        _check_stack(stack, checked)
    checked.findings = sorted(set(checked.findings))
    _print(checked, as_json=as_json)
    return EXIT_INPUT if errors_in(checked.findings) else 0


def files_of(patterns: Iterable[str]) -> tuple[list[Path], list[Finding]]:
    """The files behind paths, folders (their .yaml and .yml files) and globs; a finding for each that matches none."""
    files: dict[Path, None] = {}
    findings: list[Finding] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in MODEL_SUFFIXES and p.is_file())
        elif path.exists():
            found = [path]
        else:
            found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))  # noqa: PTH207 (absolute patterns too)
        if not found:
            message = "no such file, and not a folder with .yaml files; name a model file, a folder or a glob"
            findings.append(Finding(pattern, 0, "", message))
        files |= dict.fromkeys(found)
    return list(files), findings


def _check_file(path: Path, checked: Checked, *, fix: bool, recipes: bool, pin: bool) -> None:
    checked.files += 1
    if match := STACK_FILE.fullmatch(path.name):
        _check_stack_file(path, match["stack"], checked)
        return
    if fix:
        _fix(path, checked, recipes=recipes, pin=pin)
    model, findings = load_model(path)
    advice, lacking = _recipe(path, model)
    checked.lacking |= lacking
    checked.older |= any(finding.severity is Severity.NOTICE for finding in findings)
    checked.findings += [*findings, *advice]
    if model is not None:
        checked.models.append(model.config.model_id)
        checked.findings += _fit(model)


def _fit(model: LoadedModel) -> list[Finding]:
    """Does it fit its GPU, and may it be used? By what this machine knows: a folder, kept answers, the catalog."""
    from modelfleet.infra.catalog import default_catalog
    from modelfleet.infra.planning.fit_findings import fit_findings
    from modelfleet.infra.planning.trust import trust_notices
    from modelfleet.infra.planning.use_findings import use_findings
    from modelfleet.infra.reading.models import has_token, read_facts

    facts, unrunnable = read_facts([model], Path.cwd())
    use = use_findings(model, facts.get(model.config.model_id), default_catalog(), has_token=has_token)
    return [*use, *trust_notices(model), *(unrunnable or fit_findings([model], facts))]


def _recipe(path: Path, model: LoadedModel | None) -> tuple[list[Finding], bool]:
    """What an expert would write and what is known not to work, and whether lines can be added."""
    from modelfleet.cli.check_recipes import findings_of

    return findings_of(path, model)


def _fix(path: Path, checked: Checked, *, recipes: bool, pin: bool) -> None:
    from modelfleet.cli.check_pin import pin_revision
    from modelfleet.cli.check_recipes import add_lacking
    from modelfleet.serving.config.rayllm.fix import fix_file

    try:
        notices = [replace(notice, message=f"rewritten: {notice.message}") for notice in fix_file(path)]
        notices += add_lacking(path) if recipes else []
        notices += pin_revision(path) if pin else []
    except InputErrors as error:
        checked.findings += error.findings
        return
    if notices:
        checked.rewritten.append(str(path))
        checked.findings += notices


def _check_stack_file(path: Path, name: str, checked: Checked) -> None:
    from modelfleet.infra.stack import load_stack

    try:
        checked.findings += load_stack(path.resolve().parent.parent, name).notices
    except InputErrors as error:
        checked.findings += error.findings


def _check_stack(name: str, checked: Checked) -> None:
    """The stack's file, its models, and whether they make a plan."""
    from modelfleet.infra.reading.workspace import make_plan

    checked.files += 1
    try:
        checked.findings += make_plan(Path.cwd(), name, deploying=False).notices
    except InputErrors as error:
        checked.findings += error.findings


def _print(checked: Checked, *, as_json: bool) -> None:
    if as_json:
        output.show_json(
            {
                "files": checked.files,
                "models": checked.models,
                "rewritten": checked.rewritten,
                "findings": [finding.as_json() for finding in checked.findings],
            }
        )
        return
    output.show_findings(checked.findings, stderr=False)
    for path in checked.rewritten:
        output.say(f"rewritten: {path}")
    output.say(_summary(checked))


def _summary(checked: Checked) -> str:
    counts = {severity: checked.count(severity) for severity in Severity}
    parts = [output.counted(count, severity.value) for severity, count in counts.items() if count]
    text = f"{output.counted(checked.files, 'file')}: {', '.join(parts) or 'no findings'}."
    if counts[Severity.ERROR]:
        return text
    if checked.lacking:
        return f"{text} Next: modelfleet check --fix --recipes, which adds what recipes have, or modelfleet plan."
    if checked.older:
        return f"{text} Next: modelfleet check --fix, which rewrites old names, or modelfleet plan."
    return f"{text} Next: modelfleet plan"
