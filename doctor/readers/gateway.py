"""The gateway on this machine, by HAProxy's runtime API: whether it runs, and which models have a live replica."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from modelfleet.doctor.evidence import Evidence, Layer, Reading
from modelfleet.doctor.subject import Subject
from modelfleet.infra.local.haproxy import ask
from modelfleet.infra.local.ports import listens, owner
from modelfleet.infra.local.runtime import gateway_runtime
from modelfleet.serving.config.errors import SetupError

#: Begins the backend of a model, `model.<slug>` (infra/gateway/render.py).
BACKEND = "model."
#: Begins a server of it, `replica-<port>`; the one called `serve` has no check.
REPLICA = "replica-"


def read(subject: Subject, seconds: float) -> Reading:  # noqa: ARG001 - `ask` waits 5 s at most
    """Facts of the two processes; a socket that is silent is one."""
    local = subject.stack.config.local
    runtime = gateway_runtime(str(subject.folder), local.gateway_port, local.metrics_port)
    found: list[Evidence] = []
    try:
        found += facts(ask(runtime.admin_socket, "show stat"), subject)
        ask(runtime.bodies_admin_socket, "show info")
    except SetupError as error:
        taken = listens(local.gateway_port)  # by another program, or by ours whose socket somebody deleted
        text = f"{error}; port {local.gateway_port} is taken{owner(local.gateway_port)}" if taken else str(error)
        found.append(Evidence(Layer.GATEWAY, "gateway", "the gateway", text))
        return Reading(Layer.GATEWAY, tuple(found))
    if subject.plan and subject.plan.gateway.auth == "keys":
        try:
            keys = [line for line in ask(runtime.admin_socket, f"show map {runtime.key_map}").splitlines() if line]
        except SetupError as error:
            return Reading(Layer.GATEWAY, tuple(found), str(error))
        if not keys:
            found.append(Evidence(Layer.GATEWAY, "keys", "the gateway", "the gateway asks for keys and knows none"))
    return Reading(Layer.GATEWAY, tuple(found))


def facts(stat: str, subject: Subject) -> Iterator[Evidence]:
    """From `show stat` (CSV, HAProxy's management guide 9.1): models without a backend, or without a live replica."""
    rows = list(csv.DictReader(stat.removeprefix("# ").splitlines()))
    sleeping = {one.slug for one in subject.plan.gateway.routes if one.scales_to_zero} if subject.plan else set()
    for slug in (model.config.slug for model in subject.models):
        own = [row for row in rows if row["pxname"] == f"{BACKEND}{slug}"]
        replicas = [row for row in own if row["svname"].startswith(REPLICA)]
        if not own:
            text = f"the gateway has no backend {BACKEND}{slug}"
            yield Evidence(Layer.GATEWAY, "route", f"model {slug}", text, models=(slug,))
        elif replicas and slug not in sleeping and not any(row["status"].startswith("UP") for row in replicas):
            text = f"DOWN: none of {len(replicas)} ports has a replica of {slug} that passes its check"
            yield Evidence(Layer.GATEWAY, "backend", f"backend {BACKEND}{slug}", text, models=(slug,))
