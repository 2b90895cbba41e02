"""Where a stack's traces go: `modelfleet:observability.traces`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from modelfleet.infra.stack import LoadedStack
from modelfleet.serving.config.errors import Finding

#: Where an OTLP/HTTP receiver takes traces: https://opentelemetry.io/docs/specs/otlp/#otlphttp-request
PATH: Final = "/v1/traces"
PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Collector:
    """A receiver's whole URL and port; `namespace` is that of a Service in the cluster, None for any other address."""

    url: str
    port: int
    namespace: str | None


def collector_of(stack: LoadedStack) -> Collector | None:
    """None where the stack sends no traces."""
    if (wanted := stack.config.observability.traces) is None:
        return None
    parts = urlsplit(wanted.otlp)
    url = wanted.otlp if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}{PATH}"
    return Collector(url, *address_of(url))


def address_of(url: str) -> tuple[int, str | None]:
    """Its port, and the namespace of the Service that it names, None for any other address."""
    parts = urlsplit(url)
    words = (parts.hostname or "").removesuffix(".cluster.local").split(".")
    return parts.port or PORTS[parts.scheme], words[1] if len(words) == 3 and words[2] == "svc" else None


def traces_findings(stack: LoadedStack) -> list[Finding]:
    """Addresses that the policies of a cluster keep replicas away from."""
    collector = collector_of(stack)
    if collector is None or stack.config.target.on_this_machine or collector.namespace or collector.port == 443:
        return []
    message = (
        f"found {collector.url}, which replicas may not reach; name a Service as http://NAME.NAMESPACE.svc:PORT, or a "
        "receiver at a public address and port 443"
    )
    return [stack.finding(("observability", "traces", "otlp"), message)]
