"""The metrics pages of a stack: on this machine by their ports, in a cluster by the way of `kubectl port-forward`."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from modelfleet.infra.names import POOL_LABEL
from modelfleet.infra.observability import scrape_configs
from modelfleet.infra.observability.samples import Look, Page
from modelfleet.infra.planning import Plan
from modelfleet.infra.planning.gateway_paths import KEY_METRICS, METRICS
from modelfleet.serving.config.errors import SetupError

if TYPE_CHECKING:
    from modelfleet.infra.kubernetes.api import Api

#: Seconds that a page may take.
TIMEOUT_S: Final = 5.0
#: Pages that are read at once.
AT_ONCE: Final = 16
#: Most of a page that is read.
MOST_BYTES: Final = 64 * 2**20

#: Reads one page; raises `OSError` with what is wrong.
Read = Callable[[], Page]


@contextmanager
def looking(plan: Plan, root: Path) -> Iterator[Callable[[], Look]]:
    """A function that looks at every page of the stack; raises `SetupError` for a cluster that does not answer."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        if plan.target.on_this_machine:
            yield lambda: _look(pool, _local(plan))
            return
        from contextlib import closing

        from modelfleet.doctor.readers.cluster import connect
        from modelfleet.doctor.subject import Subject
        from modelfleet.infra.kubernetes.api import ApiError, Unreachable

        def look() -> Look:
            try:
                return _look(pool, _cluster(plan, api))
            except (Unreachable, ApiError) as error:
                raise SetupError(f"stack {plan.stack}: {error}") from None

        try:
            opened = connect(Subject(root, plan.source, plan, ()))
        except (Unreachable, ApiError) as error:
            raise SetupError(f"stack {plan.stack}: {error}") from None
        with closing(opened) as api:
            yield look


def _look(pool: ThreadPoolExecutor, reads: dict[str, Read]) -> Look:
    at = time.monotonic()
    begun = {place: pool.submit(read) for place, read in reads.items()}
    pages, unread = list[Page](), list[str]()
    for place, one in begun.items():
        try:
            pages.append(one.result())
        except OSError as error:
            unread.append(f"{place}: {error}")
    return Look(at, tuple(pages), tuple(unread))


def _local(plan: Plan) -> dict[str, Read]:
    """The pages that a Prometheus here would scrape; Ray's one node stands for every pool."""
    found: dict[str, Read] = {}
    for job in scrape_configs(plan):
        pools = tuple(pool.name for pool in plan.pools) if job["job_name"] == "ray" else ()
        for target in job["static_configs"][0]["targets"]:
            place = f"http://{target}{job['metrics_path']}"
            found[place] = partial(_over_http, place, pools)
    return found


def _over_http(url: str, pools: tuple[str, ...]) -> Page:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is never behind a proxy
    try:
        with opener.open(url, timeout=TIMEOUT_S) as answer:
            return Page(url, answer.read(MOST_BYTES).decode(errors="replace"), pools)
    except urllib.error.HTTPError as error:
        raise OSError(f"returned {error.code}") from None
    except urllib.error.URLError as error:
        raise OSError(str(error.reason)) from None


def _cluster(plan: Plan, api: Api) -> dict[str, Read]:
    """Ray's page on every node and the gateway's pages, of pods that run.

    Not by the API server's proxy: the stack's NetworkPolicies let only `kubernetes.scrapers` in, and a forwarded port
    begins inside the pod.
    """
    from modelfleet.infra.kubernetes.manifests.network import GATEWAY_PODS, RAY_PODS
    from modelfleet.infra.kubernetes.names import GATEWAY_METRICS_PORT, RAY_METRICS_PORT

    ends = [(RAY_PODS, RAY_METRICS_PORT, METRICS)]
    ends += [(GATEWAY_PODS, GATEWAY_METRICS_PORT, path) for path in (METRICS, KEY_METRICS)]
    found: dict[str, Read] = {}
    for selector, port, path in ends:
        for pod in api.list("v1", "Pod", plan.namespace, _text(selector)):
            if pod.get("status", {}).get("phase") == "Running":
                place = f"pod {pod['metadata']['name']}{path}"
                found[place] = partial(_forwarded, place, plan.namespace, pod, port, path, api)
    return found


def _text(selector: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in selector["matchLabels"].items())


def _forwarded(place: str, namespace: str, pod: dict[str, Any], port: int, path: str, api: Api) -> Page:
    from modelfleet.infra.kubernetes.forward import get

    text = get(api, namespace, pod["metadata"]["name"], port, path, TIMEOUT_S)
    pool = pod["metadata"].get("labels", {}).get(POOL_LABEL)
    return Page(place, text, (pool,) if pool else ())
