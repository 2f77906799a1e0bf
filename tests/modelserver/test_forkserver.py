"""The warm parent: what its children inherit and what not, and who learns of their end."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeForkServer = Callable[[str], Any]


def test_it_says_what_it_has_loaded_and_has_one_thread(forkserver: Any) -> None:
    hello = forkserver.ask({"op": "hello"})
    assert hello["pid"] == forkserver.process.pid
    assert hello["version"]
    assert hello["threads"] == 1
    assert {"numpy", "uvloop", "sklearn.ensemble", "xgboost", "lightgbm"} <= set(hello["preloaded"])
    assert hello["skipped"] == {}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"op": "dance"}, "dance"),
        (
            {"op": "start", "config_path": "/nowhere/config.json", "log_path": "/nowhere/log"},
            "/nowhere/config.json",
        ),
        ({"op": "start", "env": {"A": 1}}, "cannot be read"),
        ({"rlimits": {"RLIMIT_PATIENCE": 1}, "config_path": "{config}"}, "RLIMIT_PATIENCE"),
        ({"rlimits": {"RLIMIT_CORE": [1]}, "config_path": "{config}"}, "RLIMIT_CORE"),
        ({"config_path": "{config}", "log_path": "/nowhere/log"}, "/nowhere/log"),
    ],
)
def test_what_it_cannot_do_it_answers_with_a_sentence(
    forkserver: Any, request_: dict[str, Any], words: str, tmp_path: Path
) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"name": "m", "format": "sklearn", "path": "/x", "address": "unix:/x"}))
    sent = json.loads(json.dumps(request_).replace("{config}", str(config)))
    assert words in forkserver.ask(sent)["error"]
    assert forkserver.ask({"op": "hello"})["threads"] == 1


def test_a_child_has_a_session_of_its_own_and_only_the_lock(
    launch: Callable[..., Any], model_files: Path
) -> None:
    server = launch("sklearn", model_files / "iris.joblib")
    server.wait_for("ready")
    assert os.getsid(server.pid) == server.pid
    open_files = {str(path.readlink()) for path in Path(f"/proc/{server.pid}/fd").iterdir()}
    assert str(server.folder / "lock") in open_files
    assert Path(f"/proc/{server.pid}/fd/0").readlink() == Path("/dev/null")
    assert Path(f"/proc/{server.pid}/fd/2").readlink() == server.folder / "server.log"
    assert not any(name.endswith("control") for name in open_files)
    assert Path(f"/proc/{server.pid}/cwd").readlink() == server.folder


def test_a_child_has_as_many_threads_for_numbers_as_it_may(
    launch: Callable[..., Any], model_files: Path
) -> None:
    counts = []
    for threads in (1, 3):
        server = launch("sklearn", model_files / "iris.joblib", threads=threads)
        server.wait_for("ready")
        counts.append(len(list(Path(f"/proc/{server.pid}/task").iterdir())))
    assert counts[1] >= counts[0] + 2  # two more for each library that has a pool


def test_the_lock_is_held_as_long_as_the_child_lives(
    forkserver: Any, model_files: Path, tmp_path: Path, until: Callable[[Callable[[], Any], str], Any]
) -> None:
    config = tmp_path / "config.json"
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind(str(tmp_path / "n"))
    notices.settimeout(60)
    config.write_text(
        json.dumps(
            {
                "name": "m",
                "format": "sklearn",
                "path": str(model_files / "iris.joblib"),
                "address": f"unix:{tmp_path}/s",
                "status_file": str(tmp_path / "status.json"),
                "notify_socket": str(tmp_path / "n"),
                "notify_key": "a-key",
            }
        )
    )
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    pid = forkserver.ask(
        {
            "config_path": str(config),
            "log_path": str(tmp_path / "log"),
            "env": {"ONLY": "this"},
            "cwd": "/",
            "cpu_affinity": [min(os.sched_getaffinity(0))],
            "rlimits": {"RLIMIT_NOFILE": [512, 1024], "RLIMIT_CORE": 0},
        },
        lock,
    )["pid"]
    os.close(lock)
    assert _is_locked(tmp_path / "lock")
    until(lambda: _state(tmp_path) == "ready", "the child is ready")
    assert os.sched_getaffinity(pid) == {min(os.sched_getaffinity(0))}
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert "512                  1024" in limits
    os.kill(pid, signal.SIGKILL)
    until(lambda: (tmp_path / "exit.json").exists(), "the exit record")
    record = json.loads((tmp_path / "exit.json").read_text())
    assert (record["pid"], record["exit_code"], record["signal"]) == (pid, None, "SIGKILL")
    assert record["at"] > 0
    assert not _is_locked(tmp_path / "lock")
    assert notices.recv(100) == b"a-key"
    notices.close()


def test_children_outlive_their_parent(
    make_forkserver: MakeForkServer, launch: Callable[..., Any], model_files: Path
) -> None:
    parent = make_forkserver("sklearn")
    server = launch("sklearn", model_files / "iris.joblib", parent=parent)
    server.wait_for("ready")
    parent.process.kill()
    parent.process.wait()
    assert server.predict([[5.1, 3.5, 1.4, 0.2]]).json() == {"predictions": [0]}


def test_the_next_start_is_served_by_the_spare_that_waits(
    make_forkserver: MakeForkServer,
    launch: Callable[..., Any],
    model_files: Path,
    until: Callable[[Callable[[], Any], str], Any],
) -> None:
    parent = make_forkserver("sklearn")
    (spare,) = until(lambda: _children(parent), "a spare")
    server = launch("sklearn", model_files / "iris.joblib", parent=parent)
    assert server.pid == spare
    server.wait_for("ready")
    open_files = {str(path.readlink()) for path in Path(f"/proc/{spare}/fd").iterdir()}
    assert str(server.folder / "lock") in open_files
    assert not any(name.endswith("control") for name in open_files)
    assert parent.ask({"op": "hello"})["children"] == [spare]
    assert until(lambda: _children(parent) - {spare}, "the next spare")


def test_a_spare_that_died_or_cannot_be_told_costs_no_start(
    make_forkserver: MakeForkServer,
    launch: Callable[..., Any],
    model_files: Path,
    until: Callable[[Callable[[], Any], str], Any],
) -> None:
    parent = make_forkserver("sklearn")
    (spare,) = until(lambda: _children(parent), "a spare")
    os.kill(spare, signal.SIGKILL)
    until(lambda: spare not in _children(parent), "its parent took note")
    server = launch("sklearn", model_files / "iris.joblib", parent=parent)
    server.wait_for("ready")
    assert _children(parent) >= {server.pid}
    (spare,) = until(lambda: _children(parent) - {server.pid}, "the next spare")
    refused = {"config_path": "/nowhere/config.json", "log_path": str(server.folder / "log")}
    assert "/nowhere/config.json" in parent.ask(refused)["error"]
    huge = {"config_path": str(server.folder / "config.json"), "log_path": str(server.folder / "again.log")}
    # Its address is taken, so that it ends by itself; which process it was is what matters.
    other = parent.ask(huge | {"env": {"MUCH": "x" * 512 * 1024}})["pid"]
    assert other not in (spare, server.pid)
    until(lambda: other not in _children(parent), "it ended")


def test_a_spare_ends_with_its_parent(
    make_forkserver: MakeForkServer, until: Callable[[Callable[[], Any], str], Any]
) -> None:
    parent = make_forkserver("no-such-format")
    (spare,) = until(lambda: _children(parent), "a spare")
    parent.process.kill()
    parent.process.wait()
    until(lambda: not _lives(spare), "the spare ended")


def test_it_ends_when_asked_and_skips_what_is_not_there(make_forkserver: MakeForkServer) -> None:
    parent = make_forkserver("no-such-format")
    assert parent.ask({"op": "hello"})["skipped"] == {}
    assert parent.ask({"op": "shutdown"}) == {}
    assert parent.process.wait(60) == 0
    assert not parent.path.exists()


def test_children_do_not_share_random_numbers(
    forkserver: Any, model_files: Path, launch: Callable[..., Any]
) -> None:
    answers = []
    for _ in range(2):
        server = launch("sklearn", model_files / "dice.pkl")
        server.wait_for("ready")
        answers.append(server.predict([[1.0]]).json()["predictions"])
    assert answers[0] != answers[1]


def _children(parent: Any) -> set[int]:
    pid = parent.process.pid
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _state(folder: Path) -> str:
    try:
        state: str = json.loads((folder / "status.json").read_text())["state"]
    except FileNotFoundError:
        return "absent"
    return state


def _is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
