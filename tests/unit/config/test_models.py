"""The example models and their documentation are right. Damage otherwise: everybody copies them."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from infra.catalog.catalog import __file__ as catalog_file
from serving.config.accelerators import ACCELERATORS
from serving.config.catalogs import engine_arguments, removed
from serving.config.document import parse_document
from serving.config.errors import Severity
from serving.config.load import load_model, model_of
from serving.config.schema import ModelConfig
from tools.schema.reference import keys, readme

ROOT = Path(__file__).parents[3]
MODELS = sorted((ROOT / "models").rglob("*.yaml"))
README = (ROOT / "models" / "README.md").read_text()
QUANTIZATION = (ROOT / "models" / "quantization" / "README.md").read_text()
SCHEMA = json.loads((ROOT / "schemas" / "model.schema.json").read_text())
CATALOG = Path(catalog_file).parent


def table(text: str, first_column: str) -> list[dict[str, str]]:
    """The Markdown table whose first column is named so."""
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
def test_an_example_has_nothing_to_say_and_is_named_by_its_slug(path: Path) -> None:
    model, findings = load_model(path)
    assert findings == [] and model is not None
    assert path.stem == model.config.slug
    assert list(Draft202012Validator(SCHEMA).iter_errors(yaml.safe_load(path.read_text()))) == []


def test_there_is_an_example_for_every_accelerator() -> None:
    loaded = [load_model(path)[0] for path in MODELS]
    assert {model.config.accelerator for model in loaded if model} == set(ACCELERATORS)


def test_the_reference_is_what_the_schema_makes() -> None:
    assert readme(README) == README, "run `make schema`"


def test_the_reference_changes_with_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys()
    changed = json.loads(json.dumps(ModelConfig.model_json_schema()))
    changed["properties"]["enabled"]["description"] = "Something else."
    monkeypatch.setattr(ModelConfig, "model_json_schema", lambda **_: changed)
    assert keys() != before


def test_every_key_has_a_description_a_unit_where_it_is_a_number_and_an_example() -> None:
    rows = re.findall(r"(?m)^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| `(.*)` \|$", keys())
    assert len(rows) > 60, "every key of every section"
    for name, kind, _default, description, example in rows:
        assert description and example.startswith(f"{name}: ")
        assert "number" not in kind or "," in kind, f"{name} has no unit"


def test_every_example_is_valid_where_it_stands() -> None:
    """An example that `check` would refuse is worse than none."""
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


def test_the_first_example_of_the_readme_is_a_whole_model() -> None:
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


def test_the_seeds_three_cases_of_debugging_are_there() -> None:
    debugging = README[README.index("## My deployment does not start") :]
    for word in ("model id", "gated", "huggingFaceToken", '"CUDA"', '"NCCL"', "max_batch_prefill_tokens"):
        assert word in debugging


def test_the_accelerators_of_the_quantization_page_are_the_catalogs() -> None:
    facts = {row["accelerator"]: row for row in catalog("accelerators.csv")}
    rows = table(QUANTIZATION, "accelerator")
    assert {row["accelerator"] for row in rows} == facts.keys()
    for row in rows:
        fact = facts[row["accelerator"]]
        assert row["memory, MiB"] == fact["memory_mib"]
        assert row["compute capability"] == fact["compute_capability"]
        assert row["bfloat16"].startswith("yes" if fact["bfloat16"] == "true" else "no")
        assert row["FP8"] == ("weights and arithmetic" if fact["fp8"] == "true" else "weights only")


def test_the_methods_of_the_quantization_page_are_the_catalogs_and_vllms() -> None:
    facts = {row["method"]: row for row in catalog("quantization.csv")}
    known = engine_arguments()["quantization"]["choices"]
    rows = table(QUANTIZATION, "method")
    named = [row for row in rows if row["`quantization`"] != "none"]
    assert len(named) == 4
    for row in named:
        method = row["`quantization`"].strip("`")
        assert method in known, "vLLM takes it"
        assert row["least compute capability"] == facts[method]["min_compute_capability"]
    for row in rows:
        if row["`quantization`"] == "none":
            assert row["method"].lower() in removed("quantization")


@pytest.mark.parametrize("method", ["AWQ", "GPTQ", "FP8"])
def test_what_runs_where_follows_from_the_numbers(method: str) -> None:
    least = {row["method"]: float(row["least compute capability"]) for row in table(QUANTIZATION, "method")[:3]}
    for row in table(QUANTIZATION, "accelerator"):
        assert (row[method] != "no") == (float(row["compute capability"]) >= least[method])
