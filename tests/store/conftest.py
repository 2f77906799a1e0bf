"""Every store test runs on both databases. Values to store, and programs that store them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from inferplane.domain.access import ApiKey, Role
from inferplane.domain.endpoint import EndpointSpec, InferenceEndpoint, ModelSpec
from inferplane.domain.events import Event
from inferplane.domain.gpu_request import GpuRequest, Selection
from inferplane.domain.workspace import Workspace
from inferplane.store.sql import Store


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh, empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'inferplane.db'}"
    url = request.getfixturevalue("postgres_url")
    assert isinstance(url, str)
    return url


@pytest_asyncio.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    """An opened, empty store of each kind."""
    opened = await Store.open(database_url)
    yield opened
    await opened.close()


@dataclass(frozen=True)
class Make:
    """Makes values that differ only where a test says so."""

    now: datetime = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)

    def at(self, seconds: float) -> datetime:
        return self.now + timedelta(seconds=seconds)

    def workspace(self, name: str = "default") -> Workspace:
        return Workspace(name=name, clusters=("local",), created_at=self.now, namespaces=("n",), email="e@x")

    def endpoint(
        self,
        name: str = "iris",
        *,
        uid: str = "",
        workspace: str = "default",
        cluster: str = "local",
        model_format: str = "sklearn",
    ) -> InferenceEndpoint:
        return InferenceEndpoint(
            uid=uid or f"{name}-{workspace}-{cluster}",
            workspace=workspace,
            cluster=cluster,
            name=name,
            namespace=f"{workspace}-{name}-abc123",
            spec=EndpointSpec(ModelSpec(format=model_format, storage_uri="file:///models/iris.joblib")),
            generation=1,
            created_at=self.now,
            created_by="owner",
        )

    def gpu_request(
        self,
        request_id: str = "gpr-00000001-0001",
        *,
        workspace: str = "default",
        endpoint: str = "",
        seconds: float = 0,
    ) -> GpuRequest:
        return GpuRequest(
            id=request_id,
            name=f"name of {request_id}",
            workspace=workspace,
            selection=Selection("local", gpu_shape="A100", instance_type="big", memory_gb=80),
            created_at=self.at(seconds),
            queued_at=self.at(seconds),
            endpoint_uid=f"{endpoint}-{workspace}-local" if endpoint else "",
            endpoint_name=endpoint,
        )

    def event(self, kind: str = "EndpointCreated", endpoint: InferenceEndpoint | None = None) -> Event:
        if endpoint is None:
            return Event(at=self.now, kind=kind, message="m", actor="owner")
        return Event(
            at=self.now,
            kind=kind,
            message="m",
            actor="owner",
            workspace=endpoint.workspace,
            endpoint=endpoint.name,
            endpoint_uid=endpoint.uid,
        )

    def key(self, key_id: str = "k1", *, workspace: str = "") -> ApiKey:
        return ApiKey(
            id=key_id,
            name="name",
            digest=f"digest-{key_id}",
            masked="ip_…abcd",
            role=Role.EDITOR if workspace else Role.OWNER,
            workspace=workspace,
            created_at=self.now,
            expires_at=self.at(3600),
        )


@pytest.fixture
def make() -> Make:
    return Make()


Writer = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def writer(database_url: str) -> Iterator[Writer]:
    """Starts `writer_program.py` on the test's database; ends those left at the end of the test."""
    program = Path(__file__).with_name("writer_program.py")
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, program, database_url, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


async def _until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


@pytest.fixture
def until() -> Callable[..., object]:
    """`await until(condition)`: ask again until it holds, fail after a deadline."""
    return _until
