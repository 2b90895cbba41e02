"""Every token that a replica's engine answers, counted once, under the name of the key that asked.

`UsageMeter` is around the application: it opens a `RequestUsage` for each HTTP request, and the engine tells it of each
sequence that it begins for that request. At the request's end the counts are read from the engine's own state of those
sequences, the same numbers that vLLM's counters add up. So nothing is counted per token, and streams, aborts and
answers without `usage` count alike.

One JSON line per request goes to `<folder>/date=…/hour=…/<replica>.jsonl` (UTC). A request that is still open has
a line each 10 s in which it grew, with `"end": "open"`; of lines with equal `replica` and `number` the last one
counts. So a replica that is killed loses at most the last 10 s of the requests that were open, and no other.
Lines are in the file when `write` returns, and on the disk a second later.

Thoughts are counted by vLLM's own parser, which reads the whole answer. So that nobody waits for it, a request's last
line comes at once without them, and a second one with them within `PERIOD_S`.

The folder is bounded: files older than `KEPT_DAYS` are deleted, and the oldest ones while all have more than
`KEPT_BYTES`. Each replica looks when it starts a file, and deletes those of replicas that ended, too.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from modelfleet.serving.settling import CHARGE, PRICE, SETTLE, Asker, Settle, Settling

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER_VARIABLE = "MODELFLEET_USAGE_FOLDER"
"""Environment variable with the folder of the records; without it they are beside Ray's logs, where shippers look."""

PERIOD_S = 1.0
"""Seconds until a line is on the disk, and until a request ends that the engine let go of after its answer."""

OPEN_EVERY_S = 10.0
"""Seconds between two lines of an open request: what a replica that is killed loses of it at most."""

KEPT_DAYS = 35
"""Days after its hour for which a file of records stays: a month's books, and some days to write them."""

LIVE_S = 2 * 3600
"""Seconds after its last line for which nobody deletes a file: its replica may be about to write to it."""

KEPT_BYTES = 1 << 30
"""Bytes of records in one model's folder, some two million requests; above them the oldest files go."""

KEY, TEAM, REQUEST_ID = b"x-modelfleet-key", b"x-modelfleet-team", b"x-request-id"
"""Headers by which the gateway says who asks. It drops what a client sends under the first two."""

SETTLE_HEADERS = frozenset(name.encode() for name in (SETTLE, CHARGE, PRICE))
"""Headers by which it says where to tell what the request took."""

logger = logging.getLogger("ray.serve")


class Sequence(Protocol):
    """What the engine knows of one sequence, as long as the request lives."""

    @property
    def counts(self) -> Counts:
        """The tokens so far."""

    @property
    def ended(self) -> bool:
        """Whether no more can come."""

    @property
    def aborted(self) -> bool:
        """Whether it ended before its answer did."""

    @property
    def thinks(self) -> bool:
        """Whether a part of its answer may be thoughts."""

    def thoughts(self) -> int:
        """The tokens of its answer that are thoughts. Takes milliseconds for a long answer; raises nothing."""


@dataclass(frozen=True)
class Counts:
    """Tokens of one sequence: its prompt, the part of it that came from the cache, and its answer.

    `prompt` is 0 until the engine has read the prompt, as in vLLM's own counters. `group` is the same for the answers
    to one prompt (`n`), which a client pays once; the engine reads it for each.
    """

    model: str
    adapter: str | None
    group: str
    prompt: int
    cached: int
    completion: int


@dataclass
class RequestUsage:
    """One HTTP request and the sequences that the engine began for it."""

    number: int
    request_id: str
    key: str | None
    team: str | None
    path: str
    began: float
    sequences: list[Sequence] = field(default_factory=list)
    #: Tokens in its last line.
    noted: int = 0
    #: Whether the application is through with it.
    answered: bool = False
    #: Where its gateway hears what it took, and the part of `paid` that `Settling` has.
    settle: Settle | None = None
    settled: tuple[int, int] = (0, 0)

    @property
    def ended(self) -> bool:
        """Whether the engine has let go of all of it."""
        return all(one.ended for one in self.sequences)

    @property
    def tokens(self) -> int:
        """All that the engine counted so far."""
        return sum(one.counts.prompt + one.counts.completion for one in self.sequences)

    @property
    def paid(self) -> tuple[int, int]:
        """Tokens so far that a client pays: of its prompts, each once, and of the answers."""
        counts = [one.counts for one in self.sequences]
        first = {one.group: one.prompt for one in reversed(counts)}
        return sum(first.values()), sum(one.completion for one in counts)

    @property
    def asker(self) -> Asker | None:
        """Who asked; None without a key."""
        return None if self.key is None else Asker(self.key, self.team)

    def thoughts(self) -> int:
        """The tokens of all its answers that are thoughts."""
        return sum(one.thoughts() for one in self.sequences)

    def record(self, replica: str, end: str) -> dict[str, Any]:
        """The JSON line as data; times are in UTC. Thoughts are 0 here (`UsageMeter.count_thoughts`)."""
        counts = [one.counts for one in self.sequences]
        first = {one.group: one for one in reversed(counts)}.values()
        prompt, completion = self.paid
        return {
            "version": 1,
            "replica": replica,
            "number": self.number,
            "request_id": self.request_id,
            "began": stamp(self.began),
            "written": stamp(time.time()),
            "key": self.key,
            "team": self.team,
            "model": counts[0].model,
            "adapter": counts[0].adapter,
            "path": self.path,
            "end": end,
            "sequences": len(counts),
            "prompt_tokens": prompt,
            "cached_tokens": sum(one.cached for one in first),
            "completion_tokens": completion,
            "reasoning_tokens": 0,
            "engine_prompt_tokens": sum(one.prompt for one in counts),
        }


CURRENT: ContextVar[RequestUsage | None] = ContextVar("modelfleet_request_usage", default=None)
"""The request whose task this is. Tasks that it starts have it too."""


class UsageMeter:
    """Pure ASGI: opens and closes the usage of each request; one file an hour in `folder`.

    `counted` is called once per record that is final, for the metrics. A record that cannot be written is an error in
    the log: an answer is worth more than its bill. `replica` is this process's name in its records. `settling` tells
    the gateways what requests took.
    """

    def __init__(
        self,
        app: ASGIApp,
        folder: Path,
        *,
        replica: str | None = None,
        counted: Callable[[dict[str, Any]], None] = lambda record: None,
        settling: Settling | None = None,
    ) -> None:
        self.app, self._counted, self._settling = app, counted, settling
        self.replica = replica or replica_name()
        self._files = HourFiles(folder, self.replica)
        self._next = 0
        self._open: dict[int, RequestUsage] = {}
        #: Requests that ended, with their last lines, whose thoughts are to be counted.
        self._thinking: list[tuple[RequestUsage, dict[str, Any]]] = []
        self._noted_at = -OPEN_EVERY_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        usage = self._begin(scope)
        token = CURRENT.set(usage)
        try:
            await self.app(scope, receive, send)
        finally:
            CURRENT.reset(token)
            usage.answered = True
            if usage.ended:
                self._end(usage)
            # Otherwise the engine has yet to let go of it, and counts until then; `note_open` sees when.

    async def run(self) -> None:
        """Ends what the engine has let go of each `PERIOD_S`, and notes what is open; until cancelled.

        What goes wrong in a round is in the log, and the next one comes: these lines are all that a kill leaves.
        """
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                self.end_what_is_through()
                await self.count_thoughts()
                if time.monotonic() - self._noted_at >= OPEN_EVERY_S:
                    self._noted_at = time.monotonic()
                    self.note_open()
                await self._files.sync()
            except Exception:  # nobody else would see it
                logger.exception("usage of open requests was not noted in this round")

    async def tell(self) -> None:
        """Tells the gateways each `PERIOD_S` what requests took, until cancelled; apart from `run`, as Ray may hang."""
        there = self._settling
        while there is not None:
            await asyncio.sleep(PERIOD_S)
            try:
                for usage in list(self._open.values()):
                    self._count(usage)
                there.told(await asyncio.to_thread(there.exchange, there.messages(), there.own_text))
            except Exception:  # nobody else would see it
                logger.exception("the gateway was not told in this round what requests took")

    def end_what_is_through(self) -> None:
        """The last line of each request that was answered and that the engine has let go of since."""
        for usage in list(self._open.values()):
            if usage.answered and usage.ended:
                self._end(usage)

    async def count_thoughts(self) -> None:
        """Another last line, with their thoughts, for the requests that ended since the last round."""
        # Not one after the other until none is left: a replica that ends them faster would do nothing else.
        due = [usage for usage, _ in self._thinking]
        for thoughts in await asyncio.to_thread(lambda: [one.thoughts() for one in due]) if due else ():
            self._note_thoughts(thoughts)

    def last_words(self) -> None:
        """What is left to write when the replica ends, after `run` was cancelled."""
        self.note_open()
        while self._thinking:
            self._note_thoughts(self._thinking[0][0].thoughts())

    def _note_thoughts(self, thoughts: int) -> None:
        _, record = self._thinking.pop(0)
        if thoughts:
            record = {**record, "reasoning_tokens": thoughts}
            self._files.write(record)
        self._counted(record)

    def note_open(self) -> None:
        """A line for each open request that grew since its last one, and the last line of those that are through."""
        self.end_what_is_through()
        for usage in list(self._open.values()):
            if (so_far := usage.tokens) != usage.noted:
                usage.noted = so_far
                self._files.write(usage.record(self.replica, "open"))

    def _begin(self, scope: Scope) -> RequestUsage:
        said = {name: value for name, value in scope["headers"] if name in (KEY, TEAM, REQUEST_ID)}
        key, team, request_id = (_text(said.get(name)) for name in (KEY, TEAM, REQUEST_ID))
        usage = RequestUsage(self._next, request_id or "", key, team, scope["path"], time.time())
        self._next += 1
        if self._settling is not None and usage.asker is not None:
            words = {
                name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in SETTLE_HEADERS
            }
            usage.settle = Settle.of(words)
            if usage.settle is not None:
                self._settling.heard(usage.asker, usage.settle)
        self._open[usage.number] = usage
        return usage

    def _end(self, usage: RequestUsage) -> None:
        if self._open.pop(usage.number, None) is None:
            return
        self._count(usage)
        if self._settling is not None and usage.asker is not None and usage.settle is not None:
            self._settling.end(usage.asker, usage.settle, sum(usage.paid), time.time() - usage.began)
        if not usage.sequences:
            return
        end = "aborted" if any(one.aborted for one in usage.sequences) else "finished"
        record = usage.record(self.replica, end)
        self._files.write(record)
        if any(one.thinks for one in usage.sequences):
            self._thinking.append((usage, record))
        else:
            self._counted(record)

    def _count(self, usage: RequestUsage) -> None:
        """What came since the last look."""
        if self._settling is None or usage.asker is None or not usage.sequences:
            return
        before, usage.settled = usage.settled, usage.paid
        prompt, completion = (now - then for now, then in zip(usage.settled, before, strict=True))
        if prompt or completion:
            self._settling.count(usage.asker, prompt, completion, usage.settle)


class HourFiles:
    """JSON lines in one file an hour, `<folder>/date=…/hour=…/<name>.jsonl` (UTC); old ones go (`bound`).

    A record that cannot be written is an error in the log, with the record itself.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._file: int | None = None
        self._path: Path | None = None
        self._unsynced = False
        #: Whether the file ends in the middle of a line.
        self._torn = False

    def write(self, record: dict[str, Any]) -> None:
        """One line, whole or not at all for who reads it."""
        line = json.dumps(record, separators=(",", ":"), ensure_ascii=True) + "\n"
        try:
            file = self._of_this_hour()
            whole = (b"\n" if self._torn else b"") + line.encode()
            written = os.write(file, whole)
            self._unsynced = True
            if written:
                self._torn = written < len(whole)
            problem: OSError | str = f"{written} of {len(whole)} bytes fitted" if written < len(whole) else ""
        except OSError as error:
            problem = error
        if problem:
            logger.error("usage cannot be written to %s: %s; the record is %s", self._path, problem, line.strip())

    async def sync(self) -> None:
        """What was written is on the disk; what is wrong with the disk is in the log."""
        if self._unsynced and self._file is not None:
            self._unsynced = False
            await asyncio.to_thread(_sync, self._file)

    def _of_this_hour(self) -> int:
        now = datetime.now(UTC)
        path = self.folder / f"date={now:%Y-%m-%d}" / f"hour={now:%H}" / f"{self.name}.jsonl"
        if path != self._path or self._file is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            if self._file is not None:
                os.fsync(self._file)
                os.close(self._file)
            self._file, self._path, self._torn = opened, path, False
            bound(self.folder, path)
        return self._file


def bound(folder: Path, current: Path) -> None:
    """Deletes files of records in `folder` beyond `KEPT_DAYS` and `KEPT_BYTES`, the oldest first, never `current`.

    What cannot be deleted is an error in the log. Another replica may delete the same files meanwhile.
    """
    found = []
    for path in folder.glob("date=*/hour=*/*.jsonl"):
        with suppress(FileNotFoundError):
            known = path.stat()
            found.append((known.st_mtime, known.st_size, path))
    total, now = sum(size for _, size, _ in found), time.time()
    for written, size, path in sorted(found):
        if path == current or now - written < LIVE_S:
            continue  # somebody may still write to it
        if now - written <= KEPT_DAYS * 86400 and total <= KEPT_BYTES:
            break
        try:
            path.unlink(missing_ok=True)
            for empty in (path.parent, path.parent.parent):
                empty.rmdir()
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                logger.error("old usage cannot be deleted: %s", error)
        total -= size


def last_records(folder: Path, since: datetime) -> list[dict[str, Any]]:
    """The last record of each request below `folder`, from the day of `since` on (UTC); torn lines are left out."""
    last: dict[tuple[str, int], dict[str, Any]] = {}
    for path in sorted(folder.rglob("date=*/hour=*/*.jsonl")):
        if path.parent.parent.name.removeprefix("date=") < f"{since:%Y-%m-%d}":
            continue
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict) and record.get("version") == 1 and "prompt_tokens" in record:
                        last[record["replica"], record["number"]] = record
    return list(last.values())


def replica_name() -> str:
    """A name for this process, in its records and of its files, which no other process ever has."""
    return f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"


def usage_folder() -> Path:
    """Where this process's records go: the environment's folder, or `usage` beside the logs of Ray's session."""
    if said := os.environ.get(FOLDER_VARIABLE):
        return Path(said)
    return Path("/tmp/ray/session_latest/logs/usage")  # noqa: S108 - Ray's own folder (`ray._private.utils.get_ray_temp_dir`)


def _sync(file: int) -> None:
    try:
        os.fsync(file)
    except OSError as error:
        logger.error("usage is not on the disk: %s", error)


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1") if value else None


def stamp(seconds: float) -> str:
    """Seconds since 1970 as `2026-11-30T16:00:00.000000Z`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
