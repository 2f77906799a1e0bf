"""Which request arrives where, and what is said when none can."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest
import pytest_asyncio

from gateway_world import WAIT_SECONDS, Replica, Request, World, client, eventually, publish, response, routes


@pytest.mark.parametrize(
    ("host", "path", "arrives"),
    [
        ("iris.default.localhost", "/v1/models/iris:predict", "/v1/models/iris:predict"),
        ("iris.default.localhost:7080", "/v1/models/iris:predict?x=1", "/v1/models/iris:predict?x=1"),
        ("iris.default.localhost:1", "/", "/"),
        ("IRIS.Default.localhost", "/v2", "/v2"),
        ("iris.default.localhost.", "/v2", "/v2"),
        ("iris.default.localhost", "/v1/model/iris:predict", "/v1/models/iris:predict"),
        (
            "iris.default.localhost",
            "/v1/model/iris:predict?a=/v1/model/",
            "/v1/models/iris:predict?a=/v1/model/",
        ),
        ("iris.default.localhost", "//v1//models/iris", "/v1/models/iris"),
        ("anything", "/serving/default/iris/v1/models/iris:predict", "/v1/models/iris:predict"),
        ("10.0.0.1:80", "/serving/default/iris/v1/model/iris:predict?b=2", "/v1/models/iris:predict?b=2"),
        ("anything", "/serving/default/iris", "/"),
        ("anything", "/serving/default/iris/", "/"),
        ("anything", "/serving/default/iris?q=1", "/?q=1"),
        ("anything", "/serving/default/iris/serving/default/iris", "/serving/default/iris"),
    ],
)
async def test_a_request_arrives_by_host_and_by_path(
    routed: tuple[Replica, httpx.AsyncClient], host: str, path: str, arrives: str
) -> None:
    replica, http = routed
    url = str(http.base_url).rstrip("/") + path
    answer = await http.post(url, headers={"host": host}, content=b"{}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["path"] == arrives
    assert replica.requests[-1].body == b"{}"


@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("iris.other.localhost", "/v1/models/iris"),
        ("iris.default.example.com", "/v1/models/iris"),
        ("default.iris.localhost", "/"),
        ("localhost", "/serving/default/iris2/v1/models/iris"),
        ("localhost", "/serving/default/iri"),
        ("localhost", "/serving/default"),
        ("localhost", "/"),
        ("localhost", "/serving/default/iris/../other/v1/models"),
    ],
)
async def test_what_matches_nothing_is_404_as_json(
    routed: tuple[Replica, httpx.AsyncClient], host: str, path: str
) -> None:
    replica, http = routed
    answer = await http.get(path, headers={"host": host})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"error": "no endpoint is served at this host and path", "reason": "NotFound"}
    assert replica.requests == []


async def test_with_credentials_the_api_answers_what_matches_nothing(world: World) -> None:
    async def refuse(request: Request) -> AsyncIterator[bytes]:
        yield response(404, b'{"error":"these exist: ..."}', "content-type: application/json")

    api = await world.replica("api", refuse, tcp=True)
    gateway = await world.gateway(api_address=api.address)
    async with client(gateway) as http:
        headers = {
            "host": "nobody.default.localhost:99",
            "authorization": "Bearer k",
            "x-inferplane-original-host": "forged",
            "x-inferplane-original-path": "forged",
        }
        answer = await http.post("/v1/models/nobody:predict?x=1", headers=headers, content=b"x" * 100_000)
        assert (answer.status_code, answer.json()) == (404, {"error": "these exist: ..."})
        (seen,) = api.requests
        assert seen.path.partition("?")[0] == "/api/v1/gateway/unmatched"
        assert seen.headers["x-inferplane-original-host"] == "nobody.default.localhost:99"
        assert seen.headers["x-inferplane-original-path"] == "/v1/models/nobody:predict?x=1"
        assert seen.headers["authorization"] == "Bearer k"

        await api.stop()
        answer = await http.get("/v1/models/nobody", headers=headers)
        assert answer.status_code == 503
        assert "the API" in answer.json()["error"]


async def test_an_endpoint_without_replicas_says_why(world: World) -> None:
    gateway = await world.gateway()
    await publish(gateway, routes(unavailable_reason="Downloading"))
    async with client(gateway) as http:
        for url in ("/serving/default/iris/v1/models/iris:predict", "/serving/default/iris"):
            answer = await http.post(url, content=b"{}")
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/json"
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json() == {
                "error": "endpoint iris in workspace default is not ready: Downloading",
                "reason": "Downloading",
                "nextAction": "Send the request again in a moment; "
                "'inferplane explain' says what the endpoint waits for.",
            }


async def test_a_new_reason_is_told_soon(world: World) -> None:
    gateway = await world.gateway()
    await publish(gateway, routes(unavailable_reason="Pending"))
    gateway.set(routes(unavailable_reason="CrashLoop"))
    async with client(gateway) as http:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT_SECONDS
        while (answer := await http.get("/serving/default/iris/v2")).json()["reason"] != "CrashLoop":
            assert loop.time() < deadline, answer.text

        # And at once when the last replica goes.
        replica = await world.replica()
        await publish(gateway, routes(replica.upstream, unavailable_reason="Running"))
        assert (await http.get("/serving/default/iris/v2")).status_code == 200
        await publish(gateway, routes(unavailable_reason="ServerExited"))
        answer = await http.get("/serving/default/iris/v2")
        assert (answer.status_code, answer.json()["reason"]) == (503, "ServerExited")


async def test_replicas_share_requests_by_weight(world: World) -> None:
    heavy, light = await world.replica("r1-0"), await world.replica("r2-0", tcp=True)
    gateway = await world.gateway(workers=1)
    upstreams = (replace(heavy.upstream, weight=9), replace(light.upstream, weight=1))
    await publish(gateway, routes(*upstreams))
    async with client(gateway) as http:
        for _ in range(100):
            assert (await http.get("/serving/default/iris/v2")).status_code == 200
    shares = Counter({r.name: len(r.requests) for r in (heavy, light)})
    assert 80 <= shares["r1-0"] <= 97
    assert shares["r2-0"] == 100 - shares["r1-0"]


async def test_a_replica_at_a_host_name_is_resolved(world: World) -> None:
    replica = await world.replica(tcp=True)
    gateway = await world.gateway()
    port = replica.address.rpartition(":")[2]
    await publish(gateway, routes(replace(replica.upstream, address=f"localhost:{port}")))
    async with client(gateway) as http:
        # Names are resolved in the background, after Envoy has taken up the route.
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT_SECONDS
        while (answer := await http.get("/serving/default/iris/v2")).status_code != 200:
            assert loop.time() < deadline, answer.text


async def test_an_address_that_means_nothing_harms_nobody_else(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    gateway.set(routes(replace(replica.upstream, address="unix:" + "/x" * 80), endpoint="broken"))
    await publish(gateway, routes(replica.upstream))
    await eventually(lambda: gateway.confirmed("uid-broken") is not None, "the broken one to be settled")
    async with client(gateway) as http:
        assert (await http.get("/serving/default/iris/v2")).status_code == 200
        assert (await http.get("/serving/default/broken/v2")).status_code == 503
    assert gateway.problem() == ""


async def test_answers_are_streamed(world: World) -> None:
    async def two_events(request: Request) -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        yield b"5\r\nfirst\r\n"
        await eventually(lambda: seen_first, "the first event to arrive at the client")
        yield b"6\r\nsecond\r\n0\r\n\r\n"

    seen_first: list[str] = []
    replica = await world.replica("r1-0", two_events)
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream))
    async with (
        client(gateway) as http,
        http.stream("POST", "/serving/default/iris/v1/chat/completions", content=b"{}") as answer,
    ):
        pieces = answer.aiter_text()
        seen_first.append(await anext(pieces))
        assert seen_first == ["first"]
        assert await anext(pieces) == "second"


async def test_garbage_is_answered_as_json(world: World) -> None:
    gateway = await world.gateway()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: nonsense\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400")


@pytest_asyncio.fixture
async def routed(world: World) -> AsyncIterator[tuple[Replica, httpx.AsyncClient]]:
    """Endpoint iris with one replica, and a client of the gateway."""
    replica = await world.replica()
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream))
    async with client(gateway) as http:
        yield replica, http


async def test_one_name_on_two_clusters_is_reached_by_two_hosts_and_paths(world: World) -> None:
    here, there = await world.replica(), await world.replica()
    gateway = await world.gateway()
    await publish(
        gateway,
        routes(here.upstream, uid="u1"),
        routes(there.upstream, uid="u2", cluster="worker-1"),
    )
    async with client(gateway) as http:
        for replica, host, prefix in (
            (here, "iris.default.localhost", "/serving/default/iris"),
            (there, "iris.default.worker-1.localhost", "/serving/default/iris.worker-1"),
        ):
            by_host = await http.post("/v1/models/iris:predict", headers={"host": host}, content=b"{}")
            by_path = await http.post(f"{prefix}/v1/models/iris:predict", content=b"{}")
            assert (by_host.status_code, by_path.status_code) == (200, 200)
            assert by_host.json()["path"] == by_path.json()["path"] == "/v1/models/iris:predict"
            assert len(replica.requests) == 2
            replica.requests.clear()
        assert (await http.get("/serving/default/iris.worker-2/v2")).status_code == 404

    publisher_after = world.unopened()
    await gateway.close(stop_gateway=False)
    await publisher_after.start()
    told = publisher_after.confirmed("u2")
    assert told is not None, "a new control plane reads back what the gateway was told"
    assert told.cluster == "worker-1"
