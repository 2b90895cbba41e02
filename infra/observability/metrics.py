"""Which series are a stack's, and a model's, in a Prometheus that may watch several stacks.

Labels that the stack's own processes set: `application` (the slug) on what Ray exports for a model, `proxy`
(`model.<slug>`) on what HAProxy counts for it. `namespace` is set by whoever scrapes pods (Prometheus Operator does).
"""

from __future__ import annotations

from collections.abc import Mapping

from modelfleet.infra.planning.plan import Plan


def of_stack(plan: Plan, **more: str) -> str:
    """`{namespace="modelfleet-prod",…}`; without a cluster there is no namespace, and with nothing to say `{}`."""
    where = {} if plan.target.on_this_machine else {"namespace": plan.namespace}
    return selector({**where, **more})


def of_model(plan: Plan, slug: str, **more: str) -> str:
    """A model's series in Ray's scrape."""
    return of_stack(plan, application=slug, **more)


def of_backend(plan: Plan, slug: str, **more: str) -> str:
    """A model's series in the gateway's scrape, of both its processes."""
    return of_stack(plan, proxy=f"model.{slug}", **more)


def selector(labels: Mapping[str, str]) -> str:
    """`{a="b",c="d"}`, in PromQL's quoting."""
    return "{" + ",".join(f"{name}={quoted(value)}" for name, value in labels.items()) + "}"


def quoted(text: str) -> str:
    """A string of PromQL."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def bound_text(seconds: float) -> str:
    """A bucket's bound as prometheus_client writes it in the label `le`: `1.0`, `0.75`."""
    return repr(float(seconds))
