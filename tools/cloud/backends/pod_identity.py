"""EKS Auth: credentials of a pod's role for the EKS Pod Identity agent, which calls with its node's role.

https://docs.aws.amazon.com/eks/latest/APIReference/API_auth_AssumeRoleForPodIdentity.html
https://docs.aws.amazon.com/eks/latest/userguide/pod-id-abac.html#pod-id-abac-tags
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from datetime import UTC
from typing import Any

from tools.cloud.answers import Answer, Error, as_json
from tools.cloud.backends.associations import POD_IDENTITY_SERVICE, association_of
from tools.cloud.backends.eks import Eks
from tools.cloud.callers import ACCOUNT, PARTITION, Callers
from tools.cloud.judge import trusts_service
from tools.cloud.wire import Call

AUDIENCE = "pods.eks.amazonaws.com"
SECONDS = 6 * 3600


class PodIdentity:
    """AssumeRoleForPodIdentity over the associations of EKS."""

    def __init__(self, eks: Eks, callers: Callers) -> None:
        self._eks, self._callers = eks, callers

    def answer(self, call: Call) -> Answer:
        """Credentials for the service account that the token names; raises `Error` without an association or trust."""
        cluster, pod = str(call.params["clusterName"]), _claims(str(call.params["token"]))
        parts = self._eks.of(call.region, cluster)
        found = association_of(parts, pod["namespace"], pod["serviceaccount"]["name"])
        if found is None:
            account = f"{pod['namespace']}/{pod['serviceaccount']['name']}"
            raise Error(404, "ResourceNotFoundException", f"No association found for {account} in cluster {cluster}")
        tags = {} if found["disableSessionTags"] else _session_tags(call.region, cluster, pod)
        actions = ("sts:AssumeRole", "sts:TagSession") if tags else ("sts:AssumeRole",)
        for action in actions:
            if not trusts_service(found["roleArn"], POD_IDENTITY_SERVICE, action, tags):
                text = f"Unauthorized Exception! EKS does not have permissions to assume the associated role: {action}"
                raise Error(403, "AccessDeniedException", text)
        name = f"eks-{cluster}-{pod['pod']['name']}-{uuid.uuid4()}"[:64]
        session = self._callers.assume(str(found["roleArn"]), name, tags, SECONDS)
        return as_json(
            {
                "subject": {"namespace": pod["namespace"], "serviceAccount": pod["serviceaccount"]["name"]},
                "audience": AUDIENCE,
                "podIdentityAssociation": {key: found[key] for key in ("associationArn", "associationId")},
                "assumedRoleUser": {"arn": session.arn, "assumeRoleId": session.user_id},
                "credentials": {
                    "accessKeyId": session.access_key_id,
                    "secretAccessKey": session.secret_access_key,
                    "sessionToken": session.session_token,
                    "expiration": session.expiration.replace(tzinfo=UTC).timestamp(),
                },
            }
        )


def _session_tags(region: str, cluster: str, pod: dict[str, Any]) -> dict[str, str]:
    return {
        "eks-cluster-arn": f"arn:{PARTITION}:eks:{region}:{ACCOUNT}:cluster/{cluster}",
        "eks-cluster-name": cluster,
        "kubernetes-namespace": pod["namespace"],
        "kubernetes-service-account": pod["serviceaccount"]["name"],
        "kubernetes-pod-name": pod["pod"]["name"],
        "kubernetes-pod-uid": pod["pod"]["uid"],
    }


def _claims(token: str) -> dict[str, Any]:
    """The pod that a service account token is for. Its signature is not checked: no cluster signed it."""
    try:
        claims = json.loads(_decoded(token.split(".")[1]))
        pod: dict[str, Any] = claims["kubernetes.io"]
    except (IndexError, ValueError, KeyError):
        raise Error(400, "InvalidTokenException", "The token is not a service account token") from None
    if AUDIENCE not in claims.get("aud", ()):
        raise Error(400, "InvalidTokenException", f"The token's audience is not {AUDIENCE}")
    if claims.get("exp", 0) <= time.time():
        raise Error(400, "ExpiredTokenException", "The token has expired")
    return pod


def service_account_token(namespace: str, service_account: str, pod: str) -> str:
    """A token as kubelet projects it for EKS Pod Identity, unsigned."""
    claims = {
        "aud": [AUDIENCE],
        "exp": int(time.time()) + 3600,
        "sub": f"system:serviceaccount:{namespace}:{service_account}",
        "kubernetes.io": {
            "namespace": namespace,
            "pod": {"name": pod, "uid": str(uuid.uuid4())},
            "serviceaccount": {"name": service_account, "uid": str(uuid.uuid4())},
        },
    }
    return ".".join((_encoded({"alg": "none"}), _encoded(claims), ""))


def _encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
