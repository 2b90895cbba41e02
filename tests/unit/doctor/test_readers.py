"""What each reader makes of what its layer says; the shapes are those of the real parts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from modelfleet.doctor import look as looking
from modelfleet.doctor.diagnose import Cause, diagnose
from modelfleet.doctor.evidence import Evidence, Layer, Reading
from modelfleet.doctor.readers import engine, files, kubernetes, logs, ray, serve
from modelfleet.doctor.readers.kubernetes import Objects
from modelfleet.doctor.rules import default_rules
from modelfleet.doctor.subject import Subject
from modelfleet.infra.kubernetes.api import Unreachable
from modelfleet.serving.config.errors import Finding
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


def test_an_old_warning_of_a_healthy_cluster_is_no_finding() -> None:
    event = {"type": "Warning", "reason": "NotTriggerScaleUp", "message": "1 max node group size reached"}
    objects = Objects(nodes=(NODE,), events=(event,), services=(RUNNING,))
    facts = list(kubernetes.facts(objects, SUBJECT))
    assert len(facts) == 1 and causes(*facts) == []


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


def test_serves_details_are_read_with_their_time() -> None:
    found = {
        "applications": {
            "org--one": {"status": "RUNNING", "deployments": {"VllmReplica": {"status": "HEALTHY"}}},
            "org--two": {"status": "DEPLOY_FAILED", "message": "E", "last_deployed_time_s": 1764410400.0},
        }
    }
    (fact,) = serve.facts(found, SUBJECT)
    assert (fact.models, fact.text, fact.time) == (("org--two",), "DEPLOY_FAILED: E", "2025-11-29T10:00:00+00:00")


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
