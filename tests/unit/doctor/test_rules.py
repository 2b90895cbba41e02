"""Each rule knows what the real part says, and says what to do."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from modelfleet.doctor.evidence import PAST, Layer
from modelfleet.doctor.rules import default_rules
from modelfleet.doctor.subject import STACK_KEY
from modelfleet.infra.stack import StackConfig
from modelfleet.serving.config.schema import ModelConfig
from tests.unit.doctor.builders import RECORDS, evidence, judged, recorded
from tests.unit.doctor.rewrite import PAGE, PROOFS, page

#: A symptom of the whole stack, for what was counts only where something is wrong now.
BROKEN = evidence("rayservice", "the RayService is not ready", layer=Layer.KUBERNETES)
#: Something that needs a machine.
WAITS = evidence("pod", "pod a waits for a node: 0/1 nodes are available", layer=Layer.KUBERNETES)
IDS = [f"{record['rule']}-{place}" for place, record in enumerate(RECORDS)]


@pytest.mark.parametrize("record", RECORDS, ids=IDS)
def test_what_the_real_part_says_becomes_one_sentence(record: dict[str, Any]) -> None:
    wrong = {"activity": WAITS}.get(record["kind"], BROKEN)
    facts = [recorded(record), wrong] if record["kind"] in PAST else [recorded(record)]
    cause = next(one for one in judged(*facts) if one.evidence[0] == facts[0])
    assert (cause.rule, cause.sentence) == (record["rule"], record["says"])
    for text in (cause.sentence, cause.fix, cause.then):
        assert not re.search(r"\{\w+\}", text), "a name was left empty"


def test_every_rule_has_a_record() -> None:
    assert {placed.rule.id for placed in default_rules()} == {record["rule"] for record in RECORDS}


def test_no_two_rules_share_an_id() -> None:
    ids = [placed.rule.id for placed in default_rules()]
    assert sorted({*ids}) == sorted(ids)


def test_what_was_is_said_only_where_something_of_the_same_model_is_wrong_now() -> None:
    log = evidence("log", "CUDA out of memory. Tried to allocate 2 GiB")
    mine = evidence("application", "DEPLOY_FAILED: Error:\nE")
    other = replace(mine, models=("org--other",))
    assert judged(log) == [], "a replica that runs again"
    assert [one.rule for one in judged(log, other)] == ["model-cannot-start"]
    assert [one.rule for one in judged(log, mine)] == ["out-of-memory"]


def test_what_was_goes_last_where_what_is_explains_all() -> None:
    full = evidence("activity", "We currently do not have sufficient g6.xlarge capacity", layer=Layer.AWS)
    denied = evidence("identity", "service account a has no Pod Identity association", layer=Layer.AWS)
    absent = evidence("keys", "the gateway asks for keys and knows none", layer=Layer.GATEWAY)
    assert [one.rule for one in judged(full, WAITS)] == ["no-capacity"], "it is asked for"
    assert [one.rule for one in judged(full, WAITS, absent)] == ["no-capacity", "gateway-without-keys"]
    assert [one.rule for one in judged(full, denied, WAITS)] == ["role-not-associated", "no-capacity"]
    code = evidence("code", "the serving code of this version is not in the bucket", layer=Layer.AWS, object="s3://b/c")
    assert [one.rule for one in judged(full, code)] == ["code-not-there", "no-capacity"], "it has nothing to do with it"


def test_a_machine_that_nobody_waits_for_is_no_cause() -> None:
    full = evidence("activity", "We currently do not have sufficient g6.xlarge capacity", layer=Layer.AWS)
    behind = evidence("rayservice", "the operator has not seen the change yet", layer=Layer.KUBERNETES)
    assert [one.rule for one in judged(full, behind)] == ["operator-behind"]
    assert [one.rule for one in judged(full, behind, WAITS)] == ["no-capacity"]


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
    (cause,) = judged(ray, file)
    assert (cause.rule, [one.rule for one in cause.explains]) == ("file-at-fault", ["ray-not-running"])


def test_nothing_explains_what_comes_before_it() -> None:
    keys = evidence("keys", "the gateway asks for keys and knows none", layer=Layer.GATEWAY)
    waits = evidence("pod", "pod a waits for a node: no nodes available to schedule pods", layer=Layer.KUBERNETES)
    assert [(one.rule, one.explains) for one in judged(keys, waits)] == [
        ("pod-waits", ()),
        ("gateway-without-keys", ()),
    ]


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
    said = "Total number of attention heads (9) must be divisible by tensor parallel size (2)."
    (cause,) = judged(evidence("application", f"DEPLOY_FAILED: ValueError: {said}"))
    assert (cause.file, cause.line, cause.key) == ("models/org--model.yaml", 7, "scaling_config.num_workers")


def test_every_key_of_a_rule_is_one_of_the_files() -> None:
    for placed in default_rules():
        for key in (placed.rule.key or "").split(" or "):
            in_stack = key.startswith(STACK_KEY)
            schema: Any = StackConfig if in_stack else ModelConfig
            for part in key.removeprefix(STACK_KEY).split(".") if key else ():
                fields = {field.alias or name: field for name, field in schema.model_fields.items()}
                assert part in fields, f"{placed.rule.id}: {key}"
                kinds = [fields[part].annotation, *get_args(fields[part].annotation)]
                schema = next((one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)), None)
                if schema is None:
                    break  # a mapping of free keys, such as engine_kwargs, or a list


def test_the_page_lists_the_rules_as_they_are() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "run python -m tests.unit.doctor.rewrite"


def test_forty_rules_are_proved_by_a_real_fault_and_each_exists() -> None:
    proved = {fault.rule for _, fault in PROOFS}
    assert proved <= {placed.rule.id for placed in default_rules()}
    assert len(proved) >= 40, sorted(proved)
    named = [(where, fault.rule, fault.words) for where, fault in PROOFS]
    assert len(named) == len({*named}), "two tests have one name"
