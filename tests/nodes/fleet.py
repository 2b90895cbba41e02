"""The shipped program with `target: kubernetes` on real nodes, run by somebody inside the cluster's network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from modelfleet.infra.kubernetes.forward import get
from modelfleet.infra.kubernetes.manifests.gateway import PORT
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.gateway_paths import READY
from modelfleet.infra.planning.monitoring import ALERT_WEBHOOK
from modelfleet.infra.reading.workspace import make_plan
from tests.engine.engine import PULUMI, Project
from tests.waiting import wait_until
from tools.kubernetes.cluster import Cluster
from tools.kubernetes.node.serving_image import SERVING
from tools.kubernetes.trial.trial import SEED_BUCKET, Trial

ROOT = Path(__file__).resolve().parents[2]
STACK = "nodes"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
SLUG = MODEL.replace("/", "--")
REGION = "us-west-2"
#: CPUs that each node claims: a worker of the instance type takes more than half. A replica needs more than half of the
#: worker's memory. So there is one on each node.
NODE_CPUS, INSTANCE, REPLICA_BYTES = 30, "c7i.4xlarge", 16 << 30
#: Where alerts go: a pod and its Service, and the part of the URL that nobody else knows.
WEBHOOK, WEBHOOK_PORT, WEBHOOK_PATH = "alerts", 8080, "/T0K3N"
#: Less than the plan would take, because other tests start vLLM beside these.
CACHE_BYTES = 256 << 20


def _now(replicas: int) -> dict[str, Any]:
    """A schedule that has so many replicas since an hour ago and for the next hours."""
    now = datetime.now(UTC)
    begin, end = (now + timedelta(hours=hours) for hours in (-1, 6))
    entries = [
        {"cron": f"{begin.minute} {begin.hour} * * *", "min_replicas": replicas},
        {"cron": f"{end.minute} {end.hour} * * *", "min_replicas": 1},
    ]
    return {"time_zone": "UTC", "entries": entries}


class NodesFleet:
    """A stack on the cluster; `up` runs what a user runs."""

    def __init__(self, cluster: Cluster, storage: Mapping[str, str], folder: Path, stack: str = STACK) -> None:
        self.cluster, self.stack = cluster, stack
        self.project = Project(
            folder / stack,
            name="modelfleet",
            stack=stack,
            pulumi_yaml={
                "main": str(ROOT),
                "plugins": {"providers": [{"name": "modelfleet", "path": str(PULUMI.parent)}]},
            },
            config={"aws:region": REGION, "aws:skipCredentialsValidation": True},
            environ={**storage, "KUBECONFIG": str(cluster.plane.kubeconfig)},
        )
        self.project.timeout_seconds = 1200
        self.trial = Trial(stack, cluster.plane.kubeconfig, cluster.api, self.project.folder)
        self.plan: Plan

    @property
    def namespace(self) -> str:
        """The stack's."""
        return f"modelfleet-{self.stack}"

    def write(
        self,
        *,
        nodes: int = 2,
        replicas: int = 2,
        image: str | None = None,
        alerts_to: str | None = None,
        sleeps_after_s: int | None = None,
    ) -> None:
        """Stack and model file: so many replicas, one on each node. Mirror Jobs have a namespace of their own.

        The file itself asks for one replica; more there are by its schedule alone, in these hours. A model that sleeps
        has none until it is asked. With a Service for alerts the stack has a Prometheus of its own, and the model a
        goal that no answer meets.
        """
        root = self.project.folder
        content = yaml.safe_load((ROOT / "models" / f"{SLUG}.yaml").read_text())
        # vLLM's compiler takes minutes on two cores, and these tests are not about it.
        content["engine_config"]["engine_kwargs"] |= {"enforce_eager": True, "kv_cache_memory_bytes": CACHE_BYTES}
        least = 1 if sleeps_after_s is None else 0
        scaling = {"min_replicas": least, "initial_replicas": least, "max_replicas": replicas}
        scaling |= {} if sleeps_after_s is None else {"downscale_to_zero_delay_s": sleeps_after_s}
        content["deployment_config"]["autoscaling_config"] |= scaling | (
            {"schedule": _now(replicas)} if replicas > 1 else {}
        )
        content["deployment_config"].setdefault("ray_actor_options", {})["memory"] = REPLICA_BYTES
        observability, secrets = {"logs": "json"}, {}
        if alerts_to:
            content["deployment_config"]["slo"] = {"ttft_p95_ms": 1}
            observability |= {"metrics": "own", "webhookService": alerts_to}
            secrets[ALERT_WEBHOOK] = {"secure": "its value is in the project's own settings"}
            self.project.set_secret(ALERT_WEBHOOK, f"{alerts_to}{WEBHOOK_PATH}")
        stack = {
            "target": "kubernetes",
            "models": [SLUG],
            "auth": "none",
            "accountId": "123456789012",
            "pools": [{"name": "cpu", "accelerator": "CPU", "maxNodes": nodes, "instanceTypes": [INSTANCE]}],
            "mirror": {
                "create": True,
                "bucket": f"fleet-{self.stack}",
                "sources": {MODEL: f"s3://{SEED_BUCKET}/smollm2"},
            },
            "observability": observability,
            **secrets,
            "kubernetes": {
                "image": image or self.cluster.images.reference(SERVING),
                "createNamespace": False,
                "mirrorNamespace": f"{self.namespace}-mirror",
            },
        }
        config = {"aws:region": REGION, **{f"modelfleet:{key}": value for key, value in stack.items()}}
        for name, text in ((f"models/{SLUG}", content), (f"stacks/Pulumi.{self.stack}", {"config": config})):
            path = root / f"{name}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(yaml.safe_dump(text, sort_keys=False))
        self.plan = make_plan(root, self.stack)

    def modelfleet(self, command: str, *, until: str | None = None) -> subprocess.CompletedProcess[str]:
        """`modelfleet COMMAND` for this stack, as its user runs it; ^C as soon as it says `until`.

        A terminal gives ^C to each process of the command, and `modelfleet` relies on it for Pulumi's engine.
        """
        words = [Path(sys.prefix) / "bin" / "modelfleet", command, "--stack", self.stack]
        pipe, environment = subprocess.PIPE, self.project.environ
        with subprocess.Popen(
            words,
            cwd=self.project.folder,
            env=environment,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        ) as run:
            said = ""
            for line in run.stdout or ():
                said += line
                if until is not None and until in line:
                    os.killpg(run.pid, signal.SIGINT)
                    until = None
        return subprocess.CompletedProcess(words, run.returncode, said)

    def wait_for_gateways(self) -> None:
        """Until each gateway pod has found the models, which takes it up to 15 s after the first `pulumi up`."""
        api = self.cluster.api

        def ready() -> bool:
            pods = api.list("v1", "Pod", self.namespace, "app.kubernetes.io/name=gateway")
            return all(get(api, self.namespace, pod["metadata"]["name"], PORT, READY, 10) for pod in pods)

        wait_until(ready, what="both gateways find the models", seconds=60, retry=OSError, every_s=1)

    def question(self, text: str, *, path: str = "/v1") -> str:
        """The command with which a pod anywhere in the cluster asks the model."""
        body = {"model": MODEL, "temperature": 0, "max_tokens": 24, "messages": [{"role": "user", "content": text}]}
        url = f"http://gateway.{self.namespace}.svc.cluster.local{path}/chat/completions"
        return f"curl -s --max-time 120 -H 'Content-Type: application/json' -d '{json.dumps(body)}' {url}"

    def __enter__(self) -> NodesFleet:
        return self

    def __exit__(self, *error: object) -> None:
        self.project.destroy(check=False)
