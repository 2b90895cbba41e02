"""What `kubernetes.rayTls` adds to pods, who sees the authority's key, and how an authority is replaced."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from modelfleet.infra.kubernetes.authority import make_authority
from modelfleet.infra.kubernetes.manifests.everything import PLACEHOLDER, everything, with_secrets
from modelfleet.infra.kubernetes.manifests.ray import ray_cluster
from modelfleet.infra.kubernetes.ray import REPLACES
from modelfleet.infra.kubernetes.rollout import rebuild_reasons
from modelfleet.infra.kubernetes.scripts.certificate import certificate
from modelfleet.infra.planning import Plan
from modelfleet.serving.config.errors import InputErrors
from tests.cluster.fleet import model, planned
from tests.unit.kubernetes.projects import L4


def planned_with(root: Path, **kubernetes: Any) -> Plan:
    return planned(root, [model("org/one", "L4")], pools=[L4], kubernetes={"image": "i:1", **kubernetes})


def mounts(container: dict[str, Any]) -> set[str]:
    return {one["name"] for one in container["volumeMounts"]}


def test_every_process_of_ray_has_a_certificate_and_only_an_init_container_the_authority(tmp_path: Path) -> None:
    """Replicas run in Ray's container: one that reads the authority's key could be any pod of the cluster."""
    cluster = ray_cluster(planned_with(tmp_path, rayTls=True))
    pods = [cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]]
    for spec in pods:
        (init,), (ray,) = spec["initContainers"], spec["containers"]
        assert {"authority", "certificates"} <= mounts(init)
        assert "certificates" in mounts(ray) and "authority" not in mounts(ray)
    for container in (*(spec["containers"][0] for spec in pods), cluster["autoscalerOptions"]):
        assert {one["name"]: one.get("value") for one in container["env"]}["RAY_USE_TLS"] == "1"
    assert mounts(cluster["autoscalerOptions"]) == {"certificates"}


def test_the_authority_is_in_a_secret_of_its_number_and_nowhere_else(tmp_path: Path) -> None:
    plan = planned_with(tmp_path, rayTls=True)
    (secret,) = [one for one in with_secrets(plan, secrets=()) if one["kind"] == "Secret"]
    assert secret["metadata"]["name"] == "ray-authority-1"
    assert secret["stringData"] == {"tls.crt": PLACEHOLDER, "tls.key": PLACEHOLDER}
    assert not [one for one in everything(plan) if one["kind"] == "Secret"]
    assert not [one for one in with_secrets(planned_with(tmp_path), secrets=()) if one["kind"] == "Secret"]


@pytest.mark.parametrize("kubernetes", [{}, {"rayTls": True, "rayAuthority": 2}], ids=["off", "another"])
def test_another_authority_is_another_cluster_and_the_preview_names_the_key(
    tmp_path: Path, kubernetes: dict[str, Any]
) -> None:
    """Pods of two authorities do not speak with each other, so no cluster may have both."""
    before, after = planned_with(tmp_path / "a", rayTls=True), planned_with(tmp_path / "b", **kubernetes)
    assert rebuild_reasons(before, after) == ["kubernetes.rayTls"]
    assert "spec.rayClusterConfig.headGroupSpec.template.spec.volumes" in REPLACES, "with rollout replace, too"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"target": "local", "kubernetes": {"rayTls": True}}, "target local has no network between Ray's processes"),
        ({"kubernetes": {"rayAuthority": 2}}, "found 2, and rayTls is off"),
    ],
    ids=["on-this-machine", "an-authority-for-nothing"],
)
def test_what_would_encrypt_nothing_is_refused(tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    with pytest.raises(InputErrors, match=said):
        planned(tmp_path, [model("org/one", "L4")], pools=[L4], **keys)


def test_a_pods_certificate_is_for_its_address_and_its_heads_name_and_ends_with_the_authority() -> None:
    made = make_authority("modelfleet test")
    issuer = x509.load_pem_x509_certificate(made.certificate.encode())
    key = serialization.load_pem_private_key(made.key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    own = certificate(issuer, key, ec.generate_private_key(ec.SECP256R1()).public_key(), "10.0.7.9", "fleet-ns")
    own.verify_directly_issued_by(issuer)
    names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("10.0.7.9") in names.get_values_for_type(x509.IPAddress)
    assert "*.fleet-ns.svc.cluster.local" in names.get_values_for_type(x509.DNSName)
    assert own.not_valid_after_utc == issuer.not_valid_after_utc
    assert not own.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
