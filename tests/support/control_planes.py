"""Several control planes on one PostgreSQL, each a process, before a world that they share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from platform_stack import READY, START_SECONDS, wait_for

CLUSTERS = ("worker-1", "worker-2")
OWNER_KEY = "ipk_" + "k3y" * 14 + "x"
PROGRAM = Path(__file__).with_name("shared_world.py")
CALL_SECONDS = 5.0


@dataclass
class ControlPlane:
    """One of them: start it, kill it, stop it for a while."""

    home: Path
    database_url: str
    world: Path
    command: tuple[str, ...] = ()
    process: subprocess.Popen[str] | None = None
    api: str = ""
    ready: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begin to start it; see `wait`."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("INFERPLANE_")
        }
        environment |= {
            "INFERPLANE_HOME": str(self.home),
            "INFERPLANE_API_PORT": "0",
            "INFERPLANE_DATABASE_URL": self.database_url,
            "INFERPLANE_LOCAL": "false",
            "INFERPLANE_CONFIG": str(self.world.with_name("inferplane.toml")),
            "INFERPLANE_OWNER_KEY_FILE": str(self.world.with_name("owner.key")),
        }
        self.ready = threading.Event()
        self.api = ""
        with (self.home.parent / f"{self.home.name}.log").open("a") as log:
            self.process = subprocess.Popen(
                self.command or [sys.executable, PROGRAM, self.world],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        threading.Thread(target=self._read, args=(self.process, self.ready), daemon=True).start()

    def _read(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        log = self.home.parent / f"{self.home.name}.log"
        with process.stdout, log.open("a") as said:
            for line in process.stdout:
                if match := READY.match(line):
                    self.api = match["api"]
                    ready.set()
                else:
                    said.write(line)
        ready.set()

    def wait(self) -> None:
        """Until its API is there."""
        if not self.ready.wait(START_SECONDS) or not self.api:
            pytest.fail(f"a control plane did not become ready:\n{self.log_tail()}")

    def signal(self, number: int) -> None:
        """SIGKILL, SIGSTOP, SIGCONT or SIGTERM; waits where that ends it."""
        assert self.process is not None
        self.process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.process.wait(START_SECONDS)

    def log_tail(self) -> str:
        """The end of what it said."""
        path = self.home.parent / f"{self.home.name}.log"
        return path.read_text()[-6000:] if path.exists() else ""


class Installation:
    """All of them, and one API in front that goes to whichever answers, as a Service of Kubernetes does."""

    def __init__(self, planes: list[ControlPlane]) -> None:
        self.planes = planes
        self._tokens: dict[str, str] = {}
        self._turn = 0

    def request(self, method: str, path: str, body: object = None, **params: object) -> tuple[int, Any]:
        """One call, tried at one after the other until somebody answers it."""

        def answered() -> tuple[int, Any] | None:
            self._turn += 1
            plane = self.planes[self._turn % len(self.planes)]
            api = plane.api
            if not api:
                return None
            try:
                answer = httpx.request(
                    method,
                    f"{api}/api/v1/{path}",
                    headers={"Authorization": f"Bearer {self._token(api)}"},
                    json=body,
                    params={name: str(value) for name, value in params.items()},
                    timeout=CALL_SECONDS,
                )
            except httpx.HTTPError:
                return None
            if answer.status_code == 500:  # said with its cause, and tried again like a client would
                print(f"{plane.home.name} answered {method} {path} with 500:\n{plane.log_tail()}")
            return None if answer.status_code in (500, 503) else (answer.status_code, answer.json())

        return wait_for(answered, f"{method} {path} to be answered by anybody")

    def _token(self, api: str) -> str:
        if api not in self._tokens:
            answer = httpx.post(f"{api}/api/v1/auth", json={"apiKey": OWNER_KEY}, timeout=CALL_SECONDS)
            answer.raise_for_status()
            self._tokens[api] = answer.json()["data"]["token"]
        return self._tokens[api]

    def create(self, name: str, cluster: str) -> None:
        """An endpoint; that it is there already is an answer that got lost on its way."""
        body = {
            "endpointName": name,
            "workspace": "default",
            "clusterName": cluster,
            "modelSpec": {"modelName": "sklearn", "storageURI": "s3://models/iris"},
        }
        status, answer = self.request("POST", "inference-endpoint", body)
        assert status in (200, 409), answer

    def delete(self, name: str) -> None:
        """Ask for deletion; that it is gone already is as good."""
        body = {"endpoint": name, "workspace": "default"}
        status, answer = self.request("DELETE", "inference-endpoint", body)
        assert status in (200, 404), answer

    def endpoints(self) -> dict[str, dict[str, Any]]:
        """All by name."""
        status, answer = self.request("GET", "inference-endpoint/list", workspace="default")
        assert status == 200, answer
        return {item["endpointName"]: item for item in answer["data"]["endpoints"]}

    def statuses(self) -> dict[str, str]:
        """The status of each, by name."""
        return {name: item["status"] for name, item in self.endpoints().items()}

    def log_tails(self) -> str:
        """The end of what each said."""
        return "\n".join(f"--- {each.home.name}\n{each.log_tail()}" for each in self.planes)


@contextmanager
def installation(
    folder: Path, database_url: str, configuration: str = "", count: int = 2
) -> Iterator[Installation]:
    """`count` control planes that run; none is left afterwards.

    With a `configuration` they are `inferplane up` as users start it, else programs before a shared world.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = "".join(f'[[cluster]]\nname = "{each}"\nengine = "simulated"\n' for each in CLUSTERS)
    (folder / "inferplane.toml").write_text(configuration or tables)
    (folder / "owner.key").write_text(OWNER_KEY + "\n")
    world = folder / "world.db"
    command = (sys.executable, "-m", "inferplane", "up") if configuration else ()
    planes = [ControlPlane(folder / f"plane-{each}", database_url, world, command) for each in range(count)]
    try:
        for each in planes:
            each.start()
        for each in planes:
            each.wait()
        yield Installation(planes)
    finally:
        for each in planes:
            if each.process is not None:
                each.process.kill()
                each.process.wait()
