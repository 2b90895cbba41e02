"""`make audit` fails on a right that is written down and that AWS never gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.audit import NEVER_GIVEN, _parliament

OTHER = "MEDIUM No resources match for the given action"


@pytest.mark.parametrize(
    ("written", "action", "form", "said"),
    [
        ("eks:CreateCluster", "eks:CreateCluster", "*", f"{NEVER_GIVEN}eks:CreateCluster"),
        ("s3:List*", "s3:ListAllMyBuckets", "*", OTHER),
        ("s3:ListBucket", "s3:ListBucket", "arn:*:s3:::*", OTHER),
        ("ecr:BatchImportUpstreamImage", "ecr:BatchImportUpstreamImage", "*", OTHER),
    ],
)
def test_an_action_without_resources_that_is_given_on_one_is_told_apart(
    tmp_path: Path, written: str, action: str, form: str, said: str
) -> None:
    """As parliament 1.6.4 prints it; its list is older than ECR's resource of the last one."""
    (document := tmp_path / "operator.json").write_text(json.dumps({"Statement": [{"Action": [written]}]}))
    found = {
        "issue": "RESOURCE_MISMATCH",
        "title": OTHER.partition(" ")[2],
        "severity": "MEDIUM",
        "detail": [{"action": action, "required_format": form}],
        "location": {"filepath": str(document)},
    }
    assert dict(_parliament(json.dumps(found))) == {said: 1}
