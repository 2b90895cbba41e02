"""Reading a project: globs, all faults at once, the code as an immutable zip, facts and prices from outside."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import ANY, Stubber

from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.reading.code import build_code_zip
from modelfleet.infra.reading.mirror import BucketUnreachable, StackMirror
from modelfleet.infra.reading.models import read_facts
from modelfleet.infra.reading.prices import ask_aws, with_known_prices
from modelfleet.infra.reading.workspace import make_plan, model_files, read_workspace
from modelfleet.infra.stack import load_stack
from modelfleet.serving.config.errors import InputErrors, Severity
from modelfleet.serving.mirror.manifest import Manifest, ManifestFile
from tests.unit.planning.builders import ACCOUNT, model, pool, stack

MODEL = """\
engine_config:
  model_id: {id}
scaling_config:
  num_workers: 1
  resources_per_worker: {{"accelerator_type:L4": 0.001}}
"""
STACK = """\
config:
  aws:region: us-east-1
  modelfleet:target: eks
  modelfleet:accountId: "111122223333"
  modelfleet:auth: none
  modelfleet:models: {models}
  modelfleet:pools:
    - {{name: l4, accelerator: L4, maxNodes: 4}}   # spot is cheaper
  modelfleet:cluster: {{publicAccessCidrs: [203.0.113.0/24]}}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Three models, one of them in a folder, and a stack that serves all of them."""
    for name in ("org--a", "org--b", "quantization/org--c"):
        path = tmp_path / "models" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(MODEL.format(id=path.stem.replace("--", "/")))
    write_stack(tmp_path, '["**"]')
    return tmp_path


def write_stack(root: Path, models: str) -> None:
    (root / "stacks").mkdir(exist_ok=True)
    (root / "stacks" / "Pulumi.dev.yaml").write_text(STACK.format(models=models))


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ('["org--*"]', ["org--a", "org--b"]),
        ('["quantization/*"]', ["quantization/org--c"]),
        ('["*"]', ["org--a", "org--b"]),
        ('["**"]', ["org--a", "org--b", "quantization/org--c"]),
        ('["**/org--c"]', ["quantization/org--c"]),
        ('["org--a", "org--a.yaml"]', ["org--a"]),
    ],
)
def test_globs_stay_inside_a_folder_unless_doubled(project: Path, patterns: str, names: list[str]) -> None:
    write_stack(project, patterns)
    paths, findings = model_files(project, load_stack(project, "dev"))
    assert findings == []
    assert [p.relative_to(project / "models").with_suffix("").as_posix() for p in paths] == names


@pytest.mark.parametrize(
    "pattern", ["/etc/*", "../secret", "../models/org--a", "quantization/../org--a", "org**", "\\0", ""]
)
def test_a_pattern_that_leads_out_of_models_matches_nothing(project: Path, pattern: str) -> None:
    (project / "secret.yaml").write_text(MODEL.format(id="org/secret"))
    write_stack(project, json.dumps([pattern]))
    paths, findings = model_files(project, load_stack(project, "dev"))
    assert paths == []
    assert findings[0].message.startswith(f"none of the 3 files in models/ matches {pattern!r}; ")


def test_a_pattern_that_matches_no_file_gets_similar_names(project: Path) -> None:
    write_stack(project, "[org--a, org--bb]")
    with pytest.raises(InputErrors) as caught:
        make_plan(project, "dev")
    assert caught.value.findings[0].sentence() == (
        "stacks/Pulumi.dev.yaml:6: modelfleet:models[1]: none of the 3 files in models/ matches 'org--bb'; "
        "did you mean org--b?"
    )


def test_faults_of_files_and_of_the_plan_come_together(project: Path) -> None:
    """One model file with a misspelt key, another whose accelerator has no pool."""
    (project / "models" / "org--a.yaml").write_text(MODEL.format(id="org/a") + "enabeld: true\n")
    (project / "models" / "org--b.yaml").write_text(MODEL.format(id="org/b").replace(":L4", ":T4"))
    with pytest.raises(InputErrors) as caught:
        make_plan(project, "dev")
    text = str(caught.value)
    assert "models/org--a.yaml:6: enabeld: unknown, did you mean enabled?" in text
    assert "no pool has T4, which org/b needs" in text


def test_a_project_without_models_says_so(tmp_path: Path) -> None:
    write_stack(tmp_path, "['*']")
    with pytest.raises(InputErrors) as caught:
        make_plan(tmp_path, "dev")
    assert "none of the 0 files in models/ matches '*'" in str(caught.value)


def serving_folder(root: Path) -> Path:
    folder = root / "serving"
    (folder / "__pycache__").mkdir(parents=True)
    (folder / "app.py").write_text("build = None\n")
    (folder / "data.json").write_text("{}")
    (folder / "__pycache__" / "app.pyc").write_bytes(b"x")
    return folder


def test_equal_code_gives_equal_bytes_whatever_its_times_and_modes(tmp_path: Path) -> None:
    """The hash is the zip's name, so another hash would restart every model."""
    first, second = serving_folder(tmp_path / "one"), serving_folder(tmp_path / "two")
    os.utime(second / "app.py", (1, 1))
    (second / "app.py").chmod(0o600)
    assert build_code_zip(first) == build_code_zip(second)
    (second / "app.py").write_text("build = 1\n")
    assert build_code_zip(first) != build_code_zip(second)


def test_the_code_zip_holds_python_and_data_but_no_caches(tmp_path: Path) -> None:
    with zipfile.ZipFile(BytesIO(build_code_zip(serving_folder(tmp_path)))) as archive:
        assert archive.namelist() == [
            "README.txt", "modelfleet/__init__.py", "modelfleet/serving/app.py", "modelfleet/serving/data.json",
        ]  # fmt: skip


def test_another_accelerator_restarts_no_model(tmp_path: Path) -> None:
    folder = serving_folder(tmp_path)
    before = build_code_zip(folder)
    (folder / "config" / "data").mkdir(parents=True)
    (folder / "config" / "data" / "accelerators.csv").write_text("accelerator\nX9\n")
    assert build_code_zip(folder) == before, "the hash is the zip's name, so another hash would restart every model"


@pytest.mark.slow
def test_an_application_is_built_from_the_zip_alone(tmp_path: Path) -> None:
    """A replica must not read what the zip leaves out."""
    zipfile.ZipFile(BytesIO(build_code_zip())).extractall(tmp_path)
    script = (
        "import json, modelfleet.serving\n"
        "from modelfleet.serving.app import build\n"
        "from modelfleet.serving.config.schema import ModelConfig\n"
        "from modelfleet.serving.engine_args import engine_arguments\n"
        "model = json.loads(input())\n"
        "build({'model': model})\n"
        "engine_arguments(ModelConfig.model_validate(model), '/weights')\n"
        "print(modelfleet.serving.__file__)\n"
    )
    dumped = json.dumps(model("org/a").config.model_dump(mode="json"))
    done = subprocess.run(
        [sys.executable, "-c", script], input=dumped, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout, "the code that ran was not the zip's"


LLAMA = dict(default_catalog().models["meta-llama/Llama-3.2-1B-Instruct"].config)


def safetensors(shape: list[int]) -> bytes:
    header = json.dumps({"w": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}}).encode()
    return struct.pack("<Q", len(header)) + header


def test_facts_come_from_a_local_folder_first(tmp_path: Path) -> None:
    """Even for a model that the catalog knows, because this copy may differ."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "a.safetensors").write_bytes(safetensors([1000, 10]))
    (tmp_path / "b.safetensors").write_bytes(safetensors([500]))
    one = model("org/mine", hf_model_id=str(tmp_path))
    facts = read_facts([one], tmp_path)[0]["org/mine"]
    assert facts is not None
    assert (facts.parameters, facts.header_bytes, facts.source) == (10500, 21000, str(tmp_path))


@pytest.mark.parametrize(
    "junk", [b"", b"\x00" * 7, b"\xff" * 8, struct.pack("<Q", 4) + b"nope", struct.pack("<Q", 1 << 40)]
)
def test_a_folder_with_a_damaged_safetensors_file_is_planned_from_its_config(tmp_path: Path, junk: bytes) -> None:
    """Its parameters are counted, and there is no traceback."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "a.safetensors").write_bytes(junk)
    facts = read_facts([model("org/mine", hf_model_id=str(tmp_path))], tmp_path)[0]["org/mine"]
    assert facts is not None
    assert (facts.header_bytes, facts.parameters) == (None, 1_235_814_400)


class Hub(BaseHTTPRequestHandler):
    """Plays the Hub: the two responses that the code requests."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        answers: dict[str, Any] = {
            "/org/known/resolve/main/config.json": LLAMA,
            "/api/models/org/known/revision/main?expand%5B%5D=safetensors": {
                "safetensors": {"parameters": {"BF16": 777}}
            },
        }
        found = answers.get(self.path)
        self.send_response(200 if found else 404)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode() if found else b"not found")

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    Hub.asked = []
    yield Hub.asked
    server.shutdown()
    server.server_close()


def test_a_checkpoint_that_vllm_dropped_is_refused_by_its_config(tmp_path: Path) -> None:
    """Its id does not help, because it is somebody's own upload."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mpt", "architectures": ["MPTForCausalLM"]}))
    one = model("org/mine", hf_model_id=str(tmp_path))
    facts, findings = read_facts([one], tmp_path)
    assert facts == {"org/mine": None}
    assert [finding.severity for finding in findings] == [Severity.ERROR]
    assert "engine_config.hf_model_id" in str(findings[0])
    assert "MPTForCausalLM up to 0.28.0" in str(findings[0])


def test_the_hub_is_queried_once_and_only_if_the_network_is_allowed(tmp_path: Path, hub: list[str]) -> None:
    one = model("org/known")
    assert read_facts([one], tmp_path)[0]["org/known"] is None
    assert hub == []
    facts = read_facts([one], tmp_path, network=True)[0]["org/known"]
    assert facts is not None
    assert facts.parameters == 777
    asked = len(hub)
    assert read_facts([one], tmp_path)[0]["org/known"] == facts, "the facts are kept under .modelfleet/facts"
    assert len(hub) == asked


def test_a_model_that_the_hub_does_not_know_is_unknown(tmp_path: Path, hub: list[str]) -> None:
    assert read_facts([model("org/absent")], tmp_path, network=True)[0] == {"org/absent": None}


def test_an_unreachable_hub_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert read_facts([model("org/a"), model("org/b")], tmp_path, network=True)[0] == {"org/a": None, "org/b": None}


def price_item(usd: str) -> str:
    return json.dumps(
        {"terms": {"OnDemand": {"x": {"priceDimensions": {"y": {"unit": "Hrs", "pricePerUnit": {"USD": usd}}}}}}}
    )


def test_prices_of_another_region_come_from_the_price_list_api(tmp_path: Path) -> None:
    client = boto3.client("pricing", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    with Stubber(client) as stub:
        stub.add_response(
            "get_products",
            {"PriceList": [price_item("0.91"), price_item("0.0000000000")]},
            {"ServiceCode": "AmazonEC2", "FormatVersion": "aws_v1", "Filters": ANY},
        )
        found = ask_aws("eu-west-1", ["g6.xlarge"], client)
        stub.assert_no_pending_responses()
    assert found["g6.xlarge"].usd_per_hour == 0.91
    assert found["g6.xlarge"].source == "AWS Price List API"


def test_the_price_of_a_valkey_node_is_elasticaches(tmp_path: Path) -> None:
    """Redis OSS on the same node type costs a quarter more, so the engine is asked for by name."""
    client = boto3.client("pricing", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    wanted = {
        "instanceType": "cache.t4g.micro",
        "cacheEngine": "Valkey",
        "locationType": "AWS Region",
        "regionCode": "eu-west-1",
    }
    filters = [{"Type": "TERM_MATCH", "Field": key, "Value": value} for key, value in wanted.items()]
    with Stubber(client) as stub:
        stub.add_response(
            "get_products",
            {"PriceList": [price_item("0.0136")]},
            {"ServiceCode": "AmazonElastiCache", "FormatVersion": "aws_v1", "Filters": filters},
        )
        found = ask_aws("eu-west-1", ["cache.t4g.micro"], client)
    assert found["cache.t4g.micro"].usd_per_hour == 0.0136


def test_a_stack_with_a_store_asks_for_its_price(tmp_path: Path) -> None:
    kept = tmp_path / ".modelfleet" / "prices" / "eu-west-1.json"
    kept.parent.mkdir(parents=True)
    kept.write_text('{"cache.t4g.micro": [0.0136, "2026-11-20"]}')
    made = stack(pool(instanceTypes=["g6.xlarge"]), region="eu-west-1", cluster={"deletionProtection": True})
    catalog = with_known_prices(default_catalog(), made, tmp_path, network=False)
    assert catalog.usd_per_hour("cache.t4g.micro", region="eu-west-1") == 0.0136


def test_kept_prices_are_used_and_a_region_without_prices_stays_unknown(tmp_path: Path) -> None:
    made = stack(pool(instanceTypes=["g6.xlarge"]), region="eu-west-1")
    folder = tmp_path / ".modelfleet" / "prices"
    folder.mkdir(parents=True)
    (folder / "eu-west-1.json").write_text('{"g6.xlarge": [0.91, "2026-11-20"], "nat-gateway": [0.048, "2026-11-20"]}')
    catalog = with_known_prices(default_catalog(), made, tmp_path, network=False)
    assert catalog.usd_per_hour("g6.xlarge", region="eu-west-1") == 0.91
    assert catalog.usd_per_hour("nat-gateway", region="eu-west-1") == 0.048
    (folder / "eu-west-1.json").write_text("[broken")
    catalog = with_known_prices(default_catalog(), made, tmp_path, network=False)
    assert catalog.usd_per_hour("g6.xlarge", region="eu-west-1") is None


def test_the_example_stacks_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user sees them after cloning, with only the secrets left to set."""
    root = Path(__file__).parents[3]
    for path in sorted((root / "stacks").glob("Pulumi.*.yaml")):
        plan = make_plan(root, path.name.split(".")[1], deploying=False)
        assert plan.models
        warnings = [n.path for n in plan.notices if n.severity != "notice"]
        assert set(warnings) <= {"modelfleet:apiKeys", "modelfleet:huggingFaceToken"}, path.name


def test_findings_about_model_files_reach_the_plan(project: Path) -> None:
    (project / "models" / "org--a.yaml").write_text(
        MODEL.format(id="org/a").replace("accelerator_type:L4", "accelerator_type_l4")
    )
    assert read_workspace(project, "dev").findings
    assert any(
        "accelerator_type_l4" in n.message or "accelerator_type_l4" in n.path for n in make_plan(project, "dev").notices
    )


def test_facts_are_read_from_a_models_own_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a few KiB of each file: the configuration and the headers."""
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    one = model("org/mine", s3_mirror_config={"bucket_uri": "s3://weights/org/mine/"})
    with mock_aws():
        assert read_facts([one], tmp_path, network=True)[0] == {"org/mine": None}, "an absent bucket is unknown"
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="weights")
        s3.put_object(Bucket="weights", Key="org/mine/config.json", Body=json.dumps(LLAMA).encode())
        s3.put_object(Bucket="weights", Key="org/mine/model.safetensors", Body=safetensors([321]) + b"\0" * 1000)
        facts = read_facts([one], tmp_path, network=True)[0]["org/mine"]
    assert facts is not None
    assert (facts.parameters, facts.source) == (321, "s3://weights/org/mine/")


def test_facts_are_read_from_the_stacks_own_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the version that its manifest names."""
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    files = {"config.json": json.dumps(LLAMA).encode(), "model.safetensors": safetensors([654])}
    manifest = Manifest(
        model_id="org/mine", source="org/mine", source_revision=None,
        files=[ManifestFile(path=path, size=len(body), sha256="0" * 64, chunks=["0" * 16]) for path, body in files.items()],
    )  # fmt: skip
    made, one = stack(pool("l4", "L4")), model("org/mine")
    with mock_aws():
        assert read_facts([one], tmp_path, made, network=True)[0] == {"org/mine": None}, "nothing is mirrored yet"
        s3 = boto3.client("s3")
        bucket = f"modelfleet-{made.name}-{ACCOUNT}"
        s3.create_bucket(Bucket=bucket)
        for path, body in files.items():
            s3.put_object(Bucket=bucket, Key=f"models/org--mine/{manifest.version}/{path}", Body=body)
        assert read_facts([one], tmp_path, made, network=True)[0] == {"org/mine": None}, "without its manifest"
        s3.put_object(Bucket=bucket, Key="models/org--mine/manifest.json", Body=manifest.to_json())
        facts = read_facts([one], tmp_path, made, network=True)[0]["org/mine"]
    assert facts is not None
    assert (facts.parameters, facts.source) == (654, f"s3://{bucket}/models/org--mine")


def test_a_bucket_that_cannot_be_reached_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise two hundred models would wait two hundred times."""
    asked: list[str] = []

    def read(mirror: StackMirror, prefix: str) -> None:
        asked.append(prefix)
        raise BucketUnreachable

    monkeypatch.setattr(StackMirror, "read", read)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    models = [model("org/a"), model("org/b")]
    assert read_facts(models, tmp_path, stack(pool("l4", "L4")), network=True)[0] == {"org/a": None, "org/b": None}
    assert asked == ["models/org--a"]


def test_a_bucket_that_does_not_exist_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    from moto import mock_aws

    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws(), pytest.raises(BucketUnreachable):
        StackMirror("absent", timeout_s=1).read("models/org--a")
