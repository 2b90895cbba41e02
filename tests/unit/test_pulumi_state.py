"""A stack in AWS gets no state that only this folder has, unless somebody asked for it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from modelfleet.cli.pulumi_state import IN_THE_CLOUD, HiddenState, prepare
from modelfleet.infra.stack.target import TARGETS

CLI = Path("/no/such/pulumi")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "stacks").mkdir()
    (tmp_path / "Pulumi.yaml").write_text("name: fleet\nruntime: python\n")
    stacks = {
        "prod": "  aws:region: us-east-1\n  modelfleet:target: eks\n",
        "quoted": "  'modelfleet:target': \"eks\"\n",
        "own": "  modelfleet:target: kubernetes   # not eks\n",
        "plain": "  # modelfleet:target: eks\n  modelfleet:models: []\n",
    }
    for name, text in stacks.items():
        (tmp_path / "stacks" / f"Pulumi.{name}.yaml").write_text(f"config:\n{text}")
    return tmp_path


def environment(root: Path) -> dict[str, str]:
    """Of a user who has chosen nothing."""
    return {"PULUMI_HOME": str(root / "home")}


@pytest.mark.parametrize(
    ("arguments", "engine"),
    [
        pytest.param(["up", "-s", "prod"], True, id="up"),
        pytest.param(["preview", "--stack=quoted"], True, id="preview"),
        pytest.param(["stack", "init", "prod"], False, id="init"),
        pytest.param(
            ["config", "set", "--secret", "modelfleet:huggingFaceToken", "hf_1", "-s", "prod"], False, id="secret"
        ),
    ],
)
def test_a_stack_in_aws_gets_no_state_in_a_hidden_folder(root: Path, arguments: list[str], engine: bool) -> None:
    with pytest.raises(HiddenState) as refused:
        prepare(CLI, arguments, environment(root), root, engine=engine)
    said = str(refused.value)
    assert "\n" not in said
    first, second = said.index("pulumi login 's3://"), said.index("awskms://")
    assert first < second < said.index("pulumi login --local"), "a backend for a team comes first"
    assert said.index("PULUMI_CONFIG_PASSPHRASE_FILE") > said.index("--local"), "without it `modelfleet up` ends there"
    assert not (root / ".modelfleet").exists(), "a passphrase was made already"


@pytest.mark.parametrize(
    "arguments", [["stack", "output", "--json", "-s", "prod"], ["config", "-s", "prod"], ["about"]]
)
def test_commands_that_only_read_are_not_refused(root: Path, arguments: list[str]) -> None:
    assert prepare(CLI, arguments, environment(root), root, engine=False) == arguments


@pytest.mark.parametrize("stack", ["own", "plain"])
def test_other_stacks_keep_the_state_of_this_folder(root: Path, stack: str) -> None:
    chosen = environment(root)
    made = root / ".modelfleet" / "state" / ".pulumi" / "stacks" / "fleet" / f"{stack}.json"
    made.parent.mkdir(parents=True)
    made.write_text('{"checkpoint": {"latest": {"secrets_providers": {"state": {"salt": "v1:abc"}}}}}')
    prepare(CLI, ["up", "-s", stack], chosen, root, engine=True)
    assert chosen["PULUMI_BACKEND_URL"] == f"file://{root}/.modelfleet/state"


def test_a_state_that_is_here_already_goes_on_and_says_how_to_share_it(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise nobody could destroy what an earlier version made."""
    made = root / ".modelfleet" / "state" / ".pulumi" / "stacks" / "fleet" / "prod.json"
    made.parent.mkdir(parents=True)
    made.write_text('{"checkpoint": {"latest": {"secrets_providers": {"state": {"salt": "v1:abc"}}}}}')
    arguments = prepare(CLI, ["destroy", "-s", "prod"], environment(root), root, engine=True)
    assert arguments[:3] == ["destroy", "-s", "prod"]
    assert "pulumi stack export" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["login", "--local"], ["login", "s3://bucket"], ["logout"]])
def test_the_commands_that_choose_a_backend_are_left_alone(root: Path, arguments: list[str]) -> None:
    chosen = environment(root)
    assert prepare(CLI, arguments, chosen, root, engine=False) == arguments
    assert "PULUMI_BACKEND_URL" not in chosen and not (root / ".modelfleet").exists()


def test_a_backend_that_the_user_chose_is_never_refused(root: Path) -> None:
    chosen = {**environment(root), "PULUMI_BACKEND_URL": "s3://bucket"}
    assert prepare(CLI, ["up", "-s", "prod"], chosen, root, engine=True) == ["up", "-s", "prod"]


def test_the_targets_in_the_cloud_are_those_that_make_a_cluster() -> None:
    assert {name for name, target in TARGETS.items() if target.makes_cluster} == IN_THE_CLOUD


def test_the_state_is_for_its_owner_alone(root: Path) -> None:
    """Pulumi writes its files so that every user of the machine may read them."""
    state = root / ".modelfleet" / "state"
    state.mkdir(parents=True, mode=0o755)
    prepare(CLI, ["about"], environment(root), root, engine=False)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
