"""Shares of revisions, mirrors, sticky callers, named revisions, and endpoints that are asleep."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import h2.config
import h2.connection
import httpx

from gateway_world import Replica, Request, World, client, eventually, publish, response, routes

URL = "/serving/default/iris/v2"


def told_by(replicas: list[Replica]) -> Counter[str]:
    return Counter({replica.name: len(replica.requests) for replica in replicas})


async def ask(http: httpx.AsyncClient, times: int, **headers: str) -> None:
    for _ in range(times):
        answer = await http.post(URL, content=b"{}", headers=headers)
        assert answer.status_code == 200, answer.text


async def test_revisions_share_by_percent_whatever_the_number_of_replicas(world: World) -> None:
    replicas = [await world.replica(name) for name in ("r1-0", "r1-1", "r1-2", "r2-0")]
    gateway = await world.gateway()
    await publish(gateway, routes(*(r.upstream for r in replicas), shares=((1, 20), (2, 80))))
    async with client(gateway) as http:
        await ask(http, 200)
    counts = told_by(replicas)
    assert 130 <= counts["r2-0"] <= 185
    assert all(counts[name] for name in ("r1-0", "r1-1", "r1-2"))


async def test_a_share_of_nothing_gets_nothing_but_can_be_named(world: World) -> None:
    replicas = [await world.replica("r1-0"), await world.replica("r2-0")]
    gateway = await world.gateway()
    await publish(gateway, routes(*(r.upstream for r in replicas), shares=((1, 100), (2, 0))))
    async with client(gateway) as http:
        await ask(http, 20)
        assert told_by(replicas) == {"r1-0": 20, "r2-0": 0}
        await ask(http, 5, **{"X-Inferplane-Revision": "2"})
        assert told_by(replicas) == {"r1-0": 20, "r2-0": 5}
        answer = await http.get(URL, headers={"x-inferplane-revision": "3"})
        assert answer.status_code == 404
        assert answer.json() == {
            "error": "endpoint iris in workspace default serves no such revision; it serves 1, 2",
            "reason": "RevisionNotServed",
        }


async def test_callers_with_one_value_of_the_sticky_header_stay_together(world: World) -> None:
    replicas = [await world.replica("r1-0"), await world.replica("r2-0")]
    gateway = await world.gateway()
    sticky = routes(*(r.upstream for r in replicas), shares=((1, 50), (2, 50)), sticky_header="x-user")
    await publish(gateway, sticky)
    async with client(gateway) as http:
        revisions: set[str] = set()
        for user in range(20):
            before = told_by(replicas)
            await ask(http, 5, **{"x-user": f"user-{user}"})
            got = told_by(replicas) - before
            assert sorted(got.values()) == [5], "one caller is with one revision"
            revisions |= got.keys()
    assert revisions == {"r1-0", "r2-0"}


async def test_a_mirror_sees_requests_and_its_answers_and_failures_are_dropped(world: World) -> None:
    async def fail(request: Request) -> AsyncIterator[bytes]:
        yield response(500, b"never seen")

    serving, watched = await world.replica("r1-0"), await world.replica("r2-0", fail)
    gateway = await world.gateway()
    await publish(gateway, routes(serving.upstream, watched.upstream, mirror=(2, 100)))
    async with client(gateway) as http:
        await ask(http, 20)
        await eventually(lambda: len(watched.requests) == 20, "the mirror to have seen them")
        assert len(serving.requests) == 20
        assert {request.body for request in watched.requests} == {b"{}"}
        assert {request.path for request in watched.requests} == {"/v2"}
        # Not even when it is gone.
        await watched.stop()
        await ask(http, 20)


async def test_moving_shares_step_by_step_loses_no_request(world: World) -> None:
    base, candidate = await world.replica("r1-0"), await world.replica("r2-0")
    gateway = await world.gateway()
    await publish(gateway, routes(base.upstream))
    stop = asyncio.Event()
    statuses: list[int] = []

    async def load(http: httpx.AsyncClient) -> None:
        while not stop.is_set():
            statuses.append((await http.post(URL, content=b"{}")).status_code)

    async with client(gateway) as http:
        clients = [asyncio.create_task(load(http)) for _ in range(8)]
        for percent in (0, 1, 25, 50, 75, 99, 100, 30, 0, 100):
            await publish(
                gateway,
                routes(base.upstream, candidate.upstream, shares=((1, 100 - percent), (2, percent))),
            )
        gateway.set(routes(candidate.upstream))
        await eventually(
            lambda: gateway.confirmed("uid-iris") == routes(candidate.upstream), "the base to be dropped"
        )
        await base.stop()
        before = len(statuses)
        await eventually(lambda: len(statuses) > before + 20, "some more requests")
        stop.set()
        await asyncio.gather(*clients)
    assert set(statuses) == {200}


async def test_an_endpoint_that_is_asleep_is_the_activators(world: World) -> None:
    activator, replica = await world.replica("activator"), await world.replica()
    gateway = await world.gateway(activator_address=activator.address)
    asleep = routes(asleep=True)
    gateway.set(asleep)
    await eventually(lambda: gateway.confirmed("uid-iris") == asleep, "the endpoint to be asleep")
    headers = {"x-inferplane-endpoint": "forged", "x-wake-timeout": "3"}
    async with client(gateway) as http:
        answer = await http.post(URL, content=b"x" * 1000, headers=headers)
        assert answer.status_code == 200
        (seen,) = activator.requests
        assert (seen.path, seen.body) == ("/v2", b"x" * 1000)
        assert seen.headers["x-inferplane-endpoint"] == "uid-iris"
        assert seen.headers["x-wake-timeout"] == "3"

        await publish(gateway, routes(replica.upstream))
        await ask(http, 1)
        assert (len(activator.requests), len(replica.requests)) == (1, 1)


async def test_no_caller_names_an_endpoint_behind_a_body(world: World) -> None:
    """Servers take trailers for headers, so what believes the gateway's headers gets none of a caller's."""
    came: asyncio.Queue[bytes] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"transfer-encoding: chunked" in head:
            await reader.readuntil(b"0\r\n")
            behind = b""
            while not (behind == b"\r\n" or behind.endswith(b"\r\n\r\n")):
                behind += await reader.readline()
            head += behind
        came.put_nowait(head)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    activator = await asyncio.start_unix_server(listen, world.folder / "a.sock")
    async with activator:
        gateway = await world.gateway(activator_address=f"unix:{world.folder}/a.sock")
        asleep = routes(asleep=True)
        gateway.set(asleep)
        await eventually(lambda: gateway.confirmed("uid-iris") == asleep, "the endpoint to be asleep")
        caller = h2.connection.H2Connection(h2.config.H2Configuration())
        caller.initiate_connection()
        head = [(":method", "POST"), (":path", URL), (":scheme", "http"), (":authority", "gateway")]
        caller.send_headers(1, head)
        caller.send_data(1, b"{}")
        caller.send_headers(1, [("x-inferplane-endpoint", "uid-other")], end_stream=True)
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(caller.data_to_send())
        async with asyncio.timeout(20):
            seen = await came.get()
        writer.close()
    assert b"uid-iris" in seen
    assert b"uid-other" not in seen


async def test_asleep_without_an_activator_is_not_ready(world: World) -> None:
    gateway = await world.gateway()
    gateway.set(routes(asleep=True, unavailable_reason="Asleep"))
    await eventually(lambda: gateway.confirmed("uid-iris"), "the endpoint to be routed")
    async with client(gateway) as http:
        answer = await http.get(URL)
    assert (answer.status_code, answer.json()["reason"]) == (503, "Asleep")
