"""The logs of a cluster's workers and mirror Jobs: `serving/` copies those of replicas to their pods' output."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

import urllib3
from kubernetes.client import ApiException

from modelfleet.doctor.evidence import Evidence, Layer, Reading
from modelfleet.doctor.readers.logs import facts
from modelfleet.doctor.subject import Subject
from modelfleet.infra.kubernetes.api import Api, ApiError, Unreachable
from modelfleet.infra.kubernetes.json_log import as_text
from modelfleet.infra.kubernetes.names import dns_name
from modelfleet.infra.names import MODEL_LABEL, POOL_LABEL

TAIL_LINES: Final = 400
#: Most logs that are read of one stack: the newest.
MOST_LOGS: Final = 40


def read(subject: Subject, connect: Callable[[], Api], seconds: float) -> Reading:  # noqa: ARG001 - as above
    """Logs of mirror pods and of workers that are not well.

    A log that cannot be read, as on a node whose kubelet is silent, is said; the others still speak.
    """
    found, silent = list[Evidence](), list[str]()
    try:
        with closing(connect()) as api:
            listed = (pod for where in subject.namespaces for pod in api.list("v1", "Pod", where))
            pods = [pod for pod in listed if _of_interest(pod)]
            for pod in sorted(pods, key=lambda one: str(one["metadata"].get("creationTimestamp")))[-MOST_LOGS:]:
                name = pod["metadata"]["name"]
                kind = "job-log" if MODEL_LABEL in pod["metadata"]["labels"] else "log"
                try:
                    log = _log(api, pod["metadata"]["namespace"], name)
                except Unreachable as error:
                    silent.append(str(error))
                    continue
                said = facts(log, f"pod {name}", _models(pod, subject), kind)
                found += (_narrowed(one, subject) for one in said)
    except (Unreachable, ApiError) as error:
        return Reading(Layer.ENGINE, tuple(found), unread=str(error))
    return Reading(Layer.ENGINE, tuple(found), "; ".join(silent) or None)


def _of_interest(pod: dict[str, Any]) -> bool:
    """A mirror's pod that did not succeed, or a worker that runs."""
    labels, phase = pod["metadata"].get("labels", {}), pod.get("status", {}).get("phase")
    return phase in ("Running", "Failed") if MODEL_LABEL in labels else POOL_LABEL in labels and phase == "Running"


def _models(pod: dict[str, Any], subject: Subject) -> tuple[str, ...]:
    labels = pod["metadata"]["labels"]
    if MODEL_LABEL not in labels:
        return subject.in_pool(labels[POOL_LABEL])
    slugs = (model.config.slug for model in subject.models)
    return tuple(slug for slug in slugs if dns_name(slug, limit=63) == labels[MODEL_LABEL])


def _narrowed(evidence: Evidence, subject: Subject) -> Evidence:
    """A worker's log is that of all models of its pool, but a line mostly names its model."""
    named = tuple(slug for slug in evidence.models if subject.model_id(slug) in evidence.text)
    return replace(evidence, models=named or evidence.models)


def _log(api: Api, namespace: str, name: str) -> str:
    """The end of a pod's log; empty while its container has none. Raises `Unreachable`."""
    path = f"/api/v1/namespaces/{namespace}/pods/{name}/log"
    try:
        # A log is text, not an object, so this goes below `Api.call`.
        answer = api.client.request("get", path, query_params=[("tailLines", TAIL_LINES)], serialize=False)
    except ApiException as error:
        if error.status in (400, 404):  # it starts, or is gone
            return ""
        raise Unreachable(f"the log of pod {name}: {error.status} {error.reason}") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise Unreachable(f"the log of pod {name}: {error}") from error
    return as_text(answer.data.decode(errors="replace"))
