"""Runs a plugin process: prints its port, serves, and ends without a traceback.

The engine starts a plugin with its own address as the argument and stops it with SIGINT. A plugin whose
engine was killed would live on as an orphan and finish a half-done create behind the next run's back, so it
ends as soon as its parent is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import grpc.aio

from modelfleet.infra.provider.sdk import GRPC_CHANNEL_OPTIONS, engine_pb2, engine_pb2_grpc

PARENT_POLL_SECONDS = 0.25


class EngineLog:
    """Writes lines into the user's terminal through the engine, or to stderr where there is no engine."""

    def __init__(self, address: str | None) -> None:
        self._stub: Any = None
        if address:
            channel = grpc.insecure_channel(address, options=GRPC_CHANNEL_OPTIONS)
            self._stub = engine_pb2_grpc.EngineStub(channel)

    def info(self, message: str, urn: str = "") -> None:
        """One plain line, next to the resource `urn` when given."""
        self._write(engine_pb2.INFO, message, urn)

    def progress(self, message: str, urn: str = "") -> None:
        """One line next to the resource `urn`, which the summary at the end leaves out."""
        self._write(engine_pb2.INFO, message, urn, ephemeral=True)

    def warning(self, message: str, urn: str = "") -> None:
        """One warning line, next to the resource `urn` when given."""
        self._write(engine_pb2.WARNING, message, urn)

    def _write(self, severity: Any, message: str, urn: str, *, ephemeral: bool = False) -> None:
        if self._stub is None:
            print(message, file=sys.stderr)
            return
        try:
            self._stub.Log(
                engine_pb2.LogRequest(severity=severity, message=message, urn=urn, ephemeral=ephemeral), timeout=5
            )
        except grpc.RpcError:
            print(message, file=sys.stderr)  # the engine is going away; the line must not be lost


def engine_address(argv: list[str]) -> str | None:
    """The engine's address among a plugin's arguments; None when a person runs the plugin by hand."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("engine", nargs="?")
    known, _ = parser.parse_known_args(argv)
    address: str | None = known.engine
    return address


def serve(register: Callable[[grpc.aio.Server], None], *, at_end: Callable[[], None] = lambda: None) -> None:
    """Serves what `register` adds on a free loopback port until SIGINT, SIGTERM or the parent's end."""
    parent = os.getppid()

    async def run() -> None:
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, ended.set)
        server = grpc.aio.server(options=GRPC_CHANNEL_OPTIONS)
        register(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
        while not ended.is_set() and os.getppid() == parent:
            try:
                await asyncio.wait_for(ended.wait(), PARENT_POLL_SECONDS)
            except TimeoutError:
                continue
        at_end()
        # From inside the loop: its orderly end would wait for the threads of abandoned calls, and a create that
        # outlives its engine works behind the next run's back.
        os._exit(0)

    asyncio.run(run())
