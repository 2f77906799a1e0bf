"""The ASGI application: every route of a model server on one page.

Hot paths are looked up in a table made once, so that a prediction costs one dictionary access.
Ready means that the model has answered a probe and the server is not draining. Whatever a caller
sends, the answer is JSON with an `error` sentence and a 4xx; 5xx are ours: 503 while not ready,
504 after the time limit, 500 for a failure inside the model that the input does not explain.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from inferplane.modelserver import v1, v2
from inferplane.modelserver.batcher import Batcher
from inferplane.modelserver.config import ServerConfig
from inferplane.modelserver.errors import BadInput, NotProcessed, RequestError, TooLarge, short
from inferplane.modelserver.frameworks.base import Model, Signature
from inferplane.modelserver.metrics import Metrics
from inferplane.version import VERSION

log = logging.getLogger(__name__)

Scope: TypeAlias = Mapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]

#: Bodies above this are parsed off the event loop. (The JSON decoder itself holds the interpreter's
#: lock, so a huge body still delays others by its decode time, about 1 s per 100 MB.)
LARGE_BODY_BYTES = 256 * 1024
#: How much of an oversized body is read and thrown away, so that the caller gets to read the 413.
DISCARD_BYTES_MAX = 256 * 1024 * 1024
DISCARD_SECONDS_MAX = 10.0
#: A batch that computes longer than the request time limit and this is taken for stuck.
STALL_MARGIN_SECONDS = 30.0
RETRY_AFTER_SECONDS = 1
#: Errors of a model that mean the input, once the model has shown that it works.
INPUT_ERRORS = (ValueError, TypeError, LookupError, AttributeError)

JSON_TYPE = (b"content-type", b"application/json")
BINARY_TYPE = (b"content-type", b"application/octet-stream")
TEXT_TYPE = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
CLOSE = (b"connection", b"close")
NOT_PROCESSED: Headers = (
    (b"retry-after", str(RETRY_AFTER_SECONDS).encode()),
    (b"x-inferplane-not-processed", b"1"),
)
_ERROR = msgspec.json.Encoder()
_PATH_OF_MODEL = re.compile(
    r"/v[12]/models?/(?P<name>[^/:]+)(?:/versions/(?P<version>[^/]+))?(?P<rest>[/:].*)?"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole response."""

    status: int
    body: bytes
    headers: Headers = (JSON_TYPE,)


@dataclass(frozen=True, slots=True)
class Serving:
    """A model that has answered its probe, with the batcher in front of it."""

    model: Model
    batcher: Batcher

    @property
    def signature(self) -> Signature:
        return self.model.signature


_Get = Callable[[], Answer]
_Infer = Callable[[Serving, bytes, Scope], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class _Route:
    """What one path does: a GET answered from memory, or a POST that computes."""

    get: _Get | None = None
    post: _Infer | None = None
    protocol: str = ""


class App:
    """The application. `serving` is set when the model is ready; `draining` when the end has begun."""

    def __init__(self, config: ServerConfig) -> None:
        self.serving: Serving | None = None
        self.draining = False
        self.in_flight = 0
        self.metrics = Metrics()
        self._config = config
        self._routes = self._make_routes()

    @property
    def ready(self) -> bool:
        """Whether a prediction sent now would be computed."""
        return self.serving is not None and not self.draining and not self._stalled()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"a model server speaks HTTP only, not {scope['type']}")
        self.in_flight += 1
        try:
            await self._serve(scope, receive, send)
        finally:
            self.in_flight -= 1

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        route = self._routes.get(path) or self._routes.get(_tidy_path(path))
        if route is None:
            await self._reply(send, self._nothing_at(_tidy_path(path)))
            return
        method = scope["method"]
        if method == "POST" and route.post is not None:
            await self._infer(route, scope, receive, send)
        elif method in ("GET", "HEAD") and route.get is not None:
            await self._reply(send, route.get())
        else:
            allowed = b"POST" if route.get is None else b"GET, HEAD"
            await self._reply(
                send,
                _error(
                    405,
                    f"{method} is not possible here; use {allowed.decode()}",
                    (JSON_TYPE, (b"allow", allowed)),
                ),
            )

    async def _infer(self, route: _Route, scope: Scope, receive: Receive, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            async with asyncio.timeout(self._config.request_timeout_seconds):
                answer = await self._compute(route, scope, receive)
        except TooLarge as error:
            answer = _error(error.status, error.message)
            self.metrics.on_request(route.protocol, answer.status, clock() - started)
            await self._reply_and_discard(receive, send, answer)
            return
        except TimeoutError:
            limit = self._config.request_timeout_seconds
            answer = _error(504, f"the request took longer than the time limit of {limit:g} s")
        if answer is None:
            return  # the caller went away before its request was complete
        self.metrics.on_request(route.protocol, answer.status, clock() - started)
        await self._reply(send, answer)

    async def _compute(self, route: _Route, scope: Scope, receive: Receive) -> Answer | None:
        """The answer to a POST, or None when its body never arrived whole. Raises TooLarge."""
        assert route.post is not None
        try:
            serving = self._admit()
            body = await _read_body(scope, receive, self._config.max_request_bytes)
            if body is None:
                return None
            return await route.post(serving, body, scope)
        except TooLarge:
            raise
        except NotProcessed as error:
            return _error(error.status, error.message, (JSON_TYPE, *NOT_PROCESSED))
        except RequestError as error:
            return _error(error.status, error.message)
        except MemoryError:
            return _error(503, "the model ran out of memory on this request; send fewer rows at a time")
        except INPUT_ERRORS as error:
            return _error(400, f"the model does not take this input: {short(error)}")
        except Exception as error:
            # A model may raise anything; it must not take the server down, and the log keeps the trace.
            log.exception("the model failed on a request")
            return _error(500, f"the model failed: {type(error).__name__}: {short(error)}")

    def _admit(self) -> Serving:
        if self.draining:
            raise NotProcessed("this server is shutting down; send the request again")
        if self.serving is None:
            raise NotProcessed(f"Model with name {self._config.name} is not ready.")
        return self.serving

    # Predictions.

    async def _predict_v1(self, serving: Serving, body: bytes, _scope: Scope) -> Answer:
        signature, probabilities = serving.signature, self._config.wants_probabilities
        if len(body) > LARGE_BODY_BYTES:
            work = await asyncio.to_thread(v1.parse, body, signature, probabilities=probabilities)
        else:
            work = v1.parse(body, signature, probabilities=probabilities)
        outputs = await serving.batcher.submit(work)
        if len(body) > LARGE_BODY_BYTES:
            return Answer(200, await asyncio.to_thread(v1.render, outputs, work))
        return Answer(200, v1.render(outputs, work))

    async def _infer_v2(self, serving: Serving, body: bytes, scope: Scope, name: str) -> Answer:
        length = _json_length(scope)
        if len(body) > LARGE_BODY_BYTES:
            request = await asyncio.to_thread(v2.parse, body, length, serving.signature)
        else:
            request = v2.parse(body, length, serving.signature)
        outputs = await serving.batcher.submit(request.work)
        content, json_length = v2.render(outputs, request, name, self._config.version)
        if json_length is None:
            return Answer(200, content)
        return Answer(200, content, (BINARY_TYPE, (v2.LENGTH_HEADER.encode(), str(json_length).encode())))

    async def _explain_v1(self, _serving: Serving, _body: bytes, _scope: Scope) -> Answer:
        return _error(501, "this model has no explainer; use :predict")

    # Everything that is answered from memory.

    def _make_routes(self) -> dict[str, _Route]:
        version = self._config.version
        models = _json(200, {"models": [self._config.name]})
        server = _json(200, {"name": "inferplane", "version": VERSION, "extensions": list(v2.EXTENSIONS)})
        routes = {
            "/": _Route(get=lambda: _json(200, {"status": "alive"})),
            "/metrics": _Route(get=self._metrics_text),
            "/v1/models": _Route(get=lambda: models),
            "/v2": _Route(get=lambda: server),
            "/v2/health/live": _Route(get=self._live),
            "/v2/health/ready": _Route(get=lambda: _json(200 if self.ready else 503, {"ready": self.ready})),
            "/v2/models": _Route(get=lambda: models),
        }
        for name in sorted(self._config.names):
            predict = _Route(post=self._predict_v1, protocol="v1")
            infer = _Route(post=_with_name(self._infer_v2, name), protocol="v2")
            ready = _Route(get=_getter(self._model_ready, name))
            about = _Route(get=_getter(self._metadata, name))
            for prefix in ("/v1/models/", "/v1/model/"):
                routes[f"{prefix}{name}"] = ready
                routes[f"{prefix}{name}:predict"] = predict
                routes[f"{prefix}{name}:explain"] = _Route(post=self._explain_v1, protocol="v1")
            for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"):
                routes[path] = about
                routes[f"{path}/ready"] = ready
                routes[f"{path}/infer"] = infer
        return routes

    def _model_ready(self, name: str) -> Answer:
        if self.ready:
            return _json(200, {"name": name, "ready": True})
        return _error(503, f"Model with name {name} is not ready.")

    def _metadata(self, name: str) -> Answer:
        if self.serving is None:
            return _error(503, f"Model with name {name} is not ready.")
        model = self.serving.model
        return _json(200, v2.metadata(name, self._config.version, model.platform, model.signature))

    def _live(self) -> Answer:
        stalled = self._stalled()
        return _json(503 if stalled else 200, {"live": not stalled})

    def _metrics_text(self) -> Answer:
        queued = self.serving.batcher.queued_rows if self.serving is not None else 0
        text = self.metrics.render(
            self._config.name, ready=self.ready, in_flight=self.in_flight, queued_rows=queued
        )
        return Answer(200, text.encode(), (TEXT_TYPE,))

    def _nothing_at(self, path: str) -> Answer:
        match = _PATH_OF_MODEL.fullmatch(path)
        if match is None:
            return _error(404, f"there is nothing at {path[:200]}")
        name = match["name"]
        if name not in self._config.names:
            return _error(404, f"Model with name {name} does not exist.")
        if match["version"] not in (None, self._config.version):
            return _error(
                404,
                f"Model with name {name} has no version {match['version']}; it has version {self._config.version}.",
            )
        return _error(
            404,
            f"there is nothing at {path[:200]}; predict at /v1/models/{name}:predict or /v2/models/{name}/infer",
        )

    def _stalled(self) -> bool:
        if self.serving is None:
            return False
        return (
            self.serving.batcher.busy_seconds() > self._config.request_timeout_seconds + STALL_MARGIN_SECONDS
        )

    # Sending.

    async def _reply(self, send: Send, answer: Answer, *, more: bool = False) -> None:
        headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
        if self.draining or more:
            headers.append(CLOSE)
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body, "more_body": more})

    async def _reply_and_discard(self, receive: Receive, send: Send, answer: Answer) -> None:
        """Answer early, then throw the rest of the body away for a while.

        Closing at once would reset the connection of a caller who is still sending, and the
        answer would be lost on the way.
        """
        await self._reply(send, answer, more=True)
        left = DISCARD_BYTES_MAX
        try:
            async with asyncio.timeout(DISCARD_SECONDS_MAX):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body", False):
                        break
        except TimeoutError:
            pass  # the caller is too slow to be waited for
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """The whole body; None when the caller went away. Raises TooLarge before buffering what is over `limit`."""
    declared = _header(scope, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is larger than the limit of {limit} bytes")


def _json_length(scope: Scope) -> int | None:
    text = _header(scope, v2.LENGTH_HEADER.encode())
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise BadInput(f"the header {v2.LENGTH_HEADER} must be a number of bytes")
    return int(text)


def _header(scope: Scope, name: bytes) -> bytes | None:
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


def _tidy_path(path: str) -> str:
    """The path without doubled and trailing slashes."""
    return "/" + "/".join(part for part in path.split("/") if part)


def _getter(answer: Callable[[str], Answer], name: str) -> _Get:
    return lambda: answer(name)


def _with_name(infer: Callable[[Serving, bytes, Scope, str], Awaitable[Answer]], name: str) -> _Infer:
    return lambda serving, body, scope: infer(serving, body, scope, name)


def _json(status: int, value: object) -> Answer:
    return Answer(status, _ERROR.encode(value))


def _error(status: int, message: str, headers: Headers = (JSON_TYPE,)) -> Answer:
    return Answer(status, _ERROR.encode({"error": message}), headers)
