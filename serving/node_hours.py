"""What the books need of time: how long each node of the cluster lived, and what this replica held of its nodes.

JSON lines like those of usage, beside them in the folder `-nodes`. Each `EVERY_S` a replica writes what it holds, from
the start of its process on: a line `holding`. One replica of the whole cluster also writes a line `node` for each of
Ray's nodes; the first to ask Ray's store for that minute does it. Of lines with equal `replica` or `node` the last one
counts. So a node or replica that dies is in the books up to its last line, and Ray's own note of a node's end, which
it keeps for its last 1,000 nodes, replaces that.

Ray says when a node joined it (Ray 2.60 `gcs.proto`, `GcsNodeInfo.start_time_ms`). The machine runs for minutes by
then: it boots, and pulls the image. A replica reads the boot from its own machine's kernel, so a machine on which one
ever ran counts from there. A machine's other pods (Ray's nodes) are known by the kernel's `boot_id`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from modelfleet.serving.usage import HourFiles, stamp

EVERY_S = 60.0
"""Seconds between two lines: what the books lose at most of a replica that is killed."""

RAY_ANSWERS_S = 5.0
"""Seconds for Ray's answer: a replica that ends waits for it, too."""

NODES = "-nodes"
"""Folder of these records, beside those of the models; no slug begins with a dash."""

UNNAMED = "local"
"""The pool of a node without a type: KubeRay names the worker group (`RAY_NODE_TYPE_NAME`), a local Ray has none."""

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class RayNode:
    """One of Ray's nodes, alive or not; times in seconds since 1970. `ended` is None while it lives."""

    node: str
    pool: str
    began: float
    ended: float | None
    gpus: float
    cpus: float


class Cluster(Protocol):
    """What a replica asks of Ray."""

    def nodes(self) -> Mapping[str, RayNode]:
        """All nodes that Ray remembers, by their ids."""

    def held(self) -> Mapping[str, Mapping[str, float]]:
        """Resources (`GPU`, `CPU`) that this replica holds, by node id."""

    def first(self, minute: int) -> bool:
        """Whether this replica is the first that asks for that minute."""

    def here(self) -> str:
        """The id of this process's node."""


class NodeHours:
    """Writes this replica's lines; `ready` is called once it is."""

    def __init__(self, folder: Path, model_id: str, replica: str, cluster: Cluster) -> None:
        self._files = HourFiles(folder / NODES, replica)
        self._model_id, self._replica, self._cluster = model_id, replica, cluster
        # Ray starts a process for each application's `runtime_env`, so that it did nothing else before.
        self._began = psutil.Process().create_time()
        self._ready: float | None = None
        #: Nodes that ended and are written: once is enough, and Ray remembers a thousand.
        self._written: set[str] = set()

    async def run(self) -> None:
        """A round each `EVERY_S`, until cancelled. What goes wrong in one is in the log, and the next one comes."""
        while True:
            try:
                await asyncio.to_thread(self.note)
                await self._files.sync()
            except Exception:  # nobody else would see it
                logger.exception("node hours were not noted in this round")
            await asyncio.sleep(EVERY_S)

    def ready(self) -> None:
        """From now on it answers."""
        self._ready = time.time()

    def last_words(self) -> None:
        """The last line, when the replica ends; without it up to `EVERY_S` would be missing."""
        try:
            self.note()
        except Exception:  # Ray may be gone already, and nothing may keep a replica from ending
            logger.warning("the last seconds of this replica are in no books", exc_info=True)

    def note(self) -> None:
        """This replica's line, and where it is the first in this minute those of all nodes."""
        now = time.time()
        nodes = self._cluster.nodes()
        self._files.write(
            {
                "version": 1,
                "record": "holding",
                "replica": self._replica,
                "model": self._model_id,
                "began": stamp(self._began),
                "ready": None if self._ready is None else stamp(self._ready),
                "written": stamp(now),
                "node": self._cluster.here(),
                "boot": boot(),
                "shares": {
                    node: share(held, nodes[node]) for node, held in self._cluster.held().items() if node in nodes
                },
            }
        )
        if self._cluster.first(int(now // EVERY_S)):
            for one in nodes.values():
                # Not a cluster's head, on which nothing runs.
                if (one.gpus or one.cpus) and one.node not in self._written:
                    self._files.write(_node_record(one, now))
                    if one.ended is not None:
                        self._written.add(one.node)


def share(held: Mapping[str, float], node: RayNode) -> float:
    """The part of a node's GPUs, 0 to 1; of its CPUs where it has no GPU."""
    name, whole = ("GPU", node.gpus) if node.gpus else ("CPU", node.cpus)
    return min(1.0, held.get(name, 0.0) / whole) if whole else 0.0


def boot() -> dict[str, str]:
    """When this machine booted, and an id of that boot, the same in all of its containers."""
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    try:
        return {"id": boot_id.read_text(encoding="ascii").strip(), "at": stamp(psutil.boot_time())}
    except OSError:  # no Linux
        return {}


def _node_record(one: RayNode, now: float) -> dict[str, Any]:
    return {
        "version": 1,
        "record": "node",
        "node": one.node,
        "pool": one.pool,
        "began": stamp(one.began),
        "ended": None if one.ended is None else stamp(one.ended),
        "written": stamp(now),
    }
