"""What belongs to one EKS cluster, and the words that its operations share."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from moto.eks.exceptions import EKSError

from tools.cloud.answers import Error
from tools.cloud.callers import ACCOUNT, PARTITION, iam
from tools.cloud.wire import Call

Item = dict[str, Any]


@dataclass
class Parts:
    """Add-ons by name, access entries by principal, access policies by principal and policy, associations by id.

    Updates of the cluster and of its node groups are by id.
    """

    made_with: str
    addons: dict[str, Item] = field(default_factory=dict)
    entries: dict[str, Item] = field(default_factory=dict)
    policies: dict[tuple[str, str], Item] = field(default_factory=dict)
    associations: dict[str, Item] = field(default_factory=dict)
    updates: dict[str, Item] = field(default_factory=dict)

    def tagged(self, arn: str) -> Item | None:
        """The part with this ARN; it has `tags`."""
        kinds = (("addonArn", self.addons), ("accessEntryArn", self.entries), ("associationArn", self.associations))
        return next((item for key, items in kinds for item in items.values() if item[key] == arn), None)


def now() -> float:
    """The time, as EKS writes it."""
    return datetime.now(UTC).timestamp()


def arn_of(call: Call, kind: str, *parts: str) -> str:
    """The ARN of a part, of a kind such as `addon`."""
    return f"arn:{PARTITION}:eks:{call.region}:{ACCOUNT}:{kind}/{'/'.join(parts)}"


def in_use(text: str) -> Error:
    """There is one already."""
    return Error(409, "ResourceInUseException", text)


def absent(text: str) -> Error:
    """There is none."""
    return Error(404, "ResourceNotFoundException", text)


def wrong(text: str) -> Error:
    """A parameter is wrong."""
    return Error(400, "InvalidParameterException", text)


def require_role(arn: str) -> None:
    """Raises `Error` if there is no such role."""
    if arn not in {role.arn for role in list(iam().get_roles())}:
        raise wrong(f"Role {arn} does not exist")


def as_refused(error: EKSError) -> Error:
    """moto's refusal, whose words are EKS's."""
    return Error(error.STATUS, error.TYPE, str(json.loads(error.description)["message"]))  # type: ignore[attr-defined]


def update_of(parts: Parts, kind: str, params: Mapping[str, Any], errors: Sequence[Item] = ()) -> Item:
    """A new update, which has ended: with errors it changed nothing."""
    made = {
        "id": str(uuid.uuid4()),
        "status": "Failed" if errors else "Successful",
        "type": kind,
        "params": [{"type": name, "value": json.dumps(value)} for name, value in params.items()],
        "createdAt": now(),
        "errors": list(errors),
    }
    parts.updates[str(made["id"])] = made
    return made
