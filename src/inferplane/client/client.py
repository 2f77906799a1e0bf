"""`Client` and `AsyncClient`: two thin shells over the same conversations.

    with Client() as client:
        client.deploy("iris", format="sklearn", uri="/models/iris.joblib")
        client.wait_until_running("iris")
        print(client.predict("iris", instances=[[5.1, 3.5, 1.4, 0.2]]))

Everything that is said, and in which order, is in `conversations`; here effects are performed, once
blocking and once awaiting. `AsyncClient` has the same methods: what `Client` returns is awaited, what
it iterates over is iterated over with `async for`. A `Client` may be shared between threads.

Without arguments both find what `inferplane up` on this machine left: see
`settings.load_client_settings`.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import secrets
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from inferplane.client import access_conversations, conversations, gpu_conversations, revision_conversations
from inferplane.client.conversations import (
    ConnectionFailedError,
    Effect,
    Emit,
    Flow,
    Now,
    Pause,
    Read,
    Send,
    Session,
    Stream,
)
from inferplane.client.errors import ConfigurationError
from inferplane.client.local import running_at
from inferplane.client.requests import Answer, Request
from inferplane.domain.errors import InferplaneError
from inferplane.settings import is_loopback, load_client_settings

CONNECT_SECONDS = 5.0
WRITE_SECONDS = 60.0
CONNECTIONS_MAX = 100
CONNECTIONS_KEPT_MAX = 20

P = ParamSpec("P")
T = TypeVar("T")


# --- methods made of conversations ------------------------------------------------------------------


def _returns(flow: Callable[Concatenate[Session, P], Flow[T]]) -> Callable[Concatenate[Client, P], T]:
    """A method of `Client` that returns what the conversation returns."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._hold(flow(self._session, *args, **kwargs))

    return _signed(method, flow, "{}")


def _iterates(
    flow: Callable[Concatenate[Session, P], Stream[T]],
) -> Callable[Concatenate[Client, P], Iterator[T]]:
    """A method of `Client` that yields what the conversation emits."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._follow(flow(self._session, *args, **kwargs))

    return _signed(method, flow, "Iterator[{}]")


def _awaits(
    flow: Callable[Concatenate[Session, P], Flow[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """A method of `AsyncClient` that returns what the conversation returns."""

    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._hold(flow(self._session, *args, **kwargs))

    return _signed(method, flow, "{}")


def _iterates_async(
    flow: Callable[Concatenate[Session, P], Stream[T]],
) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]:
    """A method of `AsyncClient` that yields what the conversation emits."""

    def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return self._follow(flow(self._session, *args, **kwargs))

    return _signed(method, flow, "AsyncIterator[{}]")


M = TypeVar("M", bound=Callable[..., Any])


def _signed(method: M, flow: Callable[..., Any], returns: str) -> M:
    """Let `help()` show what the caller sees: `self` for the session, the value for the generator."""
    signature = inspect.signature(flow)
    _, *rest = signature.parameters.values()
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    value = str(signature.return_annotation).partition("[")[2].removesuffix("]")
    shown = signature.replace(parameters=[itself, *rest], return_annotation=returns.format(value))
    for name, content in (
        ("__signature__", shown),
        ("__name__", flow.__name__),
        ("__doc__", flow.__doc__),
        ("__module__", flow.__module__),
    ):
        setattr(method, name, content)
    return method


# --- what both are made of --------------------------------------------------------------------------


class _Shell:
    """Where the platform is, with which key, and what is remembered between calls."""

    def __init__(self, base_url: str | None, api_key: str | None) -> None:
        try:
            found = load_client_settings(
                os.environ, user_home=Path.home(), api_url=base_url, api_key=api_key, running_at=running_at
            )
        except InferplaneError as error:
            raise ConfigurationError(
                error.message, reason=error.reason, field=error.field, next_action=error.next_action
            ) from error
        self._session = Session(
            found.api_url,
            found.api_key,
            partial(secrets.token_hex, 16),
            why_no_key=found.why_no_key,
            why_unreachable=found.why_unreachable,
            endpoint_key=found.endpoint_key,
        )

    @property
    def base_url(self) -> str:
        """Where the platform's API is."""
        return self._session.base_url

    def _options(self) -> dict[str, Any]:
        from inferplane.version import VERSION

        return {
            "base_url": self.base_url,
            "verify": _Trust(),
            # A proxy named in the environment is for the world outside; it cannot reach this machine's loopback.
            "trust_env": not is_loopback(self.base_url),
            "limits": httpx.Limits(
                max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_KEPT_MAX
            ),
            "headers": {"User-Agent": f"inferplane-python/{VERSION}"},
        }


class _Trust(ssl.SSLContext):
    """Certificates are always verified; the list of authorities is read at the first TLS connection.

    Reading it takes longer than a call, and most platforms are reached without TLS.
    """

    _loaded = False

    def __new__(cls) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        self._load()
        return super().wrap_socket(*args, **kwargs)

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        self._load()
        return super().wrap_bio(*args, **kwargs)

    def _load(self) -> None:
        if self._loaded:
            return
        self.load_default_certs()  # the system's, or those that SSL_CERT_FILE and SSL_CERT_DIR name
        if not self.cert_store_stats()["x509_ca"]:
            import certifi

            self.load_verify_locations(certifi.where())
        self._loaded = True


def _check_open(http: httpx.Client | httpx.AsyncClient) -> None:
    if http.is_closed:
        raise ConfigurationError(
            "this client was closed, and nothing was sent",
            reason="ClientClosed",
            next_action="Make a new one, and close it (or leave its `with`) after the last call.",
        )


def _built(http: httpx.Client | httpx.AsyncClient, request: Request[Any]) -> httpx.Request:
    return http.build_request(
        request.method,
        request.target,
        params=list(request.query) or None,
        content=request.body,
        headers=list(request.headers),
        timeout=httpx.Timeout(
            request.read_seconds, connect=CONNECT_SECONDS, write=WRITE_SECONDS, pool=request.read_seconds
        ),
    )


def _answer(response: httpx.Response, body: bytes) -> Answer:
    return Answer(
        response.status_code, {name.lower(): value for name, value in response.headers.items()}, body
    )


def _failure(error: httpx.HTTPError) -> ConnectionFailedError:
    """The library's failure in our words: what broke, and whether the request may have been acted on."""
    unsent = isinstance(
        error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.UnsupportedProtocol
    )
    match error:
        case httpx.ConnectTimeout():
            message = f"no connection within {CONNECT_SECONDS:g} s"
        case httpx.PoolTimeout():
            message = "all connections are busy"
        case httpx.TimeoutException():
            message = "no answer in time"
        case httpx.RemoteProtocolError():
            message = "the connection ended in the middle of the answer"
        case _:
            message = str(error).partition("] ")[2] or str(error) or type(error).__name__
    return ConnectionFailedError(message, unsent=unsent)


# --- blocking ---------------------------------------------------------------------------------------


class _Exchange:
    """Performs one conversation's effects, blocking; holds the stream it may have opened."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def perform(self, effect: Effect) -> Any:
        match effect:
            case Send(request):
                return self._send(request)
            case Read():
                return next(self._chunks, b"")
            case Pause(seconds):
                return threading.Event().wait(seconds)
            case Now():
                return time.monotonic()

    def _send(self, request: Request[Any]) -> Answer:
        _check_open(self._http)
        response = self._http.send(_built(self._http, request), stream=request.stream)
        if request.stream and response.status_code == 200:
            self._response, self._chunks = response, response.iter_bytes()
            return _answer(response, b"")
        return _answer(response, response.read())

    def close(self) -> None:
        if self._response is not None:
            self._response.close()


class Client(_Shell):
    """The platform's API, blocking.

    `base_url` and `api_key` default to what the environment says, and on this machine to the Owner
    key that `inferplane up` left. `transport` replaces the network; tests use it.
    Raises ConfigurationError for an address that is none. Every method raises from `client.errors`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, api_key)
        self._http = httpx.Client(transport=transport, **self._options())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def _hold(self, flow: Flow[T]) -> T:
        exchange = _Exchange(self._http)
        step: Callable[[], Effect] = partial(next, flow)
        while True:
            try:
                effect = step()
            except StopIteration as end:
                value: T = end.value
                return value
            step = _performed(exchange, flow, effect)

    def _follow(self, stream: Stream[T]) -> Iterator[T]:
        exchange = _Exchange(self._http)
        step: Callable[[], Effect | Emit[T]] = partial(next, stream)
        try:
            while True:
                try:
                    effect = step()
                except StopIteration:
                    return
                if isinstance(effect, Emit):
                    yield effect.item
                    step = partial(next, stream)
                else:
                    step = _performed(exchange, stream, effect)
        finally:
            exchange.close()

    deploy = _returns(conversations.deploy)
    apply = _returns(conversations.apply)
    describe = _returns(conversations.describe)
    explain = _returns(conversations.explain)
    delete = _returns(conversations.delete)
    stop = _returns(conversations.stop)
    start = _returns(conversations.start)
    update = _returns(revision_conversations.update)
    try_update = _returns(revision_conversations.try_update)
    restart = _returns(revision_conversations.restart)
    promote = _returns(revision_conversations.promote)
    rollback = _returns(revision_conversations.rollback)
    wait_until_updated = _returns(revision_conversations.wait_until_updated)
    revisions = _returns(revision_conversations.revisions)
    metrics = _returns(revision_conversations.metrics)
    events = _returns(conversations.events)
    logs = _returns(conversations.logs)
    predict = _returns(conversations.predict)
    infer = _returns(conversations.infer)
    wait_until_running = _returns(conversations.wait_until_running)
    wait_until_stopped = _returns(conversations.wait_until_stopped)
    wait_until_deleted = _returns(conversations.wait_until_deleted)
    create_api_key = _returns(conversations.create_api_key)
    list_api_keys = _returns(conversations.list_api_keys)
    delete_api_key = _returns(conversations.delete_api_key)
    create_endpoint_key = _returns(access_conversations.create_endpoint_key)
    list_endpoint_keys = _returns(access_conversations.list_endpoint_keys)
    delete_endpoint_key = _returns(access_conversations.delete_endpoint_key)
    usage = _returns(access_conversations.usage)
    usage_csv = _returns(access_conversations.usage_csv)
    create_workspace = _returns(conversations.create_workspace)
    update_workspace = _returns(conversations.update_workspace)
    delete_workspace = _returns(conversations.delete_workspace)
    list_workspaces = _returns(conversations.list_workspaces)
    list_clusters = _returns(conversations.list_clusters)
    register_cluster = _returns(conversations.register_cluster)
    connect_cluster = _returns(conversations.connect_cluster)
    change_cluster = _returns(conversations.change_cluster)
    check_cluster = _returns(conversations.check_cluster)
    kube_config = _returns(conversations.kube_config)
    delete_cluster = _returns(conversations.delete_cluster)
    inventory = _returns(gpu_conversations.inventory)
    gpu_shapes = _returns(gpu_conversations.gpu_shapes)
    create_gpr = _returns(gpu_conversations.create_gpr)
    wait_times = _returns(gpu_conversations.wait_times)
    list_gprs = _returns(gpu_conversations.list_gprs)
    describe_gpr = _returns(gpu_conversations.describe_gpr)
    find_gpr = _returns(gpu_conversations.find_gpr)
    wait_until_granted = _returns(gpu_conversations.wait_until_granted)
    change_gpr = _returns(gpu_conversations.change_gpr)
    release_gpr = _returns(gpu_conversations.release_gpr)
    delete_gpr = _returns(gpu_conversations.delete_gpr)
    create_template = _returns(gpu_conversations.create_template)
    change_template = _returns(gpu_conversations.change_template)
    describe_template = _returns(gpu_conversations.describe_template)
    list_templates = _returns(gpu_conversations.list_templates)
    delete_template = _returns(gpu_conversations.delete_template)
    create_binding = _returns(gpu_conversations.create_binding)
    change_binding = _returns(gpu_conversations.change_binding)
    describe_binding = _returns(gpu_conversations.describe_binding)
    list_bindings = _returns(gpu_conversations.list_bindings)
    delete_binding = _returns(gpu_conversations.delete_binding)
    list_policies = _returns(gpu_conversations.list_policies)
    describe_policy = _returns(gpu_conversations.describe_policy)
    change_policy = _returns(gpu_conversations.change_policy)
    audit = _returns(gpu_conversations.audit)
    readiness = _returns(conversations.readiness)
    follow_logs = _iterates(conversations.follow_logs)
    follow_events = _iterates(conversations.follow_events)
    watch = _iterates(conversations.watch)
    list = _returns(conversations.list_endpoints)  # last: from here on `list` is not the built-in one


def _performed(exchange: _Exchange, flow: Any, effect: Effect) -> Callable[[], Any]:
    """How the conversation goes on after `effect`: with its outcome, or with what broke."""
    try:
        return partial(flow.send, exchange.perform(effect))
    except httpx.HTTPError as error:
        return partial(flow.throw, _failure(error))


# --- awaiting ---------------------------------------------------------------------------------------


class _AsyncExchange:
    """As `_Exchange`, awaiting."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def perform(self, effect: Effect) -> Any:
        match effect:
            case Send(request):
                return await self._send(request)
            case Read():
                return b"" if self._chunks is None else await anext(self._chunks, b"")
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case Now():
                return time.monotonic()

    async def _send(self, request: Request[Any]) -> Answer:
        _check_open(self._http)
        response = await self._http.send(_built(self._http, request), stream=request.stream)
        if request.stream and response.status_code == 200:
            self._response, self._chunks = response, response.aiter_bytes()
            return _answer(response, b"")
        return _answer(response, await response.aread())

    async def close(self) -> None:
        if self._response is not None:
            await self._response.aclose()


class AsyncClient(_Shell):
    """The platform's API, awaiting: the same arguments, methods and errors as `Client`."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, api_key)
        self._http = httpx.AsyncClient(transport=transport, **self._options())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    async def _hold(self, flow: Flow[T]) -> T:
        exchange = _AsyncExchange(self._http)
        step: Callable[[], Effect] = partial(next, flow)
        while True:
            try:
                effect = step()
            except StopIteration as end:
                value: T = end.value
                return value
            step = await _performed_async(exchange, flow, effect)

    async def _follow(self, stream: Stream[T]) -> AsyncIterator[T]:
        exchange = _AsyncExchange(self._http)
        step: Callable[[], Effect | Emit[T]] = partial(next, stream)
        try:
            while True:
                try:
                    effect = step()
                except StopIteration:
                    return
                if isinstance(effect, Emit):
                    yield effect.item
                    step = partial(next, stream)
                else:
                    step = await _performed_async(exchange, stream, effect)
        finally:
            await exchange.close()

    deploy = _awaits(conversations.deploy)
    apply = _awaits(conversations.apply)
    describe = _awaits(conversations.describe)
    explain = _awaits(conversations.explain)
    delete = _awaits(conversations.delete)
    stop = _awaits(conversations.stop)
    start = _awaits(conversations.start)
    update = _awaits(revision_conversations.update)
    try_update = _awaits(revision_conversations.try_update)
    restart = _awaits(revision_conversations.restart)
    promote = _awaits(revision_conversations.promote)
    rollback = _awaits(revision_conversations.rollback)
    wait_until_updated = _awaits(revision_conversations.wait_until_updated)
    revisions = _awaits(revision_conversations.revisions)
    metrics = _awaits(revision_conversations.metrics)
    events = _awaits(conversations.events)
    logs = _awaits(conversations.logs)
    predict = _awaits(conversations.predict)
    infer = _awaits(conversations.infer)
    wait_until_running = _awaits(conversations.wait_until_running)
    wait_until_stopped = _awaits(conversations.wait_until_stopped)
    wait_until_deleted = _awaits(conversations.wait_until_deleted)
    create_api_key = _awaits(conversations.create_api_key)
    list_api_keys = _awaits(conversations.list_api_keys)
    delete_api_key = _awaits(conversations.delete_api_key)
    create_endpoint_key = _awaits(access_conversations.create_endpoint_key)
    list_endpoint_keys = _awaits(access_conversations.list_endpoint_keys)
    delete_endpoint_key = _awaits(access_conversations.delete_endpoint_key)
    usage = _awaits(access_conversations.usage)
    usage_csv = _awaits(access_conversations.usage_csv)
    create_workspace = _awaits(conversations.create_workspace)
    update_workspace = _awaits(conversations.update_workspace)
    delete_workspace = _awaits(conversations.delete_workspace)
    list_workspaces = _awaits(conversations.list_workspaces)
    list_clusters = _awaits(conversations.list_clusters)
    register_cluster = _awaits(conversations.register_cluster)
    connect_cluster = _awaits(conversations.connect_cluster)
    change_cluster = _awaits(conversations.change_cluster)
    check_cluster = _awaits(conversations.check_cluster)
    kube_config = _awaits(conversations.kube_config)
    delete_cluster = _awaits(conversations.delete_cluster)
    inventory = _awaits(gpu_conversations.inventory)
    gpu_shapes = _awaits(gpu_conversations.gpu_shapes)
    create_gpr = _awaits(gpu_conversations.create_gpr)
    wait_times = _awaits(gpu_conversations.wait_times)
    list_gprs = _awaits(gpu_conversations.list_gprs)
    describe_gpr = _awaits(gpu_conversations.describe_gpr)
    find_gpr = _awaits(gpu_conversations.find_gpr)
    wait_until_granted = _awaits(gpu_conversations.wait_until_granted)
    change_gpr = _awaits(gpu_conversations.change_gpr)
    release_gpr = _awaits(gpu_conversations.release_gpr)
    delete_gpr = _awaits(gpu_conversations.delete_gpr)
    create_template = _awaits(gpu_conversations.create_template)
    change_template = _awaits(gpu_conversations.change_template)
    describe_template = _awaits(gpu_conversations.describe_template)
    list_templates = _awaits(gpu_conversations.list_templates)
    delete_template = _awaits(gpu_conversations.delete_template)
    create_binding = _awaits(gpu_conversations.create_binding)
    change_binding = _awaits(gpu_conversations.change_binding)
    describe_binding = _awaits(gpu_conversations.describe_binding)
    list_bindings = _awaits(gpu_conversations.list_bindings)
    delete_binding = _awaits(gpu_conversations.delete_binding)
    list_policies = _awaits(gpu_conversations.list_policies)
    describe_policy = _awaits(gpu_conversations.describe_policy)
    change_policy = _awaits(gpu_conversations.change_policy)
    audit = _awaits(gpu_conversations.audit)
    readiness = _awaits(conversations.readiness)
    follow_logs = _iterates_async(conversations.follow_logs)
    follow_events = _iterates_async(conversations.follow_events)
    watch = _iterates_async(conversations.watch)
    list = _awaits(conversations.list_endpoints)  # last: from here on `list` is not the built-in one


async def _performed_async(exchange: _AsyncExchange, flow: Any, effect: Effect) -> Callable[[], Any]:
    """As `_performed`, awaiting."""
    try:
        return partial(flow.send, await exchange.perform(effect))
    except httpx.HTTPError as error:
        return partial(flow.throw, _failure(error))
