"""What a pod finds on a real node: its rights, volumes, tokens, names and services."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.nodes.pods import NAMESPACE, Pods
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SERVER = "python3 -u -m http.server 8000"


def on(number: int) -> dict[str, Any]:
    return {"nodeName": f"node-{number}"}


@pytest.fixture(scope="module")
def web(pods: Pods) -> str:
    """A Service with a server behind it on the first node; returns its name."""
    answers = {"readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1}}
    pods.create(
        "web", f"cd /etc && {SERVER}", container=answers, labels={"app": "web"}, restartPolicy="Always", **on(1)
    )
    service = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]}
    meta = {"name": "web", "namespace": NAMESPACE}
    pods.cluster.api.create({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service})
    pods.ready("web")
    return "web"


def test_a_pod_has_no_more_rights_than_it_asks_for(pods: Pods) -> None:
    said = pods.says(
        "id -u; grep -E 'Seccomp:|NoNewPrivs|CapBnd' /proc/1/status; touch /x 2>&1; unshare -U true 2>&1; true"
    )
    assert said.splitlines()[0] == "1000"
    status = dict(line.split(":\t") for line in said.splitlines() if ":\t" in line)
    assert status == {"Seccomp": "2", "NoNewPrivs": "1", "CapBnd": "0000000000000000"}
    assert "Read-only file system" in said and "Operation not permitted" in said


def test_an_image_that_would_run_as_root_is_refused_with_the_reason(pods: Pods) -> None:
    pods.create("root", "true", securityContext={"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}})

    def waiting() -> dict[str, Any]:
        (container,) = pods.get("root")["status"].get("containerStatuses", [{}])
        return dict(container.get("state", {}).get("waiting", {}))

    reason = wait_until(lambda: waiting().get("message"), what="the kubelet says why", seconds=60)
    assert "container has runAsNonRoot and image will run as root" in reason
    pods.delete("root")


def test_volumes_secrets_and_tokens_are_files(pods: Pods) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": NAMESPACE}}
    pods.cluster.api.create({**secret, "stringData": {"word": "sesame"}})
    said = pods.says(
        "cat /shared/first /secret/word; grep ' /memory ' /proc/mounts | cut -d' ' -f3; "
        "cut -d. -f2 /var/run/secrets/tokens/token; cat /sys/fs/cgroup/memory/memory.limit_in_bytes",
        volumes=[
            {"name": "shared", "emptyDir": {}},
            {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
            {"name": "secret", "secret": {"secretName": "key"}},
            {
                "name": "token",
                "projected": {"sources": [{"serviceAccountToken": {"path": "token", "audience": "sts.amazonaws.com"}}]},
            },
        ],
        initContainers=[
            {
                "name": "first",
                "image": pods.cluster.images.reference("localhost/debian:12"),
                "command": ["sh", "-c", "echo init > /shared/first"],
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
        container={
            "volumeMounts": [
                {"name": "shared", "mountPath": "/shared"},
                {"name": "memory", "mountPath": "/memory"},
                {"name": "secret", "mountPath": "/secret"},
                {"name": "token", "mountPath": "/var/run/secrets/tokens"},
            ],
            "resources": {"limits": {"memory": "64Mi"}},
        },
    )
    first, word_and_type, payload, limit = said.replace("sesame", "sesame ").splitlines()
    assert (first, word_and_type, limit) == ("init", "sesame tmpfs", str(64 * 1024**2))
    assert _claims(payload)["aud"] == ["sts.amazonaws.com"]


def _claims(payload: str) -> dict[str, Any]:
    import base64

    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


@pytest.mark.parametrize("number", [1, 2])
def test_a_service_is_found_by_name_from_each_node(pods: Pods, web: str, number: int) -> None:
    ask = f"curl -s -o /dev/null -w '%{{http_code}}' --retry 5 --retry-connrefused --max-time 10 http://{web}"
    said = pods.says(f"{ask}/; {ask}.{NAMESPACE}.svc.cluster.local/os-release", **on(number))
    assert said == "200200"


def test_the_api_answers_a_pod_by_its_own_token(pods: Pods) -> None:
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    said = pods.says(
        f'curl -s --cacert {folder}/ca.crt -H "Authorization: Bearer $(cat {folder}/token)" -o /dev/null '
        "-w '%{http_code}' https://kubernetes.default.svc/api/v1/namespaces/pods/pods"
    )
    assert said == "403", "known, and without rights"


def test_nothing_of_the_machine_can_be_reached(pods: Pods) -> None:
    said = pods.says(
        "curl -s --max-time 5 http://169.254.169.254/ || echo cut; getent hosts example.org || echo unknown"
    )
    assert said == "cut\nunknown"


@pytest.mark.parametrize(("client", "server"), [(1, 1), (2, 1)], ids=["on one node", "across nodes"])
def test_a_policy_cuts_who_it_does_not_name(pods: Pods, web: str, client: int, server: int) -> None:
    rule = {"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}], "ports": [{"port": 8000}]}
    spec = {"podSelector": {"matchLabels": {"app": web}}, "policyTypes": ["Ingress"], "ingress": [rule]}
    meta = {"name": "friends", "namespace": NAMESPACE}
    pods.cluster.api.create(
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}
    )
    address = pods.get(web)["status"]["podIP"]
    ask = f"curl -s -o /dev/null -w '%{{http_code}}' --max-time 3 http://{address}:8000/ || true"
    try:
        wait_until(
            lambda: pods.says(ask, labels={"role": "stranger"}, **on(client)) == "000",
            what="the policy is enforced",
            seconds=60,
        )
        assert pods.says(ask, labels={"role": "friend"}, **on(client)) == "200"
    finally:
        pods.cluster.api.delete("networking.k8s.io/v1", "NetworkPolicy", "friends", NAMESPACE)
