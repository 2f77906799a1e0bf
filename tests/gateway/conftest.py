"""One gateway world per test, taken down with everything in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from gateway_world import World


@pytest_asyncio.fixture
async def world() -> AsyncIterator[World]:
    """A folder with a short path, so that sockets fit; a gateway and replicas on demand."""
    folder = Path(tempfile.mkdtemp(prefix="gw-"))
    opened = World(folder)
    try:
        yield opened
    finally:
        await opened.close()
        shutil.rmtree(folder)
