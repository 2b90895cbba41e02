"""`modelfleet manifests` feeds a team's policy gates. Otherwise these could pass what `up` does not apply."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pulumi
import pytest
import yaml

from modelfleet.cli.manifests import run_manifests
from modelfleet.infra.aws.facts import AccountFacts
from modelfleet.infra.kubernetes.manifests.everything import PLACEHOLDER
from modelfleet.infra.kubernetes.manifests.operator import CRDS_FILE
from modelfleet.infra.kubernetes.names import GATEWAY_KEYS, HUGGINGFACE
from modelfleet.infra.planning import Plan
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.serving.config.errors import InputErrors
from tests.cluster.fleet import five_models, model, write_project
from tests.unit.aws.builders import facts
from tests.unit.kubernetes.projects import STACKS
from tests.unit.kubernetes.rewrite import RENDERED, texts

ENCRYPTED = {"secure": "v1:abc:def"}
SECRETS = {"apiKeys": {"team": ENCRYPTED}, "huggingFaceToken": ENCRYPTED, "alertWebhook": ENCRYPTED, "auth": "keys"}


def loaded(text: str) -> list[Any]:
    """All documents of a YAML text, read by libyaml because the CRDs are two megabytes."""
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


def written(folder: Path) -> list[Any]:
    """All objects in a folder that the command wrote."""
    return [loaded(path.read_text())[0] for path in sorted((folder / "kubernetes").iterdir())]


@pytest.fixture(scope="module")
def eks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command's output for an EKS project, for tests that only read it."""
    root = tmp_path_factory.mktemp("eks")
    project(root, "eks")
    with pytest.MonkeyPatch.context() as patch:
        return run(root, patch, "prod")


def run(root: Path, monkeypatch: pytest.MonkeyPatch, stack: str) -> Path:
    """The folder that the command wrote for a project."""
    monkeypatch.chdir(root)
    assert run_manifests(stack, out=root / "out") == 0
    return root / "out"


@pytest.mark.parametrize("stack", STACKS)
def test_the_objects_are_the_reviewed_ones(stack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = STACKS[stack](tmp_path)
    found = [one for one in written(run(tmp_path, monkeypatch, plan.stack)) if one["kind"] not in UNREVIEWED]
    wanted = {path.name: loaded(path.read_text()) for path in (RENDERED / stack).glob("*.yaml")}
    parsed = {name: loaded(text) for name, text in texts(plan, found).items()}
    assert {name: by_name(these) for name, these in parsed.items()} == {n: by_name(w) for n, w in wanted.items()}


UNREVIEWED = {"CustomResourceDefinition", "Secret"}


def by_name(objects: list[Any]) -> dict[str, Any]:
    return {one["metadata"]["name"]: one for one in objects}


class Recorder(pulumi.runtime.Mocks):
    """Plays the engine: keeps what the program registers."""

    def __init__(self) -> None:
        self.made: list[tuple[str, dict[str, Any]]] = []

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        self.made.append((args.typ, args.inputs))
        cluster = {"certificateAuthority": {"data": "YQ=="}, "endpoint": "https://cluster"}
        vpc = {"vpcConfig": {**args.inputs.get("vpcConfig", {}), "clusterSecurityGroupId": "sg-1"}}
        group = {"resources": [{"autoscalingGroups": [{"name": "asg"}]}], "latestVersion": 1}
        arn = {"arn": "arn:aws:kms:us-west-2:123456789012:key/BUCKET-KEY-ID"}
        image = {"repositoryUrl": "registry/serving", "digest": f"sha256:{'0' * 64}"}
        return f"{args.name}-id", {**args.inputs, **cluster, **vpc, **group, **arn, **image}

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[str, Any]:
        return {"version": "v1"}


def registered(program: Callable[[], Any]) -> list[tuple[str, dict[str, Any]]]:
    """Types and inputs of all resources of a Pulumi program."""
    recorder = Recorder()
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.set_mocks(recorder, project="modelfleet", stack="test", preview=False)
    pulumi.runtime.test(program)()
    return recorder.made


def project(root: Path, target: str) -> Plan:
    hub = model("org/straight", "L4", hf_model_id="org/straight")
    write_project(root, [*five_models(), hub], stack="prod", target=target, observability={"metrics": "own"}, **SECRETS)
    return make_plan(root, "prod")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["eks", "kubernetes"])
def test_up_registers_exactly_the_objects_that_the_command_writes(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelfleet.infra.kubernetes import fleet

    plan = project(tmp_path, target)
    monkeypatch.setattr(fleet, "_say_rebuild", lambda text, plan: None)

    def program() -> None:
        token, keys = pulumi.Output.secret("hf_1"), pulumi.Output.secret({"team": "k" * 16})
        hook = pulumi.Output.secret("https://hooks.example.org/t0ken")
        given = {"kubeconfig": "{}", "cluster_name": "modelfleet-prod"} if target == "eks" else {}
        more = {"huggingface_token": token, "api_keys": keys, "alert_webhook": hook, **given}
        fleet.KubernetesFleet("prod", plan, **more)  # type: ignore[arg-type]

    applied = [comparable(inputs) for kind, inputs in registered(program) if kind.startswith("kubernetes:")]
    wanted = [comparable(one) for one in written(run(tmp_path, monkeypatch, "prod"))]
    assert by_kind(applied) == by_kind(wanted)
    assert len(applied) == len(wanted) > 30


def comparable(manifest: dict[str, Any]) -> dict[str, Any]:
    """The objects without Pulumi's own annotations and without secret values."""
    found: dict[str, Any] = json.loads(json.dumps(manifest))
    metadata = found["metadata"]
    own = {k: v for k, v in metadata.pop("annotations", {}).items() if not k.startswith("pulumi.com/")}
    if own:
        metadata["annotations"] = own
    if found["kind"] == "Secret":
        data = found["stringData"]
        found["stringData"] = sorted(data.get("value", data))  # Pulumi wraps a secret's value
    if found["kind"] == "Deployment":
        found["spec"]["template"]["metadata"].get("annotations", {}).pop("modelfleet.dev/keys", None)
    return found


def by_kind(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return {f"{one['kind']} {one['metadata']['name']}": one for one in manifests}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pulumi_aws warns about its own old classes
def test_the_roles_of_up_have_exactly_the_documents_that_the_command_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelfleet.infra.aws import fleet

    plan = project(tmp_path, "eks")
    types = {one for pool in plan.pools for one in pool.instance_types}
    account: AccountFacts = facts(offerings={one: frozenset(facts().zones) for one in types | {"m7i.xlarge"}})
    monkeypatch.setattr(fleet, "read_facts", lambda plan, parent: account)
    monkeypatch.setattr(fleet, "preflight", lambda plan, facts: [])
    source = pulumi.StringAsset("Dockerfile and requirements")
    made = registered(lambda: fleet.AwsFleet("prod", plan, image_source=source))
    keys = ("assumeRolePolicy", "policy")
    documents = [json.loads(inputs[key]) for _, inputs in made for key in keys if inputs.get(key)]
    applied = Counter(canonical(one) for one in documents if "Statement" in one)  # not how long ECR keeps images
    folder = run(tmp_path, monkeypatch, "prod") / "iam"
    written = {path.stem: canonical(json.loads(path.read_text())) for path in folder.iterdir()}
    operator = [name for name in written if name.startswith("operator")]
    assert operator, "the policy of whoever runs `up` is written too, and no role of the stack has it"
    for name in operator:
        del written[name]
    assert applied == Counter(written.values())
    assert sum(applied.values()) > 12


def canonical(document: Any) -> str:
    return json.dumps(document, sort_keys=True)


def test_the_ray_service_is_valid_for_the_definition_that_is_applied_with_it(eks: Path) -> None:
    (service,) = loaded((eks / "kubernetes" / "rayservice-fleet.yaml").read_text())
    with gzip.open(CRDS_FILE, "rt") as file:
        (crd,) = (one for one in json.load(file) if one["spec"]["names"]["kind"] == "RayService")
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    jsonschema.Draft7Validator(closed(schema)).validate(service)
    service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.Draft7Validator(closed(schema)).validate(service)


def closed(schema: Any) -> Any:
    """The schema that refuses unknown keys, which the API server prunes, and accepts int-or-string values."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        inner["type"] = ["integer", "string"]
    has_names = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if has_names and not schema.get("x-kubernetes-preserve-unknown-fields") and "metadata" not in schema["properties"]:
        inner.setdefault("additionalProperties", False)
    return inner


def test_no_secret_is_written_and_each_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, "kubernetes")
    folder = run(tmp_path, monkeypatch, "prod")
    secrets = {one["metadata"]["name"]: one["stringData"] for one in written(folder) if one["kind"] == "Secret"}
    assert set(secrets) >= {HUGGINGFACE, GATEWAY_KEYS}
    assert {value for data in secrets.values() for value in data.values()} == {PLACEHOLDER}
    everything = "".join(path.read_text() for path in (folder / "kubernetes").iterdir())
    assert "v1:abc:def" not in everything, "the encrypted text must not be written either"
    assert not (folder / "iam").exists(), "an existing cluster's roles belong to its owner"


def test_the_stream_and_the_list_have_the_same_objects(
    eks: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(eks.parent)
    run_manifests("prod")
    stream = loaded(capsys.readouterr().out)
    run_manifests("prod", as_json=True)
    listed = json.loads(capsys.readouterr().out)["objects"]
    assert [(one["kind"], one["metadata"]["name"]) for one in stream] == [(row["kind"], row["name"]) for row in listed]
    files = [row["file"] for row in listed]
    assert files == [None] * len(stream)


def test_a_folder_that_is_not_empty_and_a_local_stack_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, "eks")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(InputErrors, match="not an empty folder"):
        run(tmp_path, monkeypatch, "prod")
    write_project(tmp_path, [], stack="here", target="local", pools=[], accountId=None)
    with pytest.raises(InputErrors, match="here.yaml:.*modelfleet:target: found local"):
        run(tmp_path, monkeypatch, "here")
