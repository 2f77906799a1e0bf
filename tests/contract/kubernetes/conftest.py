"""A cluster to talk to: the one that KUBECONFIG names, else an emulated one.

    KUBECONFIG=… pytest tests/contract/kubernetes                   what needs an API server with KServe's CRDs
    KUBECONFIG=… pytest tests/contract/kubernetes --real-cluster    and what needs its controllers and a kubelet

On a real cluster everything is made in namespaces of the suite's own, which are deleted afterwards. The model server is
a shell: of the image in INFERPLANE_TEST_IMAGE, else of a busybox that a node has, else `busybox:1.36`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from engine_world import now
from inferplane.engines.kserve.client import NAMESPACE, POD, KubeClient
from inferplane.engines.kserve.engine import KServeEngine, Options
from inferplane.engines.kserve.http_api import ApiError, Credentials, credentials_of
from inferplane.engines.kserve.raw import items, mapping, name, text
from inferplane.engines.port import Observation
from kube_api import SHARED, Behaving, Failure, KubeApi

T = TypeVar("T")
REAL = "--real-cluster"
WAIT_SECONDS = 180.0
LOOK_SECONDS = 1.0
"""What time alone changes is announced by nobody."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(REAL, action="store_true", help="KUBECONFIG names a cluster with KServe and kubelets")


@dataclass
class Cluster:
    """What a test needs of a cluster. `kserve` is None where a real one does the work."""

    credentials: Credentials
    client: KubeClient
    kserve: Behaving | None
    image: str = "busybox:1.36"
    host_network: bool = False
    uids: list[str] = field(default_factory=list)
    engines: list[KServeEngine] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def uid(self) -> str:
        """A new endpoint's, whose namespace is taken away afterwards."""
        self.uids.append(secrets.token_hex(6))
        return self.uids[-1]

    async def engine(self, **options: Any) -> KServeEngine:
        """One that was started."""
        one = KServeEngine(KubeClient(self.credentials), now, options=Options(**options))
        await one.start(lambda _: self.changed.set())
        self.engines.append(one)
        return one

    async def until(
        self, engine: KServeEngine, uid: str, that: Callable[[Observation], object], what: str
    ) -> Observation:
        """Wait for the watches to bring it."""
        seen = Observation()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    self.changed.clear()
                    seen = await engine.observe(uid)
                    if that(seen):
                        return seen
                    try:
                        async with asyncio.timeout(LOOK_SECONDS):
                            await self.changed.wait()
                    except TimeoutError:
                        continue
        except TimeoutError:
            pytest.fail(f"waited for {what}; seen at last: {seen}")

    def break_servers(self, namespace: str) -> None:
        """On an emulated cluster, what a real shell does by itself."""
        if self.kserve is not None:
            self.kserve.fail(namespace, Failure.CRASH_LOOP)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    path = os.environ.get("KUBECONFIG", "")
    if path:
        file = Path(path)
        credentials = credentials_of(file.read_bytes(), "", lambda other: (file.parent / other).read_bytes())
        one = Cluster(credentials, KubeClient(credentials), None)
        await _look_round(one)
        try:
            yield one
        finally:
            await _clean(one)
        return
    if SHARED is None:
        pytest.skip("no KUBECONFIG, and KServe's definitions for an emulated cluster are not here")
    async with KubeApi() as api, Behaving(api) as kserve:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        credentials = credentials_of(kubeconfig.read_bytes(), "", lambda _: b"")
        one = Cluster(credentials, KubeClient(credentials), kserve)
        try:
            yield one
        finally:
            await _clean(one)


@pytest.fixture
def controlled(request: pytest.FixtureRequest, cluster: Cluster) -> Cluster:
    """A cluster on which pods come to life."""
    if cluster.kserve is None and not request.config.getoption(REAL, default=False):
        pytest.skip(f"needs KServe's controller and a kubelet: {REAL}")
    return cluster


async def _look_round(one: Cluster) -> None:
    """Which image is at hand, and whether pods have a network of their own."""
    nodes = await one.client.call("GET", "/api/v1/nodes")
    images = [
        image
        for node in items(nodes, "items")
        for each in items(node, "status", "images")
        for image in each.get("names") or ()
        if "busybox" in image and "@" not in image
    ]
    one.image = os.environ.get("INFERPLANE_TEST_IMAGE") or next(iter(images), one.image)
    pods = items(await one.client.call("GET", POD.path()), "items")
    running = [each for each in pods if text(each, "status", "phase") == "Running"]
    one.host_network = bool(os.environ.get("INFERPLANE_TEST_HOST_NETWORK")) or (
        bool(running) and all(mapping(each, "spec").get("hostNetwork") is True for each in running)
    )


async def _clean(one: Cluster) -> None:
    """Take away whatever the test made, and wait until it is gone."""
    for engine in one.engines:
        await engine.close(stop_servers=False)
    for uid in one.uids:
        selector = f"inferplane.io/endpoint={uid}"
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                found: list[dict[str, Any]] = []
                async for page, version in one.client.pages(NAMESPACE.path(), selector):  # noqa: B007 - the last counts
                    found += page
                if not found:
                    break
                for each in found:
                    await one.client.delete(NAMESPACE.path(name=name(each)))
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        async for kind, _ in one.client.watch(NAMESPACE.path(), version, selector):
                            if kind == "DELETED":
                                break
                except (TimeoutError, ApiError):
                    continue
    await one.client.close()
