"""A model server that somebody else wrote, behind the socket of one of ours.

The program is started with a TCP port of the loopback interface (`PORT`, and `$(PORT)` in its arguments)
and may take its time. Until it is ready, callers get an honest 503; from then on their connections are
relayed to it byte for byte, streams and upgrades included. The engine sees what it sees of every server: a
status file, a socket, a liveness path, an exit. Liveness is answered here from the program's own
readiness: as long as it lives and answers, it is live.

The program runs with the rights of this process and the environment that the engine chose. It inherits
the replica's lock, so that whoever outlives this process is found and ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Mapping, Sequence

import msgspec

from inferplane.modelserver.config import ServerConfig, unix_path
from inferplane.modelserver.status import ModelInfo, ServerState, StatusWriter

log = logging.getLogger(__name__)

EXIT_OK = 0
EXIT_PROGRAM_ENDED = 3
#: Paths that tell of readiness, tried in turn: V2's, vLLM's and others', V1's.
READY_PATHS = ("/v2/health/ready", "/health", "/")
PROBE_SECONDS = 0.2
#: Once ready, it is asked less often; so many failures in a row and it is not live any more.
WATCH_SECONDS = 5.0
PROBE_TIMEOUT_SECONDS = 5.0
FAILURES_MAX = 3
FIRST_LINE_BYTES_MAX = 8192
FIRST_LINE_SECONDS_MAX = 30.0
CHUNK_BYTES = 256 * 1024
CONNECTIONS_MAX = 4096
_LIVE = b"GET /v2/health/live "
_VARIABLE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.\-]*)\)")


def serve_outside(config: ServerConfig, status: StatusWriter, listener: socket.socket) -> int:
    """Serve until a signal ends it or the program ends. Returns the exit code."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(config, status, listener))


async def _run(config: ServerConfig, status: StatusWriter, listener: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    began = time.perf_counter()
    port = _free_port()
    environment = {**os.environ, **variables(config, port)}
    argv = [expanded(word, environment) for word in (*config.command, *config.args)]
    status.write(ServerState.LOADING)
    log.info("starting %s on port %d", argv[0], port)
    try:
        # Descriptors marked as inheritable are passed on: that is the lock.
        program = await asyncio.create_subprocess_exec(*argv, env=environment, close_fds=False)
    except OSError as error:
        return _failed(status, f"the command {argv[0][:80]!r} cannot be started: {error.strerror}")
    relay = Relay(port)
    server = (
        await asyncio.start_unix_server(relay.serve, sock=listener)
        if _is_unix(listener)
        else (await asyncio.start_server(relay.serve, sock=listener))
    )
    ended, stopping = loop.create_task(program.wait()), loop.create_task(stop.wait())
    watching = loop.create_task(_watch(relay, config, status, began))
    await asyncio.wait((ended, stopping), return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    server.close()
    if (path := unix_path(config)) is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 - the address is a string
    if ended.done() and not stop.is_set():
        return _failed(status, f"the command ended with exit code {program.returncode}")
    status.write(ServerState.DRAINING)
    with contextlib.suppress(ProcessLookupError):
        program.terminate()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(config.drain_seconds):
            await asyncio.shield(ended)
    if not ended.done():
        log.warning("the command did not end within %.0f s and is killed", config.drain_seconds)
        with contextlib.suppress(ProcessLookupError):
            program.kill()
        await ended
    return EXIT_OK


def variables(config: ServerConfig, port: int) -> dict[str, str]:
    """What the program is told by its environment."""
    return {
        "PORT": str(port),
        "HOST": "127.0.0.1",
        "MODEL_NAME": config.name,
        "MODEL_PATH": config.path,
    }


def expanded(word: str, environment: Mapping[str, str]) -> str:
    """`$(NAME)` replaced as Kubernetes does: unknown names stay as they are, `$$` is one dollar."""

    def one(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return environment.get(match[1], match[0])

    return _VARIABLE.sub(one, word)


class Relay:
    """Connections of the socket, carried to the program's port once it is ready."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ready = False
        self.live = True
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side closes it."""
        self._open += 1
        try:
            async with asyncio.timeout(FIRST_LINE_SECONDS_MAX):
                first = await reader.read(FIRST_LINE_BYTES_MAX)
            if first.startswith(_LIVE):
                writer.write(_answer(200 if self.live else 503, {"live": self.live}))
                await writer.drain()
            elif not self.ready or self._open > CONNECTIONS_MAX:
                writer.write(_answer(503, {"error": "the model's own server is not ready"}))
                await writer.drain()
            elif first:
                await self._carry(first, reader, writer)
        except (OSError, TimeoutError):
            pass  # either side went away
        finally:
            self._open -= 1
            writer.close()

    async def _carry(self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            theirs, to_them = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.write(_answer(503, {"error": "the model's own server takes no connections"}))
            await writer.drain()
            return
        try:
            to_them.write(first)
            there = asyncio.create_task(_pump(reader, to_them))
            back = asyncio.create_task(_pump(theirs, writer))
            # When the program closes, the answer is over; when the caller does, half of it may be under way.
            done, _ = await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            if back not in done and there.exception() is None:
                await back
            there.cancel()
            back.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
        finally:
            to_them.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK_BYTES):
        sink.write(data)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()


async def _watch(relay: Relay, config: ServerConfig, status: StatusWriter, began: float) -> None:
    """Ask for readiness, for ever: quickly until it is ready, then now and then."""
    paths = (config.ready_path,) if config.ready_path else READY_PATHS
    failures = 0
    while True:
        answered = await _answers(relay.port, paths)
        if answered and not relay.ready:
            seconds = time.perf_counter() - began
            relay.ready = True
            info = ModelInfo(protocols=("openai",) if config.format == "vllm" else ("v1", "v2"))
            status.write(ServerState.READY, load_seconds=seconds, model=info)
            log.info("ready after %.3f s", seconds)
        failures = 0 if answered or not relay.ready else failures + 1
        relay.live = failures < FAILURES_MAX
        await asyncio.sleep(WATCH_SECONDS if relay.ready else PROBE_SECONDS)


async def _answers(port: int, paths: Sequence[str]) -> bool:
    """Whether one of the paths answers 2xx or 3xx."""
    for path in paths:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                if 200 <= await _status_of(port, path) < 400:
                    return True
        except (OSError, TimeoutError, ValueError, IndexError):
            continue
    return False


async def _status_of(port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n".encode())
        await writer.drain()
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()


def _answer(code: int, value: object) -> bytes:
    body = msgspec.json.encode(value)
    phrase = b"OK" if code == 200 else b"Service Unavailable"
    retry = b"" if code == 200 else b"retry-after: 1\r\n"
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\nconnection: close\r\n\r\n%b"
        % (code, phrase, retry, len(body), body)
    )


def _free_port() -> int:
    """A port that nobody uses now. Should another program take it first, ours ends and is started again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _is_unix(listener: socket.socket) -> bool:
    return listener.family == socket.AF_UNIX


def _failed(status: StatusWriter, message: str) -> int:
    log.error("%s", message)
    status.write(ServerState.FAILED, reason="ServerExited", message=message)
    return EXIT_PROGRAM_ENDED
