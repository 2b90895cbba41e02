"""`make audit` fails on a right that is written down and that AWS never gives."""

from __future__ import annotations

import json

import pytest

from tools.audit import NEVER_GIVEN, _parliament


@pytest.mark.parametrize(
    ("action", "form", "said"),
    [
        ("eks:CreateCluster", "*", f"{NEVER_GIVEN}eks:CreateCluster"),
        ("s3:ListBucket", "arn:*:s3:::*", "MEDIUM No resources match for the given action"),
        ("ecr:BatchImportUpstreamImage", "*", "MEDIUM No resources match for the given action"),
    ],
)
def test_an_action_without_resources_that_is_given_on_one_is_told_apart(action: str, form: str, said: str) -> None:
    """As parliament 1.6.4 prints it; its list is older than ECR's resource of the last one."""
    found = {
        "issue": "RESOURCE_MISMATCH",
        "title": "No resources match for the given action",
        "severity": "MEDIUM",
        "detail": [{"action": action, "required_format": form}],
    }
    assert dict(_parliament(json.dumps(found))) == {said: 1}
