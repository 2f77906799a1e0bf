"""One revision takes over from another on the real platform while requests keep coming, and none is lost."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import joblib
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier

from platform_stack import Stack, wait_for

ROW = [[5.1, 3.5, 1.4, 0.2]]
PLACE = {"workspace": "default", "endpoint": "iris"}


@dataclass
class Seen:
    """What clients were answered: predictions by value, and everything that was not 200."""

    predictions: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models that tell who answered: `one` predicts 1, `two` 2, and `slow` takes its time for 3."""
    folder = tmp_path_factory.mktemp("models")
    rows, found = [[float(each), 0.0, 0.0, 0.0] for each in range(60)], {}
    made: dict[str, Any] = {
        "one": DummyClassifier(strategy="constant", constant=1).fit(rows, [1, 2] * 30),
        "two": DummyClassifier(strategy="constant", constant=2).fit(rows, [1, 2] * 30),
        "slow": RandomForestClassifier(1500, random_state=0).fit(rows, [3] * 59 + [4]),
    }
    for name, model in made.items():
        path: Path = folder / f"{name}.joblib"
        joblib.dump(model, path)
        found[name] = str(path)
    return found


@contextmanager
def load(stack: Stack, headers: dict[str, str] | None = None, threads: int = 3) -> Iterator[Seen]:
    """Requests from several clients until the block is over."""
    over, seen, lock = threading.Event(), Seen(), threading.Lock()
    url = f"{stack.gateway}/serving/default/iris/v1/models/iris:predict"

    def ask() -> None:
        with httpx.Client(timeout=60, headers=headers) as client:
            while not over.wait(0.004):
                try:
                    answer = client.post(url, json={"instances": ROW})
                except httpx.TransportError as error:
                    seen.failures.append(repr(error))
                    continue
                with lock:
                    if answer.status_code == 200:
                        seen.predictions[answer.json()["predictions"][0]] += 1
                    else:
                        seen.failures.append(f"{answer.status_code} {answer.text}")

    running = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield seen
    finally:
        over.set()
        for thread in running:
            thread.join()


def deploy(stack: Stack, uri: str) -> None:
    body = {
        "endpointName": "iris",
        "workspace": "default",
        "modelSpec": {"modelName": "sklearn", "storageURI": uri},
    }
    status, answer = stack.request("POST", "inference-endpoint", body)
    assert status == 200, answer
    stack.wait_until("iris", "Running")


def change(stack: Stack, uri: str, **more: Any) -> dict[str, Any]:
    body = {**PLACE, "modelSpec": {"storageURI": uri}, **more}
    status, answer = stack.request("PATCH", "inference-endpoint", body)
    assert status == 200, answer
    data: dict[str, Any] = answer["data"]
    return data


def ask_for(stack: Stack, verb: str, **more: Any) -> None:
    status, answer = stack.request("POST", f"inference-endpoint/{verb}", {**PLACE, **more})
    assert status == 200, answer


def phase(stack: Stack) -> str:
    found = stack.describe("iris")
    assert found is not None
    return str(found["rollout"]["phase"]) if found["rollout"] else ""


def until_phase(stack: Stack, wanted: str) -> None:
    wait_for(lambda: phase(stack) == wanted, f"the rollout to be {wanted}", seconds=90)


def let_come(seen: Seen, count: int) -> None:
    """Until so many more requests were answered."""
    before = seen.predictions.total()
    wait_for(
        lambda: seen.predictions.total() >= before + count,
        f"{count} more answers after {seen.failures[:3]}",
        seconds=90,
    )


def test_an_update_loses_no_request_and_ends_with_the_new_model_alone(
    stack: Stack, models: dict[str, str]
) -> None:
    deploy(stack, models["one"])
    with load(stack) as seen:
        let_come(seen, 50)
        assert change(stack, models["two"])["revision"] == 2
        until_phase(stack, "Shifted")
        wait_for(lambda: seen.predictions[2] > 50, "the new model's answers")
        before = seen.predictions[1]
        let_come(seen, 100)
    assert seen.failures == []
    assert seen.predictions[1] == before
    assert stack.describe("iris")["status"] == "Running"  # type: ignore[index]


def test_a_canary_gets_its_share_then_everything_and_the_way_back_is_open(
    stack: Stack, models: dict[str, str]
) -> None:
    deploy(stack, models["one"])
    with load(stack) as seen:
        change(stack, models["two"], canary={"percent": 25})
        until_phase(stack, "Shifted")
        wait_for(lambda: seen.predictions[2] > 0, "the canary's first answer")
        before = seen.predictions.copy()
        let_come(seen, 1200)
        came = seen.predictions - before
        assert 0.18 < came[2] / came.total() < 0.32
        status, answer = stack.request("PATCH", "inference-endpoint", {**PLACE, "canary": {"percent": 75}})
        assert status == 200, answer
        wait_for(lambda: stack.describe("iris")["traffic"][0]["percent"] == 75, "the new share")  # type: ignore[index]
        ask_for(stack, "promote")
        until_phase(stack, "Complete")
        before = seen.predictions.copy()
        let_come(seen, 100)
        assert (seen.predictions - before)[1] == 0
        ask_for(stack, "rollback")
        wait_for(lambda: (seen.predictions - before)[1] > 50, "the earlier model's answers")
    assert seen.failures == []


@pytest.mark.slow
def test_equal_values_of_the_sticky_header_stay_with_one_revision(
    stack: Stack, models: dict[str, str]
) -> None:
    deploy(stack, models["one"])
    change(stack, models["two"], canary={"percent": 50, "stickyHeader": "x-user"})
    until_phase(stack, "Shifted")
    url = f"{stack.gateway}/serving/default/iris/v1/models/iris:predict"

    def both_answer() -> bool:
        answers = {stack.predict("iris", ROW).json()["predictions"][0] for _ in range(20)}
        return answers == {1, 2}

    wait_for(both_answer, "both to answer")
    with httpx.Client(timeout=30) as client:
        by_user = {
            user: {
                client.post(url, json={"instances": ROW}, headers={"x-user": f"u{user}"}).json()[
                    "predictions"
                ][0]
                for _ in range(8)
            }
            for user in range(24)
        }
        chosen = client.post(url, json={"instances": ROW}, headers={"x-inferplane-revision": "2"})
    assert all(len(answers) == 1 for answers in by_user.values())
    assert {next(iter(answers)) for answers in by_user.values()} == {1, 2}
    assert chosen.json()["predictions"] == [2]


def test_a_slower_model_gives_the_requests_back_by_itself(stack: Stack, models: dict[str, str]) -> None:
    deploy(stack, models["one"])
    guard = {"latencyLeastMs": 10, "latencyFactor": 2, "windowSeconds": 5, "requestsMin": 20}
    with load(stack) as seen:
        let_come(seen, 100)
        change(stack, models["slow"], canary={"percent": 30}, guard=guard)
        until_phase(stack, "RolledBack")
        wait_for(
            lambda: sum(map(len, stack.model_servers().values())) == 1, "the slow model's server to be gone"
        )
        before = seen.predictions.copy()
        let_come(seen, 50)
        came = seen.predictions - before
    assert seen.failures == []
    assert came[1] == came.total()
    found = stack.describe("iris")
    assert found is not None
    assert (found["status"], found["reason"]) == ("Degraded", "RolledBack")
    assert "took over" in found["message"]


def test_a_model_that_was_overwritten_is_served_after_a_restart_and_no_request_is_lost(
    stack: Stack, models: dict[str, str], tmp_path: Path
) -> None:
    model = tmp_path / "model.joblib"
    shutil.copy(models["one"], model)
    deploy(stack, str(model))
    fresh = tmp_path / "fresh"
    shutil.copy(models["two"], fresh)
    fresh.replace(model)
    assert "nothing of this is different" in change(stack, str(model))["warnings"][0]
    with load(stack) as seen:
        let_come(seen, 20)
        status, answer = stack.request("PATCH", "inference-endpoint", {**PLACE, "restart": True})
        assert (status, answer["data"]["revision"]) == (200, 2), answer
        until_phase(stack, "Shifted")
        wait_for(lambda: seen.predictions[2] > 50, "the new content's answers")
        before = seen.predictions[1]
        let_come(seen, 50)
    assert seen.failures == []
    assert seen.predictions[1] == before


FAILING_SERVER = """
import http.server, os

class Fails(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.say(200, b"ready")

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.say(500, b'{"error": "out of order"}')

    def say(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Fails).serve_forever()
"""


def test_a_model_that_fails_gives_the_requests_back_by_itself(
    stack: Stack, models: dict[str, str], tmp_path: Path
) -> None:
    deploy(stack, models["one"])
    program = tmp_path / "failing.py"
    program.write_text(FAILING_SERVER)
    container = {"command": [sys.executable, str(program)], "readinessProbe": {"httpGet": {"path": "/"}}}
    manifest = {"spec": {"predictor": {"containers": [container]}}}
    change_of_all = {**PLACE, "rawModelSpec": json.dumps(manifest), "guard": {"windowSeconds": 5}}
    with load(stack) as seen:
        let_come(seen, 100)
        status, answer = stack.request(
            "PATCH", "inference-endpoint", {**change_of_all, "canary": {"percent": 30}}
        )
        assert status == 200, answer
        until_phase(stack, "RolledBack")
        wait_for(lambda: sum(map(len, stack.model_servers().values())) == 1, "the failing server to be gone")
        let_come(seen, 20)  # so that each client has noted what it was answered last
        failed = len(seen.failures)
        let_come(seen, 100)
    assert failed > 0
    assert len(seen.failures) == failed, "nobody is sent there any more"
    assert {failure[:3] for failure in seen.failures} == {"500"}, "and nothing else went wrong"
    found = stack.describe("iris")
    assert found is not None
    assert (found["status"], found["reason"]) == ("Degraded", "RolledBack")
    assert "failed" in found["message"]


def test_a_shadow_is_asked_and_never_heard(stack: Stack, models: dict[str, str]) -> None:
    deploy(stack, models["one"])
    with load(stack) as seen:
        change(stack, models["two"], canary={"mirrorPercent": 100})
        until_phase(stack, "Shifted")

        def copies() -> float:
            lines = httpx.get(f"{stack.api}/metrics", timeout=30).text.splitlines()
            wanted = 'endpoint="iris",revision="2",code="2xx"'
            return sum(float(line.split()[-1]) for line in lines if wanted in line)

        wait_for(lambda: copies() > 50, "copies to arrive")
    assert seen.failures == []
    assert set(seen.predictions) == {1}


def test_in_place_the_old_one_ends_first_and_that_is_said(stack: Stack, models: dict[str, str]) -> None:
    deploy(stack, models["one"])
    answer = change(stack, models["two"], strategy="stopThenStart")
    assert "in between nothing answers" in answer["warnings"][0]
    until_phase(stack, "Complete")
    stack.wait_until("iris", "Running")
    assert stack.predict("iris", ROW).json() == {"predictions": [2]}
    status, told = stack.request("GET", "inference-endpoint/events", **PLACE)
    assert status == 200
    assert any("in place of revision 1" in event["message"] for event in told["data"]["events"])


def test_a_kill_of_the_control_plane_in_the_middle_changes_nothing(
    stack: Stack, models: dict[str, str]
) -> None:
    deploy(stack, models["one"])
    with load(stack) as seen:
        change(stack, models["two"], canary={"percent": 50})
        stack.kill()
        let_come(seen, 50)
        stack.restart()
        until_phase(stack, "Shifted")
        wait_for(lambda: seen.predictions[2] > 50, "the canary's answers")
        ask_for(stack, "promote")
        until_phase(stack, "Complete")
    assert seen.failures == []
