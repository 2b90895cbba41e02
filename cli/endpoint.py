"""The stack's endpoint: waiting for a first real token, and examples that work when pasted."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cli import output
from serving.config.errors import SetupError

READY_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 120.0
SAY_EVERY_S = 4.0
QUESTION = "What is the capital of France?"


def wait_for_first_token(base_url: str, model_id: str, api_key: str | None) -> float:
    """Seconds until `model_id` answered with a token through the gateway; raises `SetupError` when it never does."""
    began, said = time.monotonic(), 0.0
    while True:
        problem = _ask_for_a_token(base_url, model_id, api_key)
        waited = time.monotonic() - began
        if problem is None:
            return waited
        if waited > READY_TIMEOUT_S:
            raise SetupError(f"{model_id} does not answer at {base_url}: {problem}; see `modelfleet status`")
        if time.monotonic() - said >= SAY_EVERY_S:
            output.say(f"waiting for {model_id} at {base_url}: {problem} ({waited:.0f} s)")
            said = time.monotonic()
        time.sleep(0.25)


def curl_example(base_url: str, model_id: str, *, with_key: bool) -> str:
    """A shell command that asks the model a question."""
    header = ' -H "authorization: Bearer $MODELFLEET_API_KEY"' if with_key else ""
    body = json.dumps({"model": model_id, "temperature": 0, "messages": [{"role": "user", "content": QUESTION}]})
    return f"curl {base_url}/v1/chat/completions -H 'content-type: application/json'{header} \\\n  -d '{body}'"


def openai_example(base_url: str, model_id: str, *, with_key: bool, root: Path) -> str:
    """The same question by OpenAI's client, as a shell command."""
    python = ".venv/bin/python" if (root / ".venv/bin/python").exists() else "python"
    key = 'os.environ["MODELFLEET_API_KEY"]' if with_key else '"none"'
    lines = ["import os"] if with_key else []
    lines += [
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{base_url}/v1", api_key={key})',
        f'messages = [{{"role": "user", "content": "{QUESTION}"}}]',
        f'answer = client.chat.completions.create(model="{model_id}", messages=messages, temperature=0)',
        "print(answer.choices[0].message.content)",
    ]
    return "\n".join([f"{python} - <<'EOF'", *lines, "EOF"])


def _ask_for_a_token(base_url: str, model_id: str, api_key: str | None) -> str | None:
    """None when a token came, else what is missing; raises `SetupError` for an answer that waiting will not change."""
    body = json.dumps({"model": model_id, "prompt": "Hello", "max_tokens": 1}).encode()
    headers = {"content-type": "application/json"}
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    request = urllib.request.Request(f"{base_url}/v1/completions", body, headers)  # noqa: S310 - our own address
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is behind no proxy
    try:
        with opener.open(request, timeout=ANSWER_TIMEOUT_S) as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return None if found.get("choices") else "it answered without a token"
    except urllib.error.HTTPError as error:
        text = " ".join(error.read().decode(errors="replace").split())[:300]
        if error.code in (400, 401, 403, 422):
            raise SetupError(f"{model_id} at {base_url} refuses a plain request ({error.code}): {text}") from error
        return f"{error.code} {text}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
