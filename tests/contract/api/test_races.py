"""Many callers at the same moment, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from api_world import Client, World

ENDPOINT = "/api/v1/inference-endpoint"
CALLERS = 8


@pytest.fixture(params=["sqlite", "postgresql"])
def racing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    url = "" if request.param == "sqlite" else str(request.getfixturevalue("postgres_url"))
    with World(tmp_path, database_url=url) as world:
        yield world


def at_once(client: Client, requests: list[tuple[str, str, Any, dict[str, str]]]) -> list[Any]:
    client.token()
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda each: client(each[0], each[1], each[2], headers=each[3]), requests))


def body(team: str, name: str) -> dict[str, Any]:
    return {
        "endpointName": name,
        "workspace": team,
        "modelSpec": {"modelName": "sklearn", "storageURI": "/m.joblib"},
    }


def test_races_have_one_winner(racing: World) -> None:
    owner, team = racing.owner, racing.workspace()
    replies = at_once(owner, [("POST", ENDPOINT, body(team, "one"), {})] * CALLERS)
    assert sorted(reply.status for reply in replies) == [200] + [409] * (CALLERS - 1)

    # The same request with the same idempotency key is one request, however it races with itself.
    headers = {"Idempotency-Key": "same"}
    replies = at_once(owner, [("POST", ENDPOINT, body(team, "two"), headers)] * CALLERS)
    assert [reply.data for reply in replies] == [{"endpointName": "two"}] * CALLERS
    key = {"name": "k", "role": "Owner", "validity": "1d"}
    replies = at_once(owner, [("POST", "/api/v1/api-key", key, {"Idempotency-Key": "key"})] * CALLERS)
    assert len({reply.data["apiKey"] for reply in replies}) == 1

    places = [{"endpoint": name, "workspace": team} for name in ("one", "two")] * 4
    replies = at_once(owner, [("DELETE", ENDPOINT, place, {}) for place in places])
    assert {reply.status for reply in replies} == {200}
    kinds = [each["kind"] for each in owner("GET", f"{ENDPOINT}/events?workspace={team}").data["events"]]
    assert sorted(kinds) == ["EndpointCreated"] * 2 + ["EndpointDeletionRequested"] * 2

    replies = at_once(owner, [("POST", ENDPOINT, body(team, f"e{n}"), {}) for n in range(CALLERS)])
    assert {reply.status for reply in replies} == {200}
    listed = owner("GET", f"{ENDPOINT}/list?workspace={team}").data["endpoints"]
    assert [each["endpointName"] for each in listed] == sorted(
        [*(f"e{n}" for n in range(CALLERS)), "one", "two"]
    )
    assert len({each["uid"] for each in listed}) == len({each["namespace"] for each in listed}) == CALLERS + 2
