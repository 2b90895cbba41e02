"""pytest plugin: vLLM's tests against a server that already runs.

SUITE_URL    root of the server, http://127.0.0.1:8000 or http://127.0.0.1:8000/<slug>
SUITE_MODEL  name of the served model
SUITE_OUT    file for the results, one JSON object a line

It runs in vLLM's tests, with nothing of this project on the path. It starts nothing. A test that needs a flag which
the server does not have is skipped where the flag changes everything; others fail on plain `vllm serve`, too, and
then say nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest

ROOT = os.environ["SUITE_URL"].rstrip("/")
MODEL = os.environ["SUITE_MODEL"]
OUT = Path(os.environ["SUITE_OUT"])

#: Flags that change what a server does so much that a test of theirs says nothing without them.
NEEDED = {
    "--api-key", "--enable-force-include-usage", "--enable-request-id-headers", "--enable-return-routed-experts",
    "--enable-server-load-tracking", "--return-sampling-mask", "--return-tokens-as-token-ids", "--root-path",
    "--show-hidden-metrics-for-version", "--tokens-only", "--tool-server", "--watermark-config",
}  # fmt: skip


class Running:
    """In place of `tests.utils.RemoteOpenAIServer`."""

    DUMMY_API_KEY = "token-abc123"
    show_hidden_metrics = False

    def __init__(self, model: str, vllm_serve_args: Any = (), *_: object, **__: object) -> None:
        del model
        flags = {str(word).partition("=")[0] for word in vllm_serve_args}
        if missing := flags & NEEDED:
            pytest.skip(f"the server runs without {' '.join(sorted(missing))}")
        parts = urlsplit(ROOT)
        self.host, self.port, self.uds = parts.hostname, parts.port, None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def url_root(self) -> str:
        """The server's root."""
        return ROOT

    def url_for(self, *parts: str) -> str:
        """An address below the root."""
        return f"{ROOT}/" + "/".join(part.strip("/") for part in parts if part)

    def get_client(self, **kwargs: Any) -> Any:
        """OpenAI's client."""
        import openai

        return self._made(openai.OpenAI, self.url_for("v1"), kwargs)

    def get_async_client(self, **kwargs: Any) -> Any:
        """OpenAI's asynchronous client."""
        import openai

        return self._made(openai.AsyncOpenAI, self.url_for("v1"), kwargs)

    def get_client_anthropic(self, **kwargs: Any) -> Any:
        """Anthropic's client."""
        import anthropic

        return self._made(anthropic.Anthropic, ROOT, kwargs)

    def get_async_client_anthropic(self, **kwargs: Any) -> Any:
        """Anthropic's asynchronous client."""
        import anthropic

        return self._made(anthropic.AsyncAnthropic, ROOT, kwargs)

    def _made(self, kind: Any, base_url: str, kwargs: dict[str, Any]) -> Any:
        return kind(base_url=base_url, api_key=self.DUMMY_API_KEY, max_retries=0, **{"timeout": 600, **kwargs})


def pytest_configure() -> None:
    """Before any conftest of vLLM's is imported: some take the class with `from tests.utils import`."""
    import tests.utils as theirs  # type: ignore[import-not-found,import-untyped,unused-ignore]

    theirs.RemoteOpenAIServer = theirs.RemoteLaunchRenderServer = Running


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what is asked of other models; nothing of torch runs here, so there is nothing to clean up."""
    if "tests.conftest" in sys.modules:
        sys.modules["tests.conftest"].cleanup_dist_env_and_memory = lambda *_, **__: None  # type: ignore[attr-defined]
    for item in items:
        name = item.callspec.params.get("model_name") if hasattr(item, "callspec") else None
        if isinstance(name, str) and name != MODEL:
            item.add_marker(pytest.mark.skip(reason=f"{name} is not served"))


_parts: dict[str, dict[str, Any]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A line for each test when its last part is over."""
    entry = _parts.setdefault(report.nodeid, {"test": report.nodeid, "outcome": "passed", "seconds": 0.0, "why": ""})
    entry["seconds"] = round(entry["seconds"] + report.duration, 2)
    if report.outcome != "passed" and entry["outcome"] == "passed":
        entry["outcome"] = "skipped" if report.skipped else "failed"
        crash = getattr(report.longrepr, "reprcrash", None)
        entry["why"] = (crash.message if crash else str(report.longrepr))[-2000:]
    if report.when == "teardown":
        with OUT.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**entry, "at": time.strftime("%H:%M:%S")}) + "\n")
