"""Idle times from a gateway's counters: what follows from them, and that a real Envoy keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway_world import Request, World, client, eventually, publish, response, routes
from inferplane.gateway.traffic import (
    Count,
    Requests,
    Seen,
    TrafficMeter,
    counts_of,
    observe,
    read_seen,
    write_seen,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
LATER = START + timedelta(minutes=5)


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.at = START

    def __call__(self) -> datetime:
        return self.at


def test_counters_are_read_by_endpoint() -> None:
    assert counts_of(
        {
            "cluster.team/iris/u1/r1.upstream_rq_total": 3,
            "cluster.team/iris/u1/r1.upstream_rq_active": 1,
            "cluster.team/iris/u1/r1/ek-one.upstream_rq_total": 2,
            "cluster.team/other/u2/r3.upstream_rq_total": 0,
            "cluster.inferplane-api.upstream_rq_total": 9,
        }
    ) == {"u1": Count(5, 1), "u2": Count(0, 0)}


def test_requests_only_grow_while_upstreams_come_and_go() -> None:
    def stats(**upstreams: int) -> dict[str, int]:
        names = {key: "" if key == "every" else f"/{key}" for key in upstreams}
        return {f"cluster.team/iris/u1/r1{names[key]}.upstream_rq_total": n for key, n in upstreams.items()}

    requests = Requests()
    looks = [stats(every=5), stats(every=5, k1=3), stats(every=5), stats(every=6), stats(every=1)]
    assert [requests.add(look)["u1"].total for look in looks] == [5, 8, 8, 9, 10]
    assert requests.add({}) == {}


def test_an_endpoint_is_idle_from_when_it_was_first_seen() -> None:
    assert observe({}, {"u": Count()}, START) == {"u": Seen(0, START)}
    assert observe({"u": Seen(0, START)}, {"u": Count()}, LATER) == {"u": Seen(0, START)}


def test_a_request_begins_the_idle_time_anew() -> None:
    assert observe({"u": Seen(1, START)}, {"u": Count(2)}, LATER) == {"u": Seen(2, LATER)}


def test_one_in_flight_is_busy_and_idle_begins_when_it_is_over() -> None:
    busy = observe({"u": Seen(1, START)}, {"u": Count(1, active=1)}, LATER)
    assert busy["u"].busy
    over = LATER + timedelta(minutes=1)
    assert observe(busy, {"u": Count(1)}, over) == {"u": Seen(1, over)}


def test_a_new_gateway_that_counts_from_nothing_is_no_request() -> None:
    assert observe({"u": Seen(7, START)}, {"u": Count(0)}, LATER) == {"u": Seen(0, START)}
    assert observe({"u": Seen(7, START)}, {"u": Count(1)}, LATER) == {"u": Seen(1, LATER)}


def test_an_endpoint_without_replicas_is_forgotten() -> None:
    assert observe({"u": Seen(7, START)}, {}, LATER) == {}


def test_what_was_seen_survives_and_a_broken_file_is_nothing(tmp_path: Path) -> None:
    file = tmp_path / "traffic.json"
    assert read_seen(file) == {}
    write_seen(file, {"u": Seen(7, START, busy=True)})
    assert read_seen(file) == {"u": Seen(7, START, busy=True)}
    for text in ("", "[]", '{"u": 1}', '{"u": [1, "x", true]}'):
        file.write_text(text)
        assert read_seen(file) == {}
    write_seen(tmp_path / "nowhere" / "traffic.json", {"u": Seen(7, START)})


async def test_a_real_gateway_counts_and_a_restart_of_ours_changes_nothing(world: World) -> None:
    release = asyncio.Event()

    async def slowly(_: Request) -> AsyncIterator[bytes]:
        await release.wait()
        yield response(200, b"{}")

    publisher = await world.gateway()
    replica = await world.replica(answer=slowly)
    await publish(publisher, routes(replica.upstream))
    uid, clock = "uid-iris", Clock()
    file, socket = world.folder / "traffic.json", publisher.admin_socket
    meter = TrafficMeter(socket, file, clock, poll_seconds=3600)
    assert meter.idle_since(uid) is None, "nothing is known yet"
    await meter.start()
    assert meter.idle_since(uid) == START

    async with client(publisher) as http:
        asked = asyncio.create_task(http.get("/serving/default/iris/v1/models/iris"))
        await eventually(lambda: replica.requests, "the request to arrive")
        clock.at = LATER
        await _look_until(meter, uid, None)
        release.set()
        assert (await asked).status_code == 200
        await _look_until(meter, uid, LATER)
    await meter.close()

    clock.at = LATER + timedelta(hours=1)
    again = TrafficMeter(socket, file, clock, poll_seconds=3600)
    await again.start()
    assert again.idle_since(uid) == LATER
    await publisher.close(stop_gateway=True)
    await again.look()
    assert again.idle_since(uid) is None, "what cannot be measured is not idle"
    await again.close()


async def _look_until(meter: TrafficMeter, uid: str, wanted: datetime | None) -> None:
    """Envoy's workers add up their counters with a short delay."""
    async with asyncio.timeout(20):
        while True:
            await meter.look()
            if meter.idle_since(uid) == wanted:
                return
            await asyncio.sleep(0.01)
