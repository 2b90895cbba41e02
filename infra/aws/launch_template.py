"""What a node is made of: root volume, IMDSv2, user data, reservation. Pure except for `launch_template`."""

from __future__ import annotations

from typing import Any

import pulumi
import pulumi_aws as aws

from modelfleet.infra.aws.site import Site
from modelfleet.infra.aws.user_data import node_config, user_data
from modelfleet.infra.planning.plan import Rung
from modelfleet.infra.stack.schema import RESERVED

#: Parallel image pull wants at least 600 MiB/s (amazon-eks-ami nodeadm/doc/examples.md).
ROOT_THROUGHPUT_MIB_S = 600
ROOT_IOPS = 6000
#: One hop: pods cannot reach the node's credentials. Pods that need the region or the VPC get it as a setting.
METADATA: aws.ec2.LaunchTemplateMetadataOptionsArgsDict = {
    "http_endpoint": "enabled",
    "http_tokens": "required",
    "http_put_response_hop_limit": 1,
}


def root_volume(gib: int, *, fast: bool) -> aws.ec2.LaunchTemplateBlockDeviceMappingArgsDict:
    """An encrypted gp3 root volume."""
    ebs: aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgsDict = {
        "volume_type": "gp3",
        "volume_size": gib,
        "encrypted": "true",
        "delete_on_termination": "true",
    }
    if fast:
        ebs["throughput"], ebs["iops"] = ROOT_THROUGHPUT_MIB_S, ROOT_IOPS
    return {"device_name": "/dev/xvda", "ebs": ebs}


def purchase_options(rung: Rung) -> dict[str, Any]:
    """Launch template arguments of reserved capacity; none of others, whose market is the node group's.

    Nodes of a reservation start in it or not at all: one on demand beside it would be the next rung.
    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/capacity-reservations-launch.html
    For a Capacity Block EKS requires the instance type in the template.
    https://docs.aws.amazon.com/eks/latest/userguide/capacity-blocks-mng.html
    """
    if rung.purchase not in RESERVED:
        return {}
    target = {"capacity_reservation_target": {"capacity_reservation_id": rung.capacity_reservation_id}}
    options: dict[str, Any] = {"capacity_reservation_specification": target}
    if rung.purchase == "capacity-block":
        options |= {
            "instance_type": rung.instance_types[0],
            "instance_market_options": {"market_type": "capacity-block"},
        }
    return options


def launch_template(
    name: str,
    site: Site,
    *,
    volume: aws.ec2.LaunchTemplateBlockDeviceMappingArgsDict,
    gpu: bool,
    labels: dict[str, str],
    opts: pulumi.ResourceOptions,
    **more: Any,
) -> aws.ec2.LaunchTemplate:
    """A launch template for a managed node group; `labels` become tags of instances and volumes, for cost reports.

    Without network interfaces EKS attaches the cluster's security group itself.
    """
    tags = site.tagged(name, **labels)
    return aws.ec2.LaunchTemplate(
        name,
        block_device_mappings=[volume],
        metadata_options=METADATA,
        user_data=user_data(node_config(gpu=gpu)),
        tag_specifications=[{"resource_type": kind, "tags": tags} for kind in ("instance", "volume")],
        update_default_version=True,
        tags=tags,
        opts=opts,
        **more,
    )
