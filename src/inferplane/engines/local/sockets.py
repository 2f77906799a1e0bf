"""The folder for unix sockets. Its path must be short, and nobody else may have made it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import stat
import tempfile
from pathlib import Path

from inferplane.engines.local.launch import NOTIFY_SOCKET_NAME, fits_socket
from inferplane.engines.port import EngineError

_DATAGRAM_BYTES_MAX = 256
_DATAGRAMS_AT_ONCE_MAX = 1000


def socket_directory(home: Path) -> Path:
    """`<home>/s` if socket paths in it are short enough, else a folder derived from the home's path."""
    inside = home / "s"
    if fits_socket(inside):
        return inside
    digest = hashlib.sha256(bytes(home)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"inferplane-{digest}"


def make_private(directory: Path) -> None:
    """Make a folder only its owner may enter. Raises EngineError if a stranger got there first."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise EngineError(f"{directory} is not a folder of this user; it must not be used for sockets")
        if stat.S_IMODE(found.st_mode) != 0o700:
            directory.chmod(0o700)
    except OSError as error:
        raise EngineError(f"cannot make the folder {directory}: {error.strerror}") from error


class Hints:
    """Receives the datagrams by which model servers say that something changed."""

    def __init__(self, directory: Path) -> None:
        """Bind the socket, replacing a stale one. Raises OSError."""
        self.path = directory / NOTIFY_SOCKET_NAME
        self.path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(str(self.path))
            self.path.chmod(0o600)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def read(self) -> frozenset[str]:
        """The keys that arrived; what is not text is ignored."""
        keys = set()
        for _ in range(_DATAGRAMS_AT_ONCE_MAX):
            try:
                keys.add(self._socket.recv(_DATAGRAM_BYTES_MAX).decode())
            except UnicodeDecodeError:
                continue
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    raise
                break
        return frozenset(keys)

    def close(self) -> None:
        """Take the socket away."""
        self._socket.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
