"""What is too large, too slow or broken gets an answer that says so, as JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx

from gateway_world import Request, World, client, eventually, publish, response, routes

PREDICT = "/serving/default/iris/v1/models/iris:predict"
MIB = 1024 * 1024


async def test_a_body_up_to_the_limit_passes_and_one_byte_more_is_413(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream, max_request_bytes=1_000_000))
    async with client(gateway) as http:
        for host in ("iris.default.localhost", "other"):
            path = PREDICT if host == "other" else "/v1/models/iris:predict"
            answer = await http.post(path, headers={"host": host}, content=b"x" * 1_000_000)
            assert (answer.status_code, answer.json()["bodyBytes"]) == (200, 1_000_000)

            answer = await http.post(path, headers={"host": host}, content=b"x" * 1_000_001)
            assert answer.status_code == 413
            assert answer.headers["content-type"] == "application/json"
            assert answer.json() == {
                "error": "the request body is larger than 1000000 bytes, "
                "the limit of endpoint iris in workspace default",
                "reason": "RequestTooLarge",
                "maxRequestBytes": 1_000_000,
            }
    assert len(replica.requests) == 2, "a body that is too large never reaches a replica"


async def test_a_body_of_unknown_length_is_limited_too(world: World) -> None:
    async def three_megabytes() -> AsyncIterator[bytes]:
        for _ in range(60):
            yield b"x" * 50_000

    replica = await world.replica()
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream, max_request_bytes=MIB))
    async with client(gateway) as http:
        answer = await http.post(PREDICT, content=three_megabytes())
        assert answer.status_code == 413
        assert replica.requests == []


async def test_each_endpoint_has_its_own_limit(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    small = routes(replica.upstream, endpoint="small", max_request_bytes=10)
    large = routes(replica.upstream, endpoint="large", max_request_bytes=32 * MIB)
    await publish(gateway, small, large)
    async with client(gateway) as http:
        assert (await http.post("/serving/default/small/x", content=b"x" * 11)).status_code == 413
        answer = await http.post("/serving/default/large/x", content=b"x" * (20 * MIB))
        assert answer.json()["bodyBytes"] == 20 * MIB


async def test_fifty_megabytes_against_a_limit_of_sixteen_read_by_a_plain_client(world: World) -> None:
    """A client that sends everything before it reads must still find the answer."""
    gateway = await world.gateway()
    await publish(gateway, routes(max_request_bytes=16 * MIB))
    async with client(gateway) as http:
        answer = await http.post(PREDICT, content=b"x" * (50 * MIB))
    assert answer.status_code == 413
    assert answer.json()["maxRequestBytes"] == 16 * MIB


async def test_an_answer_that_takes_too_long_is_504_and_is_not_asked_for_again(world: World) -> None:
    async def never(request: Request) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    replica, other = await world.replica("r1-0", never), await world.replica("r1-1", never)
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream, other.upstream, timeout_seconds=0.3))
    async with client(gateway) as http:
        answer = await http.post(PREDICT, content=b"{}")
    assert answer.status_code == 504
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "error": "no answer within 0.3 seconds, the limit of endpoint iris in workspace default",
        "reason": "RequestTimeout",
        "timeoutSeconds": 0.3,
    }
    assert len(replica.requests) + len(other.requests) == 1
    replica.in_flight = other.in_flight = 0


async def test_clients_cannot_change_the_limits_by_header(world: World) -> None:
    async def fail(request: Request) -> AsyncIterator[bytes]:
        yield response(500, b"{}")

    replica = await world.replica("r1-0", fail)
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream))
    headers = {
        "x-envoy-retry-on": "5xx",
        "x-envoy-max-retries": "5",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "x-envoy-internal": "true",
    }
    async with client(gateway) as http:
        assert (await http.post(PREDICT, headers=headers, content=b"{}")).status_code == 500
    assert len(replica.requests) == 1


async def test_what_a_replica_answers_is_passed_on_as_it_is(world: World) -> None:
    async def refuse(request: Request) -> AsyncIterator[bytes]:
        yield response(int(request.path.rpartition("/")[2]), b'{"error":"mine"}', "content-type: text/odd")

    replica = await world.replica("r1-0", refuse)
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream))
    async with client(gateway) as http:
        for status in (400, 404, 413, 500, 503, 504):
            answer = await http.get(f"/serving/default/iris/{status}")
            assert (answer.status_code, answer.text) == (status, '{"error":"mine"}')
            assert answer.headers["content-type"] == "text/odd"


async def test_the_gateway_outlives_many_large_bodies_at_once(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream, max_request_bytes=16 * MIB))
    pid = gateway.pid
    limits = httpx.Limits(max_connections=20)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", limits=limits) as http:
        body = b"x" * (8 * MIB)
        answers = await asyncio.gather(*(http.post(PREDICT, content=body, timeout=60) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    await eventually(lambda: gateway.problem() == "", "the gateway to be well")
    assert gateway.pid == pid
