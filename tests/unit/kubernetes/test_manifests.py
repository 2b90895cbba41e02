"""Rules for the manifests of any stack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.kubernetes.manifests.mirror import job_name, mirror_job
from modelfleet.infra.kubernetes.manifests.ray import ray_cluster, ray_service, serve_config_text
from modelfleet.infra.kubernetes.manifests.secrets import gateway_keys, huggingface
from modelfleet.infra.kubernetes.names import dns_name
from modelfleet.infra.kubernetes.scripts import drain
from modelfleet.serving import scaling
from modelfleet.serving.config.errors import InputErrors
from tests.cluster.fleet import five_models, model, planned
from tests.examples import examples
from tests.unit.kubernetes.projects import L4
from tools.paths import ROOT

POOLS = [L4, {"name": "t4", "accelerator": "T4", "maxNodes": 1, "instanceTypes": ["g4dn.12xlarge"]}]


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod specs in a manifest, wherever they are."""
    if "containers" in manifest:
        return [manifest]
    nested = [v for v in manifest.values() if isinstance(v, dict)]
    nested += [item for v in manifest.values() if isinstance(v, list) for item in v if isinstance(item, dict)]
    return [pod for one in nested for pod in pods(one)]


def test_no_change_of_models_changes_the_ray_cluster(tmp_path: Path) -> None:
    """With another rayClusterConfig, KubeRay builds a second cluster with as many GPUs (kuberay#2274)."""
    one, two = model("org/one", "L4"), model("org/two", "T4", workers=1)
    edited = model("org/one", "L4", max_total_tokens=512, engine_kwargs={"max_num_seqs": 3})
    more = model("org/three", "L4", replicas=(0, 3))
    seen = {
        json.dumps(ray_cluster(planned(tmp_path, models, pools=POOLS)))
        for models in ([one], [one, two], [two, one], [edited, two], [edited, two, more], [more])
    }
    assert len(seen) == 1


def test_ray_asks_for_a_token(tmp_path: Path) -> None:
    """Any pod that reached a head submitted jobs to it: code with its rights."""
    assert ray_cluster(planned(tmp_path, [model("org/one", "L4")], pools=POOLS))["authOptions"] == {"mode": "token"}


def test_an_appended_pool_keeps_the_groups_before_it(tmp_path: Path) -> None:
    before = ray_cluster(planned(tmp_path, [model("org/one", "L4")], pools=POOLS[:1]))["workerGroupSpecs"]
    after = ray_cluster(planned(tmp_path, [model("org/one", "L4")], pools=POOLS))["workerGroupSpecs"]
    assert after[: len(before)] == before


def test_a_mirror_job_is_named_by_source_revision_and_target_only(tmp_path: Path) -> None:
    def name(**engine: Any) -> str:
        plan = planned(tmp_path, [model("org/one", "L4", **engine)], pools=POOLS)
        return job_name(plan, plan.models[0])

    same = name()
    assert name(max_total_tokens=9) == same, "an edit of the model would copy its weights again"
    assert len({same, name(revision="a1"), name(revision="b2"), name(hf_model_id="other/weights")}) == 4


def test_new_code_does_not_change_a_mirror_job(tmp_path: Path) -> None:
    plan = planned(tmp_path, [model("org/one", "L4")], pools=POOLS)
    assert plan.code.sha256 not in json.dumps(mirror_job(plan, plan.models[0]))


def test_a_mirror_job_has_a_node_of_its_own_on_a_new_cluster(tmp_path: Path) -> None:
    """On the system nodes it took the room of the Ray head and filled their disk."""
    plan = planned(tmp_path, [model("org/one", "L4")], pools=POOLS, target="eks")
    pod = mirror_job(plan, plan.models[0])["spec"]["template"]
    assert pod["spec"]["nodeSelector"] == {"modelfleet.dev/stack": "dev", "modelfleet.dev/pool": "mirror"}
    assert pod["spec"]["tolerations"] == [
        {"key": "modelfleet.dev/pool", "operator": "Equal", "value": "mirror", "effect": "NoSchedule"}
    ]
    assert pod["metadata"]["annotations"] == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    assert pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] == "3956m", "more than half of 7.91 CPU"


def test_a_mirror_job_on_an_existing_cluster_takes_any_untainted_node(tmp_path: Path) -> None:
    plan = planned(tmp_path, [model("org/one", "L4")], pools=POOLS)
    spec = mirror_job(plan, plan.models[0])["spec"]["template"]["spec"]
    assert "nodeSelector" not in spec and "tolerations" not in spec
    assert spec["containers"][0]["resources"]["requests"]["cpu"] == "1"


@pytest.mark.parametrize("target", ["eks", "kubernetes"])
def test_a_mirror_job_states_its_disk_and_cannot_take_more(tmp_path: Path, target: str) -> None:
    """Weights never touch the disk; what does would otherwise end in DiskPressure for the whole node."""
    plan = planned(tmp_path, [model("org/one", "L4")], pools=POOLS, target=target)
    spec = mirror_job(plan, plan.models[0])["spec"]["template"]["spec"]
    assert spec["containers"][0]["resources"]["requests"]["ephemeral-storage"] == "1Gi"
    assert [v["emptyDir"] for v in spec["volumes"] if "emptyDir" in v] == [{"sizeLimit": "1Gi"}] * 2


@pytest.mark.parametrize(("target", "preempts"), [("eks", "PreemptLowerPriority"), ("kubernetes", "Never")])
def test_head_and_gateway_come_before_workers_and_mirror_jobs(tmp_path: Path, target: str, preempts: str) -> None:
    """In a cluster that is not ours they evict nobody's pods."""
    manifests = everything(planned(tmp_path, five_models(), target=target), cluster_name="c")
    (made,) = (m for m in manifests if m["kind"] == "PriorityClass")
    assert (made["metadata"]["name"], made["value"] > 0) == ("modelfleet-dev-front", True)
    assert made["preemptionPolicy"] == preempts
    with_class = {
        pod["containers"][0]["name"]
        for manifest in manifests
        for pod in pods(manifest)
        if pod.get("priorityClassName") == "modelfleet-dev-front"
    }
    assert with_class == {"ray-head", "gateway", "kuberay-operator"}


def test_who_may_use_a_namespace_only_is_asked_for_nothing_of_the_cluster(tmp_path: Path) -> None:
    plan = planned(tmp_path, five_models(), kubernetes={"namespace": "team-llm", "createNamespace": False})
    manifests = everything(plan)
    assert not [m for m in manifests if m["kind"] == "PriorityClass" or m["kind"].startswith("Validating")]
    assert not [pod for m in manifests for pod in pods(m) if "priorityClassName" in pod]


def test_gpu_pods_never_see_the_mirrors_token(tmp_path: Path) -> None:
    plan = planned(tmp_path, five_models())
    for manifest in everything(plan):
        for pod in pods(manifest):
            text = json.dumps(pod)
            assert ('"name": "huggingface", "key"' in text) == (pod.get("serviceAccountName") == "mirror")
    assert [s["metadata"]["name"] for s in huggingface(plan, "t")] == ["huggingface"]


def test_a_model_straight_from_the_hub_brings_the_replicas_token(tmp_path: Path) -> None:
    plan = planned(tmp_path, [model("org/one", "L4")], pools=POOLS, mirror={"create": False, "bucket": "code"})
    assert [s["metadata"]["name"] for s in huggingface(plan, "t")] == ["huggingface", "replica-huggingface"]


def test_no_environment_literal_is_a_secret(tmp_path: Path) -> None:
    names = {
        entry["name"]
        for manifest in everything(planned(tmp_path, five_models(), target="eks"))
        for pod in pods(manifest)
        for container in pod["containers"]
        for entry in container.get("env", [])
        if "value" in entry
    }
    assert not {n for n in names if any(w in n for w in ("TOKEN", "SECRET", "PASSWORD", "KEY"))} - {"HF_TOKEN_PATH"}


def test_the_gateways_secret_holds_hashes(tmp_path: Path) -> None:
    plan = planned(tmp_path, five_models())
    assert gateway_keys(plan, "0a1b alice\n")["stringData"] == {"keys.map": "0a1b alice\n"}


@pytest.mark.parametrize("kind", ["Deployment", "Job", "RayService"])
def test_no_pod_of_the_namespace_is_root_or_can_become_it(tmp_path: Path, kind: str) -> None:
    plan = planned(tmp_path, five_models())
    found = [pod for m in everything(plan) if m["kind"] == kind for pod in pods(m)]
    assert found
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


#: EKS waits 15 minutes for the pods of a node that it updates, and then fails the whole update with PodEvictionFailure.
#: https://docs.aws.amazon.com/eks/latest/userguide/managed-node-update-behavior.html
EKS_WAITS_S = 900
ROOM_S = 120


def test_no_pod_of_a_drained_node_takes_longer_than_eks_waits(tmp_path: Path) -> None:
    plan = planned(tmp_path, five_models(), target="eks", gateway={"timeoutS": 7200})
    found = {(m["kind"], pod.get("serviceAccountName")): pod for m in everything(plan) for pod in pods(m)}
    assert {account for _, account in found} >= {"gateway", "ray-head", "ray-worker", "mirror"}
    for which, pod in found.items():
        grace = pod.get("terminationGracePeriodSeconds", 30)
        assert grace <= EKS_WAITS_S - ROOM_S, (which, "taints, evictions and budgets take a part of the 15 minutes")


def test_a_workers_hook_gives_up_before_the_pod_is_killed(tmp_path: Path) -> None:
    for target in ("eks", "kubernetes"):
        plan = planned(tmp_path, five_models(), target=target)
        workers = [p for m in everything(plan) for p in pods(m) if p.get("serviceAccountName") == "ray-worker"]
        assert len(workers) == 5
        for pod in workers:
            env = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
            hook = int(env.get("MODELFLEET_DRAIN_SECONDS") or drain.DEADLINE_SECONDS)
            assert hook <= pod["terminationGracePeriodSeconds"] - 60, "Ray could not stop what is left"
            assert hook >= 480, "a long answer needs minutes"


def test_elsewhere_a_gateway_keeps_its_longest_stream(tmp_path: Path) -> None:
    plan = planned(tmp_path, five_models(), gateway={"timeoutS": 7200})
    (gateway,) = [p for m in everything(plan) for p in pods(m) if p.get("serviceAccountName") == "gateway"]
    assert gateway["terminationGracePeriodSeconds"] > 7200


def test_every_container_states_its_resources(tmp_path: Path) -> None:
    for manifest in everything(planned(tmp_path, five_models(), target="eks"), cluster_name="c"):
        for pod in pods(manifest):
            for container in pod["containers"]:
                wanted = {"cpu", "memory", "ephemeral-storage"}
                assert wanted <= set(container["resources"]["requests"]), container["name"]
                assert "memory" in container["resources"]["limits"], container["name"]


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.dictionaries(
        st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=6)
    )
)
def test_a_serve_config_survives_a_yaml_reader(config: dict[str, Any]) -> None:
    try:
        json.dumps(config, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return  # a YAML file never gives lone surrogates
    assert yaml.load(serve_config_text(config), Loader=yaml.SafeLoader) == config


def test_a_slug_becomes_a_name_that_kubernetes_accepts() -> None:
    assert dns_name("meta-llama--Llama-2_7b.chat") == "meta-llama-llama-2-7b-chat"
    assert dns_name("---") == "x"
    assert len(dns_name("a" * 90)) == 40


def test_an_existing_operator_is_the_only_one_and_alone_reaches_the_dashboard(tmp_path: Path) -> None:
    plan = planned(tmp_path, five_models(), kubernetes={"operatorNamespace": "kuberay-system"})
    manifests = everything(plan)
    assert not [m["kind"] for m in manifests if m["metadata"]["name"] == "kuberay-operator"]
    (ray,) = (m for m in manifests if m["kind"] == "NetworkPolicy" and m["metadata"]["name"] == "ray")
    (rule,) = (r for r in ray["spec"]["ingress"] if {"port": 8265} in r.get("ports", []))
    assert rule["from"] == [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}},
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
        }
    ]


def test_an_operators_namespace_is_refused_for_a_new_cluster(tmp_path: Path) -> None:
    with pytest.raises(InputErrors, match="operatorNamespace: is for an existing cluster"):
        planned(tmp_path, five_models(), target="eks", kubernetes={"operatorNamespace": "kuberay-system"})


def test_a_namespace_that_exists_is_not_among_the_objects(tmp_path: Path) -> None:
    plan = planned(tmp_path, five_models(), kubernetes={"namespace": "team-llm", "createNamespace": False})
    objects = everything(plan)
    assert "Namespace" not in {one["kind"] for one in objects}
    assert {one["metadata"]["namespace"] for one in objects} == {"team-llm"}
    with pytest.raises(InputErrors, match="createNamespace: found false, which is for an existing cluster"):
        planned(tmp_path, five_models(), target="eks", kubernetes={"createNamespace": False})


def test_open_streams_outlive_a_reload_of_serves_own_proxies(tmp_path: Path) -> None:
    """Serve's default ends them two minutes after any model or replica comes or goes."""

    def settings(timeout_s: int) -> dict[str, str]:
        cluster = ray_cluster(planned(tmp_path, five_models(), gateway={"timeoutS": timeout_s}))
        (container,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
        return {e["name"]: e["value"] for e in container["env"] if e["name"].startswith("RAY_SERVE_HAPROXY")}

    names = ("RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S")
    assert settings(7200) == dict.fromkeys(names, "7200")
    assert settings(600) == settings(1800) == dict.fromkeys(names, "3600"), (
        "a shorter limit would rebuild the Ray cluster"
    )


@pytest.mark.parametrize(("rollout", "kind"), [("surge", "NewCluster"), ("replace", "None")])
def test_rollout_becomes_kuberays_upgrade_type(tmp_path: Path, rollout: str, kind: str) -> None:
    plan = planned(tmp_path, five_models(), kubernetes={"rollout": rollout})
    assert ray_service(plan)["spec"]["upgradeStrategy"] == {"type": kind}


def _module(folders: list[Path]) -> str:
    """Where a Python with these folders on its path, and without our packages, finds the scaling policy."""
    say = "import modelfleet.serving.scaling as policy; print(policy.__file__, policy.ScalingPolicy.__name__)"
    env = {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run(
        [sys.executable, "-S", "-c", say], cwd=folders[0], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.split()[0]


def test_the_head_alone_has_the_policy_and_an_applications_own_code_comes_first(tmp_path: Path) -> None:
    """Ray puts an application's code before what the pod's PYTHONPATH has; it must do so in any order."""
    plan = planned(tmp_path / "project", five_models())
    (texts,) = (one["data"] for one in everything(plan) if one["metadata"]["name"] == "ray-scripts")
    config = ray_cluster(plan)
    head = config["headGroupSpec"]["template"]["spec"]
    (volume,) = (one["configMap"] for one in head["volumes"] if one["name"] == "policy")
    (mount,) = (one for one in head["containers"][0]["volumeMounts"] if one["name"] == "policy")
    assert {"name": "PYTHONPATH", "value": mount["mountPath"]} in head["containers"][0]["env"]
    assert "policy" not in json.dumps(config["workerGroupSpecs"])
    for item in volume["items"]:
        file = tmp_path / "policy" / item["path"]
        file.parent.mkdir(parents=True)
        file.write_text(texts[item["key"]])
    assert _module([tmp_path / "policy"]) == str(file)
    assert _module([tmp_path / "policy", ROOT]).startswith(str(ROOT))


def test_a_new_policy_builds_no_other_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path, five_models())
    before = everything(plan)
    other = tmp_path / "scaling.py"
    other.write_text("another = True")
    monkeypatch.setattr(scaling, "__file__", str(other))
    changed = [one["metadata"]["name"] for one, was in zip(everything(plan), before, strict=True) if one != was]
    assert changed == ["ray-scripts"]
