"""Files that a command is about to write: the plan with them, what it changes, the question, and the writing."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from modelfleet.cli import output
from modelfleet.cli.plan_diff import (
    MODELS_AND_STACKS,
    Difference,
    as_json,
    as_text,
    changes,
    link_rest,
    rebuild_warnings,
    roll_warnings,
)
from modelfleet.infra.planning import Plan
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.serving.config.errors import InputErrors


@dataclass(frozen=True)
class Answer:
    """How a command asks and what it does then: `--yes`, `--json`, `--up`."""

    yes: bool = False
    as_json: bool = False
    deploy: bool = False

    def agreed(self, found: Difference, files: Mapping[str, str], proved_at: str) -> bool:
        """Show what changes and ask; elsewhere than on a terminal nothing is written without `--yes`."""
        if self.as_json:
            output.show_json({**as_json(found), "files": sorted(files), "proved_at": proved_at})
        else:
            output.say(as_text(found), stderr=False)
        if not self.yes and not sys.stdin.isatty():
            output.say("nothing was written; --yes writes it")
            return False
        return self.yes or typer.confirm("Write it?", default=False, err=True)

    def nothing_to_write(self, stack: str) -> int:
        """Also that is an answer for a script; files that are there may still have to be deployed (`--up`)."""
        if self.as_json:
            output.show_json({"stack": stack, "changes": [], "files": [], "proved_at": None})
        return self.then(stack) if self.deploy else 0

    def then(self, stack: str) -> int:
        """Deploy, or say how; returns the exit code."""
        if not self.deploy:
            output.say(f"Next: modelfleet up --stack {stack}")
            return 0
        from modelfleet.cli.up import run_up

        return run_up(stack)


def plan_with(root: Path, stack: str, texts: Mapping[str, str]) -> Plan:
    """The plan of a stack as if the files had these texts, by path. Raises `InputErrors` with all that it refuses."""
    with tempfile.TemporaryDirectory(prefix="modelfleet-") as folder:
        there = Path(folder)
        for name in MODELS_AND_STACKS:
            if (root / name).is_dir():
                shutil.copytree(root / name, there / name, ignore_dangling_symlinks=True)  # an editor's lock is one
        link_rest(root, there)
        write_files(there, texts)
        return make_plan(there, stack, deploying=False)


def difference(root: Path, after: Plan) -> Difference:
    """What `after` changes about a stack, against the files as they are; these may be what is wrong."""
    try:
        before = make_plan(root, after.stack, deploying=False)
    except InputErrors as error:
        reason = f"the files now have no plan: {error.findings[0].sentence()}"
        return Difference(after.stack, "the files now", None, after, tuple(changes(None, after)), (reason,))
    warnings = (*rebuild_warnings(before, after), *roll_warnings(before, after))
    return Difference(after.stack, "the files now", before, after, tuple(changes(before, after)), warnings)


def nothing_proved(stack: str) -> str:
    """What to do for a stack without a proved state."""
    return f"stack {stack} has proved nothing yet; `modelfleet up --stack {stack}` does, once its models answer"


def write_files(root: Path, texts: Mapping[str, str]) -> None:
    """Write the texts by path below `root`."""
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
