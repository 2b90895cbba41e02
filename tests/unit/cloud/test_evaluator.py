"""The evaluator of IAM documents: operators, sets of values, variables; what it does not know is never allowed."""

from __future__ import annotations

from typing import Any

import pytest

from tools.cloud.evaluator import Decision, allowed, decide


def statement(effect: str = "Allow", **more: Any) -> dict[str, Any]:
    return {"Effect": effect, "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*", **more}


def holds(operator: str, wanted: Any, **context: Any) -> bool:
    keys = {"k": context["k"]} if "k" in context else {}
    return allowed([statement(Condition={operator: {"k": wanted}})], "s3:GetObject", "arn:aws:s3:::b/x", keys)


def test_a_deny_wins_and_nothing_is_allowed_by_default() -> None:
    ask = ("s3:GetObject", "arn:aws:s3:::b/x")
    assert decide([], *ask) is Decision.NOT_ALLOWED
    assert decide([statement()], *ask) is Decision.ALLOWED
    assert decide([statement(), statement("Deny")], *ask) is Decision.DENIED


def test_actions_and_condition_keys_know_no_case_and_resources_do() -> None:
    assert allowed([statement(Action="S3:getobject")], "s3:GetObject", "arn:aws:s3:::b/x")
    assert not allowed([statement()], "s3:GetObject", "arn:aws:s3:::B/x")
    secure = statement(Condition={"Bool": {"AWS:securetransport": True}})
    assert not allowed([secure], "s3:GetObject", "arn:aws:s3:::b/x")


@pytest.mark.parametrize(
    ("operator", "wanted", "value", "result"),
    [
        ("StringEquals", ["a", "b"], "b", True),
        ("StringEquals", "a*", "ab", False),
        ("StringLike", "a?c", "abc", True),
        ("StringLike", "a.c", "abc", False),
        ("StringNotEquals", ["a", "b"], "c", True),
        ("ArnLike", "arn:aws:iam::*:role/x-*", "arn:aws:iam::1:role/x-1", True),
        ("Bool", "false", "false", True),
        ("ForAnyValue:StringEquals", "a", ["a", "z"], True),
        ("ForAllValues:StringEquals", ["a", "b"], ["a", "z"], False),
        ("ForAllValues:StringEquals", ["a", "b"], ["a", "b"], True),
    ],
)
def test_an_operator_compares_as_aws_says(operator: str, wanted: Any, value: Any, result: bool) -> None:
    assert holds(operator, wanted, k=value) is result


def test_a_key_that_the_request_lacks_holds_only_for_a_negation_and_if_exists() -> None:
    assert not holds("StringEquals", "a")
    assert not holds("StringLike", "*")
    assert holds("StringNotEquals", "a")
    assert holds("StringEqualsIfExists", "a")
    assert not holds("StringEqualsIfExists", "a", k="b")
    assert holds("Null", "true")
    assert not holds("Null", "true", k="b")


def test_a_policy_variable_is_replaced_and_an_absent_one_matches_nothing() -> None:
    mine = [statement(Resource="arn:aws:s3:::b/${aws:PrincipalTag/team}/*")]
    assert allowed(mine, "s3:GetObject", "arn:aws:s3:::b/red/x", {"aws:PrincipalTag/team": "red"})
    assert not allowed(mine, "s3:GetObject", "arn:aws:s3:::b/blue/x", {"aws:PrincipalTag/team": "red"})
    assert not allowed(mine, "s3:GetObject", "arn:aws:s3:::b/red/x")


def test_not_action_and_not_resource_are_everything_else() -> None:
    assert not allowed([statement(NotResource="arn:aws:s3:::b/*")], "s3:GetObject", "arn:aws:s3:::b/x")
    others = {"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}
    assert allowed([others], "s3:GetObject", "x")
    assert not allowed([others], "iam:GetRole", "x")


def test_what_it_does_not_know_is_an_error_and_never_allowed() -> None:
    with pytest.raises(ValueError, match="DateGreaterThan"):
        holds("DateGreaterThan", "2020-01-01", k="2021-01-01")
    with pytest.raises(ValueError, match="Conditions"):
        allowed([statement(Conditions={})], "s3:GetObject", "arn:aws:s3:::b/x")
