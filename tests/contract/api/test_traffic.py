"""What the gateway saw of an endpoint, for charts and for scrapers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from api_world import World
from inferplane.gateway.series import Counters, Served
from inferplane.wire import paths


@pytest.fixture
def quiet(world: World) -> Iterator[World]:
    yield world
    world.counters, world.later = None, timedelta(0)


def look(world: World) -> None:
    history = world.platform.traffic
    assert history is not None
    world.do(history.sample())


def test_the_last_minutes_are_told_by_revision_with_rates_and_times(quiet: World) -> None:
    world, team = quiet, quiet.workspace()
    name = world.create(team)
    served = Served(team, name, world.stored(team, name).uid, 1)
    world.counters = {served: Counters()}
    look(world)
    world.later += timedelta(seconds=10)
    answered = Counters(100, 2, {2: 95, 5: 5}, 4.0, 100, ((0.01, 50), (0.1, 100)))
    world.counters = {served: answered}
    look(world)
    data = world.owner("GET", f"{paths.ENDPOINT_METRICS}?workspace={team}&endpoint={name}").data
    assert data["endpoint"] == name
    (series,) = data["series"]
    (point,) = series["points"]
    assert series["revision"] == 1
    assert point["requestsPerSecond"] == pytest.approx(10, rel=0.05)
    assert point["errorsPerSecond"] == pytest.approx(0.5, rel=0.05)
    assert point["concurrency"] == pytest.approx(0.4, rel=0.05)
    assert (point["p50Ms"], round(point["p95Ms"], 1)) == (10.0, 91.0)
    world.later += timedelta(minutes=2)
    old = world.owner("GET", f"{paths.ENDPOINT_METRICS}?workspace={team}&endpoint={name}&minutes=1").data
    assert old["series"] == [{"revision": 1, "points": []}]


def test_an_endpoint_without_requests_has_no_series_and_an_unknown_one_is_not_found(quiet: World) -> None:
    team = quiet.workspace()
    name = quiet.create(team)
    found = quiet.owner("GET", f"{paths.ENDPOINT_METRICS}?workspace={team}&endpoint={name}").data
    assert (found["series"], found["readyReplicas"], found["desiredReplicas"]) == ([], 0, 1)
    assert quiet.owner("GET", f"{paths.ENDPOINT_METRICS}?workspace={team}&endpoint=nope").status == 404
    assert quiet.owner("GET", f"{paths.ENDPOINT_METRICS}?workspace={team}").status == 422


def test_scrapers_get_the_gateways_counters_beside_the_apis_own(quiet: World) -> None:
    assert "inferplane_endpoint_requests_total" not in quiet.http.get(paths.METRICS).text
    served = Served("w", "iris", "0123456789ab", 2)
    quiet.counters = {served: Counters(3, 0, {2: 3}, 0.3, 3, ((1.0, 3),))}
    text = quiet.http.get(paths.METRICS).text
    assert (
        'inferplane_endpoint_requests_total{workspace="w",endpoint="iris",revision="2",code="2xx"} 3' in text
    )
    assert "inferplane_build_info" in text
