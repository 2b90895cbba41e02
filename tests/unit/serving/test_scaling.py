"""How many replicas a model gets: the decision, what it is made of, and Serve's own code around it."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
from argparse import ArgumentTypeError
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from modelfleet.infra.kubernetes.manifests.scripts import policy_volume
from modelfleet.serving import scaling
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import deployment_options
from modelfleet.serving.scaling import QUEUES_VARIABLE, Aim, Sample, ScalingPolicy, Want, addresses, settled, wanted
from modelfleet.serving.waiting import Places
from tests.bare_python import bare_python
from tools.bench.servers import Ports
from tools.scaling.picture import draw
from tools.scaling.replay import Fault, _kill_replicas, _say_fault
from tools.scaling.simulate import Outcome, Point, run
from tools.scaling.traces import Arrival, Trace, burst

AIM = Aim("requests", requests=4, places=10, target=0.0, up_s=2, down_s=600, to_zero_s=900)


def sample(at: float = 0.0, **values: Any) -> Sample:
    return Sample(**{"at": at, "replicas": 1, "running": 0.0, "waiting": 0.0, "finished": 0.0, **values})


def wants(*values: tuple[float, float]) -> list[Want]:
    """(second, replicas), of a load that changes slowly."""
    return [Want(at, replicas, replicas, replicas) for at, replicas in values]


def test_what_waits_counts_as_what_runs() -> None:
    assert wanted([sample(running=10, waiting=22)], AIM) == 8


def test_a_long_queue_asks_for_what_arrives_and_not_for_all_that_waits() -> None:
    """Four a second, eight seconds each: 32 at a time, whatever a cold start has piled up."""
    course = [sample(at, running=10, waiting=2.75 * at, finished=1.25 * at) for at in range(61)]
    assert (course[-1].running + course[-1].waiting) / 4 > 40
    assert wanted(course, AIM) == pytest.approx(8, rel=0.05)
    narrow = replace(AIM, places=4)
    assert wanted(course, narrow) > 12, "replicas that can work on no more than their target drain nothing"


def test_a_queue_that_stands_still_still_asks_for_more() -> None:
    course = [sample(at, running=10, waiting=50, finished=1.25 * at) for at in range(121)]
    assert wanted(course, AIM) > 1


@pytest.mark.parametrize(("used", "waiting", "replicas"), [(0.9, 0, 3.0), (0.6, 0, 2.0), (0.3, 0, 1.0), (0.6, 8, 4.0)])
def test_kv_use_follows_its_target(used: float, waiting: float, replicas: float) -> None:
    aim = replace(AIM, follows="kv_use", target=0.6)
    assert wanted([sample(replicas=2, running=4, waiting=waiting, kv_use=used)], aim) == pytest.approx(replicas)


@pytest.mark.parametrize(
    ("ttft", "running", "replicas"), [(6.0, 9, 8.0), (3.0, 9, 6.0), (1.9, 9, 4.0), (0.1, 9, 2.0), (None, 9, 4), (None, 0, 0)]
)  # fmt: skip
def test_time_to_first_token_follows_its_target_and_one_step_is_bounded(
    ttft: float | None, running: float, replicas: float
) -> None:
    aim = replace(AIM, follows="time_to_first_token", target=2.0)
    assert wanted([sample(replicas=4, running=running, ttft_s=ttft)], aim) == pytest.approx(replicas)


def test_more_comes_after_the_delay_and_at_once() -> None:
    assert settled(wants((0, 8), (1, 8)), 1, AIM) == 1
    assert settled(wants((0, 8), (1, 8), (2, 8)), 1, AIM) == 8


def course(policy: ScalingPolicy, *loads: tuple[int, float, float], target: int = 1) -> list[int]:
    """What the policy answers second by second to (seconds, running, waiting); Serve does what it answers."""
    answers, now = [], 0.0
    for seconds, running, waiting in loads:
        for _ in range(seconds):
            raw = {"running_requests": running, "waiting": waiting, "finished": 0.0}
            context = SimpleNamespace(
                app_name="m",
                current_time=now,
                current_num_replicas=1,
                target_num_replicas=target,
                total_queued_requests=None,
                raw_metrics={name: {"a": [SimpleNamespace(value=value)]} for name, value in raw.items()},
            )
            target = policy(context)[0]
            answers.append(target)
            now += 1.0
    return answers


def test_a_burst_is_asked_for_whole_and_stays_asked_for() -> None:
    """The calm before it is in the mean, but what waits is not averaged away."""
    answers = course(ScalingPolicy(**vars(AIM)), (700, 2, 0), (10, 10, 22))
    assert answers[:700] == [1] * 700
    assert answers[700:704] == [1, 1, 8, 8] and answers[-1] == 8, "none is taken back before it has started"


def test_a_head_that_is_older_than_its_models_leaves_out_what_it_does_not_know() -> None:
    older = ScalingPolicy(**vars(AIM), follows_the_moon=True)
    assert course(older, (700, 2, 0), (10, 10, 22)) == course(ScalingPolicy(**vars(AIM)), (700, 2, 0), (10, 10, 22))


def test_a_moment_is_no_burst() -> None:
    assert set(course(ScalingPolicy(**vars(AIM)), (700, 2, 0), (1, 10, 22), (30, 2, 0))) == {1}


def test_fewer_only_after_all_of_the_delay() -> None:
    busy = wants((0.0, 8.0), *((float(at), 2.0) for at in range(1, 700)))
    assert settled(busy[:500], 8, AIM) == 8, "the policy has not seen 600 s yet"
    assert settled(busy, 8, AIM) == 2
    dip = wants(*((float(at), 8.0 if at != 650 else 0.0) for at in range(651)))
    assert settled(dip, 8, AIM) == 8, "a dip removes nothing"


def test_the_last_replica_has_its_own_delay() -> None:
    idle = wants(*((float(at), 0.0) for at in range(1000)))
    assert settled(idle[:700], 1, AIM) == 1
    assert settled(idle, 1, AIM) == 0
    assert settled(idle, 3, AIM) == 1, "Serve takes the last one only from one to none"
    soon = replace(AIM, to_zero_s=60)
    assert settled(idle[:59], 1, soon) == 1 and settled(idle[:62], 1, soon) == 0, (
        "sooner than others, if the file says so"
    )


def test_a_burst_needs_one_cold_start_and_little_more_than_serves_own_policy() -> None:
    """In the simulator, with the real policies."""
    trace = burst()
    own, serve = (
        run(trace, policy, start_s=60, one_queue=policy == "requests") for policy in ("requests", "ray_serve")
    )
    assert own.p95() <= serve.p95() / 2
    assert own.replica_hours <= 1.1 * serve.replica_hours
    first = next(point for point in own.course if point.at > 300 and point.target >= 8)
    assert first.at < 360, "eight are asked for before the first of them is there"


def test_a_replica_that_leaves_ends_its_answers() -> None:
    trace = Trace("one", 30.0, tuple(Arrival(0.1 * n, 20.0) for n in range(40)))
    outcome = run(trace, "requests", start_s=5)
    assert len(outcome.ttft_s) == 40 and outcome.course[-1].waiting == 0


def test_the_picture_of_a_replay_has_each_policys_course_and_the_bursts() -> None:
    trace = burst().until(900.0)
    assert max(one.at for one in trace.arrivals) < 900 and trace.busy == ((300.0, 900.0),)
    found = {policy: run(trace, policy, start_s=20) for policy in ("ray_serve", "requests")}
    drawn = ElementTree.fromstring(draw(found))
    space = {"svg": "http://www.w3.org/2000/svg"}
    lines = [line.attrib["points"].split() for line in drawn.iterfind(".//svg:polyline", space)]
    assert len(lines) == 6, "two policies in each of three panels"
    assert [len(line) for line in lines[:2]] == [len(one.course) for one in found.values()]
    top, bottom = (float(drawn.findall(".//svg:line", space)[number].attrib["y1"]) for number in (2, 0))
    heights = [float(point.split(",")[1]) for line in lines[:2] for point in line]
    assert top <= min(heights) and max(heights) <= bottom, "no point leaves its panel"
    assert len(drawn.findall(".//svg:rect", space)) == 3, "the burst stands behind each panel"


def test_the_trace_is_the_same_everywhere() -> None:
    trace = burst()
    assert trace == burst() and len(trace.arrivals) == 7774
    assert trace.arrivals != burst(26).arrivals
    assert all(one.at <= after.at for one, after in pairwise(trace.arrivals))


def scaled_model(**autoscaling: Any) -> ModelConfig:
    data = {
        "deployment_config": {"max_ongoing_requests": 16, "autoscaling_config": {"max_replicas": 8, **autoscaling}},
        "engine_config": {"model_id": "test/scaled"},
        "scaling_config": {
            "num_workers": 1,
            "num_gpus_per_worker": 0,
            "resources_per_worker": {"accelerator_type:CPU": 0.001},
        },
    }
    return ModelConfig.model_validate(data)


def scaled(**autoscaling: Any) -> dict[str, Any]:
    options: dict[str, Any] = deployment_options(scaled_model(**autoscaling))["autoscaling_config"]
    return options


@pytest.mark.parametrize("local", [True, False])
def test_only_a_head_that_has_our_code_gets_our_policy(local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option in Serve's file makes a cluster's controller import it, which fails there."""
    from modelfleet.serving.app import AppArgs, application

    monkeypatch.delenv(QUEUES_VARIABLE, raising=False)
    if local:
        monkeypatch.setenv(QUEUES_VARIABLE, "/folder/gateway-queues")

    class Replica:
        async def __serve_build_asgi_app__(self) -> None: ...

    made = application(Replica, AppArgs(model=scaled_model()))
    policy = made._bound_deployment._deployment_config.autoscaling_config.policy
    assert policy.is_default_policy_function() is not local


def test_serves_own_policy_is_left_as_it_is() -> None:
    assert scaled(policy="ray_serve") == {
        "min_replicas": 1,
        "max_replicas": 8,
        "target_ongoing_requests": 1.0,
        "upscaling_factor": 1.0,
        "downscaling_factor": 1.0,
    }


def test_what_the_file_says_reaches_the_policy_and_serve_waits_no_second_time() -> None:
    options = scaled(
        policy="kv_use", target_kv_use=0.7, upscale_delay_s=9, downscale_delay_s=70, downscale_to_zero_delay_s=80
    )
    assert [options[f"{key}_delay_s"] for key in ("upscale", "downscale", "downscale_to_zero")] == [0.0, 0.0, 0.0]
    aim = Aim(**options["policy"]["policy_kwargs"])
    assert Aim(**scaled()["policy"]["policy_kwargs"]) == Aim(
        "requests", 1.0, 16, 0.0, up_s=2, down_s=300, to_zero_s=600
    )
    assert aim == Aim("kv_use", requests=1.0, places=16, target=0.7, up_s=9, down_s=70, to_zero_s=80)


#: What Serve's controller does with the policy, in a Python that has none of our code, or the policy's file alone.
CONTROLLER = """
import base64, sys
from types import SimpleNamespace as Of
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve._private.autoscaling_state import _resolve_policy_callable
try:
    import modelfleet.serving.config
except ImportError:
    pass
else:
    raise SystemExit("this Python has our code")
config = AutoscalingConfig(max_replicas=8, upscale_delay_s=0, downscale_delay_s=0)
options = {"policy_function": sys.argv[1], "policy_kwargs": %r}
packed = base64.b64decode("%s")
policy = AutoscalingPolicy.from_serialized_policy_def(options, packed) if packed else AutoscalingPolicy(**options)
decide = _apply_autoscaling_config(_resolve_policy_callable(policy))
state = {}
for second in range(40):
    busy = second >= 35
    context = Of(app_name="m", current_time=float(second), config=config, current_num_replicas=1,
        target_num_replicas=1, total_num_requests=3.0, total_queued_requests=0.0, policy_state=state,
        raw_metrics={"running_requests": {"a": [Of(value=10.0 if busy else 1.0)]},
                     "waiting": {"a": [Of(value=22.0 if busy else 0.0)]}, "finished": {"a": [Of(value=0.0)]}})
    wanted, state = decide(context)
print(wanted)
"""


@pytest.mark.parametrize("mounted", [False, True], ids=["pickled by the application", "imported from the head's mount"])
def test_the_policy_works_in_serves_controller_which_has_none_of_our_code(tmp_path: Path, mounted: bool) -> None:
    from ray.serve.config import AutoscalingPolicy

    options = scaled(target_ongoing_requests=4)["policy"]
    packed, env = b"", {}
    if mounted:
        (item,) = policy_volume()["configMap"]["items"]
        file = tmp_path / "policy" / item["path"]
        file.parent.mkdir(parents=True)
        file.write_text(Path(scaling.__file__).read_text())
        env = {"PYTHONPATH": str(tmp_path / "policy")}
    else:
        packed = AutoscalingPolicy(**options).get_serialized_policy_def() or b""
    script = CONTROLLER % (options["policy_kwargs"], base64.b64encode(packed).decode())
    command = [str(bare_python(tmp_path / "python")), "-c", script, options["policy_function"] if mounted else "x:y"]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.strip() == "8", done.stderr[-2000:]


def test_a_file_may_say_where_the_gateways_queues_are(tmp_path: Path) -> None:
    (tmp_path / "queues").write_text("127.0.0.1:8003")
    assert addresses(str(tmp_path / "queues")) == addresses("127.0.0.1:8003") == [("127.0.0.1", 8003)]
    with pytest.raises(OSError):
        addresses(str(tmp_path / "no gateway yet"))


def test_replicas_that_come_and_go_never_take_answers_back() -> None:
    policy = ScalingPolicy(**vars(AIM))
    finished = []
    for second, counts in enumerate([{"a": 5.0}, {"a": 9.0, "b": 2.0}, {"b": 3.0}, {"b": 3.0, "a": 1.0}]):
        context = SimpleNamespace(
            app_name="m",
            current_time=float(second),
            current_num_replicas=1,
            target_num_replicas=1,
            total_queued_requests=None,
            raw_metrics={"finished": {name: [SimpleNamespace(value=value)] for name, value in counts.items()}},
        )
        assert policy(context)[0] == 1
        finished.append(policy._samples[-1].finished)
    assert finished == [5.0, 11.0, 12.0, 13.0]


def test_a_model_that_sleeps_is_woken_by_serve_alone() -> None:
    policy = ScalingPolicy(**vars(AIM))
    asleep = SimpleNamespace(
        app_name="m",
        current_time=0.0,
        current_num_replicas=0,
        target_num_replicas=0,
        total_queued_requests=0.0,
        raw_metrics={},
    )
    assert policy(asleep) == (0, {})


def test_a_full_replica_says_how_many_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Serve's own method around a semaphore of one place."""
    from ray.serve._private import replica as serve

    monkeypatch.setattr(serve.Replica, "_start_request", serve.Replica._start_request)
    places = Places()
    places.watch()
    assert places.stats() == {"waiting": 0.0, "finished": 0.0}

    async def play() -> list[dict[str, float]]:
        one = object.__new__(serve.Replica)
        one._semaphore = asyncio.Semaphore(1)
        one._num_queued_requests = 0
        one._metrics_manager = SimpleNamespace(inc_num_ongoing_requests=id, dec_num_ongoing_requests=id)
        metadata, go = SimpleNamespace(_reserved_slot_token=None), asyncio.Event()

        async def request() -> None:
            with one._track_queued_request() as has_place:
                async with one._start_request(metadata):
                    has_place()
                    await go.wait()

        tasks = [asyncio.create_task(request()) for _ in range(3)]
        await asyncio.sleep(0.01)
        seen = [places.stats()]
        go.set()
        await asyncio.gather(*tasks)
        return [*seen, places.stats()]

    assert asyncio.run(play()) == [{"waiting": 2.0, "finished": 0.0}, {"waiting": 0.0, "finished": 3.0}]


@pytest.mark.parametrize("text", ["soon:replica", "5", "5:head", ":gateway", "-1:replica", "nan:replica"])
def test_a_fault_that_the_replay_does_not_know_is_one_line(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="allowed are SECOND:replica and SECOND:gateway"):
        Fault.of(text)
    assert Fault.of("12.5:gateway") == Fault(12.5, "gateway")


def test_a_fault_before_the_first_look_is_told_by_that_one(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(burst(), 0.0, (), (Point(2.0, 1, 1, 3, 0), Point(4.0, 2, 2, 5, 0)))
    _say_fault(Fault(1.0, "replica"), {"requests": (outcome, [])})
    _say_fault(Fault(5.0, "replica"), {"requests": (outcome, [])})
    first, second = capsys.readouterr().out.splitlines()
    assert "1 replicas, 3 running" in first and "2 replicas, 5 running" in second


def test_a_model_without_a_running_replica_keeps_no_other_models_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = {
        "a": [{"state": "STARTING", "pid": 1}],
        "b": [{"state": "RUNNING", "pid": 2}, {"state": "RUNNING", "pid": 3}],
    }
    killed: list[int] = []
    monkeypatch.setattr("tools.scaling.replay._replicas", lambda _, slug: replicas[slug])
    monkeypatch.setattr("os.kill", lambda pid, _: killed.append(pid))
    _kill_replicas(Ports(9650, 9830), ["a", "b"])
    assert killed == [2]
