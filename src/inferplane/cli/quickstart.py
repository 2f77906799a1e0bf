"""`inferplane quickstart`: from nothing to an answered prediction, by what a user would use.

The platform runs as a child, `inferplane up`, in a session of its own: Ctrl-C reaches only us, and we
end it in order. Everything else goes through the SDK and the endpoint's own try command. However this
ends, a platform that was started here is stopped before we return; one that already ran with the same
home is used and left alone.
"""

from __future__ import annotations

import errno
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import msgspec
import psutil

from inferplane.cli import iris, render
from inferplane.cli.output import Progress, note, print_result, progress
from inferplane.client import (
    ApiError,
    Client,
    ClientError,
    NotFoundError,
    ProtocolError,
    UnreachableError,
)
from inferplane.client.local import running_at
from inferplane.client.requests import origin_of
from inferplane.locks import is_locked, lock_holders
from inferplane.settings import Settings
from inferplane.wire.endpoints import EndpointDescription

ENDPOINT = "sklearn-iris"
WANTS_KEY = "key"
WORKSPACE = "default"
READY = re.compile(r"inferplane is ready: api (?P<api>\S+) gateway ")
START_SECONDS = 90.0
TRAIN_SECONDS = 120.0
RUNNING_SECONDS = 120.0
DELETE_SECONDS = 60.0
STOP_SECONDS = 60.0
TRY_SECONDS = 60.0
LOG_LINES_SHOWN = 8
STARTING = "starting the platform"
# The locks that the platform's own processes inherit, under the home folder.
LOCKS = (
    "gateway/envoy.lock",
    "forkserver/lock",
    "replicas/*/*/lock",
    "clusters/*/forkserver/lock",
    "clusters/*/replicas/*/*/lock",
)


class QuickstartError(ClientError):
    """A step of the quickstart failed; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Platform:
    """A platform that answers. `process` is None when it was there before us."""

    api: str
    process: subprocess.Popen[str] | None


def run(settings: Settings, flags: list[str], *, once: bool) -> None:
    """Do it all. `flags` are what `inferplane up` gets. Raises ClientError, KeyboardInterrupt."""
    folder = settings.home / "quickstart"
    model = folder / "model.joblib"
    with _interruptible(), ExitStack() as stack:
        training = stack.enter_context(_training(model))
        platform = stack.enter_context(_platform(settings, flags, folder / "platform.log"))
        key = settings.owner_key_path.read_text(encoding="utf-8").strip()
        client = stack.enter_context(Client(platform.api, key))
        _finish_training(training)
        endpoint = _deploy(client, model)
        answer = _try_it(client, endpoint)
        print_result(_report(platform, settings, endpoint, answer))
        if once:
            _delete(client)
        elif platform.process is None:
            note("The platform was running before; it goes on, and so does the endpoint.")
        else:
            _stay(platform.process)
    if once:
        shutil.rmtree(folder, ignore_errors=True)
        left = "" if platform.process is None else "; nothing is left running"
        print_result(f"It all worked{left}.")


# --- the platform -----------------------------------------------------------------------------------


@contextmanager
def _platform(settings: Settings, flags: list[str], log: Path) -> Iterator[Platform]:
    """The platform of this home: the one that runs, or one that runs until the end of the block."""
    running = _already_running(settings)
    if running is not None:
        note(f"A platform with this home runs already at {running.api}; using it.")
        yield running
        return
    for name, host, port in (
        ("API", settings.api_host, settings.api_port),
        ("gateway", settings.gateway_host, settings.gateway_port),
    ):
        _check_port(name, host, port)
    with _child(flags, log) as process, progress(STARTING) as shown:
        said = _wait_until_ready(process, log, shown)
        # What is advertised is for others; from here the API is reached at the address it listens on.
        platform = Platform(_api_at(settings.api_host, urlsplit(said).port or 80), process)
    seen = _family(process)
    try:
        yield platform
    finally:
        seen |= _family(process)
        _end(process, seen, settings.home)


def _already_running(settings: Settings) -> Platform | None:
    """The platform that runs with this home. Raises QuickstartError if another's has the API's port."""
    running = running_at(settings)
    if running:
        return Platform(running, None)
    if not settings.api_port:
        return None
    url = _api_at(settings.api_host, settings.api_port)
    if not _is_platform(url):
        return None
    raise QuickstartError(
        f"another platform, with another home, answers at {url}",
        reason="PortInUse",
        field="--api-port",
        next_action="Stop it, or name other ports with --api-port and --gateway-port.",
    )


def _api_at(bound: str, port: int) -> str:
    """The URL by which this machine reaches an API that listens on `bound`."""
    host = "127.0.0.1" if bound in {"", "0.0.0.0", "::"} else bound  # noqa: S104 - a comparison
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _is_platform(url: str) -> bool:
    """Whether an Inferplane answers at `url`, ready or not."""
    try:
        with Client(url, "") as client:
            client.readiness()
    except (UnreachableError, ProtocolError):
        return False
    except ApiError as error:
        return error.reason == "NotReady"
    return True


def _check_port(name: str, host: str, port: int) -> None:
    if not port:
        return
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            said = (error.strerror or "").lower()
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                variable = f"INFERPLANE_{name.upper()}_HOST"
                raise QuickstartError(
                    f"the {name} cannot listen at {host}: {said}",
                    reason="PortUnavailable",
                    field=variable,
                    next_action=f"Name an address of this machine in {variable}.",
                ) from error
            flag = f"--{name.lower()}-port"
            raise QuickstartError(
                f"port {port}, where the {name} is to listen, cannot be used: {said}",
                reason="PortInUse",
                field=flag,
                next_action=f"Stop what uses it, or name another port with {flag}.",
            ) from error


@contextmanager
def _child(flags: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """`inferplane up` as a child; killed if the block fails."""
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "inferplane", "up", *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    except BaseException:  # Ctrl-C too: the platform has a session of its own and would live on
        _stop(process)
        raise


def _wait_until_ready(process: subprocess.Popen[str], log: Path, shown: Progress) -> str:
    """Where the API is, in the platform's own words. Raises QuickstartError."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(process, lines), daemon=True).start()
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        shown.show(STARTING, STARTING)
        try:
            line = lines.get(timeout=0.2)
        except queue.Empty:
            continue
        if line is None:
            raise QuickstartError(
                _last_words(log) or "the platform ended while starting", reason="PlatformEnded"
            )
        if match := READY.match(line):
            return match["api"]
    raise QuickstartError(
        f"the platform did not become ready within {START_SECONDS:g} s",
        reason="StartTimeout",
        next_action=f"See {log}.",
    )


def _read_lines(process: subprocess.Popen[str], lines: queue.SimpleQueue[str | None]) -> None:
    """Until its end, so that the platform never waits for a reader of its words."""
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put(None)


def _last_words(log: Path) -> str:
    """What `up` said before it ended: its own sentence, else the end of its log."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.removeprefix("inferplane: ") for line in lines if line.startswith("inferplane: ")]
    return said[-1] if said else "\n".join(lines[-LOG_LINES_SHOWN:])


def _family(process: subprocess.Popen[str]) -> set[psutil.Process]:
    """The platform's process and all below it."""
    try:
        root = psutil.Process(process.pid)
        return {root, *root.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def _end(process: subprocess.Popen[str], family: set[psutil.Process], home: Path) -> None:
    """Stop the platform and see to it that nothing of it is left. Raises QuickstartError if it was hard."""
    with _undisturbed(), progress("stopping the platform"):
        code = _stop(process)
        left = [each for each in _alive(family) if each.pid != process.pid]
        left += [each for each in _lock_holders(home) if each not in left]
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
    for stranger in sorted(_strangers(home), key=lambda each: each.pid):
        note(
            f"Process {stranger.pid} was started with something under {home}; it is not ours and was left alone."
        )
    if left:
        names = ", ".join(f"{each.pid}" for each in left)
        raise QuickstartError(
            f"the platform left processes behind, which were killed: {names}", reason="ProcessesLeft"
        )
    if code != 0:
        raise QuickstartError(f"the platform ended with exit code {code}", reason="PlatformFailed")


def _stop(process: subprocess.Popen[str]) -> int:
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _alive(family: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run; psutil knows a reused process id from the process that had it."""
    found = []
    for each in family:
        with suppress(psutil.NoSuchProcess):
            if each.is_running() and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


def _lock_holders(home: Path) -> list[psutil.Process]:
    """What holds one of the platform's locks under the home folder: gateway, fork server, model servers.

    None when the home is locked itself: then another platform has started there, and they are its own.
    """
    if is_locked(home / "up.lock"):
        return []
    pids = sorted({pid for pattern in LOCKS for lock in home.glob(pattern) for pid in lock_holders(lock)})
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found.append(psutil.Process(pid))
    return _alive(found)


def _strangers(home: Path) -> list[psutil.Process]:
    """Processes with a file of the gateway or of a replica on their command lines, someone's `tail` perhaps."""
    folders = (home / "gateway", home / "replicas")
    found = []
    for each in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if any(Path(part).is_relative_to(folder) for part in each.cmdline() for folder in folders):
                found.append(each)
    return _alive(found)


# --- the model --------------------------------------------------------------------------------------


@contextmanager
def _training(model: Path) -> Iterator[subprocess.Popen[str]]:
    """Train beside everything else; ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", iris.__name__, str(model)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def _finish_training(process: subprocess.Popen[str]) -> None:
    with progress("training a scikit-learn model on the iris data set"):
        try:
            _, said = process.communicate(timeout=TRAIN_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise QuickstartError(
                f"training took longer than {TRAIN_SECONDS:g} s", reason="TrainingTimeout"
            ) from error
    if process.returncode == iris.MISSING_EXIT_CODE:
        raise QuickstartError(
            f"scikit-learn is needed to train the example: {said.strip()}",
            reason="MissingExtra",
            next_action="Install it with: pip install 'inferplane[sklearn]'",
        )
    if process.returncode != 0:
        last = said.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise QuickstartError(f"training failed: {last[0]}", reason="TrainingFailed")


# --- the endpoint -----------------------------------------------------------------------------------


def _deploy(client: Client, model: Path) -> EndpointDescription:
    """The endpoint, made anew: one from an earlier run is deleted first. Raises QuickstartError when
    there is one of this name that somebody else has made.
    """
    with suppress(NotFoundError):
        before = client.describe(ENDPOINT, workspace=WORKSPACE)
        if before.model.storage_uri.removeprefix("file://") != str(model):
            raise QuickstartError(
                f"there is an endpoint {ENDPOINT} in workspace {WORKSPACE} already, and it is not the quickstart's:"
                f" it serves {before.model.storage_uri or 'a model from a manifest'}",
                reason="EndpointExists",
                next_action=f"Delete it first (inferplane delete {ENDPOINT}), or name another home with --home.",
            )
        client.delete(ENDPOINT, workspace=WORKSPACE)
        with progress(f"deleting {ENDPOINT} of an earlier run") as shown:
            client.wait_until_deleted(
                ENDPOINT, DELETE_SECONDS, workspace=WORKSPACE, progress=_reporter(shown)
            )
    client.deploy(ENDPOINT, format="sklearn", uri=str(model), workspace=WORKSPACE)
    with progress(f"{ENDPOINT}: accepted") as shown:
        return client.wait_until_running(
            ENDPOINT, RUNNING_SECONDS, workspace=WORKSPACE, progress=_reporter(shown)
        )


def _try_it(client: Client, endpoint: EndpointDescription) -> str:
    """The model's answer to the endpoint's own try command, run as printed."""
    note(f"{endpoint.endpoint_name} is Running at {endpoint.endpoint}")
    command = "\n".join(endpoint.try_command)
    key = _endpoint_key(client) if endpoint.access == WANTS_KEY else ""
    if shutil.which("curl") is None:
        note("curl is not installed; sending the same request from here.")
        answer = client.predict(ENDPOINT, endpoint.model.example.encode(), workspace=WORKSPACE, key=key)
        return msgspec.json.encode(answer).decode()
    note(f"Its own try command:\n\n{command}\n")
    try:
        # The command is the product's own text, meant to be pasted into a shell: so it is given to one.
        ran = subprocess.run(
            ["sh", "-c", command],
            capture_output=True,
            text=True,
            timeout=TRY_SECONDS,
            check=False,
            env={**os.environ, "INFERPLANE_ENDPOINT_KEY": key} if key else None,
        )
    except subprocess.TimeoutExpired as error:
        raise QuickstartError(
            f"the try command did not end within {TRY_SECONDS:g} s", reason="TryFailed"
        ) from error
    if ran.returncode != 0 or '"predictions"' not in ran.stdout:
        said = ran.stdout.strip() or ran.stderr.strip()[-500:]
        raise QuickstartError(f"the try command brought no prediction: {said}", reason="TryFailed")
    return ran.stdout.strip()


def _endpoint_key(client: Client) -> str:
    """A key for this endpoint, good for a day; shown, so that the command can be tried again."""
    made = client.create_endpoint_key("quickstart", validity="1d", workspace=WORKSPACE, endpoints=[ENDPOINT])
    note(
        "The gateway is open to others, so the endpoint wants a key. This one is good for a day:\n\n"
        f"export INFERPLANE_ENDPOINT_KEY={made.endpoint_key}\n"
    )
    return made.endpoint_key


def _delete(client: Client) -> None:
    client.delete(ENDPOINT, workspace=WORKSPACE)
    with progress(f"{ENDPOINT}: deleting") as shown:
        client.wait_until_deleted(ENDPOINT, DELETE_SECONDS, workspace=WORKSPACE, progress=_reporter(shown))


def _reporter(shown: Progress) -> Callable[[EndpointDescription], None]:
    def report(endpoint: EndpointDescription) -> None:
        shown.show(f"{endpoint.status} {endpoint.reason}", render.endpoint_step(endpoint))

    return report


def _report(platform: Platform, settings: Settings, endpoint: EndpointDescription, answer: str) -> str:
    return render.pairs(
        [
            ("Prediction", answer),
            ("API", f"{platform.api}/api/v1 (described at {platform.api}/docs)"),
            ("Console", f"{platform.api}/"),
            ("Gateway", origin_of(endpoint.path_endpoint)),
            ("Endpoint", endpoint.endpoint),
            ("Owner key", str(settings.owner_key_path)),
        ]
    )


def _stay(process: subprocess.Popen[str]) -> None:
    """Until Ctrl-C, which is how this is meant to end."""
    note("The platform keeps running; Ctrl-C stops everything.")
    try:
        code = process.wait()
    except KeyboardInterrupt:
        note("")
        return
    raise QuickstartError(f"the platform ended by itself with exit code {code}", reason="PlatformEnded")


# --- signals ----------------------------------------------------------------------------------------


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end us in order, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
        raise KeyboardInterrupt

    with _handling({signal.SIGTERM: interrupt, signal.SIGHUP: interrupt}):
        yield


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not leave half of it running."""
    with _handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)):
        yield


@contextmanager
def _handling(handlers: dict[signal.Signals, object]) -> Iterator[None]:
    before = {}
    for number, handler in handlers.items():
        before[number] = signal.signal(number, handler)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
