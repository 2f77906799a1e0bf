"""HTTP/1.1 as far as clients of Kubernetes speak it, with the connection in our hands, so that it can be cut anywhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

BODY_BYTES_MAX = 3 * 1024 * 1024
HEAD_BYTES_MAX = 64 * 1024


@dataclass(slots=True)
class Incoming:
    """One request as read. Header names in lower case; of a repeated query parameter the last."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection stays for another request."""
        return self.headers.get("connection", "").lower() != "close"


class Closed(Exception):
    """The other side is gone, or speaks no HTTP."""


async def read(reader: asyncio.StreamReader) -> Incoming:
    """The next request of a connection. Raises Closed."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        raise Closed from None
    first, *lines = head.decode("latin-1").split("\r\n")
    try:
        method, target, _ = first.split(" ")
    except ValueError:
        raise Closed from None
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    body = await _body(reader, headers)
    parts = urlsplit(target)
    return Incoming(
        method, unquote(parts.path), dict(parse_qsl(parts.query, keep_blank_values=True)), headers, body
    )


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    try:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                parts.append(await reader.readexactly(size))
                await reader.readexactly(2)
            await reader.readuntil(b"\r\n")
            return b"".join(parts)
        length = int(headers.get("content-length", "0"))
        if length > BODY_BYTES_MAX:
            # Read past it: the answer (413) must find a client that has stopped writing.
            left = length
            while left:
                left -= len(await reader.readexactly(min(left, 65536)))
            return b"\0" * (BODY_BYTES_MAX + 1)
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
        raise Closed from None


@dataclass(slots=True)
class Answer:
    """One answer. `body`: a JSON value, or bytes as they are."""

    status: int
    body: Any
    warnings: tuple[str, ...] = ()
    retry_after_s: int | None = None
    content_type: str = "application/json"

    def encoded(self, *, keep: bool) -> bytes:
        """As bytes on the wire."""
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode() + b"\n"
        lines = [
            _first(self.status),
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-cache, private",
        ]
        lines += [f"Warning: {each}" for each in self.warnings]
        if self.retry_after_s is not None:
            lines.append(f"Retry-After: {self.retry_after_s}")
        if not keep:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace") + body


def stream_head(content_type: str = "application/json") -> bytes:
    """The head of an answer in chunks."""
    lines = [
        _first(200),
        f"Content-Type: {content_type}",
        "Transfer-Encoding: chunked",
        "Cache-Control: no-cache, private",
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def chunk(data: bytes) -> bytes:
    """One chunk; b"" ends the stream."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _first(status: int) -> str:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    return f"HTTP/1.1 {status} {phrase}"


def warning(text: str) -> str:
    """A Warning header's value."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'299 - "{quoted}"'
