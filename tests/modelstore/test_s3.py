"""S3 against a real server of its protocol that checks signatures (rclone, over a folder)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.store import ModelStore, Source
from range_server import RangeServer, sha256

Fetched = Callable[[ModelStore, str, Source], Coroutine[Any, Any, ArtifactState]]
OpenStore = Callable[..., Coroutine[Any, Any, ModelStore]]

MODEL = b"\x80\x04" + os.urandom(500_000)
KEY_ID, SECRET = "INFERPLANETEST", "sesame-open-sesame"


@dataclass(frozen=True)
class Bucket:
    """A running server, and the folder that is its bucket `models`."""

    endpoint: str
    folder: Path

    def secret(self, **more: str) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        } | more


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serve(folder: Path, *options: str) -> Iterator[str]:
    port = free_port()
    rclone = Path(sys.executable).with_name("rclone")
    process = subprocess.Popen(
        [
            rclone,
            "serve",
            "s3",
            "--config",
            "/dev/null",
            "--dir-cache-time",
            "0s",
            "--addr",
            f"127.0.0.1:{port}",
            *options,
            str(folder),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "Starting s3 server" in line:
                break
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=10)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    root = tmp_path_factory.mktemp("s3")
    folder = root / "models"
    (folder / "iris" / "sub dir").mkdir(parents=True)
    (folder / "iris.joblib").write_bytes(MODEL)
    (folder / "iris" / "model.joblib").write_bytes(MODEL[::-1])
    (folder / "iris" / "sub dir" / "a+b ü.txt").write_bytes(b"x")
    with tarfile.open(folder / "packed.tgz", "w:gz") as archive:
        archive.add(folder / "iris.joblib", "packed/iris.joblib")
    with serve(root, "--auth-key", f"{KEY_ID},{SECRET}") as endpoint:
        yield Bucket(endpoint, folder)


async def test_one_object_arrives(store: ModelStore, fetched: Fetched, bucket: Bucket) -> None:
    state = await fetched(store, "u1", Source("s3://models/iris.joblib", secret=bucket.secret()))
    assert state.phase is ArtifactPhase.PRESENT
    assert Path(state.path).name == "iris.joblib"
    assert Path(state.path).read_bytes() == MODEL
    assert state.digest == sha256(MODEL)
    assert state.uri == "s3://models/iris.joblib"


@pytest.mark.parametrize("uri", ["s3://models/iris", "s3://models/iris/"])
async def test_everything_under_a_prefix_arrives(
    store: ModelStore, fetched: Fetched, bucket: Bucket, uri: str
) -> None:
    state = await fetched(store, "u1", Source(uri, secret=bucket.secret()))
    assert state.phase is ArtifactPhase.PRESENT
    folder = Path(state.path)
    assert (folder / "model.joblib").read_bytes() == MODEL[::-1]
    assert (folder / "sub dir" / "a+b ü.txt").read_bytes() == b"x"
    assert state.total_bytes == len(MODEL) + 1


async def test_an_archive_in_a_bucket_is_unpacked(
    store: ModelStore, fetched: Fetched, bucket: Bucket
) -> None:
    state = await fetched(store, "u1", Source("s3://models/packed.tgz", secret=bucket.secret()))
    assert Path(state.path, "iris.joblib").read_bytes() == MODEL


async def test_the_endpoint_may_come_from_the_platforms_environment(
    open_store: OpenStore, fetched: Fetched, bucket: Bucket
) -> None:
    store = await open_store(environment={"AWS_ENDPOINT_URL": bucket.endpoint})
    keys = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "eu-west-1"}
    state = await fetched(store, "u1", Source("s3://models/iris.joblib", secret=keys))
    assert state.phase is ArtifactPhase.PRESENT


@pytest.mark.parametrize(
    ("uri", "more", "reason"),
    [
        ("s3://models/none.joblib", {}, ReasonCode.MODEL_NOT_FOUND),
        ("s3://models/none/", {}, ReasonCode.MODEL_NOT_FOUND),
        ("s3://no-such-bucket/x", {}, ReasonCode.MODEL_NOT_FOUND),
        ("s3://models/iris.joblib", {"AWS_ACCESS_KEY_ID": "unknown"}, ReasonCode.STORAGE_UNAUTHORIZED),
        ("s3://models/iris.joblib", {"AWS_SECRET_ACCESS_KEY": "wrong"}, ReasonCode.STORAGE_UNAUTHORIZED),
        ("s3://models/iris", {"AWS_SECRET_ACCESS_KEY": "wrong"}, ReasonCode.STORAGE_UNAUTHORIZED),
        ("s3://models/x", {"AWS_ENDPOINT_URL": "http://no-such.invalid"}, ReasonCode.HOST_NOT_FOUND),
        ("s3://models/x", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, ReasonCode.STORAGE_UNREACHABLE),
    ],
)
async def test_each_failure_has_its_reason(
    store: ModelStore,
    fetched: Fetched,
    bucket: Bucket,
    uri: str,
    more: Mapping[str, str],
    reason: ReasonCode,
) -> None:
    source = Source(uri, secret=bucket.secret(**more))
    state = await fetched(store, "u1", source)
    assert (state.phase, state.reason) == (ArtifactPhase.FAILED, reason)
    assert uri in state.message
    assert SECRET not in repr(state)
    checks = await store.probe(source)
    assert [check.reason for check in checks if not check.ok] == [reason]


async def test_without_keys_requests_are_anonymous_whatever_the_process_has(
    store: ModelStore, fetched: Fetched, tmp_path: Path
) -> None:
    (tmp_path / "open" / "models").mkdir(parents=True)
    (tmp_path / "open" / "models" / "iris.joblib").write_bytes(MODEL)
    with serve(tmp_path / "open") as endpoint:
        state = await fetched(
            store, "u1", Source("s3://models/iris.joblib", secret={"AWS_ENDPOINT_URL": endpoint})
        )
    assert state.phase is ArtifactPhase.PRESENT


async def test_the_process_s_own_aws_variables_are_never_used(server: RangeServer, tmp_path: Path) -> None:
    """In a process of its own, whose environment holds the operator's keys."""
    script = """
import asyncio, sys
from pathlib import Path
from datetime import UTC, datetime
from inferplane.modelstore.store import ModelStore, Source
async def main(root, endpoint):
    store = ModelStore(Path(root), clock=lambda: datetime.now(UTC), cache_bytes_max=1)
    await store.start()
    anonymous = {"AWS_ENDPOINT_URL": endpoint}
    own = anonymous | {"AWS_ACCESS_KEY_ID": "THEIRKEY", "AWS_SECRET_ACCESS_KEY": "s"}
    for secret in (anonymous, own):
        await store.probe(Source("s3://models/iris.joblib", secret=secret))
        await store.probe(Source("s3://models/folder/", secret=secret))
    await store.close()
asyncio.run(main(*sys.argv[1:]))
"""
    environment = os.environ | {
        "AWS_ACCESS_KEY_ID": "OPERATORKEY",
        "AWS_SECRET_ACCESS_KEY": "operator",
        "AWS_SESSION_TOKEN": "OPERATORTOKEN",
        "AWS_REGION": "operator-region",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(tmp_path), server.url(""), env=environment
    )
    assert await process.wait() == 0
    assert len(server.seen) >= 4
    said = repr(server.seen)
    assert "THEIRKEY" in said
    assert "OPERATOR" not in said
    assert "operator-region" not in said


@pytest.fixture
async def cutting_proxy(bucket: Bucket) -> AsyncIterator[CuttingProxy]:
    proxy = CuttingProxy(int(bucket.endpoint.rpartition(":")[2]))
    await proxy.start()
    yield proxy
    await proxy.close()


class CuttingProxy:
    """Passes bytes on to the real server, and breaks the connections it is told to after some bytes."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.cut_when_longer: list[int] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        there = asyncio.create_task(self._copy(reader, their_writer, cut=False))
        try:
            await self._copy(their_reader, writer, cut=True)
        finally:
            there.cancel()
            await asyncio.gather(there, return_exceptions=True)
            writer.close()
            their_writer.close()
            self._tasks.discard(task)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, cut: bool) -> None:
        passed = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                passed += len(data)
                if cut and self.cut_when_longer and passed > self.cut_when_longer[0]:
                    self.cut_when_longer.pop(0)
                    return
                writer.write(data)
                await writer.drain()


async def test_a_cut_object_goes_on_where_it_was_cut(
    store: ModelStore, fetched: Fetched, bucket: Bucket, cutting_proxy: CuttingProxy
) -> None:
    cutting_proxy.cut_when_longer = [200_000, 100_000]
    secret = bucket.secret(AWS_ENDPOINT_URL=f"http://127.0.0.1:{cutting_proxy.port}")
    state = await fetched(store, "u1", Source("s3://models/iris.joblib", secret=secret))
    assert cutting_proxy.cut_when_longer == []
    assert state.phase is ArtifactPhase.PRESENT
    assert Path(state.path).read_bytes() == MODEL
    assert state.resumed_from_bytes > 0


async def test_a_changed_object_is_fetched_in_its_new_version(
    store: ModelStore, fetched: Fetched, bucket: Bucket
) -> None:
    path = bucket.folder / "changing.joblib"
    path.write_bytes(b"one")
    source = Source("s3://models/changing.joblib", secret=bucket.secret())
    first = await fetched(store, "u1", source)
    path.write_bytes(b"another")
    second = await fetched(store, "u2", source)
    assert Path(first.path).read_bytes() == b"one"
    assert Path(second.path).read_bytes() == b"another"


async def test_a_refusal_of_an_anonymous_question_says_both_possibilities(
    store: ModelStore, fetched: Fetched, server: RangeServer
) -> None:
    server.put("/models/iris.joblib", b"", status=403)
    server.put("/models", b"", status=403)
    state = await fetched(
        store, "u1", Source("s3://models/iris.joblib", secret={"AWS_ENDPOINT_URL": server.url("")})
    )
    assert state.reason is ReasonCode.STORAGE_FORBIDDEN
    assert "without credentials" in state.message
    assert "does not exist" in state.message


async def test_a_bucket_in_another_region_is_found(store: ModelStore, fetched: Fetched) -> None:
    """Such a server refuses the signature of any other region, and names its own."""
    regions: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        match = re.search(r"%2F\d{8}%2F([a-z0-9-]+)%2Fs3|/\d{8}/([a-z0-9-]+)/s3/", head)
        region = "" if match is None else match.group(1) or match.group(2)
        regions.append(region)
        body = MODEL[:1000]
        if region != "eu-central-1":
            body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-central-1</Region></Error>"
        lines = [
            f"HTTP/1.1 {200 if region == 'eu-central-1' else 400} X",
            f"content-length: {len(body)}",
            'etag: "v1"',
            "last-modified: Mon, 05 Jan 2026 10:00:00 GMT",
            "connection: close",
        ]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if not head.startswith("HEAD"):
            writer.write(body)
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    secret = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    state = await fetched(store, "u1", Source("s3://models/iris.joblib", secret=secret))
    assert state.phase is ArtifactPhase.PRESENT, state.message
    assert regions[0] == "us-east-1"
    assert regions[-1] == "eu-central-1"
    listener.close()
    await listener.wait_closed()
