"""`modelfleet doctor`: the first cause why a stack does not serve, with evidence, fix and consequence."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from modelfleet.cli import output
from modelfleet.cli.doctor_watch import Change, Seen, Watch
from modelfleet.cli.pulumi_lock import is_dead, locks
from modelfleet.cli.pulumi_run import command
from modelfleet.cli.pulumi_state import prepare, state_folder, user_chose_a_backend
from modelfleet.doctor.diagnose import Cause, diagnose, short
from modelfleet.doctor.diagnose import as_json as as_json_fact
from modelfleet.doctor.evidence import Layer, Reading
from modelfleet.doctor.look import Looked, look
from modelfleet.doctor.readers import readers_of
from modelfleet.doctor.readers.state import Exported
from modelfleet.doctor.rules import default_rules
from modelfleet.doctor.subject import Subject, open_subject, slug_of
from modelfleet.serving.config.errors import EXIT_ENVIRONMENT, EXIT_INPUT, InputErrors, SetupError

#: The whole command, from the start of its process; a layer that takes longer is said to be unread.
WHOLE_S = 9.0
#: What the layers get in any case, also on a machine that took long to load the command.
LEAST_S = 3.0


def run_doctor(stack: str, model: str | None, *, as_json: bool = False, bundle: Path | None = None) -> int:
    """Look, judge and print; returns the exit code: 0 healthy, 1 something to fix, 2 a layer could not be read."""
    subject, looked, causes = _examined(stack, model, _seconds_left())
    if bundle is not None:
        write_bundle(bundle, subject, looked, causes)
    if as_json:
        output.show_json(as_data(subject, looked, causes))
    else:
        _show(subject, looked, causes)
    return exit_code(looked, causes)


def watch_doctor(stack: str, model: str | None, *, as_json: bool = False) -> int:
    """Print what changes until Ctrl-C; returns the exit code of the last look."""

    last: Seen | None = None

    def again() -> Seen:
        # Files too are read anew: whoever mends one looks on, also while it is half written.
        nonlocal last
        try:
            _, looked, causes = _examined(stack, model, WHOLE_S)
        except InputErrors as error:
            if last is None:
                raise
            others = [one for one in last.unread if one.layer is not Layer.FILES]
            return Seen(last.causes, (*others, Reading(Layer.FILES, unread=str(error))), EXIT_INPUT)
        last = Seen(causes, looked.unread, exit_code(looked, causes))
        return last

    return Watch(again, partial(_show_change, stack), as_json=as_json).run()


def _examined(stack: str, model: str | None, seconds: float) -> tuple[Subject, Looked, list[Cause]]:
    subject = open_subject(Path.cwd(), stack)
    slug = slug_of(subject, model) if model else None
    looked = look(readers_of(subject, partial(export, subject.root, stack)), seconds)
    return subject, looked, diagnose(default_rules(), looked.evidence, subject, stack, slug)


def _show_change(stack: str, change: Change) -> None:
    at = f"{datetime.now().astimezone():%H:%M:%S}"
    if change.kind == "found" and change.cause is not None:
        head, *rest = lines(change.cause, first=True)
        output.say(f"{at} {head[0]}", head[1], stderr=False)
        for line in rest:
            output.say(*line, stderr=False)
    elif change.kind == "gone" and change.cause is not None:
        output.say(f"{at} no more: {change.cause.sentence}", "green", stderr=False)
    elif change.kind == "healthy":
        output.say(f"{at} stack {stack}: nothing to fix", "green", stderr=False)
    elif change.kind == "unread":
        output.say(f"{at} {change.layer} could not be read: {change.why}", "yellow", stderr=False)
    else:
        output.say(f"{at} {change.layer} can be read again", stderr=False)


def _seconds_left() -> float:
    began: float = psutil.Process().create_time()
    return max(LEAST_S, WHOLE_S - (time.time() - began))


def write_bundle(file: Path, subject: Subject, looked: Looked, causes: Sequence[Cause]) -> None:
    """What a colleague needs, in one file: the answer, and all evidence that was read, redacted."""
    evidence = [{"kind": one.kind, "models": list(one.models), **as_json_fact(one)} for one in looked.evidence]
    content = {"modelfleet": version("modelfleet"), **as_data(subject, looked, causes), "evidence": evidence}
    try:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise SetupError(f"{file} cannot be written: {error.strerror}") from error
    output.say(f"wrote {file}: {output.counted(len(evidence), 'fact')}, redacted")


def export(root: Path, stack: str, seconds: float) -> Exported:
    """The stack's state by the Pulumi CLI; makes nothing, not even the folder of a state that does not exist."""
    own = not user_chose_a_backend(root, os.environ)
    if own and not any(state_folder(root).glob(f".pulumi/stacks/*/{stack}.json")):
        return Exported(absent=f"there is no state yet under {state_folder(root)}")
    environment = dict(os.environ)
    try:
        cli = command()
        words = prepare(Path(cli), ["stack", "export", "--stack", stack], environment, root, engine=False)
        held = [lock for lock in locks(environment.get("PULUMI_BACKEND_URL", ""), stack) if not is_dead(lock)]
        done = subprocess.run(
            [cli, *words, "--non-interactive"],
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=max(1.0, seconds - 1),
        )
    except (SetupError, OSError) as error:
        return Exported(unread=str(error))
    except subprocess.TimeoutExpired:
        return Exported(unread=f"pulumi stack export did not end within {seconds:.0f} s")
    said = tuple(lock.sentence() for lock in held)
    if done.returncode == 0:
        return Exported(done.stdout, locks=said)
    words_of = " ".join(done.stderr.split())
    return Exported(absent=words_of, locks=said) if "no stack named" in words_of else Exported(unread=words_of)


def exit_code(looked: Looked, causes: Sequence[Cause]) -> int:
    """Something to fix goes before something that could not be read."""
    if causes:
        return EXIT_INPUT
    return EXIT_ENVIRONMENT if looked.unread else 0


def as_data(subject: Subject, looked: Looked, causes: Sequence[Cause]) -> dict[str, Any]:
    """All of it for machines; nothing secret."""
    return {
        "stack": subject.stack.name,
        "target": str(subject.stack.config.target),
        "healthy": not causes and not looked.unread,
        "causes": [cause.as_json() for cause in causes],
        "layers": [
            {"layer": one.layer.value, "unread": short(one.unread) if one.unread is not None else None}
            for one in looked.readings
        ],
    }


def _show(subject: Subject, looked: Looked, causes: Sequence[Cause]) -> None:
    for place, cause in enumerate(causes):
        for line in lines(cause, first=place == 0):
            output.say(*line, stderr=False)
    for reading in looked.unread:
        output.say(unread_line(reading), "yellow")
    names = ", ".join(one.layer.value for one in looked.readings if one.unread is None)
    if not causes:
        output.say(f"stack {subject.stack.name}: nothing to fix in {names or 'no layer'}", stderr=False)


def lines(cause: Cause, *, first: bool) -> list[tuple[str, str]]:
    """The lines for a terminal, each with its style."""
    made = [(cause.sentence, "bold red" if first else "red")]
    place = f"{cause.file}:{cause.line}" if cause.line else cause.file
    if place:
        made.append((f"  where:   {place}{f' {cause.key}' if cause.key else ''}", ""))
    for one in cause.evidence[:2]:
        at = f" at {one.time}" if one.time else ""
        made.append((f"  shown by {short(one.object)}{at} ({one.layer}): {short(one.text)}", "dim"))
    made += [(f"  fix:     {cause.fix}", "bold"), (f"  then:    {cause.then}", "")]
    made += [(f"  explains {one.sentence}", "dim") for one in cause.explains]
    return [*made, ("", "")]


def unread_line(reading: Reading) -> str:
    """Why a layer is missing from the answer."""
    return f"{reading.layer} could not be read: {short(reading.unread or '')}"
