"""Folders that only their owner may enter, and short ones for unix sockets.

A socket's path must fit into the kernel's `sun_path`; where it would not, a folder in the system's
temporary folder stands in. Anybody may create names there, so it is refused if it is somebody else's.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

PRIVATE_FOLDER_MODE = 0o700
# `sun_path` takes 108 bytes, the last of which ends the string.
SOCKET_PATH_BYTES_MAX = 107


def fits_sockets(folder: Path, name_bytes: int) -> bool:
    """Whether sockets with names of up to `name_bytes` in `folder` have paths that the kernel accepts."""
    return len(os.fsencode(folder)) + 1 + name_bytes <= SOCKET_PATH_BYTES_MAX


def socket_folder(folder: Path, name_bytes: int) -> Path:
    """`folder` itself if sockets with names of up to `name_bytes` fit into it, else a short stand-in,
    named after this user and a digest of `folder`, so that the next run finds it. Makes nothing.
    """
    if fits_sockets(folder, name_bytes):
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"inferplane-{os.geteuid()}-{digest}"


def make_private(folder: Path) -> None:
    """Make a folder, and those above it, and close it to others. Raises OSError; PermissionError when
    what is there is no folder, or is somebody else's.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER_MODE)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(1, "it is not a folder of this user", str(folder))
    if stat.S_IMODE(found.st_mode) != PRIVATE_FOLDER_MODE:
        folder.chmod(PRIVATE_FOLDER_MODE)
