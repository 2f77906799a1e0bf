"""Asks a model server over its socket whether it lives."""

from __future__ import annotations

import asyncio
import contextlib

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
    reader, writer = await asyncio.open_unix_connection(socket_path, limit=_STATUS_LINE_BYTES_MAX)
    try:
        writer.write(_REQUEST)
        await writer.drain()
        words = (await reader.readline()).split()
        return len(words) >= 2 and words[1] == b"200"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
