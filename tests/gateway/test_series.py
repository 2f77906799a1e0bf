"""Counters by endpoint and revision, from a real Envoy and as text; and a log that does not grow for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

from gateway_world import Request, World, client, eventually, publish, response, routes
from inferplane.gateway.admin import Admin
from inferplane.gateway.series import Counters, Served, Tally, by_upstream, counted, counters_of, render
from inferplane.gateway.traffic import TrafficMeter

IRIS = Served("default", "iris", "uid-iris", 1)
TEXT = """
# TYPE envoy_cluster_upstream_rq_total counter
envoy_cluster_upstream_rq_total{envoy_cluster_name="default/iris/uid-iris/r1"} 3
envoy_cluster_upstream_rq_total{envoy_cluster_name="default/iris/uid-iris/r1-grpc"} 1
envoy_cluster_upstream_rq_total{envoy_cluster_name="inferplane-api"} 7
envoy_cluster_upstream_rq_xx{envoy_response_code_class="5",envoy_cluster_name="default/iris/uid-iris/r1"} 1
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="default/iris/uid-iris/r1"} 2
envoy_cluster_upstream_rq_active{envoy_cluster_name="default/iris/uid-iris/r2"} 1
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="default/iris/uid-iris/r1",le="5"} 1
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="default/iris/uid-iris/r1",le="10"} 3
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="default/iris/uid-iris/r1",le="+Inf"} 3
envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="default/iris/uid-iris/r1"} 21
envoy_cluster_upstream_rq_time_count{envoy_cluster_name="default/iris/uid-iris/r1"} 3
nonsense
"""


def test_counters_are_read_by_revision() -> None:
    assert counters_of(TEXT) == {
        IRIS: Counters(4, 0, {2: 2, 5: 1}, 0.021, 3, ((0.005, 1), (0.01, 3))),
        Served("default", "iris", "uid-iris", 2): Counters(active=1),
    }


def test_what_came_since_and_how_long_it_took() -> None:
    now = counters_of(TEXT)[IRIS]
    came = now.since(Counters(1, 0, {2: 1}, 0.004, 1, ((0.005, 1), (0.01, 1))))
    assert (came.requests, came.classes, came.failed, came.answered) == (3, {2: 1, 5: 1}, 1, 2)
    assert came.quantile_seconds(0.5) == 0.0075
    assert now.since(Counters(requests=100)) == now, "another Envoy began anew"
    assert Counters().quantile_seconds(0.5) is None


def test_requests_of_each_key_are_their_revisions() -> None:
    apart = TEXT + TEXT.replace("uid-iris/r1", "uid-iris/r1/k1")
    assert apart.count("/r1/k1") > 0
    once, twice = counters_of(TEXT)[IRIS], counters_of(apart)[IRIS]
    assert (twice.requests, twice.active) == (2 * once.requests, 2 * once.active)


def test_an_upstream_made_anew_counts_on_and_its_statuses_and_times_begin_anew() -> None:
    before = Counters(165, 0, {2: 165, 5: 3}, 8.0, 165, ((0.1, 165),))
    assert Counters(165).since(before) == Counters(), "nothing came"
    came = Counters(170, 0, {2: 5}, 0.5, 5, ((0.1, 5),)).since(before)
    assert came == Counters(5, 0, {2: 5}, 0.5, 5, ((0.1, 5),))


def test_upstreams_that_come_and_go_neither_add_requests_nor_lose_any() -> None:
    name, tally = "default/iris/uid-iris/r1", Tally()

    def told(**upstreams: int) -> int:
        present = {f"{name}/{key}" if key != "all" else name: Counters(n) for key, n in upstreams.items()}
        found = tally.add(present)
        return found[IRIS].requests if found else 0

    assert told(all=165) == 165
    assert told(all=165, k1=100, k2=67) == 332, "keys are counted apart from now on"
    assert told(all=165) == 332, "and no longer"
    assert told(all=170) == 337
    assert told(all=170, k1=5) == 342, "what Envoy took away it counts from nothing"
    assert told(all=3, k1=5) == 345, "another Envoy"
    assert told() == 0
    assert told(all=4) == 4, "who went and came again counts from nothing, too"


def test_more_than_may_be_in_flight_is_no_failure_of_a_server() -> None:
    def look(failed: int, refused: int) -> dict[int, int]:
        classes = {code: count for code, count in ((2, 3), (5, failed)) if count}
        counters = Counters(3, 0, classes, 0.1, 3, refused=refused)
        return dict(tally.add({"default/iris/uid-iris/r1": counters})[IRIS].classes)

    tally = Tally()
    assert look(failed=7, refused=7) == {2: 3}
    assert look(failed=12, refused=10) == {2: 3, 5: 2}
    text = 'envoy_cluster_upstream_rq_active_overflow{envoy_cluster_name="default/iris/uid-iris/r1"} 1\n'
    assert counters_of(TEXT + text)[IRIS].failed == 0


async def test_a_real_gateway_counts_no_429_as_a_failure_and_goes_on_after_another_limit(
    world: World,
) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream, concurrency_max=1))
    meter = TrafficMeter(
        gateway.admin_socket, world.folder / "traffic.json", lambda: datetime(2026, 1, 1, tzinfo=UTC)
    )
    admin, refused = Admin(gateway.admin_socket), 0

    async def counted_all(sent: int) -> Counters:
        async with asyncio.timeout(20):
            while True:
                found = (await meter.counters()).get(IRIS, Counters())
                if found.answered == sent == found.classes.get(2):
                    return found
                await asyncio.sleep(0.05)

    async with client(gateway) as http:
        sent = 0
        while not refused:
            answers = await asyncio.gather(*(http.get("/serving/default/iris/v2") for _ in range(20)))
            statuses = [answer.status_code for answer in answers]
            assert set(statuses) <= {200, 429}
            sent, refused = sent + statuses.count(200), refused + statuses.count(429)
        before = await counted_all(sent)
        assert (before.requests, before.failed) == (sent, 0)
        await publish(gateway, routes(replica.upstream, concurrency_max=50))
        async with asyncio.timeout(20):
            classes = before.classes
            while classes:
                raw = by_upstream(await admin.prometheus(counted("uid-iris")))
                classes = raw["default/iris/uid-iris/r1"].classes
        assert await meter.counters() == {IRIS: replace(before, active=0)}, "nothing came"
        assert (await http.get("/serving/default/iris/v2")).status_code == 200
        after = await counted_all(sent + 1)
        assert (after.requests, after.failed) == (sent + 1, 0)
    await meter.close()
    await admin.close()


def test_a_look_at_one_endpoint_forgets_no_other() -> None:
    tally, other = Tally(), TEXT.replace("uid-iris", "uid-other")
    everybody = tally.add(by_upstream(TEXT + other))
    assert set(tally.add(by_upstream(TEXT), "uid-iris")) == {s for s in everybody if s.uid == "uid-iris"}
    assert tally.add(by_upstream(TEXT + other)) == everybody


def test_they_are_told_to_prometheus() -> None:
    text = render(counters_of(TEXT))
    labels = 'workspace="default",endpoint="iris",revision="1"'
    assert f'inferplane_endpoint_requests_total{{{labels},code="5xx"}} 1\n' in text
    assert f'inferplane_endpoint_request_seconds_bucket{{{labels},le="0.005"}} 1\n' in text
    assert f'inferplane_endpoint_request_seconds_bucket{{{labels},le="+Inf"}} 3\n' in text
    assert f"inferplane_endpoint_request_seconds_sum{{{labels}}} 0.021\n" in text


async def test_a_real_gateway_counts_by_revision(world: World) -> None:
    async def fail(request: Request) -> AsyncIterator[bytes]:
        yield response(500, b"{}")

    good, bad = await world.replica("r1-0"), await world.replica("r2-0", fail)
    gateway = await world.gateway()
    await publish(gateway, routes(good.upstream, bad.upstream, shares=((1, 100),)))
    async with client(gateway) as http:
        for revision, times in (("1", 3), ("2", 2)):
            for _ in range(times):
                await http.get("/serving/default/iris/v2", headers={"x-inferplane-revision": revision})
    meter = TrafficMeter(
        gateway.admin_socket, world.folder / "traffic.json", lambda: datetime(2026, 1, 1, tzinfo=UTC)
    )
    second = Served("default", "iris", "uid-iris", 2)
    found: dict[Served, Counters] = {}
    while second not in found or found[second].answered < 2 or found[IRIS].answered < 3:
        found = dict(await meter.counters())
    await meter.close()
    assert (found[IRIS].requests, found[IRIS].classes) == (3, {2: 3})
    assert (found[second].requests, found[second].failed) == (2, 2)
    assert found[IRIS].quantile_seconds(0.99) is not None


async def test_the_access_log_is_bounded(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway(access_log_bytes_max=2000)
    await publish(gateway, routes(replica.upstream))
    older = gateway.access_log.with_name("access.log.1")
    async with client(gateway) as http:
        for _ in range(20):
            await http.get("/serving/default/iris/v2")
        await eventually(older.exists, "the log to be moved aside")
        await http.get("/serving/default/iris/last")
    await eventually(
        lambda: gateway.access_log.exists() and "/last" in gateway.access_log.read_text(), "the log to go on"
    )
