"""Short folders for sockets, and folders that are ours."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from inferplane.private_folders import fits_sockets, make_private, socket_folder


def test_a_long_folder_gets_a_short_stand_in_of_its_own() -> None:
    short, long = Path("/home/u/.inferplane/s"), Path("/" + "long/" * 40)
    assert socket_folder(short, 40) == short
    assert socket_folder(long, 40) == socket_folder(long, 40) != socket_folder(long / "x", 40)
    assert fits_sockets(socket_folder(long, 40), 40)
    assert not fits_sockets(long, 1)


def test_what_somebody_else_could_have_put_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(OSError, match=name):
            make_private(tmp_path / name)
    (tmp_path / "open").mkdir(mode=0o755)
    make_private(tmp_path / "open")
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700
