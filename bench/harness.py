"""What the benchmarks share: models, environments of peers, servers, the load generator, rounds, tables.

A benchmark compares sides (ours and others) on one machine in one run. Rounds are interleaved: each round
measures every side once, one after the other, with nothing else of the benchmark running, so that whatever
else the machine does meets all alike. What is quoted is the median over the rounds of *ratios within a
round*; bare numbers depend on the machine.

Peers are installed from the package registry at pinned versions into environments of their own under
`$XDG_CACHE_HOME/inferplane-bench` (or `~/.cache/…`), and never into ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parent
START_SECONDS = 120.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.05
#: Two rows of the iris data, as every benchmark of small requests sends them.
ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]


# An ended benchmark ends its servers too: its `finally` clauses run as after Ctrl-C.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


# Models.


def train(path: Path, kind: str = "logistic") -> Path:
    """A small scikit-learn model on disk: `logistic`, or `forest` (100 trees)."""
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    data = load_iris()
    model = LogisticRegression(max_iter=500) if kind == "logistic" else RandomForestClassifier(random_state=0)
    joblib.dump(model.fit(data.data, data.target), path)
    return path


def v1_body(rows: Any = ROWS) -> bytes:
    """A V1 request."""
    return json.dumps({"instances": rows}).encode()


def v2_body(rows: Any = ROWS, outputs: Sequence[str] = ("predict",)) -> bytes:
    """A V2 request with its tensor as JSON, for these outputs (none named: all)."""
    flat = [value for row in rows for value in row]
    tensor = {"name": "input-0", "shape": [len(rows), len(rows[0])], "datatype": "FP64", "data": flat}
    wanted = {"outputs": [{"name": name} for name in outputs]} if outputs else {}
    return json.dumps({"inputs": [tensor]} | wanted).encode()


# Environments of peers.


def environment(name: str, requirements: Sequence[str]) -> Path:
    """The Python of an environment with exactly these pinned requirements, made when it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inferplane-bench"
    digest = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:8]
    folder = cache / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    print(f"installing {', '.join(requirements)} into {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    uv = [sys.executable, "-m", "uv"]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    subprocess.run([*uv, "venv", "--quiet", "--python", version, str(folder)], check=True)
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", str(python), *requirements], check=True)
    (folder / "complete").touch()
    return python


# Servers.


@dataclass
class Server:
    """A running server: where it answers, and what it is asked."""

    name: str
    url: str
    body: bytes
    headers: tuple[str, ...] = ()
    pids: list[int] = field(default_factory=list)

    def answer(self) -> Any:
        """The answer to the benchmark's request; raises OSError or ValueError when there is none."""
        if self.url.startswith("unix:"):
            raise ValueError("unix sockets are asked by the load generator only")
        headers = dict(line.split(": ", 1) for line in self.headers)
        request = urllib.request.Request(
            self.url, data=self.body, headers={"content-type": "application/json", **headers}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.loads(response.read())


@contextlib.contextmanager
def running(
    server: Server,
    command: Sequence[str],
    *,
    extra_env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[Server]:
    """Run a server until it answers, and end it with all its processes afterwards."""
    with tempfile.TemporaryFile() as log:
        environ = os.environ | dict(extra_env or {})
        process = subprocess.Popen(
            command, env=environ, cwd=cwd, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        server.pids.append(process.pid)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _answers(server):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{server.name} does not answer:\n{log.read().decode()[-3000:]}")
                time.sleep(POLL_SECONDS)
            yield server
        finally:
            end(process)


def end(process: subprocess.Popen[Any]) -> None:
    """End a process that leads its own session, and everything that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answers(server: Server) -> bool:
    try:
        server.answer()
    except (OSError, ValueError, urllib.error.HTTPError):
        return False
    return True


@contextlib.contextmanager
def model_server(
    model: Path, *, name: str = "iris", model_format: str = "sklearn", body: bytes = b"", **config: Any
) -> Iterator[Server]:
    """Our model server alone, over TCP like the peers."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ip-") as folder:
        content = {
            "name": name,
            "format": model_format,
            "path": str(model),
            "address": f"127.0.0.1:{port}",
            **config,
        }
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(content))
        url = f"http://127.0.0.1:{port}/v1/models/{name}:predict"
        command = [sys.executable, "-m", "inferplane.modelserver", str(file)]
        with running(Server("inferplane", url, body or v1_body()), command) as server:
            yield server


@dataclass
class Platform:
    """A whole platform: its API, its gateway, and the owner's token."""

    api: str
    gateway: str
    token: str
    process: subprocess.Popen[str]
    home: Path

    def sign_in(self) -> None:
        """Have a fresh token of the owner's; they live for a quarter of an hour."""
        key = (self.home / "owner.key").read_text().strip()
        _, content = self.call("POST", "auth", {"apiKey": key})
        self.token = content["data"]["token"]

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """One call of the API: status and content."""
        request = urllib.request.Request(
            f"{self.api}/api/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {self.token}", "content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def deploy(self, name: str, model: Path, **more: Any) -> Server:
        """Deploy a model in the workspace `default`, and wait until it answers through the gateway."""
        spec = {"modelName": "sklearn", "storageURI": str(model), **more}
        status, content = self.call(
            "POST",
            "inference-endpoint",
            {"endpointName": name, "workspace": "default", "modelSpec": spec},
        )
        if status != 200:
            raise SystemExit(f"not accepted: {content}")
        url = f"{self.gateway}/serving/default/{name}/v1/models/{name}:predict"
        server = Server("inferplane through its gateway", url, v1_body())
        deadline = time.monotonic() + START_SECONDS
        while not _answers(server):
            if time.monotonic() > deadline:
                raise SystemExit(f"{name} does not answer")
            time.sleep(POLL_SECONDS)
        return server


@contextlib.contextmanager
def inferplane_platform(**settings: str) -> Iterator[Platform]:
    """A platform of its own in a temporary folder; `settings` become INFERPLANE_… variables."""
    with tempfile.TemporaryDirectory(prefix="ip-") as home:
        environ = os.environ | {
            "INFERPLANE_HOME": home,
            "INFERPLANE_API_PORT": "0",
            "INFERPLANE_GATEWAY_PORT": "0",
            "INFERPLANE_LOG_LEVEL": "error",
            **{f"INFERPLANE_{key.upper()}": value for key, value in settings.items()},
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "inferplane", "up"],
            env=environ,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            api, gateway = words[words.index("api") + 1], words[words.index("gateway") + 1]
            started = Platform(api, gateway, "", process, Path(home))
            started.sign_in()
            yield started
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS * 3)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Measuring.


@dataclass(frozen=True)
class Figures:
    """One measurement of the load generator. Latencies in milliseconds."""

    good_per_second: float
    answers_per_second: float
    p50: float
    p95: float
    p99: float
    statuses: Mapping[str, int]
    failures: int
    unsent: int
    due_per_second: float = 0.0
    sent_per_second: float = 0.0
    late_ms: float = 0.0
    generator_cpu: float = 0.0

    @property
    def bad(self) -> int:
        """Answers that were no 200, and requests without an answer."""
        return sum(count for status, count in self.statuses.items() if status != "200") + self.failures


def measure(
    server: Server,
    *,
    connections: int,
    seconds: float,
    warmup: float = 1.0,
    rate: float = 0.0,
    patience_ms: float = 0.0,
) -> Figures:
    """Load a server from a process of its own. With `rate` an open loop; with `patience_ms` only answers
    that came in time are good, and servers that heed the gateway's word are told of it."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(server.body)
        body.flush()
        command = [sys.executable, str(FOLDER / "load.py"), server.url, body.name]
        command += ["--connections", str(connections), "--seconds", str(seconds), "--warmup", str(warmup)]
        command += ["--rate", str(rate)]
        if patience_ms:
            command += ["--patience", str(patience_ms)]
            command += ["--header", f"x-envoy-expected-rq-timeout-ms: {patience_ms:.0f}"]
        for header in server.headers or ("content-type: application/json",):
            command += ["--header", header]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    content = json.loads(done.stdout)
    times = {"p50": 0.0, "p95": 0.0, "p99": 0.0} | content["ms"]
    return Figures(
        good_per_second=content["good_per_second"],
        answers_per_second=content["answers_per_second"],
        p50=times["p50"],
        p95=times["p95"],
        p99=times["p99"],
        statuses=content["statuses"],
        failures=content["failures"],
        unsent=content["unsent"],
        due_per_second=content["due_per_second"],
        sent_per_second=content["sent_per_second"],
        late_ms=content["late_ms"],
        generator_cpu=content["cpu"],
    )


def pss_bytes(pid: int) -> int:
    """A process's share of memory: what it alone uses, and its part of what it shares."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


# Saying it.


@dataclass(frozen=True)
class Spread:
    """A median with the least and the most of the rounds."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def show(self, digits: int = 0) -> str:
        """`median (least to most)`."""
        low, high = min(self.values), max(self.values)
        return f"{self.median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def machine() -> str:
    """The machine in neutral words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory:.0f} GiB memory, "
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is to the right."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["---"] + ["---:"] * (len(head) - 1)) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def publish(section: str, text: str) -> None:
    """Print a result, and put it between its marks in docs/benchmarks.md if the marks are there."""
    print(f"\n{text}\n")
    page = REPOSITORY / "docs" / "benchmarks.md"
    begin, finish = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    content = page.read_text() if page.exists() else ""
    if begin in content and finish in content:
        before, _, rest = content.partition(begin)
        _, _, after = rest.partition(finish)
        page.write_text(f"{before}{begin}\n{text}\n{finish}{after}")
