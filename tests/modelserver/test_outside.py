"""A server that somebody else wrote: found ready, relayed to, ended, and replaced by an honest 503 before."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from inferplane.modelserver.outside import expanded

PROGRAM = """
import http.server, json, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        good = self.path == sys.argv[2] and os.path.exists("go")
        self.answer(200 if good else 404, {"path": self.path})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        told = {name: os.environ.get(name) for name in ("PORT", "MODEL_NAME", "MODEL_PATH", "SECRET")}
        self.answer(200, {"body": body.decode(), "args": sys.argv[1:], "told": told})
        if body == b"end":
            os._exit(7)

    def answer(self, code, value):
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture
def start(launch: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def begin(ready: str = "/v2/health/ready", **more: Any) -> Any:
        return launch(
            "custom",
            tmp_path,
            command=[sys.executable, str(program)],
            args=["$(PORT)", ready, "$$5 $(NOBODY)"],
            **more,
        )

    return begin


@pytest.mark.parametrize(
    ("ready", "more"),
    [("/v2/health/ready", {}), ("/", {}), ("/my/ready", {"ready_path": "/my/ready"})],
)
def test_it_is_relayed_to_once_it_says_ready(
    start: Callable[..., Any], tmp_path: Path, ready: str, more: dict[str, Any]
) -> None:
    server = start(ready, **more)
    server.wait_for("loading", "failed")
    early = server.client.post("/anything", content=b"x")
    assert (early.status_code, early.headers["retry-after"]) == (503, "1")
    assert server.client.get("/v2/health/live").json() == {"live": True}
    (server.folder / "go").touch()
    server.wait_for("ready")
    answer = server.client.post("/any/path", content=b"hello").json()
    assert answer["body"] == "hello"
    assert answer["args"][1:] == [ready, "$5 $(NOBODY)"]
    assert answer["told"] == {
        "PORT": answer["args"][0],
        "MODEL_NAME": "model",
        "MODEL_PATH": str(tmp_path),
        "SECRET": None,
    }
    again = server.client.post("/any/path", content=b"x" * 3_000_000)
    assert len(again.json()["body"]) == 3_000_000


def test_its_end_is_the_servers_end(start: Callable[..., Any]) -> None:
    server = start()
    server.wait_for("loading", "failed")
    (server.folder / "go").touch()
    server.wait_for("ready")
    assert server.client.post("/", content=b"end").status_code == 200
    status = server.wait_for("failed")
    assert (status["reason"], status["message"]) == ("ServerExited", "the command ended with exit code 7")
    assert server.wait_for_exit()["exit_code"] == 3


def test_a_command_that_is_not_there_says_so(launch: Callable[..., Any], tmp_path: Path) -> None:
    status = launch("custom", tmp_path, command=["/no/such/program"]).wait_for("failed")
    assert "'/no/such/program' cannot be started" in status["message"]


def test_it_ends_with_the_server(start: Callable[..., Any], until: Callable[..., Any]) -> None:
    server = start()
    server.wait_for("loading", "failed")
    (server.folder / "go").touch()
    server.wait_for("ready")
    port = server.client.post("/", content=b"x").json()["told"]["PORT"]
    server.stop()
    until(server.ended, "the server ends")
    with pytest.raises(httpx.ConnectError):
        httpx.post(f"http://127.0.0.1:{port}/", content=b"x")
    assert server.wait_for_exit()["exit_code"] == 0


@pytest.mark.parametrize(
    ("word", "result"), [("$(A)", "1"), ("x$(A)y$(B)", "x1y$(B)"), ("$$(A)", "$(A)"), ("$A", "$A"), ("", "")]
)
def test_variables_in_arguments_are_kubernetes(word: str, result: str) -> None:
    assert expanded(word, {"A": "1"}) == result
