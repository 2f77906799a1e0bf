"""Unpacking archives that strangers made.

Only plain files and folders with relative paths come out. Anything that could reach outside the
folder, or make a later entry reach outside (`..`, absolute paths, symbolic and hard links, device
nodes), refuses the whole archive by name. Links are refused even where they would stay inside: a
model has no need of them, and a rule without exceptions has no holes. Every byte that comes out is
counted, because what an archive says about its sizes is also a stranger's word.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO

from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.failure import FetchFailed, bytes_text
from inferplane.modelstore.limits import StoreLimits
from inferplane.modelstore.origin import safe_name

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz")

_CHUNK = 1024 * 1024
_HEADER_BYTES_MAX = 16 * 1024 * 1024  # tarfile reads an extended header in one piece
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, NotImplementedError)


def is_archive(name: str) -> bool:
    """Whether a file of this name is unpacked."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def unpack(archive: Path, into: Path, limits: StoreLimits, make_room: Callable[[int], None]) -> None:
    """Unpack `archive` into the new folder `into`. Blocks.

    `make_room` is called with the bytes about to be written and raises FetchFailed when they do not
    fit. Raises FetchFailed: UnsafeArchive naming the entry, NotAModel for a damaged archive.
    """
    into.mkdir(parents=True)
    writer = _Writer(into, limits, make_room)
    try:
        if archive.name.lower().endswith(".zip"):
            _unpack_zip(archive, writer)
        else:
            _unpack_tar(archive, writer)
    except _BROKEN as error:
        raise FetchFailed(
            ReasonCode.NOT_A_MODEL, f"{archive.name} is not an archive that can be read: {_sentence(error)}"
        ) from error
    except RuntimeError as error:  # what zipfile raises for an encrypted entry
        raise FetchFailed(
            ReasonCode.NOT_A_MODEL, f"{archive.name} cannot be unpacked: {_sentence(error)}"
        ) from error
    if not writer.files:
        raise FetchFailed(ReasonCode.NOT_A_MODEL, f"{archive.name} holds no file")


def _unpack_zip(archive: Path, writer: _Writer) -> None:
    with zipfile.ZipFile(archive) as bundle:
        for entry in bundle.infolist():
            name = entry.filename.replace("\\", "/")
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind == stat.S_IFLNK:
                raise _unsafe(name, "is a symbolic link")
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                raise _unsafe(name, "is not a plain file")
            writer.admit(name, entry.file_size)
            if entry.is_dir() or name.endswith("/"):
                writer.folder(name)
            elif not _is_litter(name):
                with bundle.open(entry) as content:
                    writer.file(name, content)


def _unpack_tar(archive: Path, writer: _Writer) -> None:
    with archive.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        source = gzip.GzipFile(fileobj=raw) if zipped else raw
        with tarfile.open(fileobj=_Bounded(source), mode="r:") as bundle:
            for entry in bundle:
                _unpack_tar_entry(bundle, entry, writer)


def _unpack_tar_entry(bundle: tarfile.TarFile, entry: tarfile.TarInfo, writer: _Writer) -> None:
    if entry.issym():
        raise _unsafe(entry.name, "is a symbolic link")
    if entry.islnk():
        raise _unsafe(entry.name, "is a hard link")
    if not entry.isfile() and not entry.isdir():
        raise _unsafe(entry.name, "is a device or another special file")
    if entry.isdir():
        writer.admit(entry.name or ".", 0)
        writer.folder(entry.name)
        return
    writer.admit(entry.name, entry.size)
    if not _is_litter(entry.name):
        content = bundle.extractfile(entry)
        assert content is not None  # plain files always have content
        with content:
            writer.file(entry.name, content)


class _Writer:
    """Puts entries into one folder, counting."""

    def __init__(self, into: Path, limits: StoreLimits, make_room: Callable[[int], None]) -> None:
        self.files = 0
        self._into = into
        self._limits = limits
        self._make_room = make_room
        self._entries = 0
        self._announced = 0
        self._written = 0

    def admit(self, name: str, size: int) -> None:
        """Count an entry by what the archive says of it; also entries that are then left out, since
        passing over them costs time.
        """
        self._entries += 1
        self._announced += max(0, size)
        if self._entries > self._limits.archive_entries_max:
            raise _unsafe(name, f"is one more than the {self._limits.archive_entries_max} that are allowed")
        self._check_total(name, self._announced)

    def folder(self, name: str) -> None:
        """Make a folder; the archive's own top folder (`./`) is there already."""
        if name.strip("./") or ".." in name:
            self._make_folder(self._into / safe_name(name), name)

    def file(self, name: str, content: IO[bytes]) -> None:
        """Write one file."""
        target = self._into / safe_name(name)
        self._make_folder(target.parent, name)
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileExistsError as error:
            raise _unsafe(name, "is in the archive twice") from error
        self.files += 1
        with os.fdopen(descriptor, "wb") as file:
            while chunk := content.read(_CHUNK):
                self._written += len(chunk)
                self._check_total(name, self._written)
                self._make_room(len(chunk))
                file.write(chunk)

    def _make_folder(self, folder: Path, name: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except (FileExistsError, NotADirectoryError) as error:
            raise _unsafe(name, "lies inside what another entry says is a file") from error

    def _check_total(self, name: str, total: int) -> None:
        most = self._limits.archive_unpacked_bytes_max
        if total > most:
            raise _unsafe(name, f"makes the archive larger than {bytes_text(most)} unpacked")


class _Bounded(io.RawIOBase):
    """A seekable reader that refuses to read very much at once.

    tarfile reads long names and extended headers in one piece, as long as the archive says they are.
    """

    def __init__(self, source: gzip.GzipFile | BinaryIO) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0 or size > _HEADER_BYTES_MAX:
            raise FetchFailed(
                ReasonCode.UNSAFE_ARCHIVE, "the archive has an entry whose name or header is overlong"
            )
        return self._source.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()


def _is_litter(name: str) -> bool:
    """Files that macOS adds to archives; one is named like the model and would make it ambiguous."""
    segments = name.split("/")
    return "__MACOSX" in segments or segments[-1].startswith("._") or segments[-1] == ".DS_Store"


def _unsafe(name: str, why: str) -> FetchFailed:
    shown = "".join(c if c.isprintable() else "?" for c in name[:120])
    return FetchFailed(ReasonCode.UNSAFE_ARCHIVE, f"the entry “{shown}” {why}")


def _sentence(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:200] or type(error).__name__
