"""A new release of the serving code on live applications: which move, in what order, and what a failure leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from modelfleet.infra.planning.release import moves, release_notice, wanted_configs
from modelfleet.infra.rolling import IN_PART, Stopped, as_read, roll
from tests.unit.planning.builders import model, planned, pool, stack

Config = Mapping[str, Any]


def config(name: str, code: str, args: str = "same") -> dict[str, Any]:
    return {"name": name, "import_path": "app:build", "runtime_env": {"working_dir": code}, "args": {"file": args}}


class Serve:
    """Serve whose applications do not start with the code `broken`; `log` has what it was given."""

    def __init__(self, *live: Config, dead: Sequence[str] = (), sick: Sequence[str] = ()) -> None:
        self.live = {one["name"]: one for one in live}
        self.dead, self.sick, self.log = dead, sick, list[str]()

    def configs(self) -> Mapping[str, Config]:
        return dict(self.live)

    def failed(self) -> Sequence[str]:
        return self.sick

    def apply(self, configs: Sequence[Config]) -> None:
        self.live |= {one["name"]: one for one in configs}
        self.log.append(" ".join(f"{one['name']}:{one['runtime_env']['working_dir']}" for one in configs))

    def wait(self, names: Sequence[str]) -> Mapping[str, str]:
        codes = {name: self.live[name]["runtime_env"]["working_dir"] for name in names}
        return {name: f"{name} does not start" for name in names if codes[name] == "broken" or name in self.dead}


def quiet(line: str) -> None:
    """Nobody listens."""


OLD = [config(name, "old") for name in "abcd"]


def test_models_take_new_code_one_after_another_in_the_order_of_the_plan() -> None:
    serve = Serve(*OLD)
    roll(serve, [config(name, "new") for name in "dbca"], 1, quiet)
    assert serve.log == ["d:new", "b:new", "c:new", "a:new"]


def test_several_at_once_are_the_stacks_choice() -> None:
    serve = Serve(*OLD)
    roll(serve, [config(name, "new") for name in "abcd"], 3, quiet)
    assert serve.log == ["a:new b:new c:new", "d:new"]


def test_the_first_that_does_not_start_gets_its_old_code_back_and_the_rest_keep_theirs() -> None:
    serve = Serve(*OLD)
    wanted = [config("a", "new"), *(config(name, "broken") for name in "bcd")]
    with pytest.raises(Stopped) as stopped:
        roll(serve, wanted, 1, quiet)
    assert serve.log == ["a:new", "b:broken", "b:old"]
    assert str(stopped.value) == (
        "the new serving code stops at b: b does not start; b has its old code again; c, d keep theirs; a run the new "
        "one. Mend it and run again to go on, or deploy the earlier version to go back"
    )
    serve.log.clear()
    roll(serve, [config(name, "new") for name in "abcd"], 1, quiet)
    assert serve.log == ["b:new", "c:new", "d:new"], "the next run goes on where the last one stopped"
    serve.log.clear()
    roll(serve, OLD, 1, quiet)
    assert serve.log == ["a:old", "b:old", "c:old", "d:old"], "or back"


def test_what_a_killed_run_left_starting_is_waited_for_before_another_takes_the_code() -> None:
    serve = Serve(config("a", "new"), *OLD[1:], dead=["a"])
    with pytest.raises(Stopped, match="stops at a: a does not start; b, c, d keep theirs"):
        roll(serve, [config(name, "new") for name in "abcd"], 1, quiet)
    assert serve.log == []


def test_a_model_that_had_failed_before_keeps_no_other_from_going_back() -> None:
    """b stopped the release and starts with its old code neither; d failed on its own."""
    serve = Serve(config("a", "new"), OLD[1], config("c", "new"), config("d", "new"), dead="bd", sick="bd")
    roll(serve, OLD, 1, quiet)
    assert serve.log == ["d:old", "a:old", "c:old"]


def test_a_model_that_had_failed_before_is_not_among_those_that_run_the_new_code() -> None:
    serve = Serve(*OLD[:2], config("c", "new"), dead="c", sick="c")
    with pytest.raises(Stopped, match=r"stops at a: a does not start; a has its old code again; b keep theirs\. Mend"):
        roll(serve, [config("a", "broken"), *(config(name, "new") for name in "bc")], 1, quiet)


def test_a_release_that_stopped_is_seen_although_a_refresh_forgets_that_the_run_failed() -> None:
    """`refresh: always` clears the failure, and every application would have been changed at once."""
    state = {"code": "new", "configs": json.dumps([config(name, "new") for name in "ab"])}
    assert as_read(Serve(config("a", "new"), OLD[1]), state)["code"] == IN_PART
    assert as_read(Serve(config("a", "new"), config("b", "new")), state) == state
    assert as_read(Serve(), state) == state, "nothing runs"


def test_edits_and_new_models_are_no_release() -> None:
    live = {one["name"]: one for one in OLD[:3]}
    assert moves(live, [config("a", "old", "edited"), *OLD[1:]]).to_move == ()
    found = moves(live, [config("a", "new", "edited"), config("b", "old"), config("c", "old", "edited"), OLD[3]])
    assert found.to_move == ("a", "c") and found.moved == ("b",), "an edit beside new code waits for its turn"


def test_options_that_serve_takes_in_place_move_nothing() -> None:
    live = {"a": {**OLD[0], "deployments": [{"name": "vllm", "max_surge_percent": 0}]}}
    wanted = {**OLD[0], "deployments": [{"name": "vllm", "max_surge_percent": 20}]}
    assert moves(live, [wanted]).to_move == ()


def test_the_notice_lists_models_without_a_gap_first() -> None:
    pools = [
        pool("l4", "L4", maxNodes=1, instanceTypes=["g6.2xlarge"]),
        pool("t4", "T4", maxNodes=9, instanceTypes=["g4dn.12xlarge"]),
    ]
    models = [model("org/a"), model("org/c", "T4"), model("org/b", "T4")]
    made = planned(models, stack(*pools, modelsAtOnce=2))
    assert made.release.order == ("org--b", "org--c", "org--a")
    live = {one["name"]: {**one, "runtime_env": {"working_dir": "s3://bucket/old.zip"}} for one in wanted_configs(made)}
    assert release_notice(live, made) == (
        "the serving code changes: models take it 2 at a time, in this order: org--b, org--c, org--a. The first that "
        "does not become ready gets its old code back, and those after it keep theirs"
    )
    assert release_notice({one["name"]: one for one in wanted_configs(made)}, made) is None
