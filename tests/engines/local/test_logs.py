"""Logs: bounded on disk, read from the end, followed across rotations."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from engine_world import SHORT, endpoint, first_replica, target, wait_for_state, wait_until
from inferplane.domain.endpoint import Replica, ReplicaState
from inferplane.engines.local.engine import LocalEngine
from inferplane.engines.local.logfile import Follower, rotate, tail
from inferplane.engines.port import EngineError, FetchModel, StartReplica


async def running(engine: LocalEngine, *args: str) -> Replica:
    one = endpoint("a1", *args)
    await engine.apply(target(one), FetchModel())
    await engine.apply(target(one), StartReplica(first_replica(one)))
    return await wait_for_state(engine, first_replica(one), ReplicaState.READY)


def lines_of(log: Path, lines_max: int = 100, bytes_max: int = 10_000) -> list[str]:
    return tail(log, lines_max=lines_max, bytes_max=bytes_max, line_bytes_max=1000)


async def test_a_server_that_prints_without_end_fills_no_disk(engine: LocalEngine, home: Path) -> None:
    await running(engine, "--print-forever")
    folder = home / "replicas/a1/r1-0"
    older = folder / "server.log.1"
    await wait_until(lambda: _true(older.exists()), "a rotation")
    first = older.stat().st_ino
    await wait_until(lambda: _true(older.stat().st_ino != first), "another rotation")
    # One sweep's worth of printing may come on top of each bound.
    assert sum(path.stat().st_size for path in folder.glob("server.log*")) < 50 * SHORT.log_bytes_max


async def test_tail_lines_bound_the_answer(engine: LocalEngine) -> None:
    await running(engine, "--print=50")
    lines = [line.text async for line in engine.logs("a1", tail_lines=3)]
    assert lines == ["line 47", "line 48", "line 49"]
    assert [line async for line in engine.logs("a1", tail_lines=0)] == []


async def test_following_ends_with_the_server(engine: LocalEngine) -> None:
    replica = await running(engine, "--print=2")
    seen: list[str] = []

    async def follow() -> None:
        async for line in engine.logs("a1", follow=True):
            seen.append(line.text)  # noqa: PERF401 - read by the test while it grows

    task = asyncio.create_task(follow())
    await wait_until(lambda: _true("line 1" in seen), "the tail")
    assert not task.done()
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGTERM)
    async with asyncio.timeout(20):
        await task
    assert seen == ["stand-in started", "line 0", "line 1"]


async def test_a_log_that_is_not_there_is_a_sentence(engine: LocalEngine) -> None:
    for uid in ("a1", "../../etc", ""):
        with pytest.raises(EngineError, match="no model server has been started"):
            _ = [line async for line in engine.logs(uid)]


def test_tail_spans_the_rotation_and_drops_half_lines(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("one\ntwo\n")
    assert rotate(log, 4)
    with log.open("a") as file:
        file.write("three\nfour")
    assert lines_of(log) == ["one", "two", "three", "four"]
    assert lines_of(log, lines_max=2) == ["three", "four"]
    assert lines_of(log, bytes_max=12) == ["three", "four"]
    assert lines_of(tmp_path / "absent.log") == []


def test_a_writer_that_appends_goes_on_at_the_start_after_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with log.open("a") as writer:
        print("x" * 100, file=writer, flush=True)
        assert rotate(log, 50)
        assert log.stat().st_size == 0
        print("after", file=writer, flush=True)
    assert log.read_bytes() == b"after\n"
    assert not rotate(log, 50)


def test_a_follower_loses_nothing_to_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    follower = Follower(log, 1000)
    follower.skip_to_end()
    seen: list[str] = []
    with log.open("a") as writer:
        for number in range(200):
            print(f"line {number}", file=writer, flush=True)
            if number % 7 == 0:
                seen += follower.read()
            if number % 11 == 0:
                rotate(log, 60)  # of a log that grew past twice the bound, only the end would be kept
                seen += follower.read()
    seen += follower.read()
    assert seen == [f"line {number}" for number in range(200)]


def test_rubbish_and_endless_lines_are_shown_within_bounds(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_bytes(b"\xff\xfe\n" + b"y" * 5000 + b"\n")
    assert lines_of(log) == ["\ufffd\ufffd", "y" * 1000]


async def _true(value: bool) -> bool:
    return value
