"""Ray Serve's applications, deployments and replicas, as its REST API lists them (`ServeInstanceDetails`, Ray 2.60)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from modelfleet.doctor.dashboard import Dashboard, Silent
from modelfleet.doctor.evidence import Evidence, Layer, Reading
from modelfleet.doctor.subject import Subject

Details = Mapping[str, Any]

#: Serve's words for what needs nobody (`ray.serve.schema.ApplicationStatus`, `DeploymentStatus`).
WELL = ("RUNNING", "HEALTHY")


def read(subject: Subject, dashboard: Dashboard, seconds: float) -> Reading:
    """What Serve says of the stack's models; a dashboard that is silent is Ray's to report."""
    try:
        details = dashboard.get("/api/serve/applications/", 0.9 * seconds)
    except Silent as error:
        return Reading(Layer.SERVE, unread=str(error))
    return Reading(Layer.SERVE, tuple(facts(details, subject)))


def facts(details: Details, subject: Subject) -> Iterator[Evidence]:
    """Applications that are absent, and messages of those that are not well."""
    applications = details.get("applications", {})
    for model in subject.models:
        slug = model.config.slug
        if slug not in applications:
            text = f"Serve has no application {slug}; it has {', '.join(sorted(applications)) or 'none'}"
            yield Evidence(Layer.SERVE, "application", f"application {slug}", text, models=(slug,))
    for slug, application in applications.items():
        yield from _application(slug, application)


def _application(slug: str, found: Details) -> Iterator[Evidence]:
    time = _time(found.get("last_deployed_time_s"))
    if found.get("status") not in WELL:
        text = f"{found.get('status')}: {found.get('message') or ''}"
        yield Evidence(Layer.SERVE, "application", f"application {slug}", text, time, (slug,))
    for name, deployment in found.get("deployments", {}).items():
        if deployment.get("status") not in WELL:
            text = f"{deployment.get('status')}: {deployment.get('message') or ''}"
            yield Evidence(Layer.SERVE, "deployment", f"deployment {slug}/{name}", text, time, (slug,))


def _time(seconds: Any) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else ""
