"""The composition root: the only module that knows every part, and the only owner of a clock.

`up` is what the command of that name runs; `run_platform` builds the house from settings, opens it,
and takes it down in the opposite order. Nothing else in the package starts anything by being imported.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import secrets
import signal
import socket
import string
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
import uvloop

from inferplane.api.app import Api, create_app
from inferplane.controllers.endpoints import EndpointController
from inferplane.controllers.runner import Runner
from inferplane.domain.errors import InferplaneError, Unavailable
from inferplane.engines.local.engine import LocalEngine
from inferplane.engines.port import Engine
from inferplane.gateway.publisher import GatewayConfig, RoutePublisher
from inferplane.modelstore.store import ModelStore
from inferplane.observability import configure_logging, get_logger
from inferplane.services.bootstrap import ensure_installation
from inferplane.services.context import GatewayAddress, Platform
from inferplane.settings import LoadedSettings, Settings
from inferplane.store.sql import Change, Store
from inferplane.version import VERSION

LOCAL_CLUSTER = "local"
API_BACKLOG = 2048
API_SHUTDOWN_SECONDS = 5

# Variables of ours that a model download may need; everything else stays out of the model store.
STORAGE_ENVIRONMENT = (
    "STORAGE_EMULATOR_HOST",
    "AWS_ENDPOINT_URL",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "HF_ENDPOINT",
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
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve_until_signal(loaded.settings))
    except InferplaneError as error:
        print(f"inferplane: {error.message}", file=sys.stderr)  # noqa: T201 - a command's last word
        if error.next_action:
            print(f"  {error.next_action}", file=sys.stderr)  # noqa: T201
        return 1


async def _serve_until_signal(settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with run_platform(settings) as running:
        print(running.ready_line, flush=True)  # noqa: T201 - the one line that scripts wait for
        await stop.wait()
        log.info("stopping")
    print("inferplane has stopped; nothing of it is left running", flush=True)  # noqa: T201
    return 0


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
    stop_servers: bool = True
    parts: dict[str, Callable[[], str]] = field(default_factory=dict)

    @property
    def ready_line(self) -> str:
        """One line, the same each time, for people and scripts."""
        host = self.settings.advertised_host
        return (
            f"inferplane is ready: api http://{host}:{self.api_port} "
            f"gateway http://{host}:{self.gateway_port} home {self.settings.home}"
        )


@asynccontextmanager
async def run_platform(settings: Settings) -> AsyncIterator[RunningPlatform]:
    """Bring everything up in order, and take it down in the opposite order.

    Raises Unavailable when the home is in use by another platform or a port by a stranger.
    """
    async with AsyncExitStack() as stack:
        _claim_home(settings.home, stack)
        api_socket = _bind(settings.api_host, settings.api_port)
        stack.callback(api_socket.close)
        api_port = int(api_socket.getsockname()[1])

        store = await Store.open(settings.effective_database_url)
        stack.push_async_callback(store.close)
        await ensure_installation(store, settings.owner_key_path, now, new_id, cluster=LOCAL_CLUSTER)

        models = ModelStore(
            settings.home / "models",
            clock=now,
            cache_bytes_max=settings.model_cache_bytes_max,
            environment={name: os.environ[name] for name in STORAGE_ENVIRONMENT if name in os.environ},
        )
        await models.start()
        stack.push_async_callback(models.close)

        engine = LocalEngine(home=settings.home, models=models, clock=now, fork_servers=settings.fork_servers)
        engines: dict[str, Engine] = {LOCAL_CLUSTER: engine}

        runner: Runner | None = None

        def wake(uid: str) -> None:
            if runner is not None:
                runner.wake(uid)

        publisher = RoutePublisher(
            GatewayConfig(
                directory=settings.home / "gateway",
                host=settings.gateway_host,
                port=settings.gateway_port,
                domain=settings.domain,
                api_address=f"{_loopback(settings.api_host)}:{api_port}",
            ),
            on_confirmed=wake,
        )
        await publisher.start()
        stack.push_async_callback(publisher.close, stop_gateway=True)
        await engine.start(wake)
        stack.push_async_callback(engine.close, stop_servers=True)

        controller = EndpointController(store, engines, publisher, now)
        await controller.restore_routes()
        publisher.open()
        runner = Runner(controller)
        stack.callback(store.subscribe(lambda change: _wake_for(change, wake)))
        await runner.start()
        stack.push_async_callback(runner.close)
        await controller.start_janitor()
        stack.push_async_callback(controller.close)

        platform = Platform(
            store=store,
            engines=engines,
            clock=now,
            gateway=GatewayAddress(
                scheme="http",
                host=settings.gateway_host,
                port=publisher.port,
                domain=settings.domain,
                advertised_host=settings.advertised_host,
            ),
            new_id=new_id,
        )
        app = create_app(
            platform, readiness=lambda: {"gateway": publisher.problem(), "store": ""}, version=VERSION
        )
        await stack.enter_async_context(_serve_api(app, api_socket))
        yield RunningPlatform(settings, api_port, publisher.port, store, engines)


def _wake_for(change: Change, wake: Callable[[str], None]) -> None:
    if change.endpoint_uid:
        wake(change.endpoint_uid)


def _claim_home(home: Path, stack: AsyncExitStack) -> None:
    """Make the home folder ours alone; the kernel gives it back however we end."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = stack.enter_context(
            contextlib.closing(os.fdopen(os.open(home / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)))
        )
    except OSError as error:
        raise Unavailable(
            f"the home folder {home} cannot be used: {error.strerror}",
            reason="HomeUnusable",
            field="home",
            next_action="Name another folder with --home or INFERPLANE_HOME.",
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise Unavailable(
            f"another platform already runs with the home folder {home}",
            reason="HomeInUse",
            field="home",
            next_action="Stop it first, or name another folder with --home or INFERPLANE_HOME.",
        ) from error


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
        raise Unavailable(
            f"the API cannot listen on {host}:{port}: {'the port is in use' if taken else error.strerror}",
            reason="PortUnavailable",
            field="api_port",
            next_action="Name another port with --api-port or INFERPLANE_API_PORT.",
        ) from error
    listener.listen(API_BACKLOG)
    listener.setblocking(False)
    return listener


def _loopback(host: str) -> str:
    return "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host  # noqa: S104 - a comparison, nothing is bound


class _Server(uvicorn.Server):
    """uvicorn without signal handlers of its own: signals belong to `up`."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


@asynccontextmanager
async def _serve_api(app: Api, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=API_SHUTDOWN_SECONDS,
        server_header=False,
        http="httptools",
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
        if task.done():
            task.result()
            raise Unavailable("the API server ended while starting")
    try:
        yield
    finally:
        app.end_streams()
        server.should_exit = True
        await task
