"""HTTP/2 for gRPC's unary calls, on the socket that HTTP/1.1 is spoken on.

`h2` keeps the protocol's state (frames, header compression, flow control); this module maps its events to
exchanges and exchanges to frames. gRPC's own C core is not used: its threads do not survive a fork, and
servers here are forks of a warm parent. Nothing of this is imported before the first such connection.

Limits: streams and unread bytes of a connection, a message's size, the time it takes to arrive, idle time,
and streams that a client cancels without ever reading an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Iterator
from typing import cast
from urllib.parse import quote

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from inferplane.modelserver.exchange import Answer, Exchange, caller_patience
from inferplane.modelserver.grpc_v2 import Methods
from inferplane.modelserver.http import KEEP_ALIVE_SECONDS, Connection, Connections

STREAMS_MAX = 256
#: How much a client may send on a stream before it needs to hear from us; large tensors arrive quickly.
WINDOW_BYTES = 1024 * 1024
#: Bytes of unfinished messages that one connection may hold, in messages of the largest size.
UNFINISHED_MESSAGES_MAX = 4
#: A client that has cancelled this many streams more than it was answered is sent away.
RESETS_MAX = 1000
PREFIX_BYTES = 5

OK = 0
#: gRPC's status for each of ours.
STATUSES = {400: 3, 404: 5, 408: 4, 413: 8, 429: 8, 431: 8, 499: 1, 501: 12, 503: 14, 504: 4}
INTERNAL = 13
UNIMPLEMENTED = 12
TIMEOUT_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
TIMEOUT_DIGITS_MAX = 8

_CONTENT = (b"content-type", b"application/grpc")
_ACCEPTED = (b"grpc-accept-encoding", b"identity,gzip")


class _Stream:
    """One call that arrives, or whose answer is being written."""

    __slots__ = ("body", "exchange", "finishing", "headers", "path", "pending", "started", "trailers")

    def __init__(self, path: str, headers: list[tuple[bytes, bytes]], started: float) -> None:
        self.path = path
        self.headers = headers
        self.started = started
        self.body: bytearray | None = bytearray()
        self.exchange: Exchange | None = None
        self.pending = memoryview(b"")
        self.trailers: list[tuple[bytes, bytes]] = []
        self.finishing = False


class _GrpcExchange(Exchange):
    """A call that came over HTTP/2."""

    __slots__ = ("connection", "stream_id")

    def __init__(
        self,
        connection: Http2Connection,
        stream_id: int,
        headers: list[tuple[bytes, bytes]],
        started: float,
        patience: float,
    ) -> None:
        super().__init__("grpc", headers, started, patience)
        self.connection = connection
        self.stream_id = stream_id

    def finish(self, answer: Answer) -> None:
        self.connection.reply(self.stream_id, answer)


class Http2Connection(asyncio.Protocol, Connection):
    """One connection with its streams."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._app = connections.app
        self._limit = connections.app.config.max_request_bytes
        self._timeout = connections.app.config.request_timeout_seconds
        self._methods = Methods(connections.app)
        self._transport = cast(asyncio.Transport, None)
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None)
        )
        self._streams: dict[int, _Stream] = {}
        self._unfinished = 0
        self._resets = 0
        self._idle_since = connections.loop.time()
        self._leaving = False
        self._flushing = False

    @property
    def arriving(self) -> int:  # type: ignore[override] # a count here, 0 or 1 there
        """Calls that have begun to arrive and are not whole."""
        return sum(stream.body is not None for stream in self._streams.values())

    # What the event loop says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)
        self._h2.initiate_connection()
        self._h2.update_settings(
            {
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS_MAX,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
                h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 0,
            }
        )
        self._h2.increment_flow_control_window(WINDOW_BYTES * UNFINISHED_MESSAGES_MAX)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why does not matter
        self._connections.remove(self)
        self._leaving = True
        for stream in self._streams.values():
            if stream.exchange is not None:
                self._app.leave(stream.exchange)
        self._streams.clear()

    def data_received(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._flush()  # the farewell that h2 has written
            self._transport.close()
            return
        for event in events:
            with self._closed_meanwhile(event_stream(event)):
                self._heed(event)
        self._flush()

    def resume_writing(self) -> None:
        self._write_pending()

    # What the protocol says.

    def _heed(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._open(event)
        elif isinstance(event, h2.events.DataReceived):
            self._take(event)
        elif isinstance(event, h2.events.StreamEnded):
            self._ended(event.stream_id or 0)
        elif isinstance(event, h2.events.StreamReset):
            self._forget(event.stream_id or 0)
            self._resets += 1
            if self._resets > RESETS_MAX:
                self._h2.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                self._flush()
                self._transport.close()
        elif isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
            self._write_pending()
        elif isinstance(event, h2.events.ConnectionTerminated):
            self._leaving = True
            self._close_when_done()

    def _open(self, event: h2.events.RequestReceived) -> None:
        headers = cast(list[tuple[bytes, bytes]], list(event.headers or ()))
        named = dict(headers)
        path = named.get(b":path", b"").decode("latin-1").partition("?")[0]
        stream_id = event.stream_id or 0
        stream = self._streams[stream_id] = _Stream(path, headers, self._connections.loop.time())
        if not named.get(b"content-type", b"").startswith(b"application/grpc"):
            stream.body = None
            self._answer_plainly(stream_id)
        elif named.get(b":method") != b"POST":
            self._refuse(stream_id, UNIMPLEMENTED, "gRPC calls are POST requests")

    def _answer_plainly(self, stream_id: int) -> None:
        text = b'{"error":"HTTP/2 carries gRPC here; send everything else over HTTP/1.1"}'
        headers = [(b":status", b"415"), (b"content-type", b"application/json")]
        self._h2.send_headers(stream_id, headers)
        self._send_body(stream_id, text, [])

    def _take(self, event: h2.events.DataReceived) -> None:
        stream_id = event.stream_id or 0
        self._h2.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
        stream = self._streams.get(stream_id)
        if stream is None or stream.body is None:
            return
        stream.body += event.data or b""
        self._unfinished += len(event.data or b"")
        if len(stream.body) > self._limit + PREFIX_BYTES:
            self._refuse(
                stream_id, STATUSES[413], f"the message is larger than the limit of {self._limit} bytes"
            )
        elif self._unfinished > self._limit * UNFINISHED_MESSAGES_MAX:
            self._refuse(stream_id, STATUSES[503], "too many unfinished messages on this connection")

    def _ended(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.body is None:
            return
        body = self._whole(stream)
        named = dict(stream.headers)
        patience = min(
            caller_patience(stream.headers, self._timeout), _timeout_of(named.get(b"grpc-timeout", b""))
        )
        message = self._unwrapped(stream_id, body, named.get(b"grpc-encoding", b"identity"))
        if message is None:
            return
        stream.exchange = _GrpcExchange(self, stream_id, stream.headers, stream.started, patience)
        self._methods.call(stream.path, stream.exchange, message)

    def _unwrapped(self, stream_id: int, body: bytes, encoding: bytes) -> bytes | None:
        """The message within gRPC's envelope; None after refusing what is none."""
        length = int.from_bytes(body[1:PREFIX_BYTES], "big")
        if len(body) != PREFIX_BYTES + length or body[0] > 1:
            self._refuse(stream_id, STATUSES[400], "the call must carry one whole message")
            return None
        message = body[PREFIX_BYTES:]
        if body[0] == 0:
            return message
        if encoding != b"gzip":
            self._refuse(stream_id, UNIMPLEMENTED, "messages may be compressed with gzip only")
            return None
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            message = unpacker.decompress(message, self._limit + 1)
        except zlib.error:
            self._refuse(stream_id, STATUSES[400], "the compressed message cannot be read")
            return None
        if len(message) > self._limit:
            self._refuse(
                stream_id, STATUSES[413], f"the message is larger than the limit of {self._limit} bytes"
            )
            return None
        return message

    # Answering.

    def reply(self, stream_id: int, answer: Answer) -> None:
        """Send the answer to one call, at once or as its reader makes room."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.exchange = None
        with self._closed_meanwhile(stream_id):
            self._reply(stream_id, answer)

    def _reply(self, stream_id: int, answer: Answer) -> None:
        if answer.status != 200:
            status = STATUSES.get(answer.status, INTERNAL)
            extra = [header for header in answer.headers if header[0] != b"content-type"]
            self._refuse(stream_id, status, answer.message, extra)
            return
        self._resets = max(0, self._resets - 1)
        self._h2.send_headers(stream_id, [(b":status", b"200"), _CONTENT, _ACCEPTED, *answer.headers])
        body = b"".join((b"\0", answer.length.to_bytes(4, "big"), answer.body, *answer.tail))
        self._send_body(stream_id, body, [(b"grpc-status", b"0")])
        self._flush_soon()

    def _refuse(
        self, stream_id: int, status: int, message: str, extra: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        """End a call with an error and no message."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        unfinished = stream.body is not None
        headers = [
            (b":status", b"200"),
            _CONTENT,
            *(extra or ()),
            (b"grpc-status", b"%d" % status),
            (b"grpc-message", quote(message, safe=" !#$&'()*+,/:;=?@[]~\"").encode()),
        ]
        self._h2.send_headers(stream_id, headers, end_stream=True)
        if unfinished:
            self._whole(stream)
            # The rest of it is not wanted; if it has come already, there is nothing to stop.
            with contextlib.suppress(h2.exceptions.StreamClosedError):
                self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)
        self._done(stream_id)
        self._flush_soon()

    def _send_body(self, stream_id: int, body: bytes, trailers: list[tuple[bytes, bytes]]) -> None:
        stream = self._streams[stream_id]
        stream.pending = memoryview(body)
        stream.trailers = trailers
        stream.finishing = True
        self._write_stream(stream_id, stream)

    def _write_stream(self, stream_id: int, stream: _Stream) -> None:
        """Write what the reader's window has room for; the trailers follow the last byte."""
        connection = self._h2
        while stream.pending:
            room = min(connection.local_flow_control_window(stream_id), connection.max_outbound_frame_size)
            if room <= 0:
                return
            piece, stream.pending = stream.pending[:room], stream.pending[room:]
            last = not stream.pending and not stream.trailers
            connection.send_data(stream_id, bytes(piece), end_stream=last)
        if stream.trailers:
            connection.send_headers(stream_id, stream.trailers, end_stream=True)
        self._done(stream_id)

    def _write_pending(self) -> None:
        for stream_id, stream in list(self._streams.items()):
            if stream.finishing:
                with self._closed_meanwhile(stream_id):
                    self._write_stream(stream_id, stream)
        self._flush()

    def _done(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)
        self._idle_since = self._connections.loop.time()
        if self._leaving:
            self._close_when_done()

    def _forget(self, stream_id: int) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return
        self._whole(stream)
        if stream.exchange is not None:
            self._app.leave(stream.exchange)

    @contextlib.contextmanager
    def _closed_meanwhile(self, stream_id: int) -> Iterator[None]:
        """A client may end a stream, or the connection, while something is being sent on it."""
        try:
            yield
        except (h2.exceptions.ProtocolError, KeyError):
            self._forget(stream_id)

    def _whole(self, stream: _Stream) -> bytes:
        """Take a stream's body out of it."""
        body, stream.body = bytes(stream.body or b""), None
        self._unfinished -= len(body)
        return body

    def _flush_soon(self) -> None:
        """Write once for all answers of a batch."""
        if not self._flushing:
            self._flushing = True
            self._connections.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        data = self._h2.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    # Taking too long.

    def check(self, now: float) -> None:
        for stream_id, stream in list(self._streams.items()):
            with self._closed_meanwhile(stream_id):
                if stream.body is not None and now - stream.started > self._timeout:
                    limit = f"{self._timeout:g} s"
                    self._refuse(
                        stream_id, STATUSES[408], f"the call did not arrive within the time limit of {limit}"
                    )
                elif stream.finishing and now - stream.started > 2 * self._timeout:
                    self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)  # its reader does not read
                    self._done(stream_id)
        if not self._streams and now - self._idle_since > KEEP_ALIVE_SECONDS:
            self.shut_down()
        self._flush()

    def shut_down(self) -> None:
        if not self._leaving:
            self._leaving = True
            self._goodbye()
        self._close_when_done()

    def _goodbye(self) -> None:
        # Not h2's own close: that would forbid the answers that are due.
        self._flush()
        last = self._h2.highest_inbound_stream_id
        frame = b"\0\0\x08\x07\0\0\0\0\0" + last.to_bytes(4, "big") + b"\0\0\0\0"
        self._transport.write(frame)

    def _close_when_done(self) -> None:
        if not self._streams:
            self._flush()
            self._transport.close()


def event_stream(event: h2.events.Event) -> int:
    """The stream that an event is about, 0 for the connection."""
    stream_id = getattr(event, "stream_id", None)
    return stream_id if isinstance(stream_id, int) else 0


def _timeout_of(value: bytes) -> float:
    """Seconds of a `grpc-timeout`, infinite for none or nonsense."""
    digits, unit = value[:-1], TIMEOUT_UNITS.get(value[-1:])
    if unit is None or not digits.isdigit() or len(digits) > TIMEOUT_DIGITS_MAX:
        return float("inf")
    return int(digits) * unit
