"""The Kubernetes API through the official client, with plain dictionaries and one-line errors.

    with closing(Api.from_kubeconfig()) as api:        # as kubectl: $KUBECONFIG, else ~/.kube/config
        api.get("apps/v1", "Deployment", "gateway", "modelfleet-dev")

Importing this module loads the client, which takes most of a second. Commands that query no cluster do not import it.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import urllib3
import yaml
from kubernetes.client import ApiClient, ApiException, Configuration
from kubernetes.config import ConfigException
from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ResourceNotFoundError

Manifest = dict[str, Any]

#: For one call. The client would otherwise wait forever for an address that drops packets.
TIMEOUT_SECONDS: Final = 30.0
#: One kubeconfig at a time: the client remembers files by their content for the whole process, so one thread would read
#: the file that another is just removing.
_LOADS: Final = threading.Lock()
#: A path where no file can exist. The client would otherwise cache its discovery in /tmp under a guessable name.
_NO_CACHE: Final = f"{os.devnull}/none"

#: What an incomplete or wrong kubeconfig raises. ImportError: it names a SOCKS proxy, but PySocks is missing.
_UNUSABLE: Final = (
    *(ssl.SSLError, yaml.YAMLError, ConfigException, ImportError),
    *(LookupError, TypeError, AttributeError, ValueError),
)


class Unreachable(Exception):
    """Nothing answers at the cluster's address, the answer is not from Kubernetes, or the kubeconfig cannot be used."""


class ApiError(Exception):
    """The API server refused. `code` is the HTTP status; `reason` is a word such as `Forbidden` or `NoSuchKind`."""

    def __init__(self, code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        self.code, self.reason, self.message, self.details = code, reason, message, dict(details or {})
        super().__init__(message)


class Api:
    """A connection to `server`; safe to use from several threads. Every call raises `Unreachable` or `ApiError`."""

    def __init__(self, client: ApiClient) -> None:
        self.server = client.configuration.host
        self._lock = threading.Lock()
        with self._worded():
            try:
                self.client = DynamicClient(client, cache_file=_NO_CACHE)
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise Unreachable(f"{self.server} answers, but is not a Kubernetes API") from error

    @classmethod
    def from_kubeconfig(cls, source: str | Path | None = None, context: str | None = None) -> Self:
        """Connect through a kubeconfig, given as its text, its path, or several paths as in $KUBECONFIG."""
        return cls(open_kubeconfig(str(source or os.environ.get("KUBECONFIG") or "~/.kube/config"), context))

    def close(self) -> None:
        """Close the connections."""
        self.client.client.close()

    def minor_version(self) -> tuple[int, int]:
        """The API server's minor version, as (1, 35). Some clusters write `35+`."""
        with self._worded():
            said = dict(self.client.request("get", "/version", serializer=lambda _, data: data))
        return int(said["major"]), int("".join(one for one in str(said["minor"]) if one.isdigit()))

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Manifest | None:
        """The object, or None if it or its kind does not exist."""
        try:
            return self.call("get", api_version, kind, name, namespace)
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def list(self, api_version: str, kind: str, namespace: str | None = None, selector: str = "") -> list[Manifest]:
        """The objects of a kind that match a label selector; without `namespace`, from all namespaces."""
        return list(self.call("get", api_version, kind, None, namespace, label_selector=selector)["items"])

    def create(self, manifest: Manifest) -> Manifest:
        """Make an object, which must not exist yet."""
        namespace = manifest.get("metadata", {}).get("namespace")
        return self.call("post", manifest["apiVersion"], manifest["kind"], None, namespace, body=manifest)

    def merge(self, api_version: str, kind: str, name: str, namespace: str | None, patch: Manifest) -> Manifest:
        """Apply a JSON merge patch to an object."""
        merging = "application/merge-patch+json"
        return self.call("patch", api_version, kind, name, namespace, body=patch, content_type=merging)

    def patch_parts(
        self, api_version: str, kind: str, name: str, namespace: str | None, changes: Sequence[Manifest]
    ) -> Manifest:
        """Apply a JSON patch (RFC 6902) to an object: all of its changes or none."""
        parts = "application/json-patch+json"
        return self.call("patch", api_version, kind, name, namespace, body=[*changes], content_type=parts)

    def call(
        self,
        verb: str,
        api_version: str,
        kind: str,
        name: str | None,
        namespace: str | None,
        sub: str = "",
        **more: Any,
    ) -> Manifest:
        """Call an object, its subresource `sub` or a collection; `more` goes to `DynamicClient.request`."""
        prefix = "apis" if "/" in api_version else "api"  # without it, the client queries every group of the cluster
        with self._worded():
            try:
                with self._lock:  # discovery is not thread-safe
                    found = self.client.resources.get(prefix=prefix, api_version=api_version, kind=kind)
            except ResourceNotFoundError as error:
                lacks = f"the cluster has no {kind} in {api_version}; is its operator installed, and new enough?"
                raise ApiError(404, "NoSuchKind", lacks) from error
            path = found.path(name=name, namespace=namespace) + sub
            return dict(self.client.request(verb, path, serializer=lambda _, data: data, **more))

    @contextmanager
    def _worded(self) -> Iterator[None]:
        """Turn the client's exceptions, whose texts contain headers and traces, into ours."""
        try:
            yield
        except ApiException as error:
            if error.status:
                raise _refusal(error) from error
            raise Unreachable(f"no Kubernetes API answers at {self.server}: {_cause(error.reason)}") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(f"no Kubernetes API answers at {self.server}: {_cause(str(error))}") from error


def open_kubeconfig(source: str, context: str | None = None) -> ApiClient:
    """A client for a kubeconfig's context; queries no cluster yet. Raises `Unreachable` with what is wrong.

    Certificates and keys from the kubeconfig become files only during this call, in a folder that only we can open.
    """
    where = "the kubeconfig" if _is_text(source) else f"the kubeconfig {source}"
    configuration = Configuration(retries=False)
    try:
        files, merged = _read(source)
        # kubectl and Pulumi use the context of the first file that names one; the client uses the last.
        first = next((file["current-context"] for file in files if file.get("current-context")), None)
        chosen = _named(files, "contexts", context or first)["context"]
        cluster = _named(files, "clusters", chosen["cluster"])["cluster"]
        user = _named(files, "users", chosen["user"])["user"] if chosen.get("user") else None
        with _LOADS, tempfile.TemporaryDirectory(prefix="modelfleet-") as folder, _errors_logged() as said:
            KubeConfigLoader(merged, context or first, temp_file_path=folder).load_and_set(configuration)
            tls = _tls(configuration)
        if "proxy-url" not in cluster:  # as kubectl: the environment's proxy is not for addresses of this machine
            configuration.no_proxy = f"{configuration.no_proxy or ''},localhost,127.0.0.0/8,::1"
        client = _Client(configuration)
    except _UNUSABLE as error:
        raise Unreachable(f"{where} cannot be used: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise Unreachable(f"{where} cannot be read: {error.strerror}: {error.filename}") from error
    if said and user and "exec" in user:
        raise Unreachable(f"{where}: its command {user['exec'].get('command')} failed: {_reason(said[-1])}")
    client.rest_client.pool_manager.connection_pool_kw["ssl_context"] = tls
    return client


class _Client(ApiClient):
    def call_api(self, *request: Any, _request_timeout: float | None = None) -> Any:
        return super().call_api(*request, _request_timeout=_request_timeout or TIMEOUT_SECONDS)


def _is_text(source: str) -> bool:
    return "\n" in source or source.lstrip().startswith("{")


def _read(source: str) -> tuple[Sequence[Mapping[str, Any]], Any]:
    """The files one by one, and merged for the client's loader. Like kubectl, it skips missing files."""
    if _is_text(source):
        text = yaml.safe_load(source)
        return [text], text
    merger = KubeConfigMerger(source)
    if not merger.config_files:
        raise FileNotFoundError(2, "No such file or directory", source)
    return list(merger.config_files.values()), merger.config


def _named(files: Sequence[Mapping[str, Any]], section: str, name: str | None) -> Mapping[str, Any]:
    known = {entry["name"]: entry for file in reversed(files) for entry in file.get(section) or []}
    if name not in known:
        raise ValueError(f"{section} has no {name!r}, only {', '.join(known) or 'none'}")
    return dict(known[name])


def _tls(configuration: Configuration) -> ssl.SSLContext:
    """A TLS context from the files that the configuration names; clears those names."""
    tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    # Python 3.13 made these rules the default, and the certificate authorities of EKS clusters break them
    # (kubernetes-client/python issue 2394). Chain, dates and host name are still checked.
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    tls.check_hostname = bool(configuration.verify_ssl)
    if configuration.cert_file:
        tls.load_cert_chain(configuration.cert_file, configuration.key_file)
    configuration.ssl_ca_cert = configuration.cert_file = configuration.key_file = None
    return tls


@contextmanager
def _errors_logged() -> Iterator[list[str]]:
    """Collect what is logged as an error: the client only logs when a kubeconfig's command fails."""
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(handler)


def _reason(logged: str) -> str:
    """Why a command failed. On a terminal the command prints the reason itself, and the client fails without a text."""
    if "No such file" in logged:
        return "it is not installed"
    return "see above" if "NoneType" in logged else " ".join(logged.split())


def _refusal(error: ApiException) -> ApiError:
    """The server's Status object, or its plain text for a path that it does not serve."""
    try:
        status = json.loads(error.body)
        reason = str(status.get("reason") or error.reason)
        return ApiError(error.status, reason, str(status["message"]), status.get("details"))
    except (ValueError, KeyError, TypeError, AttributeError):
        text = (error.body or "").strip()[:300]
        return ApiError(error.status, str(error.reason), text or f"{error.status} {error.reason}")


def _cause(text: str) -> str:
    return "certificate is not trusted" if "CERTIFICATE_VERIFY_FAILED" in text else " ".join(text.split())
