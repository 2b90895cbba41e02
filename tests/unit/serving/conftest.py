"""An S3 with one bucket, for all tests of weights and mirrors; and a node, for replicas that start without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from modelfleet.serving.node_hours import RayNode
from modelfleet.serving.usage import FOLDER_VARIABLE


class HalfANode:
    """What Ray would say to a replica with two of its node's four GPUs."""

    def nodes(self) -> dict[str, RayNode]:
        return {"here": RayNode("here", "gpu", 1_790_000_000.0, None, 4.0, 16.0)}

    def held(self) -> dict[str, dict[str, float]]:
        return {"here": {"GPU": 2.0}}

    def first(self, minute: int) -> bool:
        return False

    def here(self) -> str:
        return "here"


@pytest.fixture(autouse=True)
def usage_records(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where replicas of these tests write what they hold: without it, beside the logs of a Ray that runs here."""
    folder = tmp_path_factory.mktemp("usage")
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder))
    monkeypatch.setattr("modelfleet.serving.replica.RayCluster", HalfANode)
    monkeypatch.setattr("modelfleet.serving.node_hours.boot", dict)
    return folder


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A boto3 client of an S3 in this process, with the empty bucket `fleet`."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="fleet")
        yield client
