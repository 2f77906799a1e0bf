"""What is found after the process ended, in whatever way, and how a download goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.store import ModelStore, Source
from range_server import RangeServer, sha256

Fetched = Callable[[ModelStore, str, Source], Coroutine[Any, Any, ArtifactState]]
OpenStore = Callable[..., Awaitable[ModelStore]]

MODEL = b"\x80\x04" + os.urandom(3_000_000)

# A process of its own that fetches one model, to be killed or to run into a limit.
FETCH = """
import asyncio, json, sys
from datetime import UTC, datetime
from pathlib import Path
from inferplane.modelstore.limits import StoreLimits
from inferplane.modelstore.store import ModelStore, Source

async def main(root, uri, digest):
    limits = StoreLimits(write_bytes=65536, backoff_first_seconds=0.01, disk_reserve_bytes=0)
    store = ModelStore(Path(root), clock=lambda: datetime.now(UTC), cache_bytes_max=1 << 30, limits=limits)
    await store.start()
    changed = asyncio.Event()
    store.request("u1", Source(uri, digest=digest), changed.set)
    while store.state("u1").phase.value == "Fetching":
        await changed.wait()
        changed.clear()
    state = store.state("u1")
    print(json.dumps([state.phase, state.reason, state.message, state.resumed_from_bytes]))
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def start_fetch(root: Path, uri: str, digest: str = "", prefix: str = "") -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", prefix + FETCH, str(root), uri, digest, stdout=asyncio.subprocess.PIPE
    )


async def eventually(probe: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not probe():  # noqa: ASYNC110 - files and other processes have no event to wait for
            await asyncio.sleep(0.005)


def part_bytes(root: Path) -> int:
    return sum(path.stat().st_size for path in root.glob("partial/*/content/*"))


async def test_a_download_survives_kill_9_and_goes_on_in_a_new_process(
    tmp_path: Path, server: RangeServer, open_store: OpenStore, fetched: Fetched
) -> None:
    root = tmp_path / "store"
    server.hold_after = 2_000_000
    url = server.put("/m.joblib", MODEL)
    process = await start_fetch(root, url)
    await eventually(lambda: part_bytes(root) >= 1_500_000)
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    left = part_bytes(root)
    server.hold_after = None

    store = await open_store()
    assert store.references() == {"u1"}
    assert store.state("u1").phase is ArtifactPhase.ABSENT
    state = await fetched(store, "u1", Source(url))
    assert state.phase is ArtifactPhase.PRESENT
    assert state.resumed_from_bytes == left
    assert Path(state.path).read_bytes() == MODEL
    assert state.digest == sha256(MODEL)
    assert server.transfers[-1].headers["range"] == f"bytes={left}-"
    assert server.transfers[-1].sent == len(MODEL) - left


async def test_a_version_that_changed_while_we_were_dead_is_fetched_whole(
    tmp_path: Path, server: RangeServer, open_store: OpenStore, fetched: Fetched
) -> None:
    root = tmp_path / "store"
    server.hold_after = 1_000_000
    url = server.put("/m.joblib", MODEL)
    process = await start_fetch(root, url)
    await eventually(lambda: part_bytes(root) >= 500_000)
    process.kill()
    await process.communicate()
    server.hold_after = None
    server.put("/m.joblib", MODEL[::-1], etag='"v2"')
    store = await open_store()
    state = await fetched(store, "u1", Source(url))
    assert Path(state.path).read_bytes() == MODEL[::-1]
    assert state.resumed_from_bytes == 0
    assert not any((root / "partial").iterdir())


@pytest.mark.parametrize("with_digest", [True, False])
async def test_without_validators_only_a_digest_allows_to_go_on(
    tmp_path: Path, server: RangeServer, open_store: OpenStore, fetched: Fetched, with_digest: bool
) -> None:
    root = tmp_path / "store"
    digest = sha256(MODEL) if with_digest else ""
    server.hold_after = 1_000_000
    url = server.put("/m.joblib", MODEL, etag="")
    process = await start_fetch(root, url, digest)
    await eventually(lambda: part_bytes(root) >= 500_000)
    process.kill()
    await process.communicate()
    server.hold_after = None
    state = await fetched(await open_store(), "u1", Source(url, digest=digest))
    assert Path(state.path).read_bytes() == MODEL
    assert (state.resumed_from_bytes > 0) is with_digest


async def test_after_a_start_of_the_machine_a_part_is_not_trusted(
    tmp_path: Path, server: RangeServer, open_store: OpenStore, fetched: Fetched
) -> None:
    store = await open_store()
    server.hold_after = 1_000_000
    url = server.put("/m.joblib", MODEL)
    store.request("u1", Source(url), lambda: None)
    await eventually(lambda: server.body_bytes_sent >= 1_000_000)
    await store.close()
    server.hold_after = None
    (plan,) = (tmp_path / "store").glob("partial/*/plan.json")
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"boot": "another"}))
    state = await fetched(await open_store(), "u1", Source(url))
    assert state.phase is ArtifactPhase.PRESENT
    assert state.resumed_from_bytes == 0


async def test_what_was_finished_is_present_at_once(
    open_store: OpenStore, server: RangeServer, fetched: Fetched, tmp_path: Path
) -> None:
    store = await open_store()
    before = await fetched(store, "u1", Source(server.put("/m.joblib", MODEL)))
    here = tmp_path / "own.joblib"
    here.write_bytes(MODEL)
    own = await fetched(store, "u2", Source(f"file://{here}"))
    store = await open_store()
    after = store.state("u1")
    assert (after.phase, after.path, after.digest) == (ArtifactPhase.PRESENT, before.path, before.digest)
    assert after.total_bytes == len(MODEL)
    assert after.finished_at == before.finished_at
    assert store.state("u2").path == own.path
    assert store.references() == {"u1", "u2"}
    assert len(server.transfers) == 1


async def test_leftovers_of_every_kind_are_cleaned_at_start(
    open_store: OpenStore, server: RangeServer, fetched: Fetched, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    store = await open_store()
    kept = await fetched(store, "u1", Source(server.put("/m.joblib", MODEL)))
    await store.close()
    for folder in ("partial/0123-4567/content", "entries/half/content", "trash/gone/deep"):
        (root / folder).mkdir(parents=True)
        (root / folder / "file").write_bytes(b"x")
    (root / "refs" / "u9.json.tmp").write_text("{")
    (root / "refs" / "u8.json").write_text("not json")
    (root / "entries" / "odd").mkdir()
    (root / "entries" / "odd" / "meta.json").write_text('{"path": "../../../etc", "bytes": 1}')
    store = await open_store()
    assert store.state("u1").path == kept.path
    assert Path(kept.path).exists()
    assert [path.name for path in (root / "entries").iterdir()] == [Path(kept.path).parents[1].name]
    assert not any((root / "partial").iterdir())
    assert not any((root / "trash").iterdir())
    assert not list(root.rglob("*.tmp"))
    await store.release("u8")
    assert [path.name for path in (root / "refs").iterdir()] == ["u1.json"]


async def test_a_model_deleted_from_the_store_is_absent_and_comes_back(
    open_store: OpenStore, server: RangeServer, fetched: Fetched, tmp_path: Path
) -> None:
    store = await open_store()
    url = server.put("/m.joblib", MODEL)
    state = await fetched(store, "u1", Source(url))
    await store.close()
    Path(state.path).unlink()
    store = await open_store()
    assert store.state("u1").phase is ArtifactPhase.ABSENT
    assert (await fetched(store, "u1", Source(url))).phase is ArtifactPhase.PRESENT


async def test_a_disk_that_really_takes_no_more_is_a_full_disk(tmp_path: Path, server: RangeServer) -> None:
    root = tmp_path / "store"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
    process = await start_fetch(root, server.put("/m.joblib", MODEL), prefix=limit)
    output, _ = await process.communicate()
    phase, reason, message, _ = json.loads(output.splitlines()[-1])
    assert (phase, reason) == ("Failed", ReasonCode.DISK_FULL)
    assert str(root) in message
    assert not any((root / "partial").iterdir())


async def test_kill_9_at_many_moments_leaves_nothing_wrong(
    tmp_path: Path, server: RangeServer, open_store: OpenStore, fetched: Fetched
) -> None:
    """Killed after more and more bytes, up to the very end; every next run goes on from the last."""
    root = tmp_path / "store"
    url = server.put("/m.joblib", MODEL)
    for count in range(0, len(MODEL) + 500_000, 500_000):
        server.hold_after = 600_000
        process = await start_fetch(root, url)
        enough = min(count, len(MODEL) - 600_000)
        await eventually(lambda: part_bytes(root) >= enough)  # noqa: B023 - used up within the turn
        process.kill()
        await process.communicate()
    server.hold_after = None
    state = await fetched(await open_store(), "u1", Source(url))
    assert state.phase is ArtifactPhase.PRESENT
    assert Path(state.path).read_bytes() == MODEL
    assert state.digest == sha256(MODEL)
    assert not any((root / "partial").iterdir())
