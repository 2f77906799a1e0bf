"""One model server's life: status, socket, model, probe, requests, drain.

`serve` may be called in a fresh interpreter or in a forked child: nothing happens when this module
is imported, no thread is started before `serve`, and everything the process needs is in its
`ServerConfig`. The port opens before the model is loaded, so that probes get an honest "not ready";
the model is loaded in a thread of its own, and ready is only said after it has answered a request
of its own making through the same path that callers use.

SIGTERM and SIGINT: no new connections, new requests on old connections are refused as "not
processed", accepted ones finish within `drain_seconds`, exit code 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import signal
import socket
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from inferplane.modelserver.config import ServerConfig, host_port, parse_config, read_config, unix_path
from inferplane.modelserver.errors import LoadError, LoadReason, ModelServerError, short
from inferplane.modelserver.frameworks import load_model
from inferplane.modelserver.status import PREDICTIONS, Clock, ModelInfo, ServerState, StatusWriter, TensorInfo

if TYPE_CHECKING:
    from inferplane.modelserver.app import App
    from inferplane.modelserver.http import Connections
    from inferplane.modelserver.openai import OpenAI
    from inferplane.modelserver.workers import Shared

__all__ = ["EXIT_CANNOT_SERVE", "ServerConfig", "parse_config", "read_config", "serve"]

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_CANNOT_SERVE = 3
BACKLOG = 2048
#: After the last answer, connections stay open this long for requests that are already on the wire,
#: so that they are refused in words instead of by a reset.
LINGER_SECONDS = 0.2
#: How long closing connections may take to hand their last bytes to the kernel.
FLUSH_SECONDS = 2.0
DRAIN_POLL_SECONDS = 0.01
#: Messages by which native libraries tell that an allocation failed.
MEMORY_WORDS = (
    "bad_alloc",
    "bad allocation",
    "cannot allocate memory",
    "unable to allocate",
    "out of memory",
)


def wall_clock() -> float:
    """Unix seconds, for the status file."""
    return time.time()  # noqa: TID251 - a program of its own, and this is its only clock


def serve(config: ServerConfig, *, pool_threads: int = 0, clock: Clock = wall_clock) -> int:
    """Serve until a signal ends it. Returns the process's exit code: 0, or 3 when it cannot serve.

    `pool_threads` is the size that libraries gave their thread pools when they were loaded, 0 when
    nobody knows; pools of another size than the configuration's are set to it.
    """
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    status = StatusWriter(config.status_file, config.notify_socket, config.notify_key, clock)
    status.write(ServerState.STARTING)
    try:
        listener = _listen(config)
    except ModelServerError as error:
        return give_up(status, error)
    if config.command:
        from inferplane.modelserver.outside import serve_outside

        return serve_outside(config, status, listener)
    if config.worker_count > 1:
        from inferplane.modelserver.workers import serve_many

        return serve_many(config, status, listener, pool_threads)
    return serve_alone(config, status, listener, pool_threads)


def serve_alone(
    config: ServerConfig,
    status: StatusWriter,
    listener: socket.socket,
    pool_threads: int,
    model: Any = None,
) -> int:
    """Serve from this process; `model` when it has been loaded already. Returns the exit code."""
    import uvloop

    def load() -> Loaded:
        return _load(config, pool_threads, model)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(config, status, listener, load))


def work(
    config: ServerConfig,
    listener: socket.socket,
    model: Any,
    index: int,
    shared: Shared,
    report: Callable[[Loaded | None, LoadError | None], None],
) -> int:
    """Be one of several workers on a loaded model, until SIGTERM. Returns the exit code."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_work(config, listener, model, index, shared, report))


@dataclass(frozen=True, slots=True)
class Loaded:
    model: Any
    info: ModelInfo
    seconds: float


async def _run(
    config: ServerConfig, status: StatusWriter, listener: socket.socket, load: Callable[[], Loaded]
) -> int:
    from inferplane.modelserver.app import App
    from inferplane.modelserver.http import Connections
    from inferplane.modelserver.openai import OpenAI

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = App(config)
    _begin_tracing(app)
    openai = OpenAI(app, wall_clock)
    connections = Connections(app, _http2)
    server = await _open(loop, connections, listener)
    status.write(ServerState.LOADING)
    log.info("loading %s model %s from %s", config.format, config.name, config.path)
    loading = loop.create_future()
    _in_thread(loop, loading, load)
    stopping = loop.create_task(stop.wait())
    await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
    info, load_seconds = ModelInfo(), 0.0
    if loading.done() and not stop.is_set():
        error = loading.exception()
        if error is not None:
            server.close()
            close_address(config)
            return give_up(status, error)
        loaded: Loaded = loading.result()
        info, load_seconds = loaded.info, loaded.seconds
        _begin_serving(app, openai, loaded)
        status.write(ServerState.READY, load_seconds=load_seconds, model=info)
        log.info("ready after %.3f s", loaded.seconds)
    await stopping
    log.info("stopping: %d requests in flight", app.in_flight)
    status.write(ServerState.DRAINING, load_seconds=load_seconds, model=info)
    server.close()
    close_address(config)
    await _drain(app, connections, config)
    log.info("stopped")
    return EXIT_OK


async def _work(
    config: ServerConfig,
    listener: socket.socket,
    model: Any,
    index: int,
    shared: Shared,
    report: Callable[[Loaded | None, LoadError | None], None],
) -> int:
    """`_run` for one of several: the first process has the status, the socket's file and the model."""
    from inferplane.modelserver.app import App
    from inferplane.modelserver.http import Connections
    from inferplane.modelserver.openai import OpenAI
    from inferplane.modelserver.workers import PUBLISH_SECONDS, Acceptor, added_up

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    app = App(config)
    _begin_tracing(app)
    openai = OpenAI(app, wall_clock)
    connections = Connections(app, _http2)
    loading = loop.create_future()
    _in_thread(loop, loading, lambda: _load(config, config.threads, model))
    stopping = loop.create_task(stop.wait())
    await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        return EXIT_OK
    error = loading.exception()
    if error is not None:
        report(None, _as_load_error(error))
        return EXIT_CANNOT_SERVE
    _begin_serving(app, openai, loading.result())
    app.add_up = lambda text: added_up(
        text if one == index else shared.text(one).decode() for one in range(shared.workers)
    )
    acceptor = Acceptor(listener, connections, shared, index)
    report(loading.result(), None)
    while not stop.is_set():
        shared.publish(index, app.metrics_text().encode())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PUBLISH_SECONDS):
                await stop.wait()
    acceptor.close()
    await _drain(app, connections, config)
    return EXIT_OK


def _begin_tracing(app: App) -> None:
    """Make spans of requests, if anybody collects them."""
    if app.config.otlp_endpoint:
        from inferplane.modelserver.tracing import Tracer

        app.tracer = Tracer(app.config.otlp_endpoint, app.config.name, wall_clock)
        app.tracer.start()


def _begin_serving(app: App, openai: OpenAI, loaded: Loaded) -> None:
    from inferplane.modelserver.app import Serving
    from inferplane.modelserver.batcher import Batcher, BatchLimits, BatchStats

    config = app.config
    limits = BatchLimits(config.max_batch_rows, config.queue_rows_max, config.max_batch_delay_ms / 1000)
    batcher = Batcher(
        loaded.model.predict,
        limits,
        batchable=loaded.model.signature.batchable,
        steady=getattr(loaded.model, "steady", False),
        stats=BatchStats(app.metrics.on_batch, app.metrics.on_late),
    )
    app.metrics.load_seconds = loaded.seconds
    app.serving = Serving(loaded.model, batcher)
    openai.model_ready()


async def _open(
    loop: asyncio.AbstractEventLoop, connections: Callable[[], asyncio.Protocol], listener: socket.socket
) -> asyncio.Server:
    if listener.family == socket.AF_UNIX:
        return await loop.create_unix_server(connections, sock=listener, backlog=BACKLOG)
    return await loop.create_server(connections, sock=listener, backlog=BACKLOG)


def _http2(connections: Connections) -> asyncio.Protocol:
    """The protocol for a connection that speaks HTTP/2; most servers never meet one."""
    from inferplane.modelserver.http2 import Http2Connection

    return Http2Connection(connections)


def load_only(config: ServerConfig, pool_threads: int) -> Any:
    """Load the model and compute nothing. Raises LoadError."""
    if config.memory_bytes_max is not None:
        limit_memory(config.memory_bytes_max)
    with _memory_errors_named(config):
        model = load_model(config.format, config.path, config.threads, config.args)
        if pool_threads != config.threads:
            _limit_threads(config.threads)
        return model


def _load(config: ServerConfig, pool_threads: int, model: Any = None) -> Loaded:
    """Load the model, unless it is, and make it answer. Runs in a thread of its own. Raises LoadError."""
    started = time.perf_counter()
    if model is None:
        model = load_only(config, pool_threads)
    with _memory_errors_named(config):
        example = _probe(model, config)
    signature = model.signature
    info = ModelInfo(
        example=example,
        inputs=tuple(TensorInfo(spec.name, str(spec.datatype), spec.shape) for spec in signature.inputs),
        outputs=tuple(TensorInfo(spec.name, str(spec.datatype), spec.shape) for spec in signature.outputs),
        protocols=getattr(model, "protocols", PREDICTIONS),
    )
    return Loaded(model, info, time.perf_counter() - started)


@contextlib.contextmanager
def _memory_errors_named(config: ServerConfig) -> Iterator[None]:
    try:
        yield
    except LoadError as error:
        if error.__cause__ is not None and _is_out_of_memory(error.__cause__):
            raise _out_of_memory(config) from error
        raise
    except MemoryError as error:
        raise _out_of_memory(config) from error


def _probe(model: Any, config: ServerConfig) -> str:
    """A V1 body that the model has just answered, or "" when its input cannot be guessed.

    An error that no input explains (the model was never fitted, a library's internals changed since
    it was saved) raises LoadError: such a model would fail on every request.
    """
    from inferplane.modelserver import v1
    from inferplane.modelserver.app import INPUT_ERRORS

    why: Exception | None = None
    for instances in model.examples():
        body = msgspec.json.encode({"instances": instances}, enc_hook=v1.encode_numpy)
        try:
            work = v1.parse(body, model.signature, probabilities=config.wants_probabilities)
            v1.render(model.predict(work.inputs, work.outputs), work)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - judged below, when no other example answers either
            why = error
            continue
        return body.decode()
    assert why is not None, "every model offers at least one example"
    unfitted = type(why).__name__ == "NotFittedError"
    broken = isinstance(why, AttributeError) or not isinstance(why, (*INPUT_ERRORS, ModelServerError))
    if unfitted or broken or model.signature.certain:
        told = "it was saved before it was fitted" if unfitted else f"{type(why).__name__}: {short(why)}"
        raise LoadError(
            LoadReason.MODEL_LOAD_FAILED, f"the model was loaded, but it cannot predict: {told}"
        ) from why
    log.warning("no example input could be guessed for this model (%s); ready without a probe", short(why))
    return ""


async def _drain(app: App, connections: Connections, config: ServerConfig) -> None:
    """Refuse what is new, finish what was accepted, then close what is left."""
    app.draining = True
    clock = asyncio.get_running_loop().time
    await _until(lambda: app.in_flight + connections.arriving == 0, clock() + config.drain_seconds)
    await asyncio.sleep(LINGER_SECONDS)
    await _until(lambda: app.in_flight == 0, clock() + FLUSH_SECONDS)
    connections.shut_down()
    await _until(lambda: not connections.open, clock() + FLUSH_SECONDS)
    if app.in_flight:
        log.warning(
            "%d requests did not finish within %.0f s and are cut off", app.in_flight, config.drain_seconds
        )
    if app.tracer is not None:
        await app.tracer.close()


async def _until(done: Callable[[], bool], deadline: float) -> None:
    """Poll: ending is rare, and an event would cost every request a look."""
    clock = asyncio.get_running_loop().time
    while not done() and clock() < deadline:  # noqa: ASYNC110 - see above
        await asyncio.sleep(DRAIN_POLL_SECONDS)


def close_address(config: ServerConfig) -> None:
    """Remove the socket file, so that nobody new comes."""
    path = unix_path(config)
    if path is not None:
        Path(path).unlink(missing_ok=True)


def give_up(status: StatusWriter, error: BaseException) -> int:
    """Say why this server cannot serve, in the status file and in the log. Returns the exit code."""
    told = _as_load_error(error)
    log.error("cannot serve: %s: %s", told.reason, told.message)
    status.write(ServerState.FAILED, reason=told.reason, message=told.message)
    return EXIT_CANNOT_SERVE


def _as_load_error(error: BaseException) -> LoadError:
    """The error as a reason and a sentence; its trace goes to the log if nobody expected it."""
    if isinstance(error, LoadError):
        return error
    if isinstance(error, ModelServerError):
        return LoadError(LoadReason.MODEL_LOAD_FAILED, error.message)
    traceback.print_exception(error, file=sys.stderr)
    return LoadError(LoadReason.MODEL_LOAD_FAILED, f"{type(error).__name__}: {short(error)}")


def _in_thread(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Loaded], work: Callable[[], Loaded]
) -> None:
    """Run `work` in a daemon thread: a load that hangs must not keep a stopping process alive."""

    def body() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to whoever waits
            outcome, value = future.set_exception, error
            _tell(loop, lambda: None if future.done() else outcome(value))
        else:
            _tell(loop, lambda: None if future.done() else future.set_result(result))

    threading.Thread(target=body, name="load", daemon=True).start()


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(callback)


# The socket.


def _listen(config: ServerConfig) -> socket.socket:
    """A listening socket at the configured address. Raises LoadError(PORT_UNAVAILABLE)."""
    path = unix_path(config)
    try:
        return _listen_unix(path) if path is not None else _listen_tcp(*host_port(config))
    except OSError as error:
        why = error.strerror or str(error)
        raise LoadError(
            LoadReason.PORT_UNAVAILABLE, f"the address {config.address} cannot be opened: {why}"
        ) from error


def _listen_tcp(host: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _listen_unix(path: str) -> socket.socket:
    _remove_stale(Path(path))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The mode is set between bind and listen: until then nobody can connect.
        listener.bind(path)
        Path(path).chmod(stat.S_IRUSR | stat.S_IWUSR)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket file that nobody listens on. Raises OSError(EADDRINUSE) when somebody does."""
    if not path.exists():
        return
    if not path.is_socket():
        raise OSError(errno.EEXIST, "a file that is no socket is in the way")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
    raise OSError(errno.EADDRINUSE, "another server listens there")


# Limits.


def limit_memory(extra_bytes: int) -> None:
    """Let the process allocate `extra_bytes` beyond what it holds now; more raises MemoryError.

    The limit is on private writable memory (RLIMIT_DATA), which is what a model's weights and
    batches take; address space as such is not limited, because libraries reserve it freely.
    """
    held = _private_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = held + extra_bytes
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))


def _private_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def _limit_threads(threads: int) -> None:
    """Size the pools of libraries that were loaded before the environment could say so (forked servers)."""
    try:
        import threadpoolctl
    except ImportError:
        return  # comes with scikit-learn; without it the environment has to do
    threadpoolctl.threadpool_limits(limits=threads)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in MEMORY_WORDS)


def _out_of_memory(config: ServerConfig) -> LoadError:
    if config.memory_bytes_max is None:
        return LoadError(LoadReason.OUT_OF_MEMORY, "there was not enough memory to load the model")
    return LoadError(
        LoadReason.OUT_OF_MEMORY,
        f"loading the model took more than the memory limit of {_size(config.memory_bytes_max)}",
    )


def _size(count: int) -> str:
    """A number of bytes for a person: what is less than a mebibyte is not rounded to none."""
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count} bytes"
