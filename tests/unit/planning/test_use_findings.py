"""Licences, access and foreign code: what is said of a model file, and what a stack refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelfleet.cli.check import run_check
from modelfleet.infra.catalog import default_catalog
from modelfleet.infra.catalog.licences import licence_limit
from modelfleet.infra.planning.facts import ModelFacts
from modelfleet.infra.planning.memory.checkpoint import Checkpoint
from modelfleet.infra.planning.use_findings import licence_findings, token_findings, use_findings
from modelfleet.serving.config.errors import InputErrors, Severity
from tests.unit.planning.builders import model, planned, pool, stack

CATALOG = default_catalog()
GATED, FREE, NON_COMMERCIAL = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-8B", "jinaai/jina-embeddings-v3"


def test_the_catalog_has_the_cases_of_these_tests() -> None:
    assert CATALOG.models[GATED].gated and not CATALOG.models[FREE].gated
    assert "nc" in CATALOG.models[NON_COMMERCIAL].licence


@pytest.mark.parametrize(
    ("licence", "limits"),
    [("cc-by-nc-4.0", "commercial use"), ("llama3.3", "700 million"), ("MiniMax Community License", "its own text"),
     ("MiniMax M2.7 Non-Commercial License (GPUStack says modified-mit)", "commercial use"), ("apache-2.0", None),
     ("mit", None)],
)  # fmt: skip
def test_a_licence_says_what_it_limits(licence: str, limits: str | None) -> None:
    found = licence_limit(licence)
    assert found is None if limits is None else limits in str(found)


def test_a_file_is_told_its_licence_and_who_may_download_it() -> None:
    found = use_findings(model(GATED, "L4"), None, CATALOG, has_token=lambda: False)
    assert [finding.severity for finding in found] == [Severity.NOTICE] * 2
    assert all(finding.path == "engine_config.model_id" and finding.line for finding in found)
    assert "700 million" in found[0].message and "HF_TOKEN" in found[1].message
    assert use_findings(model(FREE, "L4"), None, CATALOG, has_token=lambda: False) == []
    (licence,) = use_findings(model(GATED, "L4"), None, CATALOG, has_token=lambda: True)
    assert licence == found[0], "who has a token is not told again"


def test_code_of_a_checkpoint_is_named_unless_the_file_trusts_it() -> None:
    facts = ModelFacts(Checkpoint({"auto_map": {"AutoModel": "modeling.Own"}}), "test")
    (found,) = use_findings(model(FREE, "L4"), facts, CATALOG, has_token=lambda: False)
    assert "trust_remote_code" in found.message
    assert (
        use_findings(
            model(FREE, "L4", engine_kwargs={"trust_remote_code": True}), facts, CATALOG, has_token=lambda: False
        )
        == []
    )


def test_a_stack_refuses_a_licence_that_it_forbids() -> None:
    rules = stack(pool("l4", "L4"), licence={"forbid": ["CC-BY-NC"]})
    with pytest.raises(InputErrors) as refused:
        planned([model(NON_COMMERCIAL, "L4")], rules)
    (finding,) = [one for one in refused.value.findings if "licence" in one.message]
    assert finding.severity is Severity.ERROR and finding.path == "engine_config.model_id" and finding.line
    assert "cc-by-nc-4.0" in finding.message and "modelfleet:licence.forbid" in finding.message
    assert licence_findings(rules, [model(FREE, "L4")], CATALOG) == []


def test_a_stack_refuses_a_licence_that_nobody_knows_only_when_it_says_so() -> None:
    unknown = [model("org/unheard-of", "L4")]
    assert licence_findings(stack(pool("l4", "L4")), unknown, CATALOG) == []
    (found,) = licence_findings(stack(pool("l4", "L4"), licence={"forbidUnknown": True}), unknown, CATALOG)
    assert "licence.forbidUnknown" in found.message


def test_gated_weights_without_a_token_are_a_warning_where_the_hub_is_asked() -> None:
    gated, without = [model(GATED, "L4")], stack(pool("l4", "L4"))
    (found,) = token_findings(without, gated, CATALOG)
    assert found.severity is Severity.WARNING and found.path == "modelfleet:huggingFaceToken" and GATED in found.message
    assert token_findings(without, [model(FREE, "L4")], CATALOG) == []
    assert token_findings(stack(pool("l4", "L4"), secrets=("huggingFaceToken",)), gated, CATALOG) == []
    mirrored = stack(pool("l4", "L4"), mirror={"sources": {GATED: "s3://ours/llama"}})
    assert token_findings(mirrored, gated, CATALOG) == []


def test_check_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "one.yaml").write_text(
        "deployment_config: {}\n"
        f"engine_config:\n  model_id: {GATED}\n  max_total_tokens: 4096\n"
        'scaling_config:\n  num_workers: 1\n  resources_per_worker: {"accelerator_type:L4": 0.001}\n'
    )
    assert run_check([Path("one.yaml")], stack=None, as_json=False, fix=False) == 0
    printed = capsys.readouterr()
    text = " ".join((printed.out + printed.err).split())
    assert "one.yaml:3: notice: engine_config.model_id: its licence 'llama3.1' limits services" in text
    assert "rewrites old names" not in text, "the file has none"
