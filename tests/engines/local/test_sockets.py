"""The folder for sockets: short, and ours."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from inferplane.engines.local.launch import fits_socket
from inferplane.engines.local.sockets import Hints, make_private, socket_directory
from inferplane.engines.port import EngineError


def test_a_long_home_gets_a_short_folder_of_its_own() -> None:
    long = Path("/" + "long/" * 40)
    assert socket_directory(Path("/home/u/.inferplane")) == Path("/home/u/.inferplane/s")
    assert socket_directory(long) == socket_directory(long) != socket_directory(long / "x")
    assert fits_socket(socket_directory(long))


def test_a_link_or_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(EngineError):
            make_private(tmp_path / name)


def test_a_folder_that_others_could_enter_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir(mode=0o755)
    make_private(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_hints_are_words_and_anything_else_is_ignored() -> None:
    folder = Path(f"/tmp/ip-hints-{os.getpid()}")
    folder.mkdir(mode=0o700)
    (folder / "notify.sock").touch()  # a stale one
    hints = Hints(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for word in (b"a1", b"a1", b"\xff\xfe", b"b2"):
            sender.sendto(word, str(hints.path))
    assert hints.read() == {"a1", "b2"}
    assert hints.read() == frozenset()
    hints.close()
    folder.rmdir()
