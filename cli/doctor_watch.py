"""`modelfleet doctor --watch`: looks again every few seconds and prints only what changed, until Ctrl-C."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from modelfleet.cli import output
from modelfleet.doctor.diagnose import Cause, short
from modelfleet.doctor.evidence import Reading

#: Seconds between two looks.
EVERY_S: Final = 5.0

Kind = Literal["found", "gone", "unread", "read", "healthy"]


@dataclass(frozen=True)
class Seen:
    """One look: its causes, the first one first, the layers that were not read, and its exit code."""

    causes: Sequence[Cause]
    unread: Sequence[Reading]
    code: int


@dataclass(frozen=True)
class Change:
    """What is other than at the last look: a cause that came or went, or a layer that fell silent or speaks again."""

    kind: Kind
    cause: Cause | None = None
    layer: str = ""
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        """The change for `--json`, nothing secret."""
        of_layer = {"layer": self.layer, **({"why": self.why} if self.why else {})} if self.layer else {}
        return {"change": self.kind, **of_layer, **({"cause": self.cause.as_json()} if self.cause else {})}


def changes(before: Seen | None, now: Seen) -> Iterator[Change]:
    """What changed, news first. A cause is the same one while its rule and its models, or else its object, are.

    A pod that is made again has another name; of the same fault for the same models that is no news. That a layer fell
    silent mends nothing: what it showed is not said to be gone, and nothing is healthy while a layer is unread.
    """
    old = {_key(one): one for one in before.causes} if before else {}
    new = {_key(one): one for one in now.causes}
    silent = {one.layer.value for one in before.unread} if before else set()
    named: Mapping[str, str] = {one.layer.value: short(one.unread or "") for one in now.unread}
    fell = {*named} - silent
    yield from (Change("found", one) for key, one in new.items() if key not in old)
    yield from (Change("gone", one) for key, one in old.items() if key not in new and fell.isdisjoint(_shown_in(one)))
    yield from (Change("unread", layer=layer, why=why) for layer, why in named.items() if layer in fell)
    yield from (Change("read", layer=layer) for layer in sorted(silent - {*named}))
    if not new and not named and (before is None or old or silent):
        yield Change("healthy")


def _shown_in(cause: Cause) -> set[str]:
    return {one.layer.value for one in cause.evidence}


def _key(cause: Cause) -> tuple[str, ...]:
    return (cause.rule, *(cause.models or (cause.evidence[0].object,)))


@dataclass
class Watch:
    """Looks until it is interrupted; `show` prints a change for a person, `--json` prints a line for a machine."""

    look: Callable[[], Seen]
    show: Callable[[Change], None]
    as_json: bool = False
    every_s: float = EVERY_S
    sleep: Callable[[float], None] = field(default=time.sleep)

    def run(self) -> int:
        """The exit code of the last look, after Ctrl-C; raises KeyboardInterrupt if there was none."""
        last: Seen | None = None
        try:
            while True:
                before, last = (
                    last,
                    self.look(),
                )  # before it prints: an interrupted print is no reason to forget the look
                for change in changes(before, last):
                    self._print(change)
                self.sleep(self.every_s)
        except KeyboardInterrupt:
            if last is None:
                raise
            return last.code

    def _print(self, change: Change) -> None:
        if self.as_json:
            at = datetime.now().astimezone().isoformat(timespec="seconds")
            output.write(json.dumps({"at": at, **change.as_json()}))
        else:
            self.show(change)
        sys.stdout.flush()  # a pipe would keep it for minutes
