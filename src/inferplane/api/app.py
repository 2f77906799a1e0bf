"""The HTTP application: routes behind one door, errors through one table.

The door (`Api`) is the outermost ASGI app. It gives every request an id, mends doubled slashes,
counts, and makes sure that nothing leaves which is not an envelope: not a router's 404 or 405, not
a bug's 500. `STATUS_TABLE` is the only place where a domain error becomes an HTTP status.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any, cast

import msgspec
from litestar import Litestar, Request
from litestar.exceptions import HTTPException, MethodNotAllowedException
from litestar.handlers import HTTPRouteHandler
from litestar.response import Response
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from inferplane.api.answers import Answer, EventStream
from inferplane.api.auth import Authenticator
from inferplane.api.call import BODY_TOO_SLOW, Call, ClientGoneError, Tools, body_of, headers_of, query_of
from inferplane.api.metrics import UNMATCHED_ROUTE, Metrics
from inferplane.api.openapi import document
from inferplane.api.routes import ROUTES, Route
from inferplane.api.streams import Streams
from inferplane.domain.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    InferplaneError,
    Invalid,
    Malformed,
    NotFound,
    PayloadTooLarge,
    QuotaExceeded,
    RateLimited,
    StaleVersion,
    Unauthenticated,
    Unavailable,
)
from inferplane.engines.port import EngineError
from inferplane.observability import get_logger
from inferplane.services.context import Platform
from inferplane.wire import paths
from inferplane.wire.envelope import ErrorDetail, ErrorKey, failure, success

# The nearest class in the error's own family tree counts.
STATUS_TABLE: Mapping[type[InferplaneError], tuple[int, ErrorKey]] = {
    Unauthenticated: (401, ErrorKey.UNAUTHENTICATED),
    Forbidden: (403, ErrorKey.FORBIDDEN),
    NotFound: (404, ErrorKey.NOT_FOUND),
    AlreadyExists: (409, ErrorKey.ALREADY_EXISTS),
    Conflict: (409, ErrorKey.CONFLICT),
    Malformed: (400, ErrorKey.INVALID),
    Invalid: (422, ErrorKey.INVALID),
    QuotaExceeded: (403, ErrorKey.QUOTA_EXCEEDED),
    PayloadTooLarge: (413, ErrorKey.PAYLOAD_TOO_LARGE),
    RateLimited: (429, ErrorKey.RATE_LIMITED),
    Unavailable: (503, ErrorKey.UNAVAILABLE),
    StaleVersion: (409, ErrorKey.CONFLICT),
    EngineError: (503, ErrorKey.UNAVAILABLE),
}

RETRY_AFTER_SECONDS = 2
REQUEST_ID_CHARACTERS = 16
STATE_REQUEST_ID = "inferplane_request_id"
STATE_ROUTE = "inferplane_route"
CONTENT_SECURITY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGES: Mapping[str, tuple[str, str]] = {
    "/": ("index.html", "text/html; charset=utf-8"),
    paths.DOCS: ("docs.html", "text/html; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}

_SLASHES = re.compile("/{2,}")
_PATH_NAME = re.compile(r"\{(\w+)\}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._\-]{1,64}", re.ASCII)

log = get_logger("api")


def create_app(platform: Platform, *, readiness: Callable[[], Mapping[str, str]], version: str) -> Api:
    """Build the application. `readiness` maps each part to "" or a sentence saying what is not ready.

    Needs no lifespan events: it can be served the moment it is made.
    """
    metrics = Metrics(version)
    tools = Tools(
        platform=platform,
        authenticator=Authenticator(platform),
        metrics=metrics,
        streams=Streams(platform.limits.watchers_max, metrics.streams),
        version=version,
        readiness=readiness,
    )
    handlers = [_handler(route, tools) for route in ROUTES]
    handlers.append(_fixed(paths.OPENAPI, Answer(msgspec.json.encode(document(ROUTES, version)))))
    handlers += [_fixed(path, _page(name, media_type)) for path, (name, media_type) in PAGES.items()]
    router = Litestar(
        route_handlers=handlers,
        openapi_config=None,
        logging_config=None,
        exception_handlers={Exception: _routing_failure},
        request_max_body_size=None,
    )
    return Api(router, tools)


class Api:
    """The door: an ASGI app around the router."""

    def __init__(self, router: ASGIApp, tools: Tools) -> None:
        self._router = router
        self._tools = tools

    def end_streams(self) -> None:
        """Let every watch and log stream end, as before a shutdown, which would wait for them."""
        self._tools.streams.ended.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        kind = str(scope["type"])  # a server sends plain words, whatever the type says
        if kind == "websocket":
            await send({"type": "websocket.close", "code": 1000, "reason": ""})
            return
        if kind != "http":  # lifespan: nothing to open, nothing to close
            return
        http = cast("HTTPScope", scope)
        _mend_path(http)
        request_id = _request_id(http, self._tools.platform)
        state = http.setdefault("state", {})
        state[STATE_REQUEST_ID] = request_id
        started_at = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (paths.REQUEST_ID_HEADER.lower().encode(), request_id.encode()),
                ]
                route = state.get(STATE_ROUTE, UNMATCHED_ROUTE)
                self._tools.metrics.answered(http["method"], route, status, time.perf_counter() - started_at)
            await send(message)

        try:
            if http["method"] == "OPTIONS":  # the router would answer 204, which is no envelope
                await _method_not_allowed(request_id, http["path"])(scope, receive, send_with_id)
            else:
                await self._router(scope, receive, send_with_id)
        except ClientGoneError:
            return
        except Exception as error:
            # The last net: whatever a bug raises, the caller gets an envelope and we get a log line.
            _log_bug(error, request_id, http["path"])
            if status:
                raise  # the answer has begun; only cutting it off tells the client that it is not whole
            await _bug(request_id)(scope, receive, send_with_id)


def _handler(route: Route, tools: Tools) -> HTTPRouteHandler:
    """Join one route with everything that is the same for all of them."""
    limits = tools.platform.limits

    async def handle(request: Request[Any, Any, Any]) -> ASGIApp:
        scope = request.scope
        state = scope["state"]
        state[STATE_ROUTE] = route.path
        request_id = str(state[STATE_REQUEST_ID])
        try:
            headers = headers_of(scope)
            key = await tools.authenticator.key(headers) if route.token else None
            call = Call(
                tools=tools,
                method=scope["method"],
                path=route.path,
                headers=headers,
                query=query_of(scope) | _path_values(scope),
                body=await body_of(
                    request.receive, headers, limits.request_bytes_max, limits.request_seconds_max
                )
                if route.reads_body
                else b"",
                key=key,
                request_id=request_id,
            )
            result = await route.handler(call)
        except InferplaneError as error:
            return cast("ASGIApp", answer_for(error, request_id))
        if isinstance(result, Answer | EventStream):
            return cast("ASGIApp", result)
        return cast("ASGIApp", Answer(success(result)))

    return HTTPRouteHandler(
        _PATH_NAME.sub(r"{\1:str}", route.path),
        http_method=cast("Any", list(route.methods)),
        status_code=200,
        name=route.handler.__name__,
    )(handle)


def answer_for(error: InferplaneError, request_id: str) -> Answer:
    """The failure envelope of a domain error."""
    status, key = next(
        (STATUS_TABLE[kind] for kind in type(error).__mro__ if kind in STATUS_TABLE),
        (500, ErrorKey.INTERNAL),
    )
    body = failure(
        status,
        key,
        error.message,
        reason=error.reason,
        field=error.field,
        details=tuple(ErrorDetail(detail.reason, detail.message, detail.field) for detail in error.details),
        next_action=error.next_action,
        request_id=request_id,
    )
    headers = {}
    if status in {429, 503}:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if error.reason == BODY_TOO_SLOW:
        headers["Connection"] = "close"  # what may still come is no request
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Answer(body, status, headers=headers)


def _routing_failure(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """What the router itself complains about, in the envelope."""
    request_id = str(request.scope["state"].get(STATE_REQUEST_ID, ""))
    if isinstance(error, ClientGoneError):
        raise error
    if isinstance(error, MethodNotAllowedException):
        answer = _method_not_allowed(request_id, request.scope["path"])
    elif isinstance(error, HTTPException) and error.status_code < 500:
        answer = _routing_answer(error, request_id, request.scope["path"])
    else:
        _log_bug(error, request_id, request.scope["path"])
        answer = _bug(request_id)
    return Response(
        answer.body, status_code=answer.status, media_type=answer.media_type, headers=dict(answer.headers)
    )


def _routing_answer(error: HTTPException, request_id: str, path: str) -> Answer:
    if error.status_code == 404:
        return answer_for(
            NotFound(
                f"there is nothing at {path[:200]}",
                reason="NoSuchPath",
                next_action=f"See {paths.DOCS} for what there is.",
            ),
            request_id,
        )
    if error.status_code == 413:
        return answer_for(PayloadTooLarge("the body is too large", reason="BodyTooLarge"), request_id)
    return answer_for(Malformed("the request cannot be read", reason="MalformedRequest"), request_id)


def _method_not_allowed(request_id: str, path: str) -> Answer:
    allowed = ", ".join(method for route in ROUTES if _is_at(route, path) for method in route.methods)
    body = failure(
        405,
        ErrorKey.INVALID,
        "this method is not allowed here",
        reason="MethodNotAllowed",
        next_action=f"Use {allowed}." if allowed else f"See {paths.DOCS} for what there is.",
        request_id=request_id,
    )
    return Answer(body, 405, headers={"Allow": allowed} if allowed else {})


def _is_at(route: Route, path: str) -> bool:
    pattern = "[^/]+".join(re.escape(part) for part in _PATH_NAME.sub("\0", route.path).split("\0"))
    return re.fullmatch(pattern, path) is not None


def _path_values(scope: Scope) -> dict[str, str]:
    """What the path itself names, as if it were in the query. Raises Invalid."""
    values = {name.lower(): str(value).strip() for name, value in scope.get("path_params", {}).items()}
    if any("\x00" in value for value in values.values()):
        raise Invalid("the path holds a NUL character", reason="InvalidText")
    return values


def _bug(request_id: str) -> Answer:
    """Says that it is our fault and how to find it in our log; never what happened inside."""
    body = failure(
        500,
        ErrorKey.INTERNAL,
        "something went wrong inside the platform",
        reason="Internal",
        next_action="Report it together with the request id.",
        request_id=request_id,
    )
    return Answer(body, 500)


def _log_bug(error: Exception, request_id: str, path: str) -> None:
    log.error("a request failed", request_id=request_id, path=path[:200], exc_info=error)


def _mend_path(scope: HTTPScope) -> None:
    """`//api//v1/x/` is `/api/v1/x`."""
    path = _SLASHES.sub("/", scope["path"])
    if len(path) > 1:
        path = path.rstrip("/")
    scope["path"] = path
    scope["raw_path"] = path.encode("utf-8", "replace")


def _request_id(scope: HTTPScope, platform: Platform) -> str:
    """The caller's own id when it is harmless, else a new one."""
    given = headers_of(scope).get(paths.REQUEST_ID_HEADER.lower(), "")
    return given if _REQUEST_ID.fullmatch(given) else platform.new_id(REQUEST_ID_CHARACTERS)


def _fixed(path: str, answer: Answer) -> HTTPRouteHandler:
    async def handle(request: Request[Any, Any, Any]) -> ASGIApp:
        request.scope["state"][STATE_ROUTE] = path
        return cast("ASGIApp", answer)

    return HTTPRouteHandler(path, http_method="GET", status_code=200)(handle)


def _page(name: str, media_type: str) -> Answer:
    """A file of the console, read once."""
    body = files("inferplane").joinpath("console", name).read_bytes()
    return Answer(body, media_type=media_type, headers={"Content-Security-Policy": CONTENT_SECURITY})
