"""Requests for endpoints at rest: real HTTP through a unix socket, replicas that are small servers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest
import uvicorn

from inferplane.gateway.activator import Activator
from inferplane.gateway.demand import Demand, Standing

UID = "0123456789ab"
WAKING = Standing(reason="Loading", message="the model server is loading the model")
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def _now() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - a condition of several parties
            await asyncio.sleep(0.005)


@dataclass
class House:
    """An activator that listens, and what it asked to be woken."""

    folder: Path
    demand: Demand
    client: httpx.AsyncClient
    woken: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def replica(self, handler: Handler, name: str = "replica") -> AsyncIterator[str]:
        path = self.folder / f"{name}.sock"
        server = await asyncio.start_unix_server(handler, path)
        async with server:
            yield f"unix:{path}"

    def held(self) -> int:
        return self.demand.traffic(UID).held


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with _house() as one:
        yield one


@asynccontextmanager
async def _house(**limits: float) -> AsyncIterator[House]:
    with TemporaryDirectory(prefix="ip-") as name:
        folder, woken = Path(name), list[str]()
        demand = Demand(_now, woken.append)
        app = Activator(demand, **limits)  # type: ignore[arg-type]
        socket = str(folder / "activator.sock")
        server = uvicorn.Server(
            uvicorn.Config(app, uds=socket, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        )
        task = asyncio.create_task(server._serve(None))
        await until(lambda: server.started)
        transport = httpx.AsyncHTTPTransport(uds=socket)
        async with httpx.AsyncClient(
            transport=transport,
            base_url="http://endpoint",
            timeout=30,
            headers={"x-inferplane-endpoint": UID},
        ) as client:
            yield House(folder, demand, client, woken)
        server.should_exit = True
        await task


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the request's head and the size of its body, in chunks."""
    head = await reader.readuntil(b"\r\n\r\n")
    body = 0
    if b"chunked" in head:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size)
            await reader.readline()
            body += size
        await reader.readline()
    else:
        lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
        left = int(lengths[0].split(b":")[1]) if lengths else 0
        while left:
            part = await reader.read(min(left, 65536))
            left -= len(part)
            body += len(part)
    answer = json.dumps({"head": head.decode(), "bytes": body}).encode()
    writer.write(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-model: a\r\nconnection: close, x-own\r\n"
    )
    writer.write(b"x-own: 1\r\n\r\n")
    writer.write(f"{len(answer):x}\r\n".encode() + answer + b"\r\n0\r\n\r\n")
    await writer.drain()
    writer.close()


async def test_a_request_is_held_until_a_replica_answers(house: House) -> None:
    asked = asyncio.create_task(house.client.post("/v1/models/m:predict?a=%2F", content=b"{}"))
    await until(lambda: house.held() == 1)
    assert house.woken == [UID]
    house.demand.tell(UID, WAKING)
    async with house.replica(echo) as address:
        house.demand.tell(UID, Standing((address,)))
        answer = await asked
    assert answer.status_code == 200
    assert answer.json()["head"].startswith("POST /v1/models/m:predict?a=%2F HTTP/1.1\r\n")
    assert answer.json()["bytes"] == 2
    assert house.held() == 0
    assert house.demand.traffic(UID).idle_since is None, "nobody measured"


async def test_headers_of_the_connection_stay_with_it(house: House) -> None:
    async with house.replica(echo) as address:
        house.demand.tell(UID, Standing((address,)))
        headers = {"x-wake-timeout": "5", "te": "trailers", "x-mine": "1", "host": "iris.team.example"}
        answer = await house.client.get("/", headers=headers)
    head = answer.json()["head"].lower()
    assert "x-mine: 1" in head
    assert "host: iris.team.example" in head
    for absent in ("x-wake-timeout", "x-inferplane-endpoint", "te:", "connection: keep"):
        assert absent not in head
    assert answer.headers["x-model"] == "a"
    assert "x-own" not in answer.headers


@pytest.mark.parametrize("streamed", [True, False])
async def test_large_bodies_pass_through(house: House, streamed: bool) -> None:
    size, chunk = 32 * 1024 * 1024, 256 * 1024

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size // chunk):
            yield bytes(chunk)

    async with house.replica(echo) as address:
        asked = asyncio.create_task(house.client.post("/", content=pieces() if streamed else bytes(size)))
        await until(lambda: house.held() == 1)
        house.demand.tell(UID, Standing((address,)))
        assert (await asked).json()["bytes"] == size


async def test_an_answer_comes_piece_by_piece(house: House) -> None:
    go_on = asyncio.Event()

    async def events(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: 1\n\n"
        )
        await writer.drain()
        await go_on.wait()
        writer.write(b"data: 2\n\n")
        writer.close()

    async with house.replica(events) as address:
        house.demand.tell(UID, Standing((address,)))
        async with house.client.stream("GET", "/") as answer:
            parts = answer.aiter_raw()
            assert await anext(parts) == b"data: 1\n\n"
            go_on.set()
            assert await anext(parts) == b"data: 2\n\n"


async def test_a_wait_that_is_over_says_what_is_going_on(house: House) -> None:
    house.demand.tell(UID, WAKING)
    answer = await house.client.get("/", headers={"x-wake-timeout": "0.05"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json() == {
        "error": "the endpoint is waking: the model server is loading the model",
        "reason": "Loading",
        "nextAction": "Send the request again, or wait longer with X-Wake-Timeout.",
        "waking": True,
    }
    assert house.woken == [UID], "it was woken all the same"


@pytest.mark.parametrize("seconds", ["soon", "-1", "601", "nan", "inf", ""])
async def test_a_wait_that_cannot_be_is_refused(house: House, seconds: str) -> None:
    answer = await house.client.get("/", headers={"x-wake-timeout": seconds})
    assert (answer.status_code, answer.json()["reason"]) == (400, "OutOfRange")


async def test_what_cannot_start_is_said_at_once(house: House) -> None:
    asked = asyncio.create_task(house.client.get("/"))
    await until(lambda: house.held() == 1)
    house.demand.tell(
        UID, Standing(reason="NotAModel", message="no model", next_action="Fix.", hopeless=True)
    )
    answer = await asked
    assert answer.status_code == 503
    assert answer.json() == {
        "error": "the endpoint cannot answer: no model",
        "reason": "NotAModel",
        "nextAction": "Fix.",
    }


async def test_what_failed_says_when_it_is_tried_again(house: House) -> None:
    tried_at = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)
    failed = Standing(
        reason="StorageUnreachable", message="no answer", next_action="Check it.", hopeless=True
    )
    house.demand.tell(UID, replace(failed, next_retry_at=tried_at))
    answer = await house.client.get("/")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["nextAction"] == "Check it. It is tried again at 2026-01-01T12:30:00Z."


async def test_an_endpoint_that_goes_away_takes_its_waiting_requests_along(house: House) -> None:
    asked = asyncio.create_task(house.client.get("/"))
    await until(lambda: house.held() == 1)
    house.demand.forget(UID)
    assert (await asked).json()["reason"] == "NotFound"


async def test_a_platform_that_stops_lets_nobody_wait(house: House) -> None:
    asked = asyncio.create_task(house.client.get("/"))
    await until(lambda: house.held() == 1)
    house.demand.close()
    assert (await asked).json()["reason"] == "Stopping"


async def test_a_client_that_goes_away_waits_no_more(house: House) -> None:
    asked = asyncio.create_task(house.client.post("/", content=b"x" * 1000))
    await until(lambda: house.held() == 1)
    asked.cancel()
    await until(lambda: house.held() == 0)


async def test_a_client_that_goes_away_is_not_answered_to_the_end(house: House) -> None:
    asked, over = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()  # until the other side closes
        over.set()
        writer.close()

    async with house.replica(slow) as address:
        house.demand.tell(UID, Standing((address,)))
        call = asyncio.create_task(house.client.get("/"))
        async with asyncio.timeout(20):
            await asked.wait()
        call.cancel()
        async with asyncio.timeout(20):
            await over.wait()


async def test_a_replica_that_is_just_going_is_no_answer(house: House) -> None:
    async with house.replica(echo) as address:
        house.demand.tell(UID, Standing((f"unix:{house.folder}/gone.sock",)))
        asked = asyncio.create_task(house.client.post("/", content=b"12"))
        await until(lambda: house.held() == 1)
        house.demand.tell(UID, WAKING)
        house.demand.tell(UID, Standing((address,)))
        assert (await asked).json()["bytes"] == 2


async def test_a_request_that_may_have_been_read_is_not_sent_twice(house: House) -> None:
    seen = 0

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        await reader.readuntil(b"\r\n\r\n")
        seen += 1
        writer.close()

    async with house.replica(dies) as address:
        house.demand.tell(UID, Standing((address,)))
        answer = await house.client.get("/")
    assert (answer.status_code, answer.json()["reason"], seen) == (503, "ServerExited", 1)


async def test_no_more_wait_than_may() -> None:
    async with _house(held_max_per_endpoint=2, held_max=3) as house:
        waiting = [asyncio.create_task(house.client.get("/")) for _ in range(2)]
        await until(lambda: house.held() == 2)
        answer = await house.client.get("/")
        assert (answer.status_code, answer.json()["reason"]) == (503, "TooManyWaiting")
        assert answer.headers["retry-after"]
        other = {"x-inferplane-endpoint": "ba9876543210"}
        waiting.append(asyncio.create_task(house.client.get("/", headers=other)))
        await until(lambda: house.demand.traffic("ba9876543210").held == 1)
        third = {"x-inferplane-endpoint": "aaaaaaaaaaaa"}
        assert (await house.client.get("/", headers=third)).json()["reason"] == "TooManyWaiting"
        house.demand.close()
        assert {each.status_code for each in await asyncio.gather(*waiting)} == {503}


async def test_grpc_is_told_in_its_own_way(house: House) -> None:
    plain = {"content-type": "application/grpc"}
    named = {"x-inferplane-route": "iris.team.edge", "host": "h:7080", "x-inferplane-endpoint": ""}
    grpc = plain | named
    waiting = asyncio.create_task(house.client.post(f"/{UID}/a.B/C", headers=grpc))
    await until(lambda: house.demand.traffic(UID).held == 1)
    house.demand.tell(UID, Standing((f"unix:{house.folder}/x.sock",)))
    answer = await waiting
    assert (answer.status_code, answer.headers["grpc-status"]) == (307, "14")
    assert answer.headers["location"] == "http://h:7080/serving/team/iris.edge/a.B/C", "for the gateway"
    assert "woken" in answer.headers["grpc-message"]
    assert int(answer.headers["grpc-retry-pushback-ms"]) > 0
    other = await house.client.post("/grpc.health.v1.Health/Check", headers=plain)
    assert (other.status_code, other.headers["grpc-status"]) == (200, "14"), "a service that is not routed"
    house.demand.tell(UID, Standing(hopeless=True, reason="NotAModel", message="no model"))
    refused = await house.client.post(f"/{UID}/a.B/C", headers=grpc)
    assert (refused.status_code, refused.headers["grpc-status"]) == (200, "14")
    assert "no model" in refused.headers["grpc-message"]


async def test_what_stands_behind_the_body_names_no_endpoint(house: House) -> None:
    """The server takes trailers for headers; they are the client's own."""
    async with house.replica(echo) as address:
        house.demand.tell(UID, Standing((address,)))
        reader, writer = await asyncio.open_unix_connection(house.folder / "activator.sock")
        writer.write(
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nx-inferplane-endpoint: "
            + UID.encode()
            + b"\r\n\r\n2\r\n{}\r\n0\r\nx-inferplane-endpoint: ba9876543210\r\nx-wake-timeout: 0\r\n\r\n"
        )
        async with asyncio.timeout(20):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert "ba9876543210" not in house.woken


async def test_a_request_that_names_no_endpoint(house: House) -> None:
    answer = await house.client.get("/", headers={"x-inferplane-endpoint": ""})
    assert answer.status_code == 404
