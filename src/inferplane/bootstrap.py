"""The composition root: the only module that knows every part, and the only owner of a clock.

`up` is what the command of that name runs; `run_platform` builds the house from settings, opens it,
and takes it down in the opposite order. Nothing else in the package starts anything by being imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import gc
import json
import os
import resource
import secrets
import shutil
import signal
import socket
import string
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from inferplane.api.app import Api, create_app
from inferplane.api.http import ApiProtocol
from inferplane.controllers.admission import CYCLE, AdmissionController
from inferplane.controllers.clusters import ClusterController, Connected, Links, RunningEngines
from inferplane.controllers.endpoints import EndpointController
from inferplane.controllers.inventory import DeclaredNodes, InventoryController, NodeSource
from inferplane.controllers.leases import Holding, Leases, Sole, wanted_leases
from inferplane.controllers.runner import Runner
from inferplane.controllers.usage import UsageCollector
from inferplane.domain.cluster import Drift
from inferplane.domain.errors import InferplaneError, StaleLease, Unavailable
from inferplane.domain.gpu_request import Grant
from inferplane.domain.lease import cluster_lease
from inferplane.domain.workspace import Cluster
from inferplane.engines.kserve.client import KubeClient
from inferplane.engines.kserve.engine import KServeEngine, Options
from inferplane.engines.kserve.http_api import HttpApi, credentials_for
from inferplane.engines.kserve.link import KubernetesLink
from inferplane.engines.local.engine import LocalEngine, end_fork_server
from inferplane.engines.local.launch import CUDA_DEVICES_VARIABLE
from inferplane.engines.local.sockets import make_private, socket_directory
from inferplane.engines.nvml import DeviceMeter, NvmlNodes
from inferplane.engines.port import Clock, Engine
from inferplane.engines.simulated import NOTE, Script, SimulatedEngine
from inferplane.gateway.absent import AbsentGateway
from inferplane.gateway.activator import Activator
from inferplane.gateway.batches import BatchMeter
from inferplane.gateway.demand import Demand
from inferplane.gateway.endpoint_keys import key_set, shared_signing_key, signing_key
from inferplane.gateway.history import TrafficHistory
from inferplane.gateway.publisher import GatewayConfig, RoutePublisher
from inferplane.gateway.route_table import Upstream
from inferplane.gateway.traffic import TrafficMeter
from inferplane.modelstore.store import ModelStore
from inferplane.observability import configure_logging, get_logger
from inferplane.scheduler import Switches
from inferplane.services.bootstrap import (
    adopt_owner_key,
    ensure_local_cluster,
    ensure_owner_key,
    ensure_workspace,
    has_owner_key,
    installation_id,
)
from inferplane.services.context import GatewayAddress, Platform
from inferplane.services.names import Names
from inferplane.settings import LOCAL_CLUSTER, ClusterSettings, EngineKind, LoadedSettings, Settings
from inferplane.store.dialect import Claim
from inferplane.store.sql import Change, Store
from inferplane.version import VERSION

API_BACKLOG = 2048
API_SHUTDOWN_SECONDS = 5
ANY_HOST = ("0.0.0.0", "::", "")  # noqa: S104 - compared with, nothing is bound to it here
DESCRIPTORS_MAX = 65_536
LOCK_ATTEMPTS_MAX = 10
LOCK_PAUSE_SECONDS = 0.02
SIMULATED_SOCKET = "simulated.sock"
ACTIVATOR_SOCKET = "activator.sock"
CLUSTERS_FOLDER = "clusters"
CLUSTER_WORKERS = 16
"""So many clusters are looked at side by side; one that is away takes its time."""
HOLDER_FILE = "holder"
HOST_CHARACTERS_MAX = 100
# About what a small model takes, so that every state of a simulated endpoint can be seen.
SIMULATED_SCRIPT = Script(fetch_seconds=2.0, start_seconds=0.3, load_seconds=1.0, stop_seconds=0.5)

# Variables of ours that a model download may need; everything else stays out of the model store.
STORAGE_ENVIRONMENT = (
    "STORAGE_EMULATOR_HOST",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "HF_ENDPOINT",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)

log = get_logger("bootstrap")


def up(loaded: LoadedSettings) -> int:
    """Run the platform in the foreground until SIGINT or SIGTERM; return the exit code."""
    configure_logging(loaded.settings.log_level)
    _allow_many_descriptors()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve_until_signal(loaded.settings))
    except InferplaneError as error:
        print(f"inferplane: {error.message}", file=sys.stderr)  # noqa: T201 - a command's last word
        if error.next_action:
            print(f"  {error.next_action}", file=sys.stderr)  # noqa: T201
        return 1


def _allow_many_descriptors() -> None:
    """Every connection, server and log file takes a descriptor; the usual soft limit is for small programs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve_until_signal(settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with run_platform(settings) as running:
        print(running.ready_line, flush=True)  # noqa: T201 - the one line that scripts wait for
        gc.freeze()  # what is loaded stays: looking through it again and again would stop everything meanwhile
        taken_over = await _first_of(stop, running.claim)
        log.info("stopping")
        if taken_over is not None:
            raise taken_over
    print("inferplane has stopped; nothing of it is left running", flush=True)  # noqa: T201
    return 0


async def _first_of(stop: asyncio.Event, claim: Claim) -> Unavailable | None:
    """Wait for either; what to say if the database now belongs to another platform."""
    stopped, broken = asyncio.create_task(stop.wait()), asyncio.create_task(claim.broken())
    try:
        await asyncio.wait((stopped, broken), return_when=asyncio.FIRST_COMPLETED)
        return broken.result() if broken.done() else None
    finally:
        stopped.cancel()
        broken.cancel()


def now() -> datetime:
    """The one clock: aware, UTC."""
    return datetime.now(UTC)


def new_id(length: int) -> str:
    """`length` random characters of a-z0-9."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(length))


@dataclass(slots=True)
class RunningPlatform:
    """A platform that is up. Ports are the ones really bound."""

    settings: Settings
    api_port: int
    gateway_port: int
    store: Store
    engines: Mapping[str, Engine]
    claim: Claim

    @property
    def ready_line(self) -> str:
        """One line, the same each time, for people and scripts.

        The API is named by the address it listens on, unless that is every address of the machine.
        """
        advertised = self.settings.advertised_host
        api = advertised if self.settings.api_host in ANY_HOST else self.settings.api_host
        gateway = f"http://{_in_url(advertised)}:{self.gateway_port}" if self.settings.local else "none"
        return (
            f"inferplane is ready: api http://{_in_url(api)}:{self.api_port} "
            f"gateway {gateway} home {self.settings.home}"
        )


EngineFor = Callable[[ClusterSettings, Callable[[], int]], Engine | None]
"""An engine for a cluster, given how to learn the epoch in which it acts; None for the usual one."""


@asynccontextmanager
async def run_platform(
    settings: Settings, *, speed: float = 1.0, engine_for: EngineFor = lambda _cluster, _epoch: None
) -> AsyncIterator[RunningPlatform]:
    """Bring everything up in order, and take it down in the opposite order.

    `engine_for` lets a test put a world of its own behind clusters. `speed` lets the platform's clock go that much faster, for demonstrations. What is real (downloads,
    model servers of this machine) keeps real time, so it is for simulated clusters and a home of its own.
    Raises Unavailable when the home is in use by another platform or a port by a stranger.
    """
    clock = clock_at(speed)
    async with AsyncExitStack() as stack:
        _claim_home(settings, stack)
        api_socket = _bind(settings.api_host, settings.api_port)
        stack.callback(api_socket.close)
        api_port = int(api_socket.getsockname()[1])

        store = await Store.open(settings.effective_database_url)
        stack.push_async_callback(store.close)
        claim = await stack.enter_async_context(store.claim(shared=not settings.local))
        await _ensure_installation(store, settings, clock)

        models = ModelStore(
            settings.home / "models",
            clock=now,
            cache_bytes_max=settings.model_cache_bytes_max,
            environment={name: os.environ[name] for name in STORAGE_ENVIRONMENT if name in os.environ},
        )
        stack.push_async_callback(models.close)
        await models.start()

        running = RunningEngines()
        engines = running.engines
        woken_by_leases: list[Runner] = []
        leases: Leases | Sole = Sole()
        if store.may_be_shared:
            leases = Leases(
                store,
                holder_name(settings.home),
                wanted_leases(engines.keys()),
                _steady_seconds,
                gained=lambda _: _wake_each(woken_by_leases),
            )
        for each in _unconnected(settings.every_cluster):
            epoch = partial(epoch_of, leases, each.name)
            engines[each.name] = engine_for(each, epoch) or _engine(each, settings, models, clock, speed)
        await register_clusters(store, settings.every_cluster, clock)
        if isinstance(leases, Leases):
            stack.push_async_callback(leases.close)
            await leases.start()
        running.sources.update(_node_sources(_unconnected(settings.every_cluster)))
        inventory = InventoryController(store, running.sources, clock, leases=leases)
        await _refresh(inventory, store)

        runner: Runner | None = None
        woken: dict[str, Runner] = {}

        def wake(uid: str) -> None:
            if runner is not None:
                runner.wake(uid)

        traffic: TrafficMeter | None = None
        demand = Demand(clock, wake, lambda uid: None if traffic is None else traffic.idle_since(uid))
        signing = await _signing_key(store, settings)
        publisher: RoutePublisher | None = None
        if settings.local:
            activator_socket = socket_directory(settings.home) / ACTIVATOR_SOCKET
            await stack.enter_async_context(_serve_at(activator_socket, Activator(demand)))
            publisher = RoutePublisher(
                GatewayConfig(
                    directory=settings.home / "gateway",
                    host=settings.gateway_host,
                    port=settings.gateway_port,
                    domain=settings.domain,
                    api_address=f"{_loopback(settings.api_host)}:{api_port}",
                    activator_address=f"unix:{activator_socket}",
                    key_set=key_set(signing),
                    otlp_endpoint=settings.otlp_endpoint,
                    trace_sample_percent=settings.trace_sample_percent,
                ),
                on_confirmed=wake,
            )
        routes = publisher or AbsentGateway()
        # Registered first, so closed last: the gateway finishes its requests while servers still answer.
        retired = _retired_engines(settings, models)
        for engine in (*engines.values(), *retired.values()):
            stack.push_async_callback(engine.close, stop_servers=True)
            await engine.start(wake)
        connect = partial(
            connect_to_cluster,
            clock=clock,
            environment=os.environ,
            epoch=partial(epoch_of, leases),
            installation=await installation_id(store),
        )
        clusters = ClusterController(
            store,
            running,
            connect,
            clock,
            wake=wake,
            changed=lambda name: _wake_for_cluster(name, woken),
            leases=leases,
        )
        stack.push_async_callback(clusters.close)
        await clusters.connect_all()
        if any(each.engine is EngineKind.SIMULATED for each in settings.every_cluster):
            await stack.enter_async_context(_serve_at(_simulated_socket(settings.home), _answer_simulated))
        history: TrafficHistory | None = None
        if publisher is not None:
            await publisher.start()
            stack.push_async_callback(publisher.close, stop_gateway=True)
            traffic = TrafficMeter(
                publisher.admin_socket,
                settings.home / "gateway" / "traffic.json",
                clock,
                on_look=demand.measured,
            )
            stack.push_async_callback(traffic.close)
            await traffic.start()

            def replicas(uid: str) -> tuple[Upstream, ...]:
                confirmed = routes.confirmed(uid)
                return () if confirmed is None else confirmed.upstreams

            history = TrafficHistory(
                traffic.counters, clock, replicas=replicas, batch_rows=BatchMeter(replicas).since_last
            )
            stack.push_async_callback(history.close)
            await history.start()
        devices = await _device_meter(settings, clock, stack)

        controller = EndpointController(
            store,
            engines,
            routes,
            clock,
            retired=retired,
            demand=demand,
            by_revision=None if history is None else history.by_revision,
            leases=leases,
        )
        if publisher is not None:
            await controller.restore_routes()
            publisher.open()
        runner = Runner(controller, speed=speed)
        switches = Switches()
        admission = Runner(
            AdmissionController(
                store,
                clock,
                switches=switches,
                grant_idle_since=grant_idleness(devices),
                idle_since=Idleness(demand, devices, engines).idle_since,
                speed=speed,
                leases=leases,
            ),
            workers=1,
            speed=speed,
        )
        stack.callback(store.subscribe(lambda change: _wake_for(change, wake, admission)))
        await admission.start()
        stack.push_async_callback(admission.close)
        await runner.start()
        stack.push_async_callback(runner.close)
        stack.callback(demand.close)
        controller.start_janitor()
        stack.push_async_callback(controller.close)
        inventory_runner = Runner(inventory, workers=CLUSTER_WORKERS)
        await inventory_runner.start()
        stack.push_async_callback(inventory_runner.close)

        woken_by_leases += [admission, runner, inventory_runner]
        woken.update(inventory=inventory_runner, endpoints=runner)
        names = Names(_resolve, _steady_seconds)
        stack.push_async_callback(names.close)
        clusters_runner = Runner(clusters, workers=CLUSTER_WORKERS)
        woken_by_leases.append(clusters_runner)
        await clusters_runner.start()
        stack.push_async_callback(clusters_runner.close)

        usage = UsageCollector(store, None if publisher is None else publisher.access_log, clock)
        usage.start()
        stack.push_async_callback(usage.close)

        gateway_port = settings.gateway_port if publisher is None else publisher.port
        platform = Platform(
            store=store,
            engines=engines,
            clock=clock,
            gateway=GatewayAddress(
                scheme="http",
                port=gateway_port,
                domain=settings.domain,
                advertised_host=settings.advertised_host,
            ),
            new_id=new_id,
            scheduling=switches,
            grant_measured=grant_measured(devices),
            traffic=history,
            default_access=settings.endpoint_access,
            signing_key=signing,
            links=Links(running, connect, clusters_runner.wake),
            names=names,
        )

        def readiness() -> dict[str, str]:
            return {"store": ""} if publisher is None else {"gateway": publisher.problem(), "store": ""}

        app = create_app(platform, readiness=readiness, version=VERSION)
        await stack.enter_async_context(_serve_api(app, api_socket))
        stack.enter_context(_address_told(settings, api_port))
        yield RunningPlatform(settings, api_port, gateway_port, store, engines, claim)


def clock_at(speed: float) -> Clock:
    """The clock, going `speed` times as fast from now on."""
    if speed == 1.0:
        return now
    began = now()
    return lambda: began + (now() - began) * speed


def _engine(
    cluster: ClusterSettings, settings: Settings, models: ModelStore, clock: Clock, speed: float
) -> Engine:
    """What runs this cluster's model servers. Clusters of this machine share its models, nothing else."""
    if cluster.engine is EngineKind.SIMULATED:
        loop = asyncio.get_running_loop()
        return SimulatedEngine(
            clock,
            usual=SIMULATED_SCRIPT,
            address=f"unix:{_simulated_socket(settings.home)}",
            later=lambda seconds, call: loop.call_later(seconds / speed, call),
        )
    own = cluster.name == LOCAL_CLUSTER
    return LocalEngine(
        home=settings.home if own else settings.home / CLUSTERS_FOLDER / cluster.name,
        models=models,
        clock=now,
        fork_servers=settings.fork_servers,
        custom_servers=settings.allows_custom_servers,
        otlp_endpoint=settings.otlp_endpoint,
    )


def _retired_engines(settings: Settings, models: ModelStore) -> dict[str, Engine]:
    """Engines for what clusters of this machine have left here that are configured no longer (or otherwise).

    After a crash their model servers may still run, on GPUs perhaps. These engines look after them until
    they are gone, and start nothing. A folder in which nothing is left is removed.
    """
    local = {each.name for each in settings.every_cluster if each.engine is EngineKind.LOCAL}
    clusters = settings.home / CLUSTERS_FOLDER
    folders = {path.name: path for path in sorted(clusters.iterdir())} if clusters.is_dir() else {}
    found: dict[str, Engine] = {}
    for name, folder in {**folders, LOCAL_CLUSTER: settings.home}.items():
        replicas = folder / "replicas"
        if name in local or not replicas.is_dir():
            continue
        end_fork_server(folder)
        if folder.parent == clusters and not any(replicas.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
            continue
        log.info("a cluster is configured no longer; what is left of it is ended", cluster=name)
        found[name] = LocalEngine(home=folder, models=models, clock=now, fork_servers=False)
    return found


@dataclass(frozen=True, slots=True)
class Idleness:
    """Since when an endpoint's GPUs have had nothing to do: no request, and no work that its driver sees.

    `devices` is None where GPUs are only declared: nothing works on those.
    """

    traffic: Demand
    devices: DeviceMeter | None
    engines: Mapping[str, Engine]

    def idle_since(self, uid: str) -> datetime | None:
        """None while it is busy, or before anything is known."""
        since = self.traffic.idle_since(uid)
        here = self.engines.get(LOCAL_CLUSTER)
        if since is None or self.devices is None or not isinstance(here, LocalEngine):
            return since
        busy_at = self.devices.busy_at(here.gpus_of(uid))
        return since if busy_at is None else max(since, busy_at)


def grant_idleness(devices: DeviceMeter | None) -> Callable[[Grant], datetime | None]:
    """Since when granted GPUs have had nothing to do by what their driver sees: those of this machine only.

    For GPRs without an endpoint, of which the gateway sees no requests. None where nothing is measured.
    """

    def idle_since(grant: Grant) -> datetime | None:
        if devices is None or grant.cluster != LOCAL_CLUSTER:
            return None
        return devices.idle_since(index for _, indexes in grant.nodes for index in indexes)

    return idle_since


def grant_measured(devices: DeviceMeter | None) -> Callable[[Grant], bool]:
    """Whether anybody can tell, at the moment, if granted GPUs are used: the counterpart of `grant_idleness`."""

    def measured(grant: Grant) -> bool:
        if devices is None or grant.cluster != LOCAL_CLUSTER:
            return False
        return devices.measures(index for _, indexes in grant.nodes for index in indexes)

    return measured


async def _device_meter(settings: Settings, clock: Clock, stack: AsyncExitStack) -> DeviceMeter | None:
    """A meter of this machine's GPUs, unless pretended ones take their place."""
    if not settings.local or any(each.name == LOCAL_CLUSTER and each.node for each in settings.every_cluster):
        return None
    meter = DeviceMeter(clock, file=settings.home / "gpus.json")
    stack.push_async_callback(meter.close)
    await meter.start()
    return meter


def _node_sources(clusters: tuple[ClusterSettings, ...]) -> dict[str, NodeSource]:
    """Where nodes are learned from: the declaration if there is one; for this machine else its driver."""
    sources: dict[str, NodeSource] = {each.name: DeclaredNodes(each.nodes()) for each in clusters}
    for each in clusters:
        if each.name == LOCAL_CLUSTER and not each.node:
            sources[each.name] = NvmlNodes(
                each.name, socket.gethostname(), allowed=os.environ.get(CUDA_DEVICES_VARIABLE)
            )
    return sources


async def _ensure_installation(store: Store, settings: Settings, clock: Clock) -> None:
    """The first start's Owner key, cluster and workspace, as far as they are to be made here.

    Without a local cluster several may share the installation: they take over the Owner key that was chosen,
    or the first one makes one, which is then in its home only.
    """
    if settings.owner_key_file:
        await adopt_owner_key(store, Path(settings.owner_key_file), clock, new_id)
    elif settings.local or not await has_owner_key(store, clock):
        await ensure_owner_key(store, settings.owner_key_path, clock, new_id)
    if settings.local:
        await ensure_local_cluster(store, clock, cluster=LOCAL_CLUSTER)
    else:
        await ensure_workspace(store, clock, [each.name for each in settings.clusters])


async def _signing_key(store: Store, settings: Settings) -> str:
    """What endpoint keys are signed with: this gateway's own, or, where there is none, one that all share."""
    if settings.local:
        return signing_key(settings.home)
    async with store.transaction() as tx:
        return shared_signing_key(await tx.installation_secret("endpoint-keys"))


def _wake_each(runners: Iterable[Runner]) -> None:
    for each in runners:
        each.wake_all()


def epoch_of(leases: Holding, cluster: str) -> int:
    """The epoch in which this control plane acts on the cluster, 0 where it has everything to itself.

    Raises StaleLease where it does not act on it: an act under way must not go on without an epoch.
    """
    name = cluster_lease(cluster)
    fence = leases.fence(name)
    if fence is None:
        raise StaleLease(f"the lease {name} is not held any more")
    return fence.epoch


def holder_name(home: Path) -> str:
    """Who holds leases: the one process that runs with this home, before a restart and after.

    Raises Unavailable.
    """
    path = home / HOLDER_FILE
    try:
        known = path.read_text(encoding="ascii").strip() if path.exists() else ""
        if known:  # a power cut may have left the file without its content
            return known
        name = f"{socket.gethostname()[:HOST_CHARACTERS_MAX]}-{new_id(8)}"
        draft = path.with_name(path.name + ".new")
        draft.write_text(f"{name}\n", encoding="ascii")
        draft.replace(path)
    except (OSError, UnicodeError) as error:
        raise Unavailable(
            f"the file {path} cannot be used: {error}", reason="HomeUnusable", field="home"
        ) from error
    return name


def _steady_seconds() -> float:
    """A clock that goes on while the machine sleeps: leases must not seem to last longer than they do."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


async def register_clusters(store: Store, clusters: tuple[ClusterSettings, ...], clock: Clock) -> None:
    """Make known what the configuration declares; what it declares no longer stays, without an engine.

    One of Kubernetes that a person registered stays theirs, unless the file has one of the same name.
    """
    async with store.transaction() as tx:
        known = {each.name: each for each in await tx.list_clusters()}
        for cluster in clusters:
            before = known.get(cluster.name, Cluster(cluster.name, cluster.engine.value, clock()))
            wanted = replace(before, engine=cluster.engine.value, connection=cluster.connection)
            if cluster.connection is not None:
                wanted = replace(wanted, domain=cluster.domain, ingress_address=cluster.ingress)
            if known.get(cluster.name) != wanted:
                await tx.put_cluster(wanted)
                await tx.put_cluster_kubeconfig(cluster.name, "")
        declared = {each.name for each in clusters}
        for each in known.values():
            if each.name not in declared and each.connection is not None and each.connection.declared:
                await tx.put_cluster(replace(each, connection=None))


async def _refresh(inventory: InventoryController, store: Store) -> None:
    """Look at the nodes of every cluster but those of Kubernetes, which are asked for once they are connected."""
    async with store.read() as tx:
        later = {each.name for each in await tx.list_clusters() if each.connection is not None}
    for name in await inventory.keys():
        if name not in later:
            await inventory.reconcile(name)


def _unconnected(clusters: tuple[ClusterSettings, ...]) -> tuple[ClusterSettings, ...]:
    """Those that are no Kubernetes: their engines live here, and as long as the platform."""
    return tuple(each for each in clusters if each.connection is None)


def connect_to_cluster(
    cluster: Cluster,
    kubeconfig: str,
    *,
    clock: Clock,
    environment: Mapping[str, str],
    epoch: Callable[[str], int] = lambda _: 0,
    installation: str = "",
) -> Connected:
    """An engine for a cluster of Kubernetes, and a link to it. Contacts nobody. Raises Invalid.

    `epoch` is that in which this control plane acts on a cluster. `installation` is whose everything is there.
    """
    assert cluster.connection is not None
    credentials = credentials_for(cluster.connection, kubeconfig, environment)
    link = KubernetesLink(
        cluster.name,
        HttpApi(credentials),
        clock,
        ingress_address=cluster.ingress_address,
        installation=installation,
    )
    engine = KServeEngine(
        KubeClient(credentials),
        clock,
        options=Options(leave_drift=cluster.connection.drift is Drift.LEAVE, installation=installation),
        fence=partial(epoch, cluster.name),
    )
    return Connected(engine, link)


async def _resolve(host: str) -> frozenset[str]:
    """The addresses of a host name by this machine's resolver. Raises OSError where it cannot tell."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            return frozenset()
        raise
    except UnicodeError:  # a label that is too long: no name of anybody
        return frozenset()
    return frozenset(str(address[0]).partition("%")[0] for *_, address in found)


def _wake_for_cluster(name: str, woken: Mapping[str, Runner]) -> None:
    """A cluster came, went, or answers again: look at its nodes and at the endpoints."""
    if (inventory := woken.get("inventory")) is not None:
        inventory.wake(name)
    if (endpoints := woken.get("endpoints")) is not None:
        endpoints.wake_all()


def _wake_for(change: Change, wake: Callable[[str], None], admission: Runner) -> None:
    """Whatever changed, who gets GPUs may change with it; an endpoint follows what is its own."""
    admission.wake(CYCLE)
    if change.endpoint_uid:
        wake(change.endpoint_uid)


def _claim_home(settings: Settings, stack: AsyncExitStack) -> None:
    """Make the home folder ours alone; the kernel gives it back however we end.

    The address that a killed platform left is removed: from here on it would be taken for ours.
    """
    home = settings.home
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = stack.enter_context(
            contextlib.closing(os.fdopen(os.open(settings.lock_path, os.O_RDWR | os.O_CREAT, 0o600)))
        )
    except OSError as error:
        raise Unavailable(
            f"the home folder {home} cannot be used: {error.strerror}",
            reason="HomeUnusable",
            field="home",
            next_action="Name another folder with --home or INFERPLANE_HOME.",
        ) from error
    try:
        _lock(lock.fileno())
    except OSError as error:
        raise Unavailable(
            f"another platform already runs with the home folder {home}",
            reason="HomeInUse",
            field="home",
            next_action="Stop it first, or name another folder with --home or INFERPLANE_HOME.",
        ) from error
    with contextlib.suppress(OSError):  # if it cannot be, it cannot be written either, which is said then
        settings.api_url_path.unlink(missing_ok=True)


def _lock(descriptor: int) -> None:
    """Raises OSError. Somebody who only asks whether it is locked holds it for a moment: tried a few times."""
    for _ in range(LOCK_ATTEMPTS_MAX - 1):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(LOCK_PAUSE_SECONDS)
    return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _address_told(settings: Settings, api_port: int) -> Iterator[None]:
    """Say in the home folder where the API is, for clients of this user. Raises Unavailable."""
    path = settings.api_url_path
    draft = path.with_name(path.name + ".new")
    try:
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"http://{_in_url(_loopback(settings.api_host))}:{api_port}\n")
        draft.replace(path)
    except OSError as error:
        raise Unavailable(
            f"the file {path} cannot be written: {error.strerror}", reason="HomeUnusable", field="home"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it says nothing once the lock is gone
            path.unlink()


def _bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket, bound before anything else is started."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio knows it for TCP and turns Nagle's delay off.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        by_port = taken or error.errno == errno.EACCES
        raise Unavailable(
            f"the API cannot listen on {host}:{port}: {'the port is in use' if taken else error.strerror}",
            reason="PortUnavailable",
            field="api_port" if by_port else "api_host",
            next_action="Name another port with --api-port or INFERPLANE_API_PORT."
            if by_port
            else "Name an address of this machine with --api-host or INFERPLANE_API_HOST.",
        ) from error
    listener.listen(API_BACKLOG)
    listener.setblocking(False)
    return listener


def _loopback(host: str) -> str:
    return "127.0.0.1" if host in ANY_HOST else host


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _simulated_socket(home: Path) -> Path:
    return socket_directory(home) / SIMULATED_SOCKET


async def _answer_simulated(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
    """What stands behind every simulated endpoint: an answer that says so."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    body = json.dumps({"error": NOTE, "reason": "Simulated"}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def _serve_at(path: Path, app: Any) -> AsyncIterator[None]:
    """Serve `app` at a unix socket in the folder that only its owner may enter."""
    make_private(path.parent)
    async with _serving(app, uds=str(path)):
        yield
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it stays as long as anything else is in it
        path.parent.rmdir()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: signals belong to `up`."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


@asynccontextmanager
async def _serve_api(app: Api, listener: socket.socket) -> AsyncIterator[None]:
    async with _serving(app, listener, before_end=app.end_streams):
        yield


@asynccontextmanager
async def _serving(
    app: Any,
    listener: socket.socket | None = None,
    *,
    uds: str | None = None,
    before_end: Callable[[], None] = lambda: None,
) -> AsyncIterator[None]:
    """Serve on a given listener, or at a unix socket of this path."""
    config = uvicorn.Config(
        app,
        uds=uds,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=API_SHUTDOWN_SECONDS,
        server_header=False,
        http=ApiProtocol,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=None if listener is None else [listener]))
    while not server.started:
        await asyncio.sleep(0.005)
        if task.done():
            task.result()
            raise Unavailable("the API server ended while starting")
    try:
        yield
    finally:
        before_end()
        server.should_exit = True
        await task
