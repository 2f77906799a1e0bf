"""The store's folder: what lies where, and how it stays right when the process dies at any line.

    salt                        keys the fingerprints of credentials (mode 0600)
    refs/<uid>.json             which endpoint wants what, and what it has
    partial/<entry>/            a download under way: content/, download/ (archives), plan.json
    entries/<entry>/            a finished download: content/, meta.json; only ever appears whole
    trash/                      on its way out; emptied at start

A file is written beside its place and renamed into it; a folder becomes an entry by one rename and
stops being one by another. So a reader sees the old state or the new one, and what a kill leaves
behind is in `partial` (to resume) or in `trash` (to drop).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

READ_BYTES = 1024 * 1024
META = "meta.json"
PLAN = "plan.json"
CONTENT = "content"
DOWNLOAD = "download"

_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,199}", re.ASCII)


class StoreFolder:
    """Paths and primitive operations of the folder at `root`. Every method blocks; all are short
    except `empty_trash` and `sync_tree`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.refs = root / "refs"
        self.partials = root / "partial"
        self.entries = root / "entries"
        self.trash = root / "trash"

    def create(self) -> None:
        """Make the folders, private to this user."""
        for folder in (self.root, self.refs, self.partials, self.entries, self.trash):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def salt(self) -> bytes:
        """Random bytes made once per store."""
        path = self.root / "salt"
        with contextlib.suppress(FileNotFoundError):
            salt = path.read_bytes()
            if len(salt) == 32:
                return salt
        salt = os.urandom(32)
        _write_atomically(path, salt)
        return salt

    def ref_path(self, uid: str) -> Path:
        """Where the reference of `uid` is kept; ValueError for a uid that is no plain word."""
        if not _UID.fullmatch(uid):
            raise ValueError(f"not an endpoint uid: {uid!r}")
        return self.refs / f"{uid}.json"

    def discard(self, path: Path) -> None:
        """Take a file or folder out of sight at once; `empty_trash` frees its space."""
        with contextlib.suppress(FileNotFoundError):
            path.rename(self.trash / uuid.uuid4().hex)

    def empty_trash(self) -> None:
        """Delete what was discarded. What cannot be deleted stays for the next time."""
        for item in list(self.trash.iterdir()):
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    item.unlink()

    def clean_leftovers(self) -> None:
        """Drop half-written bookkeeping of an earlier process."""
        for folder in (self.root, self.refs):
            for leftover in folder.glob("*.tmp"):
                self.discard(leftover)
        for folder in self.entries.iterdir():
            if read_json(folder / META) is None:
                self.discard(folder)
        self.empty_trash()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace `path` with `value` in one step."""
    _write_atomically(path, json.dumps(value, sort_keys=True).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`; None when it is not there or is no JSON object."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def sync_tree(folder: Path) -> None:
    """Make everything under `folder` durable, so that a marked entry survives a loss of power."""
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def files_under(folder: Path) -> list[Path]:
    """Regular files under `folder`, sorted by relative path; links are not followed."""
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        found += [Path(parent) / name for name in names if not (Path(parent) / name).is_symlink()]
    return sorted(path for path in found if path.is_file())


class Stopped(Exception):
    """A long job in a thread was asked to end."""


def holds_more_files(folder: Path, *, most: int) -> bool:
    """Whether there are more than `most` files and folders under `folder`; looks no further than that."""
    count = 0
    for _, folders, names in os.walk(folder):
        count += len(folders) + len(names)
        if count > most:
            return True
    return False


def file_digest(path: Path, stopped: Callable[[], bool]) -> str:
    """`sha256:<hex>` of a file's bytes. Raises Stopped soon after `stopped` says so."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            if stopped():
                raise Stopped
            digest.update(chunk)
    return "sha256:" + digest.hexdigest()


def tree_digest(files: Iterable[tuple[str, str]]) -> str:
    """`sha256:<hex>` of a folder, from (relative path, hex sha256) pairs in any order.

    It is the digest of the lines `<hex>  <path>\\n` sorted by path: what `sha256sum` prints, hashed.
    """
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files))
    return "sha256:" + hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def path_digest(path: Path, stopped: Callable[[], bool]) -> str:
    """The digest of a file, or of a folder by the digests of its files. Raises Stopped."""
    if path.is_file():
        return file_digest(path, stopped)
    return tree_digest(
        (str(file.relative_to(path)), file_digest(file, stopped).removeprefix("sha256:"))
        for file in files_under(path)
    )


def path_bytes(path: Path) -> int:
    """Bytes in a file or in all files of a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in files_under(path))
    return path.stat().st_size


def only_child(folder: Path) -> Path:
    """`folder`, or the folder inside it that holds everything (archives are often packed so)."""
    while True:
        children = list(folder.iterdir())
        if len(children) != 1 or not children[0].is_dir():
            return folder
        folder = children[0]


def boot_id() -> str:
    """A word that is new after each start of the machine; "" where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def to_text(moment: datetime | None) -> str | None:
    """A moment as ISO text for the bookkeeping."""
    return None if moment is None else moment.isoformat()


def from_text(value: object) -> datetime | None:
    """The moment in ISO text; None for anything else."""
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _write_atomically(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".tmp")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    beside.replace(path)
