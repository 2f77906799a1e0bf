"""Several processes behind one address: one model, shared connections, added-up metrics, deaths made good."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferplane.modelserver.config import ServerConfig
from inferplane.modelserver.workers import Shared, added_up

Launch = Callable[..., Any]
Until = Callable[[Callable[[], Any], str], Any]

SETOSA = [5.1, 3.5, 1.4, 0.2]


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def ask(server: Any) -> tuple[int, Any]:
    """One prediction over a connection of its own."""
    transport = httpx.HTTPTransport(uds=server.config["address"].removeprefix("unix:"))
    with httpx.Client(transport=transport, base_url="http://model", timeout=60) as client:
        answer = client.post(f"/v1/models/{server.name}:predict", json={"instances": [SETOSA]})
        return answer.status_code, answer.json()


def value(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.fixture
def pair(launch: Launch, model_files: Path) -> Any:
    server = launch("sklearn", model_files / "iris.joblib", name="iris", workers=2)
    server.wait_for("ready", "failed")
    return server


def test_both_workers_answer_and_their_metrics_are_one(pair: Any, until: Until) -> None:
    assert len(children(pair.pid)) == 2
    assert pair.status()["model"]["example"]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: ask(pair), range(80)))
    assert answers == [(200, {"predictions": [0]})] * 80
    series = 'inferplane_model_requests_total{model="iris",protocol="v1",code="200"}'
    until(lambda: value(pair.client.get("/metrics").text, series) == 80, "all 80 are counted")
    text = pair.client.get("/metrics").text
    assert value(text, 'inferplane_model_ready{model="iris"}') == 1
    assert text.count("# TYPE inferplane_model_requests_total") == 1


def test_connections_are_shared_out_evenly(pair: Any) -> None:
    path = pair.config["address"].removeprefix("unix:")
    clients = []
    for _ in range(20):
        client = httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://model", timeout=60)
        client.get("/v2/health/live")
        clients.append(client)
    counts = [sockets(pid) for pid in children(pair.pid)]
    for client in clients:
        client.close()
    assert sum(counts) >= 20
    assert max(counts) - min(counts) <= 4


def sockets(pid: int) -> int:
    """How many connections a worker holds, more or less: it has a few sockets of its own."""
    links = [entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    return sum(str(link).startswith("socket:") for link in links)


def test_a_worker_that_dies_is_replaced_while_the_other_answers(pair: Any, until: Until) -> None:
    first = children(pair.pid)
    os.kill(first[0], signal.SIGKILL)
    until(lambda: len(children(pair.pid)) == 2 and first[0] not in children(pair.pid), "a new worker")
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: ask(pair), range(40)))
    assert answers == [(200, {"predictions": [0]})] * 40
    assert "worker 0 ended" in pair.log() or "worker 1 ended" in pair.log()


def test_sigterm_ends_all_and_the_socket_is_gone(pair: Any, until: Until) -> None:
    workers = children(pair.pid)
    os.kill(pair.pid, signal.SIGTERM)
    assert pair.wait_for_exit()["exit_code"] == 0
    assert pair.status()["state"] == "draining"
    assert not (pair.folder / "s").exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_do_not_outlive_the_first_process(pair: Any, until: Until) -> None:
    workers = children(pair.pid)
    os.kill(pair.pid, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the workers are gone")


def test_an_accepted_request_is_finished_and_a_worker_that_keeps_dying_ends_the_server(
    launch: Launch, model_files: Path, until: Until
) -> None:
    server = launch("sklearn", model_files / "sleeper.pkl", workers=2)
    server.wait_for("ready")
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(server.predict, [[1.5, 7]])
        until(
            lambda: (
                value(
                    server.client.get("/metrics").text, 'inferplane_model_in_flight_requests{model="model"}'
                )
                >= 2
            ),
            "the slow request is being computed",
        )
        os.kill(server.pid, signal.SIGTERM)
        answer = slow.result()
    assert answer.json() == {"predictions": [7.0]}
    assert server.wait_for_exit()["exit_code"] == 0
    dying = launch("sklearn", model_files / "sleeper.pkl", workers=2)
    dying.wait_for("ready")

    def kill_one() -> bool:
        for pid in children(dying.pid)[:1]:
            os.kill(pid, signal.SIGKILL)
        return not dying.alive()

    until(kill_one, "the server ends")
    assert dying.wait_for_exit()["exit_code"] == 4


@pytest.mark.parametrize(("file", "words"), [("broken.pkl", "broken"), ("nowhere.pkl", "nowhere.pkl")])
def test_what_cannot_be_served_says_why(launch: Launch, model_files: Path, file: str, words: str) -> None:
    server = launch("sklearn", model_files / file, workers=2)
    status = server.wait_for("failed", "ready")
    assert status["state"] == "failed"
    assert words in status["message"]
    assert server.wait_for_exit()["exit_code"] == 3
    assert not (server.folder / "s").exists()


def test_a_stop_while_loading_ends_at_once(launch: Launch, model_files: Path) -> None:
    server = launch("sklearn", model_files / "slowloader.pkl", workers=2)
    assert server.wait_for("loading", "ready", "failed")["state"] == "loading"
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait_for_exit()["exit_code"] == 0


@pytest.mark.parametrize(
    ("args", "count"),
    [
        ((), 3),
        (("--workers=2",), 2),
        (("--workers", "4"), 4),
        (("--workers=many",), 3),
        (("--workers=0",), 1),
        (("--workers=100000",), 32),
        (("--workers",), 3),
    ],
)
def test_a_manifest_may_ask_for_workers(args: tuple[str, ...], count: int) -> None:
    config = ServerConfig(name="m", format="sklearn", path="/m", address="unix:/s", workers=3, args=args)
    assert config.worker_count == count


def test_shared_memory_keeps_counts_and_texts() -> None:
    shared = Shared(2)
    shared.count(0, 3)
    shared.publish(1, b"a 1\n")
    assert [shared.connections(index) for index in (0, 1)] == [3, 0]
    assert shared.fewest() == 0
    assert [shared.text(index) for index in (0, 1)] == [b"", b"a 1\n"]
    shared.publish(1, b"x" * 10_000_000)
    assert shared.text(1) == b"a 1\n"
    shared.clear(1)
    assert shared.text(1) == b""


def test_equal_series_are_added_and_stay_together() -> None:
    first = '# TYPE a counter\na{x="1"} 1\n# TYPE inferplane_model_ready gauge\ninferplane_model_ready 1\n'
    second = '# TYPE a counter\na{x="1"} 2\na{x="2"} 5\n# TYPE inferplane_model_ready gauge\ninferplane_model_ready 0\n'
    assert added_up([first, second, ""]).splitlines() == [
        "# TYPE a counter",
        'a{x="1"} 3',
        'a{x="2"} 5',
        "# TYPE inferplane_model_ready gauge",
        "inferplane_model_ready 0",
    ]
