"""Bodies of the gateway's own answers, in the shape of vLLM's `ErrorResponse`.

Source: vllm/entrypoints/serve/engine/protocol.py, 0.32.0.
"""

from __future__ import annotations

import json
from typing import Any

from modelfleet.infra.planning.plan import Route

JSON_TYPE = "application/json"
#: Seconds after which a client may retry a refused request, by the reason for the refusal.
RETRY_AFTER_RATE_S = 10
RETRY_AFTER_BUSY_S = 1
RETRY_AFTER_DOWN_S = 5


def quoted(text: str) -> str:
    """Text as one strongly quoted word of HAProxy's configuration language."""
    return "'" + text.replace("'", "'\\''") + "'"


def log_format(text: str) -> str:
    """Text as a literal inside a log-format string, where `%` begins a field."""
    return text.replace("%", "%%")


def error(message: str, kind: str, code: int, param: str | None = None) -> str:
    """vLLM's error body as compact JSON."""
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return json.dumps(body, separators=(",", ":"), ensure_ascii=True)


def returns(status: int, body: str, *, headers: dict[str, str] | None = None, dynamic: bool = False) -> str:
    """An `http-request return` action; with `dynamic` the body is a log-format string."""
    extra = "".join(f" hdr {name} {quoted(value)}" for name, value in (headers or {}).items())
    form = "lf-string" if dynamic else "string"
    return f"http-request return status {status} content-type {JSON_TYPE}{extra} {form} {quoted(body)}"


def refuses(
    status: int, message: str, kind: str, *, param: str | None = None, headers: dict[str, str] | None = None
) -> str:
    """An `http-request return` of an error body."""
    return returns(status, error(message, kind, status, param), headers=headers)


#: Answers to errors that HAProxy itself finds: status, message, type, Retry-After in seconds.
PROXY_ERRORS: tuple[tuple[int, str, str, int | None], ...] = (
    (400, "The request is not valid HTTP, or its headers are too large.", "Bad Request", None),
    (408, "The request did not arrive in time.", "Request Timeout", None),
    (413, "The request body is too large.", "Request Entity Too Large", None),
    (500, "The gateway failed.", "InternalServerError", None),
    (502, "The model's server closed the connection without an answer.", "Bad Gateway", RETRY_AFTER_DOWN_S),
    (
        503,
        "The model's server cannot be reached, or too many requests wait for it.",
        "Service Unavailable",
        RETRY_AFTER_DOWN_S,
    ),
    (504, "The model's server did not answer in time.", "Gateway Timeout", None),
)


def proxy_errors() -> list[str]:
    """`http-error` lines for a defaults section."""
    lines = []
    for status, message, kind, retry_after_s in PROXY_ERRORS:
        retry = f" hdr Retry-After {retry_after_s}" if retry_after_s else ""
        lines.append(
            f"http-error status {status} content-type {JSON_TYPE}{retry} string {quoted(error(message, kind, status))}"
        )
    return lines


#: Ray Serve's plain-text errors by their status, each with the status, message and type of the gateway's answer.
SERVE_ERRORS: tuple[tuple[int, int, str, str], ...] = (
    (404, 503, "The model is being deployed; try again in a moment.", "Service Unavailable"),
    (408, 504, "The model did not answer in time.", "Gateway Timeout"),
    (500, 500, "The model's server failed.", "InternalServerError"),
    (503, 503, "The model is overloaded or has no replica; try again in a moment.", "Service Unavailable"),
)


def serve_errors() -> list[str]:
    """`http-response` rules that turn Ray Serve's plain-text refusals into the shape of vLLM's errors.

    The application's own answers are JSON and pass. A 404 of Serve is a route of the plan that is not deployed yet.
    """
    lines = ["acl plain_text res.fhdr(content-type) -m beg text/plain"]
    for found, status, message, kind in SERVE_ERRORS:
        retry = f" hdr Retry-After {RETRY_AFTER_DOWN_S}" if status == 503 else ""
        answer = f"content-type {JSON_TYPE}{retry} string {quoted(error(message, kind, status))}"
        lines.append(f"http-response return status {status} {answer} if plain_text {{ status {found} }}")
    return lines


OVERLOADED = SERVE_ERRORS[-1][2]


def model_card(model_id: str, route: Route, parent: str | None) -> dict[str, Any]:
    """One entry of `GET /v1/models`: vLLM's fields, and what the model file says about the model.

    `created` is 0: the plan has no clock, and equal plans give equal text.
    """
    card: dict[str, Any] = {
        "id": model_id,
        "object": "model",
        "created": 0,
        "owned_by": "vllm",
        "root": route.model_id,
        "parent": parent,
    }
    about = {"description": route.description, "url": route.url, "type": route.kind}
    return card | {key: value for key, value in about.items() if value}
