"""Keys, tokens and roles on the wire."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import jwt
import pytest

from api_world import Client, World, checked

AUTH, KEY, KEYS = "/api/v1/auth", "/api/v1/api-key", "/api/v1/api-key/list"
PROBE = "/api/v1/slice-workspace/list"


def test_a_key_is_exchanged_for_a_token_of_900_seconds(world: World) -> None:
    token = world.exchange(world.owner.key)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 900
    assert jwt.get_unverified_header(token)["alg"] == "HS256"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"apiKey":null}', b'{"apiKey":1}', b'{"key":"x"}']
)
def test_a_malformed_auth_request_is_400(world: World, body: bytes) -> None:
    checked(world.http.post(AUTH, content=body)).is_error(400, "INVALID")


@pytest.mark.parametrize("key", ["", "x", "ipk_" + "a" * 43, "ü", "k" * 100_000])
def test_an_unknown_key_is_unauthenticated(world: World, key: str) -> None:
    reply = checked(world.http.post(AUTH, json={"apiKey": key}))
    reply.is_error(401, "UNAUTHENTICATED")
    assert reply.body["message"] == "Unauthenticated"


def test_an_expired_key_says_exactly_so(world: World) -> None:
    client = world.client("Owner", validity="1h")
    client("GET", PROBE).ok()
    token = client.token()
    world.later = timedelta(hours=1, seconds=1)
    reply = checked(world.http.post(AUTH, json={"apiKey": client.key}))
    reply.is_error(401, "UNAUTHENTICATED", "ApiKeyExpired")
    assert reply.body["message"] == "Api Key has expired"
    # A token that was handed out late in the key's life ends with it.
    world.later = timedelta(minutes=59)
    late = world.exchange(client.key)
    world.later = timedelta(hours=1, seconds=1)
    bearer = checked(world.http.get(PROBE, headers={"Authorization": f"Bearer {late}"}))
    assert bearer.is_error(401, "UNAUTHENTICATED")["message"] == "Api Key has expired"
    assert token != late


def test_a_token_ends_after_900_seconds(world: World) -> None:
    client = world.client("Owner", validity="30d")
    client("GET", PROBE).ok()
    world.later = timedelta(seconds=898)
    client("GET", PROBE).ok()
    world.later = timedelta(seconds=901)
    reply = client("GET", PROBE)
    reply.is_error(401, "UNAUTHENTICATED", "TokenExpired")
    assert reply.body["message"] == "Unauthenticated"


def test_deleting_a_key_ends_its_tokens_at_once(world: World, owner: Client) -> None:
    by_value, by_id = world.client("Owner"), world.client("Owner")
    for client in (by_value, by_id):
        client("GET", PROBE).ok()
    assert owner("DELETE", KEY, {"apiKey": by_value.key}).data == {}
    assert owner("DELETE", KEY, {"apiKey": by_id.key_id}).data == {}
    for client in (by_value, by_id):
        assert client("GET", PROBE).is_error(401, "UNAUTHENTICATED")["message"] == "Unauthenticated"
        checked(world.http.post(AUTH, json={"apiKey": client.key})).is_error(401, "UNAUTHENTICATED")
    owner("DELETE", KEY, {"apiKey": by_value.key}).is_error(404, "NOT_FOUND", "ApiKeyNotFound")


def test_forged_and_foreign_tokens_are_refused(world: World) -> None:
    subject = jwt.decode(world.owner.token(), options={"verify_signature": False})["sub"]
    claims = {"sub": subject, "exp": 4_000_000_000}
    forged = [
        "",
        "x",
        "a.b.c",
        jwt.encode(claims, "k" * 32, algorithm="HS256"),
        jwt.encode(claims, "", algorithm="none"),
        world.owner.token()[:-2],
        "x" * 10_000,
    ]
    for token in forged:
        for scheme in ("Bearer", "bearer", "Basic", ""):
            headers = {"Authorization": f"{scheme} {token}".strip()}
            reply = checked(world.http.get(PROBE, headers=headers))
            assert reply.is_error(401, "UNAUTHENTICATED")["message"] == "Unauthenticated"
            assert reply.headers["www-authenticate"] == "Bearer"
    checked(world.http.get(PROBE)).is_error(401, "UNAUTHENTICATED", "TokenMissing")


def test_every_route_with_a_token_needs_one(world: World) -> None:
    from inferplane.api.routes import ROUTES

    for route in ROUTES:
        for method in route.methods:
            if route.token:
                checked(world.http.request(method, route.path)).is_error(401, "UNAUTHENTICATED")


def test_a_key_is_shown_once_and_stored_as_a_digest(world: World, owner: Client, team: str) -> None:
    body = {
        "name": "ci",
        "userName": "Ada",
        "description": "builds",
        "role": "Editor",
        "validity": "30d",
        "workspaceName": team,
    }
    reply = owner("POST", KEY, body)
    assert set(reply.data) == {"apiKey"}
    key = reply.data["apiKey"]
    assert key.startswith("ipk_")
    assert len(key) == 47
    listed = owner("GET", f"{KEYS}?workspaceName={team}").data
    assert set(listed) == {"data", "items"}
    assert listed["data"] == listed["items"]
    [item] = listed["items"]
    assert {"id", "apiKey", "name", "role", "workspaceName", "validity", "createdAt", "lastUsedAt"} <= set(
        item
    )
    assert (item["name"], item["userName"], item["description"]) == ("ci", "Ada", "builds")
    assert (item["role"], item["workspaceName"], item["validity"]) == ("Editor", team, "30d")
    assert item["lastUsedAt"] is None
    assert key not in str(listed)
    assert item["id"] in item["apiKey"]
    stored = b"".join(path.read_bytes() for path in world.folder.glob("inferplane.db*"))
    assert key.encode() not in stored
    Client(world, key)("GET", PROBE).ok()
    assert owner("GET", f"{KEYS}?workspaceName={team}").data["items"][0]["lastUsedAt"]


def test_the_last_use_is_not_a_write_a_call(world: World) -> None:
    client = world.client("Owner")
    client("GET", PROBE).ok()

    def last_used() -> Any:
        items = world.owner("GET", KEYS).data["items"]
        return next(item["lastUsedAt"] for item in items if item["id"] == client.key_id)

    first = last_used()
    for _ in range(3):
        client("GET", PROBE).ok()
    assert last_used() == first
    world.later = timedelta(seconds=61)
    client("GET", PROBE).ok()
    assert last_used() > first


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 300}, "name"),
        ({"role": "King"}, "role"),
        ({"role": "Editor", "workspaceName": ""}, "workspaceName"),
        ({"role": "Viewer", "workspaceName": None}, "workspaceName"),
        ({"validity": "2020-01-01"}, "validity"),
        ({"validity": "2026-13-45"}, "validity"),
        ({"validity": "0d"}, "validity"),
        ({"validity": "soon"}, "validity"),
        ({"validity": "9999-12-31"}, "validity"),
        ({"validity": "36500d"}, "validity"),
        ({"validity": None}, "validity"),
        ({"name": None}, "name"),
        ({"role": 7}, "role"),
    ],
)
def test_a_key_that_cannot_be_meant_is_422(owner: Client, change: dict[str, Any], field: str) -> None:
    body = {"name": "x", "role": "Owner", "validity": "1d", **change}
    assert owner("POST", KEY, body).is_error(422, "INVALID")["field"] == field


def test_validity_may_be_a_date_or_a_duration(owner: Client, world: World) -> None:
    today = world.now().date()
    for validity in (today.isoformat(), (today + timedelta(days=30)).isoformat(), "30d", "1h", "0d1h0m"):
        owner("POST", KEY, {"name": "x", "role": "Owner", "validity": validity}).ok()


def test_a_key_for_an_unknown_workspace_is_404(owner: Client) -> None:
    body = {"name": "x", "role": "Viewer", "validity": "1d", "workspaceName": "nowhere"}
    owner("POST", KEY, body).is_error(404, "NOT_FOUND", "WorkspaceNotFound")
    owner("GET", f"{KEYS}?workspaceName=nowhere").is_error(404, "NOT_FOUND")


def test_a_repeated_create_gives_the_same_key(owner: Client, world: World) -> None:
    headers = {"Idempotency-Key": world.name("k")}
    body = {"name": "x", "role": "Owner", "validity": "1d"}
    first = owner("POST", KEY, body, headers=headers).data
    assert owner("POST", KEY, body, headers=headers).data == first
    owner("POST", KEY, {**body, "name": "y"}, headers=headers).is_error(
        409, "CONFLICT", "IdempotencyKeyReused"
    )
    Client(world, first["apiKey"])("GET", PROBE).ok()


def test_a_repeated_create_does_not_hand_out_a_key_that_was_deleted(owner: Client, world: World) -> None:
    headers = {"Idempotency-Key": world.name("k")}
    body = {"name": "x", "role": "Owner", "validity": "1d"}
    made = owner("POST", KEY, body, headers=headers).data["apiKey"]
    owner("DELETE", KEY, {"apiKey": made}).ok()
    owner("POST", KEY, body, headers=headers).is_error(409, "CONFLICT", "ApiKeyDeleted")


def test_a_key_goes_with_its_workspace_at_once(owner: Client, world: World) -> None:
    team = world.workspace()
    client = world.client("Editor", team)
    client("GET", PROBE).ok()
    owner("DELETE", "/api/v1/slice-workspace", {"workspaceName": team}).ok()
    client("GET", PROBE).is_error(401, "UNAUTHENTICATED")
    checked(world.http.post(AUTH, json={"apiKey": client.key})).is_error(401, "UNAUTHENTICATED")
