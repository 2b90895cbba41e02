"""The `pulumi` command of `make tools`: the checkout's own state and passphrase, nothing written into its files."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine.engine import PULUMI
from tools.paths import ROOT

PROGRAM = """
import pulumi
pulumi.export("secret", pulumi.Output.secret("a-hidden-output"))
"""

STACK_FILE = """\
# A comment that must stay.
config:
  checkout:model: one
"""


class Checkout:
    """A clone with the parts that the command needs and a program without resources."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in ("cli", "tools", "infra/provider"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "go"))
        shutil.copytree(ROOT / "modelfleet", folder / "modelfleet", symlinks=True)
        (folder / "infra" / "__init__.py").write_text("")
        (folder / "__main__.py").write_text(PROGRAM)
        (folder / "Pulumi.yaml").write_text(
            f"name: checkout\nruntime: {{name: python, options: {{virtualenv: {sys.prefix}}}}}\n"
            "stackConfigDir: stacks\n"
        )
        (folder / "stacks").mkdir()
        (folder / "stacks" / "Pulumi.local.yaml").write_text(STACK_FILE)

    def pulumi(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Runs the command in an environment without any choice of the user."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PULUMI_", "MODELFLEET_"))}
        return subprocess.run(
            [sys.executable, str(self.folder / "tools" / "pulumi_cli" / "command.py"), *arguments],
            cwd=self.folder,
            env={**kept, "NO_COLOR": "1", "PULUMI_HOME": str(self.folder / "home"), **environ},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    assert PULUMI.is_file(), "run: make tools"
    return Checkout(tmp_path / "checkout")


def test_a_plain_up_in_a_fresh_clone_makes_its_state_and_leaves_the_stack_file_alone(checkout: Checkout) -> None:
    first = checkout.pulumi("up", "-s", "local", "--yes", "--skip-preview", "--non-interactive")
    assert first.returncode == 0, first.stdout + first.stderr
    assert (checkout.folder / "stacks" / "Pulumi.local.yaml").read_text() == STACK_FILE, (
        "the salt of a private passphrase does not belong in a shared file"
    )
    passphrase = checkout.folder / ".modelfleet" / "passphrase"
    assert stat.S_IMODE(passphrase.stat().st_mode) == 0o600
    assert "Pulumi CLI: real" in first.stderr
    again = checkout.pulumi("preview", "--stack=local", "--non-interactive", "--expect-no-changes")
    assert again.returncode == 0, "the second run must be able to read the state of the first\n" + again.stderr
    state = checkout.folder / ".modelfleet" / "state"
    written = "".join(file.read_text() for file in state.rglob("*") if file.is_file())
    assert "a-hidden-output" not in written
    assert passphrase.read_text() not in written + first.stdout + first.stderr


def test_a_backend_that_the_user_chose_is_used_and_nothing_is_made_in_the_checkout(
    checkout: Checkout, tmp_path: Path
) -> None:
    (tmp_path / "own").mkdir()
    own = {"PULUMI_BACKEND_URL": f"file://{tmp_path / 'own'}", "PULUMI_CONFIG_PASSPHRASE": "own"}
    made = checkout.pulumi("stack", "init", "local", "--non-interactive", **own)
    assert made.returncode == 0, made.stderr
    assert list((tmp_path / "own").rglob("local.json"))
    assert not (checkout.folder / ".modelfleet").exists()


def test_the_exit_code_is_the_clis_own(checkout: Checkout) -> None:
    assert checkout.pulumi("version").returncode == 0
    assert checkout.pulumi("no-such-command").returncode != 0


def test_without_any_cli_the_command_says_how_to_get_one(checkout: Checkout, tmp_path: Path) -> None:
    run = checkout.pulumi("up", PATH="/usr/bin:/bin", XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path))
    assert run.returncode == 2
    assert run.stderr == "pulumi: the Pulumi CLI is not installed yet; run: make tools\n"


def test_a_dead_lock_of_this_checkouts_state_is_taken_away_with_a_line(checkout: Checkout, dead_lock: Any) -> None:
    lock = dead_lock(checkout.folder / ".modelfleet" / "state", project="checkout", stack="local")
    run = checkout.pulumi("up", "-s", "local", "--yes", "--skip-preview", "--non-interactive")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "that process is gone, so the lock is removed" in run.stderr
    assert not lock.exists()
