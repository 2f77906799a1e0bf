"""An engine in memory: faults on order, time by a clock argument, no process and no file.

It keeps the promises of `engines.port` and nothing else. What an endpoint's model and servers do is
told beforehand by a `Script`; what is seen follows from the script, from the steps taken, and from
what the clock says. Nothing happens in between: a test moves its clock and observes again.

`steps` lists every step that was applied, in order, so that a test can state what was done. All of
it survives in the object, as processes survive a control plane: give the same object to the next
controller to play a restart.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import Exit, ModelInfo, Replica, ReplicaId, ReplicaState
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.port import (
    Action,
    Clock,
    DropModel,
    EngineError,
    FetchModel,
    LogLine,
    Observation,
    Release,
    StartReplica,
    StopReplica,
    Target,
)

FIRST_PID = 1000
LATER_SLACK_SECONDS = 0.01  # two clocks never agree to the microsecond
NOTE = "simulated: no model server is behind this endpoint, and predictions are answered with 503"


@dataclass(frozen=True, slots=True)
class Script:
    """What one endpoint's model and servers do. The default is that all goes well at once.

    The first `fetch_failures` fetches end after `fetch_seconds` with `fetch_reason`. A server says
    something after `start_seconds` and is ready `load_seconds` later. The first `exits` runs of each
    replica end `exit_after_seconds` after their start with `exit_code` and `exit_reason`. A ready
    server stops answering `unresponsive_after_seconds` after it became ready (None: never). Asked to
    stop, a server takes `stop_seconds`, or its grace if that is less. The next `refused_steps` steps
    raise EngineError. `checks` is what a pre-flight finds.
    """

    fetch_seconds: float = 0.0
    fetch_failures: int = 0
    fetch_reason: ReasonCode = ReasonCode.STORAGE_UNREACHABLE
    total_bytes: int = 1000
    start_seconds: float = 0.0
    load_seconds: float = 0.0
    exits: int = 0
    exit_after_seconds: float = 0.0
    exit_code: int = 1
    exit_reason: ReasonCode = ReasonCode.SERVER_EXITED
    unresponsive_after_seconds: float | None = None
    stop_seconds: float = 0.0
    refused_steps: int = 0
    checks: tuple[Check, ...] = ()


@dataclass(slots=True)
class _Fetch:
    uri: str
    started_at: datetime
    fails: bool


@dataclass(slots=True)
class _Run:
    number: int
    pid: int
    started_at: datetime
    stop_at: datetime | None = None
    forced: bool = False
    killed: Exit | None = None


@dataclass(slots=True)
class _World:
    """Everything of one endpoint."""

    script: Script
    models: dict[int, _Fetch] = field(default_factory=dict)
    fetches: int = 0
    runs: dict[ReplicaId, list[_Run]] = field(default_factory=dict)
    refused: int = 0


class SimulatedEngine:
    """Implements `engines.port.Engine`. `scripts` go by endpoint name; see `script_for`.

    `usual` is the script of every other endpoint. `address` is where all servers are said to answer;
    without one each has its own, behind which nothing is. `later(seconds, call)` calls when so many
    seconds of the clock are over, to announce what time alone brings about; without it nobody does.
    """

    def __init__(
        self,
        clock: Clock,
        scripts: Mapping[str, Script] | None = None,
        *,
        usual: Script | None = None,
        address: str = "",
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._clock = clock
        self._usual = usual or Script()
        self._address = address
        self._later = later
        self._scripts = dict(scripts or {})
        self._worlds: dict[str, _World] = {}
        self._wake: Callable[[str], None] = _nobody
        self._pids = FIRST_PID
        self.steps: list[tuple[str, Action]] = []

    # --- for whoever writes the play --------------------------------------------------------------

    def end(self, replica: ReplicaId, *, signal: str = "SIGKILL") -> None:
        """End a running server from outside, now."""
        run = self._living(replica)
        if run is not None:
            now = self._clock()
            run.killed = Exit(now, None, signal, message=f"the model server was ended by {signal}")
            self._wake(replica.endpoint_uid)

    def running(self) -> tuple[ReplicaId, ...]:
        """Every replica that has a process right now."""
        replicas = [replica for world in self._worlds.values() for replica in world.runs]
        return tuple(sorted(replica for replica in replicas if self._living(replica) is not None))

    # --- the port ---------------------------------------------------------------------------------

    async def start(self, wake: Callable[[str], None]) -> None:
        """Begin announcing changes. Only steps and `end` announce: time passes without a word."""
        self._wake = wake

    async def close(self, *, stop_servers: bool) -> None:
        """Stop announcing; with `stop_servers`, no server is left and none is said to have failed."""
        self._wake = _nobody
        if stop_servers:
            for world in self._worlds.values():
                world.runs.clear()

    async def observe(self, uid: str) -> Observation:
        """What follows from the script, the steps and the clock."""
        world = self._worlds.get(uid)
        if world is None:
            return Observation()
        left = ["model files"] if world.models else []
        if world.runs:
            left.append("log files")
        return Observation(
            artifacts={revision: self._artifact(world, revision) for revision in sorted(world.models)},
            replicas=tuple(self._replica(world, replica) for replica in sorted(world.runs)),
            left=tuple(left),
        )

    async def apply(self, target: Target, action: Action) -> None:
        """Take one step. Raises EngineError as scripted, or when the step cannot be taken."""
        endpoint = target.endpoint
        script = self._scripts.get(endpoint.name, self._usual)
        world = self._worlds.get(endpoint.uid)
        if world is None:
            if isinstance(action, Release | StopReplica):
                self.steps.append((endpoint.uid, action))
                return
            world = self._worlds[endpoint.uid] = _World(script)
        world.script = script
        if world.refused < script.refused_steps:
            world.refused += 1
            raise EngineError("the simulated engine refuses this step")
        match action:
            case FetchModel(revision):
                self._fetch(world, revision, endpoint.spec.model.storage_uri)
            case DropModel(revision):
                world.models.pop(revision, None)
            case StartReplica(replica):
                self._start(world, replica)
            case StopReplica(replica, grace_seconds):
                self._stop(world, replica, grace_seconds)
            case Release():
                self._release(endpoint.uid)
        self.steps.append((endpoint.uid, action))
        self._announce(endpoint.uid, action, script)

    async def owned(self) -> frozenset[str]:
        """Every endpoint of which something exists here."""
        return frozenset(self._worlds)

    async def release_orphan(self, uid: str) -> None:
        """Undo everything of the endpoint at once."""
        self._worlds.pop(uid, None)

    async def logs(
        self,
        uid: str,
        *,
        replica: str = "",
        previous: bool = False,
        follow: bool = False,  # noqa: ARG002 - nothing is ever added here
        tail_lines: int = 200,
    ) -> AsyncIterator[LogLine]:
        """Two lines a run: that it started, and how it ended if it has. Raises EngineError."""
        world = self._worlds.get(uid)
        found = False
        for known in sorted(world.runs) if world is not None else ():
            runs = world.runs[known] if world is not None else []
            if replica not in ("", known.name) or len(runs) < (2 if previous else 1):
                continue
            found = True
            run = runs[-2] if previous else runs[-1]
            ended = self._end_of(world.script, run) if world is not None else None
            lines = [f"run {run.number} started ({NOTE})", *([ended.message] if ended is not None else [])]
            for text in lines[-tail_lines:] if tail_lines > 0 else ():
                yield LogLine(known.name, text)
        if not found:
            raise EngineError("there is no such log", reason="NoLogs")

    async def preflight(self, target: Target) -> tuple[Check, ...]:
        """What the script says, or that all is well."""
        checks = self._scripts.get(target.endpoint.name, self._usual).checks
        return checks or (Check("storage", True, None, "the model is there"),)

    def _announce(self, uid: str, action: Action, script: Script) -> None:
        """Now, and when what the step began is going to show."""
        self._wake(uid)
        if self._later is None:
            return
        moments: tuple[float, ...] = ()
        match action:
            case FetchModel():
                moments = (script.fetch_seconds,)
            case StartReplica():
                moments = (script.start_seconds, script.start_seconds + script.load_seconds)
            case StopReplica(_, grace_seconds):
                moments = (min(script.stop_seconds, grace_seconds),)
        for seconds in moments:
            self._later(seconds + LATER_SLACK_SECONDS, lambda: self._wake(uid))

    # --- steps ------------------------------------------------------------------------------------

    def _fetch(self, world: _World, revision: int, uri: str) -> None:
        here = self._artifact(world, revision).phase
        if revision in world.models and here is not ArtifactPhase.FAILED:
            return
        world.fetches += 1
        world.models[revision] = _Fetch(
            uri, self._clock(), fails=world.fetches <= world.script.fetch_failures
        )

    def _start(self, world: _World, replica: ReplicaId) -> None:
        if self._artifact(world, replica.revision).phase is not ArtifactPhase.PRESENT:
            raise EngineError(f"replica {replica.name} cannot start: the model is not here yet")
        if self._living(replica) is not None:
            return
        runs = world.runs.setdefault(replica, [])
        self._pids += 1
        runs.append(_Run(len(runs) + 1, self._pids, self._clock()))

    def _stop(self, world: _World, replica: ReplicaId, grace_seconds: float) -> None:
        run = self._living(replica)
        if run is None:
            return
        takes = min(world.script.stop_seconds, grace_seconds)
        stop_at = self._clock() + timedelta(seconds=takes)
        if run.stop_at is None or stop_at < run.stop_at:
            run.stop_at = stop_at
            run.forced = grace_seconds < world.script.stop_seconds

    def _release(self, uid: str) -> None:
        alive = [replica for replica in self._worlds[uid].runs if self._living(replica) is not None]
        if alive:
            raise EngineError(f"replica {min(alive).name} still runs; it is not released")
        del self._worlds[uid]

    # --- what follows -----------------------------------------------------------------------------

    def _artifact(self, world: _World, revision: int) -> ArtifactState:
        fetch, script = world.models.get(revision), world.script
        if fetch is None:
            return ArtifactState()
        elapsed = (self._clock() - fetch.started_at).total_seconds()
        finished_at = fetch.started_at + timedelta(seconds=script.fetch_seconds)
        state = ArtifactState(
            ArtifactPhase.FETCHING,
            uri=fetch.uri,
            received_bytes=script.total_bytes,
            total_bytes=script.total_bytes,
            started_at=fetch.started_at,
        )
        if elapsed < script.fetch_seconds:
            part = elapsed / script.fetch_seconds
            return replace(
                state,
                received_bytes=int(script.total_bytes * part),
                rate_bytes_per_second=script.total_bytes / script.fetch_seconds,
            )
        if fetch.fails:
            return replace(
                state,
                phase=ArtifactPhase.FAILED,
                received_bytes=0,
                finished_at=finished_at,
                reason=script.fetch_reason,
                message=f"{fetch.uri} cannot be fetched",
                attempts=world.fetches,
            )
        return replace(state, phase=ArtifactPhase.PRESENT, path="/simulated/model", finished_at=finished_at)

    def _living(self, replica: ReplicaId) -> _Run | None:
        world = self._worlds.get(replica.endpoint_uid)
        if world is None or not world.runs.get(replica):
            return None
        run = world.runs[replica][-1]
        return run if self._end_of(world.script, run) is None else None

    def _end_of(self, script: Script, run: _Run) -> Exit | None:
        """How the run has ended by now, the earliest cause first; None while it lives."""
        ends = []
        if run.killed is not None:
            ends.append(run.killed)
        if run.stop_at is not None:
            how = "had to be killed" if run.forced else "ended"
            message = f"the model server was asked to stop and {how}"
            code, signal = (None, "SIGKILL") if run.forced else (0, "")
            ends.append(Exit(run.stop_at, code, signal, message=message))
        if run.number <= script.exits:
            at = run.started_at + timedelta(seconds=script.exit_after_seconds)
            message = f"the model server ended with exit code {script.exit_code}"
            ends.append(Exit(at, script.exit_code, "", script.exit_reason, message, (message,)))
        now = self._clock()
        return min((end for end in ends if end.at <= now), key=lambda end: end.at, default=None)

    def _replica(self, world: _World, replica: ReplicaId) -> Replica:
        script, run = world.script, world.runs[replica][-1]
        seen = Replica(
            replica,
            ReplicaState.STARTING,
            address=self._address or f"unix:/simulated/{replica.endpoint_uid}-{replica.name}.sock",
            started_at=run.started_at,
        )
        ended = self._end_of(script, run)
        if ended is not None:
            return replace(seen, state=ReplicaState.EXITED, exit=ended)
        seen = replace(seen, pid=run.pid)
        if run.stop_at is not None:
            return replace(seen, state=ReplicaState.STOPPING)
        elapsed = (self._clock() - run.started_at).total_seconds()
        if elapsed < script.start_seconds:
            return seen
        ready_after = script.start_seconds + script.load_seconds
        if elapsed < ready_after:
            return replace(seen, state=ReplicaState.LOADING)
        hangs_after = script.unresponsive_after_seconds
        hangs = hangs_after is not None and elapsed >= ready_after + hangs_after
        return replace(
            seen,
            state=ReplicaState.UNRESPONSIVE if hangs else ReplicaState.READY,
            ready_at=run.started_at + timedelta(seconds=ready_after),
            model=ModelInfo(example='{"instances":[[1]]}', note=NOTE),
        )


def _nobody(_uid: str) -> None:
    """Stands in for the listener before start and after close."""
