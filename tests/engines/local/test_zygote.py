"""The fork server as the engine uses it: real forks, and the way out when it fails."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from engine_world import (
    SHORT,
    STAND_IN,
    ModelsAtHand,
    endpoint,
    first_replica,
    now,
    processes_of,
    see,
    target,
    wait_for_state,
    wait_until,
)
from inferplane.domain.endpoint import Replica, ReplicaState, Resources
from inferplane.engines.local.engine import LocalEngine
from inferplane.engines.local.launch import data_limit, server_environment
from inferplane.engines.local.launchers import FreshLauncher
from inferplane.engines.local.process import descendants
from inferplane.engines.local.zygote import FORK_SERVER_PROGRAM, ForkLauncher
from inferplane.engines.port import FetchModel, StartReplica
from inferplane.locks import lock_holders
from inferplane.version import VERSION

# A fork server as an earlier version of the platform would have left it running.
EARLIER_VERSION = (
    sys.executable,
    "-P",
    "-c",
    "import sys, inferplane.version; inferplane.version.VERSION = '0.0.1';"
    "from inferplane.modelserver.forkserver import main; sys.exit(main(sys.argv[1:]))",
)
# Of what a forked server has in memory, at most so much may be its own: the rest is the parent's.
OWN_PART_MAX = 0.25

READY, EXITED = ReplicaState.READY, ReplicaState.EXITED
MakeForking = Callable[..., LocalEngine]


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import joblib
    from sklearn.linear_model import LinearRegression

    path = tmp_path_factory.mktemp("model") / "model.joblib"
    joblib.dump(LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0]), path)
    return path


@pytest.fixture
async def make_forking(home: Path, model_file: Path) -> AsyncIterator[MakeForking]:
    """Engines over one home with a fork server; the last one made is closed with all it runs."""
    made: list[LocalEngine] = []
    environment = {"PATH": os.environ["PATH"]}

    def make(program: tuple[str, ...] = FORK_SERVER_PROGRAM, version: str = "") -> LocalEngine:
        launcher = ForkLauncher(
            directory=home / "forkserver",
            sockets=home / "s",
            environment=server_environment(environment, (), threads=1),
            formats=("sklearn",),
            otherwise=FreshLauncher(STAND_IN),
            limits=SHORT,
            program=program,
            version=version,
        )
        models = ModelsAtHand(home.parent / "models", model_file)
        made.append(
            LocalEngine(
                home=home, models=models, clock=now, launcher=launcher, limits=SHORT, environment=environment
            )
        )
        return made[-1]

    yield make
    await made[-1].close(stop_servers=True)


async def running(
    engine: LocalEngine,
    uid: str,
    env: tuple[tuple[str, str], ...] = (),
    resources: Resources | None = None,
) -> Replica:
    one = endpoint(uid, env=env, resources=resources)
    await engine.apply(target(one), FetchModel())
    await engine.apply(target(one), StartReplica(first_replica(one)))
    return await wait_for_state(engine, first_replica(one), READY)


def fork_server(home: Path) -> int:
    (pid,) = lock_holders(home / "forkserver" / "lock")
    return pid


def parent_of(replica: Replica) -> int:
    stat = Path(f"/proc/{replica.pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


async def test_servers_are_children_of_the_fork_server_with_their_own_session(
    make_forking: MakeForking, home: Path
) -> None:
    engine = make_forking()
    await engine.start(lambda _uid: None)
    replica = await running(engine, "a1")
    assert replica.pid is not None
    assert parent_of(replica) == fork_server(home)
    assert os.getsid(replica.pid) == replica.pid
    assert lock_holders(home / "replicas/a1/r1-0/lock") == (replica.pid,)


async def test_after_kill_nine_the_fork_server_is_taken_over_and_codes_are_known(
    make_forking: MakeForking, home: Path
) -> None:
    before = make_forking()
    await before.start(lambda _uid: None)
    replica = await running(before, "a1")
    old = fork_server(home)
    await before.close(stop_servers=False)
    after = make_forking()
    await after.start(lambda _uid: None)
    other = await running(after, "a2")
    assert fork_server(home) == old == parent_of(other)
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    ended = await wait_for_state(after, replica.id, EXITED)
    assert ended.exit is not None
    assert ended.exit.signal == "SIGKILL"


async def test_a_killed_fork_server_takes_no_server_with_it_and_is_replaced(
    make_forking: MakeForking, home: Path
) -> None:
    engine = make_forking()
    await engine.start(lambda _uid: None)
    replica = await running(engine, "a1")
    old = fork_server(home)
    os.kill(old, signal.SIGKILL)
    await wait_until(lambda: _another(home, old), "another fork server")
    seen = await see(engine, replica.id)
    assert seen is not None
    assert (seen.state, seen.pid) == (READY, replica.pid)
    assert parent_of(await running(engine, "a2")) == fork_server(home)


async def test_an_upgrade_replaces_the_fork_server_and_leaves_its_servers_alone(
    make_forking: MakeForking, home: Path
) -> None:
    before = make_forking(program=EARLIER_VERSION)
    await before.start(lambda _uid: None)
    replica = await running(before, "a1")
    earlier = fork_server(home)
    assert parent_of(replica) == earlier
    await before.close(stop_servers=False)
    after = make_forking(version=VERSION)
    await after.start(lambda _uid: None)
    other = await running(after, "a2")
    assert parent_of(other) == fork_server(home) != earlier
    seen = await see(after, replica.id)
    assert seen is not None
    assert (seen.state, seen.pid) == (READY, replica.pid)
    assert replica.pid is not None
    os.kill(replica.pid, signal.SIGKILL)
    await wait_for_state(after, replica.id, EXITED)


async def test_forked_servers_share_what_their_parent_has_loaded(make_forking: MakeForking) -> None:
    engine = make_forking()
    await engine.start(lambda _uid: None)
    replicas = [await running(engine, uid) for uid in ("a1", "a2")]
    for replica in replicas:
        memory = memory_of(replica)
        own = memory["Private_Clean"] + memory["Private_Dirty"]
        assert own < OWN_PART_MAX * memory["Rss"], memory


@pytest.mark.parametrize("program", [FORK_SERVER_PROGRAM, ("/bin/false",)], ids=["forked", "fresh"])
async def test_limits_and_logs_are_the_same_however_a_server_starts(
    make_forking: MakeForking, home: Path, program: tuple[str, ...]
) -> None:
    engine = make_forking(program=program)
    await engine.start(lambda _uid: None)
    wanted = Resources(cpu_millis=1000, memory_bytes=2 * 1024**3)
    replica = await running(engine, "a1", resources=wanted)
    assert replica.pid is not None
    assert resource.prlimit(replica.pid, resource.RLIMIT_DATA)[1] == data_limit(wanted)
    assert resource.prlimit(replica.pid, resource.RLIMIT_CORE) == (0, 0)
    assert len(os.sched_getaffinity(replica.pid)) == 1
    log = home / "replicas/a1/r1-0/server.log"
    descriptors = Path(f"/proc/{replica.pid}/fd")
    assert [(descriptors / number).readlink() for number in ("1", "2")] == [log, log]
    assert log.stat().st_mode & 0o777 == 0o600


async def test_a_frozen_fork_server_delays_one_start_and_starts_nothing_twice(
    make_forking: MakeForking, home: Path
) -> None:
    engine = make_forking()
    await engine.start(lambda _uid: None)
    await running(engine, "a1")
    os.kill(fork_server(home), signal.SIGSTOP)
    replica = await running(engine, "a2")
    assert lock_holders(home / "replicas/a2/r1-0/lock") == (replica.pid,)


async def test_without_a_fork_server_servers_start_all_the_same(make_forking: MakeForking) -> None:
    engine = make_forking(program=("/bin/false",))
    await engine.start(lambda _uid: None)
    assert parent_of(await running(engine, "a1")) == os.getpid()


async def test_a_variable_read_at_start_gets_a_new_interpreter(make_forking: MakeForking) -> None:
    engine = make_forking()
    await engine.start(lambda _uid: None)
    assert parent_of(await running(engine, "a1", env=(("PYTHONHASHSEED", "0"),))) == os.getpid()


async def test_closing_leaves_no_process(make_forking: MakeForking, home: Path) -> None:
    engine = make_forking()
    await engine.start(lambda _uid: None)
    await asyncio.gather(*(running(engine, f"a{number}") for number in range(3)))
    await engine.close(stop_servers=True)
    assert processes_of(home) == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
async def test_a_scikit_learn_server_with_two_cores_has_two_processes_and_ends_as_one(
    make_forking: MakeForking, home: Path
) -> None:
    engine = make_forking()
    await engine.start(lambda _uid: None)
    replica = await running(engine, "a1", resources=Resources(cpu_millis=2000))
    assert replica.pid is not None
    assert len(descendants(replica.pid)) == 2
    await engine.close(stop_servers=True)
    assert processes_of(home) == []


def memory_of(replica: Replica) -> dict[str, int]:
    """Kilobytes by what they are."""
    lines = Path(f"/proc/{replica.pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


async def _another(home: Path, old: int) -> bool:
    holders = lock_holders(home / "forkserver" / "lock")
    return bool(holders) and old not in holders
