"""Warm-up Jobs: what they run, where, with which rights, and that they leave a node to whoever needs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.kubernetes.manifests.pods import WEIGHTS_PATH
from modelfleet.infra.kubernetes.manifests.ray import ray_cluster
from modelfleet.infra.kubernetes.manifests.scripts import FOLDER
from modelfleet.infra.planning.plan import Plan
from modelfleet.serving.app import AppArgs
from modelfleet.serving.seal import seal_root
from tests.unit.planning.builders import model, planned, pool, stack

MODELS = [model("org/one"), model("org/eager", engine_kwargs={"enforce_eager": True})]


def plan_of(*, sealed: bool = True, target: str = "kubernetes", **keys: Any) -> Plan:
    return planned(
        MODELS, stack(pool(instanceTypes=["g6.xlarge"], sealedCaches=sealed), target=target, **keys), deploying=False
    )


def found(plan: Plan, kind: str, name: str = "warm-up") -> list[dict[str, Any]]:
    made = everything(plan, cluster_name="c")
    return [one for one in made if one["kind"] == kind and name in one["metadata"]["name"]]


def job_of(plan: Plan) -> dict[str, Any]:
    (job,) = found(plan, "Job")
    return job


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


@pytest.mark.parametrize("target", ["kubernetes", "eks"])
def test_without_sealed_caches_no_manifest_names_them(target: str) -> None:
    text = json.dumps(everything(plan_of(sealed=False, target=target), cluster_name="c"))
    assert "warm-up" not in text and "seal" not in text


def test_a_job_of_a_pool_that_falls_back_compiles_on_the_pools_own_card() -> None:
    """A seal of the fallback's card would be foreign to all replicas of the pool's own."""
    fallback = [{"accelerator": "A10G", "instanceTypes": ["g5.xlarge"]}]
    both = pool(instanceTypes=["g6.xlarge"], sealedCaches=True, fallback=fallback)
    selector = job_of(planned(MODELS, stack(both), deploying=False))["spec"]["template"]["spec"]["nodeSelector"]
    assert selector["k8s.amazonaws.com/accelerator"] == "l4"
    assert (
        "k8s.amazonaws.com/accelerator" not in job_of(plan_of(target="eks"))["spec"]["template"]["spec"]["nodeSelector"]
    )


def test_a_job_starts_what_a_replica_starts_on_a_whole_node_of_the_pool() -> None:
    plan = plan_of()
    pod = job_of(plan)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    worker = ray_cluster(plan)["workerGroupSpecs"][0]["template"]["spec"]
    (ray,) = worker["containers"]
    for key in ("image", "resources", "securityContext"):
        assert container[key] == ray[key], key
    assert (pod["nodeSelector"], pod["tolerations"]) == (worker["nodeSelector"], worker["tolerations"])
    own, theirs = variables(container), variables(ray)
    args = AppArgs.model_validate_json(own["ARGS"])
    (one,) = [each for each in plan.models if each.model_id == "org/one"]
    assert args.weights.seal == one.application.args["weights"]["seal"]
    assert seal_root(args.weights.seal or "", own) == seal_root(args.weights.seal or "", theirs), (
        "files name their path"
    )
    shared = own.keys() & theirs.keys() - {"MODELFLEET_MIRROR_WAIT_S"}
    assert {name: own[name] for name in shared} == {name: theirs[name] for name in shared}
    compile_names = {name for name in theirs if name.startswith(("VLLM_", "CUDA_", "TRITON_", "RAY_EXPERIMENTAL"))}
    assert compile_names <= own.keys(), "vLLM hashes its environment"
    assert [m["mountPath"] for m in container["volumeMounts"]][:2] == ["/dev/shm", WEIGHTS_PATH]


def test_a_job_leaves_its_node_to_the_first_worker_and_that_is_no_failure() -> None:
    plan = plan_of(target="eks")
    job = job_of(plan)
    (rank,) = found(plan, "PriorityClass")
    assert rank["value"] == -10 and rank["preemptionPolicy"] == "Never"
    assert job["spec"]["template"]["spec"]["priorityClassName"] == rank["metadata"]["name"]
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["action"] == "Ignore" and rule["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never", "which a podFailurePolicy needs"
    assert job["spec"]["activeDeadlineSeconds"] == 4 * 3600, "a node that never comes is given up"


def test_a_job_is_where_the_ray_head_makes_no_pods() -> None:
    """The head may make pods with any account of its namespace, and a seal is code that every replica runs."""
    plan = plan_of(target="eks")
    job = job_of(plan)
    assert job["metadata"]["namespace"] == plan.mirror_namespace != plan.namespace
    (account,) = found(plan, "ServiceAccount")
    assert account["metadata"]["namespace"] == plan.mirror_namespace
    assert job["spec"]["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert not job["spec"]["template"]["spec"]["automountServiceAccountToken"]
    (policy,) = found(plan, "NetworkPolicy")
    assert policy["metadata"]["namespace"] == plan.mirror_namespace and policy["spec"]["ingress"] == []
    secrets = [one for one in job["spec"]["template"]["spec"]["containers"][0]["env"] if "secretKeyRef" in str(one)]
    assert not secrets, "it reads the bucket only, and has no token of the Hub"


def test_the_jobs_of_a_pool_take_one_node_at_a_time() -> None:
    (quota,) = found(plan_of(target="eks"), "ResourceQuota", "mirror")
    assert quota["spec"]["hard"] == {"requests.nvidia.com/gpu": "1"}
    (quota,) = found(plan_of(target="eks", sealed=False), "ResourceQuota", "mirror")
    assert quota["spec"]["hard"] == {"requests.nvidia.com/gpu": "0"}


def test_who_may_use_one_namespace_only_gets_no_class_and_the_same_jobs() -> None:
    plan = plan_of(kubernetes={"image": "r/s:1", "namespace": "team", "createNamespace": False})
    job = job_of(plan)
    assert job["metadata"]["namespace"] == "team" and not found(plan, "PriorityClass")
    assert "priorityClassName" not in job["spec"]["template"]["spec"]
    (programs,) = found(plan, "ConfigMap", "ray-scripts")
    assert "seal_job.py" in programs["data"]


def test_the_ray_cluster_does_not_know_of_seals() -> None:
    """Any change there builds a second cluster with as many GPUs."""
    assert ray_cluster(plan_of()) == ray_cluster(plan_of(sealed=False))


def test_an_edit_of_the_arguments_is_another_job_and_one_of_a_prompt_is_not() -> None:
    def name(**engine: Any) -> str:
        plan = planned([model("org/one", **engine)], stack(pool(sealedCaches=True)))
        return str(job_of(plan)["metadata"]["name"])

    same = name()
    assert name(generation={"generate_kwargs": {"temperature": 0.2}}) == same
    assert name(engine_kwargs={"max_num_seqs": 3}) != same


def test_the_mounted_program_loads_the_code_and_runs_the_sealing_command(tmp_path: Path) -> None:
    """Both scripts as the ConfigMap mounts them, with Python alone and a stand-in for the bucket's zip."""
    (plan,) = [plan_of()]
    (programs,) = found(plan, "ConfigMap", "mirror-scripts")
    for name, text in programs["data"].items():
        (tmp_path / name).write_text(text)
    assert programs["data"]["seal_job.py"] == (FOLDER / "seal_job.py").read_text()
    package = tmp_path / "code" / "modelfleet" / "serving"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "warm_up.py").write_text(
        "import os\ndef main(words):\n    print(words, os.environ['PYTHONPATH'])\n    return 7\n"
    )
    (tmp_path / "boto3.py").write_text("raise SystemExit('the stand-in has no bucket')\n")
    patch = "import sys, mirror_job; mirror_job.load_code = lambda uri: sys.path.insert(0, str(mirror_job.SCRATCH / 'code'))"
    run = f"{patch}\nimport runpy\nrunpy.run_path(sys.argv[1], run_name='__main__')"
    ran = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{run}",
            str(tmp_path / "seal_job.py"),
        ],
        env={"PATH": "/usr/bin", "SCRATCH": str(tmp_path), "CODE": "s3://bucket/code.zip"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 7, ran.stderr
    assert ran.stdout.split() == ["[]", str(tmp_path / "code")]
