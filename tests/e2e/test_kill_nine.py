"""`kill -9` of the control plane: nothing accepted is lost, nothing runs twice, nothing stops serving."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx
import pytest

from platform_stack import Stack, wait_for

# Fewer on a small machine: INFERPLANE_TEST_KILLS=10.
KILLS = int(os.environ.get("INFERPLANE_TEST_KILLS", "50"))
SEED = int(os.environ.get("INFERPLANE_TEST_SEED", "20260101"))
ROW = [[5.1, 3.5, 1.4, 0.2]]
LONGEST_LIFE_SECONDS = 0.6


def test_predictions_never_stop_while_the_control_plane_is_killed_and_comes_back(
    stack: Stack, iris_model: Path
) -> None:
    stack.create("iris", str(iris_model))
    stack.wait_until("iris", "Running")
    servers = stack.model_servers()
    over, failures, answered = threading.Event(), [], 0

    def load() -> None:
        nonlocal answered
        url = f"{stack.gateway}/serving/default/iris/v1/models/iris:predict"
        with httpx.Client(timeout=30) as client:
            while not over.is_set():
                try:
                    answer = client.post(url, json={"instances": ROW})
                    if answer.status_code != 200:
                        failures.append(answer.text)
                except httpx.TransportError as error:
                    failures.append(repr(error))
                answered += 1

    thread = threading.Thread(target=load)
    thread.start()
    for _ in range(3):
        enough = answered + 20
        stack.kill()
        wait_for(partial(_reached, lambda: answered, enough), "predictions without a control plane")
        stack.restart()
        assert stack.wait_until("iris", "Running")
    over.set()
    thread.join()
    assert failures == []
    assert stack.model_servers() == servers, "the same servers, each once"


@pytest.mark.slow
def test_every_accepted_endpoint_ends_where_it_should_whenever_the_control_plane_dies(
    stack: Stack, iris_model: Path
) -> None:
    chance = random.Random(SEED)
    wanted: set[str] = set()
    unwanted: set[str] = set()
    undecided: set[str] = set()  # asked for, killed before the answer came: either outcome is right
    made = 0
    for _ in range(KILLS):
        timer = threading.Timer(chance.uniform(0.0, LONGEST_LIFE_SECONDS), stack.kill)
        timer.start()
        while timer.is_alive():
            deletable = sorted(wanted)
            if deletable and (len(wanted) >= 6 or chance.random() < 0.5):
                name = chance.choice(deletable)
                wanted.discard(name)
                undecided.add(name)
                if _answered(lambda name=name: stack.delete(name) == 200):
                    undecided.discard(name)
                    unwanted.add(name)
            else:
                name = f"e{made}"
                made += 1
                undecided.add(name)
                if _answered(lambda name=name: _created(stack, name, iris_model)):
                    undecided.discard(name)
                    wanted.add(name)
        timer.join()
        stack.restart()
        for name in sorted(undecided):
            endpoint = stack.describe(name)
            undecided.discard(name)
            (wanted if endpoint is not None and endpoint["status"] != "Terminating" else unwanted).add(name)

    def settled() -> bool:
        seen = stack.endpoints()
        return set(seen) == wanted and {item["status"] for item in seen.values()} <= {"Running"}

    try:
        wait_for(settled, "the right endpoints to run and the others to be gone", 180)
    except pytest.fail.Exception:
        seen = {name: item["status"] for name, item in stack.endpoints().items()}
        pytest.fail(f"wanted {sorted(wanted)}, seen {seen}\n{stack.log_tail()}")
    for name in sorted(wanted):
        assert stack.predict(name, ROW).json() == {"predictions": [0]}
    servers = stack.model_servers()
    assert len(servers) == len(wanted), "no server twice, none of the deleted ones"
    assert all(len(pids) == 1 for pids in servers.values()), servers
    assert made >= KILLS // 2, "the test really created something"


def _reached(count: Callable[[], int], enough: int) -> bool:
    return count() >= enough


def _created(stack: Stack, name: str, model: Path) -> bool:
    stack.create(name, str(model))
    return True


def _answered(call: object) -> bool:
    """Whether the call was answered; a connection cut by the kill is no answer."""
    assert callable(call)
    try:
        return bool(call())
    except (httpx.TransportError, OSError):
        return False
