"""HTTP/1.1 for a model server: httptools' parser, and nothing between it and the application.

A request is collected whole (within the size limit) and then handed over: predictions as an `Exchange`,
everything else is answered at once from memory, and what is mounted as ASGI (protocols that stream) gets
a task of its own. Requests that a client sends ahead wait their turn, so answers keep their order.

A connection that begins with HTTP/2's preface is handed to `grpc` with all that it has received: one
socket speaks both, and who calls needs to know only one address.

Everything has a limit: bytes and number of headers, body, requests sent ahead, time for a request to
arrive, idle time, connections. Whatever is not HTTP gets the error shape of every other answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple, cast
from urllib.parse import unquote_to_bytes

import httptools

from inferplane.modelserver.app import App, Asgi, Route, too_large
from inferplane.modelserver.batcher import RETRY_AFTER_SECONDS_MAX
from inferplane.modelserver.exchange import (
    EXPECTED_TIMEOUT_HEADER,
    Answer,
    Exchange,
    caller_patience,
    error_answer,
)

#: Idle connections are kept this long; the gateway closes its own sooner, so that it never sends a
#: request into a connection that is being closed here.
KEEP_ALIVE_SECONDS = 75.0
#: Connections are looked over this often: idle ones, and requests that do not finish arriving.
SWEEP_SECONDS = 0.25
CONNECTIONS_MAX = 16384
HEAD_BYTES_MAX = 64 * 1024
HEADERS_MAX = 256
#: Requests that may wait behind the one being answered; beyond that nothing more is read.
AHEAD_MAX = 16
#: How much of an oversized body is read and thrown away, so that the caller gets to read the 413:
#: closing at once would reset the connection of a caller who is still sending.
DISCARD_BYTES_MAX = 256 * 1024 * 1024
DISCARD_SECONDS_MAX = 10.0
#: Answers of more parts or bytes than this are written part by part instead of being joined.
JOIN_BYTES_MAX = 64 * 1024
#: A request whose head is longer than this is not looked at in a hurry.
HURRIED_HEAD_BYTES_MAX = 4096
#: So many heads are remembered; with one more, all are forgotten.
HEADS_SEEN_MAX = 1024
LENGTH_DIGITS_MAX = 18
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_NOT_HTTP = error_answer(400, "the request is not HTTP that can be read, or its method is not known")
_HEAD_TOO_LARGE = error_answer(431, f"the request's headers are larger than {HEAD_BYTES_MAX} bytes")
_ID_NAME = b"\r\nx-request-id:"
_LENGTH_NAME = b"\r\ncontent-length:"
_PATIENCE_NAME = b"\r\n" + EXPECTED_TIMEOUT_HEADER + b":"
#: Words in a head after which a request needs a closer look.
_NOT_PLAIN = (b"transfer-encoding", b"\r\nexpect:", b"\r\nupgrade:")
_CONNECTION_NAME = b"\r\nconnection:"
_KEPT_ALIVE = b"\r\nconnection: keep-alive\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connections:
    """All open connections of a server, whatever they speak."""

    def __init__(self, app: App, upgrade: Upgrade | None = None) -> None:
        self.app = app
        self.upgrade = upgrade
        self.loop = asyncio.get_running_loop()
        self.open: set[Connection] = set()
        #: Heads that were seen while there was more to do than could be done.
        self.heads: dict[bytes, Glance | None] = {}
        #: Called whenever a connection came or went.
        self.changed: Callable[[], None] = lambda: None
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> HttpConnection:
        """A protocol for a new connection: this object is what a server is created with."""
        return HttpConnection(self)

    @property
    def arriving(self) -> int:
        """Requests that have begun to arrive and are not whole."""
        return sum(connection.arriving for connection in self.open)

    def add(self, connection: Connection) -> None:
        """Watch over a connection."""
        self.open.add(connection)
        self.changed()
        if self._timer is None:
            self._timer = self.loop.call_later(SWEEP_SECONDS, self._sweep)

    def remove(self, connection: Connection) -> None:
        """Forget a closed connection."""
        self.open.discard(connection)
        self.changed()

    def shut_down(self) -> None:
        """Close what is idle, and the rest after its answer."""
        for connection in list(self.open):
            connection.shut_down()

    def _sweep(self) -> None:
        self._timer = None
        now = self.loop.time()
        for connection in list(self.open):
            connection.check(now)
        if self.open:
            self._timer = self.loop.call_later(SWEEP_SECONDS, self._sweep)


class Connection:
    """What `Connections` needs of each."""

    arriving = False

    def check(self, now: float) -> None:
        """Act on what has taken too long."""

    def shut_down(self) -> None:
        """Close now when idle, else after the answers that are due."""


#: Makes the protocol that goes on with a connection which has begun with HTTP/2's preface.
Upgrade = Callable[[Connections], asyncio.Protocol]


class _HttpExchange(Exchange):
    """A prediction that came over HTTP/1.1."""

    __slots__ = ("connection",)

    def __init__(
        self, connection: HttpConnection, protocol: str, headers: list[tuple[bytes, bytes]], patience: float
    ) -> None:
        super().__init__(protocol, headers, connection.started, patience)
        self.connection = connection

    def finish(self, answer: Answer) -> None:
        self.connection.reply(answer)


class _Request:
    """A request that has arrived whole."""

    __slots__ = ("body", "headers", "keep_alive", "method", "started", "target")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        started: float,
        keep_alive: bool,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body = body
        self.started = started
        self.keep_alive = keep_alive


class HttpConnection(asyncio.Protocol, Connection):
    """One connection. The methods named `on_…` are called by the parser, within `data_received`."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._app = connections.app
        self._limit = connections.app.config.max_request_bytes
        self._timeout = connections.app.config.request_timeout_seconds
        self._parser: Any = None
        self._transport = cast(asyncio.Transport, None)
        self._begun = b""
        # The request that arrives.
        self.arriving = False
        self.started = 0.0
        self._head = False
        self._head_bytes = 0
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._size = 0
        self._discarding = False
        # The request that is being answered, and those behind it.
        self._ahead: deque[_Request] = deque()
        self._busy = False
        self._keep_alive = True
        self._bodyless = False
        self._exchange: Exchange | None = None
        self._stream: _Stream | None = None
        self._closing = False
        self._idle_since = connections.loop.time()
        self._writable = asyncio.Event()
        self._writable.set()

    # What the event loop says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._connections.open) >= CONNECTIONS_MAX:
            self._refuse(error_answer(503, "this server has too many connections"))
            return
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why does not matter
        self._connections.remove(self)
        self._closing = True
        self.arriving = False
        self._ahead.clear()
        self._writable.set()
        if self._exchange is not None:
            self._app.leave(self._exchange)
            self._exchange = None
        if self._stream is not None:
            self._stream.leave()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def eof_received(self) -> bool:
        """A caller that has sent all may still wait for its answer."""
        self._keep_alive = False
        return self._busy and not self._closing

    def data_received(self, data: bytes) -> None:
        if self._parser is None:
            data = self._begun + data
            if self._is_http2(data):
                return
            self._parser = httptools.HttpRequestParser(self)
        if self._closing:
            if self._discarding:
                self._discard(data)
            return
        if self._app.crowded and self._turned_away(data):
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request has been handed over; what follows it would be in a protocol not spoken here.
            self._closing_after_answer()
        except httptools.HttpParserError as error:
            if self._busy:
                self._closing_after_answer()  # what was understood is still answered
            else:
                # What a callback raised comes wrapped.
                why = error.__context__
                self._refuse(why.answer if isinstance(why, _Refused) else _NOT_HTTP)
            return
        if self._head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self._busy:
                self._refuse(_HEAD_TOO_LARGE)

    def _turned_away(self, data: bytes) -> bool:
        """Refuse a prediction at a glance when this server has more than it can do; False: parse it."""
        if self._busy or self.arriving or self._ahead or not self._keep_alive:
            return False
        glance = glance_at(data, self._connections.heads)
        if glance is None:
            return False
        route = self._app.route(glance.path)
        if route is None or route.post is None or glance.body_bytes > self._limit:
            return False
        refusal = self._app.refusal(route.protocol, min(glance.patience, self._timeout))
        if refusal is None:
            return False
        self._transport.write(_whole(refusal))
        self._idle_since = self._connections.loop.time()
        return True

    def _is_http2(self, data: bytes) -> bool:
        """Whether this is no HTTP/1.1, or cannot be told yet; then it has been dealt with."""
        upgrade = self._connections.upgrade
        if upgrade is None or not data.startswith(HTTP2_PREFACE[: len(data)]):
            return False
        if len(data) < len(HTTP2_PREFACE):
            self._begun = data
            return True
        self._connections.remove(self)
        protocol = upgrade(self._connections)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        protocol.data_received(data)
        return True

    # What the parser says.

    def on_message_begin(self) -> None:
        self.arriving = self._head = True
        self.started = self._connections.loop.time()
        self._head_bytes = 0
        self._target = b""
        self._headers = []
        self._body = []
        self._size = 0

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > HEAD_BYTES_MAX:
            raise _Refused(_HEAD_TOO_LARGE)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head:
            return  # behind the body: who may set a header has set it before
        self._headers.append((name.lower(), value))
        if len(self._headers) > HEADERS_MAX:
            raise _Refused(error_answer(431, f"the request has more than {HEADERS_MAX} headers"))

    def on_headers_complete(self) -> None:
        self._head = False
        if self._parser.get_method() != b"POST":
            return
        for name, value in self._headers:
            if name == b"content-length":
                if not value.isdigit() or int(value[:20]) > self._limit:
                    raise _Refused(too_large(self._limit))
            elif name == b"expect" and value.lower() == b"100-continue" and not self._busy:
                self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > self._limit:
            raise _Refused(too_large(self._limit))
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.arriving = False
        parser = self._parser
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        request = _Request(
            parser.get_method(),
            self._target,
            self._headers,
            body,
            self.started,
            parser.should_keep_alive(),
        )
        if self._busy or self._ahead:
            self._ahead.append(request)
            if len(self._ahead) >= AHEAD_MAX:
                self._transport.pause_reading()
        else:
            self._begin(request)

    # Answering.

    def _begin(self, request: _Request) -> None:
        self._busy = True
        self._keep_alive = request.keep_alive
        self._bodyless = request.method == b"HEAD"
        self.started = request.started
        app = self._app
        path = request.target.decode("latin-1")
        route = app.route(path)
        if route is None:
            path = _path_of(request.target)
            application = app.mounted(path)
            if application is not None:
                self._begin_stream(application, path, request)
                return
            route = app.route(path)
        if route is not None and route.post is not None and request.method == b"POST":
            self._begin_exchange(route, request)
        else:
            self.reply(app.answer_from_memory(request.method.decode("latin-1"), path, route))

    def _begin_exchange(self, route: Route, request: _Request) -> None:
        patience = caller_patience(request.headers, self._timeout)
        refusal = self._app.refusal(route.protocol, patience)
        if refusal is not None:
            self.reply(refusal)
            return
        self._exchange = exchange = _HttpExchange(self, route.protocol, request.headers, patience)
        assert route.post is not None
        self._app.start(exchange, route.post, request.body)

    def _begin_stream(self, application: Asgi, path: str, request: _Request) -> None:
        self._stream = _Stream(self, path, request)
        self._stream.task = self._connections.loop.create_task(self._stream.run(application))

    def reply(self, answer: Answer) -> None:
        """Send a whole answer, and go on with the next request."""
        self._exchange = None
        if self._closing:
            return
        last = not self._keep_alive or self._app.draining
        head = _head_of(answer, last=last)
        if self._bodyless:
            self._transport.write(head)
        elif not answer.tail and len(answer.body) <= JOIN_BYTES_MAX:
            self._transport.write(head + answer.body)
        else:
            self._transport.writelines([head, answer.body, *answer.tail])
        self._answered(last=last)

    def _answered(self, *, last: bool) -> None:
        self._busy = False
        self._idle_since = self._connections.loop.time()
        if last:
            self._closing = True
            self._transport.close()
        elif self._ahead:
            # Not from within: a row of requests answered from memory would climb up the stack.
            self._connections.loop.call_soon(self._next)

    def _next(self) -> None:
        if self._closing or self._busy or not self._ahead:
            return
        if len(self._ahead) == AHEAD_MAX:
            self._transport.resume_reading()
        self._begin(self._ahead.popleft())

    def _closing_after_answer(self) -> None:
        self._keep_alive = False
        self._ahead.clear()
        if not self._busy:
            self._closing = True
            self._transport.close()

    def _refuse(self, answer: Answer) -> None:
        """Answer what cannot be handed over, and close. Answers that are due are given up: a caller that
        sends this does not tell them apart any more."""
        self.arriving = self._head = False
        if self._exchange is not None:
            self._app.leave(self._exchange)
            self._exchange = None
        if self._stream is not None:
            self._stream.leave()
        self._ahead.clear()
        self._closing = True
        if answer.status == 413:
            self._app.metrics.on_request("http", answer.status, 0.0)
        self._transport.write(_head_of(answer, last=True) + answer.body)
        if answer.status == 413:
            self._discarding = True
            self._size = 0
            self.started = self._connections.loop.time()
            if self._transport.can_write_eof():
                self._transport.write_eof()
        else:
            self._transport.close()

    def _discard(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > DISCARD_BYTES_MAX:
            self._transport.close()

    # Taking too long.

    def check(self, now: float) -> None:
        if self._discarding:
            if now - self.started > DISCARD_SECONDS_MAX:
                self._transport.close()
        elif self.arriving:
            if now - self.started > self._timeout and not self._busy:
                limit = f"{self._timeout:g} s"
                self._refuse(
                    error_answer(408, f"the request did not arrive within the time limit of {limit}")
                )
        elif not self._busy and not self._ahead and now - self._idle_since > KEEP_ALIVE_SECONDS:
            self._transport.close()

    def shut_down(self) -> None:
        if self._busy:
            self._keep_alive = False
        else:
            self._closing = True
            self._transport.close()

    # Streams.

    def stream_start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head of a streamed answer; what follows is written by `stream_write`."""
        last = not self._keep_alive or self._app.draining
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b""))]
        lines += [b"%b: %b\r\n" % header for header in headers]
        if last:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        self._transport.write(b"".join(lines))
        self._keep_alive = not last

    async def stream_write(self, data: bytes) -> None:
        """Send a piece, and wait while the caller reads too slowly."""
        if not self._closing:
            self._transport.write(data)
            await self._writable.wait()

    def stream_end(self, *, whole: bool) -> None:
        """The streamed answer is complete; one that broke off closes the connection."""
        self._stream = None
        if not self._closing:
            self._answered(last=not self._keep_alive or not whole)


class _Stream:
    """One request to an ASGI application, and its answer."""

    def __init__(self, connection: HttpConnection, path: str, request: _Request) -> None:
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._request = request
        self._path = path
        self._body: bytes | None = request.body
        self._left = asyncio.Event()
        self._started = False
        self._chunked = False
        self._trailing = False
        self._whole = False

    def leave(self) -> None:
        """The caller went away; the application hears it from `receive`."""
        self._left.set()

    async def run(self, application: Asgi) -> None:
        """Let the application answer; whatever it raises becomes a 500, or the end of the connection."""
        target, _, query = self._request.target.partition(b"?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self._request.method.decode("latin-1"),
            "scheme": "http",
            "path": self._path,
            "raw_path": target,
            "query_string": query,
            "root_path": "",
            "headers": self._request.headers,
            "client": None,
            "server": None,
        }
        try:
            await application(scope, self._receive, self._send)
        except Exception as error:  # noqa: BLE001 - it must not take the connection's loop down
            await self._fail(error)
        finally:
            self._connection.stream_end(whole=self._whole)

    async def _fail(self, error: Exception) -> None:
        answer = self._connection._app.failure(error)
        if self._started:
            return
        headers = [*answer.headers, (b"content-length", b"%d" % answer.length)]
        with contextlib.suppress(Exception):
            await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await self._send({"type": "http.response.body", "body": bytes(answer.body)})

    async def _receive(self) -> Mapping[str, Any]:
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            self._started = True
            self._chunked = all(name.lower() != b"content-length" for name, _ in headers)
            self._trailing = self._chunked and bool(message.get("trailers"))
            if self._chunked:
                headers.append((b"transfer-encoding", b"chunked"))
            self._connection.stream_start(message["status"], headers)
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            more = message.get("more_body", False)
            data = b"%x\r\n%b\r\n" % (len(body), body) if self._chunked and body else body
            if not more and not self._trailing:
                self._whole = True
                data += b"0\r\n\r\n" if self._chunked else b""
            if data:
                await self._connection.stream_write(data)
        elif message["type"] == "http.response.trailers" and self._trailing:
            self._whole = True
            lines = b"".join([b"%b: %b\r\n" % header for header in message["headers"]])
            await self._connection.stream_write(b"0\r\n%b\r\n" % lines)


class _Refused(Exception):
    """What arrives cannot be taken."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message)
        self.answer = answer


class Glance(NamedTuple):
    """What can be seen of a request without parsing it; `patience` is infinite when it names none."""

    path: str
    body_bytes: int
    patience: float


def glance_at(data: bytes, seen: dict[bytes, Glance | None]) -> Glance | None:
    """Look at what has just been received, where a message begins: None unless it is one whole, plain POST.

    Plain: HTTP/1.1 with a length, nothing about how it is sent that would need a closer look, and nothing
    behind it. Anything else is for the parser. `seen` remembers heads: callers repeat theirs, and what a
    gateway adds differs in its request id only.
    """
    end = data.find(b"\r\n\r\n", 0, HURRIED_HEAD_BYTES_MAX)
    if end < 0:
        return None
    at = data.find(_ID_NAME, 0, end)
    if at < 0:
        head = data[: end + 2]
    else:
        after = data.find(b"\r", at + 2)
        if data.find(b"\n", at + 2, after) >= 0:
            return None
        head = data[:at] + data[after : end + 2]
    try:
        glance = seen[head]
    except KeyError:
        if len(seen) >= HEADS_SEEN_MAX:
            seen.clear()
        glance = seen[head] = _look_at(head)
    return glance if glance is not None and len(data) == end + 4 + glance.body_bytes else None


def _look_at(head: bytes) -> Glance | None:
    """What a head says, up to and including the end of its last line."""
    if not head.startswith(b"POST /"):
        return None
    lower = head.lower()
    space = lower.find(b" ", 5)
    if lower[space : space + 11] != b" http/1.1\r\n" or any(word in lower for word in _NOT_PLAIN):
        return None
    if _CONNECTION_NAME in lower and _KEPT_ALIVE not in lower:
        return None
    at = lower.find(_LENGTH_NAME)
    if at < 0 or lower.count(_LENGTH_NAME[2:]) != 1:
        return None
    length = lower[at + len(_LENGTH_NAME) : lower.find(b"\r", at + 2)].strip()
    if not length.isdigit() or len(length) > LENGTH_DIGITS_MAX:
        return None
    patience = math.inf
    at = lower.find(_PATIENCE_NAME)
    if at >= 0:
        word = lower[at + len(_PATIENCE_NAME) : lower.find(b"\r", at + 2)].strip()
        patience = caller_patience([(EXPECTED_TIMEOUT_HEADER, word)], math.inf)
    return Glance(head[5:space].decode("latin-1"), int(length), patience)


@lru_cache(maxsize=RETRY_AFTER_SECONDS_MAX)
def _whole(refusal: Answer) -> bytes:
    """A refusal as it is sent: the same few again and again."""
    return _head_of(refusal, last=False) + refusal.body


def _head_of(answer: Answer, *, last: bool) -> bytes:
    lines = b"".join([b"%b: %b\r\n" % header for header in answer.headers])
    close = b"connection: close\r\n" if last else b""
    return b"HTTP/1.1 %d %b\r\n%bcontent-length: %d\r\n%b\r\n" % (
        answer.status,
        _REASONS.get(answer.status, b""),
        lines,
        answer.length,
        close,
    )


def _path_of(target: bytes) -> str:
    """The path of a request target: without scheme, host and query, and unquoted."""
    if not target.startswith(b"/"):
        _, found, rest = target.partition(b"://")
        slash = rest.find(b"/")
        target = rest[slash:] if found and slash >= 0 else b"/"
    return unquote_to_bytes(target.partition(b"?")[0]).decode("utf-8", "replace")
