"""MLflow's registry, against a small server that speaks its interface: versions, aliases, stages, places."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.store import ModelStore, Source
from range_server import RangeServer

Fetched = Callable[[ModelStore, str, Source], Coroutine[Any, Any, ArtifactState]]
OpenStore = Callable[..., Coroutine[Any, Any, ModelStore]]

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
MODEL = b"\x80\x04 a model " * 1000
FILES = {"MLmodel": b"flavors: {sklearn: {}}\n", "model.pkl": MODEL, "metadata/notes.txt": b"hello"}


def register(server: RangeServer, version: int, place: str, *, name: str = "iris", **more: str) -> None:
    """Version `version` of a model lies at `place`."""
    asked = {"name": name, "version": str(version)}
    answers = server.answers
    answers[_asked("model-versions/get-download-uri", asked)] = lambda: {"artifact_uri": place}
    known = {"name": name, "version": str(version), "current_stage": more.get("stage", "None")}
    before = answers.get(_asked("registered-models/get", {"name": name}), lambda: {"registered_model": {}})()
    assert isinstance(before, dict)
    newest = [*before["registered_model"].get("latest_versions", []), known]
    answer = {"registered_model": {"name": name, "latest_versions": newest}}
    answers[_asked("registered-models/get", {"name": name})] = lambda: answer
    if "alias" in more:
        alias = {"name": name, "alias": more["alias"]}
        answers[_asked("registered-models/alias", alias)] = lambda: {"model_version": known}


def hand_out(server: RangeServer, path: str) -> str:
    """The tracking server itself hands out FILES below `path`."""
    listings: dict[str, list[dict[str, Any]]] = {
        path: [
            {"path": "MLmodel", "is_dir": False, "file_size": len(FILES["MLmodel"])},
            {"path": "metadata", "is_dir": True},
            {"path": "model.pkl", "is_dir": False, "file_size": str(len(MODEL))},
        ],
        f"{path}/metadata": [{"path": "notes.txt", "is_dir": False, "file_size": 5}],
    }
    for folder, files in listings.items():
        server.answers[f"{ARTIFACTS}?path={folder}"] = lambda files=files: {"files": files}  # type: ignore[misc]
    for name, body in FILES.items():
        server.put(f"{ARTIFACTS}/{quote(path)}/{name}", body)
    return f"mlflow-artifacts:/{path}"


def _asked(what: str, asked: dict[str, str]) -> str:
    return f"{API}/{what}?{urlencode(asked)}"


def secret(server: RangeServer, **more: str) -> dict[str, str]:
    return {"MLFLOW_TRACKING_URI": server.url(""), **more}


def content(state: ArtifactState) -> dict[str, bytes]:
    assert state.phase is ArtifactPhase.PRESENT, state
    folder = Path(state.path)
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize(
    ("uri", "version"),
    [
        ("models:/iris/2", 2),
        ("models:/iris/latest", 3),
        ("models:/iris@champion", 1),
        ("models:/iris/Production", 2),
    ],
)
async def test_a_version_is_found_by_number_alias_stage_or_as_the_latest(
    store: ModelStore, server: RangeServer, fetched: Fetched, tmp_path: Path, uri: str, version: int
) -> None:
    for each in (1, 2, 3):
        place = tmp_path / f"v{each}"
        place.mkdir()
        (place / "model.pkl").write_bytes(b"version %d" % each)
        stage = {"stage": "Production"} if each == 2 else {}
        alias = {"alias": "champion"} if each == 1 else {}
        register(server, each, f"file://{place}", **stage, **alias)
    state = await fetched(store, "u1", Source(uri, secret=secret(server)))
    assert content(state) == {"model.pkl": b"version %d" % version}
    assert Path(state.path) == tmp_path / f"v{version}", "used where it lies"


async def test_what_the_tracking_server_hands_out_arrives_whole(
    open_store: OpenStore, server: RangeServer, fetched: Fetched
) -> None:
    register(server, 1, hand_out(server, "1/0af3/artifacts/model"))
    store = await open_store(environment={"MLFLOW_TRACKING_URI": server.url("/")})
    credentials = {"MLFLOW_TRACKING_USERNAME": "ann", "MLFLOW_TRACKING_PASSWORD": "hunter2"}
    state = await fetched(store, "u1", Source("models:/iris/1", secret=credentials))
    assert content(state) == FILES
    assert {seen.headers.get("authorization") for seen in server.seen} == {"Basic YW5uOmh1bnRlcjI="}
    checks = await store.probe(Source("models:/iris/1", secret=credentials), (".pkl",))
    assert all(check.ok for check in checks), checks


async def test_a_model_that_is_named_by_its_id_and_one_that_refers_to_it(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    place = hand_out(server, "models/m-0af3/artifacts")
    server.answers[f"{API}/logged-models/m-0af3"] = lambda: {"model": {"info": {"artifact_uri": place}}}
    register(server, 1, "models:/m-0af3")
    token = secret(server, MLFLOW_TRACKING_TOKEN="t0ken")
    assert content(await fetched(store, "u1", Source("models:/m-0af3", secret=token))) == FILES
    assert content(await fetched(store, "u2", Source("models:/iris/1", secret=token))) == FILES
    assert {seen.headers.get("authorization") for seen in server.seen} == {"Bearer t0ken"}


async def test_an_alias_that_moved_names_another_model(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    source = Source("models:/iris@champion", secret=secret(server))
    register(server, 1, hand_out(server, "1/a"), alias="champion")
    first = await fetched(store, "u1", source)
    server.put("/elsewhere/model.pkl", b"another")
    register(server, 2, server.url("/elsewhere/model.pkl"), alias="champion")
    second = await fetched(store, "u2", source)
    assert Path(second.path).read_bytes() == b"another"
    assert first.path != second.path
    server.answers.clear()
    server.put(f"{API}/registered-models/alias", b"", status=503)
    assert (await fetched(store, "u3", source)).path == second.path, "no answer: what is here serves"
    assert server.seen[-1].status == 503


@pytest.mark.parametrize(
    ("uri", "place", "reason", "words"),
    [
        ("models:/iris/9", "", ReasonCode.MODEL_NOT_FOUND, "models:/iris/9"),
        ("models:/iris@nobody", "", ReasonCode.MODEL_NOT_FOUND, "models:/iris@nobody"),
        ("models:/iris/Archived", "s3://b/k", ReasonCode.MODEL_NOT_FOUND, "no version"),
        ("models:/iris/1", "dbfs:/models/iris", ReasonCode.SCHEME_NOT_SUPPORTED, "not understood"),
        ("models:/iris/1", "models:/iris/1", ReasonCode.MODEL_NOT_FOUND, "one reference to the next"),
        ("models:/iris/1", "mlflow-artifacts:/a/../../b", ReasonCode.UNSAFE_ARCHIVE, ".."),
        ("models:/iris/1", "mlflow-artifacts:/nothing/here", ReasonCode.MODEL_NOT_FOUND, "models:/iris/1"),
    ],
)
async def test_what_the_registry_does_not_know_or_cannot_be_fetched_is_said(
    store: ModelStore,
    server: RangeServer,
    fetched: Fetched,
    uri: str,
    place: str,
    reason: ReasonCode,
    words: str,
) -> None:
    if place:
        register(server, 1, place)
    state = await fetched(store, "u1", Source(uri, secret=secret(server)))
    assert (state.phase, state.reason) == (ArtifactPhase.FAILED, reason), state
    assert words in state.message


async def test_without_a_registry_it_says_what_to_set(store: ModelStore, fetched: Fetched) -> None:
    state = await fetched(store, "u1", Source("models:/iris/1"))
    assert (state.phase, state.reason) == (ArtifactPhase.FAILED, ReasonCode.MODEL_NOT_FOUND)
    assert "MLFLOW_TRACKING_URI is missing" in state.message


async def test_another_server_is_not_told_the_credentials(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    hand_out(server, "1/a")
    register(server, 1, f"mlflow-artifacts://127.0.0.1:{server.port}/1/a")
    token = secret(server, MLFLOW_TRACKING_TOKEN="t0ken")
    assert content(await fetched(store, "u1", Source("models:/iris/1", secret=token))) == FILES
    told = {seen.path for seen in server.seen if "authorization" in seen.headers}
    assert told == {f"{API}/model-versions/get-download-uri"}
