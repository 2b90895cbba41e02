"""What the stand-in keeps between calls: the connection and the provider's settings."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from infra.kubernetes.api import Api, ApiError, Unreachable
from infra.provider import Props, Refused

#: One name for all objects of this plugin; the real one has a random name per resource.
FIELD_MANAGER = "pulumi-kubernetes"


@dataclass(frozen=True)
class Kubernetes:
    """A configured provider."""

    api: Api
    version: str
    config_map_mutable: bool
    secret_mutable: bool
    take_over: bool
    force: bool


def open_session(settings: Props) -> Kubernetes:
    """Connect by the provider's settings, else $KUBECONFIG, else ~/.kube/config; raises `Refused` in one sentence."""
    if settings.get("enableServerSideApply") is False:
        raise Refused("enableServerSideApply: the stand-in knows server-side apply only; install the real plugin")
    source = settings.get("kubeconfig")
    if isinstance(source, dict):  # JSON text, which the protocol's reader has opened
        source = json.dumps(source)
    source = source or os.environ.get("KUBECONFIG") or "~/.kube/config"
    try:
        api = Api.from_kubeconfig(source, settings.get("context"))
        version = api.version()
    except Unreachable as error:
        raise Refused(f"the Kubernetes cluster cannot be used: {error}") from error
    except ApiError as error:
        raise Refused(f"the Kubernetes cluster refused the credentials of the kubeconfig: {error}") from error
    return Kubernetes(
        api=api,
        version=version,
        config_map_mutable=bool(settings.get("enableConfigMapMutable")),
        secret_mutable=bool(settings.get("enableSecretMutable")),
        take_over=bool(settings.get("upsertExistingObjects")),
        force=bool(settings.get("enablePatchForce")),
    )


def explain(error: Exception) -> str:
    """The API server's own sentence, with what to do where that is known."""
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
