"""A lean load generator: one request sent again and again over kept-alive connections.

    .venv/bin/python bench/load.py http://127.0.0.1:8080/v1/models/iris:predict body.json \
        --connections 64 --seconds 5 [--rate 8000] [--header 'host: …']

Python's HTTP clients cost more than the servers that are measured here, and would share the cores with
them. This one writes prepared bytes, looks for the status and the length in what comes back, and nothing
else; it costs about 15 µs a request. `unix:/path.sock:/v1/…` speaks to a unix socket.

Without `--rate` each connection sends its next request when it has its answer (a closed loop: what the
server can do). With `--rate` requests are due at even intervals whatever comes back (an open loop: what
users do); a request's latency then counts from when it was due. Those that find every connection busy
wait for one; what still waits at the end counts as `unsent`. With `--patience` an answer counts as good
only when it came within so many milliseconds.

An open loop is worth what its generator can offer, so that is said too: how many requests became due and how
many were sent a second, how late the generator itself was with those for which a connection was free
(`late_ms`, p99), and which share of a core it took (`cpu`).

Prints one line of JSON: requests and answers by status, requests per second, latencies in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

#: How long answers to what was sent may take after the time is over.
GRACE_SECONDS = 5.0
TICK_SECONDS = 0.001


class Recorder:
    """What is counted while the measured time runs."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.latencies: list[float] = []
        self.failures = 0
        self.good = 0
        self.due = 0
        self.sent = 0
        self.late: list[float] = []
        self.recording = False
        self.stopped = False


class Connection(asyncio.Protocol):
    """One kept-alive connection with at most one request on its way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._need = 0
        self._status = 0
        self._close = False
        self._since = 0.0
        self._busy = False
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's own is no subclass of it
        self._load.idle(self)

    def send(self, since: float) -> None:
        """Send one request; its latency counts from `since`."""
        assert self._transport is not None
        self._since = since
        self._busy = True
        self._load.recorder.sent += self._load.recorder.recording
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        if self._need == 0:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return
            self._status = int(data[9:12])
            self._need = end + 4 + _length(data[:end])
            self._close = b"onnection: close" in data[:end]
        if self._need > 0 and len(data) < self._need:
            self._buffer = data
            return
        if self._need < 0 and not data.endswith(b"0\r\n\r\n"):  # chunked
            self._buffer = data
            return
        self._need = 0
        self._busy = False
        recorder = self._load.recorder
        if recorder.recording:
            latency = time.perf_counter() - self._since
            recorder.statuses[self._status] += 1
            recorder.latencies.append(latency)
            recorder.good += self._status == 200 and latency <= self._load.patience
        if self._close and self._transport is not None:
            self._transport.close()
        else:
            self._load.idle(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - counted, not explained
        if self._busy and self._load.recorder.recording:
            self._load.recorder.failures += 1
        self._load.lost(self)


class Load:
    """All connections, and who sends next."""

    def __init__(self, address: tuple[str, int] | str, request: bytes, rate: float, patience: float) -> None:
        self.request = request
        self.patience = patience
        self.recorder = Recorder()
        self._address = address
        self._rate = rate
        self._free: list[Connection] = []
        self._due: deque[float] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, connections: int, warmup: float, seconds: float) -> dict[str, object]:
        """Warm up, measure, and return the figures."""
        await asyncio.gather(*(self._connect() for _ in range(connections)))
        pacing = asyncio.ensure_future(self._pace()) if self._rate else None
        await asyncio.sleep(warmup)
        began, worked = time.perf_counter(), time.process_time()
        self.recorder.recording = True
        await asyncio.sleep(seconds)
        self.recorder.recording = False
        elapsed = time.perf_counter() - began
        cpu = (time.process_time() - worked) / elapsed
        self.recorder.stopped = True
        if pacing is not None:
            pacing.cancel()
        return _figures(self.recorder, elapsed, len(self._due), cpu)

    def idle(self, connection: Connection) -> None:
        """`connection` may send."""
        if self.recorder.stopped:
            return
        if not self._rate:
            connection.send(time.perf_counter())
        elif self._due:
            connection.send(self._due.popleft())
        else:
            self._free.append(connection)

    def lost(self, connection: Connection) -> None:
        """Replace a connection that was closed."""
        if connection in self._free:
            self._free.remove(connection)
        if not self.recorder.stopped:
            task = asyncio.ensure_future(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                if isinstance(self._address, str):
                    await loop.create_unix_connection(lambda: Connection(self), self._address)
                else:
                    await loop.create_connection(lambda: Connection(self), *self._address)
            except OSError:
                if self.recorder.recording:
                    self.recorder.failures += 1
                await asyncio.sleep(0.05)
            else:
                return

    async def _pace(self) -> None:
        recorder = self.recorder
        began = time.perf_counter()
        sent = 0
        while True:
            now = time.perf_counter()
            while (due := began + sent / self._rate) <= now:
                sent += 1
                recorder.due += recorder.recording
                if self._free:
                    if recorder.recording:
                        recorder.late.append(now - due)
                    self._free.pop().send(due)
                else:
                    self._due.append(due)
            await asyncio.sleep(TICK_SECONDS)


def _length(head: bytes) -> int:
    """The body's length; -1 - head for a chunked one, so that the sum is negative."""
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")  # not the one of the binary extension
    if at >= 0:
        end = lower.find(b"\r\n", at + 2)
        return int(lower[at + 17 : end if end >= 0 else None])
    return -len(head) - 5 if b"transfer-encoding: chunked" in lower else 0


def _figures(recorder: Recorder, elapsed: float, unsent: int, cpu: float) -> dict[str, object]:
    latencies = sorted(recorder.latencies)
    late = sorted(recorder.late)

    def percentile(share: float, times: list[float] = latencies) -> float:
        return round(times[min(len(times) - 1, int(share * len(times)))] * 1000, 3)

    shown = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {
        "seconds": round(elapsed, 3),
        "good_per_second": round(recorder.good / elapsed, 1),
        "answers_per_second": round(len(latencies) / elapsed, 1),
        "statuses": {str(status): count for status, count in sorted(recorder.statuses.items())},
        "failures": recorder.failures,
        "unsent": unsent,
        "due_per_second": round(recorder.due / elapsed, 1),
        "sent_per_second": round(recorder.sent / elapsed, 1),
        "late_ms": percentile(0.99, late) if late else 0.0,
        "cpu": round(cpu, 3),
        "ms": {name: percentile(share) for name, share in shown.items()} if latencies else {},
    }


def _target(url: str) -> tuple[tuple[str, int] | str, str, str]:
    """The address, the host header and the path of a URL."""
    if url.startswith("unix:"):
        path, _, target = url.removeprefix("unix:").partition(":")
        return path, "model", target
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    return (parts.hostname or "127.0.0.1", parts.port or 80), parts.netloc, target


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("body", type=Path)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warmup", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=0.0, help="requests per second; 0: a closed loop")
    parser.add_argument("--patience", type=float, default=math.inf, help="milliseconds")
    parser.add_argument("--header", action="append", default=[])
    options = parser.parse_args()
    address, host, target = _target(options.url)
    body = options.body.read_bytes()
    headers = [
        f"host: {host}",
        *options.header,
        f"content-length: {len(body)}",
    ]
    request = f"POST {target} HTTP/1.1\r\n".encode() + "\r\n".join(headers).encode() + b"\r\n\r\n" + body
    load = Load(address, request, options.rate, options.patience / 1000)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(load.run(options.connections, options.warmup, options.seconds))
    json.dump(figures, sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
