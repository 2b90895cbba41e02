"""State and secrets of a fleet, if the user chose no backend: files and a passphrase under its .modelfleet/.

Pulumi writes the salt of a passphrase into the stack's file, `stacks/Pulumi.<stack>.yaml`, which is under version
control and shared, while the passphrase is private to this folder. So the salt is kept next to the state: the stack
is made from a folder under .modelfleet/, and each time the CLI gets a new copy of the stack's file with the salt
(`--config-file`). A stack file that names its own secrets provider or salt is used as it is.

A stack in the cloud has a team: without its state nobody else can change or delete what it costs. So it gets no state
here unless the user asked for one.
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
#: Targets that make a cluster, as `infra/stack/target.py` says: its import would cost each command a third of a second.
IN_THE_CLOUD = frozenset({"eks"})
#: Commands that choose a backend themselves.
_CHOOSING = frozenset({"login", "logout"})
_TARGET = re.compile(r"^[^#\n]*modelfleet:target['\"]?\s*:\s*['\"]?([a-z]+)", re.MULTILINE)
_OWN_SECRETS = re.compile(r"^(encryptionsalt|encryptedkey|secretsprovider)\s*:", re.MULTILINE)


class HiddenState(Exception):
    """A stack has no state here: it would be where nobody finds it, or cannot be made. The message says what to do."""


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

    Changes nothing when the user chose a backend. Raises `HiddenState` where the command would put the state of a stack
    in the cloud, or a secret of it, into this folder. For a command of the engine it also removes dead locks, and
    makes a stack that has a file in `stacks/` but no state yet.
    """
    arguments = list(arguments)
    if user_chose_a_backend(root, environment) or command_of(arguments) in _CHOOSING:
        return arguments
    named = _named_stack(arguments)
    if named and (engine or _keeps(arguments)):
        _refuse_a_state_that_nobody_finds(root, named)
    state = state_folder(root)
    _private(state)
    backend = f"file://{state}"
    environment["PULUMI_BACKEND_URL"] = backend
    if not (environment.get("PULUMI_CONFIG_PASSPHRASE_FILE") or "PULUMI_CONFIG_PASSPHRASE" in environment):
        environment["PULUMI_CONFIG_PASSPHRASE_FILE"] = str(_passphrase(root))
    # A secret that the user adds with `pulumi config set --secret` is then encrypted with the salt of the state.
    environment.setdefault("PULUMI_FALLBACK_TO_STATE_SECRETS_MANAGER", "true")
    if not engine:
        if named and command_of(arguments) == "config" and _keeps(arguments):
            _made(Path(cli), named, environment, root)  # its salt encrypts the secret
        return arguments
    stack = named or _selected(cli, environment, root)
    if stack is None:
        return arguments
    if not named:
        _refuse_a_state_that_nobody_finds(root, stack)
    for lock in clear_dead_locks(backend, stack):
        print(f"pulumi: {lock.sentence()}; that process is gone, so the lock is removed", file=sys.stderr)
    source = root / "stacks" / f"Pulumi.{stack}.yaml"
    if option(arguments, "", "--config-file") or not source.is_file() or _OWN_SECRETS.search(source.read_text()):
        return arguments
    return [*arguments, "--config-file", str(_with_salt(cli, stack, source, environment, root))]


def _named_stack(arguments: list[str]) -> str | None:
    """The stack that the command names, as `-s NAME` or as in `stack init NAME`."""
    if command_of(arguments) == "stack" and "init" in arguments[:-1]:
        return arguments[arguments.index("init") + 1]
    return option(arguments, "-s", "--stack")


def _keeps(arguments: list[str]) -> bool:
    """Whether a command that is not the engine's makes a stack, or encrypts a secret with its passphrase."""
    return "init" in arguments or (command_of(arguments) == "config" and "--secret" in arguments)


def _refuse_a_state_that_nobody_finds(root: Path, stack: str) -> None:
    """Raise `HiddenState` for a stack in the cloud that has no state yet; a state that is here already goes on."""
    source = root / "stacks" / f"Pulumi.{stack}.yaml"
    target = _TARGET.search(source.read_text()) if source.is_file() else None
    if target is None or target.group(1) not in IN_THE_CLOUD:
        return
    if _checkpoint(root, stack).is_file():
        print(
            f"pulumi: the state of stack {stack} is in {state_folder(root)} alone; to share it: `pulumi stack export`, "
            "`pulumi login`, `pulumi stack init`, `pulumi stack import`",
            file=sys.stderr,
        )
        return
    raise HiddenState(
        f"stack {stack} lives in AWS, but its state and its passphrase would be in {root / '.modelfleet'} alone, where "
        f"no colleague and no CI finds them; choose a place: `pulumi login 's3://BUCKET?region=REGION'` and then "
        f"`pulumi stack init {stack} --secrets-provider 'awskms://alias/KEY?region=REGION'`; or, to try it alone, "
        f"`pulumi login --local`, `export PULUMI_CONFIG_PASSPHRASE_FILE=FILE` and then `pulumi stack init {stack}`"
    )


def _checkpoint(root: Path, stack: str) -> Path:
    return state_folder(root) / ".pulumi" / "stacks" / _project(root) / f"{stack}.json"


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


def _private(folder: Path) -> None:
    """Makes a folder for this user alone: Pulumi opens its files to all, and they say what runs where."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def _with_salt(cli: Path, stack: str, source: Path, environment: dict[str, str], root: Path) -> Path:
    """A copy of the stack's file with the salt of its state."""
    made = _made(cli, stack, environment, root)
    copy = root / ".modelfleet" / "pulumi" / f"with-salt.{stack}.yaml"
    copy.write_text(f"{source.read_text().rstrip()}\nencryptionsalt: {_salt(made)}\n")
    return copy


def _made(cli: Path, stack: str, environment: dict[str, str], root: Path) -> Path:
    """The file of the stack's state, after making the stack if it has none."""
    project, salts = _project(root), root / ".modelfleet" / "pulumi"
    made = _checkpoint(root, stack)
    _private(salts)
    if not made.is_file():
        (salts / f"Pulumi.{stack}.yaml").unlink(missing_ok=True)
        (salts / "Pulumi.yaml").write_text(f"name: {project}\nruntime: python\n")
        print(f"pulumi: stack {stack} has no state yet; it is made under {state_folder(root)}", file=sys.stderr)
        command = [str(cli), "stack", "init", stack, "--no-select", "--non-interactive", "-C", str(salts)]
        done = subprocess.run(command, env=environment, check=False, stdout=subprocess.DEVNULL)
        if done.returncode:
            raise HiddenState(f"stack {stack} cannot be made; pulumi says why above")
    return made


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
