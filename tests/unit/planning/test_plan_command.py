"""`modelfleet plan` as users see it: tables, JSON, a page, a diff, pinned types."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from modelfleet.cli.plan import run_plan
from modelfleet.cli.plan_json import plan_json
from modelfleet.cli.plan_table import plan_table
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.serving.config.errors import InputErrors

MODEL = """\
deployment_config:
  autoscaling_config: {{min_replicas: 1, max_replicas: {most}}}
  ray_actor_options: {{num_cpus: 1, resources: {{"accelerator_type:L4": 0.001}}}}
engine_config:
  model_id: {id}
  max_total_tokens: 4096
scaling_config:
  num_workers: 1
  num_cpus_per_worker: 1
  resources_per_worker: {{"accelerator_type:L4": 0.001}}
"""
STACK = """\
# The team's stack.
config:
  aws:region: us-east-1
  modelfleet:target: eks
  modelfleet:accountId: "111122223333"
  modelfleet:auth: none
  modelfleet:models: ["*"]
  modelfleet:pools:   # append only
    - {name: l4, accelerator: L4, maxNodes: 4}   # spot is cheaper
    # the large ones
    - name: a100
      accelerator: A100-40G
      maxNodes: 1
  modelfleet:cluster: {publicAccessCidrs: [203.0.113.0/24]}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with one model that the catalog knows; the Hub cannot be reached."""
    (tmp_path / "models").mkdir()
    (tmp_path / "stacks").mkdir()
    (tmp_path / "stacks" / "Pulumi.dev.yaml").write_text(STACK)
    write_model(tmp_path, "meta-llama/Llama-2-7b-chat-hf", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def write_model(root: Path, model_id: str, most: int) -> None:
    path = root / "models" / f"{model_id.replace('/', '--')}.yaml"
    path.write_text(MODEL.format(id=model_id, most=most))


def test_the_tables_line_up_and_end_with_the_next_step(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_plan("dev") == 0
    printed = capsys.readouterr()
    lines = [line.rstrip() for line in printed.out.splitlines() if line.strip()]
    assert lines[1:5] == [
        " pool   node                                               purchase    nodes   limit   USD/h node"
        "   USD/h min   USD/h max",
        lines[2],
        " l4     g6.xlarge (1 × L4, 3.58 CPU, 13 GiB)               on-demand     1–2       4         0.80"
        "        0.80        1.61",
        " a100   p4d.24xlarge (8 × A100-40G, 95.35 CPU, 1057 GiB)   on-demand       0       1        21.96"
        "        0.00        0.00",
    ]
    assert " total                                 1.36        2.17" in lines
    assert "Copying weights: 13 GB, about 11 min on m7i.2xlarge, 0.07 USD on top" in lines
    assert printed.err.splitlines()[-1] == "1 model on 2 pools, at most 2.17 USD/h. Next: pulumi up -s dev"


@pytest.mark.parametrize(
    ("width", "left_out"), [(160, ""), (110, "left out: sequences"), (80, "left out: sequences, KV cache, per node")]
)
def test_a_narrow_terminal_gets_fewer_columns_and_whole_numbers(project: Path, width: int, left_out: str) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(plan_table(make_plan(project, "dev")))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert max(map(len, lines)) <= width
    row, length, speed, start, gap = [line for line in lines if line.startswith(" meta-llama/Llama-2-7b-c")]
    assert length.split()[1:] == ["4,096", "(file)", "checkpoint"]
    assert any("together" in line for line in lines) and start.split()[-1].isdigit()
    assert "tokens/s" in "".join(lines) and "estimate" in speed and "no gap" in gap
    assert "12.6 of 21.9 GiB" in row and "1–2" in row and row.endswith("1.61")
    assert sum(line.endswith("USD/h max") for line in lines) == 3
    assert left_out in "\n".join(lines) if left_out else "left out" not in "\n".join(lines)


def test_a_ladder_is_shown_rung_by_rung_with_fit_and_price(project: Path) -> None:
    path = project / "stacks" / "Pulumi.dev.yaml"
    text = path.read_text()
    other = "fallback: [{accelerator: A10G, instanceTypes: [g5.xlarge]}]"
    keys = f"instanceTypes: [g6.xlarge, g6.2xlarge], purchase: [spot, on-demand], {other}"
    path.write_text(text.replace("maxNodes: 4}", f"maxNodes: 4, {keys}}}"))
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(plan_table(make_plan(project, "dev")))
    lines = [" ".join(line.split()) for line in console.export_text().splitlines() if line.strip()]
    start = lines.index("Capacity ladders: the next rung is tried where EC2 has no machines")
    assert lines[start + 1] == "pool rung card purchase types, in order zones fits USD/h node USD/h max"
    assert lines[start + 3 : start + 6] == [
        "l4 1 L4 spot g6.xlarge, g6.2xlarge all 1 × meta-llama/Llama-2-7b-chat-hf (3 sequences) 0.98 1.96",
        "l4 2 L4 on-demand g6.xlarge, g6.2xlarge all 1 × meta-llama/Llama-2-7b-chat-hf (3 sequences) 0.98 1.96",
        "l4 3 A10G on-demand g5.xlarge all 1 × meta-llama/Llama-2-7b-chat-hf (3 sequences) 1.01 2.01",
    ]
    assert [line for line in lines if line.startswith("on A10G")], "memory and speed there have lines of their own"
    assert plan_json(make_plan(project, "dev"))["pools"][0]["rungs"][0]["purchase"] == "spot"


def test_json_has_the_rows_and_the_input_of_the_renderers(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_plan("dev", as_json=True) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["pools"][0]["instance_types"] == ["g6.xlarge"]
    assert plan["cost"]["max_usd_per_hour"] == pytest.approx(2 * 0.8048 + 0.55594)
    assert plan["models"][0]["memory"]["full_length_sequences"] == 3
    assert plan["serve_config"]["applications"][0]["route_prefix"] == "/meta-llama--Llama-2-7b-chat-hf"


def test_pin_writes_the_types_and_keeps_every_comment(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_plan("dev", pin=True)
    assert (project / "stacks" / "Pulumi.dev.yaml").read_text() == STACK.replace(
        "maxNodes: 4}   #", "maxNodes: 4, instanceTypes: [g6.xlarge]} #"
    ).replace("      maxNodes: 1\n", "      maxNodes: 1\n      instanceTypes: [p4d.24xlarge]\n")
    capsys.readouterr()
    run_plan("dev", pin=True)
    assert "every pool already names its instance types" in capsys.readouterr().err


def test_a_pinned_pool_is_not_changed_by_a_later_model(project: Path) -> None:
    """Without the pin the second model would move the pool to g6.12xlarge."""
    run_plan("dev", pin=True)
    write_model(project, "org/wide", 1)
    path = project / "models" / "org--wide.yaml"
    path.write_text(path.read_text().replace("num_workers: 1", "num_workers: 4"))
    with pytest.raises(InputErrors) as caught:
        make_plan(project, "dev")
    assert "append a pool with instanceTypes: [g6.12xlarge]" in str(caught.value)


def git(root: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def history(project: Path) -> Path:
    """The project in git with later changes: a new model, an edited one, and a pool that now uses spot."""
    git(project, "init", "-q", "-b", "main")
    git(project, "add", "models", "stacks")
    git(project, "commit", "-q", "-m", "first")
    write_model(project, "meta-llama/Llama-2-7b-chat-hf", 3)
    write_model(project, "org/new", 1)
    return project


def test_diff_shows_what_a_branch_changes_and_costs(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_plan("dev", diff="main") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Stack dev since main: at most 2.17 → 3.78 USD/h (+1.61)"
    assert lines[1] == "  ~ pool l4: nodes 1–2 → 2–4; USD/h 0.80–1.61 → 1.61–3.22"
    assert lines[2].startswith("  ~ model meta-llama/Llama-2-7b-chat-hf: replicas 1–2 → 1–3; USD/h 0.80–1.61 → ")
    assert "deployment_config.autoscaling_config.max_replicas 2 → 3" in lines[2]
    assert lines[3] == "  + model org/new: pool l4, replicas 1, USD/h 0.80–0.80"
    assert len(lines) == 4, "the Ray cluster stays as it is"


def test_diff_warns_when_the_ray_cluster_would_be_rebuilt(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = history / "stacks" / "Pulumi.dev.yaml"
    path.write_text(path.read_text().replace("maxNodes: 4}", "maxNodes: 4, instanceTypes: [g6.2xlarge]}"))
    run_plan("dev", diff="main")
    assert (
        "! the Ray cluster changes (worker groups l4; pools appended at the end change none): KubeRay builds a second Ray cluster; the live one"
        in capsys.readouterr().out
    )


def test_diff_as_markdown_cannot_be_broken_out_of(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = history / "models" / "org--new.yaml"
    path.write_text(path.read_text() + "enabled: true\n")
    git(history, "add", "models")
    git(history, "commit", "-q", "-m", "second")
    hostile = "a | b <img src=x>"
    path.write_text(path.read_text().replace("engine_config:", f"engine_config:\n  model_description: '{hostile}'"))
    run_plan("dev", diff="HEAD", markdown=True)
    out = capsys.readouterr().out
    assert out.startswith("### `dev`: at most 3.78 → 3.78 USD/h (+0.00)\n\n| | | | change |\n|---|---|---|---|\n")
    assert "a \\| b &lt;img src=x>" in out


def test_diff_against_nothing_shows_all_as_new(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For a stack that the revision does not have."""
    (history / "stacks" / "Pulumi.new.yaml").write_text(STACK)
    run_plan("new", diff="main")
    out = capsys.readouterr().out
    assert "+ pool l4: instance types g6.xlarge" in out
    assert "! main has no plan of stack new: stacks/Pulumi.new.yaml: no such stack; stacks/ has dev" in out


@pytest.mark.parametrize("revision", ["nonsense", "--output=x"])
def test_a_revision_that_git_does_not_know_is_the_users_fault(history: Path, revision: str) -> None:
    with pytest.raises(InputErrors):
        run_plan("dev", diff=revision)


def test_forms_of_output_exclude_each_other(project: Path) -> None:
    with pytest.raises(InputErrors) as caught:
        run_plan("dev", as_json=True, html=project / "x.html")
    assert str(caught.value) == "--html: cannot be combined with --json; choose one form of output"
    with pytest.raises(InputErrors):
        run_plan("dev", markdown=True)


def test_preflight_of_a_local_stack_is_refused(project: Path) -> None:
    path = project / "stacks" / "Pulumi.dev.yaml"
    path.write_text(
        path.read_text()
        .replace("target: eks", "target: kubernetes")
        .replace("L4, max", "L4, node: {cpus: 8, memoryGib: 32, gpus: 1}, max")
        .replace("      maxNodes: 1\n", "      maxNodes: 1\n      instanceTypes: [p4d.24xlarge]\n")
    )
    with pytest.raises(InputErrors) as caught:
        run_plan("dev", preflight=True)
    assert "asks AWS, but stack dev has target kubernetes; leave it out" in str(caught.value)


def test_a_page_that_cannot_be_written_is_reported(project: Path) -> None:
    with pytest.raises(InputErrors) as caught:
        run_plan("dev", html=project / "no" / "such" / "folder.html")
    assert "cannot be written" in str(caught.value)


def test_check_refuses_a_model_that_does_not_fit(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is made and without a stack: with the model's line and the three cheapest fixes."""
    from modelfleet.cli.check import run_check

    write_model(project, "meta-llama/Llama-2-13b-chat-hf", 1)
    assert run_check([Path("models")], stack=None, as_json=False, fix=False) == 1
    printed = capsys.readouterr().out
    assert "models/meta-llama--Llama-2-13b-chat-hf.yaml:6: engine_config.max_total_tokens: does not fit" in printed
    assert "Llama-2-7b-chat-hf.yaml:6" not in printed


def test_each_model_has_a_speed_at_its_target(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = project / "models" / "meta-llama--Llama-2-7b-chat-hf.yaml"
    file.write_text(file.read_text().replace("max_replicas: 2", "max_replicas: 2, target_ongoing_requests: 4"))
    assert run_plan("dev", as_json=True) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    speed = model["speed"]
    assert (speed["input_tokens"], speed["output_tokens"], speed["concurrency"]) == (512, 256, 4)
    assert speed["basis"] == "estimate" and speed["saturated"] is False
    for key in ("ttft_ms", "tpot_ms", "output_tokens_per_second"):
        assert 0 < speed[key]["low"] < speed[key]["expected"] < speed[key]["high"]
    per_hour = speed["output_tokens_per_second"]["expected"] * 3600 / 1e6 * speed["usd_per_million_tokens"]
    assert per_hour == pytest.approx(0.8048), "one replica has a g6.xlarge"
    assert run_plan("dev") == 0
    assert "target_ongoing_requests, 512 tokens in, 256 out" in capsys.readouterr().out


def test_a_target_above_what_the_cache_holds_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = project / "models" / "meta-llama--Llama-2-7b-chat-hf.yaml"
    file.write_text(file.read_text().replace("max_replicas: 2", "max_replicas: 2, target_ongoing_requests: 24"))
    assert run_plan("dev") == 0
    assert "above capacity" in capsys.readouterr().out
    assert run_plan("dev", as_json=True) == 0
    speed = json.loads(capsys.readouterr().out)["models"][0]["speed"]
    assert speed["saturated"] is True and speed["ttft_ms"] is None and speed["tpot_ms"] is None


def test_a_profile_that_does_not_exist_costs_the_facts_of_the_mirror_and_no_traceback(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan needs no credentials; the mirror and AWS's prices are asked only where they answer."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(project / "nowhere"))
    monkeypatch.setenv("AWS_PROFILE", "prod")
    write_model(project, "org/unknown", 1)
    assert run_plan("dev") == 0
    assert "org/unknown" in capsys.readouterr().out
