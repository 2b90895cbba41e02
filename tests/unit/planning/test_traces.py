"""Traces: where replicas send them, what lets them, and what begins them."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.cli.plan_diff import changes
from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.planning.plan import Plan
from modelfleet.infra.stack.target import TargetName
from modelfleet.serving.app import AppArgs
from modelfleet.serving.config.errors import InputErrors
from modelfleet.serving.engine_args import engine_arguments
from tests.unit.planning.builders import model, planned, pool, stack

INSIDE = "http://collector.tracing.svc:4318"
OUTSIDE = "https://traces.example.com/otlp/v1/traces"
LOCAL = "http://127.0.0.1:4318"


def plan_of(otlp: str | None, target: TargetName = "kubernetes", **keys: Any) -> Plan:
    traces = {"observability": {"traces": {"otlp": otlp}}} if otlp else {}
    here = target == "local"
    nodes = pool(accelerator="CPU") if here else pool(instanceTypes=["g6.xlarge"], sealedCaches=True)
    models = [model("org/one", "CPU" if here else "L4")]
    return planned(models, stack(nodes, target=target, **traces, **keys), deploying=False)


def args_of(plan: Plan) -> AppArgs:
    (one,) = plan.models
    return AppArgs.model_validate(dict(one.application.args))


@pytest.mark.parametrize(
    ("given", "target", "url"),
    [
        (INSIDE, "kubernetes", f"{INSIDE}/v1/traces"),
        (f"{INSIDE}/", "kubernetes", f"{INSIDE}/v1/traces"),
        (OUTSIDE, "kubernetes", OUTSIDE),
        (LOCAL, "local", f"{LOCAL}/v1/traces"),
    ],
)
def test_the_url_reaches_vllms_arguments_and_the_gateway_begins_traces(
    given: str, target: TargetName, url: str
) -> None:
    plan = plan_of(given, target)
    args = args_of(plan)
    assert args.traces == url and plan.gateway.traces
    assert engine_arguments(args.model, "/weights", traces=args.traces)["otlp_traces_endpoint"] == url


def test_a_model_files_own_receiver_stays() -> None:
    own = {"otlp_traces_endpoint": "http://mine:4317"}
    config = args_of(planned([model("org/one", engine_kwargs=own)], stack(pool(instanceTypes=["g6.xlarge"])))).model
    assert engine_arguments(config, "/weights", traces=LOCAL)["otlp_traces_endpoint"] == "http://mine:4317"


def test_a_stack_without_traces_is_as_before() -> None:
    plan = plan_of(None)
    assert "traces" not in plan.models[0].application.args and not plan.gateway.traces
    assert "otlp_traces_endpoint" not in engine_arguments(args_of(plan).model, "/weights")


def found(plan: Plan, kind: str, name: str) -> dict[str, Any]:
    made = everything(plan, cluster_name="c")
    return next(one for one in made if one["kind"] == kind and one["metadata"]["name"].startswith(name))


def test_replicas_reach_a_collector_in_the_cluster_and_nothing_more() -> None:
    before, after = (found(plan_of(one), "NetworkPolicy", "ray")["spec"]["egress"] for one in (None, INSIDE))
    (new,) = [one for one in after if one not in before]
    where = {"matchLabels": {"kubernetes.io/metadata.name": "tracing"}}
    assert new == {"to": [{"namespaceSelector": where}], "ports": [{"port": 4318}]}


def test_replicas_reach_one_outside_at_public_addresses() -> None:
    ways = plan_of(OUTSIDE, mirror={"storageCidrs": ["10.9.0.0/24"]}).egress
    (internet,) = [one for one in ways.replicas if one.purpose == "internet"]
    assert internet.ports == (443,) and "10.0.0.0/8" in internet.without and ways.collector is None


def test_a_warm_up_is_not_run_again_for_it() -> None:
    assert found(plan_of(None), "Job", "warm-up") == found(plan_of(INSIDE), "Job", "warm-up")


@pytest.mark.parametrize("otlp", ["http://10.1.2.3:4318", "http://traces.example.com", "https://traces:4317"])
def test_what_policies_close_is_told(otlp: str) -> None:
    with pytest.raises(
        InputErrors, match=r"observability.*which replicas may not reach; name a Service as http://NAME"
    ):
        plan_of(otlp)


@pytest.mark.parametrize("otlp", ["grpc://x:4317", "http://x y", 'http://x"/', "http://x:4318/a?b=c"])
def test_what_is_no_url_is_told(otlp: str) -> None:
    with pytest.raises(ValueError, match="http:// or https:// URL"):
        plan_of(otlp, "local")


def test_the_diff_says_that_models_start_anew() -> None:
    (change,) = [one for one in changes(plan_of(None), plan_of(INSIDE)) if one.what == "model"]
    assert f"{INSIDE}/v1/traces" in str(change)
