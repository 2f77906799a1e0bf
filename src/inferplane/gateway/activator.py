"""Holds the requests of endpoints that are scaled to zero, has them woken, and forwards.

    Envoy → here → (held until a replica answers) → replica → back, both ways as a stream

The gateway sends requests here only while an endpoint has no replica; as soon as it has one, Envoy goes
straight to it. So this is about the first requests after a sleep. They do not wait for Envoy to learn of
the replica: the controller says its address, and the request goes there at once.

What is promised to a client: its request is sent to a replica at most once (a connection that could not be
made is no sending); it waits at most `X-Wake-Timeout` seconds; whoever cannot be served hears why, in JSON,
with `Retry-After`. A client that goes away takes its request along, held or forwarded.

gRPC is not forwarded from here, where answers have no trailers: once a replica answers, the gateway is told to look
for the route anew (a redirect that no client sees), and so again until it has the route to the replica.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from inferplane.gateway.config import parse_address
from inferplane.gateway.demand import Demand, Held, Standing
from inferplane.observability import get_logger

ENDPOINT_HEADER = b"x-inferplane-endpoint"
WAKE_TIMEOUT_HEADER = b"x-wake-timeout"
WAKE_SECONDS_DEFAULT = 60.0
WAKE_SECONDS_MAX = 600.0
HELD_MAX = 4096
HELD_MAX_PER_ENDPOINT = 1024
BODY_READ_AHEAD_BYTES_MAX = 256 * 1024  # of a held request; the rest stays with the client
CONNECT_SECONDS_MAX = 5.0
RECONNECT_SECONDS = 0.02  # between two tries to reach a replica that is just going
RETRY_AFTER_SECONDS = 1

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer"
    b" transfer-encoding upgrade expect http2-settings".split()
)
OURS = frozenset({ENDPOINT_HEADER, WAKE_TIMEOUT_HEADER})
GRPC_UNAVAILABLE = b"14"
WOKEN = "the endpoint has just been woken; send the request again"
ROUTE_HEADER = b"x-inferplane-route"
# Between two looks of the gateway; it learns of a replica within tens of milliseconds.
LOOK_AGAIN_SECONDS = 0.03

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

log = get_logger("gateway.activator")


SEND_AGAIN = "Send the request again in a moment."


class Refusal(Exception):
    """Why a request is not forwarded. `status` is HTTP's; `waking` says that it is on its way."""

    def __init__(
        self, status: int, reason: str, error: str, next_action: str = "", *, waking: bool = False
    ) -> None:
        super().__init__(error)
        self.status = status
        self.reason = reason
        self.error = error
        self.next_action = next_action
        self.waking = waking


class Activator:
    """An ASGI application; see the module's docstring."""

    def __init__(
        self,
        demand: Demand,
        *,
        held_max: int = HELD_MAX,
        held_max_per_endpoint: int = HELD_MAX_PER_ENDPOINT,
        wake_seconds: float = WAKE_SECONDS_DEFAULT,
    ) -> None:
        self._demand = demand
        self._held_max = held_max
        self._held_max_per_endpoint = held_max_per_endpoint
        self._wake_seconds = wake_seconds
        self._held: dict[str, int] = {}
        self._turn = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        body = _Incoming(receive)
        reading = asyncio.create_task(body.read())
        work = asyncio.create_task(self._answer(scope, body, send))
        leaving = asyncio.create_task(body.gone.wait())
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, leaving, reading):
                task.cancel()
            await asyncio.gather(work, leaving, reading, return_exceptions=True)

    async def _answer(self, scope: MutableMapping[str, Any], body: _Incoming, send: Send) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given = _first_of_each(headers)
        grpc = given.get(b"content-type", b"").startswith(b"application/grpc")
        try:
            uid = _uid_of(given, scope["raw_path"] if grpc else b"")
            deadline = asyncio.get_running_loop().time() + self._patience(given.get(WAKE_TIMEOUT_HEADER))
            with self._place(uid), self._demand.hold(uid) as held:
                await self._wait_and_forward(scope, held, deadline, body, send, grpc=grpc)
        except Refusal as refusal:
            await (_send_grpc_refusal if grpc else _send_refusal)(send, refusal)

    async def _wait_and_forward(
        self,
        scope: MutableMapping[str, Any],
        held: Held,
        deadline: float,
        body: _Incoming,
        send: Send,
        *,
        grpc: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            address = self._pick(await _address(held, deadline))
            if grpc:
                if _first_of_each(scope["headers"]).get(ENDPOINT_HEADER):  # not of a service that is routed
                    raise Refusal(503, "Woken", WOKEN)
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
                return await _send_elsewhere(scope, send)
            try:
                with self._demand.forward(held.uid):
                    async with _ask(address, scope, body) as answer:
                        held.release()
                        return await _pass_on(answer, send)
            except httpx.ConnectError as error:
                if loop.time() > deadline:
                    why = "its replica cannot be reached"
                    raise Refusal(503, "Unresponsive", why, SEND_AGAIN, waking=True) from error
                # It was on its way out. The controller says so soon, and what comes next.
                await asyncio.sleep(RECONNECT_SECONDS)

    def _pick(self, addresses: tuple[str, ...]) -> str:
        self._turn += 1
        return addresses[self._turn % len(addresses)]

    def _patience(self, given: bytes | None) -> float:
        """Seconds that the client is ready to wait."""
        if given is None:
            return self._wake_seconds
        with suppress(ValueError):
            seconds = float(given)
            if 0 <= seconds <= WAKE_SECONDS_MAX:
                return seconds
        limit = f"from 0 to {WAKE_SECONDS_MAX:.0f}"
        raise Refusal(400, "OutOfRange", f"X-Wake-Timeout must be a number of seconds {limit}")

    def _place(self, uid: str) -> _Place:
        """Raises Refusal where as many wait as may."""
        own = self._held.get(uid, 0)
        if own >= self._held_max_per_endpoint:
            raise Refusal(
                503, "TooManyWaiting", f"{own} requests wait for the endpoint to wake already", SEND_AGAIN
            )
        if sum(self._held.values()) >= self._held_max:
            raise Refusal(
                503,
                "TooManyWaiting",
                f"{self._held_max} requests wait for endpoints to wake already",
                SEND_AGAIN,
            )
        return _Place(self._held, uid)


@dataclass(frozen=True, slots=True)
class _Place:
    """One of the places of those that are held or forwarded."""

    taken: dict[str, int]
    uid: str

    def __enter__(self) -> None:
        self.taken[self.uid] = self.taken.get(self.uid, 0) + 1

    def __exit__(self, *_: object) -> None:
        left = self.taken[self.uid] - 1
        if left:
            self.taken[self.uid] = left
        else:
            del self.taken[self.uid]


def _uid_of(headers: dict[bytes, bytes], grpc_path: bytes) -> str:
    """From the gateway's header, or of gRPC from the beginning of the path."""
    named = headers.get(ENDPOINT_HEADER, b"") or _uid_in(grpc_path)
    if not named:
        raise Refusal(404, "NotFound", "the request names no endpoint")
    return named.decode("ascii", "replace")


def _first_of_each(headers: Headers) -> dict[bytes, bytes]:
    """The gateway's own come first: the server appends what stands behind the body, which is the client's."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found.setdefault(name, value)
    return found


def _uid_in(path: bytes) -> bytes:
    return path.split(b"/")[1] if path.count(b"/") > 1 else b""


async def _address(held: Held, deadline: float) -> tuple[str, ...]:
    """Wait for replicas that answer. Raises Refusal when time is over, or at once when waiting is no use."""
    loop = asyncio.get_running_loop()
    while True:
        standing = held.standing
        if standing is not None and standing.addresses:
            return standing.addresses
        if standing is not None and standing.hopeless:
            error = f"the endpoint cannot answer: {standing.message}"
            raise Refusal(503, standing.reason, error, _next_action(standing))
        try:
            async with asyncio.timeout_at(deadline):
                await held.changed()
        except TimeoutError:
            raise _expired(held.standing) from None
        if loop.time() > deadline and not (held.standing and held.standing.addresses):
            raise _expired(held.standing)


def _next_action(standing: Standing) -> str:
    """What to do about an endpoint that cannot answer, and when the platform itself tries again."""
    if standing.next_retry_at is None:
        return standing.next_action
    tried = f"It is tried again at {standing.next_retry_at:%Y-%m-%dT%H:%M:%SZ}."
    return f"{standing.next_action} {tried}".strip()


def _expired(standing: Standing | None) -> Refusal:
    message = f": {standing.message}" if standing is not None and standing.message else ""
    reason = standing.reason if standing is not None else "Starting"
    next_action = "Send the request again, or wait longer with X-Wake-Timeout."
    return Refusal(503, reason, f"the endpoint is waking{message}", next_action, waking=True)


class _Incoming:
    """The request's body, read ahead a little, so that a client that goes away is noticed meanwhile."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._chunks: list[bytes] = []
        self._size = 0
        self._complete = False
        self._moved = asyncio.Condition()
        self.gone = asyncio.Event()

    async def read(self) -> None:
        """Read until the client goes away."""
        while True:
            async with self._moved:
                await self._moved.wait_for(lambda: self._size < BODY_READ_AHEAD_BYTES_MAX)
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return
            async with self._moved:
                self._chunks.append(message.get("body", b""))
                self._size += len(self._chunks[-1])
                self._complete = not message.get("more_body", False)
                self._moved.notify_all()

    async def chunks(self) -> AsyncIterator[bytes]:
        """What has come and what comes, to the end."""
        while True:
            async with self._moved:
                await self._moved.wait_for(lambda: self._chunks or self._complete)
                taken, self._chunks = self._chunks, []
                complete = self._complete
                self._size = 0
                self._moved.notify_all()
            for chunk in taken:
                if chunk:
                    yield chunk
            if complete:
                return


class _Body(httpx.AsyncByteStream):
    def __init__(self, body: _Incoming) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body.chunks():
            yield chunk


@asynccontextmanager
async def _ask(
    address: str, scope: MutableMapping[str, Any], body: _Incoming
) -> AsyncIterator[httpx.Response]:
    """Send the request and give the head of the answer. Raises httpx.ConnectError before anything is sent."""
    parsed = parse_address(address)
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    origin = f"http://{host}:{parsed.port}" if not parsed.path else "http://replica"
    path = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    request = httpx.Request(
        scope["method"],
        httpx.URL(origin, raw_path=path),
        headers=_onward(scope["headers"]),
        stream=_Body(body),
        extensions={"timeout": {"connect": CONNECT_SECONDS_MAX, "pool": CONNECT_SECONDS_MAX}},
    )
    # A connection for this request alone: after the first requests nobody comes this way.
    transport = httpx.AsyncHTTPTransport(
        uds=parsed.path or None, verify=False, trust_env=False, limits=httpx.Limits(max_connections=1)
    )
    async with transport:
        answer = await _head_of(transport, request)
        try:
            yield answer
        finally:
            await answer.aclose()


async def _head_of(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
    try:
        return await transport.handle_async_request(request)
    except httpx.ConnectError:
        raise
    except httpx.TransportError as error:  # part of it may have been read: it is not sent twice
        why = "the model server ended before it answered"
        raise Refusal(503, "ServerExited", why, "Send the request again.") from error


def _onward(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The request's headers as a replica should see them."""
    kept = _end_to_end(headers)
    kept = [(name, value) for name, value in kept if name not in OURS]
    names = {name for name, _ in headers}
    if b"content-length" not in names and b"transfer-encoding" in names:
        kept.append((b"transfer-encoding", b"chunked"))
    return kept


def _end_to_end(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Without what concerns one connection only, and what `Connection` names as such."""
    known = [(name.lower(), value) for name, value in headers]
    named = {
        word.strip().lower() for name, value in known if name == b"connection" for word in value.split(b",")
    }
    return [(name, value) for name, value in known if name not in HOP_BY_HOP and name not in named]


async def _pass_on(answer: httpx.Response, send: Send) -> None:
    """The replica's answer to the client, piece by piece as it comes."""
    head = {"type": "http.response.start", "status": answer.status_code}
    await send({**head, "headers": _end_to_end(answer.headers.raw)})
    assert isinstance(answer.stream, httpx.AsyncByteStream)
    async for chunk in answer.stream:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _send_refusal(send: Send, refusal: Refusal) -> None:
    content: dict[str, Any] = {"error": refusal.error, "reason": refusal.reason}
    if refusal.next_action:
        content["nextAction"] = refusal.next_action
    if refusal.waking:
        content["waking"] = True
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refusal.status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_elsewhere(scope: MutableMapping[str, Any], send: Send) -> None:
    """Have the gateway look for the route anew. What it cannot send again reaches its client as a refusal that
    gRPC understands."""
    given = _first_of_each(scope["headers"])
    endpoint, _, rest = given.get(ROUTE_HEADER, b"").partition(b".")
    workspace, _, cluster = rest.partition(b".")
    named = endpoint + (b"." + cluster if cluster else b"")
    host = given.get(b"host", b"gateway")
    path = scope["raw_path"].removeprefix(b"/" + _uid_in(scope["raw_path"]))
    headers = [
        *_grpc_headers(WOKEN.encode()),
        (b"location", b"http://%b/serving/%b/%b%b" % (host, workspace, named, path)),
    ]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def _send_grpc_refusal(send: Send, refusal: Refusal) -> None:
    """gRPC says it in headers, with an answer that is otherwise empty."""
    message = refusal.error.encode("ascii", "replace").replace(b"%", b"%25").replace(b"\n", b" ")
    await send({"type": "http.response.start", "status": 200, "headers": _grpc_headers(message)})
    await send({"type": "http.response.body", "body": b""})


def _grpc_headers(message: bytes) -> list[tuple[bytes, bytes]]:
    """UNAVAILABLE, and when a client that may try again by itself should do so."""
    return [
        (b"content-type", b"application/grpc"),
        (b"grpc-status", GRPC_UNAVAILABLE),
        (b"grpc-message", message),
        (b"grpc-retry-pushback-ms", str(RETRY_AFTER_SECONDS * 1000).encode()),
    ]
