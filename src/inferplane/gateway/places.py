"""Where the gateway keeps what."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from inferplane.domain.errors import Unavailable
from inferplane.private_folders import PRIVATE_FOLDER_MODE, make_private, socket_folder

ADMIN_SOCKET = "admin.sock"
XDS_SOCKET = "xds.sock"
OTHER_XDS_SOCKET = "xds2.sock"
RESTART_SOCKETS = "h"
# Envoy makes the names of its own, h_udp_parent_<number>, from a base id that it draws; a negative product
# comes out as an unsigned number of 64 bits, with twenty digits.
SOCKET_NAME_BYTES_MAX = 33
PRIVATE_FILE_MODE = 0o600


@dataclass(frozen=True, slots=True)
class Places:
    """The gateway's files and sockets."""

    directory: Path
    admin_socket: Path

    @property
    def xds_socket(self) -> Path:
        """Where the control plane tells Envoy its configuration, beside the admin socket."""
        return self.admin_socket.with_name(XDS_SOCKET)

    @property
    def other_xds_socket(self) -> Path:
        """The same for an Envoy that takes over, so that the one that leaves is not told what is not for it."""
        return self.admin_socket.with_name(OTHER_XDS_SOCKET)

    @property
    def restart_sockets(self) -> Path:
        """How the names of those sockets begin by which an Envoy takes over from another."""
        return self.admin_socket.with_name(RESTART_SOCKETS)

    @property
    def base_id(self) -> Path:
        """The number by which an Envoy that takes over finds the other; Envoy writes it."""
        return self.directory / "base-id"

    @property
    def former_lock(self) -> Path:
        """Locked by an Envoy that another has taken over from, for as long as it lives."""
        return self.directory / "former.lock"

    @property
    def journal(self) -> Path:
        """What Envoy was told."""
        return self.directory / "told.jsonl"

    @property
    def bootstrap(self) -> Path:
        """What Envoy reads once, when it starts."""
        return self.directory / "bootstrap.json"

    @property
    def lock(self) -> Path:
        """Locked by Envoy for as long as it lives; the kernel unlocks it."""
        return self.directory / "envoy.lock"

    @property
    def running(self) -> Path:
        """What Envoy was last started with."""
        return self.directory / "running.json"

    @property
    def port(self) -> Path:
        """The port that was chosen when none was given."""
        return self.directory / "port"

    @property
    def log(self) -> Path:
        """What Envoy prints."""
        return self.directory / "envoy.log"

    @property
    def access_log(self) -> Path:
        """One line of JSON for each request."""
        return self.directory / "access.log"


def make_places(directory: Path) -> Places:
    """Create the gateway's folders, closed to others. Raises Unavailable with the folder and the cause."""
    try:
        sockets = socket_folder(directory, SOCKET_NAME_BYTES_MAX)
        directory.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER_MODE)
        directory.chmod(PRIVATE_FOLDER_MODE)
        if sockets != directory:
            make_private(sockets)
        return Places(directory, sockets / ADMIN_SOCKET)
    except OSError as error:
        raise Unavailable(
            f"the gateway's folder {directory} cannot be used: {error.strerror}",
            reason="HomeUnusable",
            next_action="Name a home folder that this user may write to, with --home or INFERPLANE_HOME.",
        ) from error


def remove_socket_folder(places: Places) -> None:
    """Leave no socket behind, nor the stand-in folder that it may have needed."""
    with contextlib.suppress(OSError):
        places.admin_socket.unlink(missing_ok=True)
        for left in places.admin_socket.parent.glob(f"{RESTART_SOCKETS}_*"):
            left.unlink(missing_ok=True)
        if places.admin_socket.parent != places.directory:
            places.admin_socket.parent.rmdir()
