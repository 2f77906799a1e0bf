"""Again on another replica where that is safe, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from gateway_world import Request, World, client, echo, eventually, publish, response, routes

PREDICT = "/serving/default/iris/v1/models/iris:predict"


async def refuse_unprocessed(request: Request) -> AsyncIterator[bytes]:
    yield response(503, b'{"error":"draining"}', "x-inferplane-not-processed: 1", "retry-after: 1")


async def die(request: Request) -> AsyncIterator[bytes]:
    if request.method:
        raise ConnectionAbortedError
    yield b""


async def test_a_dead_replica_is_passed_over(world: World) -> None:
    dead, well = await world.replica("r1-0"), await world.replica("r1-1")
    gateway = await world.gateway()
    await publish(gateway, routes(dead.upstream, well.upstream))
    await dead.stop()
    async with client(gateway) as http:
        for _ in range(30):
            answer = await http.post(PREDICT, content=b"x" * 100_000)
            assert (answer.status_code, answer.json()["bodyBytes"]) == (200, 100_000)
    assert len(well.requests) == 30


async def test_a_replica_that_did_not_process_a_request_passes_it_on(world: World) -> None:
    full, well = await world.replica("r1-0", refuse_unprocessed), await world.replica("r1-1")
    gateway = await world.gateway()
    await publish(gateway, routes(full.upstream, well.upstream))
    body = b"x" * 3_000_000
    async with client(gateway) as http:
        for _ in range(10):
            answer = await http.post(PREDICT, content=body)
            assert (answer.status_code, answer.json()["bodyBytes"]) == (200, len(body))
    assert len(well.requests) == 10


async def test_when_every_replica_is_full_the_last_answer_is_passed_on(world: World) -> None:
    replicas = [await world.replica(f"r1-{i}", refuse_unprocessed) for i in range(2)]
    gateway = await world.gateway()
    await publish(gateway, routes(*(replica.upstream for replica in replicas)))
    async with client(gateway) as http:
        answer = await http.post(PREDICT, content=b"{}")
    assert (answer.status_code, answer.json()) == (503, {"error": "draining"})
    assert answer.headers["retry-after"] == "1"
    assert 2 <= sum(len(replica.requests) for replica in replicas) <= 4


async def test_what_may_have_been_processed_is_never_sent_twice(world: World) -> None:
    dying = [await world.replica(f"r1-{i}", die) for i in range(2)]
    gateway = await world.gateway()
    await publish(gateway, routes(*(replica.upstream for replica in dying)))
    async with client(gateway) as http:
        for count in range(1, 6):
            answer = await http.post(PREDICT, content=b"{}")
            assert answer.status_code == 502
            assert answer.headers["content-type"] == "application/json"
            assert answer.json() == {
                "error": "the replica of endpoint iris in workspace default that took the request "
                "went away before it answered",
                "reason": "ReplicaWentAway",
            }
            assert sum(len(replica.requests) for replica in dying) == count


async def test_a_prediction_that_can_be_repeated_is_answered_by_another_replica(world: World) -> None:
    dying, well = await world.replica("r1-0", die), await world.replica("r1-1")
    gateway = await world.gateway()
    await publish(gateway, routes(dying.upstream, well.upstream, retriable=True))
    body = b"x" * 3_000_000
    async with client(gateway) as http:
        for _ in range(10):
            answer = await http.post(PREDICT, content=body)
            assert (answer.status_code, answer.json()["bodyBytes"]) == (200, len(body))
    assert dying.requests, "the test really broke connections"
    assert len(well.requests) == 10


async def test_everything_in_flight_at_a_replica_that_dies_is_answered_by_the_other(world: World) -> None:
    many, dead = 200, asyncio.Event()

    async def hold_and_die(request: Request) -> AsyncIterator[bytes]:
        await dead.wait()
        async for piece in die(request):
            yield piece

    async def hold(request: Request) -> AsyncIterator[bytes]:
        await dead.wait()
        async for piece in echo(request):
            yield piece

    dying, well = await world.replica("r1-0", hold_and_die), await world.replica("r1-1", hold)
    gateway = await world.gateway()
    await publish(gateway, routes(dying.upstream, well.upstream, retriable=True))
    async with client(gateway, connections=many) as http:
        asking = [asyncio.create_task(http.post(PREDICT, content=b"{}")) for _ in range(many)]
        await eventually(lambda: dying.in_flight + well.in_flight == many, "all to be in flight")
        lost = dying.in_flight
        dead.set()
        answers = await asyncio.gather(*asking)
    assert lost > many // 4
    assert [answer.text for answer in answers if answer.status_code != 200] == []


async def test_one_that_ends_every_replica_is_not_passed_on_for_ever(world: World) -> None:
    dying = [await world.replica(f"r1-{i}", die) for i in range(5)]
    gateway = await world.gateway()
    await publish(gateway, routes(*(replica.upstream for replica in dying), retriable=True))
    async with client(gateway) as http:
        answer = await http.post(PREDICT, content=b"{}")
    assert (answer.status_code, answer.json()["reason"]) == (502, "ReplicaWentAway")
    assert sum(len(replica.requests) for replica in dying) == 3


async def test_an_answer_that_has_begun_is_not_begun_again(world: World) -> None:
    async def die_half_way(request: Request) -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + request.method.encode()
        raise ConnectionAbortedError

    dying = [await world.replica(f"r1-{i}", die_half_way) for i in range(2)]
    gateway = await world.gateway()
    await publish(gateway, routes(*(replica.upstream for replica in dying), retriable=True))
    async with client(gateway) as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.post(PREDICT, content=b"{}")
    assert sum(len(replica.requests) for replica in dying) == 1


async def test_a_replica_that_is_full_is_believed(world: World) -> None:
    async def full(request: Request) -> AsyncIterator[bytes]:
        if request.method:
            marks = ("x-inferplane-not-processed: 1", "x-envoy-ratelimited: true", "retry-after: 1")
            yield response(503, b'{"error":"full"}', *marks)

    replicas = [await world.replica(f"r1-{i}", full) for i in range(2)]
    gateway = await world.gateway()
    await publish(gateway, routes(*(replica.upstream for replica in replicas), retriable=True))
    async with client(gateway) as http:
        for count in range(1, 6):
            answer = await http.post(PREDICT, content=b"{}")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert sum(len(replica.requests) for replica in replicas) == count


async def test_the_only_replica_is_tried_again_as_soon_as_it_is_back(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream))
    path = world.folder / replica.address.rpartition("/")[2]
    await replica.stop()
    async with client(gateway) as http:
        for _ in range(10):
            answer = await http.post(PREDICT, content=b"{}")
            assert answer.status_code == 503
            assert answer.json()["error"] == (
                "endpoint iris in workspace default cannot be reached at the moment"
            )
            assert answer.json()["nextAction"].startswith("Send the request again in a moment")
            assert answer.headers["retry-after"]
        await replica.listen(path)
        assert (await http.post(PREDICT, content=b"{}")).status_code == 200


async def test_all_replicas_gone_and_one_back_is_found(world: World) -> None:
    replicas = [await world.replica(f"r1-{i}") for i in range(3)]
    gateway = await world.gateway()
    await publish(gateway, routes(*(replica.upstream for replica in replicas)))
    for replica in replicas:
        await replica.stop()
    async with client(gateway) as http:
        answers = await asyncio.gather(*(http.post(PREDICT, content=b"{}") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {503}
        back = replicas[1]
        await back.listen(world.folder / back.address.rpartition("/")[2])
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 20
        while (answer := await http.post(PREDICT, content=b"{}")).status_code != 200:
            assert loop.time() < deadline, answer.text
