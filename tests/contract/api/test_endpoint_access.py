"""Who may send requests to an endpoint, keys for them, and what was used: the API's part."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest

from api_world import Client, World, checked
from inferplane.controllers.endpoint_routes import routes_of, with_keys
from inferplane.domain.endpoint_access import Access, EndpointKey, LogPosition, Usage, Used
from inferplane.gateway.endpoint_keys import AUDIENCE, key_set
from inferplane.services.context import Limits
from inferplane.store.sql import Change
from inferplane.wire import paths

KEY, KEYS, USAGE = paths.ENDPOINT_KEY, paths.ENDPOINT_KEY_LIST, paths.USAGE


def made(client: Client, team: str, **more: Any) -> dict[str, str]:
    body = {"workspace": team, "name": "app", "validity": "30d", **more}
    data: dict[str, str] = client("POST", KEY, body).data
    assert set(data) == {"endpointKey", "keyId"}
    return data


def claims(world: World, value: str) -> dict[str, Any]:
    public = jwt.PyJWKSet.from_json(key_set(world.signing_key)).keys[0]
    said: dict[str, Any] = jwt.decode(value, public, algorithms=["ES256"], audience=AUDIENCE)
    return said


# Access and limits of an endpoint


def test_access_and_limits_are_kept_shown_and_routed(world: World, owner: Client, team: str) -> None:
    limits = {"requestsPerSecond": 5, "burst": 9, "requestsPerSecondPerKey": 0.5, "concurrencyMax": 3}
    body = {
        "endpointName": "iris",
        "workspace": team,
        "modelSpec": {"modelName": "sklearn", "storageURI": "/m.joblib"},
        "access": "KEY",
        "limits": limits,
    }
    assert owner("POST", paths.ENDPOINT, body).data == {"endpointName": "iris", "access": "key"}
    shown = owner("GET", f"{paths.ENDPOINT}?workspace={team}&endpoint=iris").data["endpoint"]
    assert shown["access"] == "key"
    assert limits.items() <= shown["limits"].items()
    assert '-H "Authorization: Bearer $INFERPLANE_ENDPOINT_KEY" \\' in shown["tryCommand"]
    assert "INFERPLANE_ENDPOINT_KEY" in shown["tryNote"]
    [item] = owner("GET", f"{paths.ENDPOINT_LIST}?workspace={team}").data["endpoints"]
    assert item["access"] == "key"
    routes = routes_of(world.stored(team, "iris"))
    assert (routes.access, routes.requests_per_second, routes.burst) == (Access.KEY, 5, 9)
    assert (routes.requests_per_second_per_key, routes.concurrency_max) == (0.5, 3)


def test_access_is_open_here_unless_asked_otherwise(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    shown = owner("GET", f"{paths.ENDPOINT}?workspace={team}&endpoint={name}").data["endpoint"]
    assert shown["access"] == "open"
    assert not any("Authorization" in line for line in shown["tryCommand"])


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"access": "nobody"}, "access"),
        ({"limits": {"requestsPerSecond": -1}}, "limits.requestsPerSecond"),
        ({"limits": {"requestsPerSecondPerKey": 1e9}}, "limits.requestsPerSecondPerKey"),
        ({"limits": {"burst": 2_000_000}}, "limits.burst"),
        ({"limits": {"concurrencyMax": -5}}, "limits.concurrencyMax"),
        ({"limits": {"concurrencyMaxPerKey": 10**6}}, "limits.concurrencyMaxPerKey"),
        ({"limits": {"concurrencyMax": 5, "concurrencyMaxPerKey": 2}}, "limits.concurrencyMaxPerKey"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_field(
    owner: Client, team: str, more: dict[str, Any], field: str
) -> None:
    body = {
        "endpointName": "iris",
        "workspace": team,
        "modelSpec": {"modelName": "sklearn", "storageURI": "/m.joblib"},
        **more,
    }
    error = owner("POST", paths.ENDPOINT, body).is_error(422, "INVALID")
    assert error["field"] == field


def test_limits_without_effect_are_warned_of(owner: Client, team: str) -> None:
    body = {
        "endpointName": "iris",
        "workspace": team,
        "modelSpec": {"modelName": "sklearn", "storageURI": "/m.joblib"},
        "access": "open",
        "limits": {"burst": 5, "requestsPerSecondPerKey": 1},
    }
    warnings = owner("POST", paths.ENDPOINT, body).data["warnings"]
    assert [word in warning for word, warning in zip(["PerKey", "burst"], warnings, strict=True)] == [
        True
    ] * 2


def test_a_manifest_says_access_by_annotation(world: World, owner: Client, team: str) -> None:
    manifest = """
        metadata: {name: iris, annotations: {inferplane.io/access: WORD}}
        spec: {predictor: {model: {modelFormat: {name: sklearn}, storageUri: /m.joblib}}}
    """
    body = {"endpointName": "iris", "workspace": team, "rawModelSpec": manifest.replace("WORD", "secret")}
    assert owner("POST", paths.ENDPOINT, body).is_error(422, "INVALID")["reason"] == "InvalidAccess"
    body["rawModelSpec"] = manifest.replace("WORD", "key")
    assert owner("POST", paths.ENDPOINT, body).data["access"] == "key"
    assert world.stored(team, "iris").spec.access is Access.KEY


def test_a_change_of_access_and_limits_makes_no_revision(world: World, owner: Client, team: str) -> None:
    name = world.create(team, limits={"requestsPerSecond": 5, "burst": 2})
    place = {"workspace": team, "endpoint": name}
    change = {**place, "access": "key", "limits": {"requestsPerSecond": 0, "concurrencyMax": 4}}
    assert owner("PATCH", paths.ENDPOINT, change).data["revision"] == 1
    spec = world.stored(team, name).spec
    assert (spec.access, spec.limits.requests_per_second, spec.limits.burst) == (Access.KEY, None, 2)
    assert spec.limits.concurrency_max == 4
    owner("PATCH", paths.ENDPOINT, {**place, "limits": {"timeoutSeconds": 5}}).ok()
    spec = world.stored(team, name).spec
    assert (spec.access, spec.limits.concurrency_max) == (Access.KEY, 4), "what is not given stays"


def test_where_each_keys_requests_are_counted_the_gateway_hears_of_each_key(
    world: World, owner: Client, team: str
) -> None:
    name = world.create(team)
    change = {"workspace": team, "endpoint": name, "access": "key", "limits": {"concurrencyMaxPerKey": 2}}
    owner("PATCH", paths.ENDPOINT, change).ok()
    shown = owner("GET", f"{paths.ENDPOINT}?workspace={team}&endpoint={name}").data["endpoint"]
    assert (shown["limits"]["concurrencyMax"], shown["limits"]["concurrencyMaxPerKey"]) == (None, 2)
    mine = made(owner, team, endpoints=[name])["keyId"]
    ours = made(owner, team)["keyId"]
    gone = made(owner, team)["keyId"]
    owner("DELETE", paths.ENDPOINT_KEY, {"keyId": gone}).ok()
    world.create(team, "other")
    made(owner, team, endpoints=["other"])
    endpoint = world.stored(team, name)

    async def matter() -> list[EndpointKey]:
        async with world.store.read() as tx:
            return await tx.keys_that_matter(endpoint, world.now())

    routes = with_keys(routes_of(endpoint), world.do(matter()))
    assert (routes.concurrency_max_per_key, set(routes.keys)) == (2, {mine, ours})
    assert routes.revoked_keys == (gone,)
    both = {"workspace": team, "endpoint": name, "limits": {"concurrencyMax": 4}}
    error = owner("PATCH", paths.ENDPOINT, both).is_error(422, "INVALID", "Contradiction")
    assert "0" in error["nextAction"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A platform whose endpoints want keys unless said otherwise."""
    with World(tmp_path_factory.mktemp("guarded"), default_access=Access.KEY) as world:
        yield world


def test_where_key_is_the_default_the_answer_says_so(guarded: World) -> None:
    team, owner = guarded.workspace(), guarded.owner
    body = {
        "endpointName": "iris",
        "workspace": team,
        "modelSpec": {"modelName": "sklearn", "storageURI": "/m.joblib"},
    }
    data = owner("POST", paths.ENDPOINT, body).data
    assert data["access"] == "key"
    assert "POST /endpoint-key" in data["warnings"][0]
    asked = owner("POST", paths.ENDPOINT, {**body, "endpointName": "other", "access": "key"}).data
    assert asked == {"endpointName": "other", "access": "key"}, "who asked for it needs no warning"
    opened = owner("POST", paths.ENDPOINT, {**body, "endpointName": "third", "access": "open"}).data
    assert opened == {"endpointName": "third"}


# Keys


def test_a_key_says_what_it_opens_and_is_listed_without_its_value(
    world: World, owner: Client, team: str
) -> None:
    for name in ("iris", "wine"):
        world.create(team, name)
    one = made(owner, team, endpoints=["wine", "iris", "wine"], requestsPerSecond=2.5)
    every = made(owner, team, name="all", validity="1h")
    said = claims(world, one["endpointKey"])
    assert said["sub"] == one["keyId"]
    assert said["endpoints"] == [world.stored(team, name).uid for name in ("wine", "iris")]
    assert claims(world, every["endpointKey"])["endpoints"] == [f"{team}/*"]
    items = owner("GET", f"{KEYS}?workspace={team}").data["items"]
    assert [(each["keyId"], each["name"], each["endpoints"]) for each in items] == [
        (one["keyId"], "app", ["wine", "iris"]),
        (every["keyId"], "all", []),
    ]
    assert items[0]["requestsPerSecond"] == 2.5
    expires = datetime.fromisoformat(items[0]["expiresAt"])
    assert expires.timestamp() == said["exp"]
    assert not items[0]["expired"]
    for text in (str(items), str(owner("GET", f"{paths.AUDIT}?workspace={team}").data)):
        assert one["endpointKey"] not in text
        assert one["endpointKey"].rpartition(".")[2] not in text
    world.later = timedelta(hours=2)
    late = Client(world, owner.key)("GET", f"{KEYS}?workspace={team}").data["items"]
    assert [each["expired"] for each in late] == [False, True]


def test_the_value_of_a_key_is_stored_nowhere(world: World, owner: Client, team: str) -> None:
    value = made(owner, team)["endpointKey"]
    stored = b"".join(path.read_bytes() for path in Path(world.folder).rglob("*") if path.is_file())
    assert value.rpartition(".")[2].encode() not in stored


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"name": " "}, "name"),
        ({"validity": "soon"}, "validity"),
        ({"validity": "2020-01-01"}, "validity"),
        ({"endpoints": []}, "endpoints"),
        ({"endpoints": ["nowhere"]}, "endpoints[0]"),
        ({"endpoints": [f"e{number}" for number in range(101)]}, "endpoints"),
        ({"requestsPerSecond": 0}, "requestsPerSecond"),
    ],
)
def test_a_key_that_cannot_be_meant_is_refused(
    owner: Client, team: str, more: dict[str, Any], field: str
) -> None:
    body = {"workspace": team, "name": "n", "validity": "1d", **more}
    error = owner("POST", KEY, body).is_error(422, "INVALID")
    assert error["field"] == field


def test_the_same_request_gives_the_same_key_until_it_is_revoked(
    world: World, owner: Client, team: str
) -> None:
    body = {"workspace": team, "name": "n", "validity": "1d"}
    headers = {"Idempotency-Key": world.name("once")}
    first, second = (owner("POST", KEY, body, headers=headers).data for _ in range(2))
    assert first["keyId"] == second["keyId"]
    assert claims(world, first["endpointKey"]) == claims(world, second["endpointKey"])
    owner("DELETE", KEY, {"keyId": first["keyId"]}).ok()
    error = owner("POST", KEY, body, headers=headers).is_error(409, "CONFLICT")
    assert error["reason"] == "EndpointKeyRevoked"


def test_a_revoked_key_is_told_to_its_endpoints_and_leaves_the_list(
    world: World, owner: Client, team: str
) -> None:
    for name in ("iris", "wine"):
        world.create(team, name, access="open")
    key = made(owner, team, endpoints=["iris"])
    told: list[Change] = []
    stop = world.store.subscribe(told.append)
    owner("DELETE", KEY, {"keyId": key["keyId"]}).ok()
    stop()
    assert "iris" in {change.endpoint for change in told}
    assert "wine" not in {change.endpoint for change in told}
    assert owner("GET", f"{KEYS}?workspace={team}").data["items"] == []
    owner("DELETE", KEY, {"keyId": key["keyId"]}).is_error(404, "NOT_FOUND", "EndpointKeyNotFound")
    owner("DELETE", KEY, {"keyId": key["endpointKey"]}).is_error(422, "INVALID", "NotAnId")
    kinds = [each["kind"] for each in owner("GET", f"{paths.AUDIT}?workspace={team}").data["items"]]
    assert kinds[-2:] == ["EndpointKeyCreated", "EndpointKeyRevoked"]


def test_keys_of_a_workspace_that_went_do_not_open_the_next_of_its_name(world: World, owner: Client) -> None:
    team = world.workspace()
    key = made(owner, team)
    owner("DELETE", paths.WORKSPACE, {"workspaceName": team}).ok()
    body = {"workspaceName": team, "clusters": ["local"], "namespaces": [], "username": "", "email": ""}
    owner("POST", paths.WORKSPACE, body).ok()
    name = world.create(team)
    assert owner("GET", f"{KEYS}?workspace={team}").data["items"] == []

    endpoint = world.stored(team, name)
    endpoint = replace(endpoint, spec=replace(endpoint.spec, access=Access.KEY))

    async def refused() -> list[str]:
        async with world.store.read() as tx:
            return [each.id for each in await tx.keys_that_matter(endpoint, world.now())]

    assert world.do(refused()) == [key["keyId"]]


def test_a_workspace_has_a_limited_number_of_keys(tmp_path: Path) -> None:
    with World(tmp_path, Limits(endpoint_keys_max=2)) as world:
        team = world.workspace()
        first = made(world.owner, team)
        made(world.owner, team)
        body = {"workspace": team, "name": "n", "validity": "1d"}
        world.owner("DELETE", KEY, {"keyId": first["keyId"]}).ok()
        world.owner("POST", KEY, body).is_error(403, "QUOTA_EXCEEDED", "TooManyEndpointKeys")


def test_an_editor_of_another_workspace_does_not_find_a_key(world: World, owner: Client, team: str) -> None:
    key = made(world.client("Editor", team), team)
    other = world.client("Editor", world.workspace())
    mine = other("DELETE", KEY, {"keyId": key["keyId"]})
    nobodys = other("DELETE", KEY, {"keyId": "ek-nobody"})
    assert (mine.status, mine.body["message"]) == (nobodys.status, nobodys.body["message"])
    assert len(owner("GET", f"{KEYS}?workspace={team}").data["items"]) == 1


def test_an_endpoint_key_does_not_open_the_api(world: World, owner: Client, team: str) -> None:
    value = made(owner, team)["endpointKey"]
    bearer = {"Authorization": f"Bearer {value}"}
    for reply in (
        checked(world.http.get(paths.WORKSPACE_LIST, headers=bearer)),
        checked(world.http.post(paths.AUTH, json={"apiKey": value})),
    ):
        error = reply.is_error(401, "UNAUTHENTICATED", "EndpointKeyNotAccepted")
        assert "opens endpoints at the gateway, and not this API" in error["message"]


# Usage

HOUR = datetime(2030, 5, 1, 10, tzinfo=UTC)


def count(world: World, team: str, *counted: Usage) -> None:
    async def write() -> None:
        async with world.store.transaction() as tx:
            await tx.count_usage(team, LogPosition("f", 1), counted)

    world.do(write())


def used(team: str, endpoint: str = "iris", key_id: str = "", hours: int = 0, **more: int) -> Usage:
    values = Used(**{"requests": 1, **more})
    return Usage(HOUR + timedelta(hours=hours), team, endpoint, f"uid-{endpoint}", key_id, values)


def test_usage_is_told_by_hour_and_day_as_json_and_csv(world: World, owner: Client, team: str) -> None:
    key = made(owner, team, name="=app")["keyId"]
    count(
        world,
        team,
        used(team, key_id=key, rows=3, milliseconds=1500),
        used(team, key_id=key, hours=1, errors=1, tokens=9),
        used(team, "wine"),
        used(team, key_id=key, hours=24),
    )
    span = f"workspace={team}&since=2030-05-01&until=2030-05-03"
    data = owner("GET", f"{USAGE}?{span}").data
    assert data["total"] == {"requests": 4, "errors": 1, "rows": 3, "tokens": 9, "seconds": 1.5}
    assert data["by"] == "hour"
    assert [(each["start"], each["endpoint"], each["keyId"]) for each in data["items"]] == [
        ("2030-05-01T10:00:00Z", "iris", key),
        ("2030-05-01T10:00:00Z", "wine", ""),
        ("2030-05-01T11:00:00Z", "iris", key),
        ("2030-05-02T10:00:00Z", "iris", key),
    ]
    assert data["items"][0]["keyName"] == "=app"
    days = owner("GET", f"{USAGE}?{span}&by=day&endpoint=iris").data["items"]
    assert [(each["start"][:10], each["requests"], each["seconds"]) for each in days] == [
        ("2030-05-01", 2, 1.5),
        ("2030-05-02", 1, 0.0),
    ]
    assert len(owner("GET", f"{USAGE}?{span}&keyId=none").data["items"]) == 1
    first = f"workspace={team}&since=2030-05-01&until=2030-05-01T11:00:00Z&keyId={key}"
    assert len(owner("GET", f"{USAGE}?{first}").data["items"]) == 1

    answer = world.http.get(
        f"{USAGE}?{span}&format=csv", headers={"Authorization": f"Bearer {owner.token()}"}
    )
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    lines = list(csv.reader(io.StringIO(answer.text)))
    assert lines[0][:5] == ["start", "endpoint", "keyId", "keyName", "requests"]
    assert lines[1] == ["2030-05-01T10:00:00Z", "iris", key, "'=app", "1", "0", "3", "0", "1.5"]
    assert len(lines) == 5


def test_without_bounds_usage_is_of_the_last_day(world: World, owner: Client, team: str) -> None:
    hour = world.now().replace(minute=0, second=0, microsecond=0)
    count(
        world,
        team,
        *(replace(used(team), start=hour - timedelta(hours=back)) for back in (0, 23, 30)),
    )
    assert owner("GET", f"{USAGE}?workspace={team}").data["total"]["requests"] == 2
    assert owner("GET", f"{USAGE}?workspace={team}&by=day").data["total"]["requests"] == 3


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("by=week", "by"),
        ("since=yesterday", "since"),
        ("since=2030-01-02&until=2030-01-01", "since"),
        ("format=xml", "format"),
    ],
)
def test_a_question_that_cannot_be_meant_is_refused(owner: Client, team: str, query: str, field: str) -> None:
    assert owner("GET", f"{USAGE}?workspace={team}&{query}").is_error(422, "INVALID")["field"] == field


def test_usage_goes_with_its_workspace(world: World, owner: Client) -> None:
    team = world.workspace()
    count(world, team, used(team))
    owner("DELETE", paths.WORKSPACE, {"workspaceName": team}).ok()
    body = {"workspaceName": team, "clusters": ["local"], "namespaces": [], "username": "", "email": ""}
    owner("POST", paths.WORKSPACE, body).ok()
    span = f"workspace={team}&since=2030-05-01&until=2030-05-03"
    assert owner("GET", f"{USAGE}?{span}").data["items"] == []
