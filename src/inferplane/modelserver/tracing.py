"""Spans of requests, for whoever collects traces (OpenTelemetry, OTLP over HTTP in its JSON form).

A trace is begun elsewhere: by a client or by the gateway. A request that carries a `traceparent` which says
that it is sampled gets one span here, child of the caller's; every other request gets none. So the decision
is made once, and where the platform's setting for it is kept.

Spans wait in a bounded queue and are sent in batches by a background task. A collector that is away costs
requests nothing: the queue fills up, and what no longer fits is dropped and counted. Nothing here is
imported while tracing is off.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import deque
from collections.abc import Iterable
from itertools import islice

import msgspec

from inferplane.modelserver.config import Collector, otlp_collector
from inferplane.modelserver.exchange import Exchange
from inferplane.modelserver.metrics import PREFIX
from inferplane.modelserver.status import Clock
from inferplane.version import VERSION

log = logging.getLogger(__name__)

#: Spans that wait to be sent. Beyond that the newest are dropped.
QUEUE_SPANS_MAX = 4096
BATCH_SPANS_MAX = 512
#: A span waits at most so long for others to travel with.
GATHER_SECONDS = 1.0
#: After a failure the collector is left alone for this long.
AWAY_SECONDS = 2.0
POST_SECONDS = 3.0
#: How long a server that ends tries to hand over its last spans.
LAST_POST_SECONDS = 1.0
TRACE_STATE_CHARACTERS_MAX = 512
TEXT_CHARACTERS_MAX = 256

SERVICE = "inferplane-model-server"
#: What a protocol calls the operation for which spans are made.
OPERATIONS = {"v1": "v1 predict", "v2": "v2 infer", "grpc": "grpc ModelInfer"}

SERVER_KIND = 2
ERROR_STATUS = 2
#: In a span's flags: it is known whether the parent is remote, and it is.
PARENT_IS_REMOTE = 0x300

_TRACEPARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_ENCODER = msgspec.json.Encoder()

Value = str | int | float
Header = tuple[bytes, bytes]


class Parent(msgspec.Struct, frozen=True):
    """The caller's span, of a trace that is sampled."""

    trace_id: str
    span_id: str
    flags: int
    state: str = ""


class _Attribute(msgspec.Struct):
    key: str
    value: dict[str, Value]


class _Status(msgspec.Struct, omit_defaults=True):
    code: int = 0
    message: str = ""


class Span(msgspec.Struct, rename="camel", omit_defaults=True):
    """One span as OTLP's JSON has it: ids in hexadecimal, 64-bit numbers as text."""

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    start_time_unix_nano: str
    end_time_unix_nano: str
    attributes: list[_Attribute]
    flags: int
    trace_state: str = ""
    kind: int = 0
    status: _Status | None = None


def parent_of(headers: Iterable[Header]) -> Parent | None:
    """The sampled parent that a request names, or None: not sampled, not named, or not well-formed.

    `headers` have names in small letters, as the W3C recommendation "Trace Context" has them.
    """
    found: re.Match[bytes] | None = None
    states: list[bytes] = []
    for name, value in headers:
        if name == b"traceparent":
            if found is not None:
                return None  # two of them name nobody
            found = _TRACEPARENT.fullmatch(value.strip())
            if found is None:
                return None
        elif name == b"tracestate":
            states.append(value)
    if found is None:
        return None
    version, trace, span, flags, rest = found.groups()
    sampled = int(flags, 16) & 1
    if not sampled or version == b"ff" or (version == b"00" and rest):
        return None
    if not trace.strip(b"0") or not span.strip(b"0"):
        return None
    state = b",".join(states).decode("latin-1").strip()
    usable = len(state) <= TRACE_STATE_CHARACTERS_MAX and state.isascii() and state.isprintable()
    return Parent(trace.decode(), span.decode(), sampled, state if usable else "")


class Tracer:
    """Makes spans and sends them. All of it belongs to the event loop's thread, of the process that serves."""

    def __init__(self, endpoint: str, model: str, clock: Clock) -> None:
        """`endpoint` is the collector's, as `otlp_collector` reads it; `clock` gives Unix seconds."""
        self._collector = otlp_collector(endpoint)
        self._model = model[:TEXT_CHARACTERS_MAX]
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._spans: deque[Span] = deque()
        self._some = asyncio.Event()
        self._many = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self._away = False
        self.sent = 0
        self.dropped = 0
        self._resource = {
            "attributes": _attributes(
                {
                    "service.name": SERVICE,
                    "service.version": VERSION,
                    "service.instance.id": f"{model}-{os.getpid()}",
                    "process.pid": os.getpid(),
                }
            )
        }

    def start(self) -> None:
        """Send from now on."""
        self._sending = self._loop.create_task(self._send())

    def on_exchange(self, exchange: Exchange, status: int, message: str = "") -> None:
        """A prediction was answered, or its caller went away (`app.CALLER_GONE`)."""
        parent = parent_of(exchange.headers)
        if parent is None:
            return
        about: dict[str, Value] = {}
        entry = exchange.entry
        if entry is not None:
            about["inferplane.rows"] = entry.work.rows
            batch = entry.batch
            if batch is not None:
                about["inferplane.batch.requests"] = batch.requests
                about["inferplane.batch.rows"] = batch.rows
                about["inferplane.queue.seconds"] = max(0.0, batch.began - entry.arrived)
                about["inferplane.compute.seconds"] = batch.compute_seconds
        name = OPERATIONS.get(exchange.protocol, exchange.protocol)
        self._add(parent, name, exchange.headers, exchange.started, status, message, about)

    def on_call(
        self, name: str, headers: Iterable[Header], started: float, status: int, tokens: tuple[int, int]
    ) -> None:
        """A request of a protocol that streams has ended. `tokens` are the prompt's and the answer's."""
        parent = parent_of(headers)
        if parent is None:
            return
        prompt, answer = tokens
        counts = (("inferplane.tokens.prompt", prompt), ("inferplane.tokens.answer", answer))
        about: dict[str, Value] = {key: count for key, count in counts if count}
        self._add(parent, name, headers, started, status, "", about)

    def metrics_text(self) -> str:
        """Prometheus text: what was sent, and what was dropped."""
        lines = []
        for name, count, text in (
            ("spans_sent_total", self.sent, "Spans that the collector of traces took."),
            ("spans_dropped_total", self.dropped, "Spans dropped: the collector was away, slow, or refused."),
        ):
            full = f"{PREFIX}_{name}"
            lines += [f"# HELP {full} {text}", f"# TYPE {full} counter"]
            lines.append(f'{full}{{model="{self._model}"}} {count}')
        return "\n".join(lines) + "\n"

    async def close(self) -> None:
        """Send what is left, if the collector takes it quickly."""
        if self._sending is None:
            return
        self._sending.cancel()
        await asyncio.gather(self._sending, return_exceptions=True)
        self._sending = None
        try:
            async with asyncio.timeout(LAST_POST_SECONDS):
                while self._spans and await self._send_batch():
                    pass
        except TimeoutError:
            pass
        if self._spans:
            log.warning("%d spans were not sent", len(self._spans))

    def _add(
        self,
        parent: Parent,
        name: str,
        headers: Iterable[Header],
        started: float,
        status: int,
        message: str,
        about: dict[str, Value],
    ) -> None:
        if len(self._spans) >= QUEUE_SPANS_MAX:
            self.dropped += 1
            return
        about["inferplane.model"] = self._model
        about["http.response.status_code"] = status
        for key, value in headers:
            if key == b"x-request-id":
                about["inferplane.request_id"] = value.decode("latin-1")[:TEXT_CHARACTERS_MAX]
                break
        now = self._loop.time()
        # From the loop's clock to the wall's, anew each time: the wall's may be set.
        ended = int(self._clock() * 1e9)
        span = Span(
            trace_id=parent.trace_id,
            # Not from `random`: a forked server has its parent's state, and so have all its siblings.
            span_id=os.urandom(8).hex(),
            parent_span_id=parent.span_id,
            trace_state=parent.state,
            flags=PARENT_IS_REMOTE | parent.flags,
            name=name,
            kind=SERVER_KIND,
            start_time_unix_nano=str(ended - int((now - started) * 1e9)),
            end_time_unix_nano=str(ended),
            attributes=_attributes(about),
            # What the caller did wrong is no error of this server's.
            status=_Status(ERROR_STATUS, message[:TEXT_CHARACTERS_MAX]) if status >= 500 else None,
        )
        self._spans.append(span)
        if not self._some.is_set():
            self._some.set()
        if len(self._spans) == BATCH_SPANS_MAX:
            self._many.set()

    async def _send(self) -> None:
        while True:
            await self._some.wait()
            try:
                async with asyncio.timeout(GATHER_SECONDS):
                    await self._many.wait()
            except TimeoutError:
                pass
            while self._spans:
                if not await self._send_batch():
                    await asyncio.sleep(AWAY_SECONDS)
            self._some.clear()
            self._many.clear()

    async def _send_batch(self) -> bool:
        """Send the oldest spans. False when the collector may take them later; then they stay."""
        batch = list(islice(self._spans, BATCH_SPANS_MAX))
        scope = {"scope": {"name": "inferplane.modelserver", "version": VERSION}, "spans": batch}
        body = _ENCODER.encode({"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]})
        try:
            status = await _post(self._collector, body)
        except (OSError, TimeoutError, ValueError) as error:
            return self._failed(f"{type(error).__name__}: {error}")
        if status in (408, 429) or status >= 500:
            return self._failed(f"it answered {status}")
        for _ in batch:
            self._spans.popleft()
        if 200 <= status < 300:
            self.sent += len(batch)
            self._away = False
        else:  # it will never take these
            self.dropped += len(batch)
            self._failed(f"it refused them with {status}")
        return True

    def _failed(self, why: str) -> bool:
        if not self._away:
            self._away = True
            log.warning("spans cannot be sent to %s: %s", self._collector, why)
        return False


def _attributes(values: dict[str, Value]) -> list[_Attribute]:
    return [_Attribute(key, _value(value)) for key, value in values.items()]


def _value(value: Value) -> dict[str, Value]:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue": value}


async def _post(collector: Collector, body: bytes) -> int:
    """The status that the collector answers with. Raises OSError, TimeoutError, or ValueError for an answer
    that is none.

    A connection for each batch: they are few, and so nothing needs to be known of when it may be used again.
    """
    async with asyncio.timeout(POST_SECONDS):
        reader, writer = await asyncio.open_connection(collector.host, collector.port)
        try:
            writer.write(
                b"POST %b HTTP/1.1\r\nhost: %b\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n"
                % (collector.path.encode(), collector.authority.encode(), len(body))
            )
            writer.write(body)
            await writer.drain()
            line = await reader.readline()
        finally:
            writer.close()
    words = line.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].strip().isdigit():
        raise ValueError("what answers there does not speak HTTP")
    return int(words[1])
