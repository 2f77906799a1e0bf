"""A warm parent for model servers: it has imported the heavy libraries, and forks.

    python -m inferplane.modelserver.forkserver CONTROL_SOCKET --preload sklearn,xgboost,lightgbm,onnx

The parent imports, and looks up what each child would have to look up otherwise: which thread pools
the libraries have, and what a library finds out at its first use. It computes nothing, starts no thread
and opens no event loop, because a fork copies one thread only: a lock that another thread held would
stay locked in the child for ever. It counts its threads before each fork and refuses when there is more
than one. Libraries that start threads when they are imported (onnxruntime) are therefore left for the
child to import.

A fork copies the tables of a hundred megabytes, which takes tens of milliseconds, and longer the more children
share them. So one child, the *spare*, is forked ahead of time, while nobody waits: it holds nothing of the
parent's but a socket, blocks on it, and becomes the server of the next request. Without a spare (several
starts at once) a request is forked for when it comes. A spare ends with its parent.

The control socket is a unix stream; each request is one line of JSON, each answer too:

* `{"op": "hello"}` → `{"pid", "version", "preloaded": […], "skipped": {name: why}}`
* `{"op": "shutdown"}` → `{}`; the parent ends, its children go on.
* `{"op": "start"` (or no op)`, "config_path", "log_path", "env": {…}, "cwd", "cpu_affinity": […]|null,
  "rlimits": {"RLIMIT_NOFILE": n | [soft, hard]}}` with the lock's descriptor by SCM_RIGHTS
  → `{"pid"}`. The child leads its own session, has only the lock and its standard streams open, and
  the given environment as its whole environment.
* anything else → `{"error": "sentence"}`.

When a child ends, `exit.json` (`{"pid", "exit_code", "signal", "at"}`) appears beside its
configuration and its starter gets the datagram that the configuration names. Children outlive the
parent; whoever adopts them then learns of their end from the lock.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import os
import resource
import selectors
import signal
import socket
import stat
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from inferplane.modelserver.config import ConfigError, ServerConfig, read_config, thread_environment
from inferplane.modelserver.errors import ModelServerError
from inferplane.modelserver.status import Clock, notify, write_atomically
from inferplane.version import VERSION

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

EXIT_FILE = "exit.json"
REQUEST_BYTES_MAX = 1024 * 1024
#: Descriptors taken from one message; a request brings one, more are closed.
DESCRIPTORS_MAX = 4
STANDARD_STREAMS = 3
#: Pools of numerical libraries are this large in the parent: no thread but its own may be started.
POOL_THREADS = 1
EXIT_CRASHED = 1
#: The next spare is forked so long after a start, which has the machine to itself until then.
SPARE_SECONDS = 0.25
#: And so long after one that died by itself.
SPARE_RETRY_SECONDS = 30.0

#: What every server needs, whatever its model.
COMMON_MODULES = (
    "asyncio",
    "json",
    "numpy",
    "numpy.random",
    "uvloop",
    "httptools",
    "inferplane.modelserver.app",
    "inferplane.modelserver.batcher",
    "inferplane.modelserver.http",
    "inferplane.modelserver.http2",
    "inferplane.modelserver.main",
    "inferplane.modelserver.openai",
)
#: What typical models of a format are made of. onnxruntime is missing on purpose: see above.
FORMAT_MODULES: Mapping[str, tuple[str, ...]] = {
    "sklearn": (
        "joblib",
        "joblib.numpy_pickle",
        "threadpoolctl",
        "pandas",
        "sklearn",
        "sklearn.calibration",
        "sklearn.cluster",
        "sklearn.compose",
        "sklearn.decomposition",
        "sklearn.ensemble",
        "sklearn.feature_extraction.text",
        "sklearn.feature_selection",
        "sklearn.gaussian_process",
        "sklearn.impute",
        "sklearn.isotonic",
        "sklearn.kernel_ridge",
        "sklearn.linear_model",
        "sklearn.model_selection",
        "sklearn.multiclass",
        "sklearn.multioutput",
        "sklearn.naive_bayes",
        "sklearn.neighbors",
        "sklearn.neural_network",
        "sklearn.pipeline",
        "sklearn.preprocessing",
        "sklearn.svm",
        "sklearn.tree",
        "inferplane.modelserver.frameworks.sklearn",
    ),
    "xgboost": ("xgboost", "inferplane.modelserver.frameworks.xgboost"),
    "lightgbm": ("lightgbm", "inferplane.modelserver.frameworks.lightgbm"),
    "onnx": ("inferplane.modelserver.frameworks.onnx",),
    # The models of the commonest encoders and generators; others are imported by the child.
    "huggingface": (
        "torch",
        "transformers",
        "tokenizers",
        "safetensors.torch",
        "jinja2.sandbox",
        "transformers.generation.utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.bert.modeling_bert",
        "transformers.models.bert.tokenization_bert",
        "transformers.models.distilbert.modeling_distilbert",
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.models.llama.modeling_llama",
        "transformers.models.qwen2.modeling_qwen2",
        "transformers.models.roberta.modeling_roberta",
        "inferplane.modelserver.frameworks.huggingface",
    ),
}


class StartRequest(msgspec.Struct, frozen=True):
    """One request on the control socket. Only `start` uses more than `op`."""

    op: str = "start"
    config_path: str = ""
    log_path: str = ""
    env: dict[str, str] = {}
    cwd: str = "/"
    cpu_affinity: list[int] | None = None
    rlimits: dict[str, int | list[int]] = {}


class ExitRecord(msgspec.Struct, frozen=True):
    """How a child ended: an exit code, or the name of the signal that killed it. `at`: unix seconds."""

    pid: int
    exit_code: int | None
    signal: str
    at: float


class ForkError(ModelServerError):
    """A child could not be started; the message goes back to the caller."""


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Child:
    pid: int
    pidfd: int
    config: ServerConfig
    exit_file: Path


@dataclass(frozen=True, slots=True)
class _Spare:
    """A child that waits at the other end of `socket` for a request to serve."""

    pid: int
    pidfd: int
    socket: socket.socket


@dataclass(frozen=True, slots=True)
class Preloaded:
    """What was imported, and what was not and why. `pools` are the libraries' thread pools, if known."""

    modules: tuple[str, ...]
    skipped: Mapping[str, str]
    pools: ThreadpoolController | None = None


def preload(formats: Sequence[str]) -> Preloaded:
    """Import what servers of these formats need. What is not installed is skipped."""
    modules: list[str] = []
    skipped: dict[str, str] = {}
    wanted = [
        *COMMON_MODULES,
        *(name for format_name in formats for name in FORMAT_MODULES.get(format_name, ())),
    ]
    for name in wanted:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - a broken library must not take the others with it
            skipped[name] = f"{type(error).__name__}: {error}"
        else:
            modules.append(name)
    if "sklearn.preprocessing" in modules:
        try:
            look_up_plugins()
        except Exception as error:  # noqa: BLE001 - as above; children look for themselves then
            skipped["plugins"] = f"{type(error).__name__}: {error}"
    pools = find_pools() if "threadpoolctl" in modules else None
    gc.collect()
    # What is loaded now stays for good: keeping the collector away from it keeps its pages shared.
    gc.freeze()
    return Preloaded(tuple(modules), skipped, pools)


def look_up_plugins() -> None:
    """Let scikit-learn check an input, of one number.

    At its first check it asks every installed package whether it brings a kind of table, and remembers
    the answer. The check computes nothing to speak of.
    """
    from sklearn.preprocessing import Normalizer

    Normalizer().fit([[0.0]])


def find_pools() -> ThreadpoolController:
    """Look through everything that is loaded for thread pools: hundreds of files, so it is done once."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def thread_count() -> int:
    """How many threads this process has, native ones included."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208 - names are all that is wanted


class ForkServer:
    """Answers the control socket and reaps children. Single-threaded; everything blocks on one selector."""

    def __init__(self, control: Path, preloaded: Preloaded, clock: Clock) -> None:
        self._control = control
        self._preloaded = preloaded
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, _Child] = {}
        self._spare: _Spare | None = None
        self._spare_at: float | None = None  # when to fork one, on the monotonic clock
        self._running = True

    def run(self) -> None:
        """Serve until asked to shut down."""
        listener = _listen(self._control)
        self._selector.register(listener, selectors.EVENT_READ)
        self._spare_at = time.monotonic() + SPARE_SECONDS
        while self._running:
            for key, _ in self._selector.select(self._until_spare()):
                if key.fileobj is listener:
                    self._accept(listener)
                elif isinstance(key.data, _Connection):
                    self._read(key.data)
                elif isinstance(key.data, _Child):
                    self._reap(key.data)
                elif isinstance(key.data, _Spare) and key.data is self._spare:
                    self._end_spare(key.data)
                    self._spare_at = time.monotonic() + SPARE_RETRY_SECONDS
            if self._until_spare() == 0.0:
                self._make_spare()
        if self._spare is not None:
            self._end_spare(self._spare)
        listener.close()
        self._control.unlink(missing_ok=True)

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        self._selector.register(client, selectors.EVENT_READ, _Connection(client))

    def _read(self, connection: _Connection) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(connection.socket, 65536, DESCRIPTORS_MAX)
        except OSError:
            data, descriptors = b"", []
        connection.descriptors += descriptors
        connection.received += data
        if not data or len(connection.received) > REQUEST_BYTES_MAX:
            self._hang_up(connection)
            return
        while (end := connection.received.find(b"\n")) >= 0:
            line = bytes(connection.received[:end])
            del connection.received[: end + 1]
            answer = self._answer(line, connection)
            try:
                connection.socket.sendall(msgspec.json.encode(answer) + b"\n")
            except OSError:
                self._hang_up(connection)
                return

    def _hang_up(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()
        _close_all(connection.descriptors)

    def _answer(self, line: bytes, connection: _Connection) -> Mapping[str, Any]:
        try:
            request = msgspec.json.decode(line, type=StartRequest)
            if request.op == "hello":
                return self._hello()
            if request.op == "shutdown":
                self._running = False
                return {}
            if request.op != "start":
                return {"error": f"unknown op {request.op!r}; known are hello, start and shutdown"}
            pid = self._start(request, connection.descriptors)
        except (ForkError, ConfigError) as error:
            return {"error": error.message}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return {"error": f"the request cannot be read: {error}"}
        except OSError as error:
            return {"error": f"the server could not be started: {error}"}
        else:
            return {"pid": pid}
        finally:
            _close_all(connection.descriptors)  # the child has its own copy

    def _hello(self) -> Mapping[str, Any]:
        return {
            "pid": os.getpid(),
            "version": VERSION,
            "preloaded": list(self._preloaded.modules),
            "skipped": dict(self._preloaded.skipped),
            "threads": thread_count(),
            "children": sorted(self._children),
        }

    def _start(self, request: StartRequest, descriptors: Sequence[int]) -> int:
        threads = thread_count()
        if threads != 1:
            raise ForkError(f"this process has {threads} threads and cannot fork safely")
        config = read_config(request.config_path)
        limits = _limits(request.rlimits)
        log = os.open(request.log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            pid = self._hand_over(request, log, descriptors)
            if pid is None:
                pid = os.fork()
                if pid == 0:
                    _become_server(request, config, limits, log, descriptors, self._preloaded.pools)
        finally:
            os.close(log)
        child = _Child(pid, os.pidfd_open(pid), config, Path(request.config_path).with_name(EXIT_FILE))
        self._children[pid] = child
        self._selector.register(child.pidfd, selectors.EVENT_READ, child)
        self._spare_at = time.monotonic() + SPARE_SECONDS
        return pid

    def _until_spare(self) -> float | None:
        """Seconds until a spare is to be forked; None for not at all."""
        if self._spare_at is None or self._spare is not None:
            return None
        return max(0.0, self._spare_at - time.monotonic())

    def _make_spare(self) -> None:
        self._spare_at = None
        if thread_count() != 1:
            return  # the next start says so
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:  # without a spare, starts are forked for as they come
            self._spare_at = time.monotonic() + SPARE_RETRY_SECONDS
            return
        try:
            pid = os.fork()
            if pid == 0:
                _be_spare(theirs, self._preloaded.pools)
            spare = _Spare(pid, os.pidfd_open(pid), ours)
        except OSError:
            ours.close()
            self._spare_at = time.monotonic() + SPARE_RETRY_SECONDS
            return
        finally:
            theirs.close()
        self._spare = spare
        self._selector.register(spare.pidfd, selectors.EVENT_READ, spare)

    def _hand_over(self, request: StartRequest, log: int, descriptors: Sequence[int]) -> int | None:
        """Have the spare serve this; None when there is none, or none that can be told."""
        spare = self._spare
        if spare is None:
            return None
        try:
            socket.send_fds(spare.socket, [msgspec.json.encode(request)], [log, *descriptors[:1]])
        except OSError:  # it is gone, or the request is longer than a message may be
            self._end_spare(spare)
            return None
        self._forget_spare(spare)
        return spare.pid

    def _end_spare(self, spare: _Spare) -> None:
        self._forget_spare(spare)
        with contextlib.suppress(ProcessLookupError):
            os.kill(spare.pid, signal.SIGKILL)  # it is ours and not reaped: the number is still its own
        with contextlib.suppress(ChildProcessError):
            os.waitpid(spare.pid, 0)

    def _forget_spare(self, spare: _Spare) -> None:
        self._spare = None
        self._selector.unregister(spare.pidfd)
        os.close(spare.pidfd)
        spare.socket.close()

    def _reap(self, child: _Child) -> None:
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        self._children.pop(child.pid, None)
        try:
            _, status = os.waitpid(child.pid, 0)
        except ChildProcessError:
            return
        code = os.waitstatus_to_exitcode(status)
        record = ExitRecord(
            pid=child.pid,
            exit_code=code if code >= 0 else None,
            signal=signal.Signals(-code).name if code < 0 else "",
            at=self._clock(),
        )
        # The folder may be gone already, when a replica's files were removed before it was reaped.
        with contextlib.suppress(OSError):
            write_atomically(child.exit_file, msgspec.json.encode(record))
        notify(child.config.notify_socket, child.config.notify_key)


def _be_spare(requests: socket.socket, pools: ThreadpoolController | None) -> None:
    """The spare's side of the fork: wait for a request, or for the parent's end. Never returns."""
    try:
        os.setsid()
        kept = requests.fileno()
        os.closerange(STANDARD_STREAMS, kept)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        message, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES_MAX, DESCRIPTORS_MAX)
        requests.close()
        if message:
            request = msgspec.json.decode(message, type=StartRequest)
            config = read_config(request.config_path)
            log, *lock = descriptors
            _become_server(request, config, _limits(request.rlimits), log, lock, pools)
    except BaseException:  # noqa: BLE001 - nothing may climb out of the child into the parent's loop
        traceback.print_exc()
        os._exit(EXIT_CRASHED)
    os._exit(0)


def _become_server(
    request: StartRequest,
    config: ServerConfig,
    limits: Mapping[int, tuple[int, int]],
    log: int,
    descriptors: Sequence[int],
    pools: ThreadpoolController | None,
) -> None:
    """The child's side of the fork. Never returns."""
    code = EXIT_CRASHED
    try:
        if os.getsid(0) != os.getpid():  # a spare has one already
            os.setsid()
        _take_descriptors(log, descriptors)
        for which in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(which, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(request.env)
        os.environ.update(thread_environment(config.threads))
        os.chdir(request.cwd)
        if request.cpu_affinity is not None:
            os.sched_setaffinity(0, request.cpu_affinity)
        for number, pair in limits.items():
            resource.setrlimit(number, pair)
        reseed()
        from inferplane.modelserver.main import serve

        code = serve(config, pool_threads=_size_pools(pools, config))
    except BaseException:  # noqa: BLE001 - nothing may climb out of the child into the parent's loop
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _size_pools(pools: ThreadpoolController | None, config: ServerConfig) -> int:
    """Size the pools that came with the fork; returns how large they are now.

    Pools that are loaded from here on read their size from the environment. Several processes of one server
    are forked from this one, which must not have threads before: there, the loaded model decides.
    """
    if pools is None or config.command or config.worker_count > 1:
        return POOL_THREADS
    if config.threads != POOL_THREADS:
        pools.limit(limits=config.threads)
    return config.threads


def _take_descriptors(log: int, descriptors: Sequence[int]) -> None:
    """Keep the lock and the standard streams; close everything else that came with the fork."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what a model prints shows in the log at once
    kept = sorted(set(descriptors[:1]))
    low = STANDARD_STREAMS
    for number in kept:
        os.closerange(low, number)
        low = number + 1
    os.closerange(low, os.sysconf("SC_OPEN_MAX"))


def reseed() -> None:
    """Give the child random numbers of its own; a fork inherits the parent's state."""
    import random

    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()


def _limits(wanted: Mapping[str, int | list[int]]) -> dict[int, tuple[int, int]]:
    limits: dict[int, tuple[int, int]] = {}
    for name, value in wanted.items():
        number = getattr(resource, name, None) if name.startswith("RLIMIT_") else None
        if not isinstance(number, int):
            raise ForkError(f"there is no limit named {name!r}")
        pair = [value, value] if isinstance(value, int) else value
        if len(pair) != 2:
            raise ForkError(f"the limit {name} needs one number, or a soft and a hard one")
        limits[number] = (pair[0], pair[1])
    return limits


def _close_all(descriptors: list[int]) -> None:
    for number in descriptors:
        with contextlib.suppress(OSError):
            os.close(number)
    descriptors.clear()


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    listener.listen()
    return listener


def main(arguments: Sequence[str]) -> int:
    """Preload, listen, serve. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m inferplane.modelserver.forkserver")
    parser.add_argument("control", type=Path, help="path of the control socket")
    parser.add_argument("--preload", default="", help="formats to import for, separated by commas")
    options = parser.parse_args(arguments)
    # Before anything numerical is imported: OpenBLAS would start its pool then.
    os.environ.update(thread_environment(POOL_THREADS))
    preloaded = preload([name for name in options.preload.split(",") if name])
    from inferplane.modelserver.main import wall_clock

    ForkServer(options.control, preloaded, wall_clock).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
