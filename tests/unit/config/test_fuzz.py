"""Any bytes in a model or stack file give findings. Otherwise a pull request could stop everybody's CI.

3,000 files in a full run, 400 else; LONG=1: 10,000.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfleet.infra.stack import load_stack
from modelfleet.serving.config.document import parse_document
from modelfleet.serving.config.errors import Finding, InputErrors, errors_in
from modelfleet.serving.config.load import model_of
from modelfleet.serving.config.rayllm.fix import fixed_text
from tests.examples import FULL
from tests.unit.config.mutations import REAL, mutated, structures
from tests.unit.config.time_limit import within

FILES = 10_000 if "LONG" in os.environ else 3000 if FULL else 400
#: For one file; the slowest takes 0.01 s.
SECONDS = 10.0
STACKS = [path.read_bytes() for path in sorted((Path(__file__).parents[3] / "stacks").glob("*.yaml"))]
FUZZ = settings(
    max_examples=FILES // 10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)


def check(raw: bytes) -> list[Finding]:
    """Does all that `check` and `check --fix` do with a model file's bytes, within a time limit."""
    with within(SECONDS):
        findings = _findings(raw)
        try:
            fixed_text(raw.decode(errors="replace"), "m.yaml")
        except InputErrors as error:
            assert error.findings
    for finding in findings:
        sentence = finding.sentence()
        assert sentence.isprintable() and len(sentence) < 3000, "no control character may reach a terminal"
        sentence.encode("utf-8")
    return findings


def _findings(raw: bytes) -> list[Finding]:
    try:
        model, findings = model_of(parse_document(raw, "m.yaml"))
    except InputErrors as error:
        assert error.findings
        return list(error.findings)
    if model is None:
        assert errors_in(findings), "a file without a model needs an error that says why"
    else:
        assert model.config.model_dump_json()
    return findings


def test_mutated_real_files_give_findings() -> None:
    loads = 0
    for seed in range(FILES * 7 // 10):
        try:
            loads += not errors_in(check(mutated(seed)))
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    assert FILES // 100 < loads < FILES * 7 // 10, (
        "some mutations must still load; otherwise no test reaches the deeper rules"
    )


@FUZZ
@given(structures)
def test_any_structure_gives_findings(data: object) -> None:
    check(yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass"))


@FUZZ
@given(st.dictionaries(st.sampled_from(["deployment_config", "engine_config", "scaling_config"]), structures))
def test_any_section_gives_findings(data: object) -> None:
    check(yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass"))


@FUZZ
@given(st.one_of(st.binary(max_size=400), st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))))
def test_any_bytes_give_findings(raw: bytes) -> None:
    check(raw)


def test_mutated_stack_files_give_findings(tmp_path: Path) -> None:
    folder = tmp_path / "stacks"
    folder.mkdir()
    file = folder / "Pulumi.fuzz.yaml"
    for seed in range(FILES * 3 // 10):
        file.write_bytes(mutated(seed, STACKS + REAL[:1]))
        with within(SECONDS):
            try:
                load_stack(tmp_path, "fuzz")
            except InputErrors as error:
                assert error.findings
                assert all(finding.sentence().isprintable() for finding in error.findings)
            except Exception as error:
                error.add_note(f"seed {seed}")
                raise


@pytest.mark.parametrize("raw", REAL, ids=range(len(REAL)))
def test_a_file_cut_anywhere_gives_findings(raw: bytes) -> None:
    for length in range(0, len(raw), 97):
        check(raw[:length])
