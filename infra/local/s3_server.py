"""The S3 emulator's process: moto behind a door that opens to this user's own programs, and to no browser.

`python -P -m modelfleet.infra.local.s3_server PORT`. moto itself answers whoever asks: another user of the machine, and
any website, since a form needs no permission to be sent. What is in its buckets is code that replicas run.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

from modelfleet.infra.local.ports import LOOPBACK
from modelfleet.serving import own_user

#: Browsers send one of them with every request that a page makes; clients of S3 send none.
OF_A_BROWSER = ("HTTP_ORIGIN", "HTTP_SEC_FETCH_SITE", "HTTP_REFERER")
#: Names of this machine; with another one a browser has been sent here by somebody's DNS.
HOSTS = (LOOPBACK, "localhost")

Environ = dict[str, Any]
Start = Callable[..., Any]
Application = Callable[[Environ, Start], Iterable[bytes]]


def refusal(environ: Environ, port: int, *, by_owner: bool) -> str | None:
    """Why a request is refused; None for those of S3 clients of this user."""
    if any(header in environ for header in OF_A_BROWSER):
        return "This port is not for browsers."
    if environ.get("HTTP_HOST", "").rpartition(":")[0] not in HOSTS:
        return "This port has no such name."
    if by_owner and not own_user.may_connect(int(environ["REMOTE_PORT"]), port):
        return "This port is for the user who runs this stack."
    return None


def guarded(application: Application, port: int) -> Application:
    """`application` behind the door."""
    by_owner = own_user.is_known()

    def serve(environ: Environ, start: Start) -> Iterable[bytes]:
        if reason := refusal(environ, port, by_owner=by_owner):
            start("403 Forbidden", [("content-type", "text/plain"), ("content-length", str(len(reason)))])
            return [reason.encode()]
        return application(environ, start)

    return serve


def main(port: int) -> None:
    """Serves until it is ended."""
    os.environ.setdefault("MOTO_PORT", str(port))
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import run_simple

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    application = guarded(DomainDispatcherApplication(create_backend_app), port)
    # It serves each connection in its own thread, so ranged reads run in parallel.
    run_simple(LOOPBACK, port, application, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main(int(sys.argv[1]))
