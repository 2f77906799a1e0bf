"""The control plane's side of Envoy's configuration: one gRPC stream on a unix socket of its own.

A thin shell round `exchange.Exchange`: it turns resources into Envoy's messages, sends what is next, and
passes on what Envoy answers. The newest connection counts; an older one is left to end.

gRPC and Envoy's messages are imported when a server starts, not before: they take a tenth of a second,
and the command line has no use for them. Nothing here forks; a process that forks without `exec` while a
server runs must not use gRPC in the child.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

from inferplane.gateway.envoy_words import TYPE, Kind, Resource
from inferplane.gateway.exchange import Exchange, Key, Message
from inferplane.observability import get_logger

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
# Where the types are declared that appear as `@type` in our resources.
DECLARED = (
    "envoy.config.cluster.v3.cluster_pb2",
    "envoy.config.listener.v3.listener_pb2",
    "envoy.config.route.v3.scoped_route_pb2",
    "envoy.config.trace.v3.opentelemetry_pb2",
    "envoy.extensions.access_loggers.file.v3.file_pb2",
    "envoy.extensions.filters.http.buffer.v3.buffer_pb2",
    "envoy.extensions.filters.http.jwt_authn.v3.config_pb2",
    "envoy.extensions.filters.http.local_ratelimit.v3.local_rate_limit_pb2",
    "envoy.extensions.filters.http.lua.v3.lua_pb2",
    "envoy.extensions.filters.http.rbac.v3.rbac_pb2",
    "envoy.extensions.filters.http.router.v3.router_pb2",
    "envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2",
    "envoy.extensions.load_balancing_policies.least_request.v3.least_request_pb2",
    "envoy.extensions.request_id.uuid.v3.uuid_pb2",
    "envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2",
    "envoy.extensions.tracers.opentelemetry.samplers.v3.parent_based_sampler_pb2",
    "envoy.extensions.tracers.opentelemetry.samplers.v3.trace_id_ratio_based_sampler_pb2",
    "envoy.extensions.upstreams.http.v3.http_protocol_options_pb2",
)
CLOSE_SECONDS = 0.0
WORDS_MAX = 500
TRUNCATED = "...(truncated)"

log = get_logger("gateway.xds")


class XdsServer:
    """Serves one Envoy. All methods belong to one event loop."""

    def __init__(
        self,
        socket: Path,
        exchange: Exchange,
        on_change: Callable[[Iterable[Key]], None],
        last_words: Callable[[], str],
    ) -> None:
        """`on_change` hears of everything that Envoy said something about; `last_words` are those in its log."""
        self._last_words = last_words
        self._socket = socket
        self._exchange = exchange
        self._on_change = on_change
        self._something_to_tell = asyncio.Event()
        self._connection = 0
        self._silent_since: float | None = None
        self._server: Any = None
        self._protocol: Any = None
        self._parse: Any = None
        self._messages: dict[Kind, Any] = {}

    async def start(self, socket: Path | None = None) -> None:
        """Listen, at `socket` if it is given. Envoy comes by itself, and comes again whenever it lost us."""
        self._socket = socket or self._socket
        grpc, aio = importlib.import_module("grpc"), importlib.import_module("grpc.aio")
        self._parse = importlib.import_module("google.protobuf.json_format").ParseDict

        self._protocol = importlib.import_module("envoy.service.discovery.v3.discovery_pb2")
        for name in DECLARED:
            importlib.import_module(name)
        pool = importlib.import_module("google.protobuf.message_factory")
        symbols = importlib.import_module("google.protobuf.symbol_database").Default()
        for kind in Kind:
            descriptor = symbols.pool.FindMessageTypeByName(kind.value.removeprefix(TYPE))
            self._messages[kind] = pool.GetMessageClass(descriptor)
        stream = grpc.stream_stream_rpc_method_handler(
            self._converse,
            request_deserializer=self._protocol.DeltaDiscoveryRequest.FromString,
            response_serializer=self._protocol.DeltaDiscoveryResponse.SerializeToString,
        )

        service, _, method = METHOD.removeprefix("/").partition("/")
        handler = grpc.method_handlers_generic_handler(service, {method: stream})
        self._socket.unlink(missing_ok=True)
        # One Envoy and small messages: none of gRPC's own limits or pings is of use here.
        self._server = aio.server(options=(("grpc.so_reuseport", 0),))
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(f"unix:{self._socket}")
        await self._server.start()
        self._silent_since = asyncio.get_running_loop().time()

    async def close(self) -> None:
        """End the conversation. Envoy goes on by what it has."""
        if self._server is not None:
            await self._server.stop(CLOSE_SECONDS)
            self._server = None
        with contextlib.suppress(OSError):
            self._socket.unlink(missing_ok=True)

    def tell(self) -> None:
        """Something may have to be told."""
        self._something_to_tell.set()

    def silent_since(self) -> float | None:
        """Since when (loop time) Envoy is away, or owes an answer; None when it has answered everything."""
        return self._silent_since

    async def _converse(self, requests: AsyncIterator[Any], context: Any) -> None:
        self._connection += 1
        connection = self._connection
        self._exchange.begin_anew()
        reading = asyncio.create_task(self._read(requests, connection))
        reading.add_done_callback(lambda _: self._something_to_tell.set())
        try:
            while connection == self._connection and not reading.done():
                await self._something_to_tell.wait()
                self._something_to_tell.clear()
                while connection == self._connection and (message := self._exchange.next()) is not None:
                    await self._send(message, context)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            if connection == self._connection:
                self._exchange.begin_anew()
                self._listen_for(silence=True)

    async def _send(self, message: Message, context: Any) -> None:
        self._listen_for(silence=True)
        await context.write(self._response(message))

    async def _read(self, requests: AsyncIterator[Any], connection: int) -> None:
        kinds = {kind.value: kind for kind in Kind}
        async for request in requests:
            if connection != self._connection:
                return
            kind = kinds.get(request.type_url)
            if kind is None:
                continue
            concerned: tuple[Key, ...] = ()
            if request.HasField("error_detail"):
                words = self._words(request.error_detail.message)
                concerned = self._exchange.refused(request.response_nonce, words)
                for refused_kind, name in concerned:
                    log.error("configuration refused", kind=refused_kind.name, name=name, words=words)
            elif request.response_nonce:
                concerned = self._exchange.acknowledged(request.response_nonce)
            else:
                concerned = self._exchange.subscribed(kind, dict(request.initial_resource_versions))
            self._something_to_tell.set()
            self._listen_for(silence=not self._exchange.answered() and any(self._exchange.unanswered()))
            self._on_change(concerned)

    def _words(self, message: str) -> str:
        """Envoy shows the whole offending message first, and cuts off what is wrong with it; its log does not."""
        words = self._last_words() if message.endswith(TRUNCATED) else ""
        return words or " ".join(message.split())[:WORDS_MAX]

    def _listen_for(self, *, silence: bool) -> None:
        """An answer proves that Envoy lives, so the time begins anew with each."""
        self._silent_since = asyncio.get_running_loop().time() if silence else None

    def _response(self, message: Message) -> Any:
        return self._protocol.DeltaDiscoveryResponse(
            type_url=message.kind.value,
            nonce=message.nonce,
            resources=[self._resource(each) for each in message.resources],
            removed_resources=message.removed,
        )

    def _resource(self, resource: Resource) -> Any:
        found = self._protocol.Resource(name=resource.name, version=resource.version)
        found.resource.Pack(self._parse(resource.content, self._messages[resource.kind]()))
        return found
