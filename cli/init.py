"""`modelfleet init`: a fleet in a folder of its own, which pins this version."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

import modelfleet
from modelfleet.cli import output
from modelfleet.cli.release import Release, installed_release, lock_name, release_of, requirements
from modelfleet.cli.schemas import refresh_schemas
from modelfleet.serving.config.errors import Finding, InputErrors

TEMPLATES = Path(__file__).parent / "templates" / "fleet"
Ci = Literal["github", "gitlab", "none"]
CI_FILES: Final = {"github": ".github/workflows/fleet.yaml", "gitlab": ".gitlab-ci.yml"}
#: Pulumi's rule for the name of a project.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
#: Every fleet has this stack.
RESERVED = frozenset({"local"})
_STACK = re.compile(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?")


@dataclass(frozen=True)
class Fleet:
    """What the templates need: the project's name, its stacks in the cloud, and the pinned version."""

    name: str
    stacks: tuple[str, ...]
    version: str


def run_init(folder: Path, *, stacks: Sequence[str], ci: Ci, wheel: Path | None, local: bool) -> int:
    """Write the fleet and say what to do next. Writes nothing, and raises `InputErrors`, if a file is in the way."""
    release = release_of(wheel) if wheel else installed_release()
    name = folder.resolve().name
    _refuse_names(name, stacks)
    files = fleet_files(Fleet(name, tuple(stacks), release.version), release, ci=ci, local=local)
    if taken := [path for path in sorted(files) if (folder / path).exists()]:
        raise InputErrors(
            [Finding(str(folder / path), 0, "", "is there already; choose an empty folder") for path in taken]
        )
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
    refresh_schemas(folder)
    output.say(f"{folder}: {len(files)} files, pinned to modelfleet {release.version}. Next:")
    output.say(
        f"  cd {folder} && python3 -m venv .venv && .venv/bin/pip install --no-deps -r requirements.txt", stderr=False
    )
    output.say("  .venv/bin/modelfleet up", stderr=False)
    return 0


def fleet_files(fleet: Fleet, release: Release, *, ci: Ci, local: bool) -> dict[str, str]:
    """The files of a new fleet by path. None holds anything of ours that a later version would have to change."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True,
        autoescape=False,  # noqa: S701 - not HTML
    )  # fmt: skip

    def rendered(name: str) -> str:
        return templates.get_template(f"{name}.j2").render(vars(fleet))

    def copied(name: str) -> str:
        return (TEMPLATES / name).read_text(encoding="utf-8")

    files = {
        "Pulumi.yaml": rendered("Pulumi.yaml"),
        "__main__.py": copied("program.py.txt"),
        "README.md": rendered("README.md"),
        "requirements.txt": requirements(release, _lock(local=local), local=local),
        ".gitignore": rendered("gitignore"),
        ".vscode/settings.json": rendered("vscode-settings.json"),
        f"models/{_model_path('model-local.yaml')}": copied("model-local.yaml"),
        f"models/l4/{_model_path('model-trial.yaml')}": copied("model-trial.yaml"),
        "stacks/Pulumi.local.yaml": copied("stack-local.yaml"),
    }
    files |= {f"stacks/Pulumi.{name}.yaml": _stack(name) for name in fleet.stacks}
    if ci != "none":
        files[CI_FILES[ci]] = rendered(f"{ci}.yaml")
    return files


def _lock(*, local: bool) -> str:
    return (Path(modelfleet.__file__).parents[1] / lock_name(local=local)).read_text(encoding="utf-8")


def _model_path(template: str) -> str:
    """The file's name, which follows its model id."""
    content = yaml.safe_load((TEMPLATES / template).read_text(encoding="utf-8"))
    return str(content["engine_config"]["model_id"]).replace("/", "--") + ".yaml"


def _stack(name: str) -> str:
    """A stack on AWS with another name."""
    text = (TEMPLATES / "stack-trial.yaml").read_text(encoding="utf-8")
    return text.replace("pulumi up -s trial", f"pulumi up -s {name}").replace(
        "environment: trial", f"environment: {name}"
    )


def _refuse_names(name: str, stacks: Sequence[str]) -> None:
    findings = []
    if not _NAME.fullmatch(name):
        message = f"found {name!r}; Pulumi allows letters, digits, `_`, `.` and `-`, at most 100, in a project's name"
        findings.append(Finding("DIR", 0, "", message))
    for stack in stacks:
        if not _STACK.fullmatch(stack) or stack in RESERVED:
            message = f"found {stack!r}; allowed are lower-case letters, digits and `-`, at most 30, and not `local`"
            findings.append(Finding("--stacks", 0, "", message))
    if findings:
        raise InputErrors(findings)
