"""State and secrets of a fleet, if the user chose no backend: files and a passphrase under its .modelfleet/.

Pulumi writes the salt of a passphrase into the stack's file, `stacks/Pulumi.<stack>.yaml`, which is under version
control and shared, while the passphrase is private to this folder. So the salt is kept next to the state: the stack
is made from a folder under .modelfleet/, and each time the CLI gets a new copy of the stack's file with the salt
(`--config-file`). A stack file that names its own secrets provider or salt is used as it is.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from modelfleet.cli.pulumi_lock import clear_dead_locks

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


def state_folder(root: Path) -> Path:
    """Where the state is if the user chose no backend."""
    return root / ".modelfleet" / "state"


def user_chose_a_backend(root: Path, environment: Mapping[str, str]) -> bool:
    """Whether a backend is set in the environment, in Pulumi.yaml or by `pulumi login`."""
    if environment.get("PULUMI_BACKEND_URL"):
        return True
    if re.search(r"^backend\s*:", (root / "Pulumi.yaml").read_text(), re.MULTILINE):
        return True
    home = Path(environment.get("PULUMI_HOME") or Path.home() / ".pulumi")
    try:
        return bool(json.loads((home / "credentials.json").read_text()).get("current"))
    except (OSError, ValueError):
        return False


def prepare(cli: Path, arguments: Sequence[str], environment: dict[str, str], root: Path, *, engine: bool) -> list[str]:
    """Fills `environment` with the backend and passphrase of the fleet in `root`; returns the arguments for the CLI.

    Changes nothing when the user chose a backend. For a command of the engine it also removes dead locks, and makes a
    stack that has a file in `stacks/` but no state yet.
    """
    arguments = list(arguments)
    if user_chose_a_backend(root, environment):
        return arguments
    state = state_folder(root)
    state.mkdir(parents=True, exist_ok=True)
    backend = f"file://{state}"
    environment["PULUMI_BACKEND_URL"] = backend
    if not (environment.get("PULUMI_CONFIG_PASSPHRASE_FILE") or "PULUMI_CONFIG_PASSPHRASE" in environment):
        environment["PULUMI_CONFIG_PASSPHRASE_FILE"] = str(_passphrase(root))
    # A secret that the user adds with `pulumi config set --secret` is then encrypted with the salt of the state.
    environment.setdefault("PULUMI_FALLBACK_TO_STATE_SECRETS_MANAGER", "true")
    if not engine:
        return arguments
    stack = option(arguments, "-s", "--stack") or _selected(cli, environment, root)
    if stack is None:
        return arguments
    for lock in clear_dead_locks(backend, stack):
        print(f"pulumi: {lock.sentence()}; that process is gone, so the lock is removed", file=sys.stderr)
    source = root / "stacks" / f"Pulumi.{stack}.yaml"
    if option(arguments, "", "--config-file") or not source.is_file() or _OWN_SECRETS.search(source.read_text()):
        return arguments
    return [*arguments, "--config-file", str(_with_salt(cli, stack, source, environment, root))]


def _passphrase(root: Path) -> Path:
    """The file with the fleet's passphrase, made once, readable by its owner only."""
    path = root / ".modelfleet" / "passphrase"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(32))
    return path


def _project(root: Path) -> str:
    found = re.search(r"^name\s*:\s*['\"]?([\w.-]+)", (root / "Pulumi.yaml").read_text(), re.MULTILINE)
    return found.group(1) if found else root.name


def _with_salt(cli: Path, stack: str, source: Path, environment: dict[str, str], root: Path) -> Path:
    """A copy of the stack's file with the salt of its state."""
    project, salts = _project(root), root / ".modelfleet" / "pulumi"
    made = state_folder(root) / ".pulumi" / "stacks" / project / f"{stack}.json"
    kept = salts / f"Pulumi.{stack}.yaml"
    if not made.is_file():
        kept.unlink(missing_ok=True)
        salts.mkdir(parents=True, exist_ok=True)
        (salts / "Pulumi.yaml").write_text(f"name: {project}\nruntime: python\n")
        print(f"pulumi: stack {stack} has no state yet; it is made under {state_folder(root)}", file=sys.stderr)
        command = [str(cli), "stack", "init", stack, "--no-select", "--non-interactive", "-C", str(salts)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    copy = salts / f"with-salt.{stack}.yaml"
    copy.write_text(f"{source.read_text().rstrip()}\nencryptionsalt: {_salt(made)}\n")
    return copy


def _salt(state: Path) -> str:
    checkpoint = json.loads(state.read_text())["checkpoint"]["latest"]
    return str(checkpoint["secrets_providers"]["state"]["salt"])


def _selected(cli: Path, environment: dict[str, str], root: Path) -> str | None:
    asked = subprocess.run(
        [str(cli), "stack", "--show-name", "--non-interactive", "-C", str(root)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or None
