"""Whether the nodes of a node group could join: moto starts none, so it would make a group that never has a node.

    problem = why_nodes_cannot_join(iam, role_name, user_data)      # "" if nothing is wrong

EKS waits for the nodes of a new group. If none joins within 15 minutes, the group ends in CREATE_FAILED
(https://docs.aws.amazon.com/eks/latest/userguide/troubleshooting.html). A group of size 0 becomes ACTIVE on AWS and
fails at its first node; here it fails at once, which is stricter.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
from collections.abc import Iterator, Mapping
from email import message_from_bytes
from email.errors import MessageError
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

NODE_PART = "application/node.eks.aws"
#: Keys of `NodeConfig.spec`, and the feature gates (awslabs/amazon-eks-ami 81fec2e, v1alpha1/nodeconfig_types.go).
SPEC_KEYS = frozenset({"cluster", "containerd", "featureGates", "instance", "kubelet"})
FEATURES = frozenset({"FastImagePull", "InstanceIdNodeName"})
#: The words of DescribeNodegroup's `health.issues`.
NOT_MIME = "Ec2LaunchTemplateInvalidConfiguration: User data was not in the MIME multipart format."
NOT_JOINED = "NodeCreationFailure: Instances failed to join the kubernetes cluster"


class BadUserData(ValueError):
    """User data that nodeadm would not read."""


def why_nodes_cannot_join(iam: Any, role: str, user_data: str | None) -> str:
    """EKS's message with the cause in brackets; an empty text if nodes could join. `user_data` is Base64."""
    try:
        parts = list(_node_configs(user_data)) if user_data else []
    except MessageError:
        return NOT_MIME
    except BadUserData as error:
        return f"{NOT_JOINED} (nodeadm: {error})"
    gates = [part.get("spec", {}).get("featureGates", {}) for part in parts]
    by_id = any(gate.get("InstanceIdNodeName") for gate in gates)
    if by_id:
        # EKS's own access entry names nodes by their DNS name; nodeadm/doc/examples.md demands another one.
        return f"{NOT_JOINED} (InstanceIdNodeName needs an access entry of type EC2 for the role {role})"
    lacking = [need for need in needs() if not _may(iam, role, need["action"])]
    causes = [f"role {role} lacks {need['action']}, needed by {need['needed_by']}" for need in lacking]
    return f"{NOT_JOINED} ({'; '.join(causes)})" if causes else ""


@cache
def needs() -> tuple[Mapping[str, str], ...]:
    """The rows of node-needs.csv."""
    text = Path(__file__).with_name("node-needs.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def _node_configs(user_data: str) -> Iterator[Mapping[str, Any]]:
    """The NodeConfig documents of the user data; raises `MessageError` for no MIME, `BadUserData` for a wrong one."""
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


def _may(iam: Any, role: str, action: str) -> bool:
    """Whether the role allows an action on everything, without a condition: a Deny wins."""
    effects = {
        statement["Effect"]
        for statement in _statements(iam, role)
        if any(fnmatchcase(action.lower(), pattern.lower()) for pattern in _listed(statement["Action"]))
        and (statement["Effect"] == "Deny" or ("*" in _listed(statement["Resource"]) and "Condition" not in statement))
    }
    return effects == {"Allow"}


def _statements(iam: Any, role: str) -> Iterator[Mapping[str, Any]]:
    """Every statement of the role's attached and inline policies."""
    for page in iam.get_paginator("list_attached_role_policies").paginate(RoleName=role):
        for attached in page["AttachedPolicies"]:
            arn = attached["PolicyArn"]
            version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
            yield from _document(iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"])
    for page in iam.get_paginator("list_role_policies").paginate(RoleName=role):
        for name in page["PolicyNames"]:
            yield from _document(iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"])


def _document(value: Any) -> list[Mapping[str, Any]]:
    """A document's statements; boto3 decodes only some answers."""
    statements = (json.loads(unquote(value)) if isinstance(value, str) else value)["Statement"]
    return statements if isinstance(statements, list) else [statements]


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
