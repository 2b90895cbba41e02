"""The Kubernetes API in plain HTTP: for looking at a cluster before a run, for the stand-in provider and the tests.

    api = Api.from_kubeconfig(path)
    api.apply(manifest, manager="modelfleet")        # server-side apply
    api.get("apps/v1", "Deployment", "gateway", "modelfleet-dev")

Errors: `Unreachable` (no answer), `ApiError` (the server's own Status: code, reason, message).
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import urllib3
import yaml

from infra.kubernetes.text import json_for_yaml

Manifest = dict[str, Any]


class Unreachable(Exception):
    """Nobody answers at the cluster's address, or the answer is not from an API server."""


class ApiError(Exception):
    """The API server refused; `code` is the HTTP status, `reason` its word (`Forbidden`, `Conflict`, `Invalid`)."""

    def __init__(self, code: int, reason: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        self.code, self.reason, self.message = code, reason, message
        self.details = dict(details or {})
        super().__init__(message)


class NoSuchKind(ApiError):
    """The cluster does not serve this kind: its CustomResourceDefinition is missing or too old."""

    def __init__(self, api_version: str, kind: str) -> None:
        super().__init__(
            404, "NoSuchKind", f"the cluster has no {kind} in {api_version}; is its operator installed, and new enough?"
        )


@dataclass(frozen=True)
class Kind:
    """Where a kind lives: its plural name in paths and whether it belongs to a namespace."""

    plural: str
    namespaced: bool


@dataclass(frozen=True)
class Access:
    """Address and credentials of a cluster, as a kubeconfig's context holds them."""

    server: str
    ca: str | None = None
    insecure: bool = False
    token: str | None = None
    certificate: tuple[str, str] | None = None
    namespace: str = "default"

    def __repr__(self) -> str:
        return f"Access({self.server!r}, token=***)"


class Api:
    """A connection; safe to use from several threads."""

    def __init__(self, access: Access, *, timeout_seconds: float = 30.0) -> None:
        self.access = access
        self._headers = {"Authorization": f"Bearer {access.token}"} if access.token else {}
        self._timeout = timeout_seconds
        # Not `requests`: it adds its own authorities to the cluster's, and asks proxies from the environment.
        self._http = urllib3.PoolManager(maxsize=16, ssl_context=_tls(access), retries=False)
        self._kinds: dict[tuple[str, str], Kind] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_kubeconfig(cls, source: str | Path, context: str | None = None) -> Api:
        """Connect as a kubeconfig (its path or its text) says; raises `Unreachable` when it cannot be read."""
        return cls(read_kubeconfig(source, context))

    def close(self) -> None:
        """Let the connections go."""
        self._http.clear()

    def version(self) -> str:
        """The server's version, such as `v1.36.3`."""
        return str(self.request("GET", "/version")["gitVersion"])

    def path(self, api_version: str, kind: str, name: str | None = None, namespace: str | None = None) -> str:
        """The URL path of an object or of a collection; without `namespace`, of all namespaces."""
        found = self.kind(api_version, kind)
        parts = [_group_path(api_version)]
        if found.namespaced and namespace:
            parts.append(f"namespaces/{quote(namespace, safe='')}")
        parts.append(found.plural)
        if name:
            parts.append(quote(name, safe=""))
        return "/".join(parts)

    def kind(self, api_version: str, kind: str) -> Kind:
        """Look a kind up by discovery; raises `NoSuchKind`."""
        key = (api_version, kind)
        if key not in self._kinds:
            with self._lock:
                self._discover(api_version)
        if key not in self._kinds:
            raise NoSuchKind(api_version, kind)
        return self._kinds[key]

    @staticmethod
    def is_custom(api_version: str) -> bool:
        """Whether a group is made by a CustomResourceDefinition: Kubernetes' own have no dot, or end in k8s.io."""
        group = api_version.rpartition("/")[0]
        return "." in group and not group.endswith("k8s.io")

    def _discover(self, api_version: str) -> None:
        try:
            answer = self.request("GET", _group_path(api_version))
        except ApiError as error:
            if error.code == 404:
                return
            raise
        for entry in answer.get("resources", []):
            if "/" not in entry["name"]:
                self._kinds[(api_version, entry["kind"])] = Kind(entry["name"], entry["namespaced"])

    def apply(
        self,
        manifest: Manifest,
        *,
        manager: str,
        force: bool = False,
        dry_run: bool = False,
        strict: bool = True,
        timeout: float | None = None,
    ) -> Manifest:
        """Server-side apply; `dry_run`: validated and admitted, not stored; `strict`: unknown fields are refused."""
        meta = manifest["metadata"]
        query = {
            "fieldManager": manager,
            "fieldValidation": "Strict" if strict else "Warn",
            "force": str(force).lower(),
        }
        if dry_run:
            query["dryRun"] = "All"
        path = self.path(manifest["apiVersion"], manifest["kind"], meta["name"], meta.get("namespace"))
        body = json_for_yaml(manifest)
        return self.request(
            "PATCH", path, params=query, content=body, kind="application/apply-patch+yaml", timeout=timeout
        )

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Manifest | None:
        """The object, or None when it is not there (neither is its kind)."""
        try:
            return self.request("GET", self.path(api_version, kind, name, namespace))
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    def list(self, api_version: str, kind: str, namespace: str | None = None, selector: str = "") -> list[Manifest]:
        """The objects of a kind, by label selector."""
        query = {"labelSelector": selector} if selector else {}
        answer = self.request("GET", self.path(api_version, kind, None, namespace), params=query)
        return [{"apiVersion": api_version, "kind": kind, **item} for item in answer["items"]]

    def merge(
        self, api_version: str, kind: str, name: str, namespace: str | None, patch: Manifest, sub: str = ""
    ) -> Manifest:
        """JSON merge patch of an object or of a subresource such as `status`."""
        path = self.path(api_version, kind, name, namespace) + (f"/{sub}" if sub else "")
        return self.request("PATCH", path, content=json.dumps(patch), kind="application/merge-patch+json")

    def create(self, manifest: Manifest) -> Manifest:
        """Plain create (POST)."""
        path = self.path(manifest["apiVersion"], manifest["kind"], None, manifest["metadata"].get("namespace"))
        return self.request("POST", path, content=json.dumps(manifest), kind="application/json")

    def delete(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> bool:
        """Ask for deletion, dependants in the background; False when it was not there."""
        body = json.dumps({"propagationPolicy": "Background"})
        try:
            path = self.path(api_version, kind, name, namespace)
            self.request("DELETE", path, content=body, kind="application/json")
        except ApiError as error:
            if error.code == 404:
                return False
            raise
        return True

    def token(self, namespace: str, service_account: str, *, seconds: int = 3600) -> str:
        """A token of a ServiceAccount, as a pod would get it."""
        path = f"{self.path('v1', 'ServiceAccount', service_account, namespace)}/token"
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        return str(self.request("POST", path, content=json.dumps(body), kind="application/json")["status"]["token"])

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: str | None = None,
        kind: str | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """One call; raises `Unreachable` or `ApiError`."""
        url = self.access.server.rstrip("/") + path + (f"?{urlencode(params)}" if params else "")
        headers = {**self._headers, **({"Content-Type": kind} if kind else {})}
        try:
            answer = self._http.request(
                method,
                url,
                body=content.encode() if content else None,
                headers=headers,
                timeout=timeout or self._timeout,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(f"no Kubernetes API answers at {self.access.server}: {_cause(error)}") from error
        if 200 <= answer.status < 300:
            return _json(answer.data, self.access.server)
        raise _refusal(answer)


def read_kubeconfig(source: str | Path, context: str | None = None) -> Access:
    """A kubeconfig's context; `source` is its path or its text. Raises `Unreachable` with what is wrong."""
    where = "the kubeconfig"
    if isinstance(source, Path) or ("\n" not in source and not source.lstrip().startswith("{")):
        where = f"the kubeconfig {source}"
        try:
            source = Path(source).expanduser().read_text()
        except OSError as error:
            raise Unreachable(f"{where} cannot be read: {error.strerror}") from error
    try:
        config = yaml.safe_load(source)
        name = context or config.get("current-context")
        chosen = _named(config, "contexts", name)["context"]
        cluster = _named(config, "clusters", chosen["cluster"])["cluster"]
        user = _named(config, "users", chosen["user"])["user"] if chosen.get("user") else {}
        return _access(cluster, user or {}, chosen.get("namespace") or "default")
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise Unreachable(f"{where} is not a kubeconfig: {' '.join(str(error).split())}") from error


def objects(manifests: Iterator[Manifest] | list[Manifest]) -> Iterator[Manifest]:
    """The manifests, `List` kinds opened."""
    for manifest in manifests:
        if manifest["kind"].endswith("List") and "items" in manifest:
            yield from manifest["items"]
        else:
            yield manifest


def _named(config: Mapping[str, Any], section: str, name: str | None) -> Mapping[str, Any]:
    for entry in config.get(section) or []:
        if entry.get("name") == name:
            return dict(entry)
    known = ", ".join(str(e.get("name")) for e in config.get(section) or []) or "none"
    raise ValueError(f"{section} has no {name!r}, only {known}")


def _access(cluster: Mapping[str, Any], user: Mapping[str, Any], namespace: str) -> Access:
    token = user.get("token")
    if "tokenFile" in user:
        token = Path(user["tokenFile"]).read_text().strip()
    if "exec" in user:
        token = _exec_token(user["exec"])
    certificate = None
    if "client-certificate" in user or "client-certificate-data" in user:
        certificate = (_pem(user, "client-certificate"), _pem(user, "client-key"))
    has_ca = "certificate-authority" in cluster or "certificate-authority-data" in cluster
    return Access(
        server=str(cluster["server"]),
        ca=_pem(cluster, "certificate-authority") if has_ca else None,
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        token=token,
        certificate=certificate,
        namespace=namespace,
    )


def _pem(section: Mapping[str, Any], key: str) -> str:
    if f"{key}-data" in section:
        return base64.b64decode(section[f"{key}-data"]).decode()
    return Path(section[key]).read_text()


def _exec_token(spec: Mapping[str, Any]) -> str | None:
    """The token that an exec plugin (such as `aws eks get-token`) prints."""
    command = [spec["command"], *(spec.get("args") or [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unreachable(f"the kubeconfig's command {spec['command']} failed: {error}") from error
    return str(json.loads(done.stdout)["status"]["token"])


def _tls(access: Access) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=access.ca) if access.ca else ssl.create_default_context()
    if access.insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if access.certificate:
        _load_certificate(context, *access.certificate)
    return context


def _load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    """`load_cert_chain` reads files only; a file in memory keeps the key off the disk."""
    fd = os.memfd_create("client")
    try:
        os.write(fd, f"{certificate}\n{key}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _group_path(api_version: str) -> str:
    return f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"


def _json(data: bytes, server: str) -> dict[str, Any]:
    try:
        return dict(json.loads(data))
    except ValueError as error:
        raise Unreachable(f"{server} answers, but is not a Kubernetes API") from error


def _refusal(answer: urllib3.BaseHTTPResponse) -> ApiError:
    """The server's Status object; a path that it does not serve at all answers plain text."""
    word = answer.reason or str(answer.status)
    try:
        status = json.loads(answer.data)
        message, reason = str(status["message"]), str(status.get("reason") or word)
        return ApiError(answer.status, reason, message, status.get("details"))
    except (ValueError, KeyError, TypeError):
        return ApiError(answer.status, word, answer.data.decode(errors="replace").strip()[:300] or word)


def _cause(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return "certificate is not trusted" if "CERTIFICATE_VERIFY_FAILED" in text else text
