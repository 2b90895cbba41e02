"""The whole way in real pods: one `pulumi up`, then an answer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from modelfleet.doctor.readers.logs import READY
from modelfleet.infra.kubernetes.forward import get
from modelfleet.infra.kubernetes.manifests.scripts import POLICY_PATH
from modelfleet.infra.kubernetes.names import GATEWAY_METRICS_PORT, SERVE_SERVICE
from modelfleet.infra.planning.gateway_paths import METRICS
from modelfleet.serving.config.serve_options import DEPLOYMENT, POLICY
from tests.nodes.fleet import SLUG, NodesFleet
from tests.nodes.life import HEAD, in_head, node_of, workers
from tests.nodes.pods import Pods
from tests.waiting import wait_until
from tools.paths import ROOT

#: As Serve's controller has them.
APPLICATIONS = 'curl -s -H "Authorization: Bearer $RAY_AUTH_TOKEN" http://localhost:8265/api/serve/applications/'

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("path", ["/v1", f"/{SLUG}/v1"])
def test_a_model_file_becomes_an_answer(fleet: NodesFleet, pods: Pods, path: str) -> None:
    said = pods.says(fleet.question("What is the capital of France?", path=path))
    assert "choices" in said, said
    assert "Paris" in json.loads(said)["choices"][0]["message"]["content"]


def test_the_head_sees_nothing_of_the_checkout(fleet: NodesFleet) -> None:
    find = r"cat /proc/$(pgrep -of '^\S*/gcs_server')/mounts"
    node = node_of(fleet, HEAD)
    seen = subprocess.run(node.command("sh", "-c", find), check=True, capture_output=True, text=True).stdout
    assert " / overlay " in seen and f" {ROOT}" not in seen


def test_the_gateway_sends_to_the_replicas_own_ports(fleet: NodesFleet, pods: Pods) -> None:
    """Each of its pods, to both replicas."""
    api, namespace = fleet.cluster.api, fleet.namespace
    server = re.compile(rf'haproxy_server_status{{proxy="model\.{SLUG}",server="(replica-\d+)",state="UP"}} 1')
    answers = re.compile(
        rf'haproxy_server_http_responses_total{{proxy="model\.{SLUG}",server="(\w+)[-\d]*",code="2xx"}} (\d+)'
    )
    gateways = [one["metadata"]["name"] for one in api.list("v1", "Pod", namespace, "app.kubernetes.io/name=gateway")]

    def pages() -> list[str]:
        return [get(api, namespace, pod, GATEWAY_METRICS_PORT, METRICS, 10) for pod in gateways]

    def answered() -> Counter[str]:
        found: Counter[str] = Counter()
        for page in pages():
            for name, count in answers.findall(page):
                found[name] += int(count)
        return found

    wait_until(lambda: all(len(server.findall(page)) == 2 for page in pages()), what="both are found", seconds=240)
    before = answered()
    for _ in range(3):
        pods.says(fleet.question("What is the capital of France?"))
    more = answered() - before
    assert more == Counter(replica=3), "none went to Serve's proxies"


def test_serves_controller_has_our_policy_and_its_schedule(fleet: NodesFleet) -> None:
    """The second replica is there by the schedule alone: the file asks for one, and nobody asked the model for more."""
    applications = json.loads(in_head(fleet, "sh", "-c", APPLICATIONS))["applications"]
    scaling = applications[SLUG]["deployments"][DEPLOYMENT]["deployment_config"]["autoscaling_config"]
    assert scaling["policy"]["policy_function"] == POLICY
    assert scaling["min_replicas"] == 1 and scaling["policy"]["policy_kwargs"]["schedule"]["own"]["zone"] == "UTC"
    assert len(workers(fleet)) == 2


def test_the_head_finds_the_policy_and_hears_from_each_gateway_pod_how_many_wait(fleet: NodesFleet) -> None:
    look = (
        "import os; from modelfleet.serving import scaling; "
        "pods = scaling.addresses(os.environ[scaling.QUEUES_VARIABLE]); "
        f"print(scaling.__file__, len(pods), scaling.waiting_at(pods, '{SLUG}'))"
    )
    assert in_head(fleet, "python3", "-c", look).split() == [f"{POLICY_PATH}/modelfleet/serving/scaling.py", "2", "0.0"]


def test_the_service_that_the_gateway_asks_follows_the_cluster_and_has_no_address(fleet: NodesFleet) -> None:
    """The operator takes over the one that the stack made."""
    service = fleet.cluster.api.get("v1", "Service", SERVE_SERVICE, fleet.namespace)
    assert service is not None and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].keys() == {"ray.io/cluster", "ray.io/serve"}


def test_pods_write_objects_that_name_the_model(fleet: NodesFleet) -> None:
    """But for what `ray start` says before; and records of usage, which are objects of their own, have no `file`."""
    api = fleet.cluster.api
    for name in workers(fleet).values():
        lines = api.log(fleet.namespace, name).splitlines()
        objects = [json.loads(line) for line in lines if line.startswith("{")]
        found = [one for one in objects if "file" in one]
        assert any(one.get("application") == SLUG and READY.search(one["message"]) for one in found), lines[-20:]
        assert {one["file"].partition("-")[0] for one in found} >= {"raylet.out", "worker"}
        assert not [line for line in lines if line.startswith(("replica_", "worker-"))]
    jobs = [pod["metadata"]["name"] for pod in api.list("v1", "Pod", fleet.plan.mirror_namespace)]
    said = [json.loads(line) for name in jobs for line in api.log(fleet.plan.mirror_namespace, name).splitlines()]
    assert {one["file"] for one in said} == {"mirror"}


def test_top_reads_every_pod_through_forwarded_ports(fleet: NodesFleet) -> None:
    words = [Path(sys.prefix) / "bin" / "modelfleet", "top", "--stack", fleet.stack, "--json", "--window", "2"]

    def shown() -> dict[str, Any]:
        done = subprocess.run(
            words, cwd=fleet.project.folder, env=fleet.project.environ, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    # Ray passes on what vLLM counts every ten seconds, so the last answer may still run in it.
    found = wait_until(lambda: (seen := shown())["models"][0]["running"] == 0 and seen, what="idle", seconds=60) or {}
    (model,), (pool,) = found["models"], found["pools"]
    assert (model["replicas"], pool["nodes"], found["unread"]) == (2, 2, [])
