"""The quickstart as a stranger runs it: real platform, real model server, real gateway, real curl."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inferplane.locks import acquire_lock
from platform_stack import Stack, wait_for

SECONDS = 120.0


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A home folder and a look at what runs for it; nothing is started."""
    one = Stack(tmp_path / "home")
    yield one
    for process in one.processes():
        process.kill()


def begin(stack: Stack, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Start `inferplane quickstart` on ports that the system chooses."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("INFERPLANE_")}
    ours |= {
        "INFERPLANE_HOME": str(stack.home),
        "INFERPLANE_API_PORT": "0",
        "INFERPLANE_GATEWAY_PORT": "0",
        "NO_COLOR": "1",
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "inferplane", "quickstart", *words],
        env=ours,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for its end; exit code, stdout, stderr."""
    with process:
        out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


@pytest.mark.parametrize("curl", ["with curl", "without curl"])
def test_once_shows_a_prediction_and_leaves_nothing(stack: Stack, curl: str, tmp_path: Path) -> None:
    environment = {}
    if curl == "without curl":
        folder = tmp_path / "bin"
        folder.mkdir()
        environment["PATH"] = str(folder)
    code, out, err = finish(begin(stack, "--once", **environment))
    assert code == 0, err
    assert re.search(r'^Prediction: +{"predictions":\[0\]}$', out, re.MULTILINE)
    assert re.search(rf"^Owner key: +{re.escape(str(stack.home))}/owner\.key$", out, re.MULTILINE)
    assert re.search(r"^API: +http://127\.0\.0\.1:\d+/api/v1 ", out, re.MULTILINE)
    assert re.search(r"^Console: +http://127\.0\.0\.1:\d+/$", out, re.MULTILINE)
    assert out.endswith("It all worked; nothing is left running.\n")
    assert ("curl is not installed" in err) == (curl == "without curl")
    assert "sklearn-iris: Running" in err
    assert stack.processes() == []
    assert (stack.home / "owner.key").stat().st_mode & 0o777 == 0o600
    assert list((stack.home / "replicas").iterdir()) == []
    assert not (stack.home / "quickstart").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_runs_until_it_is_told_to_stop_and_can_be_run_again(stack: Stack, number: signal.Signals) -> None:
    process = begin(stack)
    assert process.stdout is not None
    shown = [process.stdout.readline() for _ in range(6)]
    assert shown[0].startswith("Prediction:"), finish(process)
    assert shown[-1].startswith("Owner key:")
    wait_for(lambda: len(stack.processes()) >= 3, "the platform, the gateway and a model server")
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 0, err
    assert stack.processes() == []
    if number == signal.SIGTERM:
        return
    code, out, err = finish(begin(stack, "--once"))
    assert code == 0, err
    assert "sklearn-iris of an earlier run" in err
    assert out.endswith("nothing is left running.\n")
    assert stack.processes() == []


@pytest.fixture
def readers(stack: Stack) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Somebody looks at files of ours, and at those of a copy; by the folder's name."""
    running = {}
    for name in ("gateway", "gateway-backup"):
        (stack.home / name).mkdir(parents=True)
        (stack.home / name / "notes.txt").touch()
        running[name] = subprocess.Popen(["tail", "-f", stack.home / name / "notes.txt"])
    yield running
    for process in running.values():
        process.kill()
        process.wait()


def test_it_ends_what_is_its_own_and_asks_the_api_where_it_listens(
    stack: Stack, readers: dict[str, subprocess.Popen[bytes]]
) -> None:
    advertised = {"INFERPLANE_ADVERTISED_HOST": "127.0.0.2", "INFERPLANE_GATEWAY_HOST": "0.0.0.0"}
    code, out, err = finish(begin(stack, "--once", **advertised))
    assert code == 0, err
    assert out.endswith("nothing is left running.\n")
    assert all(process.poll() is None for process in readers.values())
    assert f"Process {readers['gateway'].pid} was started with something under {stack.home}" in err
    assert str(readers["gateway-backup"].pid) not in err


@pytest.mark.slow
def test_what_a_killed_platform_leaves_is_ended(
    stack: Stack, readers: dict[str, subprocess.Popen[bytes]]
) -> None:
    process = begin(stack)
    assert process.stdout is not None
    shown = [process.stdout.readline() for _ in range(6)]
    assert shown[-1].startswith("Owner key:"), finish(process)
    (up,) = [each for each in stack.processes() if "up" in each.cmdline()]
    up.kill()
    code, _, err = finish(process)
    assert code == 1
    assert "which were killed" in err
    assert all(reader.poll() is None for reader in readers.values())
    assert {each.pid for each in stack.processes()} == {reader.pid for reader in readers.values()}


@pytest.mark.slow
def test_an_endpoint_of_its_name_that_is_not_its_own_is_left_alone(stack: Stack, tmp_path: Path) -> None:
    stack.start()
    try:
        stack.create("sklearn-iris", str(tmp_path / "theirs.joblib"))
        code, _, err = finish(begin(stack, "--once", "--api-port", stack.api.rsplit(":", 1)[1]))
        assert code == 1
        assert "it is not the quickstart's" in err
        assert f"it serves {tmp_path / 'theirs.joblib'}" in err
        endpoint = stack.describe("sklearn-iris")
        assert endpoint is not None
        assert endpoint["status"] != "Terminating"
        assert stack.stop() == 0
    finally:
        if stack.process is not None and stack.process.poll() is None:
            stack.process.kill()
            stack.process.wait()


def test_interrupted_while_it_starts_nothing_is_left(stack: Stack) -> None:
    process = begin(stack)
    wait_for(lambda: (stack.home / "inferplane.db").exists(), "the platform to be starting")
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert (code, out) == (130, ""), err
    assert "Traceback" not in err
    assert stack.processes() == []


def test_a_port_in_use_is_a_sentence(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for flag in ("api", "gateway"):
            code, out, err = finish(begin(stack, "--once", f"--{flag}-port", str(port)))
            assert (code, out) == (1, "")
            assert f"port {port}" in err
            assert f"--{flag}-port" in err
            assert "Traceback" not in err
    assert not (stack.home / "inferplane.db").exists()


def test_an_address_that_is_not_this_machines_is_not_called_a_port_in_use(stack: Stack) -> None:
    elsewhere = {"INFERPLANE_GATEWAY_HOST": "192.0.2.1", "INFERPLANE_GATEWAY_PORT": "7080"}
    code, out, err = finish(begin(stack, "--once", **elsewhere))
    assert (code, out) == (1, "")
    assert "Name an address of this machine in INFERPLANE_GATEWAY_HOST" in err


@pytest.mark.slow
def test_a_platform_of_another_home_is_left_alone_and_one_of_this_home_is_used(
    stack: Stack, tmp_path: Path
) -> None:
    stack.start()
    try:
        port = stack.api.rsplit(":", 1)[1]
        other = Stack(tmp_path / "other")
        code, out, err = finish(begin(other, "--once", "--api-port", port))
        assert (code, out) == (1, "")
        assert f"another platform, with another home, answers at {stack.api}" in err

        code, out, err = finish(begin(stack, "--once", "--api-port", port))
        assert code == 0, err
        assert out.endswith("It all worked.\n")
        assert stack.describe("sklearn-iris") is None
        assert stack.stop() == 0
    finally:
        if stack.process is not None and stack.process.poll() is None:
            stack.process.kill()
            stack.process.wait()


def test_a_home_in_use_is_told_in_the_platforms_own_words(stack: Stack) -> None:
    stack.home.mkdir(parents=True)
    lock = acquire_lock(stack.home / "up.lock")  # as by a platform that has not got far enough to answer
    assert lock is not None
    code, _, err = finish(begin(stack, "--once"))
    os.close(lock)
    assert code == 1
    assert "another platform already runs with the home folder" in err


def test_settings_that_cannot_be_meant(stack: Stack) -> None:
    code, _, err = finish(begin(stack, INFERPLANE_LOG_LEVEL="loud"))
    assert code == 2
    assert "log_level from environment INFERPLANE_LOG_LEVEL" in err


def test_the_examples_work_as_they_say(tmp_path: Path) -> None:
    import yaml

    folder = Path(__file__).parents[2] / "examples"
    model = tmp_path / "model.joblib"
    done = subprocess.run(
        [sys.executable, str(folder / "train_iris.py"), str(model)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert model.stat().st_size > 100
    asked = subprocess.run(
        [sys.executable, str(folder / "train_iris.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert asked.returncode == 0
    assert "usage:" in asked.stdout
    assert list(tmp_path.iterdir()) == [model]
    whole: dict[str, Any] = yaml.safe_load((folder / "sklearn-iris.yaml").read_text())
    assert whole["metadata"]["name"] == "sklearn-iris"
    assert set(yaml.safe_load((folder / "spec-only.yaml").read_text())) == {"spec"}
