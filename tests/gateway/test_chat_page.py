"""The page at `/`: in a real browser, through a real gateway, against a stand-in for the model."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.gateway.conftest import ALICE, Gateway, Make
from tests.ports import free_port
from tests.waiting import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
START_S = 90.0
#: What a model may write; as HTML it would run.
HOSTILE = "<img src=x onerror=\"document.title='run'\">"


def chunk(text: str = "", **more: Any) -> str:
    return json.dumps({"choices": [{"delta": {"content": text}}] if text else [], **more})


@pytest.fixture(scope="module")
def with_page(make_gateway: Make) -> Gateway:
    gateway = make_gateway(chat=True)
    gateway.backend.data = [chunk("Paris"), chunk(f" {HOSTILE}"), chunk("."), chunk(usage={"completion_tokens": 11})]
    gateway.backend.pause_s = 0.1
    return gateway


def test_the_page_needs_no_key_loads_nothing_and_stands_in_no_frame(with_page: Gateway) -> None:
    page = with_page.get("/", key=None)
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
    assert not [one for one in ("http://", "https://", "src=", "innerHTML") if one in page.text]
    assert with_page.post("/", {"model": "small"}).status_code == 404


def test_a_gateway_without_it_has_no_page(shared: Gateway) -> None:
    assert shared.get("/").status_code == 404
    assert shared.get("/", key=None).status_code == 401


class Tab:
    """A page in a browser, over its debugging protocol (https://chromedevtools.github.io/devtools-protocol/)."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._last = socket, 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one of the protocol's methods."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while (answer := json.loads(self._socket.recv(timeout=60))).get("id") != self._last:
            pass
        result: dict[str, Any] = answer["result"]
        return result

    def value(self, script: str) -> Any:
        """What a script gives."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str, what: str) -> Any:
        """Its value once it is true."""
        return wait_until(lambda: self.value(script), what=what, seconds=60, every_s=0.2)

    def ask(self, words: str) -> None:
        """Type and send."""
        self.value(f"text.value = {json.dumps(words)}; form.requestSubmit()")


@contextmanager
def tab(url: str) -> Iterator[Tab]:
    """The page at `url` in a browser without a window."""
    from websockets.sync.client import connect

    assert CHROMIUM
    profile, port = tempfile.mkdtemp(prefix="chromium-"), free_port()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [CHROMIUM, *options, f"--remote-debugging-port={port}", f"--user-data-dir={profile}", url]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def socket_url() -> str | None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
                    pages = [one for one in json.load(answer) if one["type"] == "page" and url in one["url"]]
            except OSError:
                return None
            return str(pages[0]["webSocketDebuggerUrl"]) if pages else None

        found = wait_until(socket_url, what="the browser", seconds=START_S, every_s=0.3)
        with connect(found, max_size=None) as socket:
            yield Tab(socket)
    finally:
        browser.terminate()
        try:
            browser.wait(timeout=20)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait(timeout=20)
        shutil.rmtree(profile, ignore_errors=True)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt-get install chromium")
def test_in_a_browser_it_takes_a_key_streams_an_answer_and_says_the_speed(with_page: Gateway) -> None:
    with tab(f"{with_page.url}/") as page:
        page.wait("typeof key === 'object' && !key.hidden", "the field for a key")
        assert page.value("model.options.length") == 0
        page.value("key.value = 'a guess'; key.dispatchEvent(new Event('change'))")
        page.wait("talk.querySelector('p.error')?.textContent === 'The gateway does not take this key.'", "its answer")
        page.value(f"key.value = {json.dumps(ALICE)}; key.dispatchEvent(new Event('change'))")
        page.wait("model.options.length === 3", "the list of models")
        assert page.value("talk.children.length") == 0, "nothing more of the wrong key"
        page.value("model.value = 'small'")
        page.ask("What is the capital of France?")
        page.wait("talk.querySelector('p.assistant')?.textContent.startsWith('Paris')", "the first words")
        note = page.wait("talk.querySelector('p.note')?.textContent", "the end")
        assert page.value("talk.querySelector('p.assistant').textContent") == f"Paris {HOSTILE}."
        assert page.value("talk.querySelectorAll('img').length") == 0 and page.value("document.title") == "modelfleet"
        assert note.startswith("first token after ") and note.endswith(" tokens per second"), note
        sent = json.loads(with_page.backend.last.body)
        assert (sent["model"], sent["stream"]) == ("small", True)
        page.ask("And of Italy?")
        page.wait("talk.querySelectorAll('p.note').length === 2", "the second answer")
        roles = [one["role"] for one in json.loads(with_page.backend.last.body)["messages"]]
        assert roles == ["user", "assistant", "user"], "the model is told what was said"
        page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
        assert page.value("model.offsetWidth") > 300, "a phone shows the model's name beside a key"
        assert page.value("document.documentElement.scrollWidth") == 390


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt-get install chromium")
def test_in_a_browser_a_new_chat_hears_nothing_of_the_answer_that_was_streaming(make_gateway: Make) -> None:
    gateway = make_gateway(chat=True)
    gateway.backend.data = [chunk(f"word{number} ") for number in range(600)]
    gateway.backend.pause_s = 0.1
    with tab(f"{gateway.url}/") as page:
        page.wait("typeof key === 'object' && !key.hidden", "the field for a key")
        page.value(f"key.value = {json.dumps(ALICE)}; key.dispatchEvent(new Event('change'))")
        page.wait("model.options.length === 3", "the list of models")
        page.ask("Old?")
        page.wait("!!talk.querySelector('p.assistant')", "the first words")
        page.value("at('fresh').click(); text.value = 'New?'; form.requestSubmit()")
        page.wait("!!talk.querySelector('p.assistant')", "the next answer")
        assert page.value("messages.map(one => one.content).join()") == "New?"
        assert page.value("[...talk.querySelectorAll('p.user')].map(one => one.textContent).join()") == "New?"
        assert page.value("talk.querySelectorAll('p.error, p.note').length") == 0
        page.value("form.requestSubmit()")  # Stop is the new one's
        page.wait("running === null", "the end")
        assert page.value("messages.map(one => one.role).join()") == "user,assistant"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt-get install chromium")
def test_in_a_browser_a_refusal_is_shown_in_its_own_words(with_page: Gateway) -> None:
    with tab(f"{with_page.url}/") as page:
        page.wait("typeof key === 'object' && !key.hidden", "the field for a key")
        page.value("key.value = 'sk-wrong-0123456789'")
        page.ask("Hello?")
        said = page.wait("talk.querySelector('p.error')?.textContent", "the refusal")
        assert said == "No valid API key was given. Send it as `Authorization: Bearer <key>`."
        assert page.value("messages.length") == 0, "the next one does not repeat it"
