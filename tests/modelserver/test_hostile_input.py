"""Whatever a caller sends: a 4xx with a sentence, and the server lives on."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

Serving = Callable[[str], Any]

SETOSA = [5.1, 3.5, 1.4, 0.2]


def v1(rows: Any) -> bytes:
    return json.dumps({"instances": rows}).encode()


def v2(**changes: Any) -> bytes:
    tensor: dict[str, Any] = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": SETOSA}
    tensor.update(changes)
    return json.dumps(
        {"inputs": [{key: value for key, value in tensor.items() if value != "absent"}]}
    ).encode()


V1_BODIES = {
    "empty": b"",
    "white space": b"  \n",
    "not JSON": b"hello",
    "cut off": b'{"instances": [[1, 2',
    "two values": b'{"instances": [[1,2,3,4]]} {}',
    "binary": bytes(range(256)),
    "not UTF-8": b'{"instances": [["\xff\xfe"]]}',
    "half a surrogate": b'{"instances": [["\\ud800"]]}',
    "a list": b"[[1,2,3,4]]",
    "a number": b"7",
    "null": b"null",
    "no instances": b"{}",
    "instances null": b'{"instances": null}',
    "instances a string": b'{"instances": "5.1,3.5,1.4,0.2"}',
    "instances an object": b'{"instances": {"a": 1}}',
    "no rows": b'{"instances": []}',
    "an empty row": v1([[]]),
    "rows not lists": v1([1, 2, 3, 4]),
    "too few features": v1([[1, 2, 3]]),
    "too many features": v1([[1, 2, 3, 4, 5]]),
    "ragged": v1([SETOSA, [1, 2]]),
    "ragged later": v1([SETOSA] * 50 + [[1]]),
    "too deep a row": v1([[[1], [2], [3], [4]]]),
    "strings for numbers": v1([["5.1", "3.5", "1.4", "0.2"]]),
    "one string": v1([[5.1, "wide", 1.4, 0.2]]),
    "null in a row": v1([[5.1, None, 1.4, 0.2]]),
    "a null row": v1([None]),
    "an object in a row": v1([[{}, 1, 2, 3]]),
    "records without column names": v1([{"a": 1, "b": 2, "c": 3, "d": 4}]),
    "NaN": b'{"instances": [[NaN, 1, 2, 3]]}',
    "Infinity": b'{"instances": [[Infinity, 1, 2, 3]]}',
    "a float out of range": b'{"instances": [[1e999, 1, 2, 3]]}',
    "a huge integer": b'{"instances": [[' + b"9" * 400 + b", 1, 2, 3]]}",
    "a monstrous integer": b'{"instances": [[' + b"9" * 100_000 + b", 1, 2, 3]]}",
    "deep lists": b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"instances": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "deep within limits": b'{"instances": ' + b"[" * 200 + b"]" * 200 + b"}",
    "a long string in many rows": v1([["x" * 100_000, 1, 2, 3]] + [SETOSA] * 1000),
    "parameters a list": b'{"instances": [[1,2,3,4]], "parameters": [1]}',
    "probabilities a string": b'{"instances": [[1,2,3,4]], "parameters": {"probabilities": "yes"}}',
}

V2_BODIES = {
    "empty": b"",
    "no inputs": b"{}",
    "inputs empty": b'{"inputs": []}',
    "inputs an object": b'{"inputs": {"x": 1}}',
    "an input a number": b'{"inputs": [1]}',
    "id a number": v2()[:-1] + b', "id": 7}',
    "no name": v2(name="absent"),
    "no shape": v2(shape="absent"),
    "no datatype": v2(datatype="absent"),
    "no data": v2(data="absent"),
    "an unknown datatype": v2(datatype="FP8"),
    "half floats in JSON": v2(datatype="FP16"),
    "BF16": v2(datatype="BF16"),
    "a negative shape": v2(shape=[-1, 4]),
    "a fractional shape": v2(shape=[1.5, 4]),
    "an empty shape": v2(shape=[]),
    "a zero in the shape": v2(shape=[0, 4], data=[]),
    "a shape for more": v2(shape=[2, 4]),
    "a vast shape": v2(shape=[2**40, 2**40]),
    "a shape beyond 64 bits": v2(shape=[2**80]),
    "many dimensions": v2(shape=[1] * 70 + [4]),
    "a wrong width": v2(shape=[4, 1]),
    "three dimensions": v2(shape=[1, 2, 2]),
    "one dimension": v2(shape=[4]),
    "nested otherwise": v2(data=[[5.1, 3.5], [1.4, 0.2]]),
    "ragged": v2(shape=[2, 4], data=[SETOSA, [1]]),
    "data a string": v2(data="AAAA"),
    "data an object": v2(data={"a": 1}),
    "strings as floats": v2(data=["1", "2", "3", "4"]),
    "floats as integers": v2(datatype="INT32"),
    "numbers as booleans": v2(datatype="BOOL", data=[1, 0, 1, 0]),
    "numbers as strings": v2(datatype="BYTES"),
    "BYTES for numbers": v2(datatype="BYTES", data=["a", "b", "c", "d"]),
    "null": v2(data=[None, 1, 2, 3]),
    "300 as UINT8": v2(datatype="UINT8", data=[300, 1, 2, 3]),
    "negative as UINT64": v2(datatype="UINT64", data=[-1, 1, 2, 3]),
    "2^70 as INT64": v2(datatype="INT64", data=[2**70, 1, 2, 3]),
    "1e300 as FP32": v2(data=[1e300, 1, 2, 3]),
    "a name twice": json.dumps({"inputs": [json.loads(v2())["inputs"][0]] * 2}).encode(),
    "two inputs": json.dumps({"inputs": [json.loads(v2(name=name))["inputs"][0] for name in "ab"]}).encode(),
    "an unknown output": v2()[:-1] + b', "outputs": [{"name": "y"}]}',
    "an output twice": v2()[:-1] + b', "outputs": [{"name": "predict"}, {"name": "predict"}]}',
    "binary without the header": v2(data="absent", parameters={"binary_data_size": 16}),
    "a size that is no number": v2(data="absent", parameters={"binary_data_size": "16"}),
    "binary_data_output a string": v2()[:-1] + b', "parameters": {"binary_data_output": "yes"}}',
}


def check(server: Any, answer: httpx.Response) -> None:
    """A client's error with a sentence; afterwards the server predicts as if nothing had been."""
    assert 400 <= answer.status_code < 500, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert len(body["error"]) > 10
    assert "Traceback" not in body["error"]
    assert server.predict([SETOSA]).json() == {"predictions": [0]}


@pytest.mark.parametrize("case", V1_BODIES)
def test_v1(serving: Serving, case: str) -> None:
    server = serving("iris")
    check(server, server.client.post("/v1/models/iris:predict", content=V1_BODIES[case]))


@pytest.mark.parametrize("case", V2_BODIES)
def test_v2(serving: Serving, case: str) -> None:
    server = serving("iris")
    check(server, server.client.post("/v2/models/iris/infer", content=V2_BODIES[case]))


@pytest.mark.parametrize(
    ("length", "blob", "size"),
    [
        ("0", b"", 16),
        ("-1", b"\0" * 16, 16),
        ("99999", b"\0" * 16, 16),
        ("9" * 30, b"\0" * 16, 16),
        ("many", b"\0" * 16, 16),
        ("right", b"\0" * 15, 15),
        ("right", b"\0" * 15, 16),
        ("right", b"\0" * 17, 16),
        ("right", b"", 16),
        ("right", b"\0" * 16, -16),
        ("right", b"\0" * 16, 2**70),
        ("right", b"\xff" * 16, 16),
    ],
)
def test_v2_binary(serving: Serving, length: str, blob: bytes, size: int) -> None:
    server = serving("iris")
    head = v2(data="absent", parameters={"binary_data_size": size})
    headers = {"Inference-Header-Content-Length": str(len(head)) if length == "right" else length}
    check(server, server.client.post("/v2/models/iris/infer", content=head + blob, headers=headers))


@pytest.mark.parametrize(
    ("shape", "blob"),
    [
        ([1], b"\xff\xff\xff\xff"),
        ([1], b"\x05\0\0\0ab"),
        ([1], b"\x02\0\0\0\xff\xfe"),
        ([2], b"\x01\0\0\0a"),
        ([2**40], b"\x01\0\0\0a"),
        ([1], b"\x01\0\0\0abc"),
    ],
)
def test_v2_binary_strings(serving: Serving, shape: list[int], blob: bytes) -> None:
    server = serving("text")
    tensor = {"name": "x", "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": len(blob)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    answer = server.client.post(
        "/v2/models/text/infer",
        content=head + blob,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("forest", [[1e300, 1, 2, 3]]),
        ("people", [{"age": 3}]),
        ("people", [{"age": "old", "city": "Rome", "visits": 1}]),
        ("people", [{"age": 1, "city": ["Rome"], "visits": 1}]),
        ("people", [[1, 2]]),
        ("people", ["Rome"]),
        ("text", [1]),
        ("text", [["a", "b"]]),
        ("text", [None]),
        ("words", [["a"]]),
        ("words", [{"word": ["a"]}]),
        ("words", [{"word": None}]),
        ("framed", [{"sl": 1}]),
        ("boosted", [["a", 1, 2, 3]]),
        ("boosted", [[1e300, 1, 2, 3]]),
        ("light", [[1, 2, 3]]),
        ("onnx", [[1, 2, 3]]),
        ("onnx", [["a", 1, 2, 3]]),
        ("onnx", [[[1, 2, 3, 4]]]),
        ("onnx", [[1, 2, 3, 4], [1, 2]]),
        ("onnx-people", [[1, "a"]]),
        ("onnx-people", [{"age": 1}]),
        ("onnx-people", [{"age": 1, "city": "nowhere"}]),
        ("onnx-people", [{"age": "a", "city": "a"}]),
        ("onnx-people", [{"age": [[1]], "city": "a"}]),
    ],
)
def test_other_models(serving: Serving, name: str, rows: Any) -> None:
    server = serving(name)
    answer = server.predict(rows)
    assert answer.status_code == 400, answer.text
    assert len(answer.json()["error"]) > 10
    assert server.client.get(f"/v1/models/{name}").status_code == 200


def test_the_sentence_names_the_place(serving: Serving) -> None:
    sentences = {
        case: serving("iris").client.post("/v1/models/iris:predict", content=V1_BODIES[case]).json()["error"]
        for case in (
            "too few features",
            "ragged later",
            "one string",
            "null in a row",
            "NaN",
            "rows not lists",
        )
    }
    assert "instances[0] has 3 values" in sentences["too few features"]
    assert "4 values" in sentences["too few features"]
    assert "instances[50]" in sentences["ragged later"]
    assert "instances[0][1]" in sentences["one string"]
    assert "missing values" in sentences["null in a row"]
    assert "NaN" in sentences["NaN"]
    assert "[[" in sentences["rows not lists"]
    answer = serving("iris").client.post("/v2/models/iris/infer", content=v2(data=[5.1, None, 1.4, 0.2]))
    assert answer.json()["error"].startswith("the value at [0, 1] of the input is null or NaN")


def test_a_body_over_the_limit_is_413_and_the_caller_gets_to_read_it(
    launch: Callable[..., Any], serving: Serving
) -> None:
    server = launch("sklearn", serving("iris").config["path"], name="small", max_request_bytes=1000)
    server.wait_for("ready")
    for body in (b"[" * 50_000_000, [b"[" * 1_000_000] * 50):  # with its length declared, and chunked
        content = body if isinstance(body, bytes) else iter(body)
        answer = server.client.post("/v1/models/small:predict", content=content)
        assert answer.status_code == 413
        assert "1000 bytes" in answer.json()["error"]
    assert server.predict([SETOSA]).json() == {"predictions": [0]}


def test_what_comes_behind_a_body_is_no_header(serving: Serving) -> None:
    server, body = serving("iris"), v2()
    head = (
        b"POST /v2/models/iris/infer HTTP/1.1\r\nhost: m\r\nconnection: close\r\ntransfer-encoding: chunked"
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(server.config["address"].removeprefix("unix:"))
        trailer = b"inference-header-content-length: 5"
        connection.sendall(b"%b\r\n\r\n%x\r\n%b\r\n0\r\n%b\r\n\r\n" % (head, len(body), body, trailer))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 "), answer


def test_a_defect_inside_the_model_is_500_and_the_server_lives_on(serving: Serving) -> None:
    server = serving("sleeper")
    answer = server.predict([[0, 13]])
    assert answer.status_code == 500
    assert "thirteen" in answer.json()["error"]
    assert server.predict([[0, 7]]).json() == {"predictions": [7.0]}


def test_a_caller_who_leaves_in_the_middle_does_no_harm(serving: Serving) -> None:
    server = serving("iris")
    path = server.config["address"].removeprefix("unix:")
    for part in (
        b"POST /v1/models/iris:predict HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{",
        b"GET",
        b"\0\0\r\n\r\n",
    ):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            client.sendall(part)
    assert server.predict([SETOSA]).json() == {"predictions": [0]}


@pytest.mark.parametrize("request_bytes", [b"BREW / HTTP/1.1\r\n\r\n", b"\0\0\r\n\r\n"])
def test_what_is_no_http_gets_an_error_as_all_others_do(serving: Serving, request_bytes: bytes) -> None:
    server = serving("iris")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(server.config["address"].removeprefix("unix:"))
        client.sendall(request_bytes)
        answer = b""
        while chunk := client.recv(65536):
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert "not HTTP" in json.loads(body)["error"]
