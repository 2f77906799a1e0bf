"""The command line against a fake platform behind a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner

from fake_platform import KEY, FakePlatform
from inferplane.cli.main import build_cli
from inferplane.settings import LoadedSettings
from platform_stack import wait_for


class Door:
    """An ASGI app that lets each test bring its own platform."""

    def __init__(self) -> None:
        self.platform = FakePlatform()

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        await self.platform(scope, receive, send)


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[Door, str]]:
    """The door behind a port, and its address."""
    door = Door()
    config = uvicorn.Config(door, port=0, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started, "the fake platform to listen")
    port = server.servers[0].sockets[0].getsockname()[1]
    yield door, f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(timeout=10)


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The result of `-o json`."""
        return json.loads(self.out)


@dataclass
class Shell:
    """A command line with a fake platform behind it."""

    platform: FakePlatform
    environment: dict[str, str | None]
    started: list[LoadedSettings] = field(default_factory=list)
    up_code: int = 0
    up_error: Exception | None = None

    def run(self, *words: str, stdin: str | None = None, **environment: str) -> Ran:
        """Run `inferplane` with these words."""

        def up(loaded: LoadedSettings) -> int:
            self.started.append(loaded)
            if self.up_error is not None:
                raise self.up_error
            return self.up_code

        result = CliRunner().invoke(
            build_cli(up), list(words), input=stdin, env={**self.environment, **environment}
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def shell(served: tuple[Door, str], tmp_path: Path) -> Shell:
    """`shell.run("list")`."""
    door, url = served
    door.platform = FakePlatform(gateway=url)
    environment: dict[str, str | None] = {
        "INFERPLANE_HOME": str(tmp_path / "home"),
        "INFERPLANE_API_URL": url,
        "INFERPLANE_API_KEY": KEY,
        "INFERPLANE_WORKSPACE": None,
        "INFERPLANE_CONFIG": None,
        "INFERPLANE_API_PORT": None,
        "INFERPLANE_GATEWAY_PORT": None,
        "INFERPLANE_LOG_LEVEL": None,
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }
    return Shell(door.platform, environment)
