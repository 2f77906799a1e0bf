"""A file server that can be told how to misbehave: cut, deny ranges, change versions, refuse, stall.

It runs in the test's own event loop, speaks plain HTTP/1.1 with one request a connection, and writes
down every request and how many bytes of body it has sent for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

CHUNK = 16 * 1024


@dataclass
class Stored:
    """One file. `etag`/`modified` "" are left out of answers; `status` other than 200 refuses."""

    body: bytes
    etag: str = '"v1"'
    modified: str = ""
    content_type: str = "application/octet-stream"
    status: int = 200
    location: str = ""
    disposition: str = ""
    token: str = ""  # what `authorization` must be, "" for anyone
    length: bool = True  # whether the length is told


@dataclass
class Seen:
    """One request as it came, and the bytes of body sent for it."""

    path: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0

    @property
    def asked_for_all(self) -> bool:
        """Whether this was a transfer, and not the question for the first bytes."""
        return not self.headers.get("range", "").startswith("bytes=0-")


@dataclass
class RangeServer:
    """`cuts` holds, for the next transfers, after how many bytes of body each is cut (None: not)."""

    files: dict[str, Stored] = field(default_factory=dict)
    answers: dict[str, Callable[[], object]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    cuts: list[int | None] = field(default_factory=list)
    ranges: bool = True
    pause_seconds: float = 0.0
    hold_after: int | None = None
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    silent: bool = False  # takes connections and says nothing
    host: str = "127.0.0.1"
    port: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def url(self, path: str) -> str:
        return f"http://{self.host}:{self.port}{path}"

    def put(self, path: str, body: bytes, **facts: object) -> str:
        """Store a file and return its address."""
        self.files[path] = Stored(body, **facts)  # type: ignore[arg-type]
        return self.url(path)

    @property
    def transfers(self) -> list[Seen]:
        """Requests for a body, without the questions for the first bytes."""
        return [request for request in self.seen if request.asked_for_all]

    @property
    def body_bytes_sent(self) -> int:
        return sum(request.sent for request in self.transfers)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.silent:
            await reader.read()
            return
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        target = head[0].split(" ")[1]
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        request = Seen(unquote(urlsplit(target).path), headers)
        self.seen.append(request)
        answer = self.answers.get(unquote(target), self.answers.get(request.path))
        if answer is not None:
            self._send_head(writer, 200, {"content-type": "application/json"}, json.dumps(answer()).encode())
            return
        stored = self.files.get(request.path)
        if stored is None or stored.status != 200 or stored.token not in {"", headers.get("authorization")}:
            request.status = 404 if stored is None else (stored.status if stored.status != 200 else 401)
            extra = {"location": stored.location} if stored is not None and stored.location else {}
            self._send_head(writer, request.status, extra, b"<html>no</html>")
            return
        await self._send_file(writer, stored, request)

    async def _send_file(self, writer: asyncio.StreamWriter, stored: Stored, request: Seen) -> None:
        start, end, status = 0, len(stored.body), 200
        wanted = request.headers.get("range", "")
        condition = request.headers.get("if-range")
        if self.ranges and wanted and condition in {None, stored.etag, stored.modified}:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(end, int(last) + 1 if last else end), 206
            if start >= len(stored.body):
                request.status = 416
                self._send_head(writer, 416, {"content-range": f"bytes */{len(stored.body)}"}, b"")
                return
        request.status = status
        headers = {"content-type": stored.content_type, "content-length": str(end - start)}
        if not stored.length and status == 200:
            del headers["content-length"]
        if status == 206:
            headers["content-range"] = f"bytes {start}-{end - 1}/{len(stored.body)}"
        optional = {
            "etag": stored.etag,
            "last-modified": stored.modified,
            "content-disposition": stored.disposition,
        }
        headers |= {name: value for name, value in optional.items() if value}
        self._send_head(writer, status, headers, None)
        cut = self.cuts.pop(0) if self.cuts and request.asked_for_all else None
        await self._send_body(writer, stored.body[start:end], request, cut)

    async def _send_body(
        self, writer: asyncio.StreamWriter, body: bytes, request: Seen, cut: int | None
    ) -> None:
        until = len(body) if cut is None else min(cut, len(body))
        while request.sent < until:
            if self.hold_after is not None and request.asked_for_all and request.sent >= self.hold_after:
                await self.go_on.wait()
            piece = body[request.sent : min(until, request.sent + CHUNK)]
            writer.write(piece)
            await writer.drain()
            request.sent += len(piece)
            if self.pause_seconds:
                await asyncio.sleep(self.pause_seconds)
        if cut is not None:
            writer.transport.close()

    def _send_head(
        self, writer: asyncio.StreamWriter, status: int, headers: dict[str, str], body: bytes | None
    ) -> None:
        lines = [f"HTTP/1.1 {status} X", "connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b""))


def sha256(body: bytes) -> str:
    """The digest in the store's spelling."""
    return "sha256:" + hashlib.sha256(body).hexdigest()
