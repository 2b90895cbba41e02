"""What Ray itself reports about the nodes that KubeRay's pods declare, a replica's process and a drained node."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelfleet.infra.kubernetes.scripts import drain
from modelfleet.infra.planning import Plan
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.config.serve_options import actor_options, placement_bundles
from tests.cluster.conftest import Stack, wait_for
from tests.cluster.fleet import five_models, model
from tests.cluster.ladder import ladder_on
from tests.cluster.ray_nodes import HERE, declared, ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Bundles = list[dict[str, float]]


@pytest.fixture(scope="module")
def ray_nodes() -> Iterator[Any]:
    with ray_cluster() as cluster:
        yield cluster


def bundles_of(plan: Plan) -> dict[str, tuple[Bundles, str]]:
    """Placement group of one replica per model, made by the serving package from the arguments that the plan sends."""
    models = {one.model_id: ModelConfig.model_validate(one.application.args["model"]) for one in plan.models}
    return {name: (placement_bundles(one), one.scaling_config.placement_strategy) for name, one in models.items()}


def spoiled(bundles: Bundles, old: str, new: str) -> Bundles:
    """The bundles with one resource's name wrong."""
    return [{new if name == old else name: amount for name, amount in bundle.items()} for bundle in bundles]


def test_ray_places_as_many_replicas_on_a_node_as_the_plan_says_and_no_more(
    stack_of: Callable[..., Stack], ray_nodes: Any
) -> None:
    """Replicas that wait forever, because nodes lack the resource that a model file requests (ray-llm#143)."""
    from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

    small = model("org/small", "A10G", workers=1)
    small["deployment_config"]["ray_actor_options"] |= {"num_cpus": 1, "memory": 2 << 30}
    stack = stack_of([*five_models(), small])
    stack.scale({pool.name: 1 for pool in stack.plan.pools})
    pods = wait_for("a worker of each group", lambda: (p := stack.workers())[len(stack.plan.pools) - 1 :] and p)
    for pod in pods:
        ray_nodes.add_node(**declared(pod))

    def ready(group: Any) -> bool:
        return bool(group.wait(timeout_seconds=60))

    def state(group: Any) -> str:
        return str(placement_group_table(group)["state"])

    for planned in stack.plan.models:
        bundles, strategy = bundles_of(stack.plan)[planned.model_id]
        assert planned.replicas_per_node >= 1
        # Ray tries waiting groups in turn, so these have been tried once the later ones are ready.
        resource = f"accelerator_type:{planned.accelerator}"
        wrong = [
            placement_group(spoiled(bundles, resource, name), strategy=strategy)
            for name in ("accelerator_type:H100", f"accelerator_type_{planned.accelerator.lower()}")
        ]
        fitting = [placement_group(bundles, strategy=strategy) for _ in range(planned.replicas_per_node)]
        assert all(ready(group) for group in fitting), (planned.model_id, bundles)
        more = placement_group(bundles, strategy=strategy)
        assert not more.wait(timeout_seconds=1), f"{planned.model_id}: a node takes more replicas than the plan says"
        assert [state(group) for group in (*wrong, more)] == ["PENDING"] * 3
        for group in (*wrong, *fitting, more):
            remove_placement_group(group)


@pytest.fixture(scope="module")
def serve_port(ray_nodes: Any) -> Iterator[int]:
    """Ray Serve on two more nodes, which replicas in this file request by the resource `spot`."""
    from ray import serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray_nodes.add_node(num_cpus=4, resources={"spot": 1}, **HERE)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()


def ask(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=240) as answer:
        return str(answer.read().decode())


def test_the_environment_of_a_replica_decides_in_which_thread_its_code_runs(serve_port: int) -> None:
    """Serve reads the variable when the replica's process imports it, so the runtime environment is early enough."""
    from ray import serve

    @serve.deployment
    class WhichThread:
        async def __call__(self, request: Any) -> str:
            return threading.current_thread().name

    environment = actor_options(ModelConfig.model_validate(model("org/one", "L4")))["runtime_env"]
    for name, runtime_env in (("ours", environment), ("serves", {})):
        options = {"num_cpus": 0, "resources": {"spot": 0.001}, "runtime_env": runtime_env}
        serve.run(WhichThread.options(ray_actor_options=options).bind(), name=name, route_prefix=f"/{name}")
    base = f"http://127.0.0.1:{serve_port}"
    of_its_own = "_run_user_code_event_loop"  # the function that Serve's thread for user code runs
    assert of_its_own in ask(f"{base}/serves"), "Serve names its thread differently, so this test proves nothing"
    assert of_its_own not in ask(f"{base}/ours")
    for name in ("ours", "serves"):
        serve.delete(name)


@pytest.mark.usefixtures("gpu_node")
@pytest.mark.parametrize(
    ("workers", "executor", "cards", "threads"),
    [(1, None, 1, "2"), (4, None, 4, "2"), (2, "ray", 0, "2")],
    ids=["one GPU", "four GPUs", "Ray's executor"],
)
def test_ray_gives_a_replica_its_cards_and_reserves_its_workers_cpus(
    serve_port: int, workers: int, executor: str | None, cards: int, threads: str
) -> None:
    """Cards that Ray only counts: what a replica sees of them, and what the deployment's real options take of the node."""
    import ray
    from ray import serve

    from modelfleet.serving.app import AppArgs, application

    class Probe:
        def __init__(self, model: dict[str, Any], weights: dict[str, Any]) -> None:
            self.sees = [os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]

        async def __serve_build_asgi_app__(self) -> Any:
            from fastapi import FastAPI

            app = FastAPI()
            app.get("/sees")(lambda: self.sees)
            return app

    data = model("org/probe", "L4", workers=workers)
    data["deployment_config"]["ray_actor_options"] |= {"num_cpus": 2, "memory": 1 << 30}
    data["scaling_config"] |= {"num_cpus_per_worker": 8, "placement_strategy": "STRICT_PACK"}
    data["engine_config"]["engine_kwargs"] = {"distributed_executor_backend": executor} if executor else {}
    before = ray.available_resources()
    one = ModelConfig.model_validate(data)
    serve.run(application(Probe, AppArgs(model=one)), name="probe", route_prefix="/probe")
    visible, omp = json.loads(ask(f"http://127.0.0.1:{serve_port}/probe/sees"))
    after = ray.available_resources()
    serve.delete("probe")
    wait_for("the cards to be free", lambda: ray.available_resources().get("GPU") == before["GPU"], seconds=60)
    assert omp == threads, "Ray counts the threads of the actor's own CPUs"
    assert len([card for card in visible.split(",") if card]) == cards
    taken = {name: before[name] - after.get(name, 0) for name in ("CPU", "GPU", "memory")}
    assert taken == {"CPU": 2 + 8 * workers, "GPU": workers, "memory": 1 << 30}


@pytest.fixture(scope="module")
def gpu_node(ray_nodes: Any) -> None:
    """A node whose four cards Ray only counts."""
    ray_nodes.add_node(num_cpus=40, num_gpus=4, memory=8 << 30, resources={"accelerator_type:L4": 1}, **HERE)


def test_a_drained_node_answers_its_open_request_first_and_gives_up_at_the_limit(
    serve_port: int, ray_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import serve

    started, go = tmp_path / "started", tmp_path / "go"

    @serve.deployment(graceful_shutdown_timeout_s=600, graceful_shutdown_wait_loop_s=0.2)
    class Slow:
        async def __call__(self, request: Any) -> str:
            import asyncio

            started.touch()
            while not go.exists():
                await asyncio.sleep(0.1)
            return str(os.getpid())

    (node,) = (n for n in ray_nodes.worker_nodes if n.get_resource_and_label_spec().resources.get("spot"))
    options = {"num_cpus": 0, "resources": {"spot": 0.001}}
    serve.run(Slow.options(ray_actor_options=options).bind(), name="slow", route_prefix="/slow")

    _hook_runs_on(node, ray_nodes.address, tmp_path, monkeypatch)
    (replica,) = drain.replicas()

    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(ask(f"http://127.0.0.1:{serve_port}/slow")), daemon=True)
    asking.start()
    wait_for("the request to be at the replica", started.exists, seconds=60)

    polls: list[float] = []

    def sleep(seconds: float) -> None:
        polls.append(seconds)
        time.sleep(0.1)

    monkeypatch.setattr(drain, "time", SimpleNamespace(monotonic=lambda: len(polls), sleep=sleep))
    monkeypatch.setattr(drain, "DEADLINE_SECONDS", 3)
    assert drain.main() == 0
    assert polls == [1.0, 1.0, 1.0], "three seconds by a clock that only its own waiting moves"
    assert drain.replicas() == [replica], "it gave up while the request was still open"
    assert not answers

    # A node to move to: the replica there takes new requests, and the old one has only its open request left.
    ray_nodes.add_node(num_cpus=4, resources={"spot": 1}, **HERE)
    monkeypatch.setattr(drain, "DEADLINE_SECONDS", 6000)
    draining = threading.Thread(target=drain.main, daemon=True)
    draining.start()
    wait_for("the replica to leave", lambda: _states("slow") == ["RUNNING", "STOPPING"], seconds=120)
    so_far = len(polls)
    wait_for("it to wait on", lambda: len(polls) > so_far + 2, seconds=120)
    assert draining.is_alive() and not answers
    go.touch()
    asking.join(timeout=60)
    assert answers == [str(replica)], "the request was answered by the replica that it was sent to"
    draining.join(timeout=120)
    assert not draining.is_alive() and drain.replicas() == []
    serve.delete("slow")


def _hook_runs_on(node: Any, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a pod: `ray` speaks for this node, and the hook sees only this node's replicas."""
    command = tmp_path / "bin" / "ray"
    command.parent.mkdir()
    real = Path(sys.executable).parent / "ray"
    command.write_text(f'#!/bin/sh\nexec {real} "$@" --address {address} --node-id {node.node_id}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    raylet = node.all_processes["raylet"][0].process.pid
    everywhere = drain.replicas
    monkeypatch.setattr(drain, "replicas", lambda: [pid for pid in everywhere() if _parent(pid) == raylet])


class OnItsCard:
    """In place of a replica: says with which engine arguments it would run, and streams until it may end."""

    def __init__(self, model: dict[str, Any], weights: dict[str, Any], cards: list[dict[str, Any]], usage: str) -> None:
        import ray

        from modelfleet.serving.card import Card, on_this_card

        here = ray.get_runtime_context().get_node_id()
        (name,) = (node["Labels"]["card"] for node in ray.nodes() if node["NodeID"] == here)
        known = [Card.model_validate(card) for card in cards]
        self.model = on_this_card(ModelConfig.model_validate(model), known, print, lambda: name.replace("_", " "))

    async def __serve_build_asgi_app__(self) -> Any:
        import asyncio

        from fastapi import FastAPI
        from starlette.responses import StreamingResponse

        async def words(until: str) -> Any:
            yield "first "
            while not await asyncio.to_thread(os.path.exists, until):
                yield "more "
                await asyncio.sleep(0.1)
            yield "last"

        app = FastAPI()
        app.get("/arguments")(lambda: self.model.engine_config.engine_kwargs)
        app.get("/stream")(lambda until: StreamingResponse(words(until)))
        return app


CLIMBER = {
    "name": "l4",
    "accelerator": "L4",
    "maxNodes": 1,
    "instanceTypes": ["g6.2xlarge"],
    "purchase": ["spot", "on-demand"],
    "fallback": [{"accelerator": "A10G", "instanceTypes": ["g5.2xlarge"]}],
    "returnAfterMinutes": 10,
}


def test_a_model_goes_up_the_ladder_answers_on_the_other_card_and_returns_without_a_cut_stream(
    stack_of: Callable[..., Stack], serve_port: int, ray_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the pool's limit of one node: operator, scheduler, Ray and Serve are real, EC2 and its autoscaler are not."""
    from ray import serve

    from modelfleet.serving.app import AppArgs, application

    for others in list(ray_nodes.worker_nodes):  # a replica of this model would start on what they have left
        ray_nodes.remove_node(others)
    data = model("org/climber", "L4")
    data["scaling_config"]["fallback"] = [{"accelerator": "A10G", "engine_kwargs": {"max_num_seqs": 16}}]
    data["deployment_config"] |= {"graceful_shutdown_timeout_s": 600, "graceful_shutdown_wait_loop_s": 0.2}
    stack = stack_of([data], most_nodes=0, target="eks", pools=[CLIMBER])
    base = f"http://127.0.0.1:{serve_port}/climber"

    def worker() -> dict[str, Any]:
        return next((pod for pod in stack.workers() if pod["spec"].get("nodeName")), {})

    def rung(pod: dict[str, Any]) -> tuple[str, str]:
        labels = (stack.api.get("v1", "Node", pod["spec"]["nodeName"]) or {})["metadata"]["labels"]
        return labels["k8s.amazonaws.com/accelerator"], labels["modelfleet.dev/purchase"]

    with ladder_on(stack, tmp_path) as ladder:
        ladder.short_of("g6.2xlarge")
        stack.scale({"l4": 1})
        first, asked = ladder.climb("a node of the third rung", worker)
        assert asked == ["l4_spot-a", "l4_spot-b", "l4-a", "l4-b", "l4_a10g-a"]
        assert rung(first) == ("a10g", "on-demand")

        old = ray_nodes.add_node(**declared(first), labels={"card": "NVIDIA_A10G"})
        args = AppArgs.model_validate(stack.plan.models[0].application.args)
        serve.run(application(OnItsCard, args), name="climber", route_prefix="/climber")
        assert json.loads(ask(f"{base}/arguments"))["max_num_seqs"] == 16, "the fallback's own"
        assert ladder.bring_back(time.time()) == [], "a worker that has just come stays"

        _hook_runs_on(old, ray_nodes.address, tmp_path, monkeypatch)
        go, texts = tmp_path / "go", list[str]()
        stream = threading.Thread(target=lambda: texts.append(ask(f"{base}/stream?until={go}")), daemon=True)
        stream.start()
        later = time.time() + 1500  # late for the worker, too early to give up a placeholder
        assert ladder.bring_back(later) == [
            "l4: asks again for L4 spot or L4 on-demand: a worker runs on A10G on-demand"
        ]
        ladder.may_only_wait()
        ladder.stand_in.turn()
        assert ladder.bring_back(later) == [], "EC2 still has none, and nothing moves"

        ladder.short_of()
        ladder.buyer.forgive()  # after 5 to 30 minutes

        # kwok has a pod go at once, with all its finalizers. A kubelet keeps it until its hook ends, and a pod that ends
        # still has its node whole: so its node takes no other here.
        name, where = first["metadata"]["name"], stack.namespace
        stack.api.merge("v1", "Node", first["spec"]["nodeName"], None, {"spec": {"unschedulable": True}})
        moved, asked = ladder.climb("the worker to move", lambda: ladder.bring_back(later))
        assert (moved, asked) == ([f"l4: moves worker {name}"], ["l4_spot-a"])

        def successor() -> dict[str, Any]:
            found = worker()
            return {} if not found or found["metadata"]["name"] == name else found  # the operator has not ended it yet

        second = wait_for("its successor on a node", successor, seconds=60)
        assert rung(second) == ("l4", "spot")

        ray_nodes.add_node(**declared(second), labels={"card": "NVIDIA_L4"})
        draining = threading.Thread(target=drain.main, daemon=True)
        draining.start()
        wait_for("an answer from the first rung", lambda: _arguments_at(base) == 256, seconds=120)
        assert stream.is_alive() and draining.is_alive(), "the old replica keeps its request, and the pod its replica"
        go.touch()
        stream.join(timeout=60)
        draining.join(timeout=120)
        assert texts[0].startswith("first more") and texts[0].endswith("last"), "the stream was whole"
        assert not draining.is_alive() and drain.replicas() == []
        wait_for("the old pod to go", lambda: stack.api.get("v1", "Pod", name, where) is None)
        ladder.bring_back(later)
        left = [pod["metadata"]["name"] for pod in stack.api.list("v1", "Pod", where, "modelfleet.dev/placeholder=l4")]
        assert left == [], "nothing waits for a node any more"
        assert [pod["metadata"]["name"] for pod in stack.workers()] == [second["metadata"]["name"]]
    serve.delete("climber")


def _arguments_at(base: str) -> Any:
    return json.loads(ask(f"{base}/arguments"))["max_num_seqs"]


def _states(name: str) -> list[str]:
    from ray import serve

    (deployment,) = serve.status().applications[name].deployments.values()
    return sorted(str(state) for state, count in deployment.replica_states.items() for _ in range(count))


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None  # it has just ended
