"""The SDK against the real API, over a socket: what one writes, the other reads."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from api_world import World, wait_for
from inferplane import (
    AlreadyExistsError,
    AsyncClient,
    Client,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnauthenticatedError,
    UnavailableError,
    WaitTimeoutError,
)
from inferplane.engines.port import LogLine
from inferplane.locks import acquire_lock

IRIS = "/models/iris.joblib"
MANIFEST = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: from-yaml}
spec:
  predictor:
    model: {modelFormat: {name: sklearn}, storageUri: /models/iris.joblib}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def client(world: World) -> Iterator[Client]:
    with Client(world.url, world.owner.key) as owner:
        yield owner


def test_an_endpoints_life(world: World, client: Client) -> None:
    workspace = world.workspace()
    assert client.deploy("iris", format="sklearn", uri=IRIS, workspace=workspace).name == "iris"
    with pytest.raises(AlreadyExistsError) as taken:
        client.deploy("iris", format="sklearn", uri=IRIS, workspace=workspace)
    assert (taken.value.status, taken.value.reason, taken.value.field) == (
        409,
        "EndpointExists",
        "endpointName",
    )
    assert taken.value.next_action
    assert taken.value.request_id

    assert client.describe("iris", workspace=workspace).status == "Pending"
    with pytest.raises(WaitTimeoutError, match="still Pending"):
        client.wait_until_running("iris", 0.1, workspace=workspace)
    world.run(workspace, "iris")
    seen: list[str] = []
    found = client.wait_until_running(
        "iris", 10, workspace=workspace, progress=lambda each: seen.append(each.status)
    )
    assert (found.status, found.reason, seen) == ("Running", "", ["Running"])
    assert found.path_endpoint == f"http://127.0.0.1:7080/serving/{workspace}/iris/v1/models/iris:predict"
    assert found.model.example
    assert [step.name for step in found.timeline] == ["accepted", "downloaded", "started", "loaded", "ready"]

    (item,) = client.list(workspace=workspace)
    assert (item.endpoint_name, item.model_name, item.status) == ("iris", "sklearn", "Running")
    assert client.list(workspace=workspace, status="Failed") == []
    assert client.explain("iris", workspace=workspace).status == "Running"
    assert client.events("iris", workspace=workspace)[0].kind == "EndpointCreated"

    assert client.stop("iris", workspace=workspace) == "iris"
    assert client.start("iris", workspace=workspace) == "iris"
    assert client.delete("iris", workspace=workspace) == "iris"
    assert client.describe("iris", workspace=workspace).status == "Terminating"
    world.finish_deletion(workspace, "iris")
    client.wait_until_deleted("iris", 5, workspace=workspace)
    with pytest.raises(NotFoundError):
        client.delete("iris", workspace=workspace)


def test_a_manifest_and_a_dry_run(world: World, client: Client) -> None:
    workspace = world.workspace()
    tried = client.apply(MANIFEST, workspace=workspace, dry_run=True)
    assert (tried.name, tried.ok) == ("from-yaml", True)
    assert {"name", "runtime", "storage"} <= {check.check for check in tried.checks}
    assert client.list(workspace=workspace) == []
    assert client.apply(MANIFEST, name="mine", workspace=workspace).name == "mine"
    assert client.describe("mine", workspace=workspace).model.alias == "from-yaml"


def test_what_cannot_be_meant_is_told_with_its_field(world: World, client: Client) -> None:
    with pytest.raises(InvalidError) as caught:
        client.deploy("iris", format="sklern", uri=IRIS, workspace=world.workspace())
    assert (caught.value.reason, caught.value.field) == ("UnsupportedFormat", "modelSpec.modelName")
    with pytest.raises(InvalidError) as caught:
        client.deploy("Iris_1", format="sklearn", uri=IRIS, workspace=world.workspace(), memory="lots")
    assert len(caught.value.details) >= 2
    with pytest.raises(NotFoundError):
        client.deploy("iris", format="sklearn", uri=IRIS, workspace="nowhere")


def test_the_same_idempotency_key_is_the_same_create(world: World, client: Client) -> None:
    workspace = world.workspace()
    for _ in range(2):
        made = client.deploy("iris", format="sklearn", uri=IRIS, workspace=workspace, idempotency_key="once")
        assert made.name == "iris"
    with pytest.raises(ConflictError):
        client.deploy("other", format="sklearn", uri=IRIS, workspace=workspace, idempotency_key="once")


def test_keys_and_what_their_roles_allow(world: World, client: Client) -> None:
    workspace = world.workspace()
    key = client.create_api_key("ci", role="Viewer", validity="30d", workspace=workspace)
    (item,) = client.list_api_keys(workspace=workspace)
    assert (item.name, item.role, item.workspace_name) == ("ci", "Viewer", workspace)
    assert item.expires_at is not None
    with Client(world.url, key) as viewer:
        assert viewer.list(workspace=workspace) == []
        with pytest.raises(ForbiddenError):
            viewer.deploy("iris", format="sklearn", uri=IRIS, workspace=workspace)
        client.delete_api_key(item.id)
        with pytest.raises(UnauthenticatedError):
            viewer.list(workspace=workspace)


def test_a_token_that_expired_is_renewed(world: World, client: Client) -> None:
    assert client.list_clusters()
    world.later += timedelta(seconds=901)
    try:
        assert {each.name for each in client.list_clusters()} >= {"local"}
    finally:
        world.later = timedelta(0)


def test_workspaces(world: World, client: Client) -> None:
    name = world.name("ws")
    assert client.create_workspace(name, username="me", email="me@example.test", namespaces=["a"]) == name
    with pytest.raises(AlreadyExistsError):
        client.create_workspace(name, username="me", email="me@example.test")
    client.update_workspace(name, namespaces=["b", "c"])
    (found,) = [each for each in client.list_workspaces() if each.name == name]
    assert [each.namespace for each in found.namespaces] == ["b", "c"]
    world.create(name, "iris")
    with pytest.raises(ConflictError, match="iris"):
        client.delete_workspace(name)
    client.delete("iris", workspace=name)
    world.finish_deletion(name, "iris")
    client.delete_workspace(name)
    assert name not in {each.name for each in client.list_workspaces()}


def test_logs_are_read_and_followed(world: World, client: Client) -> None:
    workspace = world.workspace()
    world.create(workspace, "iris")
    with pytest.raises(NotFoundError) as caught:
        client.logs("iris", workspace=workspace)
    assert caught.value.reason == "NoLog"
    uid = world.stored(workspace, "iris").uid
    world.engine.lines[uid] = [LogLine("r1-0", "one"), LogLine("r1-0", "two")]
    assert [line.text for line in client.logs("iris", workspace=workspace, tail=1)] == ["two"]
    (first, *_) = client.logs("iris", workspace=workspace, previous=True, replica="r1-0")
    assert first.text == "previous one"

    queue: asyncio.Queue[LogLine | None] = asyncio.Queue()
    world.engine.more[uid] = queue
    lines = client.follow_logs("iris", workspace=workspace)
    assert [next(lines).text, next(lines).text] == ["one", "two"]
    world.do(queue.put(LogLine("r1-0", "three")))
    assert next(lines).text == "three"
    lines.close()  # type: ignore[attr-defined]
    wait_for(lambda: world.engine.followers == 0, "the engine to be left alone again")


def test_a_watch_shows_what_is_there_and_what_changes(world: World, client: Client) -> None:
    workspace = world.workspace()
    world.create(workspace, "one")
    watched = client.watch(workspace=workspace)
    assert _short(next(watched)) == ("ADDED", "one", "Pending")
    world.run(workspace, "one")
    # A status that a controller saves announces itself by the event saved with it; a stop does, too.
    client.stop("one", workspace=workspace)
    kind, name, _ = _short(next(watched))
    assert (kind, name) == ("MODIFIED", "one")
    watched.close()  # type: ignore[attr-defined]


def _short(change: tuple[str, object]) -> tuple[str, str, str]:
    kind, item = change
    return kind, str(getattr(item, "endpoint_name", "")), str(getattr(item, "status", ""))


def test_readiness(world: World, client: Client) -> None:
    assert client.readiness().status == "ready"
    world.unready["gateway"] = "Envoy is starting"
    try:
        with pytest.raises(UnavailableError, match="Envoy is starting"):
            client.readiness()
    finally:
        world.unready["gateway"] = ""


async def test_the_awaiting_client_over_the_same_api(world: World) -> None:
    workspace = await asyncio.to_thread(world.workspace)
    async with AsyncClient(world.url, world.owner.key) as client:
        await asyncio.gather(
            *(client.deploy(f"e{each}", format="sklearn", uri=IRIS, workspace=workspace) for each in range(5))
        )
        await asyncio.to_thread(world.run, workspace, "e0")
        assert (await client.wait_until_running("e0", 10, workspace=workspace)).status == "Running"
        items = await client.list(workspace=workspace)
        assert [item.endpoint_name for item in items] == ["e0", "e1", "e2", "e3", "e4"]
        seen = []
        async for kind, item in client.watch(workspace=workspace):
            seen.append((kind, item.endpoint_name))
            if len(seen) == 5:
                break
        assert seen == [("ADDED", f"e{each}") for each in range(5)]


def test_a_client_without_arguments_finds_this_machines_platform(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("INFERPLANE_API_URL", "INFERPLANE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("INFERPLANE_HOME", str(world.folder))
    lock = acquire_lock(world.folder / "up.lock")
    assert lock is not None
    (world.folder / "api.url").write_text(f"{world.url}\n")
    with Client() as client:
        assert client.base_url == world.url
        assert client.list_clusters()
    os.close(lock)


def test_calls_from_several_threads(world: World, client: Client) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(client.list_clusters()))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [3] * 10
