"""The aws stand-in's session: settings, boto3 clients, and where it may connect."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from modelfleet.infra.provider import NotDone, Props, Refused
from tools.standin.aws.faults import Faults, scripted

SETTINGS = frozenset(
    {
        "accessKey",
        "allowedAccountIds",
        "defaultTags",
        "endpoints",
        "maxRetries",
        "profile",
        "region",
        "s3UsePathStyle",
        "secretKey",
        "skipCredentialsValidation",
        "skipMetadataApiCheck",
        "skipRegionValidation",
        "skipRequestingAccountId",
        "token",
        "version",
    }
)
"""Provider settings that the stand-in honours, or that turn off what it does not do anyway."""

EMULATED_ACCOUNT = "123456789012"
"""moto's account."""


@dataclass
class Aws:
    """A configured provider: `client("s3")` is cached, thread-safe and bound to the emulator."""

    region: str
    endpoints: dict[str, str]
    default_tags: dict[str, str]
    keys: dict[str, str] = field(repr=False)
    _clients: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _faults: Faults | None = field(default_factory=scripted, repr=False)

    def client(self, service: str, region: str | None = None) -> Any:
        """A boto3 client for `service` against the emulator; `region` overrides the provider's."""
        key = (service, region or self.region)
        with self._lock:
            if key not in self._clients:
                self._clients[key] = boto3.session.Session().client(
                    service,
                    region_name=key[1],
                    endpoint_url=self.endpoint(service),
                    config=Config(
                        s3={"addressing_style": "path"},
                        retries={"mode": "standard", "max_attempts": 2},
                        connect_timeout=5,
                        read_timeout=60,
                        max_pool_connections=32,
                    ),
                    **self.keys,
                )
                if self._faults is not None:
                    self._clients[key].meta.events.register("provide-client-params.*", self._before_client_call)
                    self._clients[key].meta.events.register("after-call.*", self._after_client_call)
            return self._clients[key]

    def _before_client_call(self, params: Props, model: Any, **_: Any) -> None:
        if self._faults is not None:
            self._faults.before(model.service_model.service_name, model.name, repr(sorted(params.items(), key=str)))

    def _after_client_call(self, model: Any, **_: Any) -> None:
        if self._faults is not None:
            self._faults.after(model.name)

    def endpoint(self, service: str) -> str:
        """The emulator's URL for `service`; raises `Refused` without one, or for one on another machine."""
        url = (
            self.endpoints.get(service)
            or os.environ.get(f"AWS_ENDPOINT_URL_{service.upper().replace('-', '_')}")
            or os.environ.get("AWS_ENDPOINT_URL")
        )
        if not url:
            raise Refused(
                f"the aws stand-in has no emulator endpoint for '{service}' and never touches a real account; "
                f"set aws:endpoints or AWS_ENDPOINT_URL, or install the real plugin: pulumi plugin install resource aws"
            )
        if not is_loopback(url):
            raise Refused(f"the aws stand-in connects to this machine only; found endpoint '{url}' for '{service}'")
        return url

    def tags(self, inputs: Props) -> dict[str, str]:
        """All tags of a resource (`tagsAll`): the provider's defaults, overridden by the resource's own."""
        return {**self.default_tags, **(inputs.get("tags") or {})}


def open_session(settings: Props) -> Aws:
    """Opens a session with the provider's settings; raises `Refused` for one that it would ignore."""
    for key, value in settings.items():
        if key not in SETTINGS and value not in (None, [], {}, ""):
            raise NotDone(f"aws provider setting '{key}'")
    endpoints: dict[str, str] = {}
    for entry in settings.get("endpoints") or []:
        endpoints.update({service: url for service, url in entry.items() if url})
    region = settings.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        raise Refused("aws: the region is not set; set aws:region in the stack's config")
    keys = {
        "aws_access_key_id": settings.get("accessKey") or os.environ.get("AWS_ACCESS_KEY_ID") or "standin",
        "aws_secret_access_key": settings.get("secretKey") or os.environ.get("AWS_SECRET_ACCESS_KEY") or "standin",
    }
    if not settings.get("accessKey") and settings.get("skipCredentialsValidation") not in (True, "true"):
        _refuse_without_credentials(settings.get("profile"))
    session = Aws(region, endpoints, (settings.get("defaultTags") or {}).get("tags") or {}, keys)
    allowed = settings.get("allowedAccountIds")
    if allowed and EMULATED_ACCOUNT not in allowed:
        raise Refused(f"aws: account {EMULATED_ACCOUNT} (the emulator's) is not in allowedAccountIds {allowed}")
    return session


def _refuse_without_credentials(profile: str | None) -> None:
    """As the real plugin before its first call (pulumi-aws `validateCredentials`)."""
    try:
        found, detail = botocore.session.Session(profile=profile).get_credentials(), "No valid credential sources found"
    except BotoCoreError as error:
        found, detail = None, str(error)
    if found is None:
        raise Refused(
            f"unable to validate AWS credentials.\nDetails: {detail}\n"
            "Make sure you have set your AWS region, e.g. `pulumi config set aws:region us-west-2`."
        )


def is_loopback(url: str) -> bool:
    """Whether `url` names this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def emulator_has_ended(error: Exception) -> bool:
    """Whether nothing listens at the endpoint any more; moto keeps all in memory, so everything it held is gone."""
    return isinstance(error, EndpointConnectionError)


def error_code(error: Exception) -> str:
    """AWS's code of a service error such as `NoSuchBucket`; "" for any other exception."""
    return str(error.response["Error"].get("Code", "")) if isinstance(error, ClientError) else ""


def explain(error: Exception) -> str:
    """One sentence for an error of boto3: the operation, the code and AWS's own message."""
    if isinstance(error, ClientError):
        detail = error.response["Error"]
        return f"{error.operation_name}: {detail.get('Code', '?')}: {detail.get('Message', '')}".rstrip(": ")
    return f"{type(error).__name__}: {error}"
