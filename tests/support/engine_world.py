"""What engine tests share: endpoints to ask for, models that are simply there, and polling."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointSpec,
    InferenceEndpoint,
    ModelSpec,
    Replica,
    ReplicaId,
    ReplicaState,
    Resources,
)
from inferplane.domain.preflight import Check
from inferplane.engines.local.limits import Limits
from inferplane.engines.port import Engine, Target

T = TypeVar("T")
STAND_IN = (sys.executable, "-I", "-S", str(Path(__file__).with_name("stand_in_server.py")))

# Short, so that tests are; the ratio of the numbers is that of the real ones.
SHORT = Limits(
    sweep_seconds=0.05,
    health_interval_seconds=0.05,
    health_timeout_seconds=0.2,
    health_failures_max=2,
    timeout_grace_seconds=0.3,
    orphan_grace_seconds=2.0,
    close_grace_seconds=2.0,
    follow_seconds=0.02,
    fork_seconds=2.0,
    log_bytes_max=20_000,
)


def now() -> datetime:
    """The real time."""
    return datetime.now(UTC)


async def wait_until(probe: Callable[[], Awaitable[T | None]], what: str, seconds: float = 20.0) -> T:
    """Ask until the answer is neither None nor False; fail with `what` when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        answer = await probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s for {what}")
        await asyncio.sleep(0.01)


@dataclass
class ModelsAtHand:
    """A model fetcher whose models are here as soon as they are asked for, or fail as told.

    What it knows survives in a file, as a real one's does, so that another process sees it.
    """

    directory: Path
    path: Path = Path("/nowhere/model.joblib")
    asked: list[tuple[str, str, Mapping[str, str]]] = field(default_factory=list)
    checks: tuple[Check, ...] = (Check("storage", True, None, "the file is there"),)
    suffixes: tuple[str, ...] = ()

    def request(self, uid: str, source: Any, on_change: Callable[[], None]) -> None:
        self.asked.append((uid, source.uri, source.secret))
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / uid).write_text(source.uri)
        asyncio.get_running_loop().call_soon(on_change)

    def state(self, uid: str) -> ArtifactState:
        if not (self.directory / uid).exists():
            return ArtifactState()
        uri = (self.directory / uid).read_text()
        return ArtifactState(ArtifactPhase.PRESENT, uri=uri, path=str(self.path))

    async def release(self, uid: str) -> None:
        (self.directory / uid).unlink(missing_ok=True)

    def references(self) -> frozenset[str]:
        if not self.directory.exists():
            return frozenset()
        return frozenset(path.name for path in self.directory.iterdir())

    async def probe(self, source: Any, suffixes: tuple[str, ...] = ()) -> tuple[Check, ...]:
        self.suffixes = suffixes
        return self.checks


def endpoint(
    uid: str = "0123456789ab",
    *args: str,
    model: Mapping[str, Any] | None = None,
    resources: Resources | None = None,
    env: tuple[tuple[str, str], ...] = (),
) -> InferenceEndpoint:
    """An endpoint; `args` tell the stand-in server how to behave, `model` overrides the model's fields."""
    spec = ModelSpec(
        format="sklearn",
        storage_uri="/models/iris.joblib",
        args=args,
        env=env,
        resources=resources or Resources(),
    )
    return InferenceEndpoint(
        uid=uid,
        workspace="default",
        cluster="local",
        name=f"e-{uid}",
        namespace="default-e-abcdef",
        spec=EndpointSpec(model=replace(spec, **(model or {}))),
        generation=1,
        created_at=now(),
        created_by="tests",
    )


def target(one: InferenceEndpoint) -> Target:
    """The endpoint with a secret that must not get anywhere."""
    return Target(one, {"AWS_SECRET_ACCESS_KEY": "must-not-be-seen"})


def first_replica(one: InferenceEndpoint, index: int = 0) -> ReplicaId:
    """The endpoint's first replica, or another."""
    return ReplicaId(one.uid, one.spec.revision, index)


async def see(engine: Engine, replica: ReplicaId) -> Replica | None:
    """The replica as the engine observes it, or None when it is not listed."""
    observation = await engine.observe(replica.endpoint_uid)
    return next((found for found in observation.replicas if found.id == replica), None)


async def wait_for_state(
    engine: Engine, replica: ReplicaId, *states: ReplicaState, seconds: float = 20.0
) -> Replica:
    """Wait until the replica is observed in one of these states; fail at once if it ended instead."""

    async def probe() -> Replica | None:
        found = await see(engine, replica)
        if found is not None and found.state is ReplicaState.EXITED and found.state not in states:
            pytest.fail(f"{replica.name} ended: {found.exit}")
        return found if found is not None and found.state in states else None

    return await wait_until(probe, f"{replica.name} to be {' or '.join(states)}", seconds)


def ask(address: str) -> dict[str, Any]:
    """One request to a stand-in server; its answer says which process it is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(address.removeprefix("unix:"))
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    content: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return content


def has_ended(pid: int) -> bool:
    """Whether a process is over, the last of its threads included.

    One that is dying has lost its memory, so that `processes_of` cannot place it, but may still hold its
    locks: to its engine it is there.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 0)[0])
    finally:
        os.close(descriptor)


def processes_of(home: Path) -> list[int]:
    """Every process whose command line, environment or open files name this home, except ours."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
            marks = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            links = [os.readlink(link) for link in (entry / "fd").iterdir()]  # noqa: PTH115
            links.append(os.readlink(entry / "cwd"))  # noqa: PTH115
        except OSError:
            continue
        if str(home).encode() in marks or any(str(home) in link for link in links):
            found.append(int(entry.name))
    return sorted(found)
