"""Takes a new release of the serving code to live Serve applications, some at a time, and stops at the first failure.

`infra/planning/release.py` decides which and in what order. What is the same on every target is here: `Live` is Serve
as a target reaches it. Nothing is kept between runs: each looks at what is live, so that a run which was stopped goes
on with the same code, or back with the code before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from modelfleet.infra.planning.release import Config, moves
from modelfleet.infra.provider import Props

Say = Callable[[str], None]
#: Status of an application that failed for good, or whose replicas do (Ray Serve 2.60 `ApplicationStatus`).
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


class Live(Protocol):
    """Serve's applications where they run."""

    def configs(self) -> Mapping[str, Config]:
        """The configuration of each that is deployed, by name; empty where there is no Serve yet."""

    def failed(self) -> Collection[str]:
        """Names of those whose status is one of `FAILED`."""

    def apply(self, configs: Sequence[Config]) -> None:
        """Give these their configuration; the others keep theirs."""

    def wait(self, names: Sequence[str]) -> Mapping[str, str]:
        """Wait until each runs or has failed; why, by name, for those that failed."""


#: `code` of a release that stopped, so that the next run differs from it whatever it wants. A refresh forgets that
#: the last run failed.
IN_PART = "not on every model"


class Stopped(Exception):
    """A model did not become ready with the new code; the text says which, why, and what all have now."""


def as_read(live: Live, state: Props) -> Props:
    """The state of a Release, by what runs."""
    found = moves(live.configs(), json.loads(state["configs"]))
    return {**state, "code": IN_PART} if found.to_move else state


def never_differs(before: Any, after: Any) -> bool:  # noqa: ARG001 - the signature of `ResourceDef.same`
    """For inputs of a Release that matter only when the code changes."""
    return True


def roll(live: Live, wanted: Sequence[Config], at_once: int, say: Say) -> None:
    """Give the live applications what is `wanted`, in its order, `at_once` at a time. Raises `Stopped`.

    What fails gets its old configuration back: where its old replica still serves, Serve keeps it. An application that
    an earlier run left starting is waited for first.

    An application that has failed before has no good code to keep. It takes the new one at the start and is waited for
    by nobody, or the others could not go back to code that works.
    """
    before = dict(live.configs())
    found = moves(before, wanted)
    new = {one["name"]: one for one in wanted}
    sick = live.failed() if found.to_move else ()
    moved = [name for name in found.moved if name not in sick]
    to_move = [name for name in found.to_move if name not in sick]
    if to_move and moved:
        say(f"waiting for those with the new code: {', '.join(moved)}")
        if failed := live.wait(moved):
            raise Stopped(_sentence(failed, (), to_move, put_back=False))
    if lost := [name for name in found.to_move if name in sick]:
        say(f"new code for {', '.join(lost)}, which had failed before")
        live.apply([new[name] for name in lost])
    for start in range(0, len(to_move), at_once):
        batch, rest = to_move[start : start + at_once], to_move[start + at_once :]
        say(f"new code for {', '.join(batch)}; {start} of {len(to_move)} have it")
        live.apply([new[name] for name in batch])
        if failed := live.wait(batch):
            say(f"the old code again for {', '.join(failed)}")
            live.apply([before[name] for name in failed])
            back = live.wait([*failed])
            raise Stopped(_sentence(failed, [*moved, *to_move[:start]], rest, put_back=True, back=back))


def _sentence(
    failed: Mapping[str, str],
    moved: Sequence[str],
    rest: Sequence[str],
    *,
    put_back: bool,
    back: Mapping[str, Any] = {},
) -> str:
    parts = [f"the new serving code stops at {', '.join(failed)}: {'; '.join(failed.values())}"]
    if put_back:
        parts.append(
            f"with its old code it does not start either: {'; '.join(back.values())}"
            if back
            else f"{', '.join(failed)} has its old code again"
        )
    if rest:
        parts.append(f"{', '.join(rest)} keep theirs")
    if moved:
        parts.append(f"{', '.join(moved)} run the new one")
    return "; ".join(parts) + ". Mend it and run again to go on, or deploy the earlier version to go back"
