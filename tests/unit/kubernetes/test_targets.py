"""The resources that a stack on an existing cluster registers, where no other test makes them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pulumi
import pytest

from modelfleet.infra.kubernetes import operator, preflight
from modelfleet.infra.kubernetes.fleet import HeadStorage, KubernetesFleet
from modelfleet.infra.targets import build
from tests.cluster.fleet import model, planned

L4 = {"name": "l4", "accelerator": "L4", "maxNodes": 1, "instanceTypes": ["g6.2xlarge"]}


class Recorded(pulumi.runtime.Mocks):
    """An engine that makes every resource and remembers its type."""

    def __init__(self) -> None:
        self.types: list[str] = []
        self.inputs: list[dict[str, Any]] = []

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        self.types.append(args.typ)
        self.inputs.append(dict(args.inputs))
        return args.name, dict(args.inputs)

    def call(self, args: pulumi.runtime.MockCallArgs) -> Any:
        return {"partition": "aws", "dnsSuffix": "amazonaws.com", "reverseDnsPrefix": "com.amazonaws", "id": "aws"}, []


def test_its_bucket_is_hardened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`tests/engine/test_existing_cluster.py` checks the bucket itself."""
    monkeypatch.setattr(preflight, "check_cluster", lambda plan, kubeconfig: None)
    monkeypatch.setattr(operator, "custom_resource_definitions", list)
    engine = Recorded()
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.set_mocks(engine, project="modelfleet", stack="test", preview=False)
    plan = planned(tmp_path, [model("org/one", "L4")], pools=[L4], target="kubernetes")

    @pulumi.runtime.test
    def program() -> None:
        build(tmp_path, plan)

    program()
    assert sorted(kind for kind in engine.types if kind.startswith("aws:")) == [
        "aws:s3/bucket:Bucket",
        "aws:s3/bucketLifecycleConfiguration:BucketLifecycleConfiguration",
        "aws:s3/bucketObjectv2:BucketObjectv2",
        "aws:s3/bucketOwnershipControls:BucketOwnershipControls",
        "aws:s3/bucketPolicy:BucketPolicy",
        "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock",
        "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration",
        "aws:s3/bucketVersioning:BucketVersioning",
    ]


def test_the_ray_service_gets_the_address_and_a_secret_the_password_of_a_made_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator, "custom_resource_definitions", list)
    engine = Recorded()
    asyncio.set_event_loop(asyncio.new_event_loop())
    pulumi.runtime.set_mocks(engine, project="modelfleet", stack="test", preview=True)
    kubernetes = {"headStorage": "valkey"}
    plan = planned(tmp_path, [model("org/one", "L4")], pools=[L4], target="eks", kubernetes=kubernetes)

    @pulumi.runtime.test
    def program() -> None:
        password = pulumi.Output.secret("secret-of-the-store")
        KubernetesFleet("test", plan, head_storage=HeadStorage(pulumi.Output.from_input("rediss://x:6379"), password))

    program()
    (service,) = [made for made in engine.inputs if made.get("kind") == "RayService"]
    assert service["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisAddress"] == "rediss://x:6379"
    (secret,) = [made for made in engine.inputs if made.get("kind") == "Secret"]
    assert secret["metadata"]["name"] == "head-storage"
    assert "secret-of-the-store" in str(secret["stringData"])
    assert "secret-of-the-store" not in str([made for made in engine.inputs if made is not secret])
