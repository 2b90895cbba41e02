"""The example models and their documentation are correct. Otherwise everybody copies the mistakes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from modelfleet.infra.catalog.catalog import __file__ as catalog_file
from modelfleet.serving.config.accelerators import known_gpus
from modelfleet.serving.config.catalogs import engine_arguments, removed
from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.errors import Severity
from modelfleet.serving.config.load import load_model, model_of
from modelfleet.serving.config.schema import ModelConfig
from tools.schema.reference import keys, readme

ROOT = Path(__file__).parents[3]
MODELS = sorted((ROOT / "models").rglob("*.yaml"))
README = (ROOT / "models" / "README.md").read_text()
QUANTIZATION = (ROOT / "models" / "quantization" / "README.md").read_text()
SCHEMA = json.loads((ROOT / "schemas" / "model.schema.json").read_text())
CATALOG = Path(catalog_file).parent


def table(text: str, first_column: str) -> list[dict[str, str]]:
    """The Markdown table with this name in its first column."""
    lines = text[text.index(f"| {first_column} |") :].splitlines()
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    rows: list[dict[str, str]] = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(header, (cell.strip() for cell in line.strip("|").split("|")), strict=True)))
    return rows


def catalog(name: str) -> list[dict[str, str]]:
    lines = [line for line in (CATALOG / name).read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: str(path.relative_to(ROOT / "models")))
def test_an_example_has_no_findings_and_is_named_by_its_slug(path: Path) -> None:
    model, findings = load_model(path)
    assert findings == [] and model is not None
    assert path.stem == model.config.slug
    assert list(Draft202012Validator(SCHEMA).iter_errors(yaml.safe_load(path.read_text()))) == []


def test_there_is_an_example_for_each_accelerator_of_rayllm() -> None:
    loaded = [load_model(path)[0] for path in MODELS]
    shown = {model.config.accelerator for model in loaded if model}
    assert shown >= {"T4", "L4", "A10G", "A100-40G", "A100-80G", "CPU"}


def test_the_reference_matches_the_schema() -> None:
    assert readme(README) == README, "run `make schema`"


def test_the_reference_changes_with_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys()
    changed = json.loads(json.dumps(ModelConfig.model_json_schema()))
    changed["properties"]["enabled"]["description"] = "Something else."
    monkeypatch.setattr(ModelConfig, "model_json_schema", lambda **_: changed)
    assert keys() != before


def test_every_key_has_a_description_an_example_and_a_unit_if_it_is_a_number() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| `(.*)` \|$", keys())
    assert len(rows) > 60, "every key of every section"
    for name, kind, _default, description, example in rows:
        assert description and example.startswith(f"{name}: ")
        assert "number" not in kind or "," in kind, f"{name} has no unit"


def test_every_example_is_valid_at_its_key() -> None:
    """An example that `check` refuses is worse than none."""
    count = 0
    for section, definition in [("", SCHEMA), *SCHEMA["$defs"].items()]:
        for name, key in definition["properties"].items():
            for example in key.get("examples", []):
                count += 1
                errors = Draft202012Validator({**key, "$defs": relaxed()}).iter_errors(example)
                assert [error.message for error in errors] == [], f"{section}.{name}"
    assert count > 60


def relaxed() -> dict[str, Any]:
    """The sections without their required keys: an example shows one key of a section."""
    definitions: dict[str, Any] = json.loads(json.dumps(SCHEMA["$defs"]))
    for definition in definitions.values():
        definition.pop("required", None)
    return definitions


def test_the_first_example_of_the_readme_is_a_complete_model() -> None:
    text = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert text is not None
    model, findings = model_of(parse_document(text[1].encode(), "README.md"))
    assert model is not None and findings == []


def test_the_table_of_old_names_is_what_normalising_does() -> None:
    rows = table(README, "old")
    for row in rows[:3]:
        old = row["old"].strip("`")
        section = "deployment_config: {autoscaling_config: {max_replicas: 1, %s: 1}}\n"
        if old == "max_concurrent_queries":
            section = "deployment_config: {%s: 10}\n"
        text = (
            section % old + "engine_config: {model_id: a/b}\nscaling_config: {num_workers: 1, num_gpus_per_worker: 0}\n"
        )
        findings = model_of(parse_document(text.encode(), "m.yaml"))[1]
        notice = next(f for f in findings if f.path.endswith(old))
        assert notice.severity is Severity.NOTICE
        assert all(name in notice.message for name in re.findall(r"`(\w+)`", row["today"]))


def test_the_readme_has_the_seeds_three_debugging_cases() -> None:
    debugging = README[README.index("## My deployment does not start") :]
    for word in ("model id", "gated", "huggingFaceToken", '"CUDA"', '"NCCL"', "max_batch_prefill_tokens"):
        assert word in debugging


def test_the_accelerators_of_the_quantization_page_are_the_catalogs() -> None:
    rows = table(QUANTIZATION, "accelerator")
    assert {row["accelerator"] for row in rows} == known_gpus().keys()
    for row in rows:
        fact = known_gpus()[row["accelerator"]]
        assert row["memory, MiB"] == str(fact.memory_mib)
        assert tuple(map(int, row["compute capability"].split("."))) == fact.compute_capability
        assert row["bfloat16"].startswith("yes" if fact.bfloat16 else "no")
        assert row["FP8"] == ("weights and arithmetic" if fact.fp8 else "weights only")


def test_the_methods_of_the_quantization_page_are_the_catalogs_and_vllms() -> None:
    facts = {row["method"]: row for row in catalog("quantization.csv")}
    known = engine_arguments()["quantization"]["choices"]
    rows = table(QUANTIZATION, "method")
    named = [row for row in rows if row["`quantization`"] != "none"]
    assert len(named) == 4
    for row in named:
        method = row["`quantization`"].strip("`")
        assert method in known, "the pinned vLLM must take it"
        assert row["least compute capability"] == facts[method]["min_compute_capability"]
    for row in rows:
        if row["`quantization`"] == "none":
            assert row["method"].lower() in removed("quantization")


@pytest.mark.parametrize("method", ["AWQ", "GPTQ", "FP8"])
def test_what_runs_where_follows_from_the_numbers(method: str) -> None:
    least = {row["method"]: float(row["least compute capability"]) for row in table(QUANTIZATION, "method")[:3]}
    for row in table(QUANTIZATION, "accelerator"):
        assert (row[method] != "no") == (float(row["compute capability"]) >= least[method])
