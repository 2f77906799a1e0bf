"""gRPC through the gateway's one port: found by host or by header, whole and in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from gateway_world import Request, World, eventually, publish, response, routes
from inferplane.gateway.endpoint_keys import KeyClaims, key_set, mint, new_signing_key
from inferplane.gateway.route_table import Access, Upstream
from inferplane.gateway.usage_log import count

SERVICE = "inference.GRPCInferenceService"


@pytest_asyncio.fixture
async def speaking(world: World) -> AsyncIterator[Upstream]:
    """A replica that speaks gRPC on its socket: `ModelInfer` says its request twice."""

    async def twice(request: bytes, context: Any) -> bytes:
        if request == b"fail":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such tensor")
        return request * 2

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(twice)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler}),))
    socket = f"unix:{world.folder}/grpc.sock"
    server.add_insecure_port(socket)
    await server.start()
    yield Upstream("r1-0", socket)
    await server.stop(0)


async def call(port: int, content: bytes, *, host: str = "", **headers: str) -> bytes:
    options = [("grpc.default_authority", host)] if host else []
    metadata = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        answer: bytes = await ask(content, metadata=metadata, timeout=20)
        return answer


async def test_by_host_and_by_header(world: World, speaking: Upstream) -> None:
    gateway = await world.gateway()
    await publish(gateway, routes(speaking))
    assert await call(gateway.port, b"ab", host="iris.default.localhost") == b"abab"
    assert await call(gateway.port, b"ab", x_inferplane_endpoint="default/iris") == b"abab"
    large = b"x" * 1_000_000
    assert await call(gateway.port, large, host="iris.default.localhost:7080") == large * 2


async def test_what_the_replica_says_and_what_the_gateway_says(world: World, speaking: Upstream) -> None:
    gateway = await world.gateway()
    await publish(gateway, routes(speaking), routes(endpoint="pending", unavailable_reason="Downloading"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(gateway.port, b"fail", host="iris.default.localhost")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "no such tensor"
    with pytest.raises(grpc.aio.AioRpcError) as pending:
        await call(gateway.port, b"", x_inferplane_endpoint="default/pending")
    assert pending.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "Downloading" in str(pending.value.details())
    with pytest.raises(grpc.aio.AioRpcError) as nobody:
        await call(gateway.port, b"", x_inferplane_endpoint="default/nobody")
    assert nobody.value.code() is grpc.StatusCode.UNIMPLEMENTED, "what gRPC makes of a 404"


async def test_keys_are_wanted_here_too(world: World, speaking: Upstream) -> None:
    signing = new_signing_key()
    gateway = await world.gateway(key_set=key_set(signing))
    await publish(gateway, routes(speaking, access=Access.KEY))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(gateway.port, b"ab", host="iris.default.localhost")
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    key = mint(KeyClaims("k", ("uid-iris",), datetime(2026, 1, 1, tzinfo=UTC)), signing)
    answer = await call(gateway.port, b"ab", host="iris.default.localhost", authorization=f"Bearer {key}")
    assert answer == b"abab"


async def test_a_call_that_waits_is_counted_once(world: World, speaking: Upstream) -> None:
    """Whatever number of times it is sent to the activator: by the rate, and in what was used."""
    third, awake = asyncio.Event(), asyncio.Event()

    async def elsewhere(_: Request) -> AsyncIterator[bytes]:
        if len(activator.requests) == 3:
            third.set()
            await awake.wait()
        where = f"location: http://gateway/serving/default/iris/{SERVICE}/ModelInfer"
        yield response(307, b"", where, "content-type: application/grpc", "grpc-status: 14")

    activator = await world.replica("activator", elsewhere)
    gateway = await world.gateway(activator_address=activator.address)
    limits: dict[str, Any] = {"requests_per_second": 0.001, "burst": 1}
    asleep = routes(asleep=True, **limits)
    gateway.set(asleep)
    await eventually(lambda: gateway.confirmed("uid-iris") == asleep, "the endpoint to be asleep")
    calling = asyncio.create_task(call(gateway.port, b"ab", host="iris.default.localhost"))
    async with asyncio.timeout(20):
        await third.wait()
    await publish(gateway, routes(speaking, **limits))
    awake.set()
    assert await calling == b"abab"
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call(gateway.port, b"ab", host="iris.default.localhost")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE, "what gRPC makes of a 429"
    await eventually(lambda: gateway.access_log.read_text().count("\n") == 5, "the log to be written")
    (used,) = count(gateway.access_log.read_bytes().splitlines())
    assert (used.used.requests, len(activator.requests)) == (2, 3)
