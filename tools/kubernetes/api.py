"""`WritingApi`: cluster operations that the stand-in, the control plane and the tests need, but `infra` does not."""

from __future__ import annotations

from kubernetes.client import CoreV1Api

from modelfleet.infra.kubernetes.api import Api, ApiError, Manifest
from modelfleet.infra.kubernetes.text import json_for_yaml

APPLY = "application/apply-patch+yaml"


class WritingApi(Api):
    """An `Api` that also applies, replaces and deletes."""

    @property
    def version(self) -> str:
        """The server's version, such as `v1.36.3`."""
        return str(self.client.version["kubernetes"]["gitVersion"])

    def apply(
        self, manifest: Manifest, *, manager: str, force: bool = False, dry_run: bool = False, strict: bool = True
    ) -> Manifest:
        """Server-side apply; `dry_run` validates and admits without storing, `strict` refuses unknown fields."""
        meta = manifest["metadata"]
        return self.call(
            "patch",
            manifest["apiVersion"],
            manifest["kind"],
            meta["name"],
            meta.get("namespace"),
            body=json_for_yaml(manifest).encode(),  # the client's own JSON has escapes that YAML readers refuse
            content_type=APPLY,
            field_manager=manager,
            force_conflicts=force,
            dry_run="All" if dry_run else None,
            query_params=[("fieldValidation", "Strict" if strict else "Warn")],
            _request_timeout=120,  # large definitions take long on a busy machine
        )

    def replace(self, manifest: Manifest) -> Manifest:
        """Replace an object by `manifest`, which holds the version that it replaces (PUT)."""
        meta = manifest["metadata"]
        where = (manifest["apiVersion"], manifest["kind"], meta["name"], meta.get("namespace"))
        return self.call("put", *where, body=manifest, _request_timeout=120)

    def delete(
        self, api_version: str, kind: str, name: str, namespace: str | None = None, *, propagation: str = "Background"
    ) -> bool:
        """Request deletion; return False if the object does not exist. `Foreground`: it stays until dependants went."""
        try:
            self.call("delete", api_version, kind, name, namespace, propagation_policy=propagation)
        except ApiError as error:
            if error.code == 404:
                return False
            raise
        return True

    def log(self, namespace: str, pod: str, container: str | None = None) -> str:
        """What a pod's container has written so far, which its kubelet keeps."""
        with self._worded():
            core = CoreV1Api(self.client.client)
            return str(core.read_namespaced_pod_log(pod, namespace, **({"container": container} if container else {})))

    def token(self, namespace: str, service_account: str, *, seconds: int = 3600) -> str:
        """Return a token of a ServiceAccount, as a pod would get it."""
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        answer = self.call("post", "v1", "ServiceAccount", service_account, namespace, "/token", body=request)
        return str(answer["status"]["token"])
