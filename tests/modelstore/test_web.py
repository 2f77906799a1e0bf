"""Files on web servers, good and bad, against a server on loopback that misbehaves on demand."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import zipfile
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.limits import StoreLimits
from inferplane.modelstore.store import ModelStore, Source
from range_server import RangeServer, sha256

Fetched = Callable[[ModelStore, str, Source], Coroutine[Any, Any, ArtifactState]]
OpenStore = Callable[..., Awaitable[ModelStore]]

MODEL = b"\x80\x04" + os.urandom(300_000)


async def test_a_file_arrives_whole_with_its_name_size_and_digest(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    state = await fetched(store, "u1", Source(server.put("/a/iris.joblib", MODEL)))
    assert state.phase is ArtifactPhase.PRESENT
    assert Path(state.path).name == "iris.joblib"
    assert Path(state.path).read_bytes() == MODEL
    assert state.digest == sha256(MODEL)
    assert state.received_bytes == state.total_bytes == len(MODEL)
    assert state.resumed_from_bytes == 0
    assert state.started_at is not None
    assert state.finished_at is not None
    assert state.finished_at > state.started_at


async def test_a_cut_download_goes_on_where_it_was_cut(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    server.cuts = [100_000, 50_000, None]
    state = await fetched(store, "u1", Source(server.put("/m.joblib", MODEL)))
    assert state.phase is ArtifactPhase.PRESENT
    assert Path(state.path).read_bytes() == MODEL
    assert state.resumed_from_bytes == 150_000
    assert server.body_bytes_sent == len(MODEL)
    assert [request.headers.get("range") for request in server.transfers] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
    ]
    assert server.transfers[1].headers["if-range"] == '"v1"'


async def test_last_modified_serves_where_the_etag_is_weak_or_missing(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    server.cuts = [1000, None]
    day = "Mon, 05 Jan 2026 10:00:00 GMT"
    state = await fetched(store, "u1", Source(server.put("/m.joblib", MODEL, etag="", modified=day)))
    assert state.phase is ArtifactPhase.PRESENT
    assert server.transfers[1].headers["if-range"] == day


async def test_a_server_without_ranges_is_asked_anew_from_the_start(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    server.ranges = False
    server.cuts = [None, 100_000, None]  # without ranges, the first question is one for everything
    url = server.put("/m.joblib", MODEL)
    state = await fetched(store, "u1", Source(url))
    assert state.phase is ArtifactPhase.PRESENT
    assert Path(state.path).read_bytes() == MODEL
    assert server.transfers[-1].sent == len(MODEL)


async def test_a_server_that_never_lets_it_finish_is_given_up_with_what_came(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    server.cuts = [100_000, *[0] * 50]
    state = await fetched(store, "u1", Source(server.put("/m.joblib", MODEL)))
    assert state.phase is ArtifactPhase.FAILED
    assert state.reason is ReasonCode.DOWNLOAD_INTERRUPTED
    assert state.received_bytes == 100_000
    assert "97.7 KiB of 293.0 KiB" in state.message
    server.cuts = []
    again = await fetched(store, "u1", Source(server.url("/m.joblib")))
    assert again.phase is ArtifactPhase.PRESENT
    assert again.resumed_from_bytes == 100_000
    assert Path(again.path).read_bytes() == MODEL


async def test_a_file_that_changes_under_way_is_fetched_in_its_new_version(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    url = server.put("/m.joblib", MODEL)
    newer = os.urandom(200_000)
    server.hold_after = 100_000
    waiting = asyncio.create_task(fetched(store, "u1", Source(url)))
    async with asyncio.timeout(10):
        while server.body_bytes_sent < 100_000:  # noqa: ASYNC110 - a counter has no event to wait for
            await asyncio.sleep(0.005)
    server.put("/m.joblib", newer, etag='"v2"')
    server.cuts = [None]
    server.hold_after = None
    for task in list(server._tasks):
        task.cancel()  # the old version's connection breaks
    state = await waiting
    assert state.phase is ArtifactPhase.PRESENT
    assert Path(state.path).read_bytes() == newer


async def test_a_length_that_is_not_told_is_no_obstacle(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    server.ranges = False
    state = await fetched(store, "u1", Source(server.put("/m.joblib", MODEL, length=False)))
    assert state.phase is ArtifactPhase.PRESENT
    assert Path(state.path).read_bytes() == MODEL
    assert state.total_bytes == len(MODEL)


async def test_redirects_are_followed_and_circles_are_refused(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    server.put("/m.joblib", MODEL)
    ok = server.put("/old.joblib", b"", status=302, location="/m.joblib")
    circle = server.put("/circle.joblib", b"", status=302, location="/circle.joblib")
    assert (await fetched(store, "u1", Source(ok))).phase is ArtifactPhase.PRESENT
    state = await fetched(store, "u2", Source(circle))
    assert state.reason is ReasonCode.STORAGE_UNREACHABLE
    assert "circles" in state.message


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, ReasonCode.STORAGE_UNAUTHORIZED),
        (403, ReasonCode.STORAGE_FORBIDDEN),
        (404, ReasonCode.MODEL_NOT_FOUND),
        (410, ReasonCode.MODEL_NOT_FOUND),
        (429, ReasonCode.STORAGE_UNREACHABLE),
        (500, ReasonCode.STORAGE_UNREACHABLE),
        (503, ReasonCode.STORAGE_UNREACHABLE),
    ],
)
async def test_each_refusal_has_its_reason_and_shows_the_address_without_its_secret(
    store: ModelStore, server: RangeServer, fetched: Fetched, status: int, reason: ReasonCode
) -> None:
    url = server.put("/m.joblib", b"", status=status) + "?X-Amz-Signature=SESAME&part=1"
    state = await fetched(store, "u1", Source(url))
    assert state.phase is ArtifactPhase.FAILED
    assert state.reason is reason
    assert str(status) in state.message
    assert "/m.joblib" in state.message
    assert "SESAME" not in repr(state)
    assert state.finished_at is not None


async def test_hosts_that_do_not_exist_or_do_not_answer(
    open_store: OpenStore, server: RangeServer, fetched: Fetched, limits: StoreLimits
) -> None:
    store = await open_store(limits=replace(limits, read_seconds=0.1))
    missing = await fetched(store, "u1", Source("http://no-such-host.invalid/m.joblib"))
    assert missing.reason is ReasonCode.HOST_NOT_FOUND
    assert "no-such-host.invalid" in missing.message

    closed = RangeServer()
    await closed.start()
    await closed.close()
    refused = await fetched(store, "u2", Source(closed.url("/m.joblib")))
    assert refused.reason is ReasonCode.STORAGE_UNREACHABLE

    silent = RangeServer(silent=True)
    await silent.start()
    stalled = await fetched(store, "u3", Source(silent.url("/m.joblib")))
    assert stalled.reason is ReasonCode.STORAGE_UNREACHABLE
    assert "stopped answering" in stalled.message
    await silent.close()


async def test_a_server_that_drips_is_not_waited_for_without_end(
    open_store: OpenStore, fetched: Fetched, limits: StoreLimits
) -> None:
    hung_up = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        hung_up.set()

    dripping = await asyncio.start_server(drip, "127.0.0.1", 0)
    port = dripping.sockets[0].getsockname()[1]
    store = await open_store(limits=replace(limits, first_contact_seconds=0.2))
    state = await fetched(store, "u1", Source(f"http://127.0.0.1:{port}/m.joblib"))
    assert state.reason is ReasonCode.STORAGE_UNREACHABLE
    assert "too slowly" in state.message
    async with asyncio.timeout(10):
        await hung_up.wait()
    dripping.close()
    await dripping.wait_closed()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "application/octet-stream"),
        (b"\n  <html lang='en'>", "text/plain"),
        (b"\xef\xbb\xbf<!-- hello -->\n<!doctype HTML>", ""),
        (b"Please sign in", "text/html; charset=utf-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "text/plain"),
        (b"", "application/octet-stream"),
    ],
)
async def test_what_is_no_model_is_refused(
    store: ModelStore, server: RangeServer, fetched: Fetched, body: bytes, content_type: str
) -> None:
    state = await fetched(store, "u1", Source(server.put("/m.joblib", body, content_type=content_type)))
    assert state.reason is ReasonCode.NOT_A_MODEL


@pytest.mark.parametrize(
    ("name", "body", "content_type"),
    [
        ("m.txt", b"tree\nversion=v4\nnum_class=1\n", "text/plain"),
        ("m.json", b'{"learner": {"html": "<html>"}}', "application/json"),
        ("m.joblib", b"\x80\x04\x00binary", "text/html"),
        ("m.ubj", b"{", "application/xml"),
    ],
)
async def test_models_that_look_like_text_are_let_through(
    store: ModelStore, server: RangeServer, fetched: Fetched, name: str, body: bytes, content_type: str
) -> None:
    state = await fetched(store, "u1", Source(server.put(f"/{name}", body, content_type=content_type)))
    assert state.phase is ArtifactPhase.PRESENT
    assert Path(state.path).read_bytes() == body


async def test_a_digest_is_checked_and_both_are_named(
    store: ModelStore, server: RangeServer, fetched: Fetched, tmp_path: Path
) -> None:
    url = server.put("/m.joblib", MODEL)
    wrong = sha256(b"something else")
    state = await fetched(store, "u1", Source(url, digest=wrong))
    assert state.reason is ReasonCode.CHECKSUM_MISMATCH
    assert wrong in state.message
    assert sha256(MODEL) in state.message
    assert not any((tmp_path / "store" / "partial").iterdir())
    right = await fetched(store, "u1", Source(url, digest=sha256(MODEL).upper().replace("SHA256", "sha256")))
    assert right.phase is ArtifactPhase.PRESENT
    nonsense = await fetched(store, "u2", Source(url, digest="md5:1234"))
    assert nonsense.reason is ReasonCode.CHECKSUM_MISMATCH


async def test_credentials_from_the_secret_are_sent_and_not_shared(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    url = server.put("/m.joblib", MODEL, token="Bearer open-sesame")
    allowed = await fetched(store, "u1", Source(url, secret={"HTTP_BEARER_TOKEN": "open-sesame"}))
    assert allowed.phase is ArtifactPhase.PRESENT
    refused = await fetched(store, "u2", Source(url))
    assert refused.reason is ReasonCode.STORAGE_UNAUTHORIZED
    server.files["/m.joblib"].token = "Basic dXNlcjpwYXNz"
    basic = await fetched(store, "u3", Source(url, secret={"HTTP_USERNAME": "user", "HTTP_PASSWORD": "pass"}))
    assert basic.phase is ArtifactPhase.PRESENT
    broken = await fetched(store, "u4", Source(url, secret={"HTTP_BEARER_TOKEN": "a\r\nx: y"}))
    assert broken.reason is ReasonCode.STORAGE_UNAUTHORIZED


async def test_credentials_do_not_follow_a_redirect_to_another_host(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    other = RangeServer()
    await other.start()
    target = other.put("/m.joblib", MODEL)
    url = server.put("/m.joblib", b"", status=302, location=target)
    state = await fetched(store, "u1", Source(url, secret={"HTTP_BEARER_TOKEN": "open-sesame"}))
    assert state.phase is ArtifactPhase.PRESENT
    assert all("authorization" not in request.headers for request in other.seen)
    await other.close()


async def test_the_server_may_name_the_file(store: ModelStore, server: RangeServer, fetched: Fetched) -> None:
    url = server.put("/download", MODEL, disposition='attachment; filename="../../iris.joblib"')
    state = await fetched(store, "u1", Source(url))
    assert Path(state.path).name == "iris.joblib"


async def test_an_archive_is_unpacked_and_its_only_folder_entered(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr("model/iris.joblib", MODEL)
        bundle.writestr("model/notes.txt", "x")
        bundle.writestr("__MACOSX/model/._iris.joblib", "junk")
    state = await fetched(store, "u1", Source(server.put("/m.zip", buffer.getvalue())))
    assert state.phase is ArtifactPhase.PRESENT
    assert sorted(path.name for path in Path(state.path).iterdir()) == ["iris.joblib", "notes.txt"]
    assert state.digest == sha256(buffer.getvalue())


async def test_a_disk_that_is_too_small_is_noticed_before_and_while_writing(
    open_store: OpenStore, server: RangeServer, fetched: Fetched, tmp_path: Path
) -> None:
    url = server.put("/m.joblib", MODEL)
    store = await open_store(free_bytes=lambda _: 1000)
    state = await fetched(store, "u1", Source(url))
    assert state.reason is ReasonCode.DISK_FULL
    assert "293.0 KiB" in state.message
    assert "1000 B" in state.message
    assert server.transfers == []

    server.ranges = False  # the length is not known, so it shows only while writing
    unknown = await fetched(store, "u2", Source(server.put("/n.joblib", MODEL, length=False)))
    assert unknown.reason is ReasonCode.DISK_FULL
    assert not any((tmp_path / "store" / "partial").iterdir())


async def test_progress_is_announced_but_not_for_every_byte(
    open_store: OpenStore, server: RangeServer, limits: StoreLimits
) -> None:
    store = await open_store(limits=replace(limits, write_bytes=1024, notify_seconds=0.05))
    server.pause_seconds = 0.005
    url = server.put("/m.joblib", MODEL * 3)
    states: list[ArtifactState] = []
    done = asyncio.Event()

    def changed() -> None:
        states.append(store.state("u1"))
        if states[-1].phase is not ArtifactPhase.FETCHING:
            done.set()

    loop = asyncio.get_running_loop()
    began = loop.time()
    store.request("u1", Source(url), changed)
    async with asyncio.timeout(20):
        await done.wait()
    assert len(states) <= (loop.time() - began) / 0.05 + 3
    received = [state.received_bytes for state in states]
    assert received == sorted(received)
    assert any(0 < count < len(MODEL) * 3 for count in received)
    assert any(state.rate_bytes_per_second > 0 and state.eta_seconds is not None for state in states)
    assert states[-1].received_bytes == len(MODEL) * 3


async def test_what_a_probe_finds(store: ModelStore, server: RangeServer, tmp_path: Path) -> None:
    async def answers(uri: str, **more: Any) -> dict[str, tuple[bool, ReasonCode | None]]:
        return {c.check: (c.ok, c.reason) for c in await store.probe(Source(uri, **more))}

    good = await answers(server.put("/m.joblib", MODEL))
    assert good == dict.fromkeys(("storage", "credentials", "size", "files"), (True, None))
    server.put("/p.joblib", b"", status=403)
    assert (await answers(server.url("/p.joblib")))["credentials"] == (False, ReasonCode.STORAGE_FORBIDDEN)
    page = await answers(server.put("/page", b"<html>", content_type="text/html"))
    assert page["files"] == (False, ReasonCode.NOT_A_MODEL)
    assert await answers("http://no-such-host.invalid/m") == {"storage": (False, ReasonCode.HOST_NOT_FOUND)}
    assert await answers("oci://registry/image:1") == {"storage": (False, ReasonCode.SCHEME_NOT_SUPPORTED)}
    assert await answers(str(tmp_path / "missing")) == {"storage": (False, ReasonCode.MODEL_NOT_FOUND)}
    assert store.references() == frozenset()
