"""`kill -9` of the control plane: what runs goes on, is found again, and is never started twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from engine_world import (
    ask,
    endpoint,
    first_replica,
    has_ended,
    processes_of,
    see,
    target,
    wait_for_state,
    wait_until,
)
from inferplane.domain.endpoint import ReplicaState
from inferplane.engines.local.engine import LocalEngine
from inferplane.engines.local.records import ProcessRecord, write_process
from inferplane.engines.port import StartReplica, StopReplica

READY, EXITED = ReplicaState.READY, ReplicaState.EXITED
PROGRAM = Path(__file__).with_name("controlling_process.py")


async def run_and_kill(home: Path, *wanted: str) -> None:
    """Let another process start these endpoints' servers; then end it as `kill -9` does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), str(home), *wanted, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        line = await process.stdout.readline()
    assert line == b"ready\n"
    process.kill()
    await process.wait()
    process.stdout.feed_eof()


@pytest.fixture
async def after(make_engine: Callable[[], LocalEngine]) -> AsyncIterator[LocalEngine]:
    """The engine of the control plane that comes back; not started yet."""
    engine = make_engine()
    yield engine
    await engine.close(stop_servers=True)


async def test_servers_go_on_are_adopted_and_not_started_twice(
    home: Path, after: LocalEngine, wakes: list[str]
) -> None:
    await run_and_kill(home, "a1", "a2")
    pids = processes_of(home)
    assert len(pids) == 2
    address = f"unix:{home}/s/a1-r1-0.sock"
    assert ask(address)["pid"] in pids
    await after.start(wakes.append)
    one = endpoint("a1")
    replica = await see(after, first_replica(one))
    assert replica is not None
    assert (replica.state, replica.address, replica.pid) == (READY, address, ask(address)["pid"])
    await after.apply(target(one), StartReplica(replica.id))
    assert processes_of(home) == pids
    assert await after.owned() == {"a1", "a2"}


async def test_the_end_of_an_adopted_server_is_noticed_without_a_code(
    home: Path, after: LocalEngine, wakes: list[str]
) -> None:
    await run_and_kill(home, "a1")
    await after.start(wakes.append)
    replica = await wait_for_state(after, first_replica(endpoint("a1")), READY)
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    await wait_until(lambda: _true("a1" in wakes), "the end to be announced")
    ended = await see(after, replica.id)
    assert ended is not None
    assert ended.exit is not None
    assert (ended.exit.exit_code, ended.exit.signal) == (None, "")
    assert ended.exit.message == "the model server ended while nobody watched it"
    assert ended.exit.log_tail == ("stand-in started",)


async def test_an_end_between_two_control_planes_is_told_once(home: Path, after: LocalEngine) -> None:
    await run_and_kill(home, "a1")
    (pid,) = processes_of(home)
    os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: _true(has_ended(pid)), "the server to end")
    await after.start(lambda _uid: None)
    ended = await see(after, first_replica(endpoint("a1")))
    assert ended is not None
    assert ended.state is EXITED
    assert await see(after, ended.id) == ended


async def test_an_adopted_server_is_stopped_by_the_same_ladder(home: Path, after: LocalEngine) -> None:
    await run_and_kill(home, "a1:--ignore-sigterm")
    await after.start(lambda _uid: None)
    one = endpoint("a1")
    await after.apply(target(one), StopReplica(first_replica(one), 0.2))
    await wait_for_state(after, first_replica(one), EXITED)
    assert processes_of(home) == []


async def test_a_server_whose_process_was_never_noted_is_found_by_its_lock(
    home: Path, after: LocalEngine
) -> None:
    await run_and_kill(home, "a1")
    (pid,) = processes_of(home)
    (home / "replicas/a1/r1-0/pid").unlink()
    await after.start(lambda _uid: None)
    replica = await see(after, first_replica(endpoint("a1")))
    assert replica is not None
    assert (replica.pid, replica.state) == (pid, READY)


async def test_a_stranger_with_the_noted_number_is_left_alone(home: Path, after: LocalEngine) -> None:
    await run_and_kill(home, "a1")
    (pid,) = processes_of(home)
    os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: _true(has_ended(pid)), "the server to end")
    stranger = await asyncio.create_subprocess_exec("sleep", "600", start_new_session=True)
    write_process(home / "replicas/a1/r1-0/pid", ProcessRecord(stranger.pid, start_ticks=1))
    await after.start(lambda _uid: None)
    one = endpoint("a1")
    await after.apply(target(one), StopReplica(first_replica(one), 0))
    await after.release_orphan("a1")
    assert stranger.returncode is None
    os.kill(stranger.pid, 0)
    stranger.kill()
    await stranger.wait()


async def test_a_stop_that_was_begun_is_brought_to_its_end(home: Path, after: LocalEngine) -> None:
    await run_and_kill(home, "a1:--ignore-sigterm")
    stop = {"at": "2020-01-01T00:00:00+00:00", "deadline": "2020-01-01T00:00:01+00:00", "forced": False}
    (home / "replicas/a1/r1-0/stop.json").write_text(json.dumps(stop))
    await after.start(lambda _uid: None)
    await wait_for_state(after, first_replica(endpoint("a1")), EXITED)
    assert processes_of(home) == []


async def test_a_folder_without_a_process_or_with_rubbish_is_no_replica(
    home: Path, after: LocalEngine
) -> None:
    for name in ("intent.json", "status.json", "pid"):
        folder = home / "replicas" / "a1" / "r1-0"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"half": ')
    await after.start(lambda _uid: None)
    observation = await after.observe("a1")
    assert observation.replicas == ()
    assert observation.left == ("log files",)
    await after.release_orphan("a1")
    assert await after.owned() == frozenset()


async def _true(value: bool) -> bool:
    return value
