"""The local engine: an endpoint's model servers are processes of this machine.

    <home>/replicas/<uid>/<replica>/   intent.json, config.json   what was to be started
                                       lock, pid, stop.json       what runs, and that it is to end
                                       status.json                what the server says of itself
                                       exit.json, ended.json      how it ended
                                       server.log, previous.log   what it printed
    <sockets>/<uid>-<replica>.sock     where it answers
    <sockets>/notify.sock              where it announces changes

The folder is the truth. Everything this object remembers (timers, open pidfds, counts of failed
health checks) can be lost at any moment: the next one finds the folders, asks the kernel which locks
are held, and goes on. Servers notice nothing of that.

What is not limited here: CPU time (affinity is not a quota), disk, and network.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import Exit, InferenceEndpoint, ModelSpec, Replica, ReplicaId, ReplicaState
from inferplane.domain.preflight import Check
from inferplane.engines.local.launch import (
    Intent,
    LaunchRequest,
    ReplicaPaths,
    choose_cores,
    data_limit,
    fits_socket,
    older_part,
    parse_replica_name,
    replica_paths,
    server_config,
    server_environment,
    thread_count,
    visible_gpus,
    worker_count,
)
from inferplane.engines.local.launchers import FreshLauncher, Launcher
from inferplane.engines.local.limits import Limits
from inferplane.engines.local.logfile import Follower, keep_previous, tail
from inferplane.engines.local.models import ModelFetcher, ModelSource, model_reference, owner_of
from inferplane.engines.local.preflight import (
    HEAVY_FORMATS,
    PACKAGES,
    check_format,
    check_program,
    check_resources,
    check_runtime,
    check_scheme,
    suffixes_of,
)
from inferplane.engines.local.process import ProcessGone, kill_holders, machine_memory_bytes
from inferplane.engines.local.records import (
    read_ended,
    read_intent,
    read_process,
    read_stop,
    remove,
    write_process,
    write_record,
)
from inferplane.engines.local.server import (
    RunningServer,
    Surroundings,
    adopt,
    exit_code_on_file,
    record_end,
)
from inferplane.engines.local.sockets import Hints, make_private, socket_directory
from inferplane.engines.local.zygote import ForkLauncher, LauncherByFormat
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
from inferplane.locks import acquire_lock, is_locked
from inferplane.observability import get_logger
from inferplane.version import VERSION

log = get_logger("engine")

Gpus = tuple[tuple[str, tuple[int, ...]], ...]
FORK_SERVER_FOLDER = "forkserver"
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,15}", re.ASCII)


class LocalEngine:
    """Implements `engines.port.Engine` with processes. One engine a home: the caller sees to that.

    `home` holds everything. `environment` is what of the control plane's environment is sifted for
    model servers (the process's own by default). `launcher` starts servers; by default a fork
    server does, with a new interpreter as the way out, or only the latter without `fork_servers`.
    `custom_servers` lets manifests bring commands of their own. Servers that it starts send their spans to
    the collector at `otlp_endpoint`, "" for none.
    """

    def __init__(
        self,
        *,
        home: Path,
        models: ModelFetcher,
        clock: Clock,
        fork_servers: bool = True,
        launcher: Launcher | None = None,
        limits: Limits | None = None,
        environment: Mapping[str, str] | None = None,
        custom_servers: bool = False,
        otlp_endpoint: str = "",
    ) -> None:
        self._home = home
        self._otlp_endpoint = otlp_endpoint
        self._custom_servers = custom_servers
        self._sockets = socket_directory(home)
        self._models = models
        self._clock = clock
        self._limits = limits or Limits()
        self._environment = dict(os.environ if environment is None else environment)
        self._launcher = launcher or self._default_launcher(fork_servers=fork_servers)
        self._around = Surroundings(clock, self._limits, self._changed)
        self._cores = tuple(sorted(os.sched_getaffinity(0)))
        self._wake: Callable[[str], None] = _nobody
        self._hints: Hints | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._servers: dict[ReplicaId, RunningServer] = {}
        self._starting: set[ReplicaId] = set()
        # Of which revisions models were asked for: an index of the model store's references.
        self._models_here: dict[str, set[int]] = {}
        # Those of them for which there is nothing to fetch, or nothing that could serve them.
        self._settled: dict[tuple[str, int], ArtifactState] = {}
        self._start_over = asyncio.Event()
        # Ends that could not be written down because the disk was full.
        self._unwritten: dict[ReplicaId, Exit] = {}
        self._closing = False

    def _default_launcher(self, *, fork_servers: bool) -> Launcher:
        fresh = FreshLauncher()
        if not fork_servers:
            return fresh
        installed = [name for name, package in PACKAGES.items() if find_spec(package) is not None]
        make = partial(
            ForkLauncher,
            sockets=self._sockets,
            environment=server_environment(self._environment, (), threads=1),
            otherwise=fresh,
            limits=self._limits,
            version=VERSION,
        )
        usual = make(
            directory=self._home / FORK_SERVER_FOLDER,
            formats=tuple(name for name in installed if name not in HEAVY_FORMATS),
        )
        own = {
            name: make(
                directory=self._home / f"{FORK_SERVER_FOLDER}-{name}",
                formats=(name,),
                control_name=f"fork-{name}.sock",
            )
            for name in installed
            if name in HEAVY_FORMATS
        }
        return LauncherByFormat(usual, own)

    # --- life -------------------------------------------------------------------------------------

    async def start(self, wake: Callable[[str], None]) -> None:
        """Find what runs already and begin announcing changes. Raises EngineError."""
        # An existing home keeps its mode: what is ours in it is private by itself.
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_private(self._replicas)
        make_private(self._sockets)
        self._closing = False
        self._wake = wake
        try:
            self._hints = Hints(self._sockets)
        except OSError as error:
            raise EngineError(f"cannot open {self._sockets}/notify.sock: {error.strerror}") from error
        asyncio.get_running_loop().add_reader(self._hints.fileno(), self._read_hints)
        await self._launcher.start()
        for reference in self._models.references():
            uid, revision = owner_of(reference)
            self._models_here.setdefault(uid, set()).add(revision)
        adopted = self._adopt_all()
        if adopted:
            log.info("adopted model servers that were running", count=adopted)
        self._sweeper = asyncio.create_task(self._sweep_forever())

    async def close(self, *, stop_servers: bool) -> None:
        """Stop announcing; with `stop_servers`, end every server and leave no process."""
        self._closing = True
        self._wake = _nobody
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
            self._sweeper = None
        while self._starting:  # a start takes milliseconds, and is bounded by its launcher
            self._start_over.clear()
            await self._start_over.wait()
        if stop_servers:
            self._adopt_all()
            await self._end_all(tuple(self._servers), self._limits.close_grace_seconds, quiet=True)
        for server in tuple(self._servers.values()):
            await server.let_go()
        self._servers.clear()
        await self._launcher.close(stop=stop_servers)
        if self._hints is not None:
            asyncio.get_running_loop().remove_reader(self._hints.fileno())
            self._hints.close()
            self._hints = None
        with contextlib.suppress(OSError):  # it stays as long as a server answers in it
            self._sockets.rmdir()

    def _adopt_all(self) -> int:
        """Look after every server that runs in our folders; return how many were new to us."""
        before = len(self._servers)
        for uid in self._folders():
            for replica in self._replicas_of(uid):
                try:
                    if is_locked(self._paths(replica).lock):
                        self._server(replica)
                except (OSError, EngineError) as error:  # the others are adopted; observing it tries again
                    log.warning("cannot adopt a server yet", uid=uid, replica=replica.name, error=str(error))
        return len(self._servers) - before

    async def _end_all(self, replicas: tuple[ReplicaId, ...], grace_seconds: float, *, quiet: bool) -> None:
        """End these servers together. Returns when they are gone, or cannot be made to go."""
        servers = [self._servers[replica] for replica in replicas if replica in self._servers]
        for server in servers:
            server.stop(grace_seconds, quiet=quiet)
        gone = [asyncio.create_task(server.explained.wait()) for server in servers]
        if gone:
            _, pending = await asyncio.wait(gone, timeout=grace_seconds + 2 * self._limits.kill_seconds)
            for task in pending:
                task.cancel()
            if pending:
                log.error("model servers cannot be ended", count=len(pending))
        for server in servers:
            self._forget_if_ended(server)

    # --- what there is ----------------------------------------------------------------------------

    async def observe(self, uid: str) -> Observation:
        """What there is of the endpoint, from its folder, the kernel and the model fetcher."""
        replicas = [await self._observe_replica(replica) for replica in self._replicas_of(uid)]
        revisions = sorted(self._models_here.get(uid, ()))
        left = []
        if revisions:
            left.append("model files")
        if self._is_uid(uid) and self._folder(uid).exists():
            left.append("log files")
        return Observation(
            artifacts={each: self._artifact(uid, each) for each in revisions},
            replicas=tuple(replica for replica in replicas if replica is not None),
            left=tuple(left),
        )

    def _artifact(self, uid: str, revision: int) -> ArtifactState:
        return self._settled.get((uid, revision)) or self._models.state(model_reference(uid, revision))

    async def _observe_replica(self, replica: ReplicaId) -> Replica | None:
        """None for a folder in which nothing was ever started, or whose run is to be forgotten."""
        paths = self._paths(replica)
        intent = read_intent(paths.intent)
        if intent is None:
            return None
        server = self._server(replica)
        if server is not None and not server.has_process:
            await server.explained.wait()
            self._forget_if_ended(server)
            server = None
        if server is not None:
            return _living(replica, intent, server)
        if replica in self._starting:
            return Replica(
                replica, ReplicaState.STARTING, address=intent.address, started_at=intent.started_at
            )
        ended = self._ended(replica, paths)
        if ended is None:
            return None
        # Something of it that will not die (stuck in a driver, say) may still use its memory and GPUs.
        still_there = is_locked(paths.lock)
        return Replica(
            replica,
            ReplicaState.STOPPING if still_there else ReplicaState.EXITED,
            address=intent.address,
            started_at=intent.started_at,
            exit=ended,
        )

    def _server(self, replica: ReplicaId) -> RunningServer | None:
        """The server of this replica if its process lives or its end is being explained."""
        server = self._servers.get(replica)
        if server is not None or replica in self._starting:
            return server
        paths = self._paths(replica)
        try:
            if not is_locked(paths.lock):
                return None
            server = adopt(paths, self._around)
        except OSError as error:
            raise EngineError(f"cannot look after replica {replica.name}: {error.strerror}") from error
        if server is not None:
            self._servers[replica] = server
        return server

    def _ended(self, replica: ReplicaId, paths: ReplicaPaths) -> Exit | None:
        """How the last run ended; None when there was none, or none that anybody should hear of."""
        known = read_ended(paths.ended) or self._unwritten.get(replica)
        if known is not None or is_locked(paths.lock):
            return known
        record, stop = read_process(paths.pid), read_stop(paths.stop)
        if record is None and not paths.status.exists():
            return None
        code = exit_code_on_file(paths.exit, record.pid) if record is not None else None
        ended = record_end(paths, code, self._around, stop=stop)
        if stop is not None and stop.quiet:
            return None
        if not paths.ended.exists():
            self._unwritten[replica] = ended
        return ended

    def _forget_if_ended(self, server: RunningServer) -> None:
        replica = server.intent.replica
        if server.explained.is_set() and self._servers.get(replica) is server:
            del self._servers[replica]
            quiet = read_intent(server.paths.intent) is None
            if server.exit is not None and not quiet and not server.paths.ended.exists():
                self._unwritten[replica] = server.exit

    def gpus_of(self, uid: str) -> tuple[int, ...]:
        """Indexes of the GPUs that the endpoint's servers were started with."""
        intents = (read_intent(self._paths(replica).intent) for replica in self._replicas_of(uid))
        return visible_gpus([each for intent in intents if intent is not None for each in intent.gpus])

    async def owned(self) -> frozenset[str]:
        """Every endpoint of which a folder or a model is here."""
        return frozenset(self._models_here) | frozenset(self._folders())

    # --- steps ------------------------------------------------------------------------------------

    async def apply(self, target: Target, action: Action) -> None:
        """Take one step. Raises EngineError."""
        endpoint = target.endpoint
        if not self._is_uid(endpoint.uid):
            raise EngineError(f"“{endpoint.uid[:40]}” cannot be the uid of an endpoint")
        if self._closing:
            raise EngineError("the engine is closing")
        match action:
            case FetchModel(revision):
                self._models_here.setdefault(endpoint.uid, set()).add(revision)
                self._fetch(target, revision)
            case DropModel(revision):
                await self._drop_models(endpoint.uid, {revision})
            case StartReplica(replica, gpus):
                await self._start(endpoint, replica, gpus)
            case StopReplica(replica, grace_seconds):
                server = self._server(replica)
                if server is not None and server.has_process:
                    server.stop(grace_seconds)
            case Release():
                await self._release(endpoint.uid)

    def _fetch(self, target: Target, revision: int) -> None:
        """Ask for the model's files, unless there are none to be had or nothing here could serve them."""
        uid, model = target.endpoint.uid, target.endpoint.spec.model
        self._settled.pop((uid, revision), None)
        refusal = self._check_program(model)
        if refusal is not None and not refusal.ok:
            self._settled[uid, revision] = ArtifactState(
                ArtifactPhase.FAILED,
                uri=model.storage_uri,
                finished_at=self._clock(),
                reason=refusal.reason,
                message=refusal.message,
            )
        elif not model.storage_uri:  # a server of one's own need not have any
            self._settled[uid, revision] = ArtifactState(
                ArtifactPhase.PRESENT, path=str(self._folder(uid)), finished_at=self._clock()
            )
        else:
            reference = model_reference(uid, revision)
            self._models.request(reference, _source(target), partial(self._changed, uid))
            return
        self._changed(uid)

    def _check_program(self, model: ModelSpec) -> Check | None:
        return check_program(
            model,
            lambda package: find_spec(package) is not None,
            gpus=len(list(Path("/dev").glob("nvidia[0-9]*"))),
            custom_servers=self._custom_servers,
        )

    async def _start(self, endpoint: InferenceEndpoint, replica: ReplicaId, gpus: Gpus) -> None:
        """Start the replica unless it runs. One that is still ending is left to end: its end wakes the
        controller, which asks again.
        """
        if replica in self._starting:
            return
        server = self._server(replica)
        if server is not None:
            self._forget_if_ended(server)
            if replica in self._servers:
                return
        artifact = self._artifact(endpoint.uid, replica.revision)
        if artifact.phase is not ArtifactPhase.PRESENT:
            raise EngineError(f"replica {replica.name} cannot start: the model is not here yet")
        paths = self._paths(replica)
        if not fits_socket(self._sockets):
            raise EngineError(f"the folder for sockets has too long a path: {self._sockets}")
        self._starting.add(replica)
        # A start that has begun is brought to its end even if the caller is cancelled: half of one
        # would leave a process that nobody has noted.
        task = asyncio.create_task(self._begin(endpoint, replica, paths, artifact.path, gpus))
        task.add_done_callback(_take_note)
        await asyncio.shield(task)

    async def _begin(
        self,
        endpoint: InferenceEndpoint,
        replica: ReplicaId,
        paths: ReplicaPaths,
        model_path: str,
        gpus: Gpus,
    ) -> None:
        try:
            make_private(paths.directory.parent)
            make_private(paths.directory)
            await self._launch(endpoint, replica, paths, model_path, gpus)
        except OSError as error:
            raise EngineError(f"replica {replica.name} could not be started: {error.strerror}") from error
        finally:
            self._starting.discard(replica)
            self._start_over.set()

    async def _launch(
        self,
        endpoint: InferenceEndpoint,
        replica: ReplicaId,
        paths: ReplicaPaths,
        model_path: str,
        gpus: Gpus,
    ) -> None:
        lock = acquire_lock(paths.lock)
        if lock is None:
            kill_holders(paths.lock)
            raise EngineError(
                f"replica {replica.name} cannot start: a process of its last run is still there"
            )
        try:
            intent, request = self._prepare(endpoint, replica, paths, model_path, gpus)
            record = await self._launcher.launch(request, lock)
        finally:
            os.close(lock)
        write_process(paths.pid, record)
        try:
            self._servers[replica] = RunningServer(paths, intent, record, self._around)
        except ProcessGone:  # it ended at once; the next observation explains
            self._changed(endpoint.uid)

    def _prepare(
        self,
        endpoint: InferenceEndpoint,
        replica: ReplicaId,
        paths: ReplicaPaths,
        model_path: str,
        gpus: Gpus,
    ) -> tuple[Intent, LaunchRequest]:
        """Clear away the last run and write down the intent. Raises OSError."""
        assert self._hints is not None, "the engine was not started"
        resources = endpoint.spec.model.resources
        workers = worker_count(endpoint.spec.model, len(self._cores))
        # Several processes divide the cores between them.
        threads = max(1, thread_count(resources, len(self._cores)) // workers)
        load = Counter(core for server in self._servers.values() for core in server.intent.cores)
        intent = Intent(
            replica=replica,
            started_at=self._clock(),
            start_timeout_seconds=endpoint.spec.model.start_timeout_seconds,
            address=f"unix:{paths.socket}",
            memory_bytes=resources.memory_bytes,
            cores=choose_cores(resources, self._cores, load),
            gpus=gpus,
        )
        keep_previous(paths.log, paths.previous_log)
        remove(paths.status, paths.exit, paths.stop, paths.pid, paths.ended, paths.socket)
        self._unwritten.pop(replica, None)
        write_record(paths.intent, intent.to_json())
        write_record(
            paths.config,
            server_config(
                endpoint,
                model_path,
                paths,
                threads=threads,
                workers=workers,
                notify_socket=self._hints.path,
                otlp_endpoint=self._otlp_endpoint,
            ),
        )
        request = LaunchRequest(
            config_path=paths.config,
            log_path=paths.log,
            directory=paths.directory,
            environment=server_environment(
                self._environment, endpoint.spec.model.env, threads, visible_gpus(gpus)
            ),
            cores=intent.cores,
            data_bytes_max=data_limit(resources),
            format=endpoint.spec.model.format,
        )
        return intent, request

    async def _release(self, uid: str) -> None:
        for replica in self._replicas_of(uid):
            server = self._server(replica)
            if server is not None:
                self._forget_if_ended(server)
            if replica in self._starting or replica in self._servers or is_locked(self._paths(replica).lock):
                raise EngineError(f"replica {replica.name} still runs; it is not released")
        try:
            for socket in self._sockets.glob(f"{uid}-r*.sock"):
                remove(socket)
            if self._folder(uid).exists():
                shutil.rmtree(self._folder(uid))
        except OSError as error:
            raise EngineError(f"cannot remove what is left: {error.strerror}") from error
        for replica in [known for known in self._unwritten if known.endpoint_uid == uid]:
            del self._unwritten[replica]
        await self._drop_models(uid, set(self._models_here.get(uid, ())))

    async def _drop_models(self, uid: str, revisions: set[int]) -> None:
        for revision in sorted(revisions):
            self._settled.pop((uid, revision), None)
            await self._models.release(model_reference(uid, revision))
        left = self._models_here.get(uid, set()) - revisions
        if left:
            self._models_here[uid] = left
        else:
            self._models_here.pop(uid, None)

    async def release_orphan(self, uid: str) -> None:
        """Stop and undo everything of an endpoint that the store does not know. Raises EngineError."""
        replicas = tuple(self._replicas_of(uid))
        for replica in replicas:
            self._server(replica)
        await self._end_all(replicas, self._limits.orphan_grace_seconds, quiet=False)
        await self._release(uid)

    # --- logs -------------------------------------------------------------------------------------

    async def logs(
        self,
        uid: str,
        *,
        replica: str = "",
        previous: bool = False,
        follow: bool = False,
        tail_lines: int = 200,
    ) -> AsyncIterator[LogLine]:
        """The last lines of each replica, then with `follow` what is added until none of them runs.

        Raises EngineError when there is no such log.
        """
        limits = self._limits
        logs = self._logs_of(uid, replica, previous=previous)
        followers = []
        for name, path in logs:
            if follow and not previous:
                follower = Follower(path, limits.log_line_bytes_max)
                follower.skip_to_end()
                followers.append((name, follower))
            for text in tail(
                path,
                lines_max=min(tail_lines, limits.logs_lines_max),
                bytes_max=limits.logs_bytes_max,
                line_bytes_max=limits.log_line_bytes_max,
            ):
                yield LogLine(name, text)
        while followers:
            # Asked before reading, so that the last lines of one that just ended are still read.
            running = {name for name, follower in followers if is_locked(follower.log.with_name("lock"))}
            for name, follower in followers:
                lines = follower.read() if name in running else [*follower.read(), *follower.rest()]
                for text in lines:
                    yield LogLine(name, text)
            followers = [(name, follower) for name, follower in followers if name in running]
            if followers:
                await asyncio.sleep(limits.follow_seconds)

    def _logs_of(self, uid: str, name: str, *, previous: bool) -> list[tuple[str, Path]]:
        replicas = [replica for replica in self._replicas_of(uid) if name in ("", replica.name)]
        found = []
        for replica in replicas:
            paths = self._paths(replica)
            path = paths.previous_log if previous else paths.log
            if path.exists() or older_part(path).exists():
                found.append((replica.name, path))
        if found:
            return found
        if name and not replicas:
            raise EngineError(f"there is no replica {name[:40]}", reason="NoLogs")
        if previous:
            raise EngineError("there was no earlier run, so there is no log of one", reason="NoLogs")
        raise EngineError("no model server has been started yet, so there is no log", reason="NoLogs")

    # --- pre-flight -------------------------------------------------------------------------------

    async def preflight(self, target: Target) -> tuple[Check, ...]:
        """What would happen if this endpoint were created here."""
        model = target.endpoint.spec.model
        checks = [check_format(model)]
        runtime = check_runtime(model, lambda package: find_spec(package) is not None)
        checks += [check for check in (runtime, self._check_program(model)) if check is not None]
        checks.append(
            check_resources(
                model.resources,
                replicas=target.endpoint.spec.scaling.min_replicas,
                cores=len(self._cores),
                memory_bytes=machine_memory_bytes(),
            )
        )
        if model.command and not model.storage_uri:
            return tuple(checks)
        refused = check_scheme(model.storage_uri)
        if refused is not None:
            return (*checks, refused)
        return (*checks, *await self._models.probe(_source(target), suffixes_of(model)))

    # --- by itself --------------------------------------------------------------------------------

    def _changed(self, uid: str) -> None:
        self._wake(uid)

    def _read_hints(self) -> None:
        if self._hints is not None:
            for uid in self._hints.read():
                if self._is_uid(uid):
                    self._wake(uid)

    async def _sweep_forever(self) -> None:
        for turn in itertools.count():
            await asyncio.sleep(self._limits.sweep_seconds)
            looked_at = [
                server
                for index, server in enumerate(tuple(self._servers.values()))
                if not server.is_steady or (index + turn) % self._limits.steady_sweeps == 0
            ]
            for index, server in enumerate(looked_at):
                if index and index % self._limits.sweep_together == 0:
                    await asyncio.sleep(0)  # whoever is waiting has their turn between hundreds of servers
                if self._servers.get(server.intent.replica) is not server:
                    continue  # it went meanwhile
                try:
                    server.sweep()
                except Exception:  # of one server; the others, and the next sweep, must go on
                    log.exception("sweep failed", replica=server.intent.replica.name)

    # --- names ------------------------------------------------------------------------------------

    @property
    def _replicas(self) -> Path:
        return self._home / "replicas"

    def _folder(self, uid: str) -> Path:
        return self._replicas / uid

    def _is_uid(self, uid: str) -> bool:
        """Uids become file names; anything that is more than a word is refused."""
        return _UID.fullmatch(uid) is not None

    def _paths(self, replica: ReplicaId) -> ReplicaPaths:
        return replica_paths(self._home, self._sockets, replica)

    def _folders(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return sorted(
                entry.name
                for entry in self._replicas.iterdir()
                if self._is_uid(entry.name) and entry.is_dir()
            )
        return []

    def _replicas_of(self, uid: str) -> list[ReplicaId]:
        if not self._is_uid(uid):
            return []
        try:
            names = [entry.name for entry in self._folder(uid).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(found for name in names if (found := parse_replica_name(uid, name)) is not None)


def end_fork_server(home: Path) -> None:
    """End the fork servers that a last run may have left in a home that gets none any more."""
    for folder in (FORK_SERVER_FOLDER, *(f"{FORK_SERVER_FOLDER}-{name}" for name in HEAVY_FORMATS)):
        kill_holders(home / folder / "lock")


def _living(replica: ReplicaId, intent: Intent, server: RunningServer) -> Replica:
    status = server.status()
    ready = status is not None and status.state == "ready"
    return Replica(
        replica,
        server.state(),
        address=intent.address,
        pid=server.pid,
        started_at=intent.started_at,
        ready_at=status.at if ready and status is not None else None,
        model=status.model if ready and status is not None else None,
    )


def _source(target: Target) -> ModelSource:
    model = target.endpoint.spec.model
    return ModelSource(model.storage_uri, model.digest, target.secret)


def _take_note(task: asyncio.Task[None]) -> None:
    """Look at the outcome, so that one nobody waits for any more is not called forgotten."""
    if not task.cancelled():
        task.exception()


def _nobody(_uid: str) -> None:
    """Stands in for the listener before start and after close."""
