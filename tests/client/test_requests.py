"""What is sent, as values, and how each answer is read. Nothing here talks to anyone."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from inferplane.client import errors, requests
from inferplane.client.requests import Answer, Resend
from inferplane.client.sse import ServerEvent
from inferplane.wire import access, endpoints, gpus, policies, workspaces
from inferplane.wire.envelope import ErrorDetail, ErrorKey, failure, success

GATEWAY = "http://127.0.0.1:7080/serving/default/iris/v1/models/iris:predict"
JSON = ("Content-Type", "application/json")
IRIS = endpoints.CreateEndpoint(
    "iris", "default", model_spec=endpoints.ModelSpecBody("sklearn", storage_uri="/m")
)
GOLDEN: dict[str, tuple[requests.Request[Any], tuple[str, str, dict[str, str], Any, Resend]]] = {
    "auth": (
        requests.exchange_key("k"),
        ("POST", "/api/v1/auth", {}, {"apiKey": "k"}, Resend.SAFE),
    ),
    "create": (
        requests.create_endpoint(IRIS, "once"),
        (
            "POST",
            "/api/v1/inference-endpoint",
            {},
            {
                "endpointName": "iris",
                "workspace": "default",
                "modelSpec": {"modelName": "sklearn", "storageURI": "/m"},
            },
            Resend.SAFE,
        ),
    ),
    "list": (
        requests.list_endpoints(workspace="a", status="Failed", model_format="onnx", continue_from="p"),
        (
            "GET",
            "/api/v1/inference-endpoint/list",
            {"workspace": "a", "status": "Failed", "modelName": "onnx", "continue": "p"},
            None,
            Resend.SAFE,
        ),
    ),
    "describe": (
        requests.describe("iris", "a", "local"),
        (
            "GET",
            "/api/v1/inference-endpoint",
            {"workspace": "a", "endpoint": "iris", "cluster": "local"},
            None,
            Resend.SAFE,
        ),
    ),
    "delete": (
        requests.delete_endpoint("iris", "a"),
        (
            "DELETE",
            "/api/v1/inference-endpoint",
            {},
            {"workspace": "a", "endpoint": "iris"},
            Resend.ONLY_IF_UNSENT,
        ),
    ),
    "stop": (
        requests.stop_endpoint("iris", "a", "c"),
        (
            "POST",
            "/api/v1/inference-endpoint/stop",
            {},
            {"workspace": "a", "endpoint": "iris", "cluster": "c"},
            Resend.SAFE,
        ),
    ),
    "logs": (
        requests.read_logs("iris", "a", replica="r1-0", previous=True, tail=0),
        (
            "GET",
            "/api/v1/inference-endpoint/logs",
            {"workspace": "a", "endpoint": "iris", "replica": "r1-0", "previous": "true", "tail": "0"},
            None,
            Resend.SAFE,
        ),
    ),
    "events": (
        requests.list_events("", "a", after=0, limit=5),
        (
            "GET",
            "/api/v1/inference-endpoint/events",
            {"workspace": "a", "after": "0", "limit": "5"},
            None,
            Resend.SAFE,
        ),
    ),
    "new key": (
        requests.create_api_key(access.CreateApiKey("ci", "Viewer", "30d", workspace_name="a"), "once"),
        (
            "POST",
            "/api/v1/api-key",
            {},
            {"name": "ci", "role": "Viewer", "validity": "30d", "workspaceName": "a"},
            Resend.SAFE,
        ),
    ),
    "delete key": (
        requests.delete_api_key("id"),
        ("DELETE", "/api/v1/api-key", {}, {"apiKey": "id"}, Resend.ONLY_IF_UNSENT),
    ),
    "delete workspace": (
        requests.delete_workspace("a", force=True),
        (
            "DELETE",
            "/api/v1/slice-workspace",
            {},
            {"workspaceName": "a", "force": True},
            Resend.ONLY_IF_UNSENT,
        ),
    ),
    "update workspace": (
        requests.update_workspace(workspaces.UpdateWorkspace("a", clusters=["x"])),
        ("PUT", "/api/v1/slice-workspace", {}, {"workspaceName": "a", "clusters": ["x"]}, Resend.SAFE),
    ),
    "inventory": (
        requests.list_inventory(),
        ("GET", "/api/v1/inventory/list", {}, None, Resend.SAFE),
    ),
    "shapes": (
        requests.list_shapes("a"),
        ("GET", "/api/v1/inventory", {"sliceName": "a"}, None, Resend.SAFE),
    ),
    "new GPU request": (
        requests.create_gpr(
            gpus.CreateGpr(
                "a", gpr_name="g", number_of_gpus=2, number_of_gpu_nodes=1, memory_per_gpu=80, gpu_shape="X"
            ),
            "once",
        ),
        (
            "POST",
            "/api/v1/gpr",
            {},
            {
                "sliceName": "a",
                "gprName": "g",
                "numberOfGPUs": 2,
                "numberOfGPUNodes": 1,
                "memoryPerGPU": 80,
                "gpuShape": "X",
            },
            Resend.SAFE,
        ),
    ),
    "wait time": (
        requests.wait_times(gpus.CreateGpr("a")),
        ("POST", "/api/v1/gpr/waittime", {}, {"sliceName": "a"}, Resend.SAFE),
    ),
    "GPU requests": (
        requests.list_gprs("a"),
        ("GET", "/api/v1/gpr/list", {"sliceName": "a"}, None, Resend.SAFE),
    ),
    "move a GPU request": (
        requests.change_gpr(gpus.UpdateGpr("gpr-1", priority=200)),
        ("PUT", "/api/v1/gpr", {}, {"gprId": "gpr-1", "priority": 200}, Resend.SAFE),
    ),
    "release a GPU request": (
        requests.change_gpr(gpus.UpdateGpr("gpr-1", early_release=True)),
        ("PUT", "/api/v1/gpr", {}, {"gprId": "gpr-1", "earlyRelease": True}, Resend.ONLY_IF_UNSENT),
    ),
    "delete a GPU request": (
        requests.delete_gpr("gpr-1"),
        ("DELETE", "/api/v1/gpr", {}, {"gprId": "gpr-1"}, Resend.ONLY_IF_UNSENT),
    ),
    "delete template": (
        requests.delete_template("t"),
        ("DELETE", "/api/v1/gpr-template", {}, {"gprTemplateName": "t"}, Resend.ONLY_IF_UNSENT),
    ),
    "new binding": (
        requests.create_binding(
            gpus.BindingBody("a", [gpus.BoundClusterBody("c", "t", ["t", "u"])], enable_auto_gpr=True)
        ),
        (
            "POST",
            "/api/v1/gpr-template-binding",
            {},
            {
                "workspaceName": "a",
                "clusters": [{"clusterName": "c", "defaultTemplateName": "t", "templates": ["t", "u"]}],
                "enableAutoGPR": True,
            },
            Resend.ONLY_IF_UNSENT,
        ),
    ),
    "policy": (
        requests.get_policy("a/../b"),
        ("GET", "/api/v1/workspace-policies/a%2F..%2Fb", {}, None, Resend.SAFE),
    ),
    "change policy": (
        requests.change_policy("a", policies.PolicyBody(max_gprs=-1, gpu_shapes=[])),
        ("PUT", "/api/v1/workspace-policies/a", {}, {"maxGPRs": -1, "gpuShapes": []}, Resend.SAFE),
    ),
    "audit": (
        requests.list_audit(actor="ann", since="2026-01-31", after=0),
        ("GET", "/api/v1/audit", {"actor": "ann", "since": "2026-01-31", "after": "0"}, None, Resend.SAFE),
    ),
    "predict": (
        requests.predict(GATEWAY, b'{"instances":[1]}'),
        ("POST", GATEWAY, {}, {"instances": [1]}, Resend.ONLY_IF_UNSENT),
    ),
    "infer": (
        requests.infer(GATEWAY, "iris", b'{"inputs":[]}'),
        (
            "POST",
            "http://127.0.0.1:7080/serving/default/iris/v2/models/iris/infer",
            {},
            {"inputs": []},
            Resend.ONLY_IF_UNSENT,
        ),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_requests_are_exactly_these(name: str) -> None:
    request, expected = GOLDEN[name]
    body = None if request.body is None else json.loads(request.body)
    assert (request.method, request.target, dict(request.query), body, request.resend) == expected
    assert (JSON in request.headers) == (body is not None)


def test_a_create_carries_its_idempotency_key_and_a_dry_run_none() -> None:
    assert ("Idempotency-Key", "once") in requests.create_endpoint(IRIS, "once").headers
    trial = requests.try_endpoint(IRIS)
    assert trial.query == (("dryRun", "true"),)
    assert [name for name, _ in trial.headers] == ["Content-Type"]


def test_the_control_planes_token_is_not_for_models() -> None:
    assert not requests.predict(GATEWAY, b"{}").authenticated
    assert not requests.infer(GATEWAY, "iris", b"{}").authenticated
    assert not requests.exchange_key("k").authenticated


@pytest.mark.parametrize(
    ("key", "status", "kind"),
    [
        (ErrorKey.UNAUTHENTICATED, 401, errors.UnauthenticatedError),
        (ErrorKey.FORBIDDEN, 403, errors.ForbiddenError),
        (ErrorKey.QUOTA_EXCEEDED, 403, errors.QuotaExceededError),
        (ErrorKey.NOT_FOUND, 404, errors.NotFoundError),
        (ErrorKey.ALREADY_EXISTS, 409, errors.AlreadyExistsError),
        (ErrorKey.CONFLICT, 409, errors.ConflictError),
        (ErrorKey.PAYLOAD_TOO_LARGE, 413, errors.PayloadTooLargeError),
        (ErrorKey.INVALID, 400, errors.InvalidError),
        (ErrorKey.INVALID, 422, errors.InvalidError),
        (ErrorKey.RATE_LIMITED, 429, errors.RateLimitedError),
        (ErrorKey.INTERNAL, 500, errors.ServerError),
        (ErrorKey.UNAVAILABLE, 503, errors.UnavailableError),
    ],
)
def test_each_refusal_is_its_own_error_and_keeps_everything_it_says(
    key: ErrorKey, status: int, kind: type[errors.ApiError]
) -> None:
    body = failure(
        status,
        key,
        "that cannot be",
        reason="Because",
        field="modelSpec.storageURI",
        details=(ErrorDetail("Because", "that cannot be", "modelSpec.storageURI"),),
        next_action="Do this.",
        request_id="abc",
    )
    with pytest.raises(errors.ClientError) as caught:
        requests.describe("iris", "a").read(Answer(status, {}, body))
    error = caught.value
    assert type(error) is kind
    assert (error.message, error.status, error.reason) == ("that cannot be", status, "Because")
    assert (error.field, error.next_action, error.request_id) == ("modelSpec.storageURI", "Do this.", "abc")
    assert error.details == (errors.Detail("modelSpec.storageURI", "Because", "that cannot be"),)


def test_every_error_key_of_the_wire_has_its_class() -> None:
    for key in ErrorKey:
        with pytest.raises(errors.ApiError) as caught:
            requests.read_done(Answer(418, {}, failure(418, key, "no")))
        assert type(caught.value) is not errors.ApiError, key


def test_an_error_that_only_old_platforms_send_is_told_by_its_status() -> None:
    body = json.dumps(
        {
            "statusCode": 404,
            "status": "UNKNOWN",
            "message": "UNKNOWN",
            "data": None,
            "error": {"errorKey": "UNKNOWN", "message": "no such thing", "data": "{}"},
        }
    ).encode()
    with pytest.raises(errors.NotFoundError, match="no such thing"):
        requests.read_done(Answer(404, {}, body))


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, b'{"error": "row 2 has 3 values"}', errors.InvalidError, "row 2 has 3 values"),
        (404, b'{"error": "no endpoint"}', errors.NotFoundError, "no endpoint"),
        (413, b'{"error": "too large"}', errors.PayloadTooLargeError, "too large"),
        (502, b"<html><h1>Bad Gateway</h1></html>", errors.ServerError, "the answer was HTTP status 502"),
        (503, b'{"error": "not ready", "reason": "Loading"}', errors.UnavailableError, "not ready"),
        (504, b"upstream request timeout", errors.AnswerTimeoutError, "upstream request timeout"),
        (400, b'{"error": {"message": "no such model"}}', errors.InvalidError, "no such model"),
        (500, b"", errors.ServerError, "the answer was HTTP status 500"),
        (418, b"[1]", errors.ApiError, "[1]"),
    ],
)
def test_a_refusal_without_envelope_is_still_a_sentence(
    status: int, body: bytes, kind: type[errors.ApiError], message: str
) -> None:
    with pytest.raises(errors.ApiError) as caught:
        requests.read_prediction(Answer(status, {"x-request-id": "r1"}, body))
    assert (type(caught.value), caught.value.message, caught.value.request_id) == (kind, message, "r1")


def test_a_long_text_is_cut_in_the_message() -> None:
    with pytest.raises(errors.ServerError) as caught:
        requests.read_prediction(Answer(500, {}, b"x" * 10_000))
    assert len(caught.value.message) <= requests.TEXT_SHOWN_CHARACTERS_MAX + 1


@pytest.mark.parametrize("body", [b"", b"hello", b"[]", b'{"statusCode": "x"}', b'{"data": {}}'])
def test_what_is_not_this_api_is_told_apart_from_what_says_no(body: bytes) -> None:
    with pytest.raises(errors.ProtocolError):
        requests.read_done(Answer(200, {}, body))


def test_data_of_another_shape_is_a_protocol_error() -> None:
    with pytest.raises(errors.ProtocolError, match="not understood"):
        requests.describe("iris", "a").read(Answer(200, {}, success({"endpoint": {"status": 5}})))


def test_keys_of_a_newer_platform_are_let_pass() -> None:
    token = requests.exchange_key("k").read(Answer(200, {}, success({"token": "t", "newer": [1]})))
    assert token == access.AuthToken("t")


@pytest.mark.parametrize("body", [b"nope", b"[1]", b""])
def test_a_prediction_that_is_no_object_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(errors.ProtocolError):
        requests.read_prediction(Answer(200, {}, body))


@pytest.mark.parametrize(
    ("resend", "status", "headers", "attempt", "pause"),
    [
        (Resend.SAFE, 503, {}, 1, 0.1),
        (Resend.SAFE, 503, {"retry-after": "2"}, 2, 2.0),
        (Resend.SAFE, 503, {"retry-after": "60"}, 1, None),
        (Resend.SAFE, 503, {"retry-after": "soon"}, 3, 0.6),
        (Resend.SAFE, 503, {}, 4, None),
        (Resend.SAFE, 500, {}, 1, None),
        (Resend.ONLY_IF_UNSENT, 503, {}, 1, None),
        (Resend.ONLY_IF_UNSENT, 503, {"x-inferplane-not-processed": "1"}, 1, 0.1),
        (Resend.ONLY_IF_UNSENT, 429, {"retry-after": "1"}, 1, 1.0),
    ],
)
def test_when_a_busy_answer_is_worth_another_try(
    resend: Resend, status: int, headers: dict[str, str], attempt: int, pause: float | None
) -> None:
    request = requests.Request("POST", "/x", requests.read_done, resend=resend)
    assert requests.retry_pause(request, Answer(status, headers), attempt) == pause


def test_bodies_are_json_text_bytes_values_or_arrays() -> None:
    import numpy as np

    assert requests.encode_body('{"a":1}') == b'{"a":1}'
    assert requests.encode_body(b"{}") == b"{}"
    assert requests.encode_body({"instances": np.array([[1.5, 2.0]])}) == b'{"instances":[[1.5,2.0]]}'
    assert requests.encode_body({"instances": [np.float64(1.5)]}) == b'{"instances":[1.5]}'
    with pytest.raises(errors.InvalidError, match="JSON"):
        requests.encode_body({"instances": object()})


def test_stream_events() -> None:
    line = ServerEvent("LINE", b'{"replica":"r1-0","text":"hello"}')
    assert requests.log_line(line) == endpoints.LogLineItem("r1-0", "hello")
    assert requests.log_line(ServerEvent("OTHER", b"{}")) is None
    item = endpoints.EndpointItem("iris", "sklearn", "Running", "", "local", "ns")
    assert requests.change(ServerEvent("ADDED", msgspec.json.encode(item))) == ("ADDED", item)
    assert requests.change(ServerEvent("message", b"{}")) is None
    with pytest.raises(errors.ServerError, match="engine is away"):
        requests.log_line(ServerEvent("ERROR", b'{"reason":"EngineError","message":"engine is away"}'))
    with pytest.raises(errors.ProtocolError):
        requests.change(ServerEvent("ADDED", b"{"))


def test_readiness_says_no_with_the_parts_that_are_not_ready() -> None:
    ready = requests.readiness().read(
        Answer(200, {}, success({"status": "ready", "parts": {"store": "ready"}}))
    )
    assert ready.parts == {"store": "ready"}
    refusal = failure(503, ErrorKey.UNAVAILABLE, "not ready: gateway: starting", reason="NotReady")
    with pytest.raises(errors.UnavailableError, match="gateway: starting"):
        requests.readiness().read(Answer(503, {}, refusal))
    with pytest.raises(errors.ProtocolError):
        requests.readiness().read(Answer(200, {}, b"It works!"))


def test_an_origin_names_no_password() -> None:
    assert requests.origin_of("http://me:secret@host:7080/a?b=c") == "http://host:7080"


@pytest.mark.parametrize("key", ["ключ", "ip_ab\ncd", "a b", "\udcff"])
def test_a_key_that_no_header_takes_is_refused_with_a_sentence_that_does_not_say_it(key: str) -> None:
    with pytest.raises(errors.ConfigurationError, match="endpoint key is one that no key has") as predicting:
        requests.predict(GATEWAY, b"{}", key)
    with pytest.raises(errors.ConfigurationError, match="API key is one that no key has") as signing_in:
        requests.exchange_key(key)
    for caught in (predicting, signing_in):
        assert caught.value.next_action
        assert key not in str(caught.value)


def test_an_idempotency_key_that_no_header_takes_is_refused() -> None:
    with pytest.raises(errors.InvalidError, match="printable ASCII"):
        requests.create_endpoint(IRIS, "ключ")
