"""`modelfleet usage` of a stack on AWS: a worker's copies, the operator's rights, and Cost Explorer beside the books."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from modelfleet.cli.usage import run_usage
from modelfleet.infra.aws.documents import iam_documents
from modelfleet.infra.aws.site import site_of
from modelfleet.infra.reading.cost_explorer import cost_by_pool
from modelfleet.serving.config.errors import InputErrors, SetupError
from modelfleet.serving.usage import stamp
from modelfleet.serving.usage_bucket import BucketCopy
from tests.unit.aws.builders import facts, planned
from tests.unit.cloud.conftest import BUCKET, REGION, Fleet, made
from tests.unit.cloud.test_judge import role_with
from tests.unit.cloud.test_pod_rights import acting_as
from tests.unit.test_hostile_records import NODE, NOW, REQUEST
from tools.cloud.server import Listening

TODAY = datetime.combine(NOW.date(), time(), UTC)
#: Two days and six hours, of which Cost Explorer has two whole days.
BEGAN, ENDED = TODAY - timedelta(days=3), TODAY - timedelta(hours=18)
FIRST, END = (TODAY - timedelta(days=6)).date(), (NOW - timedelta(days=1)).date()


@pytest.fixture
def project(account: Listening, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """A stack whose worker sent its records, in the shell of who may run `pulumi up`."""
    plan, _ = planned(tmp_path / "project", mirror={"bucket": BUCKET})
    fleet = made(account, plan)
    pod = tmp_path / "pod"
    node = {**NODE, "pool": "l4", "began": stamp(BEGAN.timestamp()), "written": stamp(ENDED.timestamp())}
    for place, line in (("org--model", REQUEST), ("-nodes", node)):
        file = pod / place / f"date={NOW:%Y-%m-%d}" / f"hour={NOW:%H}" / "r.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(line) + "\n" + ('{"version": 1}\n' if line is REQUEST else ""))
    with acting_as(fleet, "ray-worker"):
        BucketCopy(pod, plan.models[0].application.args["usage"], "r").send()
    printed = iam_documents(plan, site_of(plan, facts()))
    own = [one for name, document in printed.items() if name.startswith("operator") for one in document["Statement"]]
    monkeypatch.chdir(tmp_path / "project")
    for name, value in account.environment(role_with(account, *own, name="operator"), REGION).items():
        monkeypatch.setenv(name, value)
    boto3.setup_default_session()
    yield fleet
    boto3.setup_default_session()


def bills(cloud: Listening, *pages: dict[str, Any]) -> None:
    """What the emulated Cost Explorer answers, one page after the other."""
    asked = urllib.request.Request(
        f"{cloud.url}/moto-api/static/ce/cost-and-usage-results", json.dumps({"results": pages}).encode(), method="POST"
    )
    urllib.request.urlopen(asked, timeout=60).read()


def page(*costs: tuple[str, str], unit: str = "USD", **more: Any) -> dict[str, Any]:
    groups = [
        {"Keys": [f"modelfleet.dev/pool${pool}"], "Metrics": {"UnblendedCost": {"Amount": usd, "Unit": unit}}}
        for pool, usd in costs
    ]
    return {"ResultsByTime": [{"Groups": groups, "Estimated": False}], "DimensionValueAttributes": [], **more}


def test_the_bill_is_read_from_the_bucket_and_a_fault_names_its_object(
    project: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_usage("test", prices=["l4=2"], as_json=True) == 1
    said = json.loads(capsys.readouterr().out)
    assert [(row["key"], row["completion_tokens"]) for row in said["rows"]] == [("alice", 4)]
    assert said["books"]["usd"] == 2 * 54
    (unread,) = said["unread"]
    assert unread["file"].startswith(f"s3://{BUCKET}/usage/stack=test/dt=") and unread["line"] == 2


def test_aws_s_own_bill_stands_beside_the_books(project: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    bills(
        project.cloud,
        page(("l4", "40.001"), ("system", "7.5"), NextPageToken="more"),
        page(("l4", "50.00"), ("", "0.25")),
    )
    assert run_usage("test", prices=["l4=2"], as_json=True, compare_aws=True) == 1
    aws = json.loads(capsys.readouterr().out)["aws"]
    assert (aws["first_day"], aws["end"]) == (FIRST.isoformat(), END.isoformat())
    assert {row["pool"]: (row["usd_books"], row["usd_aws"], row["difference"]) for row in aws["pools"]} == {
        "l4": (96.0, 90.0, 6.0),
        "system": (None, 7.5, None),
        "": (None, 0.25, None),
    }
    run_usage("test", prices=["l4=2"], compare_aws=True)
    shown = capsys.readouterr()
    assert "+6.00" in shown.out and "(no pool)" in shown.out and f"{FIRST} to" in shown.err


def test_without_activated_tags_it_says_which(project: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    bills(project.cloud, page())
    run_usage("test", prices=["l4=2"], compare_aws=True)
    said = capsys.readouterr().err
    assert "Activate the cost allocation tags modelfleet.dev/stack and modelfleet.dev/pool" in said


def test_who_may_not_ask_gets_one_message_with_the_right(
    project: Fleet, account: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same right is in the operator's policy, and without it the emulated cloud refuses."""
    rights = [{"Effect": "Allow", "Action": ["s3:Get*", "s3:List*", "kms:Decrypt"], "Resource": "*"}]
    for name, value in account.environment(role_with(account, *rights, name="reader"), REGION).items():
        monkeypatch.setenv(name, value)
    boto3.setup_default_session()
    with pytest.raises(SetupError, match=r"Cost Explorer returned AccessDenied\w*; allow ce:GetCostAndUsage"):
        run_usage("test", prices=["l4=2"], compare_aws=True)
    assert run_usage("test", prices=["l4=2"], as_json=True) == 1, "the books need none of it"


def test_the_question_is_the_stacks_machines_by_pool_and_no_page_is_left() -> None:
    """moto answers whatever is asked; botocore holds the question against AWS's own model."""
    fake = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
    client = boto3.client("ce", region_name="us-east-1", **fake)
    asked = {
        "TimePeriod": {"Start": "2026-11-01", "End": "2026-11-03"},
        "Granularity": "DAILY",
        "Metrics": ["UnblendedCost"],
        "Filter": {
            "And": [
                {"Tags": {"Key": "modelfleet.dev/stack", "Values": ["prod"]}},
                {"Dimensions": {"Key": "SERVICE", "Values": ["Amazon Elastic Compute Cloud - Compute"]}},
            ]
        },
        "GroupBy": [{"Type": "TAG", "Key": "modelfleet.dev/pool"}],
    }
    with Stubber(client) as stub:
        stub.add_response("get_cost_and_usage", page(("l4", "0.1"), NextPageToken="more"), asked)
        stub.add_response("get_cost_and_usage", page(("l4", "0.2")), {**asked, "NextPageToken": "more"})
        found = cost_by_pool("prod", "us-west-2", date(2026, 11, 1), date(2026, 11, 3), client=client)
        stub.assert_no_pending_responses()
    assert found == {"l4": Decimal("0.3")}, "as decimals: floats would not add up"


def test_another_currency_is_not_compared(project: Fleet) -> None:
    bills(project.cloud, page(("l4", "1"), unit="CNY"))
    with pytest.raises(SetupError, match="counts in CNY"):
        run_usage("test", prices=["l4=2"], compare_aws=True)


@pytest.mark.parametrize(
    ("more", "said"), [({"since": "24h"}, "--since.*allowed are 3d and more"), ({"as_csv": True}, "take --json")]
)
def test_what_cannot_be_compared_is_refused(project: Fleet, more: dict[str, Any], said: str) -> None:
    with pytest.raises(InputErrors, match=said):
        run_usage("test", prices=["l4=2"], compare_aws=True, **more)
