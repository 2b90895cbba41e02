"""Who makes a request: access keys of moto's IAM and STS, with the policies of their user or role.

Session tags, which moto does not keep, are kept here. A revoked, unknown or expired key is no caller.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from moto.iam.models import IAMBackend, iam_backends
from moto.sts.models import AssumedRole, STSBackend, sts_backends

from tools.cloud.evaluator import Statement

ACCOUNT = "123456789012"
"""moto's account."""
PARTITION = "aws"
ADMINISTRATOR = f"arn:{PARTITION}:iam::{ACCOUNT}:user/administrator"


class Unknown(LookupError):
    """The access key is nobody's. `kind` says why: `key`, `token` or `expired`."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@dataclass(frozen=True)
class Caller:
    """A principal with its identity policies. `principals` are the names that policies may call it by."""

    arn: str
    principals: frozenset[str]
    statements: tuple[Statement, ...] = field(repr=False)
    tags: Mapping[str, str] = field(default_factory=dict)


ANYBODY = Caller("anonymous", frozenset(), ())


@dataclass
class Callers:
    """All callers of one account. `administrators` are key ids that may do everything that no policy denies."""

    administrators: frozenset[str] = frozenset()
    _tags: dict[str, dict[str, str]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, key_id: str, token: str | None) -> Caller:
        """The caller with this key; raises `Unknown`."""
        if key_id in self.administrators:
            everything = {"Effect": "Allow", "Action": "*", "Resource": "*"}
            return Caller(ADMINISTRATOR, frozenset({ADMINISTRATOR}), (everything,))
        session = sts().get_assumed_role_from_access_key(key_id)
        return self._of_session(session, token) if session else _of_user(key_id, token)

    def _of_session(self, session: AssumedRole, token: str | None) -> Caller:
        if token != session.session_token:
            raise Unknown("token")
        if session.expiration <= datetime.now(UTC).replace(tzinfo=None):
            raise Unknown("expired")
        name = session.role_arn.rpartition("/")[2]
        if session.role_arn not in {role.arn for role in list(iam().get_roles())}:
            raise Unknown("key")
        with self._lock:
            tags = dict(self._tags.get(session.access_key_id, {}))
        names = frozenset({session.arn, session.role_arn})
        return Caller(session.arn, names, tuple(role_statements(name)), tags)

    def assume(self, role_arn: str, session_name: str, tags: Mapping[str, str], seconds: int = 3600) -> AssumedRole:
        """A new session of a role, with tags. Whether its caller may have it is the judge's matter."""
        session = sts().assume_role(
            region_name="us-east-1",
            role_session_name=session_name,
            role_arn=role_arn,
            policy="",
            duration=seconds,
            external_id="",
        )
        self.tag(session.access_key_id, tags)
        return session

    def tag(self, key_id: str, tags: Mapping[str, str]) -> None:
        """Sets a session's tags."""
        with self._lock:
            self._tags[key_id] = dict(tags)


def iam() -> IAMBackend:
    """moto's IAM."""
    return iam_backends[ACCOUNT][PARTITION]


def sts() -> STSBackend:
    """moto's STS."""
    return sts_backends[ACCOUNT][PARTITION]


def role_statements(name: str) -> Iterable[Statement]:
    """All statements of a role's attached and inline policies."""
    backend = iam()
    attached, _ = backend.list_attached_role_policies(name)
    yield from _managed(attached)
    for inline in backend.list_role_policies(name):
        yield from statements(backend.get_role_policy(name, inline)[1])


def _managed(policies: Iterable[Any]) -> Iterable[Statement]:
    """The statements of managed policies, at their default version."""
    for policy in policies:
        for version in policy.versions:
            if version.is_default:
                yield from statements(version.document)


def trust_of(role_arn: str) -> list[Statement]:
    """The statements of a role's trust policy; empty if there is no such role, which nobody may then assume."""
    found = [role for role in list(iam().get_roles()) if role.arn == role_arn]
    return statements(found[0].assume_role_policy_document) if found else []


def statements(document: Any) -> list[Statement]:
    """The statements of a policy, which is text, URL-encoded text or data."""
    if isinstance(document, bytes):
        document = document.decode()
    if isinstance(document, str):
        document = json.loads(unquote(document) if document.lstrip().startswith("%") else document)
    found = document["Statement"]
    return list(found) if isinstance(found, list) else [found]


def _of_user(key_id: str, token: str | None) -> Caller:
    backend = iam()
    owners = [
        user
        for user in backend.list_users("/", None, None)
        if any(key.access_key_id == key_id and key.status == "Active" for key in user.access_keys)
    ]
    if not owners:
        raise Unknown("key")
    if token:
        raise Unknown("token")
    user = owners[0]
    attached, _ = backend.list_attached_user_policies(user.name)
    found = list(_managed(attached))
    for inline in backend.list_user_policies(user.name):
        found += statements(backend.get_user_policy(user.name, inline)["policy_document"])
    return Caller(user.arn, frozenset({user.arn}), tuple(found))
