"""What the stand-in keeps between calls: the connection and the provider's settings."""

from __future__ import annotations

import json
from dataclasses import dataclass

from modelfleet.infra.kubernetes.api import ApiError, Unreachable
from modelfleet.infra.provider import Props, Refused
from tools.kubernetes.api import WritingApi

#: One name for all objects; the real plugin uses a random name per resource.
FIELD_MANAGER = "pulumi-kubernetes"


@dataclass(frozen=True)
class Kubernetes:
    """A configured provider."""

    api: WritingApi
    config_map_mutable: bool
    secret_mutable: bool
    take_over: bool
    force: bool


def open_session(settings: Props) -> Kubernetes:
    """Connect through the provider's settings, $KUBECONFIG or ~/.kube/config; raises `Refused` in one sentence."""
    if settings.get("enableServerSideApply") is False:
        raise Refused("enableServerSideApply: the stand-in supports only server-side apply; install the real plugin")
    source = settings.get("kubeconfig")
    if isinstance(source, dict):  # JSON text, which the protocol's reader has parsed
        source = json.dumps(source)
    try:
        api = WritingApi.from_kubeconfig(source, settings.get("context"))
    except Unreachable as error:
        raise Refused(f"the Kubernetes cluster cannot be used: {error}") from error
    except ApiError as error:
        raise Refused(f"the Kubernetes cluster refused the credentials of the kubeconfig: {error}") from error
    return Kubernetes(
        api=api,
        config_map_mutable=bool(settings.get("enableConfigMapMutable")),
        secret_mutable=bool(settings.get("enableSecretMutable")),
        take_over=bool(settings.get("upsertExistingObjects")),
        force=bool(settings.get("enablePatchForce")),
    )


def explain(error: Exception) -> str:
    """The API server's own sentence, with the fix if it is known."""
    if isinstance(error, Unreachable):
        return str(error)
    if not isinstance(error, ApiError):
        return f"{type(error).__name__}: {error}"
    if error.reason == "Conflict" and error.details.get("causes"):
        return (
            f"{error.message.strip()}; another program owns these fields. Take them over with the annotation "
            "pulumi.com/patchForce: 'true', or leave them out"
        )
    if error.reason == "Forbidden" and "cannot" in error.message:
        return f"{error.message}; the kubeconfig's user needs this right"
    return error.message
