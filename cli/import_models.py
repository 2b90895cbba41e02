"""`modelfleet import`: model files from what serves a model elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from modelfleet.cli import output
from modelfleet.infra.interchange.draft import Draft, holes_of
from modelfleet.infra.interchange.reading import MAX_BYTES, Loader, read_drafts
from modelfleet.infra.interchange.writing import text_of
from modelfleet.serving.config.accelerators import accelerators
from modelfleet.serving.config.document import decoded
from modelfleet.serving.config.errors import Finding, InputErrors
from modelfleet.serving.config.validation import near

STDIN = "-"


def run_import(paths: Sequence[str], *, out: str, accelerator: str | None, force: bool, as_json: bool) -> int:
    """Read every file, then write a model file for each model; nothing is written when one of them is refused."""
    if accelerator is not None and accelerator not in accelerators():
        raise InputErrors(
            [Finding("--accelerator", 0, "", f"found {accelerator!r}; {near(accelerator, accelerators())}")]
        )
    drafts: list[Draft] = []
    findings: list[Finding] = []
    for path in paths:
        try:
            drafts += read_drafts(_content(path), _name(path), accelerator=accelerator, load=_beside(path))
        except InputErrors as error:
            findings += error.findings
    if findings:
        raise InputErrors(findings)
    if out == STDIN and not as_json:
        print("---\n".join(text_of(draft) for draft in drafts), end="")
        return 0
    targets = _targets(drafts, Path(out), force=force)
    if out != STDIN:
        for target, draft in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text_of(draft), encoding="utf-8")
    _report(targets, as_json=as_json)
    return 0


def _content(path: str) -> str:
    try:
        raw = sys.stdin.buffer.read(MAX_BYTES + 1) if path == STDIN else _bytes(Path(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputErrors([Finding(path, 0, "", f"cannot be read: {reason}")]) from None
    if len(raw) > MAX_BYTES:
        raise InputErrors(
            [Finding(_name(path), 0, "", f"is larger than {MAX_BYTES} bytes; import one file of a deployment")]
        )
    return decoded(raw, _name(path))


def _bytes(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def _name(path: str) -> str:
    return "standard input" if path == STDIN else path


def _beside(path: str) -> Loader:
    """Reads what a file names relative to itself, below its own folder."""

    def load(name: str) -> str | None:
        folder = Path(path).resolve().parent
        target = (folder / name).resolve()
        if path == STDIN or not target.is_relative_to(folder) or not target.is_file():
            return None
        return decoded(_bytes(target)[:MAX_BYTES], name)

    return load


def _targets(drafts: Sequence[Draft], folder: Path, *, force: bool) -> dict[Path, Draft]:
    """A file for each draft; a second draft of a model gets a number."""
    targets: dict[Path, Draft] = {}
    for draft in drafts:
        number, target = 1, folder / f"{draft.name}.yaml"
        while target in targets:
            number += 1
            target = folder / f"{draft.name}-{number}.yaml"
        targets[target] = draft
    if there := [target for target in targets if target.exists() and not force]:
        raise InputErrors(
            [
                Finding(str(target), 0, "", "exists; move it away, choose another --out, or write over it with --force")
                for target in there
            ]
        )
    return targets


def _report(targets: dict[Path, Draft], *, as_json: bool) -> None:
    if as_json:
        output.show_json(
            [
                {
                    "file": str(target),
                    "from": draft.where,
                    "model": draft.data,
                    "holes": dict(holes_of(draft)),
                    "notCarriedOver": [{"what": note.what, "why": note.why} for note in draft.notes],
                }
                for target, draft in targets.items()
            ]
        )
        return
    for target, draft in targets.items():
        holes, notes = output.counted(len(draft.holes), "value"), output.counted(len(draft.notes), "remark")
        output.say(f"{target}: {holes} to fill in, {notes} on what was not carried over")
    output.say(f"Next: modelfleet check {' '.join(map(str, targets))}")
