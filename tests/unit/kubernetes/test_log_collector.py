"""The collector of `observability.logs: cloudwatch`, against a kubelet's files, the nodes' taints and its role's rights.

No Fluent Bit is here: its configuration is read as text, and the files that it would read are chosen by `fnmatch`.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.aws.documents import iam_documents, site_without_account
from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.kubernetes.manifests.log_collector import fluent_bit
from modelfleet.infra.names import LOG_COLLECTOR
from modelfleet.infra.planning import Plan
from tests.cluster.fleet import five_models, planned
from tools.cloud.evaluator import allowed

ID = "0123456789abcdef" * 4


def plan_of(root: Path, **logs: Any) -> Plan:
    named = {"image": "registry.example/serving:1"}
    return planned(root, five_models(), stack="prod", target="eks", kubernetes=named, observability=logs)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_of(tmp_path_factory.mktemp("logs"), logs="cloudwatch")


def made(plan: Plan) -> dict[str, dict[str, Any]]:
    """The collector's objects by kind."""
    found = everything(plan, cluster_name="modelfleet-prod")
    return {one["kind"]: one for one in found if one["metadata"]["name"] == LOG_COLLECTOR}


def sections(plan: Plan) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for line in fluent_bit(plan, "modelfleet-prod").splitlines():
        if line.startswith("["):
            found[line.strip("[]")] = here = {}
        elif line:
            name, _, value = line.strip().partition("  ")
            here[name] = value
    return found


def test_without_it_nothing_of_it_is_in_the_cluster_or_in_aws(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, logs="json")
    assert made(plan) == {}
    assert not [name for name in iam_documents(plan, site_without_account(plan)) if LOG_COLLECTOR in name]


def test_it_reads_the_pods_of_the_stack_and_no_others(plan: Plan) -> None:
    """Every line costs, and others' may be secret. The names are the kubelet's, pkg/kubelet/kuberuntime/legacy.go."""
    patterns = sections(plan)["INPUT"]["Path"].split(",")

    def read(namespace: str, pod: str = "ray-worker-l4-x1", container: str = "ray-worker") -> bool:
        file = f"/var/log/containers/{pod}_{namespace}_{container}-{ID}.log"
        return any(fnmatchcase(file, pattern) for pattern in patterns)

    assert read(plan.namespace) and read(plan.mirror_namespace, "mirror-org-one-x", "mirror")
    others = ("kube-system", "default", f"{plan.namespace}-else", f"else-{plan.namespace}")
    assert not [one for one in others if read(one)]
    assert not read("kube-system", pod=plan.namespace), "a pod of that name"


def test_a_stream_is_named_by_namespace_pod_and_container(plan: Plan) -> None:
    given = sections(plan)["INPUT"]
    file = f"/var/log/containers/ray-worker-l4-x1.y_{plan.namespace}_ray-worker-{ID}.log"
    found = re.search(given["Tag_Regex"].replace("(?<", "(?P<"), file)
    assert found is not None
    tag = re.sub(r"<(\w+)>", lambda name: found[name[1]], given["Tag"])
    assert tag == f"{plan.namespace}.ray-worker-l4-x1.y.ray-worker"
    assert not re.search(r"[:*]", sections(plan)["OUTPUT"]["log_stream_prefix"] + tag), "CloudWatch refuses both"


def test_an_event_is_what_the_pod_wrote_and_lands_in_the_stacks_own_group(plan: Plan) -> None:
    out = sections(plan)["OUTPUT"]
    site = site_without_account(plan)
    assert out["log_group_name"] == site.pods_log_group == "/aws/eks/modelfleet-prod/pods"
    assert (out["log_key"], out["region"]) == ("log", plan.region)
    assert out["auto_create_group"] == "false", "it would have neither retention nor key, and outlive `down`"


def test_its_role_writes_that_group_and_does_nothing_else(plan: Plan) -> None:
    site = site_without_account(plan)
    documents = iam_documents(plan, site)
    (trust,) = documents[f"{LOG_COLLECTOR}-trust"]["Statement"]
    account = made(plan)["ServiceAccount"]["metadata"]
    tags = trust["Condition"]["StringEquals"]
    assert tags["aws:RequestTag/kubernetes-service-account"] == account["name"]
    assert tags["aws:RequestTag/kubernetes-namespace"] == account["namespace"]
    assert made(plan)["DaemonSet"]["spec"]["template"]["spec"]["serviceAccountName"] == account["name"]
    may = documents[f"{LOG_COLLECTOR}-access"]["Statement"]
    logs = f"arn:aws:logs:{site.region}:{site.account}:log-group:"
    stream = f"{logs}{site.pods_log_group}:log-stream:pods/{plan.namespace}.x.y"
    assert allowed(may, "logs:CreateLogStream", stream) and allowed(may, "logs:PutLogEvents", stream)
    assert not allowed(may, "logs:PutLogEvents", stream.replace("/pods:", "/cluster:")), "no false audit events"
    for action in ("CreateLogGroup", "DeleteLogGroup", "PutRetentionPolicy", "GetLogEvents", "DeleteLogStream"):
        assert not [one for one in (stream, f"{logs}{site.pods_log_group}") if allowed(may, f"logs:{action}", one)]


def test_it_is_on_every_node_of_the_stack_and_asks_for_what_the_plan_keeps(plan: Plan) -> None:
    pod = made(plan)["DaemonSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (row,) = [one for one in default_catalog().daemon_sets if one.name == LOG_COLLECTOR]
    asked = container["resources"]["requests"]
    assert (asked["cpu"], asked["memory"]) == (f"{row.cpu_millis}m", f"{row.memory_mib}Mi")
    assert plan.node_groups and pod["tolerations"] == [{"operator": "Exists", "effect": "NoSchedule"}]
    for pool in plan.node_groups:
        assert pod["nodeSelector"].items() <= {"modelfleet.dev/stack": plan.stack, **pool.labels}.items()
        assert {taint.effect for taint in pool.taints} <= {"NoSchedule"}


def test_of_the_host_it_sees_logs_alone_and_writes_only_its_own_state(plan: Plan) -> None:
    pod = made(plan)["DaemonSet"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    hosts = {one["name"]: one["hostPath"]["path"] for one in pod["volumes"] if "hostPath" in one}
    mounts = {one["name"]: one for one in container["volumeMounts"]}
    written = {hosts[name] for name in hosts if not mounts[name].get("readOnly")}
    assert set(hosts.values()) - written == {"/var/log/containers", "/var/log/pods"}
    assert [mounts[name]["mountPath"] for name in hosts] == list(hosts.values()), "links lead to the same place"
    (state,) = written
    given = sections(plan)
    assert given["INPUT"]["DB"].startswith(f"{state}/") and given["SERVICE"]["storage.path"].startswith(f"{state}/")
    security = container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]} and security["readOnlyRootFilesystem"]
    assert pod["automountServiceAccountToken"] is False


def test_what_waits_in_memory_is_far_below_the_limit(plan: Plan) -> None:
    """A chunk has 2 MB; by default 128 of them are in memory. https://docs.fluentbit.io/manual/administration/memory-management"""
    (container,) = made(plan)["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    assert 2 * int(sections(plan)["SERVICE"]["storage.max_chunks_up"]) * 2 <= int(
        container["resources"]["limits"]["memory"].removesuffix("Mi")
    )


def test_another_configuration_starts_the_pods_anew(plan: Plan, tmp_path: Path) -> None:
    other = planned(
        tmp_path,
        five_models(),
        stack="prod",
        target="eks",
        kubernetes={"image": "registry.example/serving:1", "namespace": "elsewhere"},
        observability={"logs": "cloudwatch"},
    )
    one, two = (made(each)["DaemonSet"]["spec"]["template"]["metadata"]["annotations"] for each in (plan, other))
    assert one != two
    assert made(plan)["ConfigMap"]["data"] != made(other)["ConfigMap"]["data"]
