"""docs/component.md: each of its programs runs as it is there. Those that use a cluster are in `tests/cluster`."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from pydantic.alias_generators import to_camel

from modelfleet import Existing, Fleet
from modelfleet.infra.local import emulator as s3_emulator
from tests.cluster import test_component_examples as on_a_cluster
from tests.engine.component_examples import ROOT, ExampleProject, examples, shown_outputs, would_make
from tests.engine.conftest import Emulator
from tests.engine.engine import PULUMI
from tests.ports import free_ports

pytestmark = pytest.mark.slow

BASE_URL = "http://gateway.modelfleet-llm.svc.cluster.local/v1"
HERE = {
    "EKS, everything is made",
    "EKS in your VPC",
    "EKS with your bucket",
    "Objects in place of files",
    "This machine",
}
PORTS = ("gatewayPort", "servePort", "s3Port", "metricsPort", "rayMetricsPort", "dashboardPort", "gcsPort")


@pytest.fixture
def project(tmp_path: Path, emulator: Emulator) -> Iterator[ExampleProject]:
    made = ExampleProject(tmp_path, emulator)
    yield made
    assert made.living_processes() == []


def test_every_program_of_the_document_is_run_by_a_test() -> None:
    assert set(examples()) == HERE | on_a_cluster.HERE


@pytest.mark.long(why="mypy reads three SDKs")
def test_a_strict_type_checker_accepts_every_program(tmp_path: Path) -> None:
    """With the checker's own cache, which `make check` fills: without it this takes a minute."""
    for number, (heading, text) in enumerate(examples().items()):
        (tmp_path / f"component_example_{number}.py").write_text(f"# {heading}\n{text}")
    wrong = examples()["This machine"].replace("models=", "model=")
    (tmp_path / "component_example_wrong.py").write_text(wrong)
    files = [str(path) for path in sorted(tmp_path.glob("*.py"))]
    checked = subprocess.run([sys.executable, "-m", "mypy", *files], cwd=ROOT, capture_output=True, text=True)
    errors = [line for line in checked.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1 and 'Unexpected keyword argument "model" for "Fleet"' in errors[0], checked.stdout


def test_on_eks_everything_is_made(project: ExampleProject) -> None:
    project.set_secret("apiKeys", json.dumps({"team": "sk-0123456789abcdef"}))
    project.example("EKS, everything is made")
    run = project.preview()
    made, outputs = would_make(run), shown_outputs(run)
    assert outputs["base_url"] == BASE_URL
    assert 1 < outputs["max_usd_per_hour"] < 5, "two g6.xlarge, two system nodes, a control plane and a NAT"
    for kind in ("aws:ec2/vpc:Vpc", "aws:eks/cluster:Cluster", "aws:s3/bucket:Bucket"):
        assert len(made[kind]) == 1, kind
    names = [one["metadata"]["name"] for one in made["kubernetes:core/v1:Namespace"]]
    assert sorted(names) == ["modelfleet-llm", "modelfleet-llm-mirror"], "models, and Jobs that copy"
    assert len(made["kubernetes:core/v1:Secret"]) == 1, "the gateway's keys"
    assert "sk-0123456789abcdef" not in run.text + json.dumps(run.events)


def test_on_eks_in_a_vpc_of_the_program_what_is_not_known_yet_stops_no_refusal_and_then_its_subnets_are_used(
    project: ExampleProject,
) -> None:
    heading = "EKS in your VPC"
    project.example(heading)
    first = would_make(project.preview())
    assert set(first) == {
        "pulumi:pulumi:Stack",
        "modelfleet:index:Fleet",
        "pulumi:providers:aws",
        "aws:ec2/vpc:Vpc",
        "aws:ec2/subnet:Subnet",
    }, "the fleet is planned, and made once the VPC is"
    project.program(examples()[heading].partition("fleet = Fleet(")[0], prelude="")
    project.up()
    vpc, subnets = (
        {one["id"] for one in project.resources(f"aws:ec2/{kind}")} for kind in ("vpc:Vpc", "subnet:Subnet")
    )

    project.example(heading)
    run = project.preview()
    made = would_make(run)
    assert shown_outputs(run)["base_url"] == BASE_URL
    assert "aws:ec2/vpc:Vpc" not in made and "aws:ec2/natGateway:NatGateway" not in made
    (cluster,) = made["aws:eks/cluster:Cluster"]
    assert set(cluster["vpcConfig"]["subnetIds"]) == subnets
    (fleet,) = made["modelfleet:index:Fleet"]
    assert {fleet["vpc_id"]} == vpc

    project.example(heading, {"123456789012": "111122223333"})
    refused = project.preview(check=False)
    assert "the credentials belong to account 123456789012" in "\n".join(refused.diagnostics())
    assert refused.code != 0 and "Traceback" not in refused.text, "nobody could catch an error inside an output"
    project.destroy()


def test_on_eks_with_a_bucket_of_the_program_no_other_is_made(project: ExampleProject) -> None:
    project.example("EKS with your bucket")
    run = project.preview()
    made, outputs = would_make(run), shown_outputs(run)
    assert (outputs["base_url"], outputs["bucket"]) == (BASE_URL, "company-llm-code")
    assert [one["bucket"] for one in made["aws:s3/bucket:Bucket"]] == ["company-llm-code"]
    objects = made["aws:s3/bucketObjectv2:BucketObjectv2"]
    assert [one["bucket"] for one in objects] == ["company-llm-code"] * 2, "the code, and what the image is made from"
    assert "kubernetes:batch/v1:Job" not in made, "weights load from where the model file says"


def test_objects_take_the_place_of_model_and_stack_files(project: ExampleProject) -> None:
    for path in (project.folder / "models").glob("*"):
        path.unlink()
    project.example("Objects in place of files")
    run = project.preview()
    assert shown_outputs(run)["base_url"] == BASE_URL
    jobs = [one["metadata"]["name"] for one in would_make(run)["kubernetes:batch/v1:Job"]]
    assert len(jobs) == 2 and any("qwen2-5-7b-instruct-awq" in name for name in jobs)


def test_on_this_machine_it_answers_on_the_port_of_the_settings(project: ExampleProject) -> None:
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    project.config["ports"] = ports
    project.example("This machine")
    run = project.preview()
    s3_emulator.stop(ports["s3Port"], project.folder / ".modelfleet")  # a preview asks it what the bucket has
    assert shown_outputs(run)["base_url"] == f"http://127.0.0.1:{ports['gatewayPort']}/v1"
    assert len(would_make(run)["modelfleet:local:Application"]) == 1


@pytest.mark.parametrize(
    ("heading", "spoilt", "said"),
    [
        pytest.param(
            "This machine",
            {'"auth"': '"polls": [], "auth"'},
            ["Fleet laptop: modelfleet:polls: unknown, did you mean pools?"],
            id="unknown-key",
        ),
        pytest.param(
            "Objects in place of files",
            {
                "Qwen/Qwen2.5-7B-Instruct-AWQ": "meta-llama/Llama-2-70b-chat-hf",
                "models=models": "models=[*models, 'no/*.yaml']",
            },
            ["Fleet llm: models[1]: ", "Fleet llm: models: found 'no/*.yaml', which matches no file"],
            id="does-not-fit-and-no-file",
        ),
    ],
)
def test_what_is_wrong_is_said_in_the_preview_without_a_traceback(
    project: ExampleProject, heading: str, spoilt: dict[str, str], said: list[str]
) -> None:
    project.example(heading, spoilt)
    run = project.preview(check=False)
    errors = "\n".join(run.diagnostics())
    assert run.code != 0 and "Traceback" not in run.text
    assert [one for one in said if one not in errors] == [], errors


#: What an SDK of another language sends to the engine.
ANOTHER_LANGUAGE = """\
import pulumi


class Fleet(pulumi.ComponentResource):
    def __init__(self, name, props):
        outputs = {"baseUrl": None, "maxUsdPerHour": None}
        super().__init__("modelfleet-fleet:index:Fleet", name, {**props, **outputs}, None, remote=True)


settings = {
    "target": "local",
    "auth": "none",
    "pools": [{"name": "cpu", "accelerator": "CPU", "maxNodes": 1}],
    "local": pulumi.Config().require_object("ports"),
}
more = {}
fleet = Fleet("laptop", {"models": ["../models/*135M*.yaml"], "settings": settings, **more})
pulumi.export("base_url", fleet.baseUrl)
"""


def test_a_program_in_another_language_gets_the_fleet_and_its_refusals_from_the_plugin(project: ExampleProject) -> None:
    pulumi_yaml = yaml.safe_load((project.folder / "Pulumi.yaml").read_text())
    pulumi_yaml["plugins"]["providers"].append({"name": "modelfleet-fleet", "path": str(PULUMI.parent)})
    (project.folder / "Pulumi.yaml").write_text(yaml.safe_dump(pulumi_yaml))
    ports = project.config["ports"] = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    project.program(ANOTHER_LANGUAGE, prelude="")
    run = project.preview()
    s3_emulator.stop(ports["s3Port"], project.folder / "infra" / ".modelfleet")
    assert shown_outputs(run)["base_url"] == f"http://127.0.0.1:{ports['gatewayPort']}/v1"
    assert len(would_make(run)["modelfleet:local:Application"]) == 1

    bucket = 'more = {"bucket": pulumi.Output.secret("company-llm-code")}'
    project.program(ANOTHER_LANGUAGE.replace("more = {}", bucket), prelude="")
    said = "\n".join(project.preview(check=False).diagnostics())
    assert "Fleet laptop: existing.bucket: is for target eks and kubernetes; target local uses nothing" in said
    assert "infra/component.py" not in said, "the traceback of the plugin"


def test_the_package_for_other_languages_has_every_argument_of_the_fleet(project: ExampleProject) -> None:
    shown = project.run("package", "get-schema", str(PULUMI.with_name("pulumi-resource-modelfleet-fleet")))
    (fleet,) = json.loads(shown.stdout)["resources"].values()
    arguments = {*inspect.signature(Fleet).parameters, *Existing.__dataclass_fields__} - {"name", "existing", "opts"}
    assert set(fleet["inputProperties"]) == {to_camel(name) for name in arguments}
