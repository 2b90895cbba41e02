"""State and secrets of this checkout, where the user chose none: a file backend and a passphrase under .modelfleet/.

Pulumi writes the salt of a passphrase into the stack's file, `stacks/Pulumi.<stack>.yaml`, which is under version
control and shared, while the passphrase is private to this checkout. So the salt is kept beside the state: the stack is
made from a folder under .modelfleet/, and the CLI gets a copy of the stack's file with the salt (`--config-file`),
written anew each time. A stack file that names its own secrets provider or salt is used as it is. Standard library
only.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

from tools.paths import ROOT, RUN_TIME
from tools.pulumi_lock import clear_dead_locks

STATE = RUN_TIME / "state"
PASSPHRASE = RUN_TIME / "passphrase"
SALTS = RUN_TIME / "pulumi"

_WITH_VALUE = frozenset({"-s", "--stack", "-C", "--cwd", "--color", "-v", "--verbose", "--config-file"})
_OWN_SECRETS = re.compile(r"^(encryptionsalt|encryptedkey|secretsprovider)\s*:", re.MULTILINE)


def command_of(arguments: list[str]) -> str:
    """The CLI's command: the first argument that is neither an option nor an option's value."""
    skip = False
    for argument in arguments:
        if skip or argument.startswith("-"):
            skip = not skip and argument in _WITH_VALUE
            continue
        return argument
    return ""


def option(arguments: list[str], short: str, long: str) -> str | None:
    """The value of an option in any of its four spellings."""
    for index, argument in enumerate(arguments):
        if argument in (short, long) and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{long}="):
            return argument.partition("=")[2]
        if short and len(argument) > 2 and argument.startswith(short) and not argument.startswith("--"):
            return argument[2:].removeprefix("=")
    return None


def working_folder(arguments: list[str]) -> Path:
    """The folder that the CLI works in (`-C`)."""
    return Path(option(arguments, "-C", "--cwd") or ".").resolve()


def user_chose_a_backend(environment: dict[str, str]) -> bool:
    """Whether a backend is set in the environment, in Pulumi.yaml or by `pulumi login`."""
    if environment.get("PULUMI_BACKEND_URL"):
        return True
    if re.search(r"^backend\s*:", (ROOT / "Pulumi.yaml").read_text(), re.MULTILINE):
        return True
    home = Path(environment.get("PULUMI_HOME") or Path.home() / ".pulumi")
    try:
        return bool(json.loads((home / "credentials.json").read_text()).get("current"))
    except (OSError, ValueError):
        return False


def prepare(cli: Path, arguments: list[str], environment: dict[str, str], *, engine: bool) -> list[str]:
    """Fills `environment` with this checkout's backend and passphrase; returns the arguments for the CLI.

    Nothing changes when the user chose a backend. For a command of the engine, dead locks go, and a stack that has a
    file in `stacks/` but no state yet is made.
    """
    if user_chose_a_backend(environment):
        return arguments
    STATE.mkdir(parents=True, exist_ok=True)
    backend = f"file://{STATE}"
    environment["PULUMI_BACKEND_URL"] = backend
    if not (environment.get("PULUMI_CONFIG_PASSPHRASE_FILE") or "PULUMI_CONFIG_PASSPHRASE" in environment):
        environment["PULUMI_CONFIG_PASSPHRASE_FILE"] = str(_passphrase())
    # A secret that the user adds with `pulumi config set --secret` is then encrypted with the salt of the state.
    environment.setdefault("PULUMI_FALLBACK_TO_STATE_SECRETS_MANAGER", "true")
    if not engine:
        return arguments
    stack = option(arguments, "-s", "--stack") or _selected(cli, environment)
    if stack is None:
        return arguments
    for lock in clear_dead_locks(backend, stack):
        print(f"pulumi: {lock.sentence()}; that process is gone, so the lock is taken away", file=sys.stderr)
    source = ROOT / "stacks" / f"Pulumi.{stack}.yaml"
    if option(arguments, "", "--config-file") or not source.is_file() or _OWN_SECRETS.search(source.read_text()):
        return arguments
    return [*arguments, "--config-file", str(_with_salt(cli, stack, source, environment))]


def _passphrase() -> Path:
    """The file with this checkout's passphrase, made once, readable by its owner only."""
    try:
        handle = os.open(PASSPHRASE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return PASSPHRASE
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(32))
    return PASSPHRASE


def _project() -> str:
    found = re.search(r"^name\s*:\s*['\"]?([\w.-]+)", (ROOT / "Pulumi.yaml").read_text(), re.MULTILINE)
    return found.group(1) if found else ROOT.name


def _with_salt(cli: Path, stack: str, source: Path, environment: dict[str, str]) -> Path:
    """A copy of the stack's file with the salt of its state."""
    made = STATE / ".pulumi" / "stacks" / _project() / f"{stack}.json"
    kept = SALTS / f"Pulumi.{stack}.yaml"
    if not made.is_file():
        kept.unlink(missing_ok=True)
        SALTS.mkdir(parents=True, exist_ok=True)
        (SALTS / "Pulumi.yaml").write_text(f"name: {_project()}\nruntime: python\n")
        print(f"pulumi: stack {stack} has no state yet; it is made under {STATE}", file=sys.stderr)
        command = [str(cli), "stack", "init", stack, "--no-select", "--non-interactive", "-C", str(SALTS)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    copy = SALTS / f"with-salt.{stack}.yaml"
    copy.write_text(f"{source.read_text().rstrip()}\nencryptionsalt: {_salt(made)}\n")
    return copy


def _salt(state: Path) -> str:
    checkpoint = json.loads(state.read_text())["checkpoint"]["latest"]
    return str(checkpoint["secrets_providers"]["state"]["salt"])


def _selected(cli: Path, environment: dict[str, str]) -> str | None:
    asked = subprocess.run(
        [str(cli), "stack", "--show-name", "--non-interactive", "-C", str(ROOT)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or None
