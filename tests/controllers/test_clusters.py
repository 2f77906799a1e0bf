"""Engines of clusters that are registered, changed and forgotten while everything runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from inferplane.controllers.clusters import (
    AWAY_LOOK_SECONDS,
    LOOK_SECONDS,
    STILL_LOOKING,
    THOROUGH,
    ClusterController,
    Connected,
    Links,
    RunningEngines,
)
from inferplane.domain.cluster import ClusterConnection, ClusterReport
from inferplane.domain.errors import Invalid
from inferplane.domain.inventory import Node
from inferplane.domain.workspace import Cluster, Workspace
from inferplane.engines.away import AwayEngine
from inferplane.engines.clusters import WorkspaceAccess
from inferplane.engines.port import EngineError, Observation, Unreachable
from inferplane.store.sql import Store

T0 = datetime(2026, 1, 1, tzinfo=UTC)


class WatchedEngine(AwayEngine):
    """Keeps what became of it."""

    def __init__(self) -> None:
        super().__init__("nothing runs here", T0)
        self.started = False
        self.closed: list[bool] = []
        self.unable = False

    async def start(self, wake: Callable[[str], None]) -> None:
        if self.unable:
            raise OSError("no more files may be open")
        self.started = True

    async def close(self, *, stop_servers: bool) -> None:
        self.closed.append(stop_servers)


@dataclass
class ScriptedLink:
    clock: Callable[[], datetime]
    failure: str = ""
    looks: list[bool] = field(default_factory=list)
    ways_in: set[str] = field(default_factory=set)
    closed: int = 0

    async def look(self, *, thorough: bool = True) -> ClusterReport:
        self.looks.append(thorough)
        now = self.clock()
        return ClusterReport(
            now, not self.failure, now, self.failure, version="" if self.failure else "v1.36.2"
        )

    async def nodes(self) -> tuple[tuple[Node, ...], str]:
        return (), ""

    async def workspace_kubeconfig(self, access: WorkspaceAccess) -> str:
        raise EngineError("nobody asks for one here")

    async def workspaces(self) -> frozenset[str]:
        return frozenset(self.ways_in)

    async def revoke_workspace(self, workspace: str) -> None:
        self.ways_in.remove(workspace)

    async def close(self) -> None:
        self.closed += 1


class ClusterWorld:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.now = T0
        self.running = RunningEngines()
        self.made: list[tuple[str, str]] = []
        self.unusable = ""
        self.unable = False
        self.told: list[str] = []
        self.links: dict[str, ScriptedLink] = {}
        self.all_engines: list[WatchedEngine] = []
        self.controller = ClusterController(
            store,
            self.running,
            self.connect,
            lambda: self.now,
            wake=lambda _: None,
            changed=self.told.append,
        )

    def connect(self, cluster: Cluster, kubeconfig: str) -> Connected:
        if self.unusable:
            raise Invalid(self.unusable)
        self.made.append((cluster.name, kubeconfig))
        link = ScriptedLink(lambda: self.now)
        self.links[cluster.name] = link
        self.all_engines.append(WatchedEngine())
        self.all_engines[-1].unable = self.unable
        return Connected(self.all_engines[-1], link)

    async def register(self, name: str = "east", kubeconfig: str = "k1", domain: str = "") -> None:
        async with self.store.transaction() as tx:
            await tx.put_cluster(Cluster(name, "kserve", T0, domain, connection=ClusterConnection()))
            await tx.put_cluster_kubeconfig(name, kubeconfig)

    async def report(self, name: str = "east") -> ClusterReport:
        async with self.store.read() as tx:
            report = (await tx.get_cluster(name)).report
        assert report is not None
        return report

    async def kinds(self) -> list[str]:
        async with self.store.read() as tx:
            return [event.kind for event in await tx.list_events()]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[ClusterWorld]:
    store = await Store.open(f"sqlite:///{tmp_path / 'inferplane.db'}")
    async with store.transaction() as tx:
        await tx.put_cluster(Cluster("local", "local", T0))
    yield ClusterWorld(store)
    await store.close()


async def test_a_registered_cluster_gets_an_engine_and_is_looked_at(world: ClusterWorld) -> None:
    await world.register()
    assert list(await world.controller.keys()) == ["east"]
    assert await world.controller.reconcile("east") == LOOK_SECONDS
    assert set(world.running.engines) == set(world.running.links) == set(world.running.sources) == {"east"}
    assert world.all_engines[0].started
    assert world.made == [("east", "k1")]
    assert (await world.report()).version == "v1.36.2"
    assert await world.controller.reconcile("east") == LOOK_SECONDS
    assert world.made == [("east", "k1")], "once is enough"
    assert await world.kinds() == ["ClusterReachable"]


async def test_other_credentials_are_another_connection_and_what_runs_there_runs_on(
    world: ClusterWorld,
) -> None:
    await world.register()
    await world.controller.connect_all()
    first = world.links["east"]
    await world.register(kubeconfig="k2")
    await world.controller.reconcile("east")
    assert world.made == [("east", "k1"), ("east", "k2")]
    assert (world.all_engines[0].closed, first.closed) == ([False], 1)
    await world.register(kubeconfig="k2", domain="models.example.com")
    await world.controller.reconcile("east")
    assert len(world.made) == 3
    await world.controller.close()
    assert world.all_engines[-1].closed == [False]
    assert world.running.engines == {}


async def test_a_forgotten_cluster_is_let_go(world: ClusterWorld) -> None:
    await world.register()
    await world.controller.reconcile("east")
    async with world.store.transaction() as tx:
        await tx.delete_cluster("east")
    assert await world.controller.reconcile("east") is None
    assert world.running == RunningEngines()
    assert world.told.count("east") >= 2
    assert list(await world.controller.keys()) == []


async def test_one_that_cannot_be_connected_is_away_and_not_gone(world: ClusterWorld) -> None:
    await world.register()
    world.unusable = "the kubeconfig cannot be read"
    await world.controller.connect_all()
    assert "east" in world.running.engines
    away = world.running.engines["east"]
    seen = await away.observe("x")
    assert seen == Observation(unreachable=Unreachable(T0, "the kubeconfig cannot be read"))
    with pytest.raises(EngineError, match="the kubeconfig cannot be read"):
        await away.release_orphan("x")
    assert await away.owned() == frozenset()
    assert await world.running.sources["east"].nodes() == ((), "the kubeconfig cannot be read")
    assert await world.controller.reconcile("east") == AWAY_LOOK_SECONDS
    report = await world.report()
    assert (report.reachable, report.message) == (False, "the kubeconfig cannot be read")
    world.unusable = ""
    await world.controller.reconcile("east")
    assert world.running.engines == {"east": world.all_engines[0]}
    world.unusable = "it is gone again"
    await world.register(kubeconfig="k2")
    await world.controller.reconcile("east")
    assert world.running.engines == {"east": world.all_engines[0]}, "what is connected stays"


async def test_an_engine_that_could_not_be_started_is_started_by_the_next_pass(world: ClusterWorld) -> None:
    await world.register()
    world.unable = True
    with pytest.raises(OSError, match="no more files"):
        await world.controller.reconcile("east")
    assert (world.all_engines[0].closed, world.links["east"].closed) == ([False], 1)
    seen = await world.running.engines["east"].observe("x")
    assert seen.unreachable is not None, "its endpoints stay as they were"
    world.unable = False
    assert await world.controller.reconcile("east") == LOOK_SECONDS
    assert world.running.engines == {"east": world.all_engines[1]}
    assert world.all_engines[1].started


async def test_since_when_it_does_not_answer(world: ClusterWorld) -> None:
    await world.register()
    await world.controller.reconcile("east")
    link = world.links["east"]
    world.now += timedelta(minutes=1)
    link.failure = "no route to host"
    assert await world.controller.reconcile("east") == AWAY_LOOK_SECONDS
    world.now += timedelta(minutes=1)
    await world.controller.reconcile("east")
    report = await world.report()
    assert (report.reachable, report.since, report.version) == (False, T0 + timedelta(minutes=1), "v1.36.2")
    link.failure = ""
    world.now += timedelta(minutes=1)
    await world.controller.reconcile("east")
    assert (await world.report()).since == world.now
    assert await world.kinds() == ["ClusterReachable", "ClusterUnreachable", "ClusterReachable"]
    assert link.looks == [True, False, True, True], "after it was away everything is asked anew"


async def test_everything_is_asked_now_and_then_and_said_when_it_is_old(world: ClusterWorld) -> None:
    await world.register()
    await world.controller.reconcile("east")
    world.now += STILL_LOOKING / 2
    await world.controller.reconcile("east")
    assert (await world.report()).at == T0, "the same again is not written down"
    world.now = T0 + STILL_LOOKING
    await world.controller.reconcile("east")
    assert (await world.report()).at == world.now
    world.now = T0 + THOROUGH
    await world.controller.reconcile("east")
    assert world.links["east"].looks == [True, False, False, True]


async def test_who_lost_a_cluster_loses_the_way_in(world: ClusterWorld) -> None:
    await world.register()
    async with world.store.transaction() as tx:
        await tx.add_workspace(Workspace("here", ("east",), T0))
        await tx.add_workspace(Workspace("elsewhere", ("local",), T0))
    await world.controller.connect_all()
    world.links["east"].ways_in = {"here", "elsewhere", "gone"}
    await world.controller.reconcile("east")
    assert world.links["east"].ways_in == {"here"}


async def test_trying_out_keeps_nothing(world: ClusterWorld) -> None:
    woken: list[str] = []
    links = Links(world.running, world.connect, woken.append)
    cluster = Cluster("new", "kserve", T0, connection=ClusterConnection())
    report = await links.try_out(cluster, "k")
    assert report.reachable
    assert (world.links["new"].closed, world.running.engines, links.of("new")) == (1, {}, None)
    links.changed("new")
    assert woken == ["new"]


def test_a_report_of_what_is_away_keeps_what_was_known() -> None:
    known = ClusterReport(T0, reachable=True, since=T0, version="v1", runtimes=("a",), server="https://x")
    later = T0 + timedelta(hours=1)
    away = ClusterReport(later, reachable=False, since=later, message="no")
    assert away.after(known) == replace(away, version="v1", runtimes=("a",), server="https://x")
    assert away.after(None) == away
    assert replace(known, at=later, since=later).after(known) == replace(known, at=later)
