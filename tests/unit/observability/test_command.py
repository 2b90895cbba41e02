"""`modelfleet observability`: files that a Prometheus takes as they are."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from modelfleet.cli.observability import run_observability
from modelfleet.serving.config.errors import InputErrors
from tests.cluster.fleet import model, write_project
from tests.unit.kubernetes.projects import L4

CPU_POOL = {"name": "cpu", "accelerator": "CPU", "maxNodes": 1}
SLO = {"ttft_p95_ms": 800, "availability": 0.999}


def project(root: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    chosen = model("org/chat", "CPU" if target == "local" else "L4")
    chosen.setdefault("deployment_config", {})["slo"] = SLO
    pools = [CPU_POOL] if target == "local" else [L4]
    write_project(root, [chosen], target=target, pools=pools)
    monkeypatch.chdir(root)


def test_a_local_stack_gets_a_configuration_that_the_real_promtool_takes(
    promtool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, monkeypatch, "local")
    assert run_observability("dev", out=Path("watch")) == 0
    said = capsys.readouterr()
    assert "prometheus --config.file=watch/prometheus.yml" in said.err
    assert "modelfleet doctor org/chat --stack dev" in said.out
    done = subprocess.run([promtool, "check", "config", "watch/prometheus.yml"], capture_output=True, text=True)
    assert done.returncode == 0 and "rules found" in done.stdout + done.stderr, done
    read = yaml.safe_load(Path("watch/prometheus.yml").read_text())
    found = {job["static_configs"][0]["targets"][0] + job["metrics_path"] for job in read["scrape_configs"]}
    assert found == {"127.0.0.1:8004/metrics", "127.0.0.1:8003/metrics", "127.0.0.1:8003/metrics/keys"}
    assert "namespace" not in Path("watch/rules.yaml").read_text()


def test_a_cluster_gets_rules_and_dashboards_and_json_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(tmp_path, monkeypatch, "kubernetes")
    assert run_observability("dev", out=Path("watch"), as_json=True) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {Path(one) for one in listed["files"]} == {one for one in Path("watch").rglob("*") if one.is_file()}
    assert {one["severity"] for one in listed["alerts"]} == {"page", "ticket"}
    needs = {one["alert"]: one["needs"] for one in listed["alerts"]}
    assert needs["ModelfleetMirrorLate"] == "kube-state-metrics" and needs["ModelfleetRayUnseen"] == ""
    assert not Path("watch/prometheus.yml").exists()


def test_a_folder_with_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, monkeypatch, "local")
    Path("watch").mkdir()
    Path("watch/mine").write_text("")
    with pytest.raises(InputErrors, match="not an empty folder"):
        run_observability("dev", out=Path("watch"))
    assert [one.name for one in Path("watch").iterdir()] == ["mine"]


def test_a_place_that_cannot_be_written_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, monkeypatch, "local")
    Path("file").write_text("")
    with pytest.raises(InputErrors, match="file/below: .*cannot be written: Not a directory"):
        run_observability("dev", out=Path("file/below"))


def test_a_local_stack_is_told_that_it_has_no_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, monkeypatch, "local")
    stack = Path("stacks/Pulumi.dev.yaml")
    stack.write_text(stack.read_text() + "  modelfleet:observability: {metrics: prometheus}\n")
    with pytest.raises(InputErrors, match="modelfleet observability --stack dev --out DIR"):
        run_observability("dev", out=Path("watch"))
