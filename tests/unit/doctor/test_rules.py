"""Each rule knows what the real part says, and says what to do."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from modelfleet.doctor.evidence import Layer
from modelfleet.doctor.rules import default_rules
from tests.unit.doctor.builders import RECORDS, evidence, judged, recorded
from tests.unit.doctor.rewrite import PAGE, page

BROKEN = evidence("application", "DEPLOY_FAILED: The deployment failed to start 3 times in a row. Error:\nE", models=())
IDS = [f"{record['rule']}-{place}" for place, record in enumerate(RECORDS)]


@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_what_the_real_part_says_becomes_one_sentence(record: dict[str, Any]) -> None:
    past = {placed.rule.id for placed in default_rules() if placed.rule.past}
    facts = [recorded(record), BROKEN] if record["rule"] in past else [recorded(record)]
    cause = next(one for one in judged(*facts) if one.evidence[0] == facts[0])
    assert (cause.rule, cause.sentence) == (record["rule"], record["says"])
    for text in (cause.sentence, cause.fix, cause.then):
        assert not re.search(r"\{\w+\}", text), "a name was left empty"


def test_every_rule_has_a_record() -> None:
    assert {placed.rule.id for placed in default_rules()} == {record["rule"] for record in RECORDS}


def test_no_two_rules_share_an_id() -> None:
    ids = [placed.rule.id for placed in default_rules()]
    assert sorted({*ids}) == sorted(ids)


def test_what_may_be_over_is_said_only_where_something_is_wrong() -> None:
    death = evidence("raynode", "DEAD: health check failed", layer=Layer.RAY)
    assert judged(death) == []
    assert [one.rule for one in judged(death, BROKEN)] == ["ray-node-died"]


def test_a_symptom_goes_below_the_cause_of_its_model() -> None:
    gated = evidence("job-log", "org/model is gated on the Hugging Face Hub and this node's token cannot read it")
    failed = evidence("application", "DEPLOY_FAILED: The deployment failed to start 3 times in a row. Error:\nE")
    other = replace(failed, models=("org--other",))
    first, second = judged(failed, other, gated)
    assert (first.rule, [one.rule for one in first.explains]) == ("gated-model", ["model-cannot-start"])
    assert (second.rule, second.models) == ("model-cannot-start", ("org--other",)), "another model is another matter"


def test_the_first_layer_goes_first_whatever_was_read_first() -> None:
    ray = evidence("dashboard", "Ray's dashboard at http://127.0.0.1:8265 does not answer: x", layer=Layer.RAY)
    file = evidence("finding", "max_total_tokens: found 0", layer=Layer.FILES)
    assert [one.rule for one in judged(ray, file)] == ["file-at-fault", "ray-not-running"]


def test_one_cause_that_many_objects_show_is_said_once() -> None:
    text = "org/model is gated on the Hugging Face Hub and this node's token cannot read it"
    (cause,) = judged(evidence("application", text), evidence("deployment", text), evidence("log", text))
    assert len(cause.evidence) == 3


def test_a_named_model_leaves_others_out_and_keeps_what_concerns_all() -> None:
    mine = evidence("application", "DEPLOY_FAILED: a", models=("org--model",))
    other = evidence("application", "DEPLOY_FAILED: b", models=("org--other",))
    found = judged(mine, other, model="org--model")
    assert [one.models for one in found] == [("org--model",)]
    silent = evidence("dashboard", "does not answer: x", layer=Layer.RAY)
    assert [one.rule for one in judged(silent, other, model="org--model")] == ["ray-not-running"]


def test_a_healthy_stack_has_no_cause() -> None:
    assert judged() == []


def test_the_line_to_change_is_that_of_the_rules_key() -> None:
    (cause,) = judged(
        evidence(
            "log", "ValueError: Total number of attention heads (9) must be divisible by tensor parallel size (2)."
        )
    )
    assert (cause.file, cause.line, cause.key) == ("models/org--model.yaml", 7, "scaling_config.num_workers")


def test_the_page_lists_the_rules_as_they_are() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "run python -m tests.unit.doctor.rewrite"
