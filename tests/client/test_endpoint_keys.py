"""Endpoint keys in the SDK: where they come from, and that they go to endpoints only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api_world import World
from inferplane import Client, InvalidError, NotFoundError
from inferplane.settings import load_client_settings


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("api")) as running:
        yield running


def test_keys_and_usage(world: World) -> None:
    team = world.workspace()
    world.create(team, "iris")
    with Client(world.url, world.owner.key) as client:
        made = client.create_endpoint_key("app", validity="1d", workspace=team, endpoints=["iris"])
        (item,) = client.list_endpoint_keys(workspace=team)
        assert (item.key_id, item.endpoints) == (made.key_id, ("iris",))
        with pytest.raises(InvalidError):
            client.create_endpoint_key("app", validity="1d", workspace=team, endpoints=["nowhere"])
        client.delete_endpoint_key(made.key_id)
        with pytest.raises(NotFoundError):
            client.delete_endpoint_key(made.key_id)
        assert client.usage(workspace=team, by="day").items == ()
        assert client.usage_csv(workspace=team).startswith("start,endpoint,")
        with pytest.raises(InvalidError):
            client.usage_csv(workspace=team, by="week")


@pytest.mark.parametrize("own", ["", "from-environment"])
def test_predictions_carry_the_endpoint_key_and_nothing_else_does(
    world: World, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERPLANE_ENDPOINT_KEY", own)
    team = world.workspace()
    world.create(team, "iris")
    seen: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.url.path, request.headers.get("authorization", "")))
        if request.url.path.startswith("/serving/"):
            return httpx.Response(200, json={"predictions": [0]})
        with httpx.Client() as straight:
            return straight.send(request)

    with Client(world.url, world.owner.key, httpx.MockTransport(answer)) as client:
        client.predict("iris", instances=[[1]], workspace=team)
        client.predict("iris", instances=[[1]], workspace=team, key="given")
        client.infer("iris", inputs=[], workspace=team, key="given")
    sent = [value for path, value in seen if path.startswith("/serving/")]
    assert sent == [f"Bearer {own}" if own else "", "Bearer given", "Bearer given"]
    assert not [value for path, value in seen if path.startswith("/api/") and own and own in value]


def test_the_key_of_the_environment(tmp_path: Path) -> None:
    environment = {
        "INFERPLANE_ENDPOINT_KEY": " k ",
        "INFERPLANE_API_URL": "http://h",
        "INFERPLANE_API_KEY": "a",
    }
    assert load_client_settings(environment, user_home=tmp_path).endpoint_key == "k"
