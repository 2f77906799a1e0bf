"""Asleep and awake on the real platform: requests wake it, none is lost, and a `kill -9` changes nothing."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from platform_stack import Stack, wait_for

ROW = [[5.1, 3.5, 1.4, 0.2]]


def create(stack: Stack, name: str, model: Path, **scaling: object) -> None:
    body = {
        "endpointName": name,
        "workspace": "default",
        "clusterName": "local",
        "modelSpec": {"modelName": "sklearn", "storageURI": str(model)},
        "autoscaling": scaling,
    }
    status, answer = stack.request("POST", "inference-endpoint", body)
    assert status == 200, answer


def kinds(stack: Stack, name: str) -> list[str]:
    status, answer = stack.request("GET", "inference-endpoint/events", workspace="default", endpoint=name)
    assert status == 200, answer
    return [event["kind"] for event in answer["data"]["events"]]


@contextmanager
def load(stack: Stack, name: str, threads: int = 4, pause: float = 0.0) -> Iterator[list[str]]:
    """Requests with a pause between, from several clients at once; yields what failed."""
    over, failures = threading.Event(), list[str]()

    def ask() -> None:
        url = f"{stack.gateway}/serving/default/{name}/v1/models/{name}:predict"
        with httpx.Client(timeout=60) as client:
            while not over.wait(pause):
                try:
                    answer = client.post(url, json={"instances": ROW})
                    if answer.status_code != 200:
                        failures.append(f"{answer.status_code} {answer.text}")
                except httpx.TransportError as error:
                    failures.append(repr(error))

    running = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield failures
    finally:
        over.set()
        for thread in running:
            thread.join()


def test_it_sleeps_and_the_next_request_wakes_it(stack: Stack, iris_model: Path) -> None:
    create(stack, "iris", iris_model, minReplicas=0, scaleToZeroAfter="1s")
    stack.wait_until("iris", "Running")
    asleep = stack.wait_until("iris", "Idle")
    assert asleep["reason"] == "ScaledToZero"
    assert asleep["autoScalingStatus"] == "ScaledToZero"
    assert "the next request wakes it" in asleep["message"]
    wait_for(lambda: not stack.model_servers(), "the server to be gone")
    for _ in range(3):
        answer = stack.predict("iris", ROW)
        assert (answer.status_code, answer.json()) == (200, {"predictions": [0]})
        woken = stack.describe("iris")
        assert woken is not None
        stack.wait_until("iris", "Idle")
    asleep = stack.wait_until("iris", "Idle")
    assert asleep["autoscaling"]["wakeSeconds"] > 0
    assert {"ScaledToZero", "Woken"} <= set(kinds(stack, "iris"))


def test_a_client_may_bound_its_wait(stack: Stack, iris_model: Path) -> None:
    create(stack, "iris", iris_model, minReplicas=0, scaleToZeroAfter="1s")
    stack.wait_until("iris", "Idle")
    url = f"{stack.gateway}/serving/default/iris/v1/models/iris:predict"
    answer = httpx.post(url, json={"instances": ROW}, headers={"X-Wake-Timeout": "0"}, timeout=30)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert answer.json()["waking"] is True
    answer = httpx.post(url, json={"instances": ROW}, headers={"X-Wake-Timeout": "60"}, timeout=90)
    assert answer.status_code == 200


@pytest.mark.parametrize("by", ["host", "header"])
def test_a_grpc_call_wakes_it_and_is_answered(stack: Stack, iris_model: Path, by: str) -> None:
    create(stack, "iris", iris_model, minReplicas=0, scaleToZeroAfter="1s")
    stack.wait_until("iris", "Idle")
    wait_for(lambda: not stack.model_servers(), "the server to be gone")
    host = [("grpc.default_authority", "iris.default.localhost")] if by == "host" else []
    named = (("x-inferplane-endpoint", "default/iris"),) if by == "header" else ()
    with grpc.insecure_channel(stack.gateway.removeprefix("http://"), options=host) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")
        question = b"\x0a\x04iris"  # ModelReadyRequest(name="iris")
        answers = [ask.future(question, metadata=named, timeout=60) for _ in range(8)]
        assert [each.result() for each in answers] == [b"\x08\x01"] * 8  # ModelReadyResponse(ready=True)
    assert kinds(stack, "iris").count("Woken") == 1


def test_many_requests_at_once_wake_it_once(stack: Stack, iris_model: Path) -> None:
    create(stack, "iris", iris_model, minReplicas=0, scaleToZeroAfter="1s")
    stack.wait_until("iris", "Idle")
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(stack.predict("iris", ROW).status_code))
        for _ in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 24
    assert kinds(stack, "iris").count("Woken") == 1


@pytest.mark.slow
def test_no_request_is_lost_while_it_grows_and_shrinks(stack: Stack, iris_model: Path) -> None:
    create(stack, "iris", iris_model, minReplicas=1, maxReplicas=3, targetRate=5)
    stack.wait_until("iris", "Running")
    with load(stack, "iris") as failures:
        wait_for(lambda: len(stack.model_servers()) == 3, "three servers")
        wait_for(lambda: (stack.describe("iris") or {})["replicaCount"]["ready"] == 3, "three that answer")
    with load(stack, "iris", threads=1, pause=1.0) as later:
        wait_for(lambda: len(stack.model_servers()) == 1, "one server again", 180)
    assert failures == []
    assert later == []
    scaled = [kind for kind in kinds(stack, "iris") if kind.startswith("Scaled")]
    assert (scaled[0], scaled[-1]) == ("ScaledUp", "ScaledDown")


def test_no_request_is_lost_that_comes_just_when_it_falls_asleep(stack: Stack, iris_model: Path) -> None:
    names = [f"iris-{number}" for number in range(4)]
    for name in names:
        create(stack, name, iris_model, minReplicas=0, scaleToZeroAfter="1s")
    for name in names:
        stack.wait_until(name, "Running")
    chance = random.Random(11)
    with ExitStack() as loads:
        found = [
            loads.enter_context(load(stack, name, threads=2, pause=chance.uniform(1.0, 3.5)))
            for name in names
        ]
        wait_for(
            lambda: all(kinds(stack, name).count("Woken") >= 2 for name in names), "two wakes of each", 120
        )
    assert found == [[], [], [], []]


def test_a_killed_control_plane_leaves_it_asleep_and_finishes_a_wake(stack: Stack, iris_model: Path) -> None:
    create(stack, "iris", iris_model, minReplicas=0, scaleToZeroAfter="2s")
    stack.wait_until("iris", "Idle")
    stack.kill()
    refused = stack.predict("iris", ROW)
    assert refused.status_code == 503
    stack.restart()
    assert stack.wait_until("iris", "Idle")["reason"] == "ScaledToZero"
    wait_for(lambda: stack.predict("iris", ROW).status_code == 200, "an answer after the restart")
    stack.wait_until("iris", "Idle")
    url = f"{stack.gateway}/serving/default/iris/v1/models/iris:predict"
    answer = httpx.post(url, json={"instances": ROW}, headers={"X-Wake-Timeout": "0"}, timeout=30)
    assert answer.status_code == 503
    stack.kill()
    stack.restart()
    wait_for(lambda: stack.predict("iris", ROW).status_code == 200, "an answer after the second restart")
    assert all(len(pids) == 1 for pids in stack.model_servers().values())
