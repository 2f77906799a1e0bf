"""A gateway with a real Envoy and small real replicas, for tests that look at what arrives where."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from inferplane.gateway.places import make_places
from inferplane.gateway.process import EnvoyProcess
from inferplane.gateway.publisher import GatewayConfig, RoutePublisher
from inferplane.gateway.route_table import EndpointRoutes, Upstream

WAIT_SECONDS = 20.0
BACKLOG = 1024  # as model servers have; with a shorter one, the kernel refuses what comes at once


async def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait for `condition`, with a deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + WAIT_SECONDS
    while not condition():
        assert loop.time() < deadline, f"waited {WAIT_SECONDS} s for {what}"
        await asyncio.sleep(0.005)


@dataclass
class Request:
    """What a replica received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Request], "AsyncIterator[bytes]"]


def response(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def echo(request: Request) -> AsyncIterator[bytes]:
    seen = {"method": request.method, "path": request.path, "headers": request.headers}
    yield response(
        200,
        json.dumps({**seen, "bodyBytes": len(request.body)}).encode(),
        "content-type: application/json",
    )


class Replica:
    """An HTTP server on a unix socket or on loopback that remembers requests and answers as it is told.

    `answer` yields the bytes to send; when it raises ConnectionAbortedError the connection breaks.
    """

    def __init__(self, name: str, answer: Answer = echo) -> None:
        self.name = name
        self.answer = answer
        self.requests: list[Request] = []
        self.address = ""
        self.in_flight = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    @property
    def upstream(self) -> Upstream:
        return Upstream(self.name, self.address)

    async def listen(self, path: Path | None = None) -> None:
        if path is not None:
            self._server = await asyncio.start_unix_server(self._serve, path, backlog=BACKLOG)
            self.address = f"unix:{path}"
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Like a model server at SIGTERM: no new connection, finish what was accepted, go."""
        assert self._server is not None
        self._server.close()
        await eventually(lambda: not self.in_flight, f"{self.name} to finish its requests")
        for writer in list(self._connections):
            writer.close()
        if self.address.startswith("unix:"):
            Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)
        self._server = None

    async def close(self) -> None:
        if self._server is not None:
            self.in_flight = 0
            await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    request = await _read_request(reader)
                    self.requests.append(request)
                    self.in_flight += 1
                    try:
                        async for piece in self.answer(request):
                            writer.write(piece)
                            await writer.drain()
                    finally:
                        self.in_flight -= 1
        finally:
            self._connections.discard(writer)
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {}
    for line in head[1:]:
        name, _, value = line.partition(": ")
        if name:
            headers[name.lower()] = value
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


@dataclass
class World:
    """One folder with a gateway, and the replicas it may send to."""

    folder: Path
    confirmations: list[str] = field(default_factory=list)
    replicas: list[Replica] = field(default_factory=list)
    publishers: list[RoutePublisher] = field(default_factory=list)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def gateway(self, **settings: Any) -> RoutePublisher:
        """A publisher that has started and is open; its folder is the world's unless told otherwise."""
        publisher = self.unopened(**settings)
        await publisher.start()
        publisher.open()
        await eventually(lambda: publisher.problem() == "", "the gateway to be ready")
        return publisher

    def unopened(self, **settings: Any) -> RoutePublisher:
        """A publisher that has not been started. It is closed at the end of the test."""
        config = GatewayConfig(**{"directory": self.folder / "gateway", "port": 0, **settings})
        publisher = RoutePublisher(config, on_confirmed=self.confirmations.append)
        self.publishers.append(publisher)
        return publisher

    async def replica(self, name: str = "r1-0", answer: Answer = echo, *, tcp: bool = False) -> Replica:
        """A replica that listens."""
        replica = Replica(name, answer)
        await replica.listen(None if tcp else self.folder / f"{next(self.numbers)}.sock")
        self.replicas.append(replica)
        return replica

    async def close(self) -> None:
        for replica in self.replicas:
            await replica.close()
        for publisher in self.publishers:
            await publisher.close(stop_gateway=True)
        for lock in self.folder.rglob("envoy.lock"):  # let go by a test that failed half-way
            await EnvoyProcess(make_places(lock.parent), Path(), 1).stop()


def routes(*upstreams: Upstream, endpoint: str = "iris", **changes: Any) -> EndpointRoutes:
    """The routes of endpoint `iris` in workspace `default`; its uid is `uid-<endpoint>`."""
    facts: dict[str, Any] = {"uid": f"uid-{endpoint}", "workspace": "default", "models": (endpoint,)}
    return EndpointRoutes(endpoint=endpoint, upstreams=tuple(upstreams), **{**facts, **changes})


async def publish(publisher: RoutePublisher, *wanted: EndpointRoutes) -> None:
    """Set routes and wait until the gateway has them, and nothing older."""
    for one in wanted:
        publisher.set(one)

    def settled() -> bool:
        found = [publisher.confirmed(one.uid) for one in wanted]
        return all(f is not None and f.upstreams == w.upstreams for f, w in zip(found, wanted, strict=True))

    await eventually(settled, "the routes to be confirmed")


def client(publisher: RoutePublisher, *, connections: int = 100) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{publisher.port}",
        timeout=WAIT_SECONDS,
        trust_env=False,
        limits=httpx.Limits(max_connections=connections),
    )
