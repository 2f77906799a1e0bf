"""Archives made by people who mean harm, and by people who use a Mac."""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.archive import is_archive, unpack
from inferplane.modelstore.failure import FetchFailed
from inferplane.modelstore.limits import StoreLimits
from inferplane.modelstore.origin import safe_name

Build = Callable[[], bytes]


def tar_of(*entries: tarfile.TarInfo, mode: str = "w", content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as bundle:  # type: ignore[call-overload]
        for entry in entries:
            if entry.isfile():
                entry.size = len(content)
                bundle.addfile(entry, io.BytesIO(content))
            else:
                bundle.addfile(entry)
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    made.linkname = target
    made.mode = 0o755 if kind == tarfile.DIRTYPE else 0o6777
    return made


def zip_of(*entries: tuple[str, bytes, int]) -> bytes:
    """Entries of (name, content, Unix mode)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            bundle.writestr(info, content)
    return buffer.getvalue()


def huge_header() -> bytes:
    """A tar whose extended header says that it is 1 GiB long."""
    header = entry("pax", tarfile.XHDTYPE)
    header.size = 1 << 30
    return header.tobuf(tarfile.USTAR_FORMAT) + b"\0" * 10_240


def lying_zip() -> bytes:
    """A zip that says its entry is small and holds 50 MB of zeros."""
    content = bytearray(zip_of(("m.bin", b"\0" * 50_000_000, 0o644)))
    directory = content.rfind(b"PK\x01\x02")
    for place in (22, directory + 24):
        struct.pack_into("<I", content, place, 10)
    return bytes(content)


UNSAFE: list[tuple[str, str, Build, str]] = [
    ("parent", "a.tar", lambda: tar_of(entry("../evil")), "../evil"),
    ("parent inside", "a.tar", lambda: tar_of(entry("ok/../../evil")), "ok/../../evil"),
    ("parent folder", "a.tar", lambda: tar_of(entry("..", tarfile.DIRTYPE)), ".."),
    ("absolute", "a.tar", lambda: tar_of(entry("/tmp/evil")), "/tmp/evil"),
    ("absolute folder", "a.tgz", lambda: tar_of(entry("/tmp/evil", tarfile.DIRTYPE), mode="w:gz"), "/tmp/evil"),
    ("symlink out", "a.tar", lambda: tar_of(entry("link", tarfile.SYMTYPE, "/etc")), "link"),
    ("symlink in", "a.tar", lambda: tar_of(entry("m"), entry("link", tarfile.SYMTYPE, "m")), "link"),
    ("hard link", "a.tar.gz", lambda: tar_of(entry("hard", tarfile.LNKTYPE, "/etc/passwd"), mode="w:gz"), "hard"),
    ("fifo", "a.tar", lambda: tar_of(entry("pipe", tarfile.FIFOTYPE)), "pipe"),
    ("character device", "a.tar", lambda: tar_of(entry("null", tarfile.CHRTYPE)), "null"),
    ("block device", "a.tar", lambda: tar_of(entry("sda", tarfile.BLKTYPE)), "sda"),
    ("twice", "a.tar", lambda: tar_of(entry("m"), entry("./m")), "./m"),
    ("below a file", "a.tar", lambda: tar_of(entry("m"), entry("m/n")), "m/n"),
    ("file over folder", "a.tar", lambda: tar_of(entry("m/n"), entry("m")), "m"),
    ("control character", "a.tar", lambda: tar_of(entry("m\n2024 forged log line")), "m?2024"),
    ("overlong name", "a.tar", lambda: tar_of(entry("m" * 300)), "mmm"),
    ("overlong header", "a.tar", huge_header, "overlong"),
    ("too many", "a.tar", lambda: tar_of(*(entry(f"f{i}") for i in range(12))), "f10"),
    ("too large", "a.tgz", lambda: tar_of(entry("zeros"), mode="w:gz", content=b"\0" * 2_000_000), "zeros"),
    ("litter too large", "a.tgz", lambda: tar_of(entry("._z"), mode="w:gz", content=b"\0" * 2_000_000), "._z"),
    ("zip parent", "a.zip", lambda: zip_of(("../evil", b"x", 0)), "../evil"),
    ("zip backslash parent", "a.zip", lambda: zip_of(("..\\evil", b"x", 0)), "../evil"),
    ("zip absolute", "a.zip", lambda: zip_of(("/tmp/evil", b"x", 0)), "/tmp/evil"),
    ("zip symlink", "a.zip", lambda: zip_of(("link", b"/etc", stat.S_IFLNK | 0o777)), "link"),
    ("zip device", "a.zip", lambda: zip_of(("dev", b"", stat.S_IFCHR | 0o666)), "dev"),
    ("zip twice", "a.zip", lambda: zip_of(("m", b"x", 0), ("./m", b"y", 0)), "./m"),
    ("zip too large", "a.zip", lambda: zip_of(("zeros", b"\0" * 2_000_000, 0)), "zeros"),
]  # fmt: skip

DAMAGED: list[tuple[str, str, Build]] = [
    ("no zip", "a.zip", lambda: b"not a zip at all"),
    ("no tar", "a.tar", lambda: b"not a tar at all" * 100),
    ("no gzip", "a.tgz", lambda: b"\x1f\x8bnot gzip" * 100),
    ("cut gzip", "a.tgz", lambda: tar_of(entry("m"), mode="w:gz", content=os.urandom(100_000))[:50_000]),
    ("cut tar", "a.tar", lambda: tar_of(entry("m"), content=b"x" * 100_000)[:50_000]),
    ("cut zip", "a.zip", lambda: zip_of(("m", b"x" * 1000, 0))[:-10]),
    ("wrong checksum", "a.zip", lambda: zip_of(("m", b"x" * 1000, 0)).replace(b"m", b"m", 1)[:35] + b"zz"),
    ("lying zip", "a.zip", lying_zip),
    ("empty tar", "a.tar", lambda: tar_of()),
    ("folders only", "a.zip", lambda: zip_of(("d/", b"", stat.S_IFDIR | 0o755))),
]  # fmt: skip

LIMITS = StoreLimits(archive_entries_max=10, archive_unpacked_bytes_max=1_000_000)


def no_limit(_: int) -> None:
    return None


def everything_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("name", "build", "named"), [case[1:] for case in UNSAFE], ids=[case[0] for case in UNSAFE]
)
def test_an_archive_that_could_reach_out_is_refused_by_the_entrys_name(
    tmp_path: Path, name: str, build: Build, named: str
) -> None:
    archive = tmp_path / "in" / name
    archive.parent.mkdir()
    archive.write_bytes(build())
    with pytest.raises(FetchFailed) as refused:
        unpack(archive, tmp_path / "deep" / "out", LIMITS, no_limit)
    assert refused.value.reason is ReasonCode.UNSAFE_ARCHIVE
    assert named in refused.value.message
    assert all(path.startswith(("in/", "deep/out/")) for path in everything_under(tmp_path))
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize(("name", "build"), [case[1:] for case in DAMAGED], ids=[case[0] for case in DAMAGED])
def test_a_damaged_archive_is_no_model(tmp_path: Path, name: str, build: Build) -> None:
    archive = tmp_path / name
    archive.write_bytes(build())
    with pytest.raises(FetchFailed) as refused:
        unpack(archive, tmp_path / "out", LIMITS, no_limit)
    assert refused.value.reason is ReasonCode.NOT_A_MODEL
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.is_file()) < 1_000_000


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz", "a.tar.gz", "A.ZIP"])
def test_plain_files_come_out_with_plain_rights(tmp_path: Path, name: str) -> None:
    if name.lower().endswith(".zip"):
        packed = zip_of(("./d/", b"", stat.S_IFDIR | 0o755), ("d\\m.bin", b"x", 0o6777), ("._m.bin", b"j", 0))
    else:
        packed = tar_of(
            entry("./", tarfile.DIRTYPE),
            entry("./d", tarfile.DIRTYPE),
            entry("./d//m.bin"),
            entry("__MACOSX/d/._m.bin"),
            mode="w:gz" if "gz" in name else "w",
        )
    archive = tmp_path / name
    archive.write_bytes(packed)
    unpack(archive, tmp_path / "out", LIMITS, no_limit)
    assert everything_under(tmp_path / "out") == ["d/m.bin"]
    made = tmp_path / "out" / "d" / "m.bin"
    assert made.read_bytes() == b"x"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600


def test_what_does_not_fit_stops_the_unpacking(tmp_path: Path) -> None:
    archive = tmp_path / "a.tar"
    archive.write_bytes(tar_of(entry("m"), content=b"x" * 5000))

    def full(count: int) -> None:
        raise FetchFailed(ReasonCode.DISK_FULL, f"{count} bytes are too many")

    with pytest.raises(FetchFailed, match="5000 bytes"):
        unpack(archive, tmp_path / "out", replace(LIMITS), full)


@given(st.text(max_size=40).map(lambda text: text.replace("a", "../").replace("b", "/")))
def test_a_safe_name_always_stays_inside(name: str) -> None:
    try:
        safe = safe_name(name)
    except FetchFailed:
        return
    joined = os.path.normpath(os.path.join("/srv/folder", safe))  # noqa: PTH118 - the question is about text
    assert joined.startswith("/srv/folder/")
    assert safe_name(safe) == safe


@pytest.mark.parametrize("name", ["m.joblib", "m.txt", "zip", "m.gz", "m.tar.bz2", "m.zip.txt"])
def test_other_files_are_left_as_they_are(name: str) -> None:
    assert not is_archive(name)
