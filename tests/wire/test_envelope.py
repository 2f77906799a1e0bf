"""The envelope, to the byte: strict readers exist."""

from __future__ import annotations

import msgspec

from inferplane.wire.access import AuthToken
from inferplane.wire.endpoints import CreateEndpoint, EndpointList, ModelSpecBody
from inferplane.wire.envelope import Envelope, ErrorBody, ErrorDetail, ErrorKey, failure, success


def test_success_to_the_byte() -> None:
    expected = b'{"statusCode":200,"status":"OK","message":"Success","data":{"token":"t"}}'
    assert success(AuthToken("t")) == expected
    assert success({}) == b'{"statusCode":200,"status":"OK","message":"Success","data":{}}'


def test_failure_to_the_byte() -> None:
    body = failure(409, ErrorKey.CONFLICT, "no", reason="R", request_id="q")
    old = (
        '{"error":{"Message":"no","Status":409,"DetailedError":{"Errormessage":"no","Reason":"R","Details":""},'
        '"StatusCode":409,"ReferenceDocumentation":"NA"}}'
    )
    assert body.decode() == (
        '{"statusCode":409,"status":"CONFLICT","message":"no","data":null,"error":{"errorKey":"CONFLICT",'
        f'"message":"no","data":{msgspec.json.encode(old).decode()},"reason":"R","field":"","details":[],'
        '"nextAction":"","requestId":"q"}}'
    )


def test_details_reach_old_and_new_readers() -> None:
    detail = ErrorDetail("Missing", "x is needed", "x")
    envelope = msgspec.json.decode(failure(422, ErrorKey.INVALID, "m", details=(detail,)), type=Envelope)
    assert envelope.error is not None
    assert envelope.error.details == (detail,)
    old = msgspec.json.decode(envelope.error.data)
    assert old["error"]["DetailedError"]["Details"] == [
        {"reason": "Missing", "message": "x is needed", "field": "x"}
    ]


def test_answers_of_others_are_read_too() -> None:
    body = b'{"statusCode":500,"status":"UNKNOWN","message":"UNKNOWN","data":null,"error":{"errorKey":"UNKNOWN","message":"UNKNOWN","data":"{}"},"more":1}'
    envelope = msgspec.json.decode(body, type=Envelope)
    assert envelope.error == ErrorBody("UNKNOWN", "UNKNOWN", "{}")
    listed = b'{"endpoints":[{"endpointName":"a","modelName":"m","status":"s","endpoint":"","clusterName":"c","namespace":"n","new":1}]}'
    assert msgspec.json.decode(listed, type=EndpointList).endpoints[0].endpoint_name == "a"


def test_what_is_not_given_is_not_sent() -> None:
    body = CreateEndpoint("e", "w", model_spec=ModelSpecBody("sklearn", "/m"))
    assert msgspec.json.encode(body) == (
        b'{"endpointName":"e","workspace":"w","modelSpec":{"modelName":"sklearn","storageURI":"/m"}}'
    )
