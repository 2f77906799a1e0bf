"""Two control planes on one PostgreSQL: killed, stopped for a while, ended, in the midst of work.

The world that both act upon keeps a log of every act (`shared_world.py`). What must hold at the end: nothing
was done twice, nothing by somebody whose time was over, and every endpoint that was acknowledged is there.
How long it goes on is INFERPLANE_TEST_CHAOS_SECONDS, for those who have minutes.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import psutil
import pytest

from control_planes import CLUSTERS, ControlPlane, Installation, installation
from platform_stack import wait_for
from shared_world import Act, World

CHAOS_SECONDS = float(os.environ.get("INFERPLANE_TEST_CHAOS_SECONDS", "8"))
STOPPED_SECONDS = 6.5
"""Longer than a lease lasts."""


class PostgresServer(Protocol):
    """The fixture of that name."""

    def url(self, database: str) -> str: ...

    def sql(self, statement: str) -> None: ...


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, postgres_server: PostgresServer) -> Iterator[Installation]:
    """Two control planes that run, for all of these tests."""
    postgres_server.sql("CREATE DATABASE planes")
    folder = tmp_path_factory.mktemp("planes")
    with installation(folder / "planes", postgres_server.url("planes")) as planes:
        yield planes
    postgres_server.sql("DROP DATABASE planes WITH (FORCE)")


def world_of(planes: Installation) -> World:
    return World(planes.planes[0].world)


def holder(planes: Installation) -> ControlPlane:
    """Who acted last."""
    last = world_of(planes).acts()[-1].holder
    return next(each for each in planes.planes if each.home.name == last)


def check_log(acts: list[Act]) -> None:
    """Nothing was done by somebody whose time was over, and nothing twice by two."""
    for cluster in CLUSTERS:
        done = [each for each in acts if each.cluster == cluster and each.came_of_it != "refused"]
        epochs = [each.epoch for each in done]
        assert epochs == sorted(epochs)
        holders = {(each.epoch, each.holder) for each in done}
        assert len(holders) == len(set(epochs)), "an epoch has one holder"
        started: dict[tuple[str, str], int] = {}
        twice = []
        for each in done:
            key = (each.uid, each.act)
            if each.act.startswith("StartReplica"):
                if each.came_of_it == "again" and started.get(key) != each.epoch:
                    twice.append(each)
                started[key] = each.epoch
        assert twice == [], "what one had started another started again"


def test_killed_and_stopped_at_random_under_load(two: Installation) -> None:
    chance = random.Random(5)
    deadline = time.monotonic() + CHAOS_SECONDS
    wanted: set[str] = set()
    gone: set[str] = set()
    failures: list[BaseException] = []

    def load() -> None:
        number = 0
        try:
            while time.monotonic() < deadline:
                name = f"m{number}"
                two.create(name, CLUSTERS[number % 2])
                wanted.add(name)
                if number % 3 == 2:
                    victim = min(wanted)
                    two.delete(victim)
                    wanted.discard(victim)
                    gone.add(victim)
                number += 1
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - told by the test's own thread
            failures.append(error)

    loader = threading.Thread(target=load)
    loader.start()
    wait_for(lambda: world_of(two).acts(), "somebody to act")
    victim = holder(two)
    stop_one = True
    while time.monotonic() < deadline:
        if stop_one:  # it goes on in the midst of what it did, and must notice that its time is over
            victim.signal(signal.SIGSTOP)
            time.sleep(STOPPED_SECONDS)  # noqa: TID251 - so long it is away: what is tested
            victim.signal(signal.SIGCONT)
        else:
            victim.signal(signal.SIGKILL)
            victim.start()
            victim.wait()
        stop_one = chance.random() < 0.2
        victim = chance.choice(two.planes)
        time.sleep(chance.uniform(0.2, 1.0))  # noqa: TID251 - nothing is waited for
    loader.join()
    assert failures == [], two.log_tails()

    def settled() -> bool:
        there = two.statuses()
        chaos = {name for name in there if name.startswith("m")}
        return chaos == wanted and set(there.values()) <= {"Running"}

    wait_for(settled, "every endpoint to run, and those deleted to be gone", 90.0)
    assert not wanted & gone
    acts = world_of(two).acts()
    check_log(acts)
    assert len({each.epoch for each in acts if each.cluster == CLUSTERS[0]}) > 1, "the work changed hands"
    running = world_of(two).running()
    assert list(running.values()) == [1] * len(two.statuses()), (
        "each has one server, and nothing else is left"
    )


def test_a_clean_end_hands_over_at_once_and_a_kill_within_seconds(two: Installation) -> None:
    first, second = two.planes
    two.create("before", "worker-1")
    wait_for(lambda: two.statuses().get("before") == "Running", "the endpoint to run")
    first.signal(signal.SIGTERM)
    two.create("after-end", "worker-1")
    wait_for(lambda: two.statuses().get("after-end") == "Running", "the other one to act")
    first.start()
    first.wait()
    second.signal(signal.SIGKILL)
    two.create("after-kill", "worker-2")
    wait_for(lambda: two.statuses().get("after-kill") == "Running", "the first one to act again")
    check_log(world_of(two).acts())
    assert first.process is not None
    names = [each.name() for each in psutil.Process(first.process.pid).children(recursive=True)]
    assert not [each for each in names if "envoy" in each], "no gateway where no cluster is local"
