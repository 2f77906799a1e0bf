"""How long a change of one endpoint takes to have effect in the gateway, beside thousands of others.

    .venv/bin/python bench/gateway_routes.py [--endpoints 5000] [--changes 30]

A real Envoy, a real control plane, real requests: time runs from `set` or `remove` until the first
request that is answered otherwise than before, asked again and again over connections of their own. Also
how long the first table takes, what adopting it takes a new control plane, and Envoy's memory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import harness
import psutil
import uvloop

from inferplane.gateway.publisher import GatewayConfig, RoutePublisher
from inferplane.gateway.route_table import EndpointRoutes, Upstream

ASK_AGAIN_SECONDS = 0.0005
DEADLINE_SECONDS = 30.0
SECTION = "gateway-routes"


class Replica:
    """Answers every request with its number."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.address = f"unix:{folder}/{number}.sock"
        self._path = folder / f"{number}.sock"
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n" + str(self.number).encode()
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


class Client:
    """One connection to the gateway."""

    async def connect(self, port: int) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)

    async def get(self, endpoint: str) -> tuple[int, bytes]:
        request = f"GET /v2 HTTP/1.1\r\nhost: {endpoint}.default.localhost\r\n\r\n"
        self._writer.write(request.encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
        return int(head.split(b" ", 2)[1]), await self._reader.readexactly(length)


def endpoint(number: int, replica: Replica, revision: int = 1) -> EndpointRoutes:
    name = f"e{number}"
    upstream = Upstream(f"r{revision}-0", replica.address)
    return EndpointRoutes(f"uid{number:09d}", "default", name, (upstream,), (name,))


async def main(endpoints: int, changes: int) -> None:
    load = os.getloadavg()[0]
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    replicas = [Replica(folder, number) for number in range(2)]
    for replica in replicas:
        await replica.listen()
    config = GatewayConfig(folder / "gateway", port=0)
    publisher = RoutePublisher(config, on_confirmed=lambda _: None)
    await publisher.start()
    publisher.open()
    try:
        table = [endpoint(number, replicas[0]) for number in range(endpoints)]
        began = time.perf_counter()
        for one in table:
            publisher.set(one)
        await until(lambda: publisher.problem() == "" and publisher.confirmed(table[-1].uid) == table[-1])
        await until(lambda: all(publisher.confirmed(one.uid) == one for one in table))
        first_seconds = time.perf_counter() - began
        memory = rss_megabytes(publisher.pid)

        http = Client()
        await http.connect(publisher.port)
        fresh = range(endpoints, endpoints + changes)
        found = {
            "a new endpoint": [
                await effect(publisher, http, endpoint(n, replicas[0]), (200, b"0")) for n in fresh
            ],
            "a replica in place of another": [
                await effect(publisher, http, endpoint(n, replicas[1]), (200, b"1")) for n in range(changes)
            ],
            "a revision in place of another": [
                await effect(publisher, http, endpoint(n, replicas[1], 2), (200, b"1"))
                for n in range(changes, 2 * changes)
            ],
            "a new reason for a 503": [
                await effect(
                    publisher,
                    http,
                    replace(endpoint(n, replicas[0]), upstreams=(), unavailable_reason="Stopped"),
                    (503, None),
                )
                for n in range(2 * changes, 3 * changes)
            ],
            "an endpoint removed": [
                await effect(publisher, http, fresh[n], (404, None)) for n in range(changes)
            ],
        }

        wanted = [routes for n in range(endpoints) if (routes := publisher.confirmed(f"uid{n:09d}"))]
        await publisher.close(stop_gateway=False)
        began = time.perf_counter()
        publisher = RoutePublisher(config, on_confirmed=lambda _: None)
        await publisher.start()
        for one in wanted:
            publisher.set(one)
        publisher.open()
        await until(lambda: publisher.problem() == "")
        adopted_seconds = time.perf_counter() - began
    finally:
        await publisher.close(stop_gateway=True)
        shutil.rmtree(folder)
    head = ("change to effect, ms", "p50", "p95", "most")
    rows = [(what, *shown(milliseconds)) for what, milliseconds in found.items()]
    harness.publish(
        SECTION,
        f"{harness.machine()}; {endpoints:,} endpoints, {changes} changes of each kind; load average {load:.1f} "
        f"before.\n\n{harness.table(head, rows)}\n\nFirst table: {first_seconds:.1f} s. Adopted by a new control "
        f"plane: {adopted_seconds:.1f} s. Envoy: {memory:.0f} MB.",
    )


async def effect(
    publisher: RoutePublisher, http: Client, change: EndpointRoutes | int, wanted: tuple[int, bytes | None]
) -> float:
    """Milliseconds from a change (of routes, or away with an endpoint's number) to its effect."""
    number = change if isinstance(change, int) else int(change.endpoint[1:])
    began = time.perf_counter()
    if isinstance(change, int):
        publisher.remove(f"uid{change:09d}")
    else:
        publisher.set(change)
    while True:
        status, body = await http.get(f"e{number}")
        if status == wanted[0] and wanted[1] in (None, body):
            return (time.perf_counter() - began) * 1000
        assert time.perf_counter() - began < DEADLINE_SECONDS, (status, body)
        await asyncio.sleep(ASK_AGAIN_SECONDS)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.perf_counter() + DEADLINE_SECONDS * 4
    while not condition():
        assert time.perf_counter() < deadline
        await asyncio.sleep(0.01)


def rss_megabytes(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def shown(milliseconds: Iterable[float]) -> tuple[str, str, str]:
    """Median, 95th percentile and the most."""
    found = sorted(milliseconds)
    return f"{statistics.median(found):.1f}", f"{found[int(len(found) * 0.95)]:.1f}", f"{found[-1]:.1f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--endpoints", type=int, default=5000)
    parser.add_argument("--changes", type=int, default=30)
    arguments = parser.parse_args()
    uvloop.run(main(arguments.endpoints, arguments.changes))
