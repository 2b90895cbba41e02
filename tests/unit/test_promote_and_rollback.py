"""`modelfleet promote` and `rollback` over a real tree of files and moto's S3, with a mirror that is cleaned meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.exceptions import ClientError
from moto import mock_aws
from typer.testing import CliRunner, Result

from modelfleet.cli import promote as promote_module
from modelfleet.cli.main import app
from modelfleet.cli.plan_pin import round_trip
from modelfleet.cli.promote import with_image
from modelfleet.infra.planning.proved import KEPT, Copy, Proved, ProvedModel, before_now, file_for, versions_to_keep
from modelfleet.infra.reading.proved import STATES, Memory
from modelfleet.infra.reading.workspace import make_plan
from modelfleet.infra.stack import load_stack
from modelfleet.serving.config.errors import InputErrors, SetupError
from modelfleet.serving.errors import MirrorError
from modelfleet.serving.mirror import Status, fetch, fill, status
from tests.gateway.test_jwt import AUDIENCE, ISSUER, jwks

ID, SLUG = "Qwen/Qwen3-8B", "Qwen--Qwen3-8B"
COMMIT = "b968826d9c46dd6066d109eabc6255188de91218"
DIGEST = f"registry.example/serving@sha256:{'a' * 64}"
STAGING_FILE, PROD_FILE = f"models/staging/{SLUG}.yaml", f"models/prod/{SLUG}.yaml"
MODEL = """\
# Kept as it is, comments too.
deployment_config:
  autoscaling_config: {{min_replicas: 1, max_replicas: {most}, target_ongoing_requests: 8}}
  max_ongoing_requests: 20
engine_config:
  model_id: Qwen/Qwen3-8B
  revision: {revision}
  max_total_tokens: 4096
scaling_config:
  num_workers: 1
  num_gpus_per_worker: 1
  num_cpus_per_worker: 2
  resources_per_worker: {{"accelerator_type:L4": 0.001}}
"""


def text(most: int = 2, revision: str = COMMIT) -> str:
    return MODEL.format(most=most, revision=revision)


class Tree:
    """A fleet's folder with two stacks of one cluster each, and their buckets."""

    def __init__(self, root: Path, s3: Any) -> None:
        self.root, self.s3 = root, s3
        for name in ("staging", "prod"):
            s3.create_bucket(Bucket=f"fleet-{name}")
            self.stack(name)
        (root / "models" / "prod").mkdir(parents=True)

    def stack(self, name: str, **keys: Any) -> None:
        pool = {"name": "l4", "accelerator": "L4", "instanceTypes": ["g6.2xlarge"], "maxNodes": 4}
        settings = {
            "models": [f"{name}/*"],
            "target": "kubernetes",
            "pools": [pool],
            "auth": "none",
            "kubernetes": {"image": DIGEST},
            "mirror": {"bucket": f"fleet-{name}"},
            **keys,
        }
        config = {"aws:region": "us-east-1", **{f"modelfleet:{key}": value for key, value in settings.items()}}
        path = self.root / "stacks" / f"Pulumi.{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {name}\n{yaml.safe_dump({'config': config})}")

    def write(self, file: str, content: str) -> None:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def read(self, file: str) -> str:
        return (self.root / file).read_text()

    def mirror(self, stack: str, content: str, revision: str = COMMIT) -> str:
        """Fill the stack's mirror, as its Job does; returns the version."""
        folder = self.root / "weights"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text(content)
        uri = f"s3://fleet-{stack}/models/{SLUG}"
        return fill(folder, uri, model_id=ID, source=ID, source_revision=revision).version

    def prove(self, stack: str, at: str = "", **keys: Any) -> Proved | None:
        """What `up` does at its end."""
        plan = make_plan(self.root, stack, deploying=False)
        texts = {one.file: self.read(one.file) for one in plan.models}
        return Memory(self.root, plan.source, self.s3).keep(plan, texts, release="0.1.0", image=None, **keys)

    def run(self, *words: str) -> Result:
        return CliRunner().invoke(app, [*words])


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.chdir(tmp_path)
    times = (f"20261201T{number:06}Z" for number in range(1, 1000))

    class Clock:
        @staticmethod
        def now(zone: Any) -> Any:
            class Moment:
                @staticmethod
                def strftime(form: str) -> str:
                    return next(times)

            return Moment

    monkeypatch.setattr("modelfleet.infra.reading.proved.datetime", Clock)
    with mock_aws():
        yield Tree(tmp_path, boto3.client("s3"))


@pytest.fixture
def proved(tree: Tree) -> Tree:
    """Staging has proved its model."""
    tree.write(STAGING_FILE, text())
    tree.mirror("staging", "one")
    assert tree.prove("staging") is not None
    return tree


def test_a_proved_model_is_copied_byte_for_byte_and_the_plan_s_difference_is_shown(proved: Tree) -> None:
    proved.write(STAGING_FILE, text(most=4))  # edited since, and not proved
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert done.exit_code == 0, done.output
    assert proved.read(PROD_FILE) == text()
    assert f"+ model {ID}" in done.stdout and "Next: modelfleet up --stack prod" in done.stderr
    assert "version" in done.stderr, "which weights were proved"
    again = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes", "--json")
    assert again.exit_code == 0 and "already" in again.stderr
    assert json.loads(again.stdout)["files"] == []
    nothing = proved.run("rollback", ID, "--stack", "staging", "--yes", "--json")
    assert json.loads(nothing.stdout)["files"] == [STAGING_FILE], "the edit"
    nothing = proved.run("rollback", ID, "--stack", "staging", "--yes", "--json")
    assert json.loads(nothing.stdout)["files"] == []


def test_without_yes_nothing_is_written_where_nobody_can_be_asked(proved: Tree) -> None:
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod")
    assert done.exit_code == 0 and "--yes" in done.stderr
    assert not (proved.root / PROD_FILE).exists()


def test_json_says_what_would_be_written(proved: Tree) -> None:
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--json")
    assert json.loads(done.stdout)["files"] == [PROD_FILE]


def test_the_file_that_the_target_has_already_is_the_one_that_changes(proved: Tree) -> None:
    own = f"models/prod/ours-{SLUG}.yaml"
    proved.write(own, text(most=1))
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert done.exit_code == 0, done.output
    assert proved.read(own) == text() and not (proved.root / PROD_FILE).exists()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"budget": {"maxUsdPerHour": 0.5}}, "budget"),
        ({"licence": {"forbid": ["apache"]}}, "licence"),
        ({"pools": [{"name": "t4", "accelerator": "T4", "instanceTypes": ["g4dn.xlarge"], "maxNodes": 4}]}, "L4"),
        ({"models": ["p*/*"]}, "such as prod/*"),
        ({"mirror": {"bucket": "fleet-prod", "sources": {ID: "s3://elsewhere/copy"}}}, "mirror.sources"),
        ({"mirror": {"bucket": "fleet-prod", "create": False, "sources": {ID: "s3://else/where"}}}, "mirror.sources"),
    ],
)
def test_what_the_target_s_plan_refuses_is_not_promoted(proved: Tree, keys: dict[str, Any], says: str) -> None:
    proved.stack("prod", **keys)
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert isinstance(done.exception, InputErrors), (done.exception, done.output)
    assert says in str(done.exception)
    assert not (proved.root / PROD_FILE).exists()


def test_other_code_and_a_moving_branch_are_refused_with_what_to_run(proved: Tree) -> None:
    proved.write(STAGING_FILE, text(revision="main"))
    proved.mirror("staging", "moved", "main")
    proved.prove("staging")
    state = Memory(proved.root, load_stack(proved.root, "staging"), proved.s3).states()[-1]
    older = state.model_copy(update={"code_sha256": "f" * 64, "at": "29991201T000000Z", "release": "0.0.9"})
    proved.s3.put_object(
        Bucket="fleet-staging", Key=f"proved/staging/{older.at}.json", Body=older.model_dump_json().encode()
    )
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert isinstance(done.exception, InputErrors), done.output
    assert len(done.exception.findings) == 2, "all at once"
    assert "modelfleet upgrade 0.0.9" in str(done.exception) and "--fix --pin" in str(done.exception)


def test_a_moving_branch_is_refused_although_the_stack_that_proved_it_has_no_copies(tree: Tree) -> None:
    for name in ("staging", "prod"):
        tree.stack(name, mirror={"bucket": f"fleet-{name}", "create": False})
    tree.write(STAGING_FILE, text(revision="main"))
    state = tree.prove("staging")
    assert state and state.models[0].copies == ()
    done = tree.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert isinstance(done.exception, InputErrors) and "a branch of the Hub" in str(done.exception), done.output


def test_another_image_is_named_in_the_target_s_file_by_its_digest(proved: Tree) -> None:
    proved.stack("prod", kubernetes={"image": "registry.example/serving:2", "namespace": "prod"})
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert done.exit_code == 0, done.output
    written = load_stack(proved.root, "prod").config.kubernetes
    assert (written.image, written.namespace) == (DIGEST, "prod")
    assert proved.read("stacks/Pulumi.prod.yaml").startswith("# prod\n"), "comments stay"


@pytest.mark.parametrize(("account", "code"), [(None, 0), ("444455556666", 1)])
def test_an_image_in_the_other_stack_s_own_repository_is_no_place_to_stay(
    tree: Tree, account: str | None, code: int
) -> None:
    """Staging's `down` deletes that repository, and five builds expire the image that prod's next node would pull."""
    image = f"111122223333.dkr.ecr.us-east-1.amazonaws.com/modelfleet-staging/serving@sha256:{'b' * 64}"
    tree.stack("staging", kubernetes={"image": image})
    tree.stack("prod", accountId=account)
    tree.write(STAGING_FILE, text())
    tree.prove("staging")
    done = tree.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    said = done.stderr if code == 0 else str(done.exception)
    assert done.exit_code == code and "is in the repository of stack staging" in said.replace("\n", ""), done.output


def test_what_the_target_s_plan_reads_beside_its_files_is_read_here_too(proved: Tree) -> None:
    proved.write("issuer.json", jwks("rsa").decode())
    issuer = {"issuer": ISSUER, "audience": AUDIENCE, "jwks": "issuer.json"}
    proved.stack("prod", auth="keys", apiKeys={"team": {"secure": "v1:abc:def"}}, jwt=issuer)
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert done.exit_code == 0, (done.output, done.exception)


def test_a_folder_that_may_change_is_said_with_the_version_that_was_proved(tree: Tree) -> None:
    for name in ("staging", "prod"):
        tree.stack(name, mirror={"bucket": f"fleet-{name}", "sources": {ID: "s3://company/qwen"}})
    tree.write(STAGING_FILE, text())
    version = tree.mirror("staging", "one")
    tree.prove("staging")
    done = tree.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert done.exit_code == 0, (done.output, done.exception)
    assert "s3://company/qwen may have other files" in done.stderr and version in done.stderr


def test_an_image_that_only_a_tag_names_is_refused(tree: Tree) -> None:
    tree.stack("staging", kubernetes={"image": "registry.example/serving:2"})
    tree.write(STAGING_FILE, text())
    tree.prove("staging")
    done = tree.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert "a tag that may move" in str(done.exception)
    tree.stack("prod", kubernetes={"image": "registry.example/serving:2"})
    done = tree.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert done.exit_code == 0 and "a tag that may move" in done.stderr, "the same tag is only a warning"


def test_quotas_are_asked_where_the_target_makes_its_cluster(proved: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(plan: Any) -> None:
        asked.append(plan.stack)
        raise InputErrors([])

    monkeypatch.setattr(promote_module, "_ask_aws", refuse)
    proved.stack("prod", target="eks", accountId="111122223333", cluster={"publicAccessCidrs": ["203.0.113.0/24"]})
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert asked == ["prod"] and isinstance(done.exception, InputErrors)
    assert not (proved.root / PROD_FILE).exists()


def test_a_file_that_both_stacks_read_cannot_be_promoted_once_it_was_edited(proved: Tree) -> None:
    proved.stack("prod", models=["staging/*"])
    assert "already" in proved.run("promote", ID, "--from", "staging", "--to", "prod").stderr
    proved.write(STAGING_FILE, text(most=3))
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert "a folder of its own" in str(done.exception) and proved.read(STAGING_FILE) == text(most=3)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("promote", "Qwen/Qwen3-88B", "--from", "staging", "--to", "prod"), f"did you mean {ID}"),
        (("promote", ID, "--from", "prod", "--to", "staging"), "has proved nothing yet"),
        (("promote", ID, "--from", "staging", "--to", "staging"), "name another stack"),
        (("rollback", "--stack", "prod"), "has proved nothing yet"),
        (("rollback", "org/none", "--stack", "staging"), "never proved"),
    ],
)
def test_wrong_words_are_told(proved: Tree, words: tuple[str, ...], says: str) -> None:
    done = proved.run(*words)
    assert isinstance(done.exception, InputErrors) and says in str(done.exception)


def current(tree: Tree) -> str | None:
    return Memory(tree.root, load_stack(tree.root, "staging"), tree.s3).version(f"s3://fleet-staging/models/{SLUG}")


def test_each_stack_s_bucket_is_asked_as_its_own_profile(
    proved: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Staging and prod are often two accounts. The other readers, such as usage's, go by `aws:profile` too."""
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    keys = "aws_access_key_id = x\naws_secret_access_key = x\n"
    (tmp_path / "config").write_text(f"[profile of-prod]\n{keys}")
    for name, profile in (("staging", "of-staging"), ("prod", "of-prod")):
        file = f"stacks/Pulumi.{name}.yaml"
        proved.write(file, proved.read(file) + f"  aws:profile: {profile}\n")
    done = proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert isinstance(done.exception, SetupError) and "(of-staging) could not be found" in str(done.exception)
    (tmp_path / "config").write_text(f"[profile of-prod]\n{keys}[profile of-staging]\n{keys}")
    assert proved.run("promote", ID, "--from", "staging", "--to", "prod", "--yes").exit_code == 0


def test_a_failed_edit_goes_back_to_the_last_proved_state_and_a_proved_one_to_that_before(proved: Tree) -> None:
    proved.write(STAGING_FILE, text(most=3))  # not proved
    done = proved.run("rollback", "--stack", "staging", "--yes")
    assert done.exit_code == 0, done.output
    assert proved.read(STAGING_FILE) == text() and f"~ model {ID}" in done.stdout
    proved.write(STAGING_FILE, text(most=4))
    proved.prove("staging")
    assert proved.run("rollback", ID, "--stack", "staging", "--yes").exit_code == 0
    assert proved.read(STAGING_FILE) == text()
    assert "Next: modelfleet up --stack staging" in proved.run("rollback", "--stack", "staging", "--yes").stderr
    assert proved.read(STAGING_FILE) == text(most=4), "after a rollback that was not proved, forward again"


def test_the_image_goes_back_with_all_models_and_not_with_one(proved: Tree) -> None:
    other = DIGEST.replace("a" * 64, "b" * 64)
    proved.stack("staging", kubernetes={"image": other, "namespace": "here"})  # not proved
    proved.write(STAGING_FILE, text(most=3))
    one = proved.run("rollback", ID, "--stack", "staging", "--yes")
    assert one.exit_code == 0 and f"that was in {DIGEST}" in one.stderr.replace("\n", ""), one.output
    assert load_stack(proved.root, "staging").config.kubernetes.image == other
    done = proved.run("rollback", "--stack", "staging", "--yes")
    assert done.exit_code == 0 and "the Ray cluster changes" in done.stdout, done.output
    kubernetes = load_stack(proved.root, "staging").config.kubernetes
    assert (kubernetes.image, kubernetes.namespace) == (DIGEST, "here")
    assert "no proved state differs" in proved.run("rollback", "--stack", "staging", "--yes").stderr


def test_a_model_that_came_since_sends_no_other_one_back(proved: Tree) -> None:
    """The last state, in which that model is not, is not what is there now, and the others are as it says."""
    proved.write(STAGING_FILE, text(most=4))
    proved.prove("staging")
    proved.write("models/staging/new.yaml", text().replace(ID, "Qwen/Qwen3-4B"))  # it has a plan, and `up` fails
    done = proved.run("rollback", "--stack", "staging", "--yes")
    assert isinstance(done.exception, InputErrors), done.output
    assert [one.file for one in done.exception.findings] == ["models/staging/new.yaml"]
    assert proved.read(STAGING_FILE) == text(most=4)
    assert proved.run("rollback", ID, "--stack", "staging", "--yes").exit_code == 0, "it is named"


def test_a_rollback_out_of_a_file_that_has_no_plan(proved: Tree) -> None:
    proved.write(STAGING_FILE, "engine_config: [")
    done = proved.run("rollback", "--stack", "staging", "--yes")
    assert done.exit_code == 0 and "the files now have no plan" in done.stdout, done.output
    assert proved.read(STAGING_FILE) == text()


def test_weights_that_moved_come_back_although_the_mirror_was_cleaned(proved: Tree, tmp_path: Path) -> None:
    """Two more fills: without the mark the first one's files would be deleted (test_mirror.py has that)."""
    first = current(proved)
    proved.mirror("staging", "two")
    proved.mirror("staging", "three")
    assert current(proved) != first
    done = proved.run("rollback", "--stack", "staging", "--yes")
    assert done.exit_code == 0 and f"has version {first} again" in done.stderr, done.output
    uri = f"s3://fleet-staging/models/{SLUG}"
    assert current(proved) == first and status(uri) is Status.COMPLETE
    assert (fetch(uri, tmp_path / "cache") / "model.safetensors").read_text() == "one"
    assert proved.read(STAGING_FILE) == text()


def test_a_version_that_somebody_deleted_by_hand_is_no_rollback(proved: Tree) -> None:
    first = current(proved)
    proved.mirror("staging", "two")
    proved.write(STAGING_FILE, text(most=3))
    proved.s3.delete_object(Bucket="fleet-staging", Key=f"models/{SLUG}/{first}/model.safetensors")
    done = proved.run("rollback", "--stack", "staging", "--yes")
    assert "1 of its files are gone" in str(done.exception)
    assert proved.read(STAGING_FILE) == text(most=3), "then no file is changed either"


def test_no_copy_is_turned_back_where_another_one_is_gone(proved: Tree) -> None:
    """Replicas that start meanwhile would have one model's weights of then in the file of now."""
    tokenizer = "  engine_kwargs: {tokenizer: org/tok}\n"
    with_one = text().replace("  max_total_tokens", f"{tokenizer}  max_total_tokens")
    proved.write(STAGING_FILE, with_one)

    def fill_tokenizer(content: str) -> str:
        folder = proved.root / "tokenizer"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer.json").write_text(content)
        uri = "s3://fleet-staging/models/_tokenizer/org--tok"
        return fill(folder, uri, model_id="org/tok", source="org/tok").version

    gone = fill_tokenizer("one")
    state = proved.prove("staging")
    assert state and [copy.version for copy in state.models[0].copies] == [current(proved), gone]
    second = proved.mirror("staging", "two")
    fill_tokenizer("two")
    proved.s3.delete_object(Bucket="fleet-staging", Key=f"models/_tokenizer/org--tok/{gone}/tokenizer.json")
    done = proved.run("rollback", "--stack", "staging", "--yes")
    assert "1 of its files are gone" in str(done.exception), (done.output, done.exception)
    assert current(proved) == second


def test_the_mirror_keeps_the_last_proved_versions_and_no_older_ones(proved: Tree) -> None:
    versions = [current(proved)]
    for number in range(KEPT + 1):
        versions.append(proved.mirror("staging", f"content {number}"))
        proved.prove("staging")
    kept = proved.s3.list_objects_v2(Bucket="fleet-staging", Prefix=f"models/{SLUG}/proved/")["Contents"]
    names = {one["Key"].rpartition("/")[2].removesuffix(".json") for one in kept}
    assert names == set(versions[-KEPT:])
    proved.mirror("staging", "the next")
    there = proved.s3.list_objects_v2(Bucket="fleet-staging", Prefix=f"models/{SLUG}/")["Contents"]
    folders = {one["Key"].split("/")[2] for one in there} - {"proved", "manifest.json"}
    assert folders == {*versions[-KEPT:], current(proved)}


def test_a_mark_that_the_bucket_refused_is_made_by_the_next_up(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write(STAGING_FILE, text())
    first, put = tree.mirror("staging", "one"), tree.s3.put_object

    def refuse(**words: Any) -> Any:
        if "/proved/" in words["Key"]:
            raise ClientError({"Error": {"Code": "SlowDown"}}, "PutObject")
        return put(**words)

    with monkeypatch.context() as once, pytest.raises(MirrorError, match="SlowDown"):
        once.setattr(tree.s3, "put_object", refuse)
        tree.prove("staging")
    assert tree.prove("staging") is not None
    tree.mirror("staging", "two")
    tree.mirror("staging", "three")
    assert tree.run("rollback", "--stack", "staging", "--yes").exit_code == 0
    assert current(tree) == first


def test_the_same_state_is_kept_once_and_the_oldest_go(proved: Tree) -> None:
    assert proved.prove("staging") is None
    plan = make_plan(proved.root, "staging", deploying=False)
    memory = Memory(proved.root, plan.source, proved.s3)
    for number in range(STATES + 2):
        memory.keep(plan, {STAGING_FILE: text()}, release=f"0.{number}", image=None)
    assert len(Memory(proved.root, load_stack(proved.root, "staging"), proved.s3).states()) == STATES


def test_a_state_of_another_version_is_said_in_one_line(proved: Tree) -> None:
    proved.s3.put_object(Bucket="fleet-staging", Key="proved/staging/20990101T000000Z.json", Body=b'{"version": 2}')
    done = proved.run("rollback", "--stack", "staging")
    assert isinstance(done.exception, SetupError) and "another version of modelfleet" in str(done.exception)


@pytest.mark.parametrize("file", ["models/../__main__.py", "{tmp}/outside.yaml", "stacks/Pulumi.staging.yaml"])
def test_a_state_that_names_another_file_than_a_model_s_writes_nothing(proved: Tree, file: str) -> None:
    """A cluster's workers may have the same rights in the bucket (Secret `object-storage`)."""
    path = file.format(tmp=proved.root.parent)
    (last,) = Memory(proved.root, load_stack(proved.root, "staging"), proved.s3).states()
    (one,) = last.models
    strange = last.model_copy(update={"models": (one.model_copy(update={"file": path, "text": "# not yours"}),)})
    key = "proved/staging/29991201T000000Z.json"
    proved.s3.put_object(Bucket="fleet-staging", Key=key, Body=strange.model_dump_json().encode())
    done = proved.run("rollback", "--stack", "staging", "--yes")
    assert isinstance(done.exception, SetupError) and "no model file" in str(done.exception), done.output
    written = proved.root / path
    assert not written.is_file() or written.read_text() != "# not yours"


def test_a_local_stack_keeps_its_states_in_files_because_its_bucket_is_forgotten(tree: Tree) -> None:
    pool = {"name": "cpu", "accelerator": "CPU", "maxNodes": 1}
    local = {"s3Port": 1}  # nothing answers there: the emulator is gone
    tree.stack("staging", target="local", pools=[pool], kubernetes={}, local=local)
    cpu = text().replace("L4", "CPU").replace("num_gpus_per_worker: 1", "num_gpus_per_worker: 0")
    tree.write(STAGING_FILE, cpu)
    plan = make_plan(tree.root, "staging", deploying=False)
    memory = Memory(tree.root, plan.source, tree.s3)
    assert memory.keep(plan, {STAGING_FILE: cpu}, release="0.1.0", image=None) is not None
    assert [path.suffix for path in (tree.root / ".modelfleet" / "proved" / "staging").iterdir()] == [".json"]
    tree.write(STAGING_FILE, cpu.replace("max_ongoing_requests: 20", "max_ongoing_requests: 30"))
    done = tree.run("rollback", "--stack", "staging", "--yes")
    assert done.exit_code == 0, (done.output, done.exception)
    assert tree.read(STAGING_FILE) == cpu


def test_between_this_machine_and_aws_the_accelerator_decides_and_that_is_said_in_one_line(tree: Tree) -> None:
    """The file says what it runs on, and promotion copies files byte for byte."""
    pool = {"name": "cpu", "accelerator": "CPU", "maxNodes": 1}
    tree.stack("staging", target="local", pools=[pool], kubernetes={}, local={"s3Port": 1})
    cpu = text().replace("L4", "CPU").replace("num_gpus_per_worker: 1", "num_gpus_per_worker: 0")
    tree.write(STAGING_FILE, cpu)
    tree.prove("staging")
    refused = tree.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert isinstance(refused.exception, InputErrors)
    (finding,) = refused.exception.findings
    assert finding.file == "stacks/Pulumi.prod.yaml" and "CPU" in finding.message, finding
    tree.stack("prod", pools=[{**pool, "instanceTypes": ["m7i.2xlarge"]}])
    done = tree.run("promote", ID, "--from", "staging", "--to", "prod", "--yes")
    assert done.exit_code == 0 and tree.read(PROD_FILE) == cpu, (done.output, done.exception)


def state(at: str, *models: ProvedModel) -> Proved:
    return Proved(stack="s", at=at, release="1", code_sha256="c", image=None, models=models)


def test_the_newest_state_that_differs_is_the_one_to_go_back_to() -> None:
    copy = Copy(uri="u", version="v1", source="s", revision=None)
    a, b = (ProvedModel(model_id="a", file="a.yaml", text=text, copies=(copy,)) for text in ("1", "2"))
    c = ProvedModel(model_id="c", file="c.yaml", text="1")
    states = [state("1", a, c), state("2", b, c)]
    now = {"a.yaml": "2", "c.yaml": "1"}
    assert before_now(states, None, now, {"u": "v1"}) == (states[0], (a,))
    assert before_now(states, "c", now, {}) is None
    assert before_now(states, None, now, {"u": "v2"}) == (states[1], (b,)), "only the weights moved"
    assert before_now(states, None, {"c.yaml": "1"}, {}) == (states[1], (b,)), "the file is gone"
    assert versions_to_keep(states, "u") == ("v1",)


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        (["prod/*"], "models/prod/a--b.yaml"),
        (["*"], "models/a--b.yaml"),
        (["x/y", "prod/**"], "models/prod/a--b.yaml"),
        (["a--*"], "models/a--b.yaml"),
        (["c--*", "p*/*"], None),
    ],
)
def test_a_new_file_goes_where_the_target_s_patterns_find_it(patterns: list[str], found: str | None) -> None:
    assert file_for(patterns, "a--b") == found


def test_an_image_in_a_stack_file_keeps_everything_else() -> None:
    before = "config:\n  modelfleet:models:\n  - prod/*     # all of prod\n  modelfleet:target: kubernetes\n"
    after = with_image(before, DIGEST)
    assert after.startswith(before) and yaml.safe_load(after)["config"]["modelfleet:kubernetes"] == {"image": DIGEST}
    assert round_trip(after) is not None
