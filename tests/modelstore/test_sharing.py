"""One download for all that want the same, and what stays, goes and is kept apart."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.store import ModelStore, Source
from range_server import RangeServer, sha256

Fetched = Callable[[ModelStore, str, Source], Coroutine[Any, Any, ArtifactState]]
OpenStore = Callable[..., Awaitable[ModelStore]]

MODEL = b"\x80\x04" + os.urandom(100_000)


async def eventually(probe: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not probe():  # noqa: ASYNC110 - files have no event to wait for
            await asyncio.sleep(0.005)


def entries(store_root: Path) -> list[str]:
    return sorted(path.name for path in (store_root / "entries").iterdir())


async def test_twenty_endpoints_share_one_download(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    server.hold_after = 50_000
    url = server.put("/m.joblib", MODEL)
    waiting = [asyncio.create_task(fetched(store, f"u{i}", Source(url))) for i in range(20)]
    await eventually(lambda: server.body_bytes_sent >= 50_000)
    server.go_on.set()
    states = await asyncio.gather(*waiting)
    assert {state.phase for state in states} == {ArtifactPhase.PRESENT}
    assert len({state.path for state in states}) == 1
    assert len(server.transfers) == 1
    assert len(server.seen) == 2  # the first bytes, once, and the transfer
    assert store.references() == {f"u{i}" for i in range(20)}


async def test_a_finished_model_is_reused_after_one_small_question(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    url = server.put("/m.joblib", MODEL)
    first = await fetched(store, "u1", Source(url))
    second = await fetched(store, "u2", Source(url))
    assert second.path == first.path
    assert len(server.transfers) == 1
    store.request("u2", Source(url), lambda: None)
    assert store.state("u2").phase is ArtifactPhase.PRESENT
    assert len(server.seen) == 3


async def test_with_a_digest_no_question_is_needed(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    source = Source(server.put("/m.joblib", MODEL), digest=sha256(MODEL))
    await fetched(store, "u1", source)
    await fetched(store, "u2", source)
    assert len(server.seen) == 2


async def test_a_new_version_gets_its_own_files_and_the_old_ones_stay_for_who_uses_them(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    url = server.put("/m.joblib", MODEL)
    old = await fetched(store, "u1", Source(url))
    newer = os.urandom(1000)
    server.put("/m.joblib", newer, etag='"v2"')
    new = await fetched(store, "u2", Source(url))
    assert Path(new.path).read_bytes() == newer
    assert Path(old.path).read_bytes() == MODEL
    assert store.state("u1").path == old.path


async def test_when_the_source_is_down_what_is_here_serves(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    url = server.put("/m.joblib", MODEL)
    first = await fetched(store, "u1", Source(url))
    server.files["/m.joblib"].status = 503
    second = await fetched(store, "u2", Source(url))
    assert second.phase is ArtifactPhase.PRESENT
    assert second.path == first.path
    server.files["/m.joblib"].status = 404
    third = await fetched(store, "u3", Source(url))
    assert third.reason is ReasonCode.MODEL_NOT_FOUND


async def test_an_endpoint_without_the_credentials_gets_nothing_of_one_that_has_them(
    store: ModelStore, server: RangeServer, fetched: Fetched, tmp_path: Path
) -> None:
    url = server.put("/m.joblib", MODEL, token="Bearer right")
    await fetched(store, "u1", Source(url, secret={"HTTP_BEARER_TOKEN": "right"}))
    for uid, secret in (("u2", {}), ("u3", {"HTTP_BEARER_TOKEN": "wrong"})):
        assert (await fetched(store, uid, Source(url, secret=secret))).phase is ArtifactPhase.FAILED
    server.files["/m.joblib"].status = 503
    assert (await fetched(store, "u4", Source(url))).phase is ArtifactPhase.FAILED
    written = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*.json"))
    assert b"right" not in written


async def test_a_secret_that_says_nothing_about_the_storage_does_not_part_them(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    url = server.put("/m.joblib", MODEL)
    await fetched(store, "u1", Source(url, secret={"AWS_ACCESS_KEY_ID": "x"}))
    await fetched(store, "u2", Source(url))
    assert len(server.transfers) == 1


async def test_releasing_one_of_two_goes_on_and_releasing_both_ends_it(
    store: ModelStore, server: RangeServer, fetched: Fetched, tmp_path: Path
) -> None:
    server.hold_after = 50_000
    url = server.put("/m.joblib", MODEL)
    for uid in ("u1", "u2"):
        store.request(uid, Source(url), lambda: None)
    await eventually(lambda: server.body_bytes_sent >= 50_000)
    await store.release("u1")
    assert store.state("u1") == ArtifactState()
    assert store.state("u2").phase is ArtifactPhase.FETCHING
    await store.release("u2")
    await store.release("u2")
    assert store.references() == frozenset()
    assert not any((tmp_path / "store" / "partial").iterdir())
    assert not any((tmp_path / "store" / "refs").iterdir())


async def test_asking_again_right_after_letting_go_starts_cleanly(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    server.hold_after = 50_000
    url = server.put("/m.joblib", MODEL)
    store.request("u1", Source(url), lambda: None)
    await eventually(lambda: server.body_bytes_sent >= 50_000)
    letting_go = asyncio.create_task(store.release("u1"))
    await asyncio.sleep(0)
    server.go_on.set()
    state = await fetched(store, "u2", Source(url))
    await letting_go
    assert state.phase is ArtifactPhase.PRESENT
    assert Path(state.path).read_bytes() == MODEL


async def test_turning_to_another_source_keeps_the_files_of_the_revision_before(
    open_store: OpenStore, server: RangeServer, fetched: Fetched
) -> None:
    store = await open_store(cache_bytes_max=1)
    first = await fetched(store, "u1", Source(server.put("/a.joblib", MODEL)))
    second = await fetched(store, "u1", Source(server.put("/b.joblib", MODEL[::-1])))
    assert second.path != first.path
    assert Path(first.path).exists()
    third = await fetched(store, "u1", Source(server.put("/c.joblib", MODEL * 2)))
    await eventually(lambda: not Path(first.path).exists())
    assert Path(second.path).exists()
    assert Path(third.path).exists()


async def test_the_cache_drops_what_was_unused_longest_and_never_what_is_used(
    open_store: OpenStore, server: RangeServer, fetched: Fetched, tmp_path: Path
) -> None:
    store = await open_store(cache_bytes_max=250_000)
    paths: dict[str, Path] = {}
    for name in ("a", "b", "c"):
        state = await fetched(store, name, Source(server.put(f"/{name}.joblib", os.urandom(100_000))))
        paths[name] = Path(state.path)
    assert all(path.exists() for path in paths.values())  # 300 kB, but all in use
    await store.release("b")
    await eventually(lambda: not paths["b"].exists())
    await store.release("a")
    assert paths["a"].exists()
    assert paths["c"].exists()
    await store.release("c")
    await fetched(store, "a", Source(server.url("/a.joblib")))
    await store.release("a")
    await fetched(store, "d", Source(server.put("/d.joblib", os.urandom(100_000))))
    assert not paths["c"].exists()
    assert paths["a"].exists()
    await eventually(lambda: not any((tmp_path / "store" / "trash").iterdir()))


async def test_unused_models_make_room_on_a_full_disk(
    open_store: OpenStore, server: RangeServer, fetched: Fetched, tmp_path: Path
) -> None:
    root = tmp_path / "store"

    def free(_: Path) -> int:
        return 150_000 - sum(f.stat().st_size for f in root.rglob("*") if f.is_file())

    store = await open_store(free_bytes=free)
    first = await fetched(store, "u1", Source(server.put("/a.joblib", os.urandom(100_000))))
    assert first.phase is ArtifactPhase.PRESENT
    other = Source(server.put("/b.joblib", os.urandom(100_000)))
    assert (await fetched(store, "u2", other)).reason is ReasonCode.DISK_FULL
    await store.release("u1")
    assert (await fetched(store, "u2", other)).phase is ArtifactPhase.PRESENT
    assert len(entries(root)) == 1


async def test_a_failure_is_tried_anew_when_asked_again(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    url = server.url("/m.joblib")
    first = await fetched(store, "u1", Source(url))
    second = await fetched(store, "u1", Source(url))
    assert second.phase is ArtifactPhase.FAILED
    assert first.finished_at is not None
    assert second.finished_at is not None
    assert second.finished_at > first.finished_at
    server.put("/m.joblib", MODEL)
    assert (await fetched(store, "u1", Source(url))).phase is ArtifactPhase.PRESENT


async def test_many_broken_sources_do_not_hold_up_the_good_one(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    silent = RangeServer(silent=True, host="127.0.0.2")
    await silent.start()
    for i in range(60):
        store.request(f"bad{i}", Source(silent.url(f"/{i}.joblib")), lambda: None)
    good = await fetched(store, "good", Source(server.put("/m.joblib", MODEL)))
    assert good.phase is ArtifactPhase.PRESENT
    assert store.state("bad0").phase is ArtifactPhase.FETCHING
    assert store.state("bad59").message == "waiting for other downloads from 127.0.0.2"
    await silent.close()
