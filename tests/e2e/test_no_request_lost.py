"""A steady load on the real platform, while everything happens to it that may: no request is lost.

Requests of several kinds, from several clients that never try again themselves: whatever is not answered
with 200 and the right prediction counts as lost. Rollouts have their own tests.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from platform_stack import Stack, wait_for

ROW = [5.1, 3.5, 1.4, 0.2]
LARGE_ROWS = 2000
PAUSE_SECONDS = 0.005
# A request that waits for so long waits for a replica that does not move.
STUCK_SECONDS = 0.5


@dataclass(frozen=True)
class Kind:
    """One kind of request, and what its answer must be."""

    path: str
    body: bytes
    right: Callable[[httpx.Response], bool]
    headers: dict[str, str] = field(default_factory=dict)


def v1(rows: int) -> Kind:
    return Kind(
        "v1/models/iris:predict",
        json.dumps({"instances": [ROW] * rows}).encode(),
        lambda answer: bool(answer.json() == {"predictions": [0] * rows}),
    )


def v2_binary(rows: int) -> Kind:
    data = struct.pack("<4d", *ROW) * rows
    tensor = {
        "name": "input-0",
        "shape": [rows, 4],
        "datatype": "FP64",
        "parameters": {"binary_data_size": len(data)},
    }
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "predict"}]}).encode()
    return Kind(
        "v2/models/iris/infer",
        head + data,
        lambda answer: bool(answer.json()["outputs"][0]["data"] == [0] * rows),
        {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"},
    )


def metadata() -> Kind:
    return Kind("v2/models/iris", b"", lambda answer: bool(answer.json()["name"] == "iris"))


@dataclass
class Load:
    """Clients that ask until they are told to stop. `lost` says what was not answered as it should."""

    lost: list[str] = field(default_factory=list)
    answered: int = 0
    waiting: dict[int, float] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def stuck(self) -> int:
        """How many requests have waited so long that their replica must have stopped to move."""
        now = time.monotonic()
        return sum(now - since > STUCK_SECONDS for since in list(self.waiting.values()))

    def goes_on(self, requests: int = 50) -> None:
        """Wait until so many more requests have been answered."""
        enough = self.answered + requests
        wait_for(lambda: self.answered >= enough, f"{requests} more answers; lost so far: {self.lost[:3]}")

    def ask(self, number: int, url: str, kind: Kind) -> None:
        """One client with one connection."""
        with httpx.Client(timeout=60, limits=httpx.Limits(max_connections=1)) as client:
            while not self.over.wait(PAUSE_SECONDS):
                self.waiting[number] = time.monotonic()
                try:
                    answer = (
                        client.post(f"{url}/{kind.path}", content=kind.body, headers=kind.headers)
                        if kind.body
                        else client.get(f"{url}/{kind.path}")
                    )
                    if answer.status_code != 200 or not kind.right(answer):
                        self.lost.append(f"{answer.status_code} {answer.text[:300]}")
                except httpx.TransportError as error:
                    self.lost.append(repr(error))
                del self.waiting[number]
                self.answered += 1


@contextmanager
def load(stack: Stack) -> Iterator[Load]:
    """Requests of all kinds to endpoint `iris`; afterwards, none may have been lost."""
    kinds: Sequence[Kind] = (
        *[v1(1)] * 4,
        v1(LARGE_ROWS),
        *[v2_binary(1)] * 2,
        v2_binary(LARGE_ROWS),
        metadata(),
    )
    one = Load()
    url = f"{stack.gateway}/serving/default/iris"
    threads = [threading.Thread(target=one.ask, args=(i, url, kind)) for i, kind in enumerate(kinds)]
    for thread in threads:
        thread.start()
    try:
        one.goes_on()
        yield one
        one.goes_on()
    finally:
        one.over.set()
        for thread in threads:
            thread.join()
    assert one.lost == [], f"{len(one.lost)} of {one.answered} were lost"


def deploy(stack: Stack, model: Path, replicas: int) -> None:
    body = {
        "endpointName": "iris",
        "workspace": "default",
        "clusterName": "local",
        "modelSpec": {"modelName": "sklearn", "storageURI": str(model)},
        "autoscaling": {"minReplicas": replicas, "maxReplicas": replicas},
    }
    status, answer = stack.request("POST", "inference-endpoint", body)
    assert status == 200, answer
    wait_for(partial(ready, stack, replicas), f"{replicas} replicas to be ready")


def ready(stack: Stack, replicas: int) -> bool:
    endpoint = stack.describe("iris")
    return (
        endpoint is not None
        and endpoint["replicaCount"]["ready"] == replicas
        and len(stack.model_servers()) == replicas
    )


def replica_pids(stack: Stack, chosen: int) -> list[int]:
    """The processes of one of the replicas."""
    return sorted(stack.model_servers().items())[chosen][1]


def test_what_a_killed_replica_had_in_flight_is_answered_by_the_other(stack: Stack, iris_model: Path) -> None:
    deploy(stack, iris_model, replicas=2)
    with load(stack) as running:
        for chosen in (0, 1, 0, 1):
            pids = replica_pids(stack, chosen)
            # It stops to move, so that requests are in flight there for certain, and is killed.
            for pid in pids:
                psutil.Process(pid).suspend()
            wait_for(running.stuck, "requests to be in flight at the stopped replica")
            for pid in pids:
                psutil.Process(pid).kill()
            running.goes_on()
            wait_for(partial(ready, stack, 2), "the replica to be back")


def test_a_killed_control_plane_and_many_changes_of_other_routes_cost_no_request(
    stack: Stack, iris_model: Path
) -> None:
    deploy(stack, iris_model, replicas=2)
    with load(stack) as running:
        for turn in range(2):
            names = [f"other-{turn}-{number}" for number in range(4)]
            for name in names:
                stack.create(name, str(iris_model))
            for name in names[:2]:
                stack.wait_until(name, "Running")
            stack.kill()
            running.goes_on()
            stack.restart()
            for name in names:
                assert stack.delete(name) == 200
            wait_for(partial(gone, stack, names), "the others to be gone")
            running.goes_on()
        assert ready(stack, 2)


def test_replicas_that_come_and_go_cost_no_request(stack: Stack, iris_model: Path) -> None:
    deploy(stack, iris_model, replicas=1)
    with load(stack) as running:
        for replicas in (3, 1, 2, 1):
            body = {
                "workspace": "default",
                "endpoint": "iris",
                "autoscaling": {"minReplicas": replicas, "maxReplicas": replicas},
            }
            status, answer = stack.request("PATCH", "inference-endpoint", body)
            assert status == 200, answer
            wait_for(partial(ready, stack, replicas), f"{replicas} replicas: {stack.describe('iris')}")
            running.goes_on()


@pytest.mark.slow  # the old one lives for a minute
def test_an_envoy_that_must_be_replaced_costs_no_request(stack: Stack, iris_model: Path) -> None:
    deploy(stack, iris_model, replicas=2)
    running_note = stack.home / "gateway" / "running.json"
    with load(stack) as running:
        former = envoys(stack)
        assert len(former) == 1
        stack.kill()
        # As after an upgrade: what runs was started otherwise than it would be now.
        note = json.loads(running_note.read_text())
        running_note.write_text(json.dumps({**note, "identity": "of an earlier version"}))
        stack.restart()
        assert len(envoys(stack)) == 2, "the old one finishes what it has, beside the new one"
        running.goes_on()
        wait_for(lambda: len(envoys(stack) - former) == 1 == len(envoys(stack)), "the old one to end", 90)
        running.goes_on()


def envoys(stack: Stack) -> set[int]:
    return {each.pid for each in stack.processes() if Path(each.exe()).name == "envoy"}


def gone(stack: Stack, names: Sequence[str]) -> bool:
    return not set(names) & set(stack.endpoints())
