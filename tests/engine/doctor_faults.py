"""Faults of a fleet on the emulated AWS, made through AWS's own API or by what the account may have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tests.doctor_faults import Doctor, Fault

# The table in docs/doctor.md reads `FAULTS` alone, and moto takes seconds to import.
if TYPE_CHECKING:
    from modelfleet.infra.planning.plan import Plan
    from tests.engine.aws_account import Account
    from tests.engine.aws_fleet import FleetProject
    from tests.engine.conftest import Emulator

#: Controls of the emulated cloud (`tools/cloud/app.py`), compared by the test.
QUOTAS: Final = "/modelfleet-cloud/quotas"
SHORTAGE: Final = "/modelfleet-cloud/shortage"

#: Quota of vCPUs of G and VT instances on demand.
G_QUOTA: Final = "L-DB2E81BA"


@dataclass
class Live:
    """A fleet that is as its plan says, and its doctor."""

    project: FleetProject
    emulator: Emulator
    account: Account
    plan: Plan
    doctor: Doctor
    cluster: str

    @property
    def group(self) -> Mapping[str, Any]:
        """The one node group of the pool."""
        found: Mapping[str, Any] = self.account.node_groups(self.cluster)["l4"]
        return found

    def want(self, nodes: int) -> None:
        """What cluster-autoscaler does: set how many machines the pool's group wants."""
        (scaling,) = self.group["resources"]["autoScalingGroups"]
        client = self.account.client("autoscaling")
        client.set_desired_capacity(AutoScalingGroupName=scaling["name"], DesiredCapacity=nodes)


@contextmanager
def quota(live: Live) -> Iterator[None]:
    """The account may have fewer vCPUs than the plan wants."""
    live.emulator.switch(QUOTAS, {G_QUOTA: 4.0})
    try:
        yield
    finally:
        live.emulator.switch(QUOTAS, {})


@contextmanager
def used_up(live: Live) -> Iterator[None]:
    """The quota is enough for the plan, but other machines of the account use it when a node is wanted."""
    live.emulator.switch(QUOTAS, {G_QUOTA: 8.0})
    with _another_group(
        live, "others", {"minSize": 0, "desiredSize": 2, "maxSize": 2}, labels={"modelfleet.dev/pool": "others"}
    ):
        live.want(1)
        try:
            yield
        finally:
            live.want(0)
            live.emulator.switch(QUOTAS, {})


@contextmanager
def no_machines(live: Live) -> Iterator[None]:
    """EC2 has no machine of the pool's type in any zone."""
    zones = [zone["ZoneName"] for zone in live.account.ec2.describe_availability_zones()["AvailabilityZones"]]
    live.emulator.switch(SHORTAGE, [["g6.xlarge", zone] for zone in zones])
    live.want(1)
    try:
        yield
    finally:
        live.emulator.switch(SHORTAGE, [])
        live.want(0)


@contextmanager
def another_account(live: Live) -> Iterator[None]:
    """The credentials are those of another account than the stack file's."""
    with _stack_file(live, "123456789012", "210987654321"):
        yield


@contextmanager
def another_region(live: Live) -> Iterator[None]:
    """The stack file names a region in which nothing is."""
    with _stack_file(live, "aws:region: us-west-2", "aws:region: us-east-2"):
        yield


@contextmanager
def no_association(live: Live) -> Iterator[None]:
    """Somebody deletes the Pod Identity association of the workers."""
    eks, where = live.account.eks, {"clusterName": live.cluster}
    listed = eks.list_pod_identity_associations(**where, namespace=live.plan.namespace, serviceAccount="ray-worker")
    (found,) = listed["associations"]
    whole = eks.describe_pod_identity_association(**where, associationId=found["associationId"])["association"]
    eks.delete_pod_identity_association(**where, associationId=found["associationId"])
    try:
        yield
    finally:
        eks.create_pod_identity_association(
            **where, namespace=whole["namespace"], serviceAccount=whole["serviceAccount"], roleArn=whole["roleArn"]
        )


@contextmanager
def without_object(key: str, live: Live) -> Iterator[None]:
    """Somebody deletes an object of the stack's bucket; `key` is `code`, or `manifest` of the model's weights."""
    s3, bucket = live.emulator.client(), str(live.plan.bucket.name)
    name = live.plan.code.key if key == "code" else f"{live.plan.models[0].mirror.prefix}/manifest.json"
    s3.delete_object(Bucket=bucket, Key=name)
    try:
        yield
    finally:
        s3.put_object(Bucket=bucket, Key=name, Body=b"{}")


@contextmanager
def denied_bucket(live: Live) -> Iterator[None]:
    """A policy of the bucket denies everybody."""
    s3, bucket = live.emulator.client(), str(live.plan.bucket.name)
    before = s3.get_bucket_policy(Bucket=bucket)["Policy"]
    arn = f"arn:aws:s3:::{bucket}"
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:GetObject", "s3:ListBucket"],
        "Resource": [arn, f"{arn}/*"],
    }
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    try:
        yield
    finally:
        s3.put_bucket_policy(Bucket=bucket, Policy=before)


@contextmanager
def no_bucket(live: Live) -> Iterator[None]:
    """Somebody deletes the bucket with all that is in it."""
    s3, bucket = live.emulator.client(), str(live.plan.bucket.name)
    s3.delete_bucket_policy(Bucket=bucket)
    versions = s3.list_object_versions(Bucket=bucket)
    found = [*versions.get("Versions", ()), *versions.get("DeleteMarkers", ())]
    for one in found:
        s3.delete_object(Bucket=bucket, Key=one["Key"], VersionId=one["VersionId"])
    s3.delete_bucket(Bucket=bucket)
    try:
        yield
    finally:
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
        fill(live)


@contextmanager
def no_way_out(live: Live) -> Iterator[None]:
    """A node group is made whose role may not read images: its machines never join."""
    group = live.group
    role = str(group["nodeRole"]).rpartition("/")[2]
    policies = live.account.iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
    arn = next(one["PolicyArn"] for one in policies if "ContainerRegistry" in one["PolicyName"])
    live.account.iam.detach_role_policy(RoleName=role, PolicyArn=arn)
    with _another_group(live, "l4-more", group["scalingConfig"], labels=group["labels"]):
        try:
            yield
        finally:
            live.account.iam.attach_role_policy(RoleName=role, PolicyArn=arn)


@contextmanager
def _another_group(live: Live, name: str, sizes: Mapping[str, int], labels: Mapping[str, str]) -> Iterator[None]:
    """A node group beside the pool's, with its template, types and role."""
    group, eks = live.group, live.account.eks
    same = {key: group[key] for key in ("subnets", "nodeRole", "instanceTypes")}
    template = {key: group["launchTemplate"][key] for key in ("id", "version")}
    more = {"launchTemplate": template, "scalingConfig": dict(sizes), "labels": dict(labels)}
    eks.create_nodegroup(clusterName=live.cluster, nodegroupName=name, **same, **more)
    try:
        yield
    finally:
        eks.delete_nodegroup(clusterName=live.cluster, nodegroupName=name)


def fill(live: Live) -> None:
    """The code and a complete mirror, as `up` and the mirror Job leave them."""
    for key in (live.plan.code.key, f"{live.plan.models[0].mirror.prefix}/manifest.json"):
        live.emulator.client().put_object(Bucket=str(live.plan.bucket.name), Key=key, Body=b"{}")


@contextmanager
def _stack_file(live: Live, found: str, instead: str) -> Iterator[None]:
    file = live.doctor.root / "stacks" / f"Pulumi.{live.doctor.stack}.yaml"
    before = file.read_text()
    assert found in before
    file.write_text(before.replace(found, instead))
    try:
        yield
    finally:
        file.write_text(before)


FAULTS: Final = (
    Fault("account-at-fault", "the quota is below the plan", quota),
    Fault("account-at-fault", "the credentials are another account's", another_account),
    Fault("cluster-absent", "the stack file names another region", another_region),
    Fault("vcpu-quota", "the account's vCPUs are used up", used_up),
    Fault("no-capacity", "EC2 has no machine of the type", no_machines),
    Fault("nodes-do-not-join", "the node role lost a policy", no_way_out),
    Fault("role-not-associated", "a Pod Identity association was deleted", no_association),
    Fault("code-not-there", "the code was deleted from the bucket", partial(without_object, "code")),
    Fault("mirror-not-filled", "a manifest was deleted from the mirror", partial(without_object, "manifest")),
    Fault("stack-bucket-denied", "a policy denies the bucket", denied_bucket),
    Fault("stack-bucket-absent", "the bucket was deleted", no_bucket),
)
