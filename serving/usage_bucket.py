"""Copies of a replica's records in the stack's bucket, so that they outlive its pod.

    <prefix>/dt=2026-11-30/hour=16/<model's slug>.<replica>.jsonl.gz          requests (`serving/usage.py`)
    usage/nodes/…/dt=2026-11-30/hour=16/<replica>.jsonl.gz                    node time (`serving/node_hours.py`)

`prefix` is the plan's, `usage/stack=<stack>`. Each `SEND_EVERY_S` a file that grew is sent whole, over its last copy:
one object for each hour and replica is what Athena reads best, and a copy that failed is made good by the next. So what
a machine that is gone takes with it is at most the last `SEND_EVERY_S` of records. A replica that ends sends its last.

A process that is killed alone leaves its files on the pod. Any other replica there sends those that nobody wrote to for
`QUIET_S`. Needs `s3:PutObject` at the prefix, and nothing else.
"""

from __future__ import annotations

import asyncio
import gzip
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from modelfleet.serving.mirror.store import client, parse_uri
from modelfleet.serving.node_hours import NODES
from modelfleet.serving.usage import LIVE_S

SEND_EVERY_S = 60.0
"""Seconds between two copies: the records that are lost with a machine at most."""

QUIET_S = 2 * SEND_EVERY_S
"""Seconds without a line after which a file is another replica's to send: its own sends each change before that."""

SUFFIX = ".jsonl.gz"

logger = logging.getLogger("ray.serve")


def patient_client() -> Any:
    """An S3 client that gives up within seconds: a replica that ends waits for it, and the next round tries again."""
    return client(connect_timeout=3, read_timeout=10, retries={"mode": "standard", "max_attempts": 2})


class BucketCopy:
    """Sends the files of records below `folder` to `uri`, `s3://bucket/usage/stack=…`; `replica` is this process."""

    def __init__(self, folder: Path, uri: str, replica: str, s3: Callable[[], Any] = patient_client) -> None:
        self._folder, self._place, self._replica = folder, parse_uri(uri), replica
        self._make_client = s3
        self._s3: Any = None
        #: Bytes of each file at its last copy.
        self._sent: dict[Path, int] = {}
        self._failed = ""
        self._sending = threading.Lock()

    async def run(self) -> None:
        """A copy each `SEND_EVERY_S`, until cancelled. What goes wrong is in the log, and the next round comes."""
        while True:
            await asyncio.sleep(SEND_EVERY_S)
            try:
                await asyncio.to_thread(self.send)
            except Exception:  # nobody else would see it
                logger.exception("usage was not copied to the bucket in this round")

    def last_words(self) -> None:
        """The last copy, when the replica ends; waits some seconds for a bucket that does not answer."""
        self.send()

    def send(self) -> None:
        """A copy of each file that grew since its last one. The first that fails ends the round.

        One round at a time: one that is still on its way when the replica ends would put an older copy over the last.
        """
        with self._sending:
            self._send()

    def _send(self) -> None:
        for path, size in self._due():
            try:
                body = gzip.compress(path.read_bytes(), compresslevel=6)
                self._put(self.key_of(path), body)
            except FileNotFoundError:
                continue  # another replica found it too old
            except (BotoCoreError, ClientError, OSError) as error:
                self._say(f"usage is not copied to s3://{self._place.bucket}: {error}; it stays on the pod meanwhile")
                return
            self._sent[path] = size
        self._say("")

    def key_of(self, path: Path) -> str:
        """The object of a file `<model's slug>/date=…/hour=…/<replica>.jsonl`."""
        model, date, hour, name = path.relative_to(self._folder).parts
        first, _, rest = self._place.prefix.partition("/")
        prefix, name = (f"{first}/nodes/{rest}", name) if model == NODES else (f"{first}/{rest}", f"{model}.{name}")
        return f"{prefix}/dt={date.removeprefix('date=')}/{hour}/{name}.gz"

    def _due(self) -> Iterator[tuple[Path, int]]:
        now = time.time()
        for path in sorted(self._folder.glob("*/date=*/hour=*/*.jsonl")):
            with suppress(FileNotFoundError):
                found = path.stat()
                quiet = now - found.st_mtime
                mine = path.stem == self._replica or QUIET_S <= quiet <= LIVE_S
                if mine and found.st_size != self._sent.get(path, 0):
                    yield path, found.st_size

    def _put(self, key: str, body: bytes) -> None:
        if self._s3 is None:
            self._s3 = self._make_client()
        self._s3.put_object(Bucket=self._place.bucket, Key=key, Body=body, ContentType="application/x-ndjson")

    def _say(self, problem: str) -> None:
        """Each problem once, and its end."""
        if problem and problem != self._failed:
            logger.error("%s", problem)
        elif self._failed and not problem:
            logger.info("usage is copied to the bucket again")
        self._failed = problem
