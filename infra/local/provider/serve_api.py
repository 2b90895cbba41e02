"""Ray's dashboard over HTTP: whether it answers, and Serve's applications (`/api/serve/applications/`, Ray 2.60).

The API has one way to write: PUT the whole list. It deletes every application that the list leaves out. To change one
application, this module reads the list, changes one entry and writes it back, under a lock that all writers share.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from modelfleet.infra.local.ports import listens, owner
from modelfleet.infra.local.provider.last_start import has_port, last_start
from modelfleet.infra.local.token import headers
from modelfleet.infra.provider import Refused

TIMEOUT_S = 30.0
LOCK_TIMEOUT_S = 120.0


class Unreachable(Exception):
    """Nothing answers at the dashboard's address."""


class NotOurs(Unreachable):
    """Another program answers there; the text names it, and the key that changes our port."""


def deployed(details: dict[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The configurations in Serve's report, by name, without those of applications that end."""
    return {
        name: found["deployed_app_config"]
        for name, found in details.get("applications", {}).items()
        if found.get("deployed_app_config") and found["status"] != "DELETING"
    }


@dataclass(frozen=True)
class ServeApi:
    """Serve on one Ray. `folder` is the stack's: it has Ray's token and process, and the lock that all writers share.

    Nothing is sent before the port is known to be that process's: neither the token nor an application.
    """

    dashboard_url: str
    serve_port: int
    folder: Path

    def details(self, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
        """Everything that Serve reports; raises `Unreachable`, and `Refused` or `ValueError` where no Ray answers."""
        answer = json.loads(self._request("GET", timeout_s=timeout_s))
        if not isinstance(answer, dict):
            raise ValueError(f"the answer at {self.dashboard_url} is not Ray's")
        return answer

    def application(self, name: str) -> dict[str, Any] | None:
        """Details of one application; None when it does not exist. Raises `Unreachable`."""
        found: dict[str, Any] | None = self.details().get("applications", {}).get(name)
        return found

    def put(self, config: dict[str, Any]) -> None:
        """Deploys one application, or changes it; the others stay as they are."""
        self._write(config["name"], [config])

    def remove(self, name: str) -> None:
        """Deletes one application; the others stay as they are."""
        self._write(name, [])

    def _write(self, name: str, instead: list[dict[str, Any]]) -> None:
        with FileLock(self.folder / "applications.lock", timeout=LOCK_TIMEOUT_S):
            others = [dict(config) for other, config in deployed(self.details()).items() if other != name]
            body = {
                "proxy_location": "HeadOnly",
                "http_options": {"host": "127.0.0.1", "port": self.serve_port},
                "applications": others + instead,
            }
            self._request("PUT", json.dumps(body).encode())

    def _prove(self) -> None:
        """Raises `NotOurs` where somebody else listens, and `Unreachable` where nobody does."""
        port = urllib.parse.urlsplit(self.dashboard_url).port or 0
        if last_start(self.folder) is None:
            raise Unreachable("this stack has started no Ray")
        # In this order: a dashboard that begins to listen in between is found as ours.
        if not listens(port):
            raise Unreachable(f"the dashboard at {self.dashboard_url} does not answer")
        if has_port(self.folder, port):
            return
        raise NotOurs(
            f"port {port} is taken{owner(port)}, not by this stack's Ray; end that program, or choose another "
            "modelfleet:local.dashboardPort"
        )

    def _request(self, method: str, body: bytes | None = None, timeout_s: float = TIMEOUT_S) -> bytes:
        self._prove()
        url = f"{self.dashboard_url}/api/serve/applications/"
        sent = {"content-type": "application/json", **headers(self.folder)}
        request = urllib.request.Request(url, body, sent, method=method)  # noqa: S310 - our own loopback address
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                text: bytes = answer.read()
                return text
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace").strip()
            # 401 and 403: another Ray's port, or a token file that was lost. A new Ray has a new one.
            if error.code in (401, 403, 500, 503):
                raise Unreachable(f"Ray Serve returned {error.code}: {detail[-500:]}") from error
            raise Refused(f"Ray Serve refused the application: {detail[-1500:]}") from error
        except (OSError, ValueError) as error:
            raise Unreachable(f"the dashboard at {self.dashboard_url} does not answer: {error}") from error
