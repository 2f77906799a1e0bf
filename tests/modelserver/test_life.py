"""From start to end: states, reasons for not serving, draining, limits, and the program itself."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

Launch = Callable[..., Any]


@pytest.mark.parametrize(
    ("model_format", "file", "reason", "words"),
    [
        ("sklearn", "nowhere.pkl", "ModelNotFound", "nowhere.pkl"),
        ("sklearn", "iris.onnx", "ModelFileMissing", ".joblib or .pkl"),
        ("sklearn", "cut.joblib", "ModelLoadFailed", "cut.joblib"),
        ("sklearn", "empty.pkl", "ModelLoadFailed", "empty"),
        ("sklearn", "page.pkl", "ModelLoadFailed", "pickle"),
        ("sklearn", "stranger.pkl", "ModelLoadFailed", "no_such_package"),
        ("sklearn", "older.pkl", "ModelLoadFailed", "version"),
        ("sklearn", "dictionary.joblib", "ModelLoadFailed", "dict"),
        ("sklearn", "unfitted.joblib", "ModelLoadFailed", "fitted"),
        ("sklearn", "broken.pkl", "ModelLoadFailed", "the model is broken"),
        ("sklearn", "two", "ModelFileAmbiguous", "a.pkl, b.joblib"),
        ("sklearn", "none", "ModelFileMissing", "readme.md"),
        ("xgboost", "page.json", "ModelLoadFailed", "XGBoost"),
        ("xgboost", "page.ubj", "ModelLoadFailed", "XGBoost"),
        ("lightgbm", "page.txt", "ModelLoadFailed", "LightGBM"),
        ("onnx", "page.onnx", "ModelLoadFailed", "ONNX"),
        ("pytorch", "page.onnx", "UnsupportedFormat", "the known formats are"),
    ],
)
def test_what_cannot_be_served_says_why_and_exits_3(
    launch: Launch, model_files: Path, bad_files: Path, model_format: str, file: str, reason: str, words: str
) -> None:
    path = bad_files / file if (bad_files / file).exists() else model_files / file
    server = launch(model_format, path)
    status = server.wait_for("failed", "ready")
    assert (status["state"], status["reason"]) == ("failed", reason), server.log()
    assert words in status["message"]
    assert "\n" not in status["message"]
    assert server.wait_for_exit()["exit_code"] == 3
    assert "cannot serve" in server.log()
    assert "Traceback" not in server.log()
    assert not re.search(r"\(\d+\)$", status["message"])


def test_a_folder_with_one_model_is_searched_one_level_deep(
    launch: Launch, model_files: Path, tmp_path: Path
) -> None:
    (tmp_path / "model" / "inner").mkdir(parents=True)
    (tmp_path / "model" / "readme.txt").write_text("hello")
    (tmp_path / "model" / "inner" / "m.joblib").write_bytes((model_files / "iris.joblib").read_bytes())
    (tmp_path / "model" / "inner" / "._m.joblib").write_bytes(b"resource fork")
    launch("sklearn", tmp_path / "model").wait_for("ready")


def test_too_little_memory_is_named(launch: Launch, model_files: Path) -> None:
    server = launch("sklearn", model_files / "greedy.pkl", memory_bytes_max=200 * 2**20)
    status = server.wait_for("failed", "ready")
    assert status["reason"] == "OutOfMemory", status
    assert "200 MiB" in status["message"]


def test_a_model_whose_input_cannot_be_guessed_is_served_without_an_example(
    launch: Launch, model_files: Path
) -> None:
    server = launch("sklearn", model_files / "unfathomable.pkl")
    assert server.wait_for("ready", "failed")["model"]["example"] == ""
    assert server.predict(["hello"]).status_code == 400
    assert server.predict(["open sesame"]).json() == {"predictions": [1]}


def test_a_forest_is_held_to_the_threads_it_was_given(serving: Callable[[str], Any]) -> None:
    server = serving("forest")
    assert server.predict([[5.1, 3.5, 1.4, 0.2]]).json() == {"predictions": [0]}
    threads = {path.read_text().strip() for path in Path(f"/proc/{server.pid}/task").glob("*/comm")}
    assert not any("joblib" in name.lower() or "threadpool" in name.lower() for name in threads)


def test_probabilities_may_be_the_default(launch: Launch, model_files: Path) -> None:
    server = launch("sklearn", model_files / "iris.joblib", predict_proba=True)
    server.wait_for("ready")
    row = [[5.1, 3.5, 1.4, 0.2]]
    assert len(server.predict(row).json()["predictions"][0]) == 3
    assert server.predict(row, parameters={"probabilities": False}).json() == {"predictions": [0]}


def test_an_address_in_use_is_named_and_a_stale_socket_is_not_in_the_way(
    launch: Launch, model_files: Path, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    first = launch("sklearn", model_files / "iris.joblib", address=f"unix:{path}")
    first.wait_for("ready")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = launch("sklearn", model_files / "iris.joblib", address=f"unix:{path}")
    status = second.wait_for("failed", "ready")
    assert (status["state"], status["reason"]) == ("failed", "PortUnavailable")
    assert first.predict([[1, 2, 3, 4]]).status_code == 200
    os.kill(first.pid, signal.SIGTERM)
    assert first.wait_for_exit()["exit_code"] == 0
    assert not path.exists()


def test_a_request_over_its_time_limit_is_504(launch: Launch, model_files: Path) -> None:
    server = launch("sklearn", model_files / "sleeper.pkl", request_timeout_seconds=0.2)
    server.wait_for("ready")
    answer = server.predict([[1.5, 1]])
    assert answer.status_code == 504
    assert "0.2 s" in answer.json()["error"]


def test_a_full_queue_refuses_what_it_did_not_process(launch: Launch, model_files: Path) -> None:
    server = launch("sklearn", model_files / "sleeper.pkl", queue_rows_max=2, max_batch_rows=1)
    server.wait_for("ready")

    async def many() -> list[httpx.Response]:
        async with _async_client(server) as client:
            first = asyncio.create_task(_predict(client, 1.0, 1))
            await _in_flight(client)
            rest = await asyncio.gather(*(_predict(client, 0, number) for number in range(8)))
            return [await first, *rest]

    answers = asyncio.run(many())
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 6
    for answer in refused:
        assert answer.headers["x-inferplane-not-processed"] == "1"
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]
    assert answers[0].json() == {"predictions": [1.0]}


def test_a_connection_lives_on_through_refusals(launch: Launch, model_files: Path) -> None:
    server = launch("sklearn", model_files / "sleeper.pkl", queue_rows_max=1, max_batch_rows=1)
    server.wait_for("ready")
    body = b'{"instances": [[0, 7]]}'
    plain = b"POST /v1/models/model:predict HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    chunked = (
        b"POST /v1/models/model:predict HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
        % (len(body), body)
    )
    bad = b"POST /v1/models/other:predict HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}"

    async def many() -> list[tuple[bytes, bytes]]:
        reader, writer = await asyncio.open_unix_connection(server.config["address"].removeprefix("unix:"))

        async def ask(request: bytes) -> tuple[bytes, bytes]:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            return head, await reader.readexactly(int(length[1]))

        async with _async_client(server) as client:
            first = asyncio.create_task(_predict(client, 3.0, 1))
            await _in_flight(client)
            second = asyncio.create_task(_predict(client, 0, 2))
            await _in_flight(client, 2)
            # The first refusal makes the server look at the following ones only as far as it must. Of two
            # that are sent together, the second answer comes without asking again.
            requests = (plain, plain, chunked, plain + plain, b"", plain, bad)
            answers = [await ask(one) for one in requests]
            assert (await first).status_code == (await second).status_code == 200
            answers.append(await ask(plain))
        writer.close()
        return answers

    *refused, nowhere, answer = asyncio.run(many())
    assert len(refused) == 6
    for head, content in refused:
        assert head.startswith(b"http/1.1 503")
        assert b"x-inferplane-not-processed: 1" in head
        assert re.search(rb"retry-after: [1-9]", head)
        assert b"error" in content
    assert nowhere[0].startswith(b"http/1.1 404")
    assert answer[1] == b'{"predictions":[7.0]}'
    text = server.client.get("/metrics").text
    assert re.search(r'requests_total\{[^}]*code="503"\} 6\b', text)


def test_requests_that_arrive_meanwhile_are_joined_and_each_gets_its_own(
    launch: Launch, model_files: Path
) -> None:
    server = launch("sklearn", model_files / "sleeper.pkl")
    server.wait_for("ready")

    async def many() -> list[httpx.Response]:
        async with _async_client(server) as client:
            first = asyncio.create_task(_predict(client, 1.0, 500))
            await _in_flight(client)
            numbers = [-1 if number == 7 else 100 + number for number in range(20)]
            rest = await asyncio.gather(*(_predict(client, 0, number) for number in numbers))
            return [await first, *rest]

    answers = asyncio.run(many())
    assert answers[0].json() == {"predictions": [500.0]}
    for number, answer in enumerate(answers[1:]):
        if number == 7:
            assert answer.status_code == 400
            assert "negative" in answer.json()["error"]
        else:
            assert answer.json() == {"predictions": [100.0 + number]}
    text = server.client.get("/metrics").text
    batches = re.search(r"inferplane_model_batch_requests_count\S* (\d+)", text)
    assert batches is not None
    assert int(batches[1]) < 21


def test_sigterm_finishes_what_was_accepted_refuses_what_is_new_and_exits_0(
    launch: Launch, model_files: Path
) -> None:
    server = launch("sklearn", model_files / "sleeper.pkl")
    server.wait_for("ready")

    async def drain() -> tuple[httpx.Response, httpx.Response]:
        async with _async_client(server) as client, _async_client(server) as other:
            assert (await other.get("/v2/health/ready")).status_code == 200  # a connection kept alive
            slow = asyncio.create_task(_predict(client, 2.0, 42))
            await _in_flight(other)
            os.kill(server.pid, signal.SIGTERM)
            await asyncio.to_thread(server.wait_for, "draining")
            refused = await _predict(other, 0, 1)
            return await slow, refused

    slow, refused = asyncio.run(drain())
    assert slow.status_code == 200
    assert slow.json() == {"predictions": [42.0]}
    assert refused.status_code == 503
    assert refused.headers["x-inferplane-not-processed"] == "1"
    assert refused.headers["connection"] == "close"
    assert server.wait_for_exit()["exit_code"] == 0
    assert not (server.folder / "s").exists()


def test_while_the_model_loads_the_server_says_so(launch: Launch, model_files: Path) -> None:
    server = launch("sklearn", model_files / "slowloader.pkl", name="slow")
    assert server.wait_for("loading", "ready", "failed")["state"] == "loading"
    live = server.client.get("/v2/health/live")
    assert (live.status_code, live.json()) == (200, {"live": True})
    ready = server.client.get("/v2/health/ready")
    assert (ready.status_code, ready.json()) == (503, {"ready": False})
    model = server.client.get("/v1/models/slow")
    assert (model.status_code, model.json()) == (503, {"error": "Model with name slow is not ready."})
    assert server.client.get("/v2/models/slow").status_code == 503
    refused = server.predict([[1, 2]])
    assert refused.status_code == 503
    assert refused.headers["x-inferplane-not-processed"] == "1"
    (server.folder / "go").touch()
    server.wait_for("ready")
    assert server.predict([[1, 2]]).json() == {"predictions": [2.0]}


def test_sigterm_while_loading_ends_at_once(launch: Launch, model_files: Path) -> None:
    server = launch("sklearn", model_files / "slowloader.pkl")
    assert server.wait_for("loading", "ready", "failed")["state"] == "loading"
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait_for_exit()["exit_code"] == 0


def test_the_program_in_a_fresh_interpreter_over_tcp(model_files: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.bind(str(tmp_path / "n"))
    notices.settimeout(60)
    config = {
        "name": "fresh",
        "format": "sklearn",
        "path": str(model_files / "iris.joblib"),
        "address": f"127.0.0.1:{port}",
        "status_file": str(tmp_path / "status.json"),
        "notify_socket": str(tmp_path / "n"),
        "notify_key": "uid/r1-0",
        "a_key_of_tomorrow": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with subprocess.Popen(
        [sys.executable, "-m", "inferplane.modelserver", str(tmp_path / "config.json")]
    ) as process:
        seen: list[str] = []
        while not seen or seen[-1] not in ("ready", "failed"):
            assert notices.recv(100) == b"uid/r1-0"
            seen.append(json.loads((tmp_path / "status.json").read_text())["state"])
        assert seen[-1] == "ready"
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/models/fresh:predict", json={"instances": [[5.1, 3.5, 1.4, 0.2]]}
        )
        assert answer.json() == {"predictions": [0]}
        assert json.loads((tmp_path / "status.json").read_text())["pid"] == process.pid
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    notices.close()


@pytest.mark.parametrize(
    ("model_format", "package", "file"),
    [
        ("sklearn", "joblib", "iris.joblib"),
        ("sklearn", "pandas", "people.joblib"),
        ("xgboost", "xgboost", "raw.ubj"),
        ("lightgbm", "lightgbm", "light.txt"),
        ("onnx", "onnxruntime", "iris.onnx"),
    ],
)
def test_a_package_that_is_not_installed_names_its_extra(
    model_files: Path, tmp_path: Path, model_format: str, package: str, file: str
) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(name={package!r})\n")
    config = {
        "name": "m",
        "format": model_format,
        "path": str(model_files / file),
        "address": f"unix:{tmp_path}/s",
        "status_file": str(tmp_path / "status.json"),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "inferplane.modelserver", str(tmp_path / "config.json")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("failed", "MissingExtra"), done.stderr
    assert f"package {package} " in status["message"]
    assert f"inferplane[{model_format}]" in status["message"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"name": "a"}', '{"name":"a","format":"sklearn","path":"/x","address":"nowhere"}'],
)
def test_a_configuration_that_cannot_be_read_exits_2_with_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "inferplane.modelserver", str(tmp_path / "config.json")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def _async_client(server: Any, connections: int = 100) -> httpx.AsyncClient:
    path = server.config["address"].removeprefix("unix:")
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=path, limits=httpx.Limits(max_connections=connections)),
        base_url="http://model",
        timeout=60,
    )


async def _predict(client: httpx.AsyncClient, seconds: float, number: float) -> httpx.Response:
    return await client.post("/v1/models/model:predict", json={"instances": [[seconds, number]]})


async def _in_flight(client: httpx.AsyncClient, others: int = 1) -> None:
    """Wait until so many other requests beside this question are being answered."""
    while True:
        text = (await client.get("/metrics")).text
        found = re.search(r"inferplane_model_in_flight_requests\S* (\d+)", text)
        if found is not None and int(found[1]) > others:
            return


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory, model_files: Path) -> Path:
    """Files that are no models, each in its own way."""
    folder = tmp_path_factory.mktemp("bad")
    whole = (model_files / "iris.joblib").read_bytes()
    (folder / "cut.joblib").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pkl").write_bytes(b"")
    (folder / "stranger.pkl").write_bytes(b"cno_such_package.models\nModel\n.")
    (folder / "older.pkl").write_bytes(b"csklearn.linear_model\nNoSuchRegression\n.")
    for ending in ("pkl", "json", "ubj", "txt", "onnx"):
        (folder / f"page.{ending}").write_text("<!doctype html><html><body>Sign in to download</body></html>")
    (folder / "two").mkdir()
    (folder / "two" / "a.pkl").write_bytes(whole)
    (folder / "two" / "b.joblib").write_bytes(whole)
    (folder / "none").mkdir()
    (folder / "none" / "readme.md").write_text("no model")
    return folder
