"""Asks a model server over its socket whether it lives.

With hundreds of servers this is asked a hundred times a second, so it is done with one bare socket and one wait
for the answer.
"""

from __future__ import annotations

import asyncio
import socket

LIVE_PATH = "/v2/health/live"
_REQUEST = f"GET {LIVE_PATH} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
_STATUS_LINE_BYTES_MAX = 256


async def is_live(socket_path: str, timeout_seconds: float) -> bool:
    """Whether the server answers its liveness check with 200 in time."""
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _ask(socket_path)
    except (OSError, TimeoutError, ValueError):
        return False


async def _ask(socket_path: str) -> bool:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as connection:
        connection.connect(socket_path)  # at once, or refused: a local socket is never "in progress"
        connection.sendall(_REQUEST)  # into an empty buffer, where it has room
        line = b""
        while b"\n" not in line and len(line) < _STATUS_LINE_BYTES_MAX:
            piece = await loop.sock_recv(connection, _STATUS_LINE_BYTES_MAX)
            if not piece:
                break
            line += piece
    words = line.partition(b"\n")[0].split()
    return len(words) >= 2 and words[1] == b"200"
