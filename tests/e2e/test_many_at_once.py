"""Many endpoints at once, half of them broken in ten different ways.

Each must reach its own right state with its own right reason, none may disturb another, and
deleting all must leave no process, no address, no file and no row in the gateway's configuration.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pytest

from platform_stack import Stack, wait_for

# Fewer on a small machine: INFERPLANE_TEST_MANY=40.
MANY = int(os.environ.get("INFERPLANE_TEST_MANY", "200"))
ROW = [[5.1, 3.5, 1.4, 0.2]]
REACH_SECONDS = 600.0


class CrashOnLoad:
    """A pickle whose loading ends the process, as a segmentation fault in a library would."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (7,)


class HungryOnLoad:
    """A pickle whose loading takes more memory than the endpoint's limit."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return eval, ("[bytearray(b'x' * (1 << 20)) for _ in range(4096)]",)


@dataclass(frozen=True)
class Breakage:
    """One way to be broken: what to ask for, and the reason that must come back."""

    word: str
    uri: str
    reasons: frozenset[str]
    spec: dict[str, object] = field(default_factory=dict)


class _Files(http.server.SimpleHTTPRequestHandler):
    answers: dict[str, tuple[int, str, bytes]]

    def do_GET(self) -> None:
        status, kind, body = self.answers.get(self.path, (404, "text/plain", b"no such file"))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def files(iris_model: Path) -> Iterator[str]:
    """A real HTTP server with good and bad things; yields its base URL."""

    class Handler(_Files):
        answers = {
            "/iris.joblib": (200, "application/octet-stream", iris_model.read_bytes()),
            "/private.joblib": (401, "text/plain", b"who are you?"),
            "/page.joblib": (200, "text/html", b"<!doctype html><html><body>Sign in</body></html>"),
            "/evil.tar": (200, "application/x-tar", _archive_that_climbs_out()),
        }

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def _archive_that_climbs_out() -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("../../escaped.joblib")
        info.size = 1
        archive.addfile(info, BytesIO(b"x"))
    return buffer.getvalue()


@pytest.fixture
def breakages(files: str, tmp_path: Path, iris_model: Path) -> list[Breakage]:
    """Ten ways to be broken."""
    without = tmp_path / "without"
    without.mkdir()
    (without / "README.md").write_text("the model is elsewhere")
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a.joblib", "b.joblib"):
        (two / name).write_bytes(iris_model.read_bytes())
    (tmp_path / "corrupt.joblib").write_bytes(b"this is not a pickle")
    (tmp_path / "crash.pkl").write_bytes(pickle.dumps(CrashOnLoad()))
    (tmp_path / "hungry.pkl").write_bytes(pickle.dumps(HungryOnLoad()))
    wrong = "sha256:" + hashlib.sha256(b"something else").hexdigest()

    def one(word: str, uri: object, *reasons: str, **spec: object) -> Breakage:
        return Breakage(word, str(uri), frozenset(reasons), spec)

    return [
        one("absent", tmp_path / "nowhere.joblib", "ModelNotFound"),
        one("without", without, "ModelFileMissing"),
        one("two", two, "ModelFileAmbiguous"),
        one("corrupt", tmp_path / "corrupt.joblib", "ModelLoadFailed"),
        one("private", f"{files}/private.joblib", "StorageUnauthorized"),
        one("page", f"{files}/page.joblib", "NotAModel"),
        one("evil", f"{files}/evil.tar", "UnsafeArchive"),
        one("digest", f"{files}/iris.joblib", "ChecksumMismatch", digest=wrong),
        one("crash", tmp_path / "crash.pkl", "CrashLoop", "ServerExited"),
        one("hungry", tmp_path / "hungry.pkl", "OutOfMemory", resources={"memory": "512Mi"}),
    ]


@pytest.mark.slow
def test_many_good_and_broken_endpoints_at_once(
    stack: Stack, iris_model: Path, files: str, breakages: list[Breakage]
) -> None:
    good = [f"good-{index}" for index in range(MANY // 2)]
    broken = {
        f"bad-{breakages[index % len(breakages)].word}-{index}": breakages[index % len(breakages)]
        for index in range(MANY - len(good))
    }

    def ask(name: str) -> None:
        if name in broken:
            stack.create(name, broken[name].uri, **broken[name].spec)  # type: ignore[arg-type]
        else:
            by_http = int(name.rsplit("-", 1)[1]) % 2
            stack.create(name, f"{files}/iris.joblib" if by_http else str(iris_model))

    with ThreadPoolExecutor(8) as pool:
        names = sorted([*good, *broken], key=lambda name: hashlib.sha256(name.encode()).digest())
        list(pool.map(ask, names))

    def wrong() -> dict[str, str]:
        seen = stack.endpoints()
        assert sorted(seen) == sorted([*good, *broken])
        unsettled = {name: f"{seen[name]['status']}" for name in good if seen[name]["status"] != "Running"}
        for name, breakage in broken.items():
            item = seen[name]
            if item["status"] != "Failed" or item["reason"] not in breakage.reasons:
                unsettled[name] = f"{item['status']}: {item['reason']}"
        return unsettled

    try:
        wait_for(lambda: not wrong(), "everybody to reach the right state", REACH_SECONDS)
    except pytest.fail.Exception:
        pytest.fail(f"not in the right state: {wrong()}\n{stack.log_tail()}")

    for name in good:
        assert stack.predict(name, ROW).json() == {"predictions": [0]}, name
    for name in broken:
        state = stack.describe(name)
        assert state is not None
        assert state["message"], name
        assert state["nextAction"], name
        assert stack.predict(name, ROW).status_code == 503, name

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(stack.delete, names)) == {200}
    wait_for(lambda: not stack.endpoints(), "everything to be gone", REACH_SECONDS)

    assert stack.model_servers() == {}
    assert list((stack.home / "replicas").iterdir()) == []
    assert not [name for name in names if name in stack.gateway_files()]
    assert _addresses(stack) == []


def _addresses(stack: Stack) -> list[str]:
    """Unix sockets that a replica of this home still listens on, from the kernel's table."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    paths = [line.split()[-1] for line in lines if "/" in line]
    return [path for path in paths if path.startswith(str(stack.home)) and "-r1-" in path]
