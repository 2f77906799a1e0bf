"""Hugging Face hubs, against a small server that speaks the hub's interface."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.store import ModelStore, Source
from range_server import RangeServer

Fetched = Callable[[ModelStore, str, Source], Coroutine[Any, Any, ArtifactState]]
OpenStore = Callable[..., Coroutine[Any, Any, ModelStore]]

MODEL = b"\x80\x04" + os.urandom(200_000)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def publish(server: RangeServer, revision: str = "main", *, digest: str = "", commit: str = COMMIT) -> None:
    """A repository with a large model, whose bytes lie elsewhere, and a note."""
    digest = digest or hashlib.sha256(MODEL).hexdigest()
    files = [
        {"rfilename": ".gitattributes", "size": 3},
        {"rfilename": "skops/model.joblib", "size": 130, "lfs": {"sha256": digest, "size": len(MODEL)}},
        {"rfilename": "README.md", "size": 5},
    ]
    server.answers[f"/api/models/owner/iris/revision/{revision}"] = lambda: {"sha": commit, "siblings": files}
    base = f"/owner/iris/resolve/{commit}"
    server.put(f"{base}/skops/model.joblib", b"", status=302, location="/cdn/blob")
    server.put("/cdn/blob", MODEL)
    server.put(f"{base}/README.md", b"hello", content_type="text/html")


async def test_a_repository_arrives_at_one_commit(
    open_store: OpenStore, server: RangeServer, fetched: Fetched
) -> None:
    publish(server)
    store = await open_store(environment={"HF_ENDPOINT": server.url("")})
    server.cuts = [50_000, None]
    state = await fetched(store, "u1", Source("hf://owner/iris"))
    assert state.phase is ArtifactPhase.PRESENT
    folder = Path(state.path)
    assert (folder / "skops" / "model.joblib").read_bytes() == MODEL
    assert (folder / "README.md").read_bytes() == b"hello"
    assert not (folder / ".gitattributes").exists()
    assert state.total_bytes == len(MODEL) + 5


@pytest.mark.parametrize(
    ("uri", "revision"),
    [
        ("hf://owner/iris:v1.0/skops/model.joblib", "v1.0"),
        ("hf://owner/iris:refs/pr/1/skops", "refs/pr/1"),
    ],
)
async def test_a_revision_and_a_path_in_it(
    store: ModelStore, server: RangeServer, fetched: Fetched, uri: str, revision: str
) -> None:
    publish(server, revision)
    state = await fetched(store, "u1", Source(uri, secret={"HF_ENDPOINT": server.url("")}))
    assert state.phase is ArtifactPhase.PRESENT
    assert Path(state.path).name == "model.joblib"
    assert Path(state.path).read_bytes() == MODEL


async def test_a_moved_branch_is_another_version(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    source = Source("hf://owner/iris", secret={"HF_ENDPOINT": server.url("")})
    publish(server)
    first = await fetched(store, "u1", source)
    assert (await fetched(store, "u2", source)).path == first.path
    publish(server, commit="f" * 40)
    assert (await fetched(store, "u3", source)).path != first.path


async def test_the_hubs_own_digest_is_checked(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    publish(server, digest="0" * 64)
    state = await fetched(store, "u1", Source("hf://owner/iris", secret={"HF_ENDPOINT": server.url("")}))
    assert state.reason is ReasonCode.CHECKSUM_MISMATCH
    assert "0" * 64 in state.message


async def test_the_token_goes_to_the_hub_only(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    publish(server)
    elsewhere = RangeServer()
    await elsewhere.start()
    server.files[f"/owner/iris/resolve/{COMMIT}/skops/model.joblib"].location = elsewhere.put("/blob", MODEL)
    secret = {"HF_ENDPOINT": server.url(""), "HF_TOKEN": "hf_sesame"}
    state = await fetched(store, "u1", Source("hf://owner/iris", secret=secret))
    assert state.phase is ArtifactPhase.PRESENT
    assert {request.headers.get("authorization") for request in server.seen} == {"Bearer hf_sesame"}
    assert {request.headers.get("authorization") for request in elsewhere.seen} == {None}
    await elsewhere.close()


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (401, ReasonCode.STORAGE_UNAUTHORIZED, "does not exist, or it is private"),
        (403, ReasonCode.STORAGE_FORBIDDEN, "gated"),
        (404, ReasonCode.MODEL_NOT_FOUND, "404"),
        (502, ReasonCode.STORAGE_UNREACHABLE, "502"),
    ],
)
async def test_refusals(
    store: ModelStore,
    server: RangeServer,
    fetched: Fetched,
    status: int,
    reason: ReasonCode,
    words: str,
) -> None:
    server.put("/api/models/owner/iris/revision/main", b"", status=status)
    state = await fetched(store, "u1", Source("hf://owner/iris", secret={"HF_ENDPOINT": server.url("")}))
    assert state.reason is reason
    assert words in state.message


@pytest.mark.parametrize("answer", [[], {"sha": 1}, {"sha": "x", "siblings": [1, None, {"rfilename": 5}]}])
async def test_answers_of_an_unknown_shape_are_failures_not_faults(
    store: ModelStore, server: RangeServer, fetched: Fetched, answer: object
) -> None:
    server.answers["/api/models/owner/iris/revision/main"] = lambda: answer
    state = await fetched(store, "u1", Source("hf://owner/iris", secret={"HF_ENDPOINT": server.url("")}))
    assert state.phase is ArtifactPhase.FAILED
    assert "Error" not in state.message


async def test_a_hub_cannot_place_files_outside(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    server.answers["/api/models/owner/iris/revision/main"] = lambda: {
        "sha": COMMIT,
        "siblings": [{"rfilename": "../../evil", "size": 1}],
    }
    state = await fetched(store, "u1", Source("hf://owner/iris", secret={"HF_ENDPOINT": server.url("")}))
    assert state.reason is ReasonCode.UNSAFE_ARCHIVE
