"""What is said of pods that do not start; statuses and events as a kubelet 1.36 writes them."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.cli import cluster_watch
from modelfleet.infra.kubernetes.troubles import Trouble, failed_jobs, failed_models, still_to_do, troubles, wanted_pods
from tests.unit.planning.builders import model, planned, pool, stack

Manifest = dict[str, Any]
PLAN = planned([model()], stack(pool(instanceTypes=["g6.2xlarge"]), target="kubernetes"))
PULL = 'Back-off pulling image "registry.example/absent:1": ErrImagePull: not found'


def pod(name: str = "fleet-head", *, phase: str = "Pending", **status: Any) -> Manifest:
    """A pod with one container."""
    spec = {"containers": [{"name": "main", "image": "registry.example/absent:1"}]}
    return {"metadata": {"name": name}, "spec": spec, "status": {"phase": phase, **status}}


def waiting(reason: str, message: str = "", **more: Any) -> Manifest:
    """A pod whose container waits."""
    state = {"waiting": {"reason": reason, "message": message}}
    return pod(containerStatuses=[{"name": "main", "state": state, **more}])


def only(found: list[Trouble]) -> Trouble:
    (trouble,) = found
    return trouble


def test_a_pod_that_starts_as_it_should_is_no_trouble() -> None:
    scheduled = {"type": "PodScheduled", "status": "True"}
    assert troubles([pod(conditions=[scheduled]), waiting("ContainerCreating"), waiting("PodInitializing")]) == []


def test_an_absent_image_is_final_and_named() -> None:
    trouble = only(troubles([waiting("ImagePullBackOff", PULL)]))
    assert trouble.final
    assert trouble.sentence == (
        "pod fleet-head, container main: ImagePullBackOff (image registry.example/absent:1): "
        f"{PULL}; push the image where the nodes can pull it, or name another"
    )


def test_an_init_container_counts_too() -> None:
    made = waiting("ErrImagePull")
    made["status"]["initContainerStatuses"] = made["status"].pop("containerStatuses")
    made["spec"]["initContainers"] = made["spec"].pop("containers")
    assert only(troubles([made])).final


def test_a_key_that_a_secret_lacks_is_final() -> None:
    trouble = only(troubles([waiting("CreateContainerConfigError", "couldn't find key token in Secret a/b")]))
    assert trouble.final
    assert "couldn't find key token in Secret a/b; make what its message names" in trouble.sentence


def test_what_ends_again_and_again_is_said_with_its_reason_and_may_recover() -> None:
    last = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    trouble = only(troubles([waiting("CrashLoopBackOff", restartCount=4, lastState=last)]))
    assert not trouble.final
    assert "ended 4 times, last with OOMKilled, exit code 137; `kubectl logs --previous fleet-head" in trouble.sentence


def test_what_ends_again_and_again_is_said_with_the_last_line_of_its_log() -> None:
    said = "Traceback (most recent call last):\n  File …\nbotocore.exceptions.ClientError: Access Denied\n"
    last = {"terminated": {"reason": "Error", "exitCode": 1, "message": said}}
    trouble = only(troubles([waiting("CrashLoopBackOff", restartCount=2, lastState=last)]))
    assert "exit code 1: botocore.exceptions.ClientError: Access Denied; `kubectl logs" in trouble.sentence


def test_a_pod_without_a_node_may_get_one() -> None:
    said = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    trouble = only(troubles([pod(conditions=[{"type": "PodScheduled", "status": "False", "message": said}])]))
    assert (trouble.sentence, trouble.final) == (f"pod fleet-head waits for a node: {said.rstrip('.')}", False)


def test_an_evicted_pod_says_what_its_node_ran_out_of() -> None:
    message = "The node was low on resource: ephemeral-storage. "
    trouble = only(troubles([pod(phase="Failed", reason="Evicted", message=message)]))
    assert trouble.sentence == "pod fleet-head was evicted: The node was low on resource: ephemeral-storage"


@pytest.mark.parametrize(("phase", "count"), [("Pending", 1), ("Running", 0)])
def test_a_missing_secret_that_is_mounted_is_only_in_the_events(phase: str, count: int) -> None:
    message = 'MountVolume.SetUp failed for volume "keys" : secret "gateway-keys" not found'
    events = [{"reason": "FailedMount", "message": message, "involvedObject": {"name": "fleet-head"}}] * 2
    found = troubles([pod(phase=phase)], [*events, {"reason": "Pulled", "involvedObject": {"name": "fleet-head"}}])
    assert [(one.sentence, one.final) for one in found] == [
        (f"pod fleet-head waits for a volume: {message}", True)
    ] * count


def test_a_copy_of_weights_that_is_not_tried_again_is_final() -> None:
    jobs = [
        {
            "metadata": {"name": name, "namespace": "copies"},
            "status": {"conditions": [{"type": kind, "status": "True", "message": "limit."}]},
        }
        for name, kind in (("mirror-a", "Failed"), ("mirror-b", "Complete"))
    ]
    (trouble,) = failed_jobs(jobs)
    assert trouble.final and trouble.sentence.startswith(
        "Job mirror-a failed: limit; `kubectl -n copies logs job/mirror-a`"
    )
    (trouble,) = failed_jobs(jobs, [tried("mirror-a"), tried("mirror-b")])
    assert trouble.sentence.startswith(
        "Job mirror-a failed: limit; a try ended with Error, exit code 1: Access Denied;"
    )


def test_a_copy_of_weights_that_is_tried_again_is_said_with_what_the_last_try_wrote() -> None:
    jobs: list[Manifest] = [
        {"metadata": {"name": name, "namespace": "copies"}, "status": {}} for name in ("mirror-a", "mirror-b")
    ]
    (trouble,) = failed_jobs(jobs, [tried("mirror-a"), pod("mirror-b-x", phase="Running")])
    assert not trouble.final
    assert trouble.sentence == (
        "Job mirror-a is tried again: a try ended with Error, exit code 1: Access Denied; "
        "`kubectl -n copies logs job/mirror-a` has its log"
    )


def tried(job: str) -> Manifest:
    """A pod of a Job that has failed."""
    ended = {"terminated": {"reason": "Error", "exitCode": 1, "message": "Traceback\nAccess Denied\n"}}
    made = pod(f"{job}-x", phase="Failed", containerStatuses=[{"name": "main", "state": ended}])
    made["metadata"]["labels"] = {"batch.kubernetes.io/job-name": job}
    return made


def test_a_model_that_serve_gave_up_is_final_with_the_last_line_of_its_trace() -> None:
    """A run once waited in silence for 90 minutes, with this in the RayService's status."""
    states = {
        "a": {"status": "DEPLOY_FAILED", "message": "Traceback:\n  line\nOSError: no such bucket\n"},
        "b": {"status": "DEPLOYING", "message": "soon"},
    }
    service = {"status": {"pendingServiceStatus": {"applicationStatuses": states}, "activeServiceStatus": {}}}
    assert failed_models([service, {}]) == [Trouble("a", "model a cannot start: OSError: no such bucket", True)]


def test_a_pod_of_a_ray_cluster_that_nobody_wants_any_more_says_nothing() -> None:
    """After a bad image was taken back, its Ray cluster stays until KubeRay's deletion delay is over."""
    old, new, gateway = pod("old"), pod("new"), pod("gateway")
    old["metadata"]["labels"], new["metadata"]["labels"] = {"ray.io/cluster": "fleet-a"}, {"ray.io/cluster": "fleet-b"}
    service = {"status": {"activeServiceStatus": {}, "pendingServiceStatus": {"rayClusterName": "fleet-b"}}}
    assert wanted_pods([old, new, gateway], [service]) == [new, gateway]


def test_a_placeholder_that_waits_for_a_node_is_no_trouble() -> None:
    """A worker runs meanwhile on a later rung, and EC2 may have no machine for days."""
    waiting = pod("return-l4-abcde")
    waiting["metadata"]["labels"] = {"modelfleet.dev/placeholder": "l4"}
    assert wanted_pods([waiting, pod("gateway-1")], []) == [pod("gateway-1")]


READY = {"Ready": "True", "UpgradeInProgress": "False"}


def service(*, seen: int = 2, conditions: dict[str, str] = READY, **applications: str) -> Manifest:
    """A RayService after its second change."""
    listed = [{"type": key, "status": value, "message": f"about {key}."} for key, value in conditions.items()]
    active = {"applicationStatuses": {name: {"status": status} for name, status in applications.items()}}
    status = {"observedGeneration": seen, "conditions": listed, "activeServiceStatus": active}
    return {"metadata": {"generation": 2}, "status": status}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "there is no RayService"),
        (service(seen=1, a="RUNNING"), "the operator has not seen the change yet"),
        (service(conditions=READY | {"Ready": "False"}), "the RayService is not ready: about Ready"),
        (
            service(conditions=READY | {"UpgradeInProgress": "True"}, a="RUNNING"),
            "a new Ray cluster starts beside the old",
        ),
        (service(b="DEPLOYING", a="UNHEALTHY", c="RUNNING"), "not running yet: a, b"),
        (service(a="RUNNING"), None),
    ],
)
def test_a_change_is_done_when_the_models_run_as_the_files_say(found: Manifest | None, said: str | None) -> None:
    """`up` on a live stack once ended at once, with a new image that no node could pull."""
    assert (still_to_do(found) or "").startswith(said) if said else still_to_do(found) is None


class Clock:
    """Time that a test moves, and pods that it changes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.pods, self.said = 0.0, [waiting("ImagePullBackOff", PULL)], list[str]()
        monkeypatch.setattr(cluster_watch.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(cluster_watch.Api, "from_kubeconfig", lambda *_: self)
        monkeypatch.setattr(cluster_watch.output, "say", lambda text, *_: self.said.append(text))

    def list(self, _version: str, kind: str, _namespace: str) -> list[Manifest]:
        """As `Api.list`."""
        return self.pods if kind == "Pod" else []

    def close(self) -> None:
        """As `Api.close`."""


def test_a_run_ends_when_what_time_does_not_mend_has_lasted_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watch = cluster_watch.ClusterWatch(PLAN)
    results = []
    for now, reason in ((0, "ErrImagePull"), (30, "ImagePullBackOff"), (60, "ErrImagePull"), (89, "ImagePullBackOff")):
        clock.now, clock.pods = now, [waiting(reason, PULL)]
        results.append(watch())
    clock.now = 90
    results.append(watch())
    assert results[:4] == [None] * 4
    assert "ImagePullBackOff" in (results[4] or "")
    assert len(clock.said) == 2, "each sentence once, when it had lasted"


def test_an_image_that_arrives_in_time_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watch = cluster_watch.ClusterWatch(PLAN)
    watch()
    clock.now, clock.pods = 60, []
    watch()
    clock.now, clock.pods = 120, [waiting("ImagePullBackOff", PULL)]
    assert watch() is None
