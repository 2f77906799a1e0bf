"""Ways to start a model server. Every way must come out the same; they differ in speed."""

from __future__ import annotations

import sys
from typing import Protocol

from inferplane.engines.local.launch import LaunchRequest
from inferplane.engines.local.process import spawn
from inferplane.engines.local.records import ProcessRecord

# -P: the server's working directory holds files that others wrote; nothing is imported from there.
SERVER_PROGRAM = (sys.executable, "-P", "-m", "inferplane.modelserver")


class Launcher(Protocol):
    """Starts processes. It owns none of them: they outlive it."""

    async def start(self) -> None:
        """Get ready. Must not fail: a launcher that is not ready gets ready at the first launch."""

    async def launch(self, request: LaunchRequest, lock: int) -> ProcessRecord:
        """Start one server that inherits the descriptor `lock`. Raises OSError or EngineError."""

    async def close(self, *, stop: bool) -> None:
        """Let go; with `stop`, leave no process of the launcher's own (servers are the engine's)."""


class FreshLauncher:
    """Starts a new interpreter for every server. `program` gets the configuration file's path."""

    def __init__(self, program: tuple[str, ...] = SERVER_PROGRAM) -> None:
        self._program = program

    async def start(self) -> None:
        """Nothing to get ready."""

    async def launch(self, request: LaunchRequest, lock: int) -> ProcessRecord:
        """Start one server. Raises OSError."""
        return spawn([*self._program, str(request.config_path)], request, lock)

    async def close(self, *, stop: bool) -> None:
        """Nothing to let go."""
