"""Stack files: every key has a type, every fault its line, and secrets are never read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleet.infra.stack import LoadedStack, load_stack
from modelfleet.infra.stack.schema import StackConfig
from modelfleet.serving.config.errors import InputErrors
from tests.examples import examples

HEAD = "config:\n  aws:region: us-east-1\n  modelfleet:target: eks\n  modelfleet:models: ['*']\n"
ROOT = Path(__file__).parents[3]


def load(root: Path, text: str | bytes) -> LoadedStack:
    (root / "stacks").mkdir(exist_ok=True)
    path = root / "stacks" / "Pulumi.dev.yaml"
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    return load_stack(root, "dev")


def sentences(root: Path, text: str) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        load(root, text)
    return [finding.sentence() for finding in caught.value.findings]


def test_a_small_stack_has_all_defaults(tmp_path: Path) -> None:
    loaded = load(tmp_path, HEAD + "  modelfleet:pools:\n    - {name: l4, accelerator: L4, maxNodes: 2}\n")
    assert loaded.region == "us-east-1"
    assert loaded.config.pools[0].instance_types == "auto"
    assert loaded.config.network.nat == "single"


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("  modelfleet:poools: []\n", "5: modelfleet:poools: unknown, did you mean pools?"),
        (
            "  modelfleet:pools:\n    - {name: l4, accelerator: L4, maxNode: 2}\n",
            "6: modelfleet:pools[0].maxNode: unknown, did you mean maxNodes?",
        ),
        (
            "  modelfleet:pools:\n    - {name: h100, accelerator: H100, maxNodes: 2, efa: true}\n",
            "6: modelfleet:pools[0].efa: unknown",
        ),
        (
            "  modelfleet:pools:\n    - {name: l4, accelerator: V100, maxNodes: 2}\n",
            "6: modelfleet:pools[0].accelerator: found 'V100'",
        ),
        (
            "  modelfleet:pools:\n    - {name: Big_GPUs, accelerator: L4, maxNodes: 2}\n",
            "6: modelfleet:pools[0].name: found 'Big_GPUs'; allowed is 1 to 28 lower-case letters, digits and `-`",
        ),
        (
            "  modelfleet:pools:\n    - {name: l4, accelerator: L4, minNodes: 3, maxNodes: 2}\n",
            "6: modelfleet:pools[0]: found minNodes 3 above maxNodes 2",
        ),
        (
            "  modelfleet:pools:\n"
            "    - {name: a, accelerator: L4, maxNodes: 2}\n    - {name: a, accelerator: T4, maxNodes: 2}\n",
            "found a twice; each pool has its own name",
        ),
        ("  modelfleet:network: {vpcId: vpc-12}\n", "vpcId and privateSubnetIds go together; set both or neither"),
        ("  modelfleet:accountId: '123'\n", "5: modelfleet:accountId: found '123'"),
        ("  modelfleet:budget: {maxUsdPerHour: -1}\n", "5: modelfleet:budget.maxUsdPerHour: found -1"),
        (
            "  modelfleet:local: {servePort: 8000}\n",
            "5: modelfleet:local.servePort: found 8000, which gatewayPort has too; each service needs its own port",
        ),
        (
            "  modelfleet:apiKeys: {team: abc}\n",
            "5: modelfleet:apiKeys: is in plain text; run `pulumi config set --secret",
        ),
        ("  modelfleet:huggingFaceToken: hf_abc\n", "5: modelfleet:huggingFaceToken: is in plain text"),
    ],
    ids=lambda value: value.strip()[:40] if value.startswith("  ") else "",
)
def test_a_fault_is_reported_at_its_line(tmp_path: Path, lines: str, sentence: str) -> None:
    found = "\n".join(sentences(tmp_path, HEAD + lines))
    assert sentence in found
    assert "hf_abc" not in found and "team: abc" not in found, "a message must not repeat a secret"


@pytest.mark.parametrize(
    "text",
    [
        "  modelfleet:apiKeys: {secure: v1:abc}\n",
        "  modelfleet:apiKeys:\n    team: {secure: v1:abc}\n    other: {secure: v1:def}\n",
        "  modelfleet:apiKeys:\n    - secure: v1:abc\n",
    ],
    ids=["whole", "by name", "list"],
)
def test_a_secret_in_any_of_pulumis_forms_is_set(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, HEAD + text).secrets == {"apiKeys"}


def test_pulumis_own_keys_next_to_config_are_left_alone(tmp_path: Path) -> None:
    assert load(tmp_path, "encryptionsalt: v1:abc\n" + HEAD).config.target.name == "eks"


def test_a_missing_stack_error_names_the_existing_ones(tmp_path: Path) -> None:
    load(tmp_path, HEAD)
    with pytest.raises(InputErrors) as caught:
        load_stack(tmp_path, "prod")
    assert str(caught.value) == "stacks/Pulumi.prod.yaml: no such stack; stacks/ has dev"


def test_all_faults_of_a_file_come_at_once(tmp_path: Path) -> None:
    text = HEAD + "  modelfleet:poools: []\n  modelfleet:accountId: '1'\n  modelfleet:huggingFaceToken: hf_abc\n"
    assert len(sentences(tmp_path, text)) == 3


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(str.encode), st.sampled_from([b"a: &a [*a]", b"config: 3"])
    )
)
def test_any_bytes_give_findings_and_no_traceback(tmp_path: Path, junk: bytes) -> None:
    with pytest.raises(InputErrors):
        load(tmp_path, junk)


PIECES = (ROOT / "stacks" / "Pulumi.prod.yaml").read_bytes()


@settings(max_examples=examples(400), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(PIECES)), st.integers(0, 30), st.binary(max_size=12))
def test_a_damaged_stack_file_gives_findings_or_loads(tmp_path: Path, at: int, cut: int, junk: bytes) -> None:
    try:
        load(tmp_path, PIECES[:at] + junk + PIECES[at + cut :])
    except InputErrors as error:
        assert all(finding.sentence() for finding in error.findings)


def test_every_key_has_a_description() -> None:
    """Descriptions become the reference and an editor's help. For a section, its class's own also counts."""
    schema = StackConfig.model_json_schema(by_alias=True)
    sections = [schema, *schema["$defs"].values()]
    keys = [(key, value) for section in sections for key, value in section["properties"].items()]
    assert [key for key, value in keys if not value.get("description") and "$ref" not in value] == []
    assert all(section["description"] for section in sections)


def test_the_json_schema_of_stack_files_is_the_generated_one() -> None:
    path = ROOT / "schemas" / "stack.schema.json"
    assert path.is_file(), "run `make schema`"
    assert "modelfleet:pools" in json.dumps(json.loads(path.read_text()))


def test_the_reference_of_stack_files_is_the_generated_one() -> None:
    from tools.schema.stack_reference import README, readme

    text = README.read_text("utf-8")
    assert readme(text) == text, "run `make schema`"
    assert "`maxUsdPerHour`" in text
