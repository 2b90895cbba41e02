"""Sealed compile caches on moto's S3: what a warm-up Job writes, and what a replica takes of it or refuses."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelfleet.serving import warm_up as command
from modelfleet.serving.app import AppArgs
from modelfleet.serving.errors import EngineError, MirrorError
from modelfleet.serving.replica import VllmReplica
from modelfleet.serving.seal import Machine, cache_environment, seal_root, take, this_machine, write
from modelfleet.serving.seal.copy import is_sealed
from modelfleet.serving.seal.manifest import MANIFEST
from modelfleet.serving.startup import StartupClock
from tests.unit.serving.test_engine_args import CPU, model

KEY = "0123456789abcdef"
PREFIX = f"seals/org--model/{KEY}"
URI = f"s3://fleet/{PREFIX}"
HERE = Machine(
    card="NVIDIA L4",
    architecture="x86_64",
    features=["avx2", "fma"],
    python="3.12.11",
    packages={"torch": "2.13.0", "triton": "3.7.0", "vllm": "0.32.0"},
)
COMPILED = {
    "torch_compile_cache/torch_aot_compile/abc/rank_0_0/model": b"pickle",
    "triton/xyz/kernel.cubin": b"\x00machine code",
    "flashinfer/.cache/flashinfer/empty.json": b"",
}


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """What vLLM leaves below its cache's root, and what is not to be sealed."""
    root = tmp_path / "job" / KEY
    for name, body in {
        **COMPILED,
        "triton/xyz/kernel.lock": b"",
        "gpu_p2p_access_cache_for_0,1.json": b"of one machine",
        "assets/video.mp4": b"of one request",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    (root / "triton" / "link").symlink_to("/etc/passwd")
    os.link(root / "triton/xyz/kernel.cubin", root / "triton/xyz/same.cubin")
    return root


def written(root: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {"key": KEY, "model_id": "org/model", "machine": HERE}
    return write(root, URI, **(options | changes))


def content(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def taken(tmp_path: Path, machine: Machine = HERE) -> tuple[bool, str]:
    """Whether a replica has the seal, and what it said; a refused one must leave nothing where vLLM looks."""
    root, said = tmp_path / "node" / KEY, list[str]()
    found = take(URI, root, machine, said.append)
    assert root.is_dir() == found
    assert [one.name for one in root.parent.iterdir() if one != root] == [f"{KEY}.lock"], "something else is left"
    return found, " ".join(said)


def test_a_replica_gets_the_jobs_compiled_files_and_only_these(s3: Any, compiled: Path, tmp_path: Path) -> None:
    os.utime(compiled / "triton/xyz/kernel.cubin", (1_700_000_000, 1_700_000_000))
    manifest = written(compiled)
    assert is_sealed(URI) and is_sealed(URI, HERE)
    found, said = taken(tmp_path)
    root = tmp_path / "node" / KEY
    assert found and "4 files" in said
    assert content(root) == {**COMPILED, "triton/xyz/same.cubin": COMPILED["triton/xyz/kernel.cubin"]}
    assert (root / "triton/xyz/kernel.cubin").stat().st_mtime == 1_700_000_000, "ninja goes by times"
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    stored = s3.get_object(Bucket="fleet", Key=f"{PREFIX}/{manifest.archive}")["Body"].read()
    assert hashlib.sha256(stored).hexdigest() == manifest.sha256


def test_the_second_replica_on_a_node_does_not_read_the_bucket_again(s3: Any, compiled: Path, tmp_path: Path) -> None:
    written(compiled)
    assert taken(tmp_path)[0]
    s3.delete_object(Bucket="fleet", Key=f"{PREFIX}/{MANIFEST}")
    (tmp_path / "node" / KEY / "triton" / "own").write_text("this replica's")
    found, said = taken(tmp_path)
    assert found and "already" in said
    assert (tmp_path / "node" / KEY / "triton" / "own").is_file()


def test_a_missing_seal_costs_time_only(s3: Any, tmp_path: Path) -> None:
    assert not is_sealed(URI)
    found, said = taken(tmp_path)
    assert not found and "has none yet" in said and "vLLM compiles" in said


def flipped(s3: Any) -> None:
    key = next(one["Key"] for one in s3.list_objects_v2(Bucket="fleet")["Contents"] if one["Key"].endswith(".tar"))
    body = bytearray(s3.get_object(Bucket="fleet", Key=key)["Body"].read())
    body[600] ^= 1
    s3.put_object(Bucket="fleet", Key=key, Body=bytes(body))


def shortened(s3: Any) -> None:
    key = next(one["Key"] for one in s3.list_objects_v2(Bucket="fleet")["Contents"] if one["Key"].endswith(".tar"))
    body = s3.get_object(Bucket="fleet", Key=key)["Body"].read()
    s3.put_object(Bucket="fleet", Key=key, Body=body[:-512])


def without_archive(s3: Any) -> None:
    key = next(one["Key"] for one in s3.list_objects_v2(Bucket="fleet")["Contents"] if one["Key"].endswith(".tar"))
    s3.delete_object(Bucket="fleet", Key=key)


def without_manifest(s3: Any) -> None:
    s3.delete_object(Bucket="fleet", Key=f"{PREFIX}/{MANIFEST}")


def half_manifest(s3: Any) -> None:
    body = s3.get_object(Bucket="fleet", Key=f"{PREFIX}/{MANIFEST}")["Body"].read()
    s3.put_object(Bucket="fleet", Key=f"{PREFIX}/{MANIFEST}", Body=body[: len(body) // 2])


def another_models(s3: Any) -> None:
    edited(s3, key="fedcba9876543210")


def of_another_schema(s3: Any) -> None:
    edited(s3, schema=2)


def edited(s3: Any, **changes: Any) -> None:
    key = f"{PREFIX}/{MANIFEST}"
    data = json.loads(s3.get_object(Bucket="fleet", Key=key)["Body"].read())
    s3.put_object(Bucket="fleet", Key=key, Body=json.dumps(data | changes).encode())


@pytest.mark.parametrize(
    ("damage", "says", "whole"),
    [
        (flipped, "other bytes", True),
        (shortened, "other bytes", False),
        (without_archive, "lacks its archive", False),
        (without_manifest, "has none yet", False),
        (half_manifest, "not valid", False),
        (another_models, "another model, image or card", False),
        (of_another_schema, "not valid", False),
    ],
)
def test_a_damaged_or_half_written_seal_is_refused_and_reported(
    s3: Any, compiled: Path, tmp_path: Path, damage: Callable[[Any], None], says: str, whole: bool
) -> None:
    written(compiled)
    damage(s3)
    found, said = taken(tmp_path)
    assert not found and says in said and "vLLM compiles" in said
    assert is_sealed(URI) is whole, "a Job that runs again has to see that"
    written(compiled)
    assert (damage is flipped) or taken(tmp_path)[0], "the next Job's seal is good again"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"card": "NVIDIA A10G"}, "card is 'NVIDIA L4', here it is 'NVIDIA A10G'"),
        ({"architecture": "aarch64"}, "architecture"),
        ({"python": "3.12.12"}, "python"),
        ({"packages": {**HERE.packages, "torch": "2.14.0"}}, "torch is 2.13.0, here it is 2.14.0"),
        ({"packages": {"torch": "2.13.0", "vllm": "0.32.0"}}, "triton is 3.7.0, here it is None"),
        ({"features": ["avx2"]}, "processor can fma, which this one cannot"),
        ({"features": []}, "does not say"),
    ],
)
def test_a_seal_of_another_machine_is_not_taken(
    s3: Any, compiled: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    written(compiled)
    here = HERE.model_copy(update=change)
    found, said = taken(tmp_path, here)
    assert not found and says in said
    assert is_sealed(URI) and not is_sealed(URI, here), "a Job on that machine makes its own"


def test_a_processor_that_can_more_takes_the_seal(s3: Any, compiled: Path, tmp_path: Path) -> None:
    written(compiled)
    assert taken(tmp_path, HERE.model_copy(update={"features": ["avx2", "avx512f", "fma"]}))[0]


def hostile(s3: Any, *entries: tarfile.TarInfo) -> None:
    """A seal by somebody who may write the bucket: its SHA-256 is right."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for entry in entries:
            tar.addfile(entry, io.BytesIO(b"x" * entry.size))
    body = archive.getvalue()
    digest = hashlib.sha256(body).hexdigest()
    s3.put_object(Bucket="fleet", Key=f"{PREFIX}/{digest}.tar", Body=body)
    manifest = {"schema": 1, "key": KEY, "model_id": "org/model", "machine": HERE.model_dump()}
    manifest |= {"sha256": digest, "size": len(body), "files": len(entries)}
    s3.put_object(Bucket="fleet", Key=f"{PREFIX}/{MANIFEST}", Body=json.dumps(manifest).encode())


def named(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, size
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        named("../escaped"),
        named("triton/../../../escaped"),
        named("/tmp/escaped"),
        named("elsewhere/file"),
        named("triton/link", tarfile.SYMTYPE, "/etc/passwd"),
        named("triton/hard", tarfile.LNKTYPE, "triton/file"),
        named("triton/pipe", tarfile.FIFOTYPE),
        named("triton", tarfile.DIRTYPE),
    ],
    ids=lambda entry: entry.name,
)
def test_an_archive_with_anything_but_files_of_the_caches_is_refused(
    s3: Any, tmp_path: Path, entry: tarfile.TarInfo
) -> None:
    hostile(s3, named("triton/file", size=3), entry)
    found, _ = taken(tmp_path)
    assert not found
    assert not list(tmp_path.rglob("escaped")) and not Path("/tmp/escaped").exists()


def test_an_archive_with_more_files_than_its_manifest_says_is_refused(s3: Any, tmp_path: Path) -> None:
    hostile(s3, named("triton/one"), named("triton/two"))
    edited(s3, files=1)
    assert not taken(tmp_path)[0]


def test_a_job_that_is_killed_between_archive_and_manifest_leaves_no_seal(
    s3: Any, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = s3.put_object

    def dies(**request: Any) -> Any:
        if request["Key"].endswith(MANIFEST):
            raise KeyboardInterrupt
        return put(**request)

    monkeypatch.setattr(s3, "put_object", dies)
    with pytest.raises(KeyboardInterrupt):
        written(compiled, s3=s3)
    assert not is_sealed(URI)
    assert not taken(tmp_path)[0]


def test_nothing_compiled_is_no_seal(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(MirrorError, match="which is no seal"):
        written(tmp_path)
    assert "Contents" not in s3.list_objects_v2(Bucket="fleet")


def test_a_bucket_that_refuses_costs_time_only(s3: Any, compiled: Path, tmp_path: Path) -> None:
    written(compiled)
    said: list[str] = []
    assert not take("s3://other-bucket/seals/org--model/" + KEY, tmp_path / "n" / KEY, HERE, said.append)
    assert "NoSuchBucket" in said[0] and "vLLM compiles" in said[0]


def test_this_machine_says_what_its_processor_can_do(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nflags\t\t: sse avx sse\n\nprocessor : 1\nflags\t\t: sse avx\n")
    assert this_machine(gpus=False, cpuinfo=cpuinfo).features == ["avx", "sse"]
    assert this_machine(gpus=False).card == "CPU"
    assert this_machine(gpus=True, ask=lambda: "NVIDIA L4").card == "NVIDIA L4"


def application(seal: str | None = URI) -> AppArgs:
    """A model on the CPU, whose weights need no mirror here."""
    one = model(num_gpus_per_worker=0, resources_per_worker=CPU)
    return AppArgs.model_validate({"model": one.model_dump(mode="json"), "weights": {"seal": seal}})


def test_the_job_seals_what_was_compiled_in_the_replicas_own_folder(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seam: the Job's program, the bucket, and the replica's copy, with the machine that both see."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "vllm"))
    here = this_machine(gpus=False)
    if not here.features:
        here = here.model_copy(update={"features": ["any"]})

    def compiles(args: AppArgs) -> None:
        (seal_root(URI) / "triton").mkdir(parents=True)
        (seal_root(URI) / "triton" / "kernel").write_text(args.model.model_id)

    command.seal(application(), URI, here, compiles)
    assert is_sealed(URI, here)
    with pytest.raises(EngineError, match="empty disk"):
        command.seal(application(), URI, here, compiles)
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "node"))
    assert take(URI, seal_root(URI), here)
    assert content(tmp_path / "node" / KEY) == {"triton/kernel": application().model.model_id.encode()}


def test_a_job_that_runs_again_does_nothing(
    s3: Any, compiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written(compiled, machine=this_machine(gpus=False).model_copy(update={"features": ["any"]}))
    monkeypatch.setenv("ARGS", application().model_dump_json())
    monkeypatch.setattr(
        command, "this_machine", lambda gpus: this_machine(gpus=gpus).model_copy(update={"features": ["any"]})
    )
    monkeypatch.setattr(command, "warm", lambda args: pytest.fail("it starts the engine again"))
    assert command.main([]) == 0
    assert "is whole" in capsys.readouterr().err
    assert command.main(["status", URI]) == 0
    assert command.main(["status", URI + "0"]) == 1


def test_whether_a_seal_is_whole_is_said_where_there_is_no_ray() -> None:
    """An operator's environment has none, and it was a traceback."""
    script = (
        "import sys; sys.modules['ray'] = None; from modelfleet.serving.warm_up import main\n"
        f"sys.exit(main(['status', {URI!r}]))"
    )
    nobody = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": "/nowhere",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run([sys.executable, "-c", script], env=nobody, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "no AWS credentials" in done.stderr, done.stderr


@pytest.mark.parametrize("text", ["", "{}", "[", '{"model": 1}', "without"])
def test_a_job_without_its_arguments_says_so(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ARGS", application(None).model_dump_json() if text == "without" else text)
    assert command.main([]) == 1
    assert "weights.seal" in capsys.readouterr().err


def test_a_replica_puts_every_cache_into_its_seals_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before vLLM and Triton are imported: Triton takes another folder with a warm cache than with a cold one."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    for name in cache_environment(tmp_path).keys() - {"VLLM_CACHE_ROOT"}:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    placed(URI)
    assert {name: os.environ[name] for name in cache_environment(tmp_path)} == cache_environment(tmp_path / KEY)


def test_without_a_seal_the_caches_stay_below_the_nodes_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "/chosen/by/the/file")
    for name in ("FLASHINFER_WORKSPACE_BASE", "CUDA_CACHE_PATH"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    placed(None)
    assert os.environ["VLLM_CACHE_ROOT"] == str(tmp_path)
    assert os.environ["TRITON_CACHE_DIR"] == "/chosen/by/the/file"
    assert os.environ["CUDA_CACHE_PATH"] == str(tmp_path / "cuda")


def placed(seal: str | None) -> VllmReplica:
    replica = VllmReplica.__new__(VllmReplica)
    replica._weights, replica._seal_root = {"seal": seal}, None
    replica._place_caches()
    return replica


def test_a_replica_copies_the_seal_to_where_vllm_looks_before_vllm_is_imported(
    s3: Any, compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asked for the folder twice, the second time below the first, and no replica used a seal."""
    written(compiled)
    for name, value in cache_environment(tmp_path / "node").items():
        monkeypatch.setenv(name, value)
    found: list[dict[str, bytes]] = []

    def import_engine() -> Any:
        found.append(content(Path(os.environ["VLLM_CACHE_ROOT"])))
        raise ImportError("enough")

    monkeypatch.setattr("modelfleet.serving.replica.check_versions", lambda **_: None)
    monkeypatch.setattr("modelfleet.serving.replica.this_machine", lambda gpus: HERE)
    monkeypatch.setattr("modelfleet.serving.replica.resolve", lambda *_: "/weights")
    monkeypatch.setattr("modelfleet.serving.replica._import_engine", import_engine)
    replica = placed(URI)
    replica._model, replica._cards, replica._clock = model(), [], StartupClock()
    with pytest.raises(EngineError, match="enough"):
        asyncio.run(replica.start_engine())
    assert COMPILED.items() <= found[0].items()
    assert [one.name for one in (tmp_path / "node").iterdir() if one.is_dir()] == [KEY]


def test_a_replica_whose_card_nobody_names_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def silent(gpus: bool) -> Machine:
        raise EngineError("NVML does not say which card this node has")

    monkeypatch.setattr("modelfleet.serving.replica.this_machine", silent)
    replica = VllmReplica.__new__(VllmReplica)
    replica._model = model()
    with caplog.at_level("INFO", "ray.serve"):
        replica._take_seal(URI, tmp_path / KEY)
    assert "vLLM compiles" in caplog.text
