"""Whether the nodes of a node group join: their role, their user data as nodeadm reads it, and what they reach.

EKS waits for the nodes of a new group. If none joins within 15 minutes, the group ends in CREATE_FAILED
(https://docs.aws.amazon.com/eks/latest/userguide/troubleshooting.html). A group of size 0 becomes ACTIVE on AWS and
fails at its first node; here it fails at once, which is stricter.
"""

from __future__ import annotations

import base64
import binascii
import csv
from collections.abc import Iterator, Mapping
from email import message_from_bytes
from email.errors import MessageError
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tools.cloud.callers import role_statements
from tools.cloud.evaluator import allowed
from tools.cloud.reach import why_lost

NODE_PART = "application/node.eks.aws"
#: Keys of `NodeConfig.spec`, and the feature gates (awslabs/amazon-eks-ami 81fec2e, v1alpha1/nodeconfig_types.go).
SPEC_KEYS = frozenset({"cluster", "containerd", "featureGates", "instance", "kubelet"})
FEATURES = frozenset({"FastImagePull", "InstanceIdNodeName"})
#: Codes and words of DescribeNodegroup's `health.issues`.
NOT_MIME = ("Ec2LaunchTemplateInvalidConfiguration", "User data was not in the MIME multipart format.")
NOT_JOINED = ("NodeCreationFailure", "Instances failed to join the kubernetes cluster")


class BadUserData(ValueError):
    """User data that nodeadm would not read."""


def why_not(region: str, cluster: Any, group: Any, template: Mapping[str, Any]) -> tuple[str, str] | None:
    """EKS's code and message, with the cause in brackets; None if nodes join."""
    role = str(group.node_role).rpartition("/")[2]
    try:
        configs = node_configs(template.get("UserData"))
    except MessageError:
        return NOT_MIME
    except BadUserData as error:
        return _because(f"nodeadm: {error}")
    if any(config["spec"].get("featureGates", {}).get("InstanceIdNodeName") for config in configs):
        # EKS's own access entry names nodes by their DNS name; nodeadm/doc/examples.md demands another one.
        return _because(f"InstanceIdNodeName needs an access entry of type EC2 for the role {role}")
    statements = list(role_statements(role))
    lacking = [need for need in needs() if not allowed(statements, need["action"], "*")]
    if lacking:
        return _because(
            "; ".join(f"role {role} lacks {one['action']}, needed by {one['needed_by']}" for one in lacking)
        )
    lost = why_lost(region, cluster, group, template)
    return _because(lost) if lost else None


def _because(cause: str) -> tuple[str, str]:
    code, message = NOT_JOINED
    return code, f"{message} ({cause})"


@cache
def needs() -> tuple[Mapping[str, str], ...]:
    """The rows of node-needs.csv."""
    text = Path(__file__).with_name("node-needs.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def node_configs(user_data: str | None) -> list[Mapping[str, Any]]:
    """The NodeConfigs of user data (Base64), none without; raises `MessageError` for no MIME, `BadUserData`."""
    return list(_node_configs(user_data)) if user_data else []


def _node_configs(user_data: str) -> Iterator[Mapping[str, Any]]:
    try:
        message = message_from_bytes(base64.b64decode(user_data, validate=True))
    except binascii.Error as error:
        raise MessageError(str(error)) from error
    if not message.is_multipart() or message.get_content_type() != "multipart/mixed":
        raise MessageError(message.get_content_type())
    for part in message.walk():
        if part.get_content_type() == NODE_PART:
            yield _node_config(part.get_payload(decode=True))


def _node_config(text: Any) -> Mapping[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadUserData(f"NodeConfig is not YAML: {error}") from error
    kind = (config.get("apiVersion"), config.get("kind")) if isinstance(config, dict) else None
    if kind != ("node.eks.aws/v1alpha1", "NodeConfig"):
        raise BadUserData(f"found {kind}, not a NodeConfig of node.eks.aws/v1alpha1")
    spec = config.get("spec") or {}
    if unknown := sorted({*spec} - SPEC_KEYS) + sorted({*(spec.get("featureGates") or {})} - FEATURES):
        raise BadUserData(f"NodeConfig has no {', '.join(unknown)}")
    return {**config, "spec": spec}
