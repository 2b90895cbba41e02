"""`python -m tools.catalog` with moto's EC2, whose instance types are EC2's own, and a stubbed Price List API."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from modelfleet.infra.catalog.catalog import FOLDER
from modelfleet.infra.planning.front_door import LOAD_BALANCER
from modelfleet.infra.planning.head_storage import NODE_TYPE
from modelfleet.infra.reading.prices import NAT_GATEWAY
from modelfleet.serving.config.catalogs import csv_rows
from tools.catalog.__main__ import main

NAMES = [row["instance_type"] for row in csv_rows(FOLDER / "ec2-instances.csv")]
REGIONS = {"us-east-1": 1.25, "eu-west-1": 2.5}


def product(usd: float) -> str:
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": f"{usd:.10f}"}}
    return json.dumps({"terms": {"OnDemand": {"term": {"priceDimensions": {"rate": dimension}}}}})


def asked(region: str, name: str) -> dict[str, Any]:
    """The query for one price, in the form of AWS's documentation."""
    machine = {"instanceType": name, "operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA"}
    wanted, service = {**machine, "capacitystatus": "Used"}, "AmazonEC2"
    if name == NAT_GATEWAY:
        wanted = {"productFamily": "NAT Gateway", "operation": "NatGateway"}
    if name == NODE_TYPE:
        service = "AmazonElastiCache"
        wanted = {"instanceType": NODE_TYPE, "cacheEngine": "Valkey", "locationType": "AWS Region"}
    if name == LOAD_BALANCER:
        service = "AWSELB"
        wanted = {"productFamily": "Load Balancer-Application", "operation": "LoadBalancing:Application"}
    filters = [{"Type": "TERM_MATCH", "Field": k, "Value": v} for k, v in {**wanted, "regionCode": region}.items()]
    return {"ServiceCode": service, "FormatVersion": "aws_v1", "Filters": filters}


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The catalog after a run over the region that it names and a second one, which does not sell p4de."""
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    shutil.copytree(FOLDER, tmp_path / "catalog", ignore=shutil.ignore_patterns("__pycache__"))
    pricing = boto3.client("pricing", region_name="us-east-1")
    with mock_aws(), Stubber(pricing) as stub:
        for region, usd in REGIONS.items():
            for name in (NAT_GATEWAY, LOAD_BALANCER, NODE_TYPE, *NAMES):
                sold = not (region == "eu-west-1" and name == "p4de.24xlarge")
                answer = [product(usd), product(0.0)] if sold else []
                stub.add_response("get_products", {"PriceList": answer}, asked(region, name))

        def client(service: str, region: str) -> Any:
            return pricing if service == "pricing" else boto3.client(service, region_name=region)

        main(["eu-west-1"], client, tmp_path / "catalog")
        stub.assert_no_pending_responses()
    return tmp_path / "catalog"


def test_ec2s_answer_gives_the_checked_in_table(fetched: Path) -> None:
    """A new EC2 type with one of our GPUs would add a row."""
    before, after = ((folder / "ec2-instances.csv").read_text().splitlines() for folder in (FOLDER, fetched))
    assert after[1:] == before[1:]
    assert after[0].startswith("# EC2 instance types") and "DescribeInstanceTypes in us-east-1, eu-west-1" in after[0]


def test_prices_come_from_every_region_and_the_rest_stays(fetched: Path) -> None:
    rows = {(row["region"], row["name"]): row for row in csv_rows(fetched / "prices.csv")}
    assert float(rows["us-east-1", "g6.xlarge"]["usd_per_hour"]) == 1.25, "the old price of 0.8048 must be gone"
    assert float(rows["eu-west-1", "g6.xlarge"]["usd_per_hour"]) == 2.5
    assert rows["eu-west-1", NAT_GATEWAY]["source"] == "AWS Price List API"
    assert rows["eu-west-1", LOAD_BALANCER]["source"] == "AWS Price List API"
    assert ("eu-west-1", "p4de.24xlarge") not in rows, "not sold there: unknown, and never 0"
    assert rows["*", "eks-cluster"]["usd_per_hour"] == "0.10", "the command does not query it, so it stays"
    kept = [
        "eks-cluster",
        "public-ipv4",
        "codebuild-general1-large",
        "codebuild-general1-small",
        "ecr-gb",
        "kms-key",
        "ebs-gp3-gib",
        "amp-scraper",
        "amp-series-30s",
    ]
    assert len(rows) == len(list(csv_rows(fetched / "prices.csv"))) == 2 * (len(NAMES) + 3) - 1 + len(kept)
