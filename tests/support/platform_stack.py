"""A whole platform as a user starts it: `inferplane up` as a process of its own, real everything."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest

READY = re.compile(r"inferplane is ready: api (?P<api>\S+) gateway (?P<gateway>\S+) home (?P<home>.+)")
T = TypeVar("T")
START_SECONDS = 60.0
STOP_SECONDS = 60.0


def wait_for(probe: Callable[[], T | None], what: str, seconds: float = 60.0) -> T:
    """Ask until the answer is not None/False; fail with `what` when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.02)


@dataclass
class Stack:
    """One platform: start it, kill it, ask it."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    api: str = ""
    gateway: str = ""
    output: list[str] = field(default_factory=list)
    _token: str = ""

    def start(self, *, api_port: int = 0, gateway_port: int = 0) -> None:
        """Start `inferplane up` and wait for its one line of readiness."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("INFERPLANE_")
        }
        environment |= {
            "INFERPLANE_HOME": str(self.home),
            "INFERPLANE_API_PORT": str(api_port),
            "INFERPLANE_GATEWAY_PORT": str(gateway_port),
            **self.environment,
        }
        log = (self.home.parent / f"{self.home.name}.up.log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "inferplane", "up"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        log.close()
        ready = threading.Event()
        said_before = len(self.output)
        threading.Thread(target=self._read, args=(self.process, ready), daemon=True).start()
        # One that dies while it starts must not pass for the one before it.
        if not ready.wait(START_SECONDS) or not any(map(READY.match, self.output[said_before:])):
            pytest.fail(f"the platform did not become ready:\n{self.log_tail()}")
        self._token = ""

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self.output.append(line.rstrip("\n"))
                if match := READY.match(line):
                    self.api, self.gateway = match["api"], match["gateway"]
                    ready.set()
        ready.set()

    def log_tail(self) -> str:
        """The end of what the platform logged, for failure messages."""
        path = self.home.parent / f"{self.home.name}.up.log"
        return path.read_text()[-6000:] if path.exists() else ""

    def kill(self) -> None:
        """`kill -9` of the control plane and of nothing else."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start again on the same ports."""
        self.start(api_port=_port(self.api), gateway_port=_port(self.gateway))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the platform as a user would; return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    # --- the API ----------------------------------------------------------------------------------

    def request(self, method: str, path: str, body: object = None, **params: object) -> tuple[int, Any]:
        """One call with a fresh-enough token; returns status and the envelope."""
        if not self._token:
            key = (self.home / "owner.key").read_text().strip()
            answer = httpx.post(f"{self.api}/api/v1/auth", json={"apiKey": key}, timeout=30)
            assert answer.status_code == 200, f"{answer.text}\n{self.log_tail()}"
            self._token = answer.json()["data"]["token"]
        answer = httpx.request(
            method,
            f"{self.api}/api/v1/{path}",
            headers={"Authorization": f"Bearer {self._token}"},
            content=None if body is None else json.dumps(body),
            params={name: str(value) for name, value in params.items()},
            timeout=30,
        )
        assert answer.status_code != 500, f"{answer.text}\n{self.log_tail()}"
        return answer.status_code, answer.json()

    def create(self, name: str, uri: str, *, format: str = "sklearn", **spec: object) -> None:
        """Ask for an endpoint in workspace `default`; it must be accepted."""
        body = {
            "endpointName": name,
            "workspace": "default",
            "clusterName": "local",
            "modelSpec": {"modelName": format, "storageURI": uri, **spec},
        }
        status, answer = self.request("POST", "inference-endpoint", body)
        assert status == 200, answer

    def describe(self, name: str) -> dict[str, Any] | None:
        """The endpoint, or None when there is none."""
        status, answer = self.request("GET", "inference-endpoint", workspace="default", endpoint=name)
        if status == 404:
            return None
        assert status == 200, answer
        endpoint: dict[str, Any] = answer["data"]["endpoint"]
        return endpoint

    def endpoints(self) -> dict[str, dict[str, Any]]:
        """All endpoints of `default` by name."""
        status, answer = self.request("GET", "inference-endpoint/list", workspace="default")
        assert status == 200, answer
        return {item["endpointName"]: item for item in answer["data"]["endpoints"]}

    def delete(self, name: str) -> int:
        """Ask for deletion; return the HTTP status."""
        status, _ = self.request("DELETE", "inference-endpoint", {"endpoint": name, "workspace": "default"})
        return status

    def wait_until(self, name: str, status: str, seconds: float = 60.0) -> dict[str, Any]:
        """Wait until the endpoint shows `status`; return its description."""

        def probe() -> dict[str, Any] | None:
            endpoint = self.describe(name)
            return endpoint if endpoint is not None and endpoint["status"] == status else None

        try:
            return wait_for(probe, f"{name} to be {status}", seconds)
        except pytest.fail.Exception:
            pytest.fail(f"{name} is not {status}: {self.describe(name)}\n{self.log_tail()}")

    def predict(self, name: str, instances: object) -> httpx.Response:
        """A V1 prediction through the gateway, by path."""
        url = f"{self.gateway}/serving/default/{name}/v1/models/{name}:predict"
        return httpx.post(url, json={"instances": instances}, timeout=30)

    # --- what is there of us on this machine --------------------------------------------------------

    def processes(self) -> list[psutil.Process]:
        """Every process that works for this home, the control plane included."""
        ours = []
        for process in psutil.process_iter():
            try:
                command = process.cmdline()
                environment = process.environ()
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
            marks = [*command, environment.get("INFERPLANE_HOME", ""), *_open_files(process)]
            if any(str(self.home) in mark for mark in marks):
                ours.append(process)
        return [process for process in ours if process.pid != os.getpid()]

    def model_servers(self) -> dict[str, list[int]]:
        """Process ids by the replica directory whose lock they hold, from the kernel's own table."""
        holders: dict[str, list[int]] = {}
        for directory in sorted((self.home / "replicas").glob("*/*")):
            lock = str(directory / "lock")
            pids = [p.pid for p in psutil.process_iter() if lock in _open_files(p)]
            if pids:
                holders[f"{directory.parent.name}/{directory.name}"] = pids
        return holders

    def gateway_files(self) -> str:
        """Everything that the gateway is configured by, as one text."""
        files = (self.home / "gateway").rglob("*")
        texts = [path for path in files if path.is_file() and path.suffix in {".json", ".yaml"}]
        return "".join(path.read_text(errors="replace") for path in texts)


@contextmanager
def platform(home: Path, configuration: str) -> Iterator[Stack]:
    """A platform with this configuration file; whatever happens, nothing of it survives the test."""
    file = home.parent / "inferplane.toml"
    file.write_text(configuration)
    one = Stack(home, {"INFERPLANE_CONFIG": str(file)})
    try:
        one.start()
        yield one
        assert one.stop() == 0
        assert one.processes() == []
    finally:
        for process in one.processes():
            process.kill()
        if one.process is not None:
            one.process.wait()


def _open_files(process: psutil.Process) -> list[str]:
    try:
        return [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    except OSError:
        return []


def _port(url: str) -> int:
    return int(url.rsplit(":", 1)[1])
