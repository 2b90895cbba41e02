"""What all tests share: a clean environment, which tests may run again, and which of several workers runs what."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

#: Settings of the caller's shell that would change what the code under test does.
FOREIGN = (
    "AWS_",
    "PULUMI_",
    "RAY_",
    "VLLM_",
    "HF_",
    "HUGGING_FACE_",
    "MODELFLEET_",
    "KUBECONFIG",
    "NO_COLOR",
    "FORCE_COLOR",
)
#: How often a test with the mark `may_rerun` runs again before it has failed.
RERUNS = 2
CAUSE = "cause of a rerun"
#: What files share, by the longest prefix of their names. Of several workers, one gets all files that share a Ray or a
#: control plane; each other file goes to the next free worker. The order is longest first, so that no worker gets a
#: long file at the end. vLLM takes 5 GB a model, and where a machine's memory is nearly full, Ray ends
#: replicas: of the files that start it one worker gets all, last those whose Ray runs until the end.
SHARED = {
    "tests/engine/test_local_fleet.py": "vLLM",
    "tests/engine/test_local_gpu.py": "vLLM",
    "tests/engine/test_local_upgrade.py": "vLLM",
    "tests/serving/": "vLLM",
    "tests/cluster/test_ray_nodes.py": "a control plane under real Rays",
    "tests/cluster/": "a control plane",
    "tests/engine/test_local": None,
    "tests/engine/test_aws": None,
    "tests/serving/test_kv_bytes.py": None,
    "tests/engine/": None,
    "tests/gateway/": None,
    "": None,
}


# A busy machine is slow, not wrong: speed is measured by `make bench`. And what a change did not break does not fail it:
# examples are the same in each run. `--hypothesis-profile=search` looks for new ones.
settings.register_profile("search", deadline=None)
settings.register_profile("modelfleet", deadline=None, derandomize=True)
settings.load_profile("modelfleet")


@pytest.fixture(autouse=True)
def whole_tracebacks() -> Iterator[None]:
    """A replica that cannot start takes its process's tracebacks away, without which Pulumi's SDK fails."""
    before = getattr(sys, "tracebacklimit", None)
    yield
    if before is not None:
        sys.tracebacklimit = before
    elif hasattr(sys, "tracebacklimit"):
        del sys.tracebacklimit


def pytest_configure() -> None:
    """Take the caller's settings out of the environment, before any module reads them."""
    for name in list(os.environ):
        if name.startswith(FOREIGN):
            del os.environ[name]
    # Where it is unset, Ray 2.60 asks for the token of `~/.ray/auth_token` once any `ray.init()` has made that file.
    os.environ["RAY_AUTH_MODE"] = "disabled"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Rerun tests that give a cause for it, which none without processes may. Skip long ones. Sort by `SHARED`."""
    order = list(SHARED)
    items.sort(key=lambda item: order.index(_start(item.nodeid)))
    for item in items:
        if (mark := item.get_closest_marker("long")) and "LONG" not in os.environ:
            item.add_marker(pytest.mark.skip(reason=f"long: {mark.kwargs['why']}; `make test-long` runs it"))
        if mark := item.get_closest_marker("may_rerun"):
            if item.nodeid.startswith("tests/unit/"):
                raise pytest.UsageError(f"{item.nodeid}: a test without processes has no reason to run again")
            item.user_properties.append((CAUSE, mark.kwargs["cause"]))
            item.add_marker(pytest.mark.flaky(reruns=RERUNS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """`--dist loadfile`, with files grouped by `SHARED`."""
    return ByWhatIsShared(config, log) if config.option.dist == "loadfile" else None


class ByWhatIsShared(LoadScopeScheduling):
    """Gives a worker all files that share something."""

    def _split_scope(self, nodeid: str) -> str:
        return SHARED[_start(nodeid)] or nodeid.partition("::")[0]


def _start(nodeid: str) -> str:
    """The longest key of `SHARED` that the test's name starts with."""
    return max((start for start in SHARED if nodeid.startswith(start)), key=len)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List every rerun (its test, what failed, the cause in its mark), and note failures for `tools/test.sh`."""
    reports = terminalreporter.stats.get("rerun", [])
    terminalreporter.section(f"tests that ran again: {len({report.nodeid for report in reports})}")
    for report in reports:
        terminalreporter.line(f"{report.nodeid} ({report.when})\n  failed: {_said(report)}")
        terminalreporter.line(f"  recorded cause: {dict(report.user_properties)[CAUSE]}")
    if failures := os.environ.get("FAILURES"):
        failed = [report for kind in ("failed", "error") for report in terminalreporter.stats.get(kind, ())]
        with Path(failures).open("a", encoding="utf-8") as stream:
            stream.writelines(f"failed: {report.nodeid} ({report.when}): {_said(report)[:300]}\n" for report in failed)


def _said(report: Any) -> str:
    """The first line of what a failed test said."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).partition("\n")[0]
