"""The application: every route of a model server on one page.

Hot paths are looked up in a table made once, so that a prediction costs one dictionary access.
Ready means that the model has answered a probe and the server is not draining. Whatever a caller
sends, the answer is JSON with an `error` sentence and a 4xx; 5xx are ours: 503 while not ready or with
a full queue, 504 after the time limit, 500 for a failure inside the model that the input does not
explain.

A prediction is a chain of plain calls, not a task: `start` parses and hands the work to the batcher, the
batcher calls back, `end` sends the answer. Only bodies so large that parsing them would hold up others
get a task of their own.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeAlias

from inferplane.modelserver import v1, v2
from inferplane.modelserver.batcher import QUEUE_FULL, RETRY_AFTER_SECONDS_MAX, Batcher, Result
from inferplane.modelserver.config import ServerConfig
from inferplane.modelserver.errors import BadInput, NotProcessed, RequestError, TooLarge, short
from inferplane.modelserver.exchange import (
    JSON_TYPE,
    Answer,
    Exchange,
    Headers,
    error_answer,
    json_answer,
)
from inferplane.modelserver.frameworks.base import Model, Outputs, Signature
from inferplane.modelserver.intake import Work
from inferplane.modelserver.metrics import Metrics
from inferplane.version import VERSION

if TYPE_CHECKING:
    from inferplane.modelserver.tracing import Tracer

log = logging.getLogger(__name__)

#: Bodies above this are parsed off the event loop. (The JSON decoder itself holds the interpreter's
#: lock, so a huge body still delays others by its decode time, about 1 s per 100 MB.)
LARGE_BODY_BYTES = 256 * 1024
#: A batch that computes longer than the request time limit and this is taken for stuck.
STALL_MARGIN_SECONDS = 30.0
#: Exchanges that are over their time are looked for this often at least, and at most.
SWEEP_SECONDS_MAX = 0.25
SWEEP_SECONDS_MIN = 0.005
#: Errors of a model that mean the input, once the model has shown that it works.
INPUT_ERRORS = (ValueError, TypeError, LookupError, AttributeError)

BINARY_TYPE = (b"content-type", b"application/octet-stream")
TEXT_TYPE = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
#: How many rows a prediction had, for whoever counts usage.
ROWS_HEADER = b"x-inferplane-rows"
#: Nothing was computed: the request may be sent elsewhere, or here again.
NOT_PROCESSED_MARK = (b"x-inferplane-not-processed", b"1")
# For Envoy: do not try again at once. The gateway gives each request to the replica that has the fewest, so
# when that one is full, the others are, and sending a request round only adds to what they refuse.
OVERLOADED_MARK = (b"x-envoy-ratelimited", b"true")
#: The status, in metrics and traces, of a request whose caller went away.
CALLER_GONE = 499
NOT_PROCESSED: Headers = ((b"retry-after", b"1"), NOT_PROCESSED_MARK)
_PATH_OF_MODEL = re.compile(
    r"/v[12]/models?/(?P<name>[^/:]+)(?:/versions/(?P<version>[^/]+))?(?P<rest>[/:].*)?"
)

Scope: TypeAlias = Mapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
#: Protocols that stream their answers are ASGI applications, mounted under a path.
Asgi: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Serving:
    """A model that has answered its probe, with the batcher in front of it."""

    model: Model
    batcher: Batcher

    @property
    def signature(self) -> Signature:
        return self.model.signature


#: What a protocol makes of a body: the work, and how its outputs become an answer.
Job: TypeAlias = tuple[Work, Callable[[Outputs], Answer]]
Read: TypeAlias = Callable[[Serving, bytes, Exchange], Job]
_Get = Callable[[], Answer]


@dataclass(frozen=True, slots=True)
class Route:
    """What one path does: a GET answered from memory, or a POST that computes."""

    get: _Get | None = None
    post: Read | None = None
    protocol: str = ""


class App:
    """The application. `serving` is set when the model is ready; `draining` when the end has begun."""

    def __init__(self, config: ServerConfig) -> None:
        self.serving: Serving | None = None
        self.draining = False
        self.metrics = Metrics()
        #: Makes spans of requests; None while nobody collects them.
        self.tracer: Tracer | None = None
        self.config = config
        self._probabilities = config.wants_probabilities
        #: Makes of this process's metrics those of all processes behind the address.
        self.add_up: Callable[[str], str] = lambda text: text
        self._mounts: dict[str, Asgi] = {}
        self._open: set[Exchange] = set()
        self._streams = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._routes = self._make_routes()

    @property
    def ready(self) -> bool:
        """Whether a prediction sent now would be computed."""
        return self.serving is not None and not self.draining and not self.stalled

    @property
    def stalled(self) -> bool:
        """Whether a batch has been computing for so long that it is taken for stuck."""
        if self.serving is None:
            return False
        limit = self.config.request_timeout_seconds + STALL_MARGIN_SECONDS
        return self.serving.batcher.busy_seconds() > limit

    @property
    def in_flight(self) -> int:
        """Requests that have arrived whole and are not answered."""
        return len(self._open) + self._streams

    # Finding out what a request wants.

    def route(self, path: str) -> Route | None:
        """What is at this path; doubled and trailing slashes do not matter."""
        return self._routes.get(path) or self._routes.get(_tidy_path(path))

    def mounted(self, path: str) -> Asgi | None:
        """The ASGI application that answers below this path, or None."""
        for prefix, application in self._mounts.items():
            if path.startswith(prefix):
                return application
        return None

    def mount(self, prefix: str, application: Asgi) -> None:
        """Let an ASGI application answer every path that starts with `prefix`. It gets whole bodies, may
        stream its answers, and is told by `http.disconnect` when its caller has gone away."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            self._streams += 1
            try:
                await application(scope, receive, send)
            finally:
                self._streams -= 1

        self._mounts[prefix] = counted

    def replace(self, path: str, route: Route) -> None:
        """Answer at this path in another way from now on."""
        self._routes[path] = route

    def answer_from_memory(self, method: str, path: str, route: Route | None) -> Answer:
        """The answer to everything that computes nothing, wrong paths and methods included."""
        if route is None:
            return self._nothing_at(_tidy_path(path))
        if route.get is not None and method in ("GET", "HEAD"):
            return route.get()
        allowed = "POST" if route.get is None else "GET, HEAD"
        return error_answer(
            405,
            f"{method} is not possible here; use {allowed}",
            (JSON_TYPE, (b"allow", allowed.encode())),
        )

    # Predictions.

    @property
    def crowded(self) -> bool:
        """Whether a prediction that comes now is likely to be refused."""
        serving = self.serving
        return serving is not None and serving.batcher.crowded and not self.draining

    def refusal(self, protocol: str, patience: float) -> Answer | None:
        """The answer to a prediction for which there is no room, or None when there may be some. Cheap,
        because a server that is offered too much says this more often than anything else: equal ones are one
        object."""
        serving = self.serving
        if serving is None or serving.batcher.room(patience):
            return None
        self.metrics.on_request(protocol, 503, 0.0)
        return _refusal(serving.batcher.retry_after)

    def start(self, exchange: Exchange, read: Read, body: bytes) -> None:
        """Compute what `body` asks for; `exchange.finish` gets the answer, now or later."""
        self._open.add(exchange)
        if self._sweeping is None:
            self._plan_sweep()
        if len(body) > LARGE_BODY_BYTES:
            task = asyncio.get_running_loop().create_task(self._start_large(exchange, read, body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        try:
            serving = self._admit()
            work, render = read(serving, body, exchange)
            exchange.entry = serving.batcher.add(
                work, exchange.deadline, partial(self._computed, exchange, render)
            )
        except Exception as error:  # noqa: BLE001 - a defect of ours must not take the connection down
            self.end(exchange, self.failure(error))

    def end(self, exchange: Exchange, answer: Answer) -> None:
        """Send the answer, unless there was one already or nobody waits for it."""
        if exchange.done:
            return
        exchange.done = True
        self._open.discard(exchange)
        if exchange.left:
            return
        seconds = asyncio.get_running_loop().time() - exchange.started
        self.metrics.on_request(exchange.protocol, answer.status, seconds)
        if self.tracer is not None:
            self.tracer.on_exchange(exchange, answer.status, answer.message)
        exchange.finish(answer)

    def leave(self, exchange: Exchange) -> None:
        """Its caller went away: what has not begun is not computed."""
        if self.tracer is not None and not exchange.done:
            self.tracer.on_exchange(exchange, CALLER_GONE)
        exchange.left = exchange.done = True
        self._open.discard(exchange)
        if exchange.entry is not None and self.serving is not None:
            self.serving.batcher.drop(exchange.entry)

    def failure(self, error: BaseException) -> Answer:
        """The answer to whatever went wrong with a request."""
        if isinstance(error, NotProcessed):
            full = (OVERLOADED_MARK,) if error.message == QUEUE_FULL else ()
            return _not_processed(error.message, error.retry_after, *full)
        if isinstance(error, RequestError):
            return error_answer(error.status, error.message)
        if isinstance(error, MemoryError):
            return error_answer(503, "the model ran out of memory on this request; send fewer rows at a time")
        if isinstance(error, INPUT_ERRORS):
            return error_answer(400, f"the model does not take this input: {short(error)}")
        # A model may raise anything; it must not take the server down, and the log keeps the trace.
        log.error("the model failed on a request", exc_info=error)
        return error_answer(500, f"the model failed: {type(error).__name__}: {short(error)}")

    def _computed(self, exchange: Exchange, render: Callable[[Outputs], Answer], result: Result) -> None:
        try:
            answer = self.failure(result) if isinstance(result, Exception) else render(result)
        except Exception as error:  # noqa: BLE001 - a model may answer with what has no form
            answer = self.failure(error)
        self.end(exchange, answer)

    async def _start_large(self, exchange: Exchange, read: Read, body: bytes) -> None:
        """`start` for a body whose parsing and rendering would hold up everybody else."""
        try:
            serving = self._admit()
            work, render = await asyncio.to_thread(read, serving, body, exchange)
            del body
            answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

            def done(result: Result) -> None:
                if not answer.done():
                    answer.set_result(result)

            if exchange.done:
                return
            exchange.entry = serving.batcher.add(work, exchange.deadline, done)
            result = await answer
            if isinstance(result, Exception):
                self.end(exchange, self.failure(result))
            else:
                self.end(exchange, await asyncio.to_thread(render, result))
        except Exception as error:  # noqa: BLE001 - as in `start`
            self.end(exchange, self.failure(error))

    def _admit(self) -> Serving:
        if self.draining:
            raise NotProcessed("this server is shutting down; send the request again")
        if self.serving is None:
            raise NotProcessed(f"Model with name {self.config.name} is not ready.")
        return self.serving

    def _plan_sweep(self) -> None:
        limit = self.config.request_timeout_seconds
        pause = min(max(limit / 20, SWEEP_SECONDS_MIN), SWEEP_SECONDS_MAX)
        self._sweeping = asyncio.get_running_loop().call_later(pause, self._sweep)

    def _sweep(self) -> None:
        """Answer those whose time is over: one look at all, instead of a timer for each."""
        self._sweeping = None
        now = asyncio.get_running_loop().time()
        for exchange in [one for one in self._open if one.deadline <= now]:
            if exchange.entry is not None and self.serving is not None:
                self.serving.batcher.drop(exchange.entry)
            limit = f"{exchange.patience:g} s"
            self.end(exchange, error_answer(504, f"the request took longer than the time limit of {limit}"))
        if self._open:
            self._plan_sweep()

    def _read_v1(self, serving: Serving, body: bytes, _exchange: Exchange) -> Job:
        work = v1.parse(body, serving.signature, probabilities=self._probabilities)
        return work, partial(_render_v1, work)

    def _read_v2(self, name: str, serving: Serving, body: bytes, exchange: Exchange) -> Job:
        request = v2.parse(body, _json_length(exchange), serving.signature)
        return request.work, partial(_render_v2, request, name, self.config.version)

    def _explain_v1(self, _serving: Serving, _body: bytes, _exchange: Exchange) -> Job:
        raise RequestError("this model has no explainer; use :predict", status=501)

    # Everything that is answered from memory.

    def _make_routes(self) -> dict[str, Route]:
        version = self.config.version
        models = json_answer(200, {"models": [self.config.name]})
        server = json_answer(
            200, {"name": "inferplane", "version": VERSION, "extensions": list(v2.EXTENSIONS)}
        )
        routes = {
            "/": Route(get=lambda: json_answer(200, {"status": "alive"})),
            "/metrics": Route(get=self._all_metrics),
            "/v1/models": Route(get=lambda: models),
            "/v2": Route(get=lambda: server),
            "/v2/health/live": Route(get=self._live),
            "/v2/health/ready": Route(
                get=lambda: json_answer(200 if self.ready else 503, {"ready": self.ready})
            ),
            "/v2/models": Route(get=lambda: models),
        }
        for name in sorted(self.config.names):
            predict = Route(post=self._read_v1, protocol="v1")
            infer = Route(post=partial(self._read_v2, name), protocol="v2")
            ready = Route(get=partial(self._model_ready, name))
            about = Route(get=partial(self._metadata, name))
            for prefix in ("/v1/models/", "/v1/model/"):
                routes[f"{prefix}{name}"] = ready
                routes[f"{prefix}{name}:predict"] = predict
                routes[f"{prefix}{name}:explain"] = Route(post=self._explain_v1, protocol="v1")
            for path in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"):
                routes[path] = about
                routes[f"{path}/ready"] = ready
                routes[f"{path}/infer"] = infer
        return routes

    def _model_ready(self, name: str) -> Answer:
        if self.ready:
            return json_answer(200, {"name": name, "ready": True})
        return error_answer(503, f"Model with name {name} is not ready.")

    def _metadata(self, name: str) -> Answer:
        if self.serving is None:
            return error_answer(503, f"Model with name {name} is not ready.")
        model = self.serving.model
        return json_answer(200, v2.metadata(name, self.config.version, model.platform, model.signature))

    def _live(self) -> Answer:
        stalled = self.stalled
        return json_answer(503 if stalled else 200, {"live": not stalled})

    def metrics_text(self) -> str:
        """This process's metrics in Prometheus text."""
        queued = self.serving.batcher.queued_rows if self.serving is not None else 0
        text = self.metrics.render(
            self.config.name, ready=self.ready, in_flight=self.in_flight, queued_rows=queued
        )
        return text if self.tracer is None else text + self.tracer.metrics_text()

    def _all_metrics(self) -> Answer:
        self._streams += 1  # this very question is in flight
        text = self.add_up(self.metrics_text())
        self._streams -= 1
        return Answer(200, text.encode(), (TEXT_TYPE,))

    def _nothing_at(self, path: str) -> Answer:
        match = _PATH_OF_MODEL.fullmatch(path)
        if match is None:
            return error_answer(404, f"there is nothing at {path[:200]}")
        name = match["name"]
        if name not in self.config.names:
            return error_answer(404, f"Model with name {name} does not exist.")
        if match["version"] not in (None, self.config.version):
            return error_answer(
                404,
                f"Model with name {name} has no version {match['version']}; it has version {self.config.version}.",
            )
        return error_answer(
            404,
            f"there is nothing at {path[:200]}; predict at /v1/models/{name}:predict or /v2/models/{name}/infer",
        )


def _not_processed(message: str, retry_after: int, *more: tuple[bytes, bytes]) -> Answer:
    retry = (b"retry-after", b"%d" % retry_after)
    return error_answer(503, message, (JSON_TYPE, retry, NOT_PROCESSED_MARK, *more))


@lru_cache(maxsize=RETRY_AFTER_SECONDS_MAX)
def _refusal(retry_after: int) -> Answer:
    return _not_processed(QUEUE_FULL, retry_after, OVERLOADED_MARK)


def too_large(limit: int) -> Answer:
    """The answer to a body over the limit."""
    error = TooLarge(f"the body is larger than the limit of {limit} bytes")
    return error_answer(error.status, error.message)


def _render_v1(work: Work, outputs: Outputs) -> Answer:
    return Answer(200, v1.render(outputs, work), (JSON_TYPE, (ROWS_HEADER, b"%d" % work.rows)))


def _render_v2(request: v2.Request, name: str, version: str, outputs: Outputs) -> Answer:
    head, blobs = v2.render(outputs, request, name, version)
    rows = (ROWS_HEADER, b"%d" % request.work.rows)
    if not request.binary:
        return Answer(200, head, (JSON_TYPE, rows))
    length = (v2.LENGTH_HEADER.encode(), b"%d" % len(head))
    return Answer(200, head, (BINARY_TYPE, length, rows), tuple(blobs))


def _json_length(exchange: Exchange) -> int | None:
    text = exchange.header(v2.LENGTH_HEADER.encode())
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise BadInput(f"the header {v2.LENGTH_HEADER} must be a number of bytes")
    return int(text)


def _tidy_path(path: str) -> str:
    """The path without doubled and trailing slashes."""
    return "/" + "/".join(part for part in path.split("/") if part)
