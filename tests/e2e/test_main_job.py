"""The main job, as a stranger does it: a model on disk, one call, an answered prediction, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from platform_stack import Stack, wait_for

ROW = [[5.1, 3.5, 1.4, 0.2]]


def test_from_a_storage_uri_to_an_answer_and_back_to_nothing(stack: Stack, iris_model: Path) -> None:
    stack.create("iris", str(iris_model))
    endpoint = stack.wait_until("iris", "Running")

    answer = stack.predict("iris", ROW)
    assert (answer.status_code, answer.json()) == (200, {"predictions": [0]})

    host = {"Host": "iris.default.localhost"}
    by_host = httpx.post(f"{stack.gateway}/v1/models/iris:predict", headers=host, json={"instances": ROW})
    assert by_host.json() == {"predictions": [0]}
    singular = httpx.post(f"{stack.gateway}/v1/model/iris:predict", headers=host, json={"instances": ROW})
    assert singular.json() == {"predictions": [0]}
    v2 = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP64", "data": ROW[0]}]}
    infer = httpx.post(f"{stack.gateway}/v2/models/iris/infer", headers=host, json=v2)
    assert infer.status_code == 200
    assert infer.json()["outputs"][0]["data"] == [0]

    command = "\n".join(endpoint["tryCommand"]).replace("curl -v", "curl -sS")
    printed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert '"predictions"' in printed.stdout, printed

    assert [step["name"] for step in endpoint["timeline"]] == [
        "accepted",
        "downloaded",
        "started",
        "loaded",
        "ready",
    ]

    assert stack.delete("iris") == 200
    _wait_gone(stack, "iris")
    assert stack.delete("iris") == 404
    assert stack.model_servers() == {}
    assert list((stack.home / "replicas").iterdir()) == []
    assert stack.predict("iris", ROW).status_code == 404
    assert "iris" not in stack.gateway_files()


def test_one_signal_ends_everything(stack: Stack, iris_model: Path) -> None:
    stack.create("iris", str(iris_model))
    stack.wait_until("iris", "Running")
    ours = stack.processes()
    assert len(ours) >= 3, "control plane, gateway and a model server"
    assert stack.stop(signal.SIGINT) == 0
    assert stack.processes() == []
    assert stack.output[-1] == "inferplane has stopped; nothing of it is left running"


def test_a_second_platform_on_the_same_home_is_refused_with_a_sentence(stack: Stack) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "inferplane", "up", "--home", str(stack.home), "--api-port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    assert "another platform already runs" in second.stderr
    assert "Traceback" not in second.stderr


def test_the_command_line_finds_the_platform_of_its_home_and_tells_nobody_else_the_key(stack: Stack) -> None:
    def list_clusters(**more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "inferplane", "cluster", "list"],
            env={"PATH": os.environ["PATH"], "INFERPLANE_HOME": str(stack.home), **more},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    told = stack.home / "api.url"
    assert (told.read_text(), told.stat().st_mode & 0o777) == (f"{stack.api}\n", 0o600)
    assert "local" in list_clusters().stdout
    assert "local" in list_clusters(INFERPLANE_API_URL=stack.api).stdout
    elsewhere = list_clusters(INFERPLANE_API_URL="http://127.0.0.1:1")
    assert (elsewhere.returncode, elsewhere.stdout) == (4, "")
    assert f"its address is {stack.api}" in elsewhere.stderr

    stack.kill()
    assert told.exists()
    left = list_clusters()
    assert left.returncode == 8
    assert f"no platform runs with the home folder {stack.home}" in left.stderr
    stack.start()
    assert told.read_text() == f"{stack.api}\n"
    stack.stop()
    assert not told.exists()


def test_a_killed_model_server_is_replaced_and_the_evidence_kept(stack: Stack, iris_model: Path) -> None:
    stack.create("iris", str(iris_model))
    stack.wait_until("iris", "Running")
    (pids,) = stack.model_servers().values()
    psutil.Process(pids[0]).kill()
    wait_for(
        lambda: stack.predict("iris", ROW).status_code == 200 and _pids(stack) not in ([], pids),
        "a new server",
    )
    _, answer = stack.request("GET", "inference-endpoint/events", workspace="default", endpoint="iris")
    exited = [event for event in answer["data"]["events"] if event["kind"] == "ReplicaExited"]
    assert exited[0]["data"]["signal"] == "SIGKILL"


def test_a_killed_gateway_comes_back(stack: Stack, iris_model: Path) -> None:
    stack.create("iris", str(iris_model))
    stack.wait_until("iris", "Running")
    (envoy,) = [process for process in stack.processes() if "envoy" in process.name()]
    envoy.kill()
    wait_for(lambda: _answers(stack), "the gateway to answer again")


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_same_on_both_databases(
    database: str, home: Path, iris_model: Path, request: pytest.FixtureRequest
) -> None:
    environment = {}
    if database == "postgresql":
        environment["INFERPLANE_DATABASE_URL"] = request.getfixturevalue("postgres_url")
    one = Stack(home, environment)
    try:
        one.start()
        one.create("iris", str(iris_model))
        one.wait_until("iris", "Running")
        assert one.predict("iris", ROW).json() == {"predictions": [0]}
        one.delete("iris")
        _wait_gone(one, "iris")
        assert one.stop() == 0
    finally:
        for process in one.processes():
            process.kill()


def _pids(stack: Stack) -> list[int]:
    return [pid for pids in stack.model_servers().values() for pid in pids]


def _answers(stack: Stack) -> bool:
    try:
        return bool(stack.predict("iris", ROW).status_code == 200)
    except httpx.TransportError:
        return False


def _wait_gone(stack: Stack, name: str) -> None:
    wait_for(lambda: stack.describe(name) is None, f"{name} to be gone")
