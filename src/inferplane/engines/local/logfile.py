"""Log files that somebody else writes: kept small, read from the end.

A server writes to an inherited descriptor, so its file cannot be swapped under it: renaming would
only make it write into the renamed file. It is opened for appending, though, so emptying the file
makes the next line land at its start. Rotation therefore copies the end of the file away and
empties it. What the server prints between the last copy and the emptying is lost; the copy is
repeated until nothing new was there, so that gap is a few microseconds. Between two rotations a
file can grow by what the server prints in one sweep; while no control plane runs, nobody rotates.
Rotation and reading happen in one thread, so a follower never meets a half-done rotation.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from inferplane.engines.local.launch import older_part

_CHUNK_BYTES = 1024**2


def rotate(log: Path, bytes_max: int) -> bool:
    """Move what is in a log larger than `bytes_max` to its older part, which it replaces.

    Of a log that grew past twice the bound, only the end is kept. Returns whether anything was
    moved. Raises OSError.
    """
    try:
        if os.stat(log).st_size <= bytes_max:  # noqa: PTH116 - of every server, again and again: pathlib takes as long again
            return False
    except FileNotFoundError:
        return False
    older = older_part(log)
    temporary = older.with_name(f".{older.name}")
    with log.open("r+b") as source:
        target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(target, "wb") as copy:
            source.seek(max(0, os.fstat(source.fileno()).st_size - 2 * bytes_max))
            while chunk := source.read(_CHUNK_BYTES):
                copy.write(chunk)
            temporary.replace(older)
            while chunk := source.read(_CHUNK_BYTES):
                copy.write(chunk)
            source.truncate(0)
    return True


def keep_previous(log: Path, previous: Path) -> None:
    """Make the log of the run that is over the previous one. Raises OSError."""
    if not log.exists():
        return
    older_part(previous).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        older_part(log).replace(older_part(previous))
    log.replace(previous)


def tail(log: Path, *, lines_max: int, bytes_max: int, line_bytes_max: int) -> list[str]:
    """The last lines of a log, its older part included; at most so many and so large."""
    content = _end_of(log, bytes_max)
    cut = len(content) >= bytes_max
    if not cut:
        older = _end_of(older_part(log), bytes_max - len(content))
        cut = len(older) + len(content) >= bytes_max
        content = older + content
    lines = content.split(b"\n")
    if cut and len(lines) > 1:
        del lines[0]  # begins somewhere in the middle of a line
    if lines and not lines[-1]:
        del lines[-1]
    return [_text(line, line_bytes_max) for line in lines[-lines_max:]] if lines_max > 0 else []


@dataclass(slots=True)
class Follower:
    """Reads what is added to a log, across rotations. Reading is cheap when nothing was added."""

    log: Path
    line_bytes_max: int
    _offset: int = 0
    _rotation: tuple[int, int] | None = None
    _rest: bytes = field(default=b"")

    def skip_to_end(self) -> None:
        """Begin with what is written from now on."""
        self._rotation = self._rotation_mark()
        with contextlib.suppress(FileNotFoundError):
            self._offset = self.log.stat().st_size

    def read(self) -> list[str]:
        """Whole lines added since the last call. Raises OSError when the log is unreadable."""
        added = b""
        mark = self._rotation_mark()
        if mark != self._rotation:
            # What we were reading was moved, with the rest that we had not read yet.
            self._rotation = mark
            added = _from(older_part(self.log), self._offset, -1)
            self._offset = 0
        if self.log.exists() and self.log.stat().st_size < self._offset:
            self._offset = 0
        new = _from(self.log, self._offset, _CHUNK_BYTES)
        self._offset += len(new)
        added += new
        *lines, self._rest = (self._rest + added).split(b"\n")
        if len(self._rest) > self.line_bytes_max:
            lines.append(self._rest)
            self._rest = b""
        return [_text(line, self.line_bytes_max) for line in lines]

    def rest(self) -> list[str]:
        """The last line, if it never got its line break. Call when nobody writes any more."""
        rest, self._rest = self._rest, b""
        return [_text(rest, self.line_bytes_max)] if rest else []

    def _rotation_mark(self) -> tuple[int, int] | None:
        with contextlib.suppress(FileNotFoundError):
            found = older_part(self.log).stat()
            return found.st_ino, found.st_mtime_ns
        return None


def _end_of(path: Path, bytes_max: int) -> bytes:
    if bytes_max <= 0:
        return b""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - bytes_max))
            return file.read(bytes_max)
    except FileNotFoundError:
        return b""


def _from(path: Path, offset: int, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(bytes_max)
    except FileNotFoundError:
        return b""


def _text(line: bytes, bytes_max: int) -> str:
    return line[:bytes_max].decode("utf-8", errors="replace").rstrip("\r")
