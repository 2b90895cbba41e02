"""Lets all readers look at once, and ends in time even when one of them hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from modelfleet.doctor.evidence import ORDER, Evidence, Layer, Reading

#: A reader gets the seconds that it has, for the time limits of its own calls.
Reader = Callable[[float], Reading]


@dataclass(frozen=True)
class Looked:
    """What all layers said, in the order of cause."""

    readings: tuple[Reading, ...]

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """All facts."""
        return tuple(one for reading in self.readings for one in reading.evidence)

    @property
    def unread(self) -> tuple[Reading, ...]:
        """The layers that could not be read, wholly or in part."""
        return tuple(reading for reading in self.readings if reading.unread is not None)


def look(readers: Mapping[Layer, Reader], seconds: float) -> Looked:
    """The readings after at most `seconds`. One that hangs or fails is said to be unread; the others still speak."""
    until, done = time.monotonic() + seconds, dict[Layer, Reading]()
    # Daemons: a call that hangs beyond the limit must not keep the command from ending.
    threads = [
        threading.Thread(target=_run, args=(layer, reader, seconds, done), name=f"doctor-{layer}", daemon=True)
        for layer, reader in readers.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    found = dict(done)
    late = [Reading(layer, unread=f"no answer within {seconds:.0f} s") for layer in readers if layer not in found]
    return Looked(tuple(sorted([*found.values(), *late], key=lambda one: ORDER[one.layer])))


def _run(layer: Layer, reader: Reader, seconds: float, done: dict[Layer, Reading]) -> None:
    try:
        done[layer] = reader(seconds)
    except Exception as error:  # noqa: BLE001 - a fault in one reader is told, and the other layers still speak
        done[layer] = Reading(layer, unread=f"the reader failed, please report it: {type(error).__name__}: {error}")
