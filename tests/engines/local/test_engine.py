"""The local engine with real processes: starts, ends, evidence, limits, adoption."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from engine_world import (
    ModelsAtHand,
    ask,
    endpoint,
    first_replica,
    processes_of,
    see,
    target,
    wait_for_state,
    wait_until,
)
from inferplane.domain.endpoint import InferenceEndpoint, Replica, ReplicaId, ReplicaState, Resources
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.local.engine import LocalEngine
from inferplane.engines.port import EngineError, FetchModel, Observation, Release, StartReplica, StopReplica

READY, EXITED = ReplicaState.READY, ReplicaState.EXITED
MakeEngine = Callable[[], LocalEngine]


async def start(engine: LocalEngine, one: InferenceEndpoint, index: int = 0) -> ReplicaId:
    replica = first_replica(one, index)
    await engine.apply(target(one), FetchModel())
    await engine.apply(target(one), StartReplica(replica))
    return replica


async def start_until_ready(engine: LocalEngine, one: InferenceEndpoint) -> Replica:
    return await wait_for_state(engine, await start(engine, one), READY)


async def test_a_server_answers_at_its_address_and_says_what_it_is(
    engine: LocalEngine, wakes: list[str]
) -> None:
    one = endpoint()
    replica = await start_until_ready(engine, one)
    assert ask(replica.address) == {"server": one.name, "pid": replica.pid}
    assert replica.model is not None
    assert replica.model.example == '{"instances":[[1]]}'
    assert replica.started_at is not None
    assert replica.ready_at is not None
    assert replica.started_at <= replica.ready_at
    assert set(wakes) == {one.uid}


async def test_starting_twice_is_one_process(engine: LocalEngine, home: Path) -> None:
    one = endpoint()
    replica = first_replica(one)
    await engine.apply(target(one), FetchModel())
    await asyncio.gather(*(engine.apply(target(one), StartReplica(replica)) for _ in range(5)))
    first = await wait_for_state(engine, replica, READY)
    await engine.apply(target(one), StartReplica(replica))
    assert processes_of(home) == [first.pid]


async def test_a_server_has_its_own_session_and_private_files(engine: LocalEngine, home: Path) -> None:
    replica = await start_until_ready(engine, endpoint())
    assert replica.pid is not None
    assert os.getsid(replica.pid) == replica.pid != os.getsid(0)
    for path in [home / "replicas", *(home / "replicas").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        # The stand-in writes its own status file; its mode is none of the engine's business.
        if path.name != "status.json":
            assert mode == (0o700 if path.is_dir() else 0o600), path


async def test_nothing_starts_before_the_model_is_here(engine: LocalEngine) -> None:
    one = endpoint()
    with pytest.raises(EngineError, match="the model is not here yet"):
        await engine.apply(target(one), StartReplica(first_replica(one)))


async def test_the_environment_is_an_allow_list_and_the_models_own(engine: LocalEngine, home: Path) -> None:
    one = endpoint("a1", "--environment", env=(("GREETING", "hello"), ("INFERPLANE_X", "no")))
    await start_until_ready(engine, one)
    printed = (home / "replicas/a1/r1-0/server.log").read_text().splitlines()[1]
    environment = json.loads(printed)
    assert environment["GREETING"] == "hello"
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"]
    assert not [name for name in environment if name.startswith(("INFERPLANE_", "AWS_"))]
    assert "must-not-be-seen" not in "".join(
        path.read_text(errors="replace") for path in home.rglob("*") if path.is_file()
    )


async def test_a_failure_to_load_is_told_in_the_servers_words(engine: LocalEngine) -> None:
    replica = await wait_for_state(
        engine, await start(engine, endpoint("a1", "--fail=ModelFileMissing")), EXITED
    )
    assert replica.exit is not None
    assert (replica.exit.reason, replica.exit.exit_code) == (ReasonCode.MODEL_FILE_MISSING, 3)
    assert replica.exit.message == "this model cannot be loaded"
    assert replica.exit.log_tail == ("stand-in started", "Traceback: the reason why")


async def test_an_exit_code_and_a_signal_are_evidence(engine: LocalEngine) -> None:
    coded = await wait_for_state(engine, await start(engine, endpoint("a1", "--exit=7")), EXITED)
    aborted = await wait_for_state(engine, await start(engine, endpoint("a2", "--abort")), EXITED)
    assert coded.exit is not None
    assert aborted.exit is not None
    assert (coded.exit.exit_code, coded.exit.signal) == (7, "")
    assert coded.exit.message == "the model server ended with exit code 7"
    assert (aborted.exit.exit_code, aborted.exit.signal) == (None, "SIGABRT")


async def test_an_end_without_readable_evidence_is_told_all_the_same(engine: LocalEngine, home: Path) -> None:
    one = endpoint()
    replica = await start_until_ready(engine, one)
    assert replica.pid is not None
    log = home / "replicas" / one.uid / replica.id.name / "server.log"
    log.unlink()
    log.mkdir()
    os.kill(replica.pid, signal.SIGKILL)
    ended = await wait_for_state(engine, replica.id, EXITED)
    assert ended.exit is not None
    assert ended.exit.message
    log.rmdir()


async def test_a_stray_file_among_the_folders_is_nobodys_endpoint(engine: LocalEngine, home: Path) -> None:
    (home / "replicas" / "notes").write_text("not an endpoint")
    assert await engine.owned() == frozenset()


async def test_a_kill_from_outside_is_suspected_to_be_the_kernels(engine: LocalEngine) -> None:
    replica = await start_until_ready(engine, endpoint())
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    ended = await wait_for_state(engine, replica.id, EXITED)
    assert ended.exit is not None
    assert ended.exit.signal == "SIGKILL"
    assert "OutOfMemory" in ended.exit.message


async def test_an_end_is_announced_and_stays_told_until_the_next_start(
    engine: LocalEngine, wakes: list[str]
) -> None:
    replica = await start_until_ready(engine, endpoint())
    assert replica.pid is not None
    await asyncio.sleep(0)
    wakes.clear()
    os.kill(replica.pid, signal.SIGKILL)
    await wait_until(lambda: _true(bool(wakes)), "the end to be announced")
    first = await see(engine, replica.id)
    assert first is not None
    assert first.state is EXITED
    assert await see(engine, replica.id) == first
    again = await start_until_ready(engine, endpoint())
    assert again.exit is None
    assert again.pid != replica.pid


async def test_too_much_memory_ends_a_server_with_limit_and_use(engine: LocalEngine) -> None:
    one = endpoint("a1", "--grow-mib=300", resources=Resources(memory_bytes=100 * 1024**2))
    ended = await wait_for_state(engine, await start(engine, one), EXITED)
    assert ended.exit is not None
    assert ended.exit.reason is ReasonCode.OUT_OF_MEMORY
    assert "its limit is 100 MiB" in ended.exit.message


async def test_what_a_server_started_counts_for_its_memory(engine: LocalEngine) -> None:
    one = endpoint("a1", "--child-grow-mib=300", resources=Resources(memory_bytes=200 * 1024**2))
    ended = await wait_for_state(engine, await start(engine, one), EXITED)
    assert ended.exit is not None
    assert ended.exit.reason is ReasonCode.OUT_OF_MEMORY


async def test_a_cpu_limit_keeps_a_server_on_so_many_cores(engine: LocalEngine, home: Path) -> None:
    one = endpoint(resources=Resources(cpu_millis=500))
    replica = await start_until_ready(engine, one)
    assert replica.pid is not None
    assert len(os.sched_getaffinity(replica.pid)) == 1
    config = json.loads((home / "replicas" / one.uid / "r1-0" / "config.json").read_text())
    assert config["threads"] == 1


async def test_a_server_that_does_not_become_ready_in_time_is_ended(engine: LocalEngine) -> None:
    one = endpoint("a1", "--load-seconds=600", model={"start_timeout_seconds": 0.3})
    ended = await wait_for_state(engine, await start(engine, one), EXITED)
    assert ended.exit is not None
    assert ended.exit.reason is ReasonCode.START_TIMEOUT
    silent = endpoint("a2", "--silent", model={"start_timeout_seconds": 0.3})
    ended = await wait_for_state(engine, await start(engine, silent), EXITED)
    assert ended.exit is not None
    assert ended.exit.reason is ReasonCode.START_TIMEOUT


async def test_a_server_that_stops_answering_is_called_unresponsive(engine: LocalEngine) -> None:
    replica = await start(engine, endpoint("a1", "--mute"))
    await wait_for_state(engine, replica, ReplicaState.UNRESPONSIVE)


async def test_a_frozen_server_that_goes_on_is_ready_again(engine: LocalEngine) -> None:
    replica = await start_until_ready(engine, endpoint())
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGSTOP)
    await wait_for_state(engine, replica.id, ReplicaState.UNRESPONSIVE)
    os.kill(replica.pid, signal.SIGCONT)
    await wait_for_state(engine, replica.id, READY)


async def test_stopping_asks_and_a_stop_of_what_does_not_run_is_harmless(engine: LocalEngine) -> None:
    one = endpoint()
    replica = await start_until_ready(engine, one)
    await engine.apply(target(one), StopReplica(replica.id, 10))
    await engine.apply(target(one), StopReplica(replica.id, 10))
    ended = await wait_for_state(engine, replica.id, EXITED)
    assert ended.exit is not None
    assert (ended.exit.exit_code, ended.exit.signal) == (0, "")
    await engine.apply(target(one), StopReplica(replica.id, 10))


async def test_a_server_that_ignores_the_request_is_killed_after_the_grace(engine: LocalEngine) -> None:
    one = endpoint("a1", "--ignore-sigterm")
    replica = await start_until_ready(engine, one)
    await engine.apply(target(one), StopReplica(replica.id, 0.3))
    stopping = await see(engine, replica.id)
    assert stopping is not None
    assert stopping.state is ReplicaState.STOPPING
    await engine.apply(target(one), StartReplica(replica.id))  # left to end first: converges later
    ended = await wait_for_state(engine, replica.id, EXITED)
    assert ended.exit is not None
    assert ended.exit.signal == "SIGKILL"
    assert ended.exit.message == "the model server was asked to stop and had to be killed"


async def test_helpers_of_a_server_end_with_it(engine: LocalEngine, home: Path) -> None:
    replica = await start_until_ready(engine, endpoint("a1", "--helper"))
    assert len(processes_of(home)) == 2
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    await wait_for_state(engine, replica.id, EXITED)
    await wait_until(lambda: _true(processes_of(home) == []), "the helper to end")


async def test_release_leaves_nothing(engine: LocalEngine, home: Path, models: ModelsAtHand) -> None:
    one = endpoint()
    replica = await start_until_ready(engine, one)
    with pytest.raises(EngineError, match="still runs"):
        await engine.apply(target(one), Release())
    assert (await engine.observe(one.uid)).left == ("model files", "log files")
    assert await engine.owned() == {one.uid}
    await engine.apply(target(one), StopReplica(replica.id, 10))
    await wait_for_state(engine, replica.id, EXITED)
    await engine.apply(target(one), Release())
    await engine.apply(target(one), Release())
    assert await engine.observe(one.uid) == Observation()
    assert await engine.owned() == frozenset()
    assert list((home / "replicas").iterdir()) == []
    assert [path.name for path in (home / "s").iterdir()] == ["notify.sock"]


async def test_an_orphan_is_stopped_and_undone(engine: LocalEngine, home: Path) -> None:
    one = endpoint("a1", "--ignore-sigterm")
    replica = await start(engine, one)
    await start(engine, one, index=1)
    await wait_for_state(engine, replica, READY)
    await engine.release_orphan(one.uid)
    assert await engine.owned() == frozenset()
    assert processes_of(home) == []


async def test_twenty_at_once(engine: LocalEngine, home: Path) -> None:
    ones = [endpoint(f"{number:012x}") for number in range(20)]
    replicas = await asyncio.gather(*(start(engine, one) for one in ones))
    ready = [await wait_for_state(engine, replica, READY, seconds=60) for replica in replicas]
    assert sorted(processes_of(home)) == sorted(replica.pid for replica in ready if replica.pid)
    assert {ask(replica.address)["server"] for replica in ready} == {one.name for one in ones}


async def test_closing_ends_every_server_and_the_next_engine_knows_of_no_failure(
    make_engine: MakeEngine, home: Path
) -> None:
    engine = make_engine()
    await engine.start(lambda _uid: None)
    ones = [endpoint("a1"), endpoint("a2", "--ignore-sigterm"), endpoint("a3", "--helper")]
    for one in ones:
        await start_until_ready(engine, one)
    await engine.close(stop_servers=True)
    assert processes_of(home) == []
    assert not (home / "s").exists()
    engine = make_engine()
    await engine.start(lambda _uid: None)
    assert [(await engine.observe(one.uid)).replicas for one in ones] == [(), (), ()]
    assert await engine.owned() == {"a1", "a2", "a3"}
    await engine.close(stop_servers=True)


async def _true(value: bool) -> bool:
    return value


async def test_granted_gpus_are_all_that_a_server_sees(engine: LocalEngine) -> None:
    one = endpoint("0123456789ab", "--environment")
    replica = first_replica(one)
    await engine.apply(target(one), FetchModel())
    await engine.apply(target(one), StartReplica(replica, (("gpu-0", (1, 3)),)))
    await wait_for_state(engine, replica, READY)
    lines = [line.text async for line in engine.logs(one.uid)]
    environment = json.loads(next(line for line in lines if line.startswith("{")))
    assert environment["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert engine.gpus_of(one.uid) == (1, 3)
    assert engine.gpus_of("ffffffffffff") == ()
