"""Mirror Jobs away from the replicas: what is in their namespace, and what a stack has that may make none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.aws.documents import pod_access, site_without_account
from modelfleet.infra.kubernetes.manifests.everything import everything, with_secrets
from modelfleet.infra.kubernetes.mirrors import _resource_name
from modelfleet.infra.planning import Plan
from tests.cluster.fleet import five_models, planned

THEIRS: dict[str, Any] = {"namespace": "team", "createNamespace": False}


def objects(plan: Plan, kind: str) -> set[tuple[str, str]]:
    """Namespace and name of each."""
    found = with_secrets(plan, secrets=("huggingFaceToken",))
    return {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in found if one["kind"] == kind}


def of_jobs(manifest: Any) -> set[str]:
    """Names of what a Job's pod asks of its namespace, wherever they are in its manifest."""
    if isinstance(manifest, list):
        return {name for one in manifest for name in of_jobs(one)}
    if not isinstance(manifest, dict):
        return set()
    own = {str(manifest[key]["name"]) for key in ("configMap", "configMapKeyRef", "secretKeyRef") if key in manifest}
    return own | {name for one in manifest.values() for name in of_jobs(one)}


def test_only_it_has_the_writing_account_and_the_hubs_token(tmp_path: Path) -> None:
    """Whoever makes pods in a namespace can use each account and Secret in it."""
    plan = planned(tmp_path, five_models())
    mirrors = "modelfleet-dev-mirror"
    assert {name for space, name in objects(plan, "ServiceAccount") if space == mirrors} == {"mirror"}
    assert (plan.namespace, "mirror") not in objects(plan, "ServiceAccount")
    assert objects(plan, "Secret") == {(mirrors, "huggingface")}
    assert {space for space, _ in objects(plan, "Job")} == {mirrors}
    assert not [one for one in everything(plan) if one["kind"] in ("Role", "RoleBinding") and "-mirror" in str(one)]


def test_everything_that_a_job_needs_is_where_it_runs(tmp_path: Path) -> None:
    for name, kubernetes in {"own": {}, "theirs": THEIRS, "second": {**THEIRS, "mirrorNamespace": "copies"}}.items():
        plan = planned(tmp_path / name, five_models(), kubernetes=kubernetes)
        (job, *_) = (one for one in everything(plan) if one["kind"] == "Job")
        where = job["metadata"]["namespace"]
        there = {name for kind in ("ConfigMap", "Secret") for space, name in objects(plan, kind) if space == where}
        assert of_jobs(job) <= there, name
        (mount,) = (v["configMap"]["name"] for v in job["spec"]["template"]["spec"]["volumes"] if "configMap" in v)
        (scripts,) = (
            one
            for one in everything(plan)
            if one["kind"] == "ConfigMap" and (one["metadata"]["namespace"], one["metadata"]["name"]) == (where, mount)
        )
        assert "mirror_job.py" in scripts["data"]


def test_its_pods_are_restricted_and_have_no_gpu(tmp_path: Path) -> None:
    """No limit of their number: it could block a run that takes models away, whose old Jobs end last."""
    plan = planned(tmp_path, five_models())
    spaces = {one["metadata"]["name"]: one for one in everything(plan) if one["kind"] == "Namespace"}
    labels = spaces["modelfleet-dev-mirror"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    quotas = {one["metadata"]["namespace"]: one for one in everything(plan) if one["kind"] == "ResourceQuota"}
    assert quotas["modelfleet-dev-mirror"]["spec"]["hard"] == {"requests.nvidia.com/gpu": "0"}


def test_on_eks_the_role_that_writes_belongs_to_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, five_models(), target="eks")
    where = {access.service_account: access.namespace for access in pod_access(site_without_account(plan), plan)}
    assert where["mirror"] == "modelfleet-dev-mirror"
    assert where["ray-worker"] == where["ray-head"] == "modelfleet-dev"


def test_a_stack_that_makes_no_namespaces_is_as_it_was(tmp_path: Path) -> None:
    plan = planned(tmp_path, five_models(), kubernetes=THEIRS)
    assert {one["metadata"].get("namespace") for one in everything(plan)} == {"team"}
    assert "Namespace" not in {one["kind"] for one in everything(plan)}


def test_a_job_that_moves_is_another_resource(tmp_path: Path) -> None:
    """Its spec is written once. As the same resource it would keep the old one, with ConfigMaps of the old namespace."""
    own, theirs = planned(tmp_path / "a", five_models()), planned(tmp_path / "b", five_models(), kubernetes=THEIRS)
    names = []
    for plan in (own, theirs):
        job = next(one for one in everything(plan) if one["kind"] == "Job")
        names.append((_resource_name(plan, job), job["metadata"]["name"]))
    assert names[0][0] == f"modelfleet-dev-mirror-{names[0][1]}"
    assert names[1][0] == names[1][1], "live Jobs of a stack without it keep theirs"


@pytest.mark.parametrize("change", [{}, {"mirrorNamespace": "copies"}], ids=["own", "named"])
def test_it_is_no_part_of_the_ray_cluster(tmp_path: Path, change: dict[str, Any]) -> None:
    """A stack that moves its Jobs keeps its replicas."""
    plans = [planned(tmp_path / str(i), five_models(), kubernetes=k) for i, k in enumerate(({}, change))]
    services = [next(one for one in everything(plan) if one["kind"] == "RayService") for plan in plans]
    assert services[0] == services[1]
    assert "-mirror" not in str(services[0]["spec"]["rayClusterConfig"])
