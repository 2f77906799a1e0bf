"""The folder for unix sockets. Its path must be short, and nobody else may have made it."""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path

from inferplane import private_folders
from inferplane.engines.local.launch import NOTIFY_SOCKET_NAME, SOCKET_NAME_BYTES_MAX
from inferplane.engines.port import EngineError

_DATAGRAM_BYTES_MAX = 256
_DATAGRAMS_AT_ONCE_MAX = 1000


def socket_directory(home: Path) -> Path:
    """`<home>/s` if socket paths in it are short enough, else a folder derived from the home's path."""
    return private_folders.socket_folder(home / "s", SOCKET_NAME_BYTES_MAX)


def make_private(directory: Path) -> None:
    """Make a folder only its owner may enter. Raises EngineError if a stranger got there first."""
    try:
        private_folders.make_private(directory)
    except OSError as error:
        raise EngineError(f"cannot use the folder {directory}: {error.strerror}") from error


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
        except BaseException:  # whatever it was, it goes on up; only the descriptor must not stay
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
