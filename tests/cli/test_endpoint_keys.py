"""Endpoint keys and usage from the command line, against the real API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from typer.testing import CliRunner

from api_world import World
from inferplane.cli.main import build_cli
from inferplane.domain.endpoint_access import LogPosition, Usage, Used

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def team(world: World) -> str:
    return world.workspace()


@pytest.fixture
def run(world: World, team: str) -> Run:
    """Run a command in the workspace; it must succeed. What it printed."""
    environment = {
        "INFERPLANE_API_URL": world.url,
        "INFERPLANE_API_KEY": world.owner.key,
        "INFERPLANE_WORKSPACE": team,
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }

    def command(*words: str) -> Any:
        result = CliRunner().invoke(build_cli(lambda _: 0), list(words), env=environment)
        assert result.exit_code == 0, result.output
        return result

    return command


def test_a_key_is_made_listed_and_revoked(world: World, team: str, run: Run) -> None:
    world.create(team, "iris")
    made = run("endpoint-key", "create", "app", "-e", "iris", "--rate", "5", "--validity", "1d")
    assert made.stdout.count(".") == 2, "nothing but the key"
    assert "INFERPLANE_ENDPOINT_KEY" in made.stderr
    every = json.loads(run("endpoint-key", "create", "all", "-o", "json").stdout)
    table = run("endpoint-key", "list").stdout
    assert "app" in table
    assert "5/s" in table
    assert every["keyId"] in table
    assert every["endpointKey"] not in table
    assert "revoked" in run("endpoint-key", "delete", every["keyId"]).stdout
    (left,) = json.loads(run("endpoint-key", "list", "-o", "json").stdout)["items"]
    assert left["endpoints"] == ["iris"]


def test_usage_as_a_table_json_and_csv(world: World, team: str, run: Run) -> None:
    used = Usage(datetime(2030, 5, 1, 10, tzinfo=UTC), team, "iris", "u1", "k1", Used(7, 1, 9, 3, 2500))

    async def count() -> None:
        async with world.store.transaction() as tx:
            await tx.count_usage(team, LogPosition("f", 1), [used])

    assert "nothing was used" in run("usage").stdout
    unknown = run("usage", "--endpoint", "iriss")
    assert "nothing was used" in unknown.stdout
    assert "warning: endpoint iriss does not exist" in unknown.stderr
    world.do(count())
    bounds = ("--since", "2030-05-01", "--until", "2030-05-02")
    lines = run("usage", *bounds).stdout.splitlines()
    assert lines[1].split()[-6:] == ["k1", "7", "1", "9", "3", "2.5"]
    assert lines[-1].split()[0] == "total"
    assert lines[-1].split()[-5:] == ["7", "1", "9", "3", "2.5"]
    assert json.loads(run("usage", "--by", "day", *bounds, "-o", "json").stdout)["total"]["requests"] == 7
    table = run("usage", "--csv", "-e", "iris", "--key-id", "k1", *bounds).stdout.splitlines()
    assert table[0].startswith("start,endpoint,keyId")
    assert table[1:] == ["2030-05-01T10:00:00Z,iris,k1,,7,1,9,3,2.5"]


def test_deploy_says_who_may_send_and_how_many(world: World, team: str, run: Run) -> None:
    run(
        *("deploy", "iris", "-f", "sklearn", "-u", "/m.joblib", "--access", "key", "--rate", "5"),
        *("--burst", "9", "--rate-per-key", "2", "--max-concurrency", "3"),
    )
    spec = world.stored(team, "iris").spec
    assert (spec.access.value, spec.limits.requests_per_second, spec.limits.burst) == ("key", 5, 9)
    assert (spec.limits.requests_per_second_per_key, spec.limits.concurrency_max) == (2, 3)
    shown = run("describe", "iris").stdout
    assert "5 requests a second, 2 a second for each key, 9 at once, 3 in flight" in shown
    assert "$INFERPLANE_ENDPOINT_KEY" in shown
