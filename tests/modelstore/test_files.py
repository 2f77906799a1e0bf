"""Files and folders of this machine: used where they lie."""

from __future__ import annotations

import asyncio
import os
import tarfile
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.limits import StoreLimits
from inferplane.modelstore.store import ModelStore, Source
from range_server import sha256

Fetched = Callable[[ModelStore, str, Source], Coroutine[Any, Any, ArtifactState]]
OpenStore = Callable[..., Awaitable[ModelStore]]

MODEL = b"\x80\x04" + os.urandom(50_000)


@pytest.mark.parametrize("form", ["{}", "file://{}", "file://localhost{}"])
async def test_a_file_is_used_in_place(
    store: ModelStore, fetched: Fetched, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "iris model.joblib"
    path.write_bytes(MODEL)
    state = await fetched(store, "u1", Source(form.format(path)))
    assert state.phase is ArtifactPhase.PRESENT
    assert state.path == str(path)
    assert state.digest == sha256(MODEL)
    assert state.total_bytes == len(MODEL)
    await store.release("u1")
    assert path.exists()


async def test_a_folder_is_used_in_place_with_the_digest_of_its_listing(
    store: ModelStore, fetched: Fetched, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"a")
    (folder / "sub" / "b.txt").write_bytes(b"b")
    state = await fetched(store, "u1", Source(str(folder)))
    listing = "".join(
        f"{sha256(c).removeprefix('sha256:')}  {n}\n" for n, c in (("a.txt", b"a"), ("sub/b.txt", b"b"))
    )
    assert state.path == str(folder)
    assert state.digest == sha256(listing.encode())
    assert (
        await fetched(store, "u2", Source(str(folder), digest=state.digest))
    ).phase is ArtifactPhase.PRESENT


async def test_a_large_file_is_present_before_it_is_hashed(
    open_store: OpenStore, fetched: Fetched, tmp_path: Path, limits: StoreLimits
) -> None:
    path = tmp_path / "m.joblib"
    path.write_bytes(MODEL)
    store = await open_store(limits=replace(limits, digest_inline_bytes_max=10))
    states: list[ArtifactState] = []
    store.request("u1", Source(str(path)), lambda: states.append(store.state("u1")))
    await fetched(store, "u2", Source(str(path), digest=sha256(MODEL)))
    async with asyncio.timeout(10):
        while not store.state("u1").digest:  # noqa: ASYNC110 - the last change is what matters
            await asyncio.sleep(0.001)
    assert states[0].phase is ArtifactPhase.PRESENT
    assert states[0].digest == ""
    assert store.state("u1").digest == sha256(MODEL)
    asked = await fetched(store, "u3", Source(str(path), digest=sha256(b"other")))
    assert asked.reason is ReasonCode.CHECKSUM_MISMATCH


async def test_what_cannot_be_read_says_why(
    open_store: OpenStore, fetched: Fetched, tmp_path: Path, limits: StoreLimits
) -> None:
    store = await open_store(limits=replace(limits, objects_max=20))
    empty_file, empty_folder, fifo = tmp_path / "e.joblib", tmp_path / "e", tmp_path / "fifo"
    empty_file.touch()
    empty_folder.mkdir()
    os.mkfifo(fifo)
    below_a_file = empty_file / "m.joblib"
    crowd = tmp_path / "crowd"
    (crowd / "deep").mkdir(parents=True)
    for number in range(20):
        (crowd / "deep" / f"{number}.txt").write_bytes(b"x")
    for path, reason in (
        (tmp_path / "missing.joblib", ReasonCode.MODEL_NOT_FOUND),
        (below_a_file, ReasonCode.MODEL_NOT_FOUND),
        (empty_folder, ReasonCode.MODEL_NOT_FOUND),
        (empty_file, ReasonCode.NOT_A_MODEL),
        (fifo, ReasonCode.NOT_A_MODEL),
        (crowd, ReasonCode.NOT_A_MODEL),
    ):
        state = await fetched(store, "u1", Source(str(path)))
        assert (state.phase, state.reason) == (ArtifactPhase.FAILED, reason), path
        assert str(path) in state.message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_without_permission_is_forbidden(
    store: ModelStore, fetched: Fetched, tmp_path: Path
) -> None:
    path = tmp_path / "m.joblib"
    path.write_bytes(MODEL)
    path.chmod(0)
    assert (await fetched(store, "u1", Source(str(path)))).reason is ReasonCode.STORAGE_FORBIDDEN


async def test_an_archive_is_unpacked_into_the_store_once_a_version(
    store: ModelStore, fetched: Fetched, tmp_path: Path
) -> None:
    model = tmp_path / "iris.joblib"
    model.write_bytes(MODEL)
    archive = tmp_path / "m.tgz"
    with tarfile.open(archive, "w:gz") as bundle:
        bundle.add(model, "iris.joblib")
    first = await fetched(store, "u1", Source(f"file://{archive}"))
    second = await fetched(store, "u2", Source(f"file://{archive}"))
    assert first.phase is ArtifactPhase.PRESENT
    assert first.path == second.path
    assert Path(first.path).read_bytes() == MODEL
    assert first.digest == sha256(archive.read_bytes())
    model.write_bytes(MODEL[::-1])
    with tarfile.open(archive, "w:gz") as bundle:
        bundle.add(model, "iris.joblib")
    third = await fetched(store, "u3", Source(f"file://{archive}"))
    assert Path(third.path).read_bytes() == MODEL[::-1]
    assert Path(first.path).read_bytes() == MODEL


@pytest.mark.parametrize(
    ("uri", "reason", "words"),
    [
        ("pvc://claim/model", ReasonCode.SCHEME_NOT_SUPPORTED, "engine kserve"),
        ("oci://registry/image:tag", ReasonCode.SCHEME_NOT_SUPPORTED, "engine kserve"),
        ("hdfs://host/model", ReasonCode.SCHEME_NOT_SUPPORTED, "HDFS"),
        ("http://user:sesame@host/m", ReasonCode.MODEL_NOT_FOUND, "password"),
        ("iris.joblib", ReasonCode.MODEL_NOT_FOUND, "absolute"),
        ("", ReasonCode.MODEL_NOT_FOUND, "empty"),
    ],
)
async def test_a_uri_that_cannot_be_fetched_fails_at_once(
    store: ModelStore, fetched: Fetched, uri: str, reason: ReasonCode, words: str
) -> None:
    state = await fetched(store, "u1", Source(uri))
    assert (state.phase, state.reason) == (ArtifactPhase.FAILED, reason)
    assert words in state.message
    assert "sesame" not in repr(state)


def test_a_source_does_not_print_its_secret() -> None:
    assert "sesame" not in repr(Source("s3://b/k", secret={"AWS_SECRET_ACCESS_KEY": "sesame"}))
