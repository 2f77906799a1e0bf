"""What is told of a gateway that ended."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from pathlib import Path

import pytest

from inferplane.gateway.places import Places
from inferplane.gateway.process import EnvoyProcess


def program(path: Path, line: str) -> Path:
    """A program that prints `line` as Envoy would, and ends."""
    path.write_text(f"#!/bin/sh\nprintf '%s' '{line}'\n")
    path.chmod(0o700)
    return path


async def test_last_words_are_those_of_the_process_started_last(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path / "admin.sock")
    complaint = "[2026-11-24 22:57:40.137][28][critical][main] [source/server/server.cc:81] port in use\n"
    first = EnvoyProcess(places, program(tmp_path / "complains", complaint), workers=1)
    first.start("{}", "first")
    await first.wait()
    assert first.last_words() == "port in use"

    second = EnvoyProcess(places, program(tmp_path / "silent", ""), workers=1)
    second.start("{}", "second")
    await second.wait()
    assert second.last_words() == ""


@pytest.mark.parametrize("turns", range(3))
async def test_who_waits_for_an_end_can_be_cancelled_as_it_comes(tmp_path: Path, turns: int) -> None:
    """Whatever the loop was at: a cancellation that got lost would hang whoever closes the gateway."""
    sleeper = tmp_path / "sleeps"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o700)
    process = EnvoyProcess(Places(tmp_path, tmp_path / "admin.sock"), sleeper, workers=1)
    process.start("{}", "sleeps")
    waiting = asyncio.create_task(process.wait())
    await asyncio.sleep(0)
    descriptor = os.pidfd_open(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    select.select([descriptor], [], [])  # without a turn of the loop
    os.close(descriptor)
    for _ in range(turns):
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
