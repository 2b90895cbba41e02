"""What answers over HTTP: on this machine by its port, in a cluster through the API server's proxy."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Most of an answer that is read: a dashboard of a large cluster, and no more.
MOST_BYTES = 32 * 2**20


class Silent(Exception):
    """The dashboard did not answer as a dashboard does; the text says how."""


@dataclass(frozen=True)
class Dashboard:
    """A dashboard's base URL, with the headers that lead to it; `name` is who answers there.

    `prove` raises `Silent` where somebody else answers there, before the headers, which are secret, are sent.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    prove: Callable[[], None] = lambda: None
    name: str = "Ray's dashboard"

    def get(self, path: str, seconds: float) -> dict[str, Any]:
        """A JSON answer; raises `Silent`."""
        try:
            answer = json.loads(self.text(path, seconds))
        except ValueError:
            raise Silent(f"{self.url}{path} returned no JSON") from None
        if not isinstance(answer, dict):
            raise Silent(f"{self.url}{path} returned no JSON object")
        return answer

    def text(self, path: str, seconds: float) -> str:
        """A plain answer; raises `Silent`."""
        self.prove()
        request = urllib.request.Request(f"{self.url}{path}", headers=dict(self.headers))  # noqa: S310 - http only
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=seconds) as answer:
                return str(answer.read(MOST_BYTES).decode(errors="replace"))
        except urllib.error.HTTPError as error:
            raise Silent(f"{self.url}{path} returned {error.code}") from None
        except (OSError, ValueError) as error:
            raise Silent(f"{self.name} at {self.url} does not answer: {getattr(error, 'reason', error)}") from None
