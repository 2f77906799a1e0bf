"""What is told of a gateway that ended."""

from __future__ import annotations

from pathlib import Path

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
