"""Logs of pods as JSON: real lines of Ray, Serve and vLLM, a Job's whole output, and the doctor, who reads both forms."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from modelfleet.doctor.readers import engine
from modelfleet.doctor.readers.logs import facts
from modelfleet.infra.kubernetes.json_log import as_text
from modelfleet.infra.kubernetes.manifests import everything
from modelfleet.infra.kubernetes.manifests.scripts import FOLDER, LOG_FORMAT
from modelfleet.infra.kubernetes.scripts.json_lines import Objects
from modelfleet.infra.kubernetes.troubles import JOB, failed_jobs
from modelfleet.infra.names import POOL_LABEL
from modelfleet.infra.planning.plan import Plan
from modelfleet.serving.config.errors import InputErrors
from tests.unit.planning.builders import model, planned, pool, stack
from tests.waiting import wait_until

#: As a live Ray 2.60, Serve and vLLM 0.32 wrote them on 2026-12-01.
REPLICA = """\
INFO 2026-12-01 01:08:51,061 test--api_vllm updss4f7 -- Started initializing replica.
ERROR 2026-12-01 01:09:04,502 test--api_vllm updss4f7 5d1f-77 -- Exception updating cluster node info cache.
Traceback (most recent call last):
  File "controller.py", line 647, in run_control_loop_step
ray.exceptions.RpcError: Timed out while waiting for "GCS".
INFO 2026-12-01 01:09:24,093 test--api_vllm updss4f7 -- Started HTTP server on port 20930
"""
WORKER = """\
:job_id:01000000
:actor_name:ServeReplica:test--api:vllm
(MainProcess pid=18163) WARNING 12-01 01:09:01 [arg_utils.py:1945] The global random seed is set to 0.
(MainProcess pid=18163) INFO 12-01 01:09:01 [model.py:733] Resolved architecture: LlamaForCausalLM
"""
RAYLET = "[2026-12-01 00:33:02,168 W 28256 28256] (raylet) main.cc:283: Setting cluster ID to: 4b95\n"
DASHBOARD = "2026-12-01 00:33:01,083\tINFO utils.py:319 -- Get all modules by type: DashboardHeadModule\n"
NOW = datetime(2026, 12, 1, 2, 0, tzinfo=UTC)


def objects(file: str, text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Objects(lambda: NOW)(file, text.splitlines())]


def test_a_replicas_lines_are_objects_and_a_traceback_is_one_message() -> None:
    first, error, last = objects("replica_test--api_vllm_updss4f7.log", REPLICA)
    at = datetime(2026, 12, 1, 1, 8, 51, 61_000).astimezone(UTC)
    assert datetime.fromisoformat(first["time"]) == at and first["time"].endswith("Z")
    assert {**first, "time": ""} == {
        "time": "",
        "level": "INFO",
        "file": "replica_test--api_vllm_updss4f7.log",
        "application": "test--api",
        "message": "Started initializing replica.",
    }
    assert (error["level"], error["request_id"], error["application"]) == ("ERROR", "5d1f-77", "test--api")
    assert error["message"].endswith('\nray.exceptions.RpcError: Timed out while waiting for "GCS".')
    assert last["message"] == "Started HTTP server on port 20930"


def test_vllms_lines_have_the_application_that_ray_names_in_the_file_and_a_year() -> None:
    made = Objects(lambda: NOW)
    lines = WORKER.splitlines()
    early = [json.loads(one) for one in made("worker-1.out", lines[:3])]
    late = [json.loads(one) for one in made("worker-1.out", lines[3:])]
    (seed,), (resolved,) = early, late
    assert (seed["level"], seed["application"], seed["time"][:4]) == ("WARNING", "test--api", "2026")
    assert resolved["application"] == "test--api" and resolved["message"] == "Resolved architecture: LlamaForCausalLM"


def test_rays_own_lines_have_time_and_level() -> None:
    (raylet,), (dashboard,) = objects("raylet.out", RAYLET), objects("dashboard.log", DASHBOARD)
    assert raylet["level"] == "WARNING" and raylet["message"].startswith("(raylet) main.cc:283: Setting")
    assert dashboard["level"] == "INFO" and "Get all modules" in dashboard["message"]
    assert {raylet["time"][-1], dashboard["time"][-1]} == {"Z"} and "application" not in raylet


@pytest.mark.parametrize("line", ['{"a": "b"}', 'quote " and \\ and \x1b[0m', "29 02", "INFO 02-30 99:99:99 [a:1] x"])
def test_any_line_is_one_line_of_json(line: str) -> None:
    (made,) = Objects(lambda: NOW)("x.log", [line])
    assert "\n" not in made and json.loads(made)["message"] in (line, "x")


class Mounted:
    """The programs as a kubelet mounts their ConfigMap: links to `..data`, itself a link that each change replaces."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._current: Path | None = None
        self.write("json")
        for one in (*FOLDER.glob("*.py"), Path(LOG_FORMAT)):
            (folder / one.name).symlink_to(f"..data/{one.name}")

    def write(self, form: str) -> None:
        """Change the form, as the kubelet does (`pkg/volume/util/atomic_writer.go`)."""
        made = self.folder / f"..{form}"
        made.mkdir()
        for one in FOLDER.glob("*.py"):
            shutil.copy(one, made)
        if form != "text":
            (made / LOG_FORMAT).write_text(f"{form}\n")
        (self.folder / "..data_tmp").symlink_to(made.name)
        (self.folder / "..data_tmp").rename(self.folder / "..data")
        if self._current is not None:
            shutil.rmtree(self._current)
        self._current = made


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    """With JSON asked for."""
    return Mounted(tmp_path / "scripts")


WRITES = """
import subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from json_lines import take_over_output
take_over_output("mirror", Path(sys.argv[1]))
print("copied 3 files")
subprocess.run([sys.executable, "-c", "import sys; print('of a child', file=sys.stderr)"])
sys.stderr.write("half a line")
if sys.argv[2] == "fails":
    raise ValueError("no bucket")
sys.exit(7)
"""


def job(mounted: Mounted, how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WRITES, str(mounted.folder), how], capture_output=True, text=True, timeout=60
    )


def test_all_that_a_job_and_its_children_write_is_objects_to_the_last_traceback(mounted: Mounted) -> None:
    failed = job(mounted, "fails")
    found = [json.loads(line) for line in failed.stdout.splitlines()]
    assert failed.returncode == 1 and failed.stderr == "" and {one["file"] for one in found} == {"mirror"}
    said = "\n".join(one["message"] for one in found)
    assert all(part in said for part in ("copied 3 files", "of a child", "half a line", "ValueError: no bucket"))
    assert job(mounted, "ends").returncode == 7


def test_a_job_of_a_stack_with_text_writes_as_ever(mounted: Mounted) -> None:
    mounted.write("text")
    failed = job(mounted, "fails")
    assert failed.stdout.strip() == "copied 3 files" and "of a child\nhalf a line" in failed.stderr


@pytest.fixture(params=[(), ("-P",)], ids=["as-ever", "safe-path"])
def following(mounted: Mounted, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """A folder that a real follower follows, and the file with what it writes."""
    logs, out = tmp_path / "logs", tmp_path / "out"
    (logs / "serve").mkdir(parents=True)
    safe: tuple[str, ...] = request.param
    with out.open("w") as stream:
        process = subprocess.Popen([sys.executable, *safe, mounted.folder / "follow_logs.py", logs], stdout=stream)
        yield logs, out
        process.terminate()
        process.wait(10)


def test_a_pod_follows_a_change_of_the_form_without_a_restart(following: tuple[Path, Path], mounted: Mounted) -> None:
    logs, out = following
    log = logs / "serve" / "replica_test--api_vllm_x.log"
    log.write_text(REPLICA)
    (logs / "raylet.out").write_text(RAYLET)
    wait_until(lambda: out.read_text().count("\n") == 4, what="four objects", seconds=20)
    files = [json.loads(line)["file"] for line in out.read_text().splitlines()]
    assert files == ["raylet.out", *[log.name] * 3]
    for form, lines in {"text": f"{log.name}: INFO plain\n", "json ": '"message": "INFO again"}\n'}.items():
        mounted.write(form)
        with (logs / "raylet.out").open("a") as more:
            more.write(RAYLET)
        with log.open("a") as more:
            more.write("INFO plain\n" if form == "text" else "INFO again\n")
        wait_until(lambda lines=lines: out.read_text().endswith(lines), what=lines, seconds=20)


def test_the_doctor_reads_the_same_cause_in_both_forms() -> None:
    text = (
        f"{REPLICA}ERROR 2026-12-01 01:09:30,000 test--api_vllm updss4f7 -- vLLM cannot start test/api: out of memory\n"
    )
    text += "Traceback (most recent call last):\ntorch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n"
    written = "\n".join(Objects(lambda: NOW)("replica_test--api_vllm_x.log", text.splitlines()))
    plain, read = ([one.text for one in facts(log, "pod w", (), "log")] for log in (text, as_text(written)))
    assert plain == read and len(plain) == 2 and plain[0].startswith("vLLM cannot start test/api")
    (timed, *_) = facts(as_text(written), "pod w", (), "log")
    assert timed.time.startswith("2026-12-0")
    mixed = 'not json {\n{"half": \n{"a": 1}'
    assert as_text(mixed) == mixed


def test_the_doctors_reader_of_pods_reads_objects() -> None:
    """What the API server answers for a worker's log, as the follower in the pod wrote it."""
    failed = "ERROR 2026-12-01 01:09:30,000 test--api_vllm x -- vLLM cannot start test/api: out of memory"
    (written,) = Objects(lambda: NOW)("replica_test--api_vllm_x.log", [failed])
    pod = {"metadata": {"name": "w", "namespace": "n", "labels": {POOL_LABEL: "l4"}}, "status": {"phase": "Running"}}
    api = Mock(**{"list.return_value": [pod], "client.request.return_value.data": f"{written}\n".encode()})
    subject: Any = Mock(
        namespaces=("n",), **{"in_pool.return_value": ("test--api",), "model_id.return_value": "test/api"}
    )
    (found,) = engine.read(subject, lambda: api, 5).evidence
    assert found.text == "vLLM cannot start test/api: out of memory" and found.time.startswith("2026-1")


def test_a_failed_jobs_last_words_are_its_message_alone() -> None:
    labels, terminated = {JOB: "mirror-x"}, {"reason": "Error", "exitCode": 1}
    last = Objects(lambda: NOW)("mirror", ["Hub: 401"])[0]
    status = {"phase": "Failed", "containerStatuses": [{"state": {"terminated": {**terminated, "message": last}}}]}
    pods = [{"metadata": {"name": "p", "labels": labels}, "status": status}]
    (said,) = failed_jobs([{"metadata": {"name": "mirror-x"}, "status": {}}], pods)
    assert "a try ended with Error, exit code 1: Hub: 401; " in said.sentence


def plan_of(target: str = "kubernetes", **keys: Any) -> Plan:
    one = pool(instanceTypes=["g6.xlarge"], sealedCaches=True)
    return planned([model("org/one")], stack(one, target=target, **keys), deploying=False)


def changed(plan: Plan, other: Plan) -> set[str]:
    """What differs: kind and name."""
    before, after = (
        {(one["kind"], one["metadata"]["name"], one["metadata"].get("namespace")): yaml.safe_dump(one) for one in made}
        for made in (everything(plan, cluster_name="c"), everything(other, cluster_name="c"))
    )
    return {f"{key[0]} {key[1]}" for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def test_the_key_changes_two_config_maps_and_nothing_else() -> None:
    plan = plan_of(observability={"logs": "json"})
    assert changed(plan_of(), plan) == {"ConfigMap ray-scripts", "ConfigMap mirror-scripts"}
    maps = [one for one in everything(plan, cluster_name="c") if one["metadata"]["name"].endswith("scripts")]
    assert [(one["data"][LOG_FORMAT], "json_lines.py" in one["data"]) for one in maps] == [("json\n", True)] * 2


def test_a_local_stack_is_told_that_its_logs_are_files() -> None:
    with pytest.raises(InputErrors, match=r"observability.*on this machine logs are files, as Ray makes them"):
        planned(
            [model("org/one", "CPU")], stack(pool(accelerator="CPU"), target="local", observability={"logs": "json"})
        )
