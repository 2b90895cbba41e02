"""A local stack on a machine that is not made for it: it works, or `up` stops with one line."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from modelfleet.cli import pulumi_run
from modelfleet.cli.up import run_up
from modelfleet.infra.gateway import render
from modelfleet.infra.local import emulator, haproxy
from modelfleet.infra.local import runtime as local_runtime
from modelfleet.infra.local.ports import require_free
from modelfleet.infra.local.processes import raise_open_files
from modelfleet.infra.local.provider.ray import ray_environment
from modelfleet.infra.local.runtime import MAX_LENGTH, gateway_runtime, short_folder, straight_to_loopback
from modelfleet.infra.planning import Plan, plan
from modelfleet.infra.planning.local import LEAST_OPEN_FILES, Machine, Room
from modelfleet.infra.reading.cards import these_gpus
from modelfleet.infra.reading.machine import _weights_in, room, this_machine
from modelfleet.infra.targets import build
from modelfleet.serving.config.errors import SetupError
from modelfleet.serving.config.load import LoadedModel
from tests.unit.listener import listening
from tests.unit.planning.builders import CODE, model, pool, stack

ROOT = Path(__file__).parents[3]
STANDIN = ROOT / "tools" / "standin" / "bin" / "nvidia"
GB, GIB = 10**9, 1024**3
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
FINE = Machine(
    64 * GIB,
    open_files=LEAST_OPEN_FILES,
    rooms=(Room("what is downloaded", "/home/me/.cache", 50 * GB), Room("Ray's session", "/tmp", 50 * GB)),
    weights_room=Room("weights", "/home/me/.cache", 50 * GB),
)


def served(machine: Machine, *models: LoadedModel) -> Plan:
    pools = [pool(maxNodes=1), pool("cpu", "CPU", maxNodes=1)]
    return plan(models, stack(*pools, target="local"), code=CODE, machine=machine)


def test_a_machine_that_has_all_of_it_lacks_nothing() -> None:
    assert served(FINE, model(LLAMA, max_total_tokens=4096, engine_kwargs={"kv_cache_dtype": "fp8"})).missing == ()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"open_files": 1024}, "this shell may have 1024 files open, and serving takes 4096; raise it: ulimit -Hn"),
        (
            {"rooms": (Room("what is downloaded", "/home/me", 50 * GB, writable=False),)},
            "/home/me cannot be written, and what is downloaded goes there; set XDG_CACHE_HOME and HF_HOME",
        ),
        (
            {"rooms": (Room("Ray's session", "/tmp", 80 * 10**6),)},
            "/tmp has 80 MB free, and Ray's session goes there; free some, or set TMPDIR to another folder",
        ),
        (
            {"weights_room": Room("weights", "/home/me", 10 * GB)},
            f"the weights of {LLAMA} take 16.1 GB more, and /home/me has 10.0 GB free; free some, or set HF_HOME",
        ),
        (
            {"executable_memory": False, "selinux": True},
            "forbidden by SELinux, and torch computes with such; allow it: `setsebool deny_execmem off` as root",
        ),
        ({"executable_memory": False}, "forbidden by this shell's limits, and torch computes with such; allow it: Mem"),
        (
            {"memory_bytes": 1 * GIB},
            "GiB of memory at their fewest replicas, and this machine has 1.0 GiB; serve fewer",
        ),
        (
            {"programs": {}},
            "prometheus and alertmanager are not on PATH, and modelfleet:observability.metrics is own; install them "
            "(apt install prometheus prometheus-alertmanager), or take the key out",
        ),
        (
            {"programs": {"prometheus": "/usr/bin/prometheus"}},
            "alertmanager is not on PATH, and modelfleet:observability.metrics is own; install it "
            "(apt install prometheus-alertmanager), or take the key out",
        ),
    ],
    ids=[
        "open-files",
        "read-only",
        "full",
        "weights",
        "selinux",
        "systemd",
        "memory",
        "monitor",
        "alertmanager",
    ],
)
def test_what_a_machine_lacks_is_one_line_with_its_fix(changed: dict[str, object], said: str) -> None:
    one = model(LLAMA, max_total_tokens=4096)
    (line,) = served(replace(FINE, **changed), one).missing  # type: ignore[arg-type]
    assert said in line and len(line.splitlines()) == 1


def test_weights_that_are_here_need_no_room() -> None:
    small = replace(FINE, weights_room=Room("weights", "/home/me", 2 * GB))
    one = model(LLAMA, max_total_tokens=4096)
    assert served(replace(small, weights_here=((LLAMA, 16_060_522_496),)), one).missing == ()
    (line,) = served(replace(small, weights_here=((LLAMA, 8 * GB),)), one).missing
    assert "take 8.1 GB more" in line, "whole files stay"
    on_cpu = model("HuggingFaceTB/SmolLM2-135M-Instruct", "CPU")
    tiny = replace(FINE, weights_room=Room("weights", "/home/me", 1_100_000_000))
    assert served(tiny, on_cpu).missing == (), "its weights are in the bucket"


def test_the_machine_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seam: what is read is what the plan takes."""
    cache = tmp_path / "cache"
    blobs = cache / "hub" / "models--org--a" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "0").write_bytes(b"x" * 8192)
    monkeypatch.setenv("HF_HOME", str(cache))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "yet"))
    made = stack(pool(maxNodes=1), target="local")
    found = this_machine(made, tmp_path)
    assert found.open_files == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert {one.what: one.folder for one in found.rooms}["what is downloaded"] == str(tmp_path)
    assert found.weights_room and found.weights_room.folder == str(cache / "hub")
    assert dict(found.weights_here) == dict(_weights_in(cache / "hub")) and dict(found.weights_here)["org/a"] >= 8192
    assert all(one.writable and one.free_bytes > 0 for one in found.rooms)


def test_prometheus_is_looked_for_where_the_stack_runs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "prometheus-alertmanager"
    there.write_text("#!/bin/sh")
    there.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    cpu = pool("cpu", "CPU", maxNodes=1)
    own = stack(cpu, target="local", region=None, accountId=None, observability={"metrics": "own"})
    found = this_machine(own, tmp_path)
    assert found.programs == {"alertmanager": str(there)}
    made = plan([], own, code=CODE, machine=found)
    assert [one for one in made.stops_up if one.startswith("prometheus is not on PATH")]
    with pytest.raises(SetupError, match="prometheus is not on PATH.*apt install prometheus\\)"):
        build(tmp_path, made)
    assert not (tmp_path / ".modelfleet").exists(), "no emulator was started"
    assert this_machine(stack(cpu, target="local"), tmp_path).programs is None


@pytest.mark.parametrize(
    ("version", "secrets", "stops"),
    [
        ("0.25.0", ("alertWebhook",), True),
        ("0.27.0", ("alertWebhook",), True),
        ("0.28.0", ("alertWebhook",), False),
        ("1.0.0", ("alertWebhook",), False),
        ("0.25.0", (), False),
    ],
)
def test_an_alertmanager_that_takes_no_url_from_a_file_or_crashes_with_it_stops_up(
    version: str, secrets: tuple[str, ...], stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian 12 has 0.25."""
    for name in ("prometheus", "alertmanager"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{name}, version {version} (branch: HEAD, revision: 1)'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    keys = {"accountId": None, "observability": {"metrics": "own"}, "secrets": secrets}
    own = stack(pool("cpu", "CPU", maxNodes=1), target="local", region=None, **keys)
    made = plan(
        [],
        own,
        code=CODE,
        machine=replace(
            FINE, **{key: getattr(this_machine(own, tmp_path), key) for key in ("programs", "alertmanager")}
        ),
    )
    assert bool(made.stops_up) is stops
    if stops:
        assert f"alertmanager on PATH is {version[:4]}, and with the secret" in made.stops_up[0]
        assert "it takes 0.28" in made.stops_up[0]


def test_a_read_only_folder_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert room("x", tmp_path / "a" / "b").writable
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert not room("x", tmp_path / "a" / "b").writable


@pytest.mark.parametrize(("enforce", "on"), [("1", True), ("0", False), (None, False)])
def test_selinux_that_is_enforcing_and_forbids_nothing_stops_nobody(
    enforce: str | None, on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "enforce"
    if enforce:
        file.write_text(enforce)
    monkeypatch.setattr("modelfleet.infra.reading.machine.SELINUX", file)
    found = this_machine(stack(pool("cpu", "CPU", maxNodes=1), target="local"), tmp_path)
    assert (found.selinux, found.executable_memory) == (on, True)
    assert served(replace(FINE, selinux=found.selinux)).missing == ()


#: What SELinux and systemd do to a process, by Linux's own switch (`PR_SET_MDWE`, Linux 6.3).
FORBIDDEN = """
import ctypes
from modelfleet.infra.reading.machine import _executable_memory
if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0): print("old kernel")
else: print(_executable_memory())
"""


def test_a_shell_that_may_make_no_code_is_seen() -> None:
    asked = subprocess.run([sys.executable, "-c", FORBIDDEN], cwd=ROOT, capture_output=True, text=True, timeout=120)
    if asked.stdout == "old kernel\n":
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3), with which code at run time is forbidden")
    assert asked.stdout == "False\n", asked.stderr


def test_no_limit_of_open_files_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    assert this_machine(stack(pool("cpu", "CPU", maxNodes=1), target="local"), tmp_path).open_files is None


@pytest.mark.parametrize(
    ("limits", "raised"),
    [((1024, 4096), (4096, 4096)), ((1024, 10**6), (65536, 10**6)), ((1024, -1), (65536, -1)), ((10**5, 10**6), None)],
)
def test_a_low_limit_is_raised_as_far_as_it_may_be(
    limits: tuple[int, int], raised: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: set_to.append(to))
    raise_open_files()
    assert set_to == ([raised] if raised else [])


def test_up_stops_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    monkeypatch.setattr(pulumi_run, "command", lambda: pytest.fail("it went on"))
    with pytest.raises(SetupError, match="this shell may have 256 files open"):
        run_up("local")


def test_the_ports_of_another_checkout_are_named_with_their_key_and_their_owner() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SetupError) as stopped:
            require_free({"gcsPort": port})
    assert f"modelfleet:local.gcsPort: port {port} is taken by process {os.getpid()}" in str(stopped.value)
    assert len(str(stopped.value).splitlines()) == 1


def test_two_checkouts_share_no_folder_and_blanks_in_a_path_do_no_harm(tmp_path: Path) -> None:
    folders = [tmp_path / name / ".modelfleet" / "local" / "local" for name in ("a checkout", "another one")]
    short = [short_folder(str(one), "ray") for one in folders]
    assert short[0] != short[1] and all(" " not in str(one) and len(str(one)) <= MAX_LENGTH for one in short)


@pytest.mark.parametrize("name", ["a checkout", "a,b)", "plain"])
def test_haproxy_reads_its_files_whatever_the_checkouts_path_is(name: str, tmp_path: Path) -> None:
    """Seam: what the gateway renders, with HAProxy's own reader."""
    made = served(FINE, model("HuggingFaceTB/SmolLM2-135M-Instruct", "CPU"))
    runtime = gateway_runtime(str(tmp_path / name), 18080, 18081, 18000)
    try:
        haproxy.write(render(made.gateway, runtime, upstream="127.0.0.1:18000"), runtime, None)
        haproxy.check(runtime, haproxy.find_binary())
    finally:
        shutil.rmtree(runtime.run_folder, ignore_errors=True)


def test_a_proxy_in_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY", "https_proxy", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "intern.example")
    made = ray_environment({})
    assert made["no_proxy"] == made["NO_PROXY"] == "intern.example,localhost,127.0.0.1"
    assert made["HTTP_PROXY"] == "http://127.0.0.1:9", "the Hub may be behind it"
    assert straight_to_loopback({"HOME": "/root"}) == {}
    with listening({}) as bucket:
        assert emulator._answers(int(bucket.url().rpartition(":")[2])), "it asked the proxy"


def test_a_users_python_and_rays_settings_do_not_reach_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/home/me/other")
    monkeypatch.setenv("PYTHONHOME", "/opt/conda")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    made = ray_environment({})
    assert not [name for name in made if name.startswith("PYTHON")] and "RAY_ADDRESS" not in made
    assert made["PATH"].startswith(str(Path(sys.executable).parent)), "no other python comes first"


def test_a_python_from_conda_serves_with_its_own_programs_and_a_compiler_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As activated in a shell: another environment's Python comes first, and CC names what was removed."""
    base = tmp_path / "miniconda3"
    venv.create(own := base / "envs" / "fleet", symlinks=True)
    for prefix in (base, own):
        (prefix / "conda-meta").mkdir()
    (base / "bin").mkdir()
    (base / "bin" / "python").symlink_to("/bin/false")
    for name, value in {"CONDA_PREFIX": str(base), "CONDA_DEFAULT_ENV": "base", "CONDA_SHLVL": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{base / 'bin'}{os.pathsep}{STANDIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STANDIN_CARDS", "l4")
    monkeypatch.setattr(sys, "executable", str(own / "bin" / "python"))
    made = ray_environment({})
    assert shutil.which("python", path=made["PATH"]) == str(own / "bin" / "python")
    asked = subprocess.run(["python", "-c", "import sys; print(sys.prefix)"], env=made, capture_output=True, text=True)
    assert asked.stdout.strip() == str(own), asked.stderr
    for compiler, there in (("x86_64-conda-linux-gnu-cc", False), (shutil.which("sh"), True)):
        monkeypatch.setenv("CC", str(compiler))
        assert these_gpus("none").compiler is there


def test_the_gateway_finds_the_authorities_of_this_machine_although_its_python_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a Python that was built for another system."""
    own = tmp_path / "ca.pem"
    own.touch()
    monkeypatch.setattr(local_runtime, "AUTHORITIES", (str(tmp_path / "none"), str(own)))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: SimpleNamespace(cafile=None))
    assert gateway_runtime("/nowhere", 8080, 8081).ca_file == str(own)
    own.unlink()
    assert gateway_runtime("/nowhere", 8080, 8081).ca_file == str(tmp_path / "none")


def test_nothing_of_a_local_stack_needs_ipv6() -> None:
    made = served(FINE, model("HuggingFaceTB/SmolLM2-135M-Instruct", "CPU"))
    runtime = gateway_runtime("/nowhere", 8080, 8081, 8000)
    config = "\n".join(render(made.gateway, runtime, upstream="127.0.0.1:8000").texts.values())
    binds = [line.split()[1] for line in config.splitlines() if line.strip().startswith("bind ")]
    assert binds and all(one.startswith(("127.0.0.1:", "/", "unix@", '"', "fd@")) for one in binds), binds
