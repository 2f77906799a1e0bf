"""How a model server tells its starter where it stands: a small file, and a nudge.

The file is replaced as a whole, so a reader sees the old or the new state and never half of one.
The datagram that follows carries only a key; losing it costs the reader a little time.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import msgspec

Clock = Callable[[], float]


#: The protocols of every model of ours.
PREDICTIONS = ("v1", "v2")


class ServerState(StrEnum):
    """Where a model server is in its life."""

    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"


class TensorInfo(msgspec.Struct, frozen=True):
    """One input or output as V2 metadata shows it; -1 is a dimension that may vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelInfo(msgspec.Struct, frozen=True):
    """What is known about the model. `example` is a V1 body that it has answered, or "" if none."""

    example: str = ""
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    protocols: tuple[str, ...] = PREDICTIONS


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the status file. `at` is in unix seconds."""

    pid: int
    state: ServerState
    at: float
    reason: str = ""
    message: str = ""
    load_seconds: float = 0.0
    model: ModelInfo = ModelInfo()


class StatusWriter:
    """Writes the status file and sends the datagram. Either may be absent ("")."""

    def __init__(self, file: str, notify_socket: str, notify_key: str, clock: Clock) -> None:
        self._file = Path(file) if file else None
        self._notify_socket = notify_socket
        self._notify_key = notify_key
        self._clock = clock

    def write(
        self,
        state: ServerState,
        *,
        reason: str = "",
        message: str = "",
        load_seconds: float = 0.0,
        model: ModelInfo | None = None,
    ) -> None:
        """Replace the status and nudge the reader. Raises OSError when the file cannot be written."""
        status = Status(
            pid=os.getpid(),
            state=state,
            at=self._clock(),
            reason=reason,
            message=message,
            load_seconds=load_seconds,
            model=model or ModelInfo(),
        )
        if self._file is not None:
            write_atomically(self._file, msgspec.json.encode(status))
        notify(self._notify_socket, self._notify_key)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` as a whole, so that no reader sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


def notify(path: str, key: str) -> None:
    """Send `key` to the datagram socket at `path`; a reader who is not there is no error."""
    if not path:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(key.encode(), path)
