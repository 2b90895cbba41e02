"""`modelfleet:local:Monitor`: a Prometheus and an Alertmanager on this machine's loopback address.

The real programs, as they are on PATH. Both read their files at their start, so a change starts them anew; metrics
stay in their folder until the resource is deleted.
"""

from __future__ import annotations

import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from modelfleet.infra.local.ports import LOOPBACK, require_free
from modelfleet.infra.local.processes import ProcessId, end_all, left_behind, members, spawn
from modelfleet.infra.local.provider.replica_log import tail
from modelfleet.infra.names import mark
from modelfleet.infra.observability.own import WEBHOOK_FILE
from modelfleet.infra.planning.local import programs_absent
from modelfleet.infra.provider import Call, Made, Props, Refused, ResourceDef
from modelfleet.infra.reading.machine import monitor_programs

#: Each program and the port that it listens on.
PROGRAMS = {"prometheus": "prometheusPort", "alertmanager": "alertmanagerPort"}
#: Prometheus reads its log of the last hours first.
START_TIMEOUT_S = 120.0
#: Time to close their files.
END_GRACE_S = 20.0
OUTPUTS = ("prometheusPid", "prometheusStarted", "alertmanagerPid", "alertmanagerStarted")


def create(call: Call[Props], inputs: Props) -> Made:
    """Ends what a killed run left, and starts both."""
    mine = mark(inputs["folder"], "monitor")
    end_all(lambda: left_behind(mine), END_GRACE_S)
    require_free({key: inputs[key] for key in PROGRAMS.values()})
    return Made(f"monitor-{inputs['prometheusPort']}", _start(call, inputs))


def update(call: Call[Props], id: str, state: Props, inputs: Props) -> Props:
    """Starts both anew, over the metrics that are there."""
    require_free({key: inputs[key] for key in PROGRAMS.values() if inputs[key] != state[key]})
    _end(state)
    return _start(call, inputs)


def read(call: Call[Props], id: str, state: Props) -> Props | None:
    """Returns None if one of them has ended; the next run starts both."""
    if ended := [name for name in PROGRAMS if _process(state, name).find() is None]:
        call.note(f"{' and '.join(ended)} no longer running; started again")
        return None
    return state


def delete(call: Call[Props], id: str, state: Props) -> None:
    """Ends both, and removes their files and metrics."""
    _end(state)
    shutil.rmtree(_folder(state), ignore_errors=True)


def _start(call: Call[Props], inputs: Props) -> Props:
    binaries = monitor_programs()
    if absent := [name for name in PROGRAMS if name not in binaries]:
        raise Refused(programs_absent(absent))
    folder = _folder(inputs)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, text in inputs["texts"].items():
        (folder / name).write_text(text, encoding="utf-8")
    _write_webhook(folder / WEBHOOK_FILE, inputs.get("webhook"))
    # Alertmanager first, so that no alert finds nobody.
    made = {name: _spawn(name, binaries[name], inputs) for name in reversed(PROGRAMS)}
    call.step("starting Prometheus and Alertmanager")
    try:
        for name, process in made.items():
            _wait(name, process, inputs)
    except Refused:
        end_all(lambda: [one for process in made.values() for one in members(process)], END_GRACE_S)
        _write_webhook(folder / WEBHOOK_FILE, None)  # what is not made deletes nothing
        raise
    pids = {f"{name}Pid": process.pid for name, process in made.items()}
    return {**pids, **{f"{name}Started": process.started for name, process in made.items()}}


def _write_webhook(file: Path, url: str | None) -> None:
    """Its owner alone may read it, and nobody ever could."""
    file.unlink(missing_ok=True)
    if url is not None:
        file.touch(mode=0o600)
        file.write_text(url, encoding="utf-8")


def _spawn(name: str, binary: str, inputs: Props) -> ProcessId:
    words = [binary, f"--config.file={name}.yml", f"--web.listen-address={LOOPBACK}:{inputs[PROGRAMS[name]]}"]
    return spawn(
        [*words, *_own_words(name, inputs)],
        mark=mark(inputs["folder"], "monitor"),
        log=_log(name, inputs),
        cwd=_folder(inputs),
        env=os.environ,
    )


def _own_words(name: str, inputs: Props) -> Sequence[str]:
    if name == "alertmanager":
        return ["--storage.path=alertmanager", "--cluster.listen-address="]
    kept = [f"time={inputs['retentionDays']}d", f"size={inputs['keepMib']}MB"]
    return ["--storage.tsdb.path=prometheus", *(f"--storage.tsdb.retention.{one}" for one in kept)]


def _wait(name: str, process: ProcessId, inputs: Props) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    ready = f"http://{LOOPBACK}:{inputs[PROGRAMS[name]]}/-/ready"
    while not _answers(ready):
        log = _log(name, inputs)
        if process.find() is None or time.monotonic() > until:
            raise Refused(f"{name} does not start: {tail(log) or 'no output'} (full output: {log})")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  loopback
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _end(state: Props) -> None:
    end_all(lambda: [one for name in PROGRAMS for one in members(_process(state, name))], END_GRACE_S)


def _process(state: Props, name: str) -> ProcessId:
    return ProcessId(state[f"{name}Pid"], state[f"{name}Started"])


def _folder(inputs: Props) -> Path:
    return Path(inputs["folder"]) / "monitor"


def _log(name: str, inputs: Props) -> Path:
    return Path(inputs["folder"]) / f"{name}.log"


REQUIRED = frozenset({"folder", *PROGRAMS.values(), "texts", "retentionDays", "keepMib"})

MONITOR = ResourceDef[Props](
    token="modelfleet:local:Monitor",  # noqa: S106 - Pulumi's word for a type
    inputs=REQUIRED | {"webhook"},
    required=REQUIRED,
    outputs=frozenset(OUTPUTS),
    force_new=frozenset({"folder"}),
    create=create,
    read=read,
    update=update,
    delete=delete,
    delete_before_replace=True,
)
