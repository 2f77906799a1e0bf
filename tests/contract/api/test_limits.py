"""Every bound, reached; every part that can be away, away."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from api_world import Client, World, checked
from inferplane.services.context import Limits

ENDPOINT = "/api/v1/inference-endpoint"
KEY = {"name": "k", "role": "Owner", "validity": "1d"}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, Limits(endpoints_max=1, workspaces_max=2, api_keys_max=2)) as world:
        yield world


def test_numbers_of_things_are_bounded(small: World) -> None:
    owner = small.owner
    small.create("default")
    body = {
        "endpointName": "more",
        "workspace": "default",
        "modelSpec": {"modelName": "sklearn", "storageURI": "/m.joblib"},
    }
    owner("POST", ENDPOINT, body).is_error(403, "QUOTA_EXCEEDED", "QuotaExceeded")
    findings = owner("POST", f"{ENDPOINT}?dryRun=true", body).data["preflight"]
    assert [each["reason"] for each in findings if each["check"] == "quota"] == ["QuotaExceeded"]
    owner("POST", "/api/v1/api-key", KEY).ok()
    owner("POST", "/api/v1/api-key", KEY).is_error(403, "QUOTA_EXCEEDED", "TooManyApiKeys")
    space = {"workspaceName": "a", "clusters": ["local"], "namespaces": [], "username": "", "email": ""}
    owner("POST", "/api/v1/slice-workspace", space).ok()
    owner("POST", "/api/v1/slice-workspace", {**space, "workspaceName": "b"}).is_error(
        403, "QUOTA_EXCEEDED", "TooManyWorkspaces"
    )


def test_a_store_that_is_away_is_503(small: World) -> None:
    token = small.owner.token()
    small.do(small.store.close())
    for path in small.folder.glob("inferplane.db*"):
        path.rename(path.with_name(f"gone-{path.name}"))
    (small.folder / "inferplane.db").mkdir()  # no new connection can be made
    small.platform.keys.forget()  # what is remembered of keys would help for a moment more
    error = checked(small.http.get("/readyz")).is_error(503, "UNAVAILABLE", "NotReady")
    assert [detail["field"] for detail in error["details"]] == ["store"]
    for place in ("/api/v1/slice-workspace/list", f"{ENDPOINT}/list"):
        reply = checked(small.http.get(place, headers={"Authorization": f"Bearer {token}"}))
        reply.is_error(503, "UNAVAILABLE")
    checked(small.http.post("/api/v1/auth", json={"apiKey": small.owner.key})).is_error(503, "UNAVAILABLE")
    assert small.http.get("/healthz").status_code == 200


def half_a_request(world: World, owner: Client) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", world.port), timeout=20)
    connection.sendall(
        f"POST {ENDPOINT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {owner.token()}\r\n"
        'Content-Length: 100\r\n\r\n{"endpointName":'.encode()
    )
    return connection


def test_a_body_that_dawdles_is_given_up(world: World, owner: Client) -> None:
    with half_a_request(world, owner) as connection:
        answer = b""
        while chunk := connection.recv(65536):  # until the server has closed it
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"BodyTooSlow" in answer


def test_a_client_that_goes_away_hurts_nobody(
    world: World, owner: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(5):
        half_a_request(world, owner).close()
    owner("GET", "/healthz").ok()
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
