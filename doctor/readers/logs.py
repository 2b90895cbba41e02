"""The replicas' logs on this machine, and what any log of ours says: the lines around an error, the cause first."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from modelfleet.doctor.evidence import Evidence, Layer, Reading
from modelfleet.doctor.subject import Subject
from modelfleet.serving.explain import root_cause

TAIL_BYTES: Final = 256 * 1024
#: What our replicas say of themselves (serving/replica.py), and what our Jobs end with (serving/errors.py).
OURS: Final = re.compile(
    r"(?:vLLM cannot start|the engine of \S+ died|(?:WeightsError|MirrorError|EngineError|ServingError)\b).*"
)
READY: Final = re.compile(r"\bready \d+(?:\.\d+)? s after the start of its process")
#: `worker-<id>-<job>-<pid>.err` and `.out`, Ray 2.60; Serve's own are `replica_<application>_<deployment>_<id>.log`.
OF_REPLICAS: Final = "serve/replica_*.log"


def read(subject: Subject, logs: Path, seconds: float) -> Reading:  # noqa: ARG001 - files answer at once
    """The newest log of each model's replicas on this machine."""
    if not logs.is_dir():
        return Reading(Layer.ENGINE)  # Ray never ran here, which Ray's reader says
    found: list[Evidence] = []
    for model in subject.models:
        slug = model.config.slug
        files = sorted(logs.glob(OF_REPLICAS), key=lambda file: file.stat().st_mtime)
        own = [file for file in files if file.name.startswith(f"replica_{slug}_")]
        if own:
            found += facts(_tail(own[-1]), str(own[-1]), (slug,), "log")
    return Reading(Layer.ENGINE, tuple(found))


def facts(log: str, name: str, models: tuple[str, ...], kind: str) -> Iterator[Evidence]:
    """The last thing that our code says of a failure, with the error that vLLM's processes began with.

    A log whose replica became ready after its last error says nothing: it has healed.
    """
    lines = log.splitlines()
    last = max((place for place, line in enumerate(lines) if READY.search(line)), default=-1)
    since = lines[last + 1 :]
    said = [(place, match[0]) for place, line in enumerate(since) if (match := OURS.search(line))]
    if not said:
        return
    place, words = said[-1]
    time = re.match(r"[A-Z]* ?(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)", since[place])
    line, at = last + place + 2, time[1] if time else ""
    yield Evidence(Layer.ENGINE, kind, name, words, at, models, line=line)
    if cause := root_cause("\n".join(since)):
        yield Evidence(Layer.ENGINE, kind, name, cause, at, models, line=line)


def _tail(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - TAIL_BYTES))
        return stream.read().decode(errors="replace")
