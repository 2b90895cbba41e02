"""What each reader makes of what its layer says; the shapes are those of the real parts."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import json
import os
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from moto import mock_aws

from modelfleet.doctor import look as looking
from modelfleet.doctor.diagnose import Cause, diagnose
from modelfleet.doctor.evidence import Evidence, Layer, Reading
from modelfleet.doctor.readers import (
    aws,
    engine,
    files,
    gateway,
    kubernetes,
    logs,
    monitor,
    ray,
    readers_of,
    serve,
    state,
)
from modelfleet.doctor.readers.kubernetes import Objects
from modelfleet.doctor.rules import default_rules
from modelfleet.doctor.subject import Subject
from modelfleet.infra.kubernetes.api import Api, ApiError, Manifest, Unreachable
from modelfleet.infra.local.token import token_file
from modelfleet.serving.config.errors import Finding
from modelfleet.serving.errors import died
from tests.ports import free_port
from tests.unit.listener import listening
from tests.unit.planning.builders import model, planned, pool, stack

MODELS = [model("org/one"), model("org/two")]
STACK = stack(pool(instanceTypes=["g6.2xlarge"], maxNodes=2), target="kubernetes")
SUBJECT = Subject(Path("/fleet"), STACK, planned(MODELS, STACK), tuple(MODELS))
STATUS = {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}


def service(**applications: dict[str, Any]) -> dict[str, Any]:
    """A RayService that is ready, with these applications."""
    active = {"applicationStatuses": {name.replace("__", "--"): state for name, state in applications.items()}}
    return {"metadata": {"name": "fleet", "generation": 1}, "status": {**STATUS, "activeServiceStatus": active}}


def causes(*facts: Evidence) -> list[Cause]:
    return diagnose(default_rules(), facts, SUBJECT, "test")


RUNNING = service(org__one={"status": "RUNNING"}, org__two={"status": "RUNNING"})
NODE = {"metadata": {"name": "a"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}


def test_a_healthy_cluster_says_nothing() -> None:
    pods = [{"metadata": {"name": "p", "labels": {}}, "spec": {}, "status": {"phase": "Running"}}]
    objects = Objects(nodes=(NODE,), pods=tuple(pods), services=(RUNNING,))
    assert list(kubernetes.facts(objects, SUBJECT)) == []


def not_triggered(name: str = "p") -> dict[str, Any]:
    """What cluster-autoscaler says of a pod whose pool is full: an event whose type is Normal."""
    message = "pod didn't trigger scale-up: 1 max node group size reached"
    about = {"kind": "Pod", "name": name}
    return {"type": "Normal", "reason": "NotTriggerScaleUp", "message": message, "involvedObject": about}


def test_a_pool_at_its_limit_is_said_though_its_event_is_no_warning() -> None:
    waits = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available: 2 Insufficient cpu."}
    pod = {"metadata": {"name": "p", "labels": {}}, "spec": {}, "status": {"phase": "Pending", "conditions": [waits]}}
    started = {"type": "Normal", "reason": "Started", "message": "Started container"}
    objects = Objects(nodes=(NODE,), pods=(pod,), events=(started, not_triggered()), services=(RUNNING,))
    (cause,) = causes(*kubernetes.facts(objects, SUBJECT))
    assert (cause.rule, [one.rule for one in cause.explains]) == ("pool-at-its-limit", ["not-enough-of-a-node"])


class Events(Api):
    """An API of a cluster that has events alone, by namespace; it refuses to show those of `hidden`."""

    def __init__(self, hidden: str = "", **events: Manifest) -> None:
        self.hidden, self.events = hidden, {name.replace("_", "-"): event for name, event in events.items()}

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Manifest | None:
        return {"metadata": {"name": name}}

    def list(self, api_version: str, kind: str, namespace: str | None = None, selector: str = "") -> list[Manifest]:
        if (kind, namespace) == ("Event", self.hidden):
            raise ApiError(403, "Forbidden", f"you may not list events in {namespace}")
        return [self.events[namespace]] if kind == "Event" and namespace in self.events else []


def test_the_autoscalers_failures_are_read_where_it_records_them() -> None:
    """They are events of its status ConfigMap in kube-system, not of the stack's namespace."""
    on_eks = stack(pool(instanceTypes=["g6.2xlarge"], maxNodes=2))
    subject = dataclasses.replace(SUBJECT, stack=on_eks, plan=planned(MODELS, on_eks))
    about = {"kind": "ConfigMap", "name": "cluster-autoscaler-status"}
    failed = {"type": "Warning", "reason": "ScaleUpFailed", "message": "Failed adding 1 nodes", "involvedObject": about}
    other = {**failed, "involvedObject": {"kind": "Pod", "name": "coredns"}}

    def seen(api: Events) -> tuple[list[str], list[str]]:
        objects, refused = kubernetes.fetch(api, subject)
        return [one["reason"] for one in objects.events], refused

    assert seen(Events(kube_system=failed)) == (["ScaleUpFailed"], [])
    assert seen(Events(kube_system=other)) == ([], [])
    assert seen(Events(hidden="kube-system")) == ([], ["Event: you may not list events in kube-system"])
    assert kubernetes.fetch(Events(hidden="kube-system"), subject)[0].hidden == {"Event"}


@pytest.mark.parametrize(
    ("reason", "rules"), [("ValidationFailed", ["operator-behind"]), ("NonZeroServeEndpoints", [])]
)
def test_a_refused_spec_is_over_once_the_operator_takes_it(reason: str, rules: list[str]) -> None:
    """The condition says it; the event of a spec that was mended stays for an hour, and busy objects lose theirs."""
    about = {"kind": "RayService", "name": "fleet", "uid": "u"}
    event = {"type": "Warning", "reason": "InvalidRayServiceSpec", "message": "no", "involvedObject": about}
    said = copy.deepcopy(RUNNING)
    said["metadata"] |= {"uid": "u", "generation": 2 if rules else 1}
    said["status"]["conditions"][0] |= {"reason": reason, "message": "The RayService spec is invalid: no"}
    for events in ((), (event,)):
        found = causes(*kubernetes.facts(Objects(nodes=(NODE,), events=events, services=(said,)), SUBJECT))
        assert [one.rule for one in found] == (["ray-spec-refused"] if rules else [])
        assert [one.rule for cause in found for one in cause.explains] == rules


def test_a_service_that_may_not_be_seen_is_not_said_to_be_absent() -> None:
    ended = {"exitCode": 137, "reason": "OOMKilled"}
    state = {"waiting": {"reason": "CrashLoopBackOff"}}
    container = {"name": "ray-worker", "restartCount": 3, "state": state, "lastState": {"terminated": ended}}
    meta = {"name": "w", "labels": {"ray.io/cluster": "fleet-1"}}
    pod = {"metadata": meta, "spec": {}, "status": {"phase": "Running", "containerStatuses": [container]}}
    facts = kubernetes.facts(Objects(nodes=(NODE,), pods=(pod,), hidden=frozenset({"RayService"})), SUBJECT)
    assert [one.rule for one in causes(*facts)] == ["pod-out-of-memory"]


def test_what_a_controller_is_refused_is_said_while_it_is_refused() -> None:
    served = service()
    served["status"]["activeServiceStatus"]["rayClusterName"] = "fleet-1"
    message = 'pods "w" is forbidden: exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2'
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreateWorkerPod", "message": message}

    def judge(condition: dict[str, Any], name: str = "fleet-1") -> list[str]:
        cluster = {"metadata": {"name": name}, "status": {"conditions": [condition]}}
        facts = kubernetes.facts(Objects(nodes=(NODE,), services=(served,), clusters=(cluster,)), SUBJECT)
        return [one.rule for one in causes(*facts)]

    assert judge(failure) == ["quota-exceeded"]
    assert judge({**failure, "message": "no such node"}) == ["pods-refused"]
    assert judge({**failure, "status": "False"}) == []
    assert judge(failure, "fleet-0") == [], "a Ray cluster that nobody wants any more"


def refusal(kind: str, name: str, reason: str) -> dict[str, Any]:
    """What a controller records when admission refuses its pod."""
    message = "pods \"w\" is forbidden: ValidatingAdmissionPolicy 'no-pods' with binding 'no-pods' denied request: no"
    about = {"kind": kind, "name": name, "uid": f"uid-of-{name}"}
    when = {"lastTimestamp": "2026-12-01T01:00:00Z"}
    return {"type": "Warning", "reason": reason, "message": message, "involvedObject": about, **when}


def scale_up_failed() -> dict[str, Any]:
    """What cluster-autoscaler records on its status."""
    about = {"kind": "ConfigMap", "name": "cluster-autoscaler-status"}
    return {"type": "Warning", "reason": "ScaleUpFailed", "message": "no machine", "involvedObject": about}


MENDED = (
    refusal("RayCluster", "fleet-1", "FailedToCreateWorkerPod"),
    refusal("ReplicaSet", "gateway-5d4", "FailedCreate"),
    refusal("Job", "mirror-org-two-1", "FailedCreate"),
    scale_up_failed(),
)


@pytest.mark.parametrize("event", MENDED, ids=lambda one: one["involvedObject"]["kind"])
def test_an_event_of_a_mended_fault_is_not_the_cause_of_the_next_one(event: dict[str, Any]) -> None:
    """Nothing overtakes it: client-go sends 25 events of an object and drops the one that tells of success."""
    behind = copy.deepcopy(RUNNING)
    behind["metadata"]["generation"] = 2
    behind["status"]["activeServiceStatus"]["rayClusterName"] = "fleet-1"
    job = {"metadata": {"name": "mirror-org-two-1", "labels": {}}, "status": {"succeeded": 1}}
    objects = Objects(
        nodes=(NODE,), services=(behind,), clusters=({"metadata": {"name": "fleet-1"}},), jobs=(job,), events=(event,)
    )
    assert [one.rule for one in causes(*kubernetes.facts(objects, SUBJECT))] == ["operator-behind"]
    # Who may not see the objects that say it has the event alone.
    blind = dataclasses.replace(objects, hidden=frozenset({"RayCluster", "Deployment", "Job", "Pod"}), jobs=())
    assert causes(*kubernetes.facts(blind, SUBJECT))[0].rule in ("admission-denied", "scale-up-failed")


def test_a_failed_scale_up_is_the_cause_while_a_pod_waits() -> None:
    waits = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available: 2 Insufficient cpu."}
    pod = {"metadata": {"name": "p", "labels": {}}, "spec": {}, "status": {"phase": "Pending", "conditions": [waits]}}
    about = {"kind": "ConfigMap", "name": "cluster-autoscaler-status", "uid": "u"}
    failed = {**scale_up_failed(), "involvedObject": about, "lastTimestamp": "2026-12-01T01:00:00Z"}
    # Of another pool, whose last node went.
    down = {"type": "Normal", "reason": "ScaleDown", "message": "Scale-down: removing node n", "involvedObject": about}
    events = (failed, {**down, "lastTimestamp": "2026-12-01T01:01:00Z"})
    objects = Objects(nodes=(NODE,), pods=(pod,), services=(RUNNING,), events=events)
    assert [one.rule for one in causes(*kubernetes.facts(objects, SUBJECT))] == ["scale-up-failed"]


@pytest.mark.parametrize(
    ("replicas", "available", "rules"),
    [(0, None, ["scaled-to-zero"]), (2, "False", ["deployment-down"]), (2, "True", [])],
)
def test_a_deployment_without_pods_is_said(replicas: int, available: str | None, rules: list[str]) -> None:
    conditions = [{"type": "Available", "status": available}] if available else []
    gateway = {"metadata": {"name": "gateway"}, "spec": {"replicas": replicas}, "status": {"conditions": conditions}}
    facts = kubernetes.facts(Objects(nodes=(NODE,), services=(RUNNING,), deployments=(gateway,)), SUBJECT)
    assert [one.rule for one in causes(*facts)] == rules


def test_a_deployment_of_others_in_the_namespace_is_not_the_stacks() -> None:
    """`kubernetes.createNamespace: false`: a team's namespace has more than the stack."""

    class Shared(Events):
        def list(self, api_version: str, kind: str, namespace: str | None = None, selector: str = "") -> list[Manifest]:
            if (kind, namespace) != ("Deployment", SUBJECT.namespace):
                return []
            names = {"": ["theirs", "gateway"], "modelfleet.dev/stack=test": ["gateway"]}
            return [{"metadata": {"name": one}, "spec": {"replicas": 0}} for one in names[selector]]

    objects, _ = kubernetes.fetch(Shared(), SUBJECT)
    assert SUBJECT.stack.name == "test" and [one["metadata"]["name"] for one in objects.deployments] == ["gateway"]


def test_what_happens_to_mirror_jobs_is_read_in_their_namespace() -> None:
    """They are not where the replicas are, and their sentences name the namespace that a command needs."""
    about = {"kind": "Job", "name": "mirror-org-two-1"}
    message = 'pods "m" is forbidden: exceeded quota: mirror, requested: pods=1, used: pods=2, limited: pods=2'
    denied = {"type": "Warning", "reason": "FailedCreate", "message": message, "involvedObject": about}
    objects, _ = kubernetes.fetch(Events(**{SUBJECT.mirror_namespace: denied}), SUBJECT)
    assert [one["involvedObject"]["name"] for one in objects.events] == ["mirror-org-two-1"]
    objects = dataclasses.replace(objects, jobs=({"metadata": {"name": "mirror-org-two-1"}},))
    found = causes(*kubernetes.facts(objects, SUBJECT))
    (said,) = [one for cause in found for one in (cause, *cause.explains) if one.rule == "quota-exceeded"]
    assert SUBJECT.mirror_namespace in said.fix


def test_events_of_pods_that_may_not_be_listed_still_speak() -> None:
    objects = Objects(nodes=(NODE,), events=(not_triggered(),), services=(RUNNING,), hidden=frozenset({"Pod"}))
    assert [one.kind for one in kubernetes.facts(objects, SUBJECT)] == ["event"]


def test_an_old_event_of_a_healthy_cluster_is_no_finding() -> None:
    event = not_triggered()
    objects = Objects(nodes=(NODE,), events=(event,), services=(RUNNING,))
    facts = list(kubernetes.facts(objects, SUBJECT))
    assert facts == [], "its pod is gone"
    pod = {"metadata": {"name": "p", "labels": {}}, "spec": {}, "status": {"phase": "Running"}}
    objects = dataclasses.replace(objects, pods=(pod,))
    assert list(kubernetes.facts(objects, SUBJECT)) == [], "its pod has a node"


def test_a_failed_mirror_is_explained_by_what_its_log_says() -> None:
    """The seed's cases in a cluster: a wrong id shows as a Job that gave up and a model that never starts."""
    labels = {"modelfleet.dev/model": "org-two"}
    job = {
        "metadata": {"name": "mirror-org-two-1", "labels": labels},
        "status": {"conditions": [{"type": "Failed", "status": "True", "message": "BackoffLimitExceeded"}]},
    }
    states = service(org__one={"status": "RUNNING"}, org__two={"status": "DEPLOYING", "message": ""})
    facts = list(kubernetes.facts(Objects(nodes=(NODE,), jobs=(job,), services=(states,)), SUBJECT))
    log = "2026-11-29 10:00:00 WeightsError: org/two is not on the Hugging Face Hub, or is private and HF_TOKEN is not set"
    facts += logs.facts(log, "pod mirror-org-two-1-x", ("org--two",), "job-log")
    (cause,) = causes(*facts)
    assert (cause.rule, cause.models) == ("wrong-model-id", ("org--two",))
    assert [one.rule for one in cause.explains] == ["mirror-job-failed"]
    assert (cause.file, cause.line) == ("models/org--two.yaml", 10), "model_id, for the file has no hf_model_id"
    assert cause.evidence[0].time == "2026-11-29 10:00:00"


def test_the_message_of_a_deployment_that_retries_is_read() -> None:
    message = (
        "A replica failed to start with exception. Retrying 2 more time(s). Error:\n"
        "modelfleet.serving.errors.EngineError: vLLM cannot start org/one: OutOfMemoryError: CUDA out of memory. Tried"
    )
    deployment = {"VllmReplica": {"status": "UPDATING", "message": message}}
    states = service(org__one={"status": "DEPLOYING", "serveDeploymentStatuses": deployment})
    (cause, *_) = causes(*kubernetes.facts(Objects(nodes=(NODE,), services=(states,)), SUBJECT))
    assert (cause.rule, cause.models) == ("out-of-memory", ("org--one",))


def test_three_pods_without_one_image_are_one_cause() -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
    pods = tuple(
        {
            "metadata": {"name": name, "labels": {}},
            "spec": {"containers": [{"name": "main", "image": "r/absent:1"}]},
            "status": {"phase": "Pending", "containerStatuses": [{"name": "main", "state": waiting}]},
        }
        for name in ("a", "b", "c")
    )
    (cause,) = causes(*kubernetes.facts(Objects(nodes=(NODE,), pods=pods, services=(RUNNING,)), SUBJECT))
    assert (cause.rule, len(cause.explains)) == ("image-absent", 2)


def test_a_cluster_without_the_namespace_says_that_alone() -> None:
    assert [one.rule for one in causes(*kubernetes.facts(Objects(namespace=False), SUBJECT))] == ["namespace-absent"]


def test_a_cluster_that_does_not_answer_is_unread() -> None:
    def connect() -> Any:
        raise Unreachable("no Kubernetes API answers at https://127.0.0.1:1: refused")

    for reading in (kubernetes.read(SUBJECT, connect, 5), engine.read(SUBJECT, connect, 5)):
        assert "no Kubernetes API answers" in (reading.unread or "")


def test_a_log_that_became_ready_after_its_error_says_nothing() -> None:
    error = "ERROR EngineError: vLLM cannot start org/one: ValueError: x"
    ready = "INFO ready 31.4 s after the start of its process: weights 2 s"
    assert list(logs.facts(f"{error}\n{ready}", "log", ("org--one",), "log")) == []
    (first, _) = logs.facts(f"{ready}\nline\n{error}", "log", ("org--one",), "log")
    assert first.line == 3


def test_the_root_of_an_engines_failure_is_found_below_ours() -> None:
    log = (
        "(EngineCore pid=1) ERROR ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2).\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
        "ERROR 2026-11-29 10:00:00,123 vLLM cannot start org/one: see the replica's log"
    )
    told = Evidence(Layer.SERVE, "application", "application org--one", "DEPLOY_FAILED: E", models=("org--one",))
    cause = causes(told, *logs.facts(log, "worker.log", ("org--one",), "log"))[0]
    assert (cause.rule, cause.evidence[0].line) == ("heads-do-not-divide", 3)


@pytest.mark.parametrize("why", ["", "a stage on another node (its node went)"])
def test_a_replicas_last_words_are_known(why: str) -> None:
    log = f"INFO ready 31.4 s after the start of its process\nERROR {died('org/one', why)}"
    told = Evidence(Layer.SERVE, "application", "application org--one", "UNHEALTHY: E", models=("org--one",))
    assert "engine-died" in [one.rule for one in causes(told, *logs.facts(log, "worker.log", ("org--one",), "log"))]


def test_serves_details_are_read_with_their_time() -> None:
    found = {
        "applications": {
            "org--one": {"status": "RUNNING", "deployments": {"VllmReplica": {"status": "HEALTHY"}}},
            "org--two": {"status": "DEPLOY_FAILED", "message": "E", "last_deployed_time_s": 1764410400.0},
        }
    }
    (fact,) = serve.facts(found, SUBJECT)
    assert (fact.models, fact.text, fact.time) == (("org--two",), "DEPLOY_FAILED: E", "2025-11-29T10:00:00+00:00")


def test_another_program_at_the_dashboards_port_gets_no_token(tmp_path: Path) -> None:
    with listening({}) as other:
        port = other.server.server_port
        here = stack(pool(name="cpu", accelerator="CPU", maxNodes=1), target="local", local={"dashboardPort": port})
        subject = Subject(tmp_path, here, None, ())
        token = token_file(subject.folder)
        token.parent.mkdir(parents=True)
        token.write_text("secret")
        readers = readers_of(subject, lambda _: state.Exported())
        (fact,) = readers[Layer.RAY](2).evidence
        assert [one.rule for one in causes(fact)] == ["ray-port-taken"] and f"process {os.getpid()}" in fact.text
        assert "is taken" in (readers[Layer.SERVE](2).unread or "")
        assert other.seen == []


def test_a_model_that_serve_does_not_know_is_named() -> None:
    running = {"status": "RUNNING", "deployments": {}}
    (fact,) = serve.facts({"applications": {"org--one": running}}, SUBJECT)
    assert [one.rule for one in causes(fact)] == ["application-absent"]


def test_nodes_that_were_meant_to_end_are_no_facts() -> None:
    def node(state: str, why: str | None) -> dict[str, Any]:
        return {"raylet": {"state": state, "nodeManagerAddress": "10.0.0.1", "stateMessage": why}}

    idle = "Terminated due to idle (no Ray activity)"
    nodes = [node("ALIVE", None), node("DEAD", idle), node("DEAD", "Unexpected termination: x")]
    assert [one.text for one in ray.node_facts({"data": {"summary": nodes}})] == ["DEAD: Unexpected termination: x"]


def test_every_error_of_the_files_is_a_fact_with_its_line() -> None:
    at_fault = Subject(
        Path("/fleet"), STACK, None, tuple(MODELS), (Finding("models/org--one.yaml", 4, "a.b", "is wrong"),)
    )
    (fact,) = files.read(at_fault, 1).evidence
    assert (fact.models, fact.file, fact.line, fact.text) == (("org--one",), "models/org--one.yaml", 4, "a.b: is wrong")


@pytest.mark.parametrize("fault", ["hangs", "raises"])
def test_a_reader_that_fails_leaves_the_others_alone(fault: str) -> None:
    def broken(seconds: float) -> Reading:
        if fault == "raises":
            raise KeyError("x")
        time.sleep(30)
        raise AssertionError("not reached")

    began = time.monotonic()
    looked = looking.look({Layer.AWS: broken, Layer.FILES: lambda _: Reading(Layer.FILES)}, 0.5)
    assert time.monotonic() - began < 5
    assert [(one.layer, one.unread is None) for one in looked.readings] == [(Layer.FILES, True), (Layer.AWS, False)]


def deployed(*slugs: str, **changed: Any) -> dict[str, Any]:
    """A state with a RayService of these models as the files have them, but for what `changed` says."""
    assert SUBJECT.plan is not None
    configs = [one.application.as_config() for one in SUBJECT.plan.models if one.slug in slugs]
    for config in configs:
        config["args"] = {**config["args"], "model": {**config["args"]["model"], **changed}}
    inputs = {"kind": "RayService", "spec": {"serveConfigV2": json.dumps({"applications": configs})}}
    resource = {"type": "kubernetes:ray.io/v1:RayService", "urn": "urn::fleet", "inputs": inputs}
    return {"manifest": {"time": "2026-11-29T10:00:00Z"}, "resources": [{"type": "pulumi:pulumi:Stack"}, resource]}


def test_a_state_that_has_what_the_files_say_is_no_fact() -> None:
    assert list(state.state_facts(deployed("org--one", "org--two"), SUBJECT)) == []


def test_numbers_of_a_ray_service_stay_numbers() -> None:
    """YAML 1.1 reads JSON's 1e-06 as a word."""
    resources = deployed("org--one", "org--two", small=1e-06)["resources"][1:]
    assert state._deployed(resources)["org--one"]["args"]["model"]["small"] == 1e-06


def test_applications_of_this_machine_are_read_as_the_text_that_they_are() -> None:
    """`infra/local/fleet.py` writes the configuration as JSON: Pulumi's values have neither whole numbers nor null."""
    applications = json.loads(deployed("org--one", "org--two")["resources"][1]["inputs"]["spec"]["serveConfigV2"])
    (one, two) = applications["applications"]
    two["args"]["model"] = {}
    resources = [
        {
            "type": "modelfleet:local:Application",
            "urn": f"urn::{config['name']}",
            "inputs": {"config": json.dumps(config)},
        }
        for config in (one, two)
    ]
    found = list(state.state_facts({"resources": resources}, SUBJECT))
    assert [(fact.kind, fact.models) for fact in found] == [("drift", ("org--two",))]


def test_a_model_that_came_after_the_last_run_is_named_with_the_runs_time() -> None:
    (fact,) = state.state_facts(deployed("org--one"), SUBJECT)
    assert (fact.kind, fact.models, fact.time) == ("absent", ("org--two",), "2026-11-29T10:00:00Z")


def test_a_file_that_was_changed_after_the_last_run_is_named() -> None:
    found = list(state.state_facts(deployed("org--one", "org--two", scaling_config={}), SUBJECT))
    assert [(one.kind, one.models) for one in found] == [("drift", ("org--one",)), ("drift", ("org--two",))]


def test_of_deployments_only_the_adapters_are_the_models_file() -> None:
    """The surge of a model changes when another one comes, and its file was said to be changed."""

    def with_deployment(**changes: Any) -> dict[str, Any]:
        made = deployed("org--one", "org--two")
        spec = made["resources"][1]["inputs"]["spec"]
        config = json.loads(spec["serveConfigV2"])
        config["applications"][0]["deployments"][0] |= changes
        spec["serveConfigV2"] = json.dumps(config)
        return made

    other = with_deployment(max_surge_percent=99, graceful_shutdown_timeout_s=1.0)
    assert list(state.state_facts(other, SUBJECT)) == []
    (fact,) = state.state_facts(with_deployment(user_config={"lora": [{"name": "a"}]}), SUBJECT)
    assert (fact.kind, fact.models) == ("drift", ("org--one",))


def test_what_a_killed_run_left_half_done_is_named() -> None:
    urn = "urn:pulumi:prod::modelfleet::aws:eks/nodeGroup:NodeGroup::prod-l4"
    pending = {"pending_operations": [{"type": "creating", "resource": {"urn": urn}}]}
    (fact,) = state.state_facts(deployed("org--one", "org--two") | pending, SUBJECT)
    assert causes(fact)[0].sentence.startswith("the last run was killed while it was creating prod-l4")
    deployment = deployed("org--one", "org--two") | pending
    deployment["resources"].append({"type": "aws:eks/nodeGroup:NodeGroup", "urn": urn, "inputs": {}})
    assert list(state.state_facts(deployment, SUBJECT)) == [], "a later run has made it"


def test_what_a_run_at_work_has_begun_is_not_cut_off() -> None:
    pending = {"pending_operations": [{"type": "updating", "resource": {"urn": "urn:pulumi:t::f::ray::ray"}}]}
    text = json.dumps({"deployment": deployed("org--one") | pending})

    def judge(*locks: str) -> list[str]:
        return [
            one.rule for one in causes(*state.read(SUBJECT, lambda _: state.Exported(text, locks=locks), 1).evidence)
        ]

    assert judge() == ["run-cut-off", "model-not-deployed"]
    assert judge("stack test is locked by pulumi process 7 on here since now") == ["run-at-work", "model-not-deployed"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"deployment": null}'])
def test_a_state_that_cannot_be_read_never_raises(text: str) -> None:
    state.read(SUBJECT, lambda _: state.Exported(text), 1)


STAT = (
    "# pxname,svname,status,lastchg\n"
    "model.org--one,replica-20001,{one},3\nmodel.org--one,replica-20002,DOWN,9\nmodel.org--one,serve,no check,9\n"
    "model.org--one,BACKEND,UP,9\nmodel.org--two,replica-20001,DOWN,4\nmodel.org--two,replica-20002,UP,4\n"
)


def test_one_live_replica_is_enough_for_the_gateway() -> None:
    assert list(gateway.facts(STAT.format(one="UP"), SUBJECT)) == []


def test_a_model_without_a_live_replica_behind_the_gateway_is_named() -> None:
    (fact,) = gateway.facts(STAT.format(one="DOWN"), SUBJECT)
    assert (fact.kind, fact.models) == ("backend", ("org--one",)), (
        "Serve's own server has no check, so it proves nothing"
    )


def test_a_model_that_the_gateway_does_not_know_is_named() -> None:
    (fact,) = gateway.facts("# pxname,svname,status\nmodel.org--one,BACKEND,UP\n", SUBJECT)
    assert (fact.kind, fact.models) == ("route", ("org--two",))


def watched(folder: Path, **ports: int) -> Subject:
    """A local stack with a Prometheus of its own."""
    keys = {"local": ports, "observability": {"metrics": "own"}, "accountId": None}
    made = stack(pool("cpu", "CPU", maxNodes=1), target="local", region=None, **keys)
    return Subject(folder, made, None, ())


def test_a_prometheus_that_does_not_run_is_said_and_another_program_at_its_port_too(tmp_path: Path) -> None:
    with listening({}) as other:
        port = other.server.server_port
        subject = watched(tmp_path, prometheusPort=port, alertmanagerPort=free_port())
        reading = readers_of(subject, lambda _: state.Exported())[Layer.MONITOR](5)
    assert [(one.object, one.text.partition(" by ")[0]) for one in reading.evidence] == [
        ("Prometheus", f"port {port} is taken"),
        ("Alertmanager", f"nothing listens at port {subject.stack.config.local.alertmanager_port}"),
    ]
    assert other.seen == [], "it is asked nothing"
    (cause,) = causes(*reading.evidence)
    assert (cause.rule, [one.rule for one in cause.explains]) == ("monitor-port-taken", ["monitor-not-running"])
    assert f"process {os.getpid()}" in cause.sentence


def test_a_prometheus_that_hangs_is_a_fact_and_hides_nothing_of_alertmanager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "left_behind", lambda _: [psutil.Process()])
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        subject = watched(tmp_path, prometheusPort=silent.getsockname()[1], alertmanagerPort=free_port())
        looked = looking.look({Layer.MONITOR: partial(monitor.read, subject)}, 3)
    assert looked.unread == ()
    (cause,) = causes(*looked.evidence)
    assert {cause.rule, *(one.rule for one in cause.explains)} == {"monitor-does-not-serve", "monitor-not-running"}


def test_only_a_stack_that_runs_a_prometheus_is_asked_for_it() -> None:
    local = stack(pool("cpu", "CPU", maxNodes=1), target="local", region=None, accountId=None)
    for made in (local, STACK):
        subject = dataclasses.replace(SUBJECT, stack=made)
        assert Layer.MONITOR not in readers_of(subject, lambda _: state.Exported())


def test_a_prometheus_that_reads_nothing_says_why_and_one_that_has_not_looked_yet_is_fine() -> None:
    down = {"health": "down", "lastError": "connection refused"}
    (fact,) = monitor.target_facts([{"health": "down", "lastError": ""}, down])
    assert fact.text == "none of 2 targets is up: connection refused"
    (none,) = monitor.target_facts([])
    assert none.text == "none of 0 targets is up: there are none"
    for other in ("up", "unknown"):
        assert list(monitor.target_facts([down, {"health": other}])) == []


@pytest.mark.parametrize("program", ["prometheus", "alertmanager"])
def test_a_reload_that_failed_is_seen_in_the_metrics(program: str) -> None:
    text = f"# HELP x\n{program}_config_last_reload_successful {{}}\nother 0\n"
    assert monitor.REFUSED.search(text.format(0)) and not monitor.REFUSED.search(text.format(1))


CLOUD = planned(MODELS, stack(pool(instanceTypes=["g6.2xlarge"], name="l4", maxNodes=2), target="eks"))


class Scaling:
    """Auto Scaling's activities, newest first, of a group that wants `wanted` machines and has none."""

    def __init__(self, *codes: str, wanted: int = 0) -> None:
        self.codes, self.wanted = codes, wanted

    def describe_auto_scaling_groups(self, **asked: Any) -> dict[str, Any]:
        return {"AutoScalingGroups": [{"DesiredCapacity": self.wanted, "Instances": []}]}

    def describe_scaling_activities(self, **asked: Any) -> dict[str, Any]:
        began = datetime.datetime(2026, 11, 29, 10, tzinfo=datetime.UTC)
        message = "We currently do not have sufficient g6.2xlarge capacity in the Availability Zone you requested"
        return {"Activities": [{"StatusCode": c, "StatusMessage": message, "StartTime": began} for c in self.codes]}


GROUP = {
    "nodegroupName": "l4-20261129",
    "labels": {"modelfleet.dev/pool": "l4"},
    "status": "ACTIVE",
    "health": {"issues": [{"code": "AsgInstanceLaunchFailures", "message": "see activities"}]},
    "resources": {"autoScalingGroups": [{"name": "eks-l4"}]},
}


def test_a_node_group_without_machines_says_why_and_for_which_models() -> None:
    issue, activity = aws.node_group(GROUP, Scaling("Failed", "Successful", "Failed"), CLOUD)
    assert (issue.kind, activity.kind, activity.time) == ("nodegroup", "activity", "2026-11-29T10:00:00+00:00")
    assert activity.models == ("org--one", "org--two")
    (cause,) = causes(issue, activity)
    assert (cause.rule, [one.rule for one in cause.explains]) == ("no-capacity", ["node-group-at-fault"])


def test_a_node_group_belongs_to_the_pool_of_its_label_and_not_of_its_name() -> None:
    """`l4-big-b-…` begins with `l4-` too."""
    other = {**GROUP, "nodegroupName": "l4-big-b-20261129", "labels": {"modelfleet.dev/pool": "l4-big"}}
    assert [one.models for one in aws.node_group(other, Scaling("Failed"), CLOUD)] == [(), ()]


def test_a_failed_launch_counts_alone_while_its_group_still_wants_the_machine() -> None:
    healthy = {**GROUP, "health": {"issues": []}}
    (over,) = aws.node_group(healthy, Scaling("Failed"), CLOUD)
    now, before = aws.node_group(healthy, Scaling("Failed", "Failed", wanted=1), CLOUD)
    assert (over.kind, now.kind, before.kind) == ("activity", "launch", "activity")
    assert causes(over) == []
    assert [one.rule for one in causes(now)] == ["no-capacity"]


def test_a_failure_before_a_success_is_over() -> None:
    healthy = {**GROUP, "health": {"issues": []}}
    assert list(aws.node_group(healthy, Scaling("Successful", "Failed"), CLOUD)) == []


def test_what_one_question_is_refused_does_not_silence_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """moto has no Pod Identity, as an account may have no right to list it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(aws, "preflight", lambda plan, facts: [])
    monkeypatch.setattr(aws, "read_facts_with_boto3", lambda plan, session: None)
    with mock_aws():
        reading = aws.read(dataclasses.replace(SUBJECT, plan=CLOUD), 5)
    assert reading.unread is not None and "ListPodIdentityAssociations" in reading.unread
    assert [one.rule for one in causes(*reading.evidence)] == ["cluster-absent", "stack-bucket-absent"]


def test_a_caller_without_credentials_is_told_so_and_nothing_else_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    reading = aws.read(dataclasses.replace(SUBJECT, plan=CLOUD), 5)
    assert reading.evidence == () and "credentials" in (reading.unread or "")
