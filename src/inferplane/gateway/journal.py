"""What Envoy was told, so that the next control plane knows by which routes requests may still be sent.

One line of JSON for each change, appended before Envoy is told (and again when it has forgotten what was
before); the last line of an endpoint counts. The file is rewritten when it has grown to several times
what it must hold. A process that is killed leaves at most half a line at the end, which is skipped. It is
not synced to the disk: a machine that goes down takes its Envoy along.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from inferplane.gateway.places import PRIVATE_FILE_MODE
from inferplane.gateway.route_table import EndpointRoutes, Upstream

LINES_SPARE = 1000
LINES_PER_ENDPOINT = 4


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """What Envoy may know of one endpoint: the newest routes (None: to be forgotten), and replicas in use."""

    uid: str
    routes: EndpointRoutes | None = None
    usable: tuple[Upstream, ...] = ()

    def is_nothing(self) -> bool:
        """Whether Envoy knows nothing of it any more."""
        return self.routes is None and not self.usable


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Told)


class Journal:
    """The file and what is in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told: dict[str, Told] = {}
        self._lines = 0
        self._file: int | None = None

    def read(self) -> Mapping[str, Told]:
        """What an earlier process left, by endpoint uid."""
        self._told = {}
        with contextlib.suppress(OSError):
            for line in self._path.read_bytes().splitlines():
                with contextlib.suppress(msgspec.DecodeError):
                    told = _DECODER.decode(line)
                    self._told[told.uid] = told
        self._told = {uid: told for uid, told in self._told.items() if not told.is_nothing()}
        return self._told

    def open(self) -> None:
        """Begin to write, with what was read. Raises OSError."""
        self.close()
        draft = self._path.with_name(self._path.name + ".new")
        draft.unlink(missing_ok=True)
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, PRIVATE_FILE_MODE)
        try:
            _write(file, b"".join(_ENCODER.encode(told) + b"\n" for told in self._told.values()))
            draft.replace(self._path)
        except OSError:
            os.close(file)
            raise
        self._file = file
        self._lines = len(self._told)

    def note(self, told: Told) -> None:
        """Remember this of its endpoint. Raises OSError when it cannot be written."""
        if self._told.get(told.uid, Told(told.uid)) == told:
            return
        if self._file is None or self._lines > LINES_SPARE + LINES_PER_ENDPOINT * len(self._told):
            self.open()
        assert self._file is not None
        _write(self._file, _ENCODER.encode(told) + b"\n")
        self._lines += 1
        if told.is_nothing():
            self._told.pop(told.uid, None)
        else:
            self._told[told.uid] = told

    def close(self) -> None:
        """Stop writing; what is written stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
