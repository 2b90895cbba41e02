"""A port of this machine's loopback leads into the network of a process.

python -m tools.kubernetes.node.forward PORT PID HOST HOST_PORT
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import sys
from pathlib import Path


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes, and the end of it: a half-closed connection still has its other half."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()


async def _serve(host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        there_reader, there_writer = await asyncio.open_connection(host, port)
    except OSError:
        writer.close()
        return
    try:
        await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
    finally:
        writer.close()
        there_writer.close()


async def _forward(listener: socket.socket, host: str, port: int) -> None:
    server = await asyncio.start_server(lambda r, w: _serve(host, port, r, w), sock=listener)
    print("ready", flush=True)
    await server.serve_forever()


def main(port: str, pid: str, host: str, host_port: str) -> None:
    """Listen here, then connect from there."""
    listener = socket.create_server(("127.0.0.1", int(port)))  # made before this process changes its network
    with Path(f"/proc/{pid}/ns/net").open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0) != 0:
            raise SystemExit(f"setns: {os.strerror(ctypes.get_errno())}")
    asyncio.run(_forward(listener, host, int(host_port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
