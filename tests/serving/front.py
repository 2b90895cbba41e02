"""The real gateway in front of the tier's Ray, as the local target runs it: straight to the replicas' own ports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from modelfleet.infra.gateway import Runtime, render
from modelfleet.infra.local import haproxy
from modelfleet.infra.local.runtime import replica_ports
from modelfleet.infra.planning.plan import GatewayPlan, Route
from modelfleet.infra.stack.schema import Gateway as Settings
from tests.ports import free_ports
from tests.serving.cluster import Cluster
from tests.waiting import logged, wait_until

KEY = "sk-serving-0123456789"
KEYS = {"tester": KEY}


@dataclass
class Front:
    """A running gateway."""

    url: str
    metrics_url: str
    log: Path
    processes: haproxy.Processes

    def post(self, path: str, body: Any = None, **kwargs: Any) -> requests.Response:
        """POST with the key; `data=` instead of a body sends bytes unchanged."""
        headers = {"authorization": f"Bearer {KEY}", **kwargs.pop("headers", {})}
        if body is not None:
            kwargs["json"] = body
        return requests.post(self.url + path, headers=headers, timeout=kwargs.pop("timeout", 120), **kwargs)

    def get(self, path: str) -> requests.Response:
        """GET with the key."""
        return requests.get(self.url + path, headers={"authorization": f"Bearer {KEY}"}, timeout=60)

    def wait_ready(self, within_s: float = 60) -> None:
        """Waits until the gateway knows every model's replicas."""
        ready = f"{self.url}/ready"
        wait_until(lambda: requests.get(ready, timeout=30).ok, what="the gateway is ready", seconds=within_s)

    def replicas(self, slug: str) -> list[str]:
        """The replicas of a model that the gateway sends requests to, as its metrics report them."""
        text = requests.get(f"{self.metrics_url}/metrics", timeout=30).text
        return re.findall(
            rf'haproxy_server_status{{proxy="model\.{slug}",server="(replica-[^"]+)",state="UP"}} 1', text
        )

    def logged(self, request_id: str) -> dict[str, Any]:
        """The access log's entry of a request."""
        return logged(self.log, request_id)


@contextmanager
def front(
    cluster: Cluster,
    folder: Path,
    routes: dict[str, tuple[str, ...]],
    places: dict[str, dict[str, Any]] | None = None,
    traces: bool = False,
    **limits: Any,
) -> Iterator[Front]:
    """A gateway for model ids and the other names of each (LoRA adapters); `places` has more of a route, by id."""
    plan = GatewayPlan(
        routes=tuple(
            Route(name, name.replace("/", "--"), (name, *others), **(places or {}).get(name, {}))
            for name, others in routes.items()
        ),
        auth="keys",
        settings=Settings(max_body_mib=8, timeout_s=600, **limits),
        traces=traces,
    )
    api, metrics = free_ports(1)[0], cluster.queues_port
    runtime = Runtime(
        bind=f"127.0.0.1:{api}",
        folder=str(folder / "files"),
        run_folder=str(folder / "run"),
        key_map=str(folder / "run" / "keys.map"),
        metrics_bind=f"127.0.0.1:{metrics}",
        threads=1,
        bodies_memory_mib=256,
        replica_ports=replica_ports(cluster.serve_port),
    )
    folder.mkdir(parents=True)
    log = folder / "gateway.log"
    haproxy.write(render(plan, runtime, upstream=f"127.0.0.1:{cluster.serve_port}"), runtime, KEYS)
    processes = haproxy.start(runtime, haproxy.find_binary(), log)
    try:
        yield Front(f"http://{runtime.bind}", f"http://{runtime.metrics_bind}", log, processes)
    finally:
        haproxy.stop(processes, timeout_s=1)
