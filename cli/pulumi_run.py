"""Runs the real `pulumi` for a stack: streams its output, ends it gently, and waits while another run works."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfleet.cli import output
from modelfleet.cli.pulumi_lock import clear_dead_locks, is_dead, locks
from modelfleet.cli.pulumi_state import HiddenState, prepare, state_folder, user_chose_a_backend
from modelfleet.serving.config.errors import SetupError

SAY_EVERY_S = 5.0
LOOK_EVERY_S = 5.0
#: Operations that change nothing about a resource.
UNCHANGED = {"same", "refresh", "read"}


@dataclass(frozen=True)
class Finished:
    """A finished operation: its exit code, how many resources it changed, by operation, and what ended it early."""

    code: int
    changes: dict[str, int]
    interrupted: bool
    stopped: str | None = None


def command() -> str:
    """The `pulumi` of this environment, otherwise the one on PATH; raises `SetupError` when there is none."""
    own = Path(sys.prefix) / "bin" / "pulumi"
    found = str(own) if own.is_file() else shutil.which("pulumi")
    if found is None:
        raise SetupError(
            "the pulumi command is not on PATH: install the Pulumi CLI (https://www.pulumi.com/docs/install), or run "
            "`make tools` in a checkout of modelfleet"
        )
    return found


def make_stack(root: Path, stack: str) -> None:
    """Makes the stack if it does not exist yet; raises `SetupError` with the CLI's message.

    Only in a backend that the user chose: in the fleet's own backend `prepare` makes it.
    """
    if not user_chose_a_backend(root, os.environ):
        return
    clear_dead_locks(os.environ.get("PULUMI_BACKEND_URL", ""), stack)  # and what a killed run left half written
    arguments = ["stack", "select", "--create", "--stack", stack, "--non-interactive"]
    result = subprocess.run([command(), *arguments], cwd=root, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SetupError(f"stack {stack} cannot be made: {' '.join(result.stderr.split())}")


def operate(
    root: Path, stack: str, operation: str, *more: str, watch: Callable[[], str | None] = lambda: None
) -> Finished:
    """Runs `pulumi up`, `destroy`, … with all output on stderr; waits while another run has the stack.

    On Ctrl-C the engine also gets the signal, and finishes or undoes its current step before this returns. `watch` is
    called meanwhile; when it returns a reason, the engine is interrupted too.
    """
    _wait_for_other_run(root, stack)
    with tempfile.TemporaryDirectory(prefix="modelfleet-") as folder:
        events = Path(folder) / "events"
        arguments = [operation, "--stack", stack, "--yes", "--skip-preview", *more, "--event-log", str(events)]
        environment = {**os.environ, "PULUMI_DEBUG_COMMANDS": "true"}  # for --event-log
        words = _command(root, arguments, environment, engine=True)
        process = subprocess.Popen(words, cwd=root, env=environment, stdout=sys.stderr)
        interrupted, stopped = False, None
        while True:
            try:
                code = process.wait(LOOK_EVERY_S)
                break
            except KeyboardInterrupt:
                interrupted = True
            except subprocess.TimeoutExpired:
                if not stopped and not interrupted and (stopped := watch()):
                    output.say(f"\n{stopped}\nstopping, for no waiting mends this", "bold red")
                    process.send_signal(signal.SIGINT)
        return Finished(code, _changes(events), interrupted, stopped)


def ask(root: Path, arguments: Sequence[str]) -> str | None:
    """What a command of the CLI prints; None when it fails, such as for a stack that does not exist."""
    environment = dict(os.environ)
    words = _command(root, arguments, environment, engine=False)
    result = subprocess.run(
        words, cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return result.stdout if result.returncode == 0 else None


def set_secret(root: Path, stack: str, path: str, value: str) -> None:
    """Keeps a secret at `path` of the stack's file, encrypted; the value goes through a pipe, never a command line.

    Raises `SetupError` with the CLI's message.
    """
    _configure(root, ["config", "set", "--secret", "--path", path, "--stack", stack], value)


def remove_config(root: Path, stack: str, path: str) -> None:
    """Takes `path` out of the stack's file; raises `SetupError` with the CLI's message."""
    _configure(root, ["config", "rm", "--path", path, "--stack", stack], "")


def _configure(root: Path, arguments: Sequence[str], given: str) -> None:
    environment = dict(os.environ)
    words = [*_command(root, arguments, environment, engine=False), "--non-interactive"]
    result = subprocess.run(words, cwd=root, env=environment, input=given, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SetupError(f"pulumi {' '.join(arguments[:2])} failed: {' '.join(result.stderr.split())}")


def _command(root: Path, arguments: Sequence[str], environment: dict[str, str], *, engine: bool) -> list[str]:
    """The whole command line; adds the fleet's own backend to `environment` if the user chose none."""
    cli = command()
    try:
        return [cli, *prepare(Path(cli), arguments, environment, root, engine=engine)]
    except HiddenState as error:
        raise SetupError(str(error)) from None


def outputs(root: Path, stack: str) -> dict[str, Any] | None:
    """The stack's outputs; None when the stack does not exist."""
    text = ask(root, ["stack", "output", "--json", "--stack", stack])
    return None if text is None else dict(json.loads(text))


def _wait_for_other_run(root: Path, stack: str) -> None:
    """A killed `modelfleet` may leave its engine at work. It ends on its own, and two cannot work at once."""
    backend = os.environ.get("PULUMI_BACKEND_URL") or f"file://{state_folder(root)}"
    clear_dead_locks(backend, stack)
    said = 0.0
    while living := [lock for lock in locks(backend, stack) if not is_dead(lock)]:
        if time.monotonic() - said >= SAY_EVERY_S:
            output.say(f"{living[0].sentence()}; waiting for it")
            said = time.monotonic()
        time.sleep(0.5)


def _changes(events: Path) -> dict[str, int]:
    if not events.is_file():
        return {}
    found: dict[str, int] = {}
    for line in events.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut off: the engine was killed while it wrote
        if "summaryEvent" in event:
            changes = event["summaryEvent"].get("resourceChanges") or {}
            found = {kind: count for kind, count in changes.items() if count and kind not in UNCHANGED}
    return found
