"""The one shape of every answer, however strange the request."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from api_world import BODY_BYTES_MAX, Client, World, checked

ENDPOINT = "/api/v1/inference-endpoint"


def test_unknown_paths_are_404(world: World, owner: Client) -> None:
    for path in (
        "/nope",
        "/api/v1",
        "/api/v1/inference-endpoint/nope",
        "/api/v2/auth",
        "/%00",
        "/api/v1/auth/x",
    ):
        owner("GET", path).is_error(404, "NOT_FOUND", "NoSuchPath")


def test_wrong_methods_are_405_and_say_what_is_allowed(owner: Client) -> None:
    reply = owner("PATCH", "/api/v1/slice-workspace")
    assert reply.is_error(405, "INVALID", "MethodNotAllowed")["nextAction"] == "Use POST, PUT, DELETE."
    assert reply.headers["allow"] == "POST, PUT, DELETE"
    owner("GET", "/api/v1/auth").is_error(405, "INVALID")
    owner("OPTIONS", "/api/v1/auth").is_error(405, "INVALID")
    owner("TRACE", "/healthz").is_error(405, "INVALID")


def test_doubled_and_trailing_slashes_are_mended(world: World, owner: Client) -> None:
    for path in (
        "//api/v1/slice-workspace/list",
        "/api//v1///slice-workspace//list",
        "/api/v1/slice-workspace/list/",
    ):
        status, body = world.raw(
            f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {owner.token()}\r\nConnection: close\r\n\r\n".encode()
        )
        assert status == 200, body


def test_a_get_may_carry_a_body_and_any_content_type(owner: Client) -> None:
    for body in (b"{}", b"not json", b"[1]", b"\xff"):
        for content_type in ("application/json", "text/plain", "application/xml", "nonsense"):
            reply = owner("GET", "/api/v1/slice-workspace/list", body, headers={"Content-Type": content_type})
            assert set(reply.data) == {"workspaces"}


def test_a_body_is_json_whatever_its_content_type(world: World, owner: Client, team: str) -> None:
    for content_type in (
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ):
        body = {
            "endpointName": world.name("e"),
            "workspace": team,
            "modelSpec": {"modelName": "sklearn", "storageURI": "/m.joblib"},
        }
        owner("POST", ENDPOINT, body, headers={"Content-Type": content_type} if content_type else {}).ok()


def test_malformed_json_is_400(owner: Client) -> None:
    for body in (
        b"{",
        b"nul",
        b"{'a':1}",
        b'{"a":1,}',
        b"\xff\xfe",
        b'{"a":"\\ud800"}',
        b'{"a":NaN}',
        b"{}{}",
    ):
        assert owner("POST", ENDPOINT, body).is_error(400, "INVALID", "MalformedJson")["message"]


def test_json_that_is_no_object_is_422(owner: Client) -> None:
    for body in (b"[]", b"1", b'"x"', b"true", b"1.5"):
        owner("POST", ENDPOINT, body).is_error(422, "INVALID", "NotAnObject")


@pytest.mark.parametrize("body", [b"", b"null", b"  \n", b"{}"])
def test_an_empty_body_lacks_every_field(owner: Client, body: bytes) -> None:
    error = owner("POST", ENDPOINT, body).is_error(422, "INVALID", "Missing")
    assert [detail["field"] for detail in error["details"]] == ["endpointName", "workspace"]


def test_every_problem_is_told_at_once(owner: Client) -> None:
    body: dict[str, Any] = {
        "endpointName": 1,
        "workspace": None,
        "modelSpec": {"storageURI": 5, "args": ["a", 1], "secret": {"k": 1}, "resources": []},
        "autoscaling": {"minReplicas": 1.5},
    }
    error = owner("POST", ENDPOINT, body).is_error(422, "INVALID", "WrongType")
    assert error["field"] == "endpointName"
    fields = [detail["field"] for detail in error["details"]]
    assert fields == [
        "endpointName",
        "workspace",
        "modelSpec.modelName",
        "modelSpec.storageURI",
        "modelSpec.args[1]",
        "modelSpec.secret",
        "modelSpec.resources",
        "autoscaling.minReplicas",
    ]
    assert all(set(detail) == {"reason", "message", "field"} for detail in error["details"])


def test_unknown_keys_and_nulls_are_accepted(world: World, owner: Client, team: str) -> None:
    name = world.name("e")
    body = {
        "endpointName": name,
        "workspace": team,
        "clusterName": None,
        "modelSpec": {
            "modelName": "sklearn",
            "storageURI": "/m.joblib",
            "args": None,
            "secret": {"A": None},
            "resources": {"cpu": None, "memory": None},
            "novel": {"x": [1]},
        },
        "rawModelSpec": None,
        "gpuSpec": None,
        "clusterPrecedence": None,
        "burst": {"anything": True},
        "autoscaling": None,
        "somethingNew": 1,
    }
    assert owner("POST", ENDPOINT, body).data == {"endpointName": name}


def test_both_spellings_of_memory_per_gpu_are_read(world: World, owner: Client, team: str) -> None:
    for spelling in ("memoryPerGPU", "memoryPerGpu"):
        body = {
            "endpointName": world.name("e"),
            "workspace": team,
            "modelSpec": {"modelName": "sklearn", "storageURI": "/m.joblib"},
            "gpuSpec": {spelling: "many"},
        }
        error = owner("POST", ENDPOINT, body).is_error(422, "INVALID", "WrongType")
        assert error["field"] == "gpuSpec.memoryPerGPU"


def test_deep_nesting_is_400_not_a_crash(owner: Client) -> None:
    deep = b"[" * 50_000 + b"]" * 50_000
    owner("POST", ENDPOINT, b'{"burst":' + deep + b"}").is_error(400, "INVALID", "NestedTooDeeply")
    shallow = b"[" * 200 + b"]" * 200
    owner("POST", ENDPOINT, b'{"burst":' + shallow + b"}").is_error(422, "INVALID", "Missing")


def test_a_large_body_is_413(world: World, owner: Client) -> None:
    body = b'{"x":"' + b"a" * BODY_BYTES_MAX + b'"}'
    error = owner("POST", ENDPOINT, body).is_error(413, "PAYLOAD_TOO_LARGE", "BodyTooLarge")
    assert str(BODY_BYTES_MAX) in error["message"]

    def chunks() -> Any:
        for _ in range(20):
            yield b"a" * (BODY_BYTES_MAX // 10)

    headers = {"Authorization": f"Bearer {owner.token()}"}
    response = httpx.post(world.url + ENDPOINT, content=chunks(), headers=headers, timeout=20)
    checked(response).is_error(413, "PAYLOAD_TOO_LARGE")


def test_a_nul_character_is_refused(owner: Client, team: str) -> None:
    body = {"endpointName": "a\u0000b", "workspace": team}
    owner("POST", ENDPOINT, body).is_error(422, "INVALID", "InvalidText")
    owner("GET", f"{ENDPOINT}/list?workspace=a%00b").is_error(422, "INVALID", "InvalidText")


def test_a_request_id_is_kept_when_harmless_and_made_otherwise(owner: Client) -> None:
    assert (
        owner("GET", "/healthz", headers={"X-Request-Id": "mine-1.2_3"}).headers["x-request-id"]
        == "mine-1.2_3"
    )
    odd = owner("GET", "/nope", headers={"X-Request-Id": "a b<script>"})
    assert odd.headers["x-request-id"] != "a b<script>"
    assert owner("GET", "/nope", headers={"X-Request-Id": "z" * 500}).headers["x-request-id"] != "z" * 500


def test_bad_query_parameters_are_422(owner: Client, team: str) -> None:
    place = f"{ENDPOINT}/list?workspace={team}"
    owner("GET", f"{place}&limit=many").is_error(422, "INVALID", "WrongType")
    owner("GET", f"{place}&limit=-1").is_error(422, "INVALID", "WrongType")
    owner("GET", f"{place}&status=Sleepy").is_error(422, "INVALID", "UnknownStatus")
    owner("GET", f"{place}&continue=x").is_error(422, "INVALID", "InvalidContinue")
    owner("POST", f"{ENDPOINT}?dryRun=perhaps", _model(team)).is_error(422, "INVALID", "WrongType")
    owner("GET", f"{place}&" + "&".join(f"a{n}=1" for n in range(200))).is_error(422, "INVALID", "TooMany")
    owner("GET", f"{place}&x=" + "y" * 10_000).is_error(422, "INVALID", "TooLong")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"BREW /coffee HTTP/1.1\r\nHost: x\r\n\r\n",
        b"hello\r\n\r\n",
        b"\x16\x03\x01\0\xa5",
        b"GET / HTTP/9.9\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_the_envelope_too(world: World, request_bytes: bytes) -> None:
    status, body = world.raw(request_bytes)
    answer = json.loads(body)
    assert status == answer["statusCode"] == 400
    assert answer["status"] == answer["error"]["errorKey"] == "INVALID"
    assert answer["error"]["reason"] == "MalformedRequest"


def test_nothing_but_http_is_spoken(world: World) -> None:
    status, _ = world.raw(
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert status in {200, 403, 400}


def _model(team: str) -> dict[str, Any]:
    return {
        "endpointName": "x",
        "workspace": team,
        "modelSpec": {"modelName": "sklearn", "storageURI": "/m.joblib"},
    }
