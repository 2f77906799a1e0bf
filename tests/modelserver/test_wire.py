"""The protocols as a caller sees them: real servers, real sockets, models of every format."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Serving = Callable[[str], Any]

SETOSA = [5.1, 3.5, 1.4, 0.2]
VIRGINICA = [6.7, 3.0, 5.2, 2.3]
ALL = (
    "iris",
    "forest",
    "diabetes",
    "people",
    "text",
    "histogram",
    "words",
    "framed",
    "sleeper",
    "boosted",
    "raw-boosted",
    "light",
    "onnx",
    "onnx-plain",
    "onnx-people",
)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"onnx-people"}))  # its categories cannot be guessed
def test_the_example_in_the_status_is_answered(serving: Serving, name: str) -> None:
    server = serving(name)
    example = server.status()["model"]["example"]
    assert example
    answer = server.client.post(f"/v1/models/{name}:predict", content=example)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["predictions"]) == len(json.loads(example)["instances"])


@pytest.mark.parametrize("name", ALL)
def test_metadata_names_inputs_and_outputs(serving: Serving, name: str) -> None:
    server = serving(name)
    about = server.client.get(f"/v2/models/{name}").json()
    assert about["name"] == name
    assert about["versions"] == ["3"]
    assert about["inputs"]
    assert about["outputs"]
    assert server.status()["model"]["inputs"] == about["inputs"]
    assert server.status()["model"]["protocols"] == ["v1", "v2"]


def test_server_routes(serving: Serving) -> None:
    client = serving("iris").client
    assert client.get("/").json() == {"status": "alive"}
    assert client.get("/v1/models").json() == {"models": ["iris"]}
    assert client.get("/v1/models/iris").json() == {"name": "iris", "ready": True}
    assert client.get("/v1/models/iris-alias").json() == {"name": "iris-alias", "ready": True}
    missing = client.get("/v1/models/other")
    assert (missing.status_code, missing.json()) == (404, {"error": "Model with name other does not exist."})
    server = client.get("/v2").json()
    assert set(server) == {"name", "version", "extensions"}
    assert "binary_tensor_data" in server["extensions"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models").json() == {"models": ["iris"]}
    assert client.get("/v2/models/iris/ready").json() == {"name": "iris", "ready": True}
    assert client.get("/v2/models/iris/versions/3/ready").status_code == 200
    assert client.head("/v2/health/live").status_code == 200


@pytest.mark.parametrize("path", ["/v1//models/iris/", "//v2/models/iris", "/v2/models/iris/"])
def test_slashes_may_be_doubled_or_trail(serving: Serving, path: str) -> None:
    assert serving("iris").client.get(f"http://model{path}").status_code == 200


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/v1/models/other:predict", "does not exist"),
        ("/v2/models/other/infer", "does not exist"),
        ("/v2/models/iris/versions/9/infer", "no version 9"),
        ("/v2/models/iris/versions/9", "no version 9"),
        ("/v1/models/iris:unknown", "nothing"),
        ("/elsewhere", "nothing"),
    ],
)
def test_what_is_not_there_is_404_with_a_sentence(serving: Serving, path: str, word: str) -> None:
    answer = serving("iris").client.post(path, content=b"{}")
    assert answer.status_code == 404
    assert word in answer.json()["error"]


def test_a_wrong_method_is_405_and_names_the_right_one(serving: Serving) -> None:
    answer = serving("iris").client.get("/v1/models/iris:predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_explain_is_501(serving: Serving) -> None:
    answer = serving("iris").client.post("/v1/models/iris:explain", json={"instances": [SETOSA]})
    assert answer.status_code == 501
    assert "explainer" in answer.json()["error"]


# V1.


@pytest.mark.parametrize(
    "path", ["/v1/models/iris:predict", "/v1/model/iris:predict", "/v1/models/iris-alias:predict"]
)
@pytest.mark.parametrize("field", ["instances", "inputs"])
def test_v1_rows(serving: Serving, path: str, field: str) -> None:
    answer = serving("iris").client.post(path, json={field: [SETOSA, VIRGINICA]})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"predictions": [0, 2]}


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "application/octet-stream", ""]
)
def test_a_body_is_json_whatever_its_content_type(serving: Serving, content_type: str) -> None:
    answer = serving("iris").client.post(
        "/v1/models/iris:predict",
        content=json.dumps({"instances": [SETOSA]}),
        headers={"content-type": content_type},
    )
    assert answer.json() == {"predictions": [0]}


def test_v1_probabilities_on_request(serving: Serving) -> None:
    answer = serving("iris").predict([SETOSA], parameters={"probabilities": True})
    assert np.argmax(answer.json()["predictions"], axis=1).tolist() == [0]
    refused = serving("diabetes").predict([[0.0] * 10], parameters={"probabilities": True})
    assert refused.status_code == 400
    assert "probabilities" in refused.json()["error"]


def test_v1_records_for_a_pipeline_of_named_columns(serving: Serving) -> None:
    server = serving("people")
    records = [{"city": "Rome", "visits": 4, "age": 32}, {"city": "Oslo", "visits": 1, "age": None}]
    as_records = server.predict(records)
    assert as_records.status_code == 200, as_records.text
    as_lists = server.predict([[32, "Rome", 4], [None, "Oslo", 1]])
    assert as_lists.json() == as_records.json()
    columns = {"age": [32, None], "city": ["Rome", "Oslo"], "visits": [4, 1]}
    as_columns = server.client.post("/v1/models/people:predict", json={"inputs": columns})
    assert as_columns.json() == as_records.json()


def test_v1_records_for_a_matrix_whose_columns_have_names(serving: Serving) -> None:
    record = {"pw": 0.2, "pl": 1.4, "sw": 3.5, "sl": 5.1}
    for name in ("framed", "light"):
        answer = serving(name).predict([record])
        assert answer.json() == serving(name).predict([SETOSA]).json()
    assert serving("framed").predict([record]).json() == {"predictions": ["setosa"]}


def test_v1_text(serving: Serving) -> None:
    server = serving("text")
    assert server.predict(["good film", "awful day"]).json() == {"predictions": ["+", "-"]}
    assert server.predict([["good film"], ["awful day"]]).json() == {"predictions": ["+", "-"]}


def test_v1_mappings_for_a_dict_vectoriser(serving: Serving) -> None:
    answer = serving("words").predict([{"word": "a", "size": 1.0}, {"word": "b", "size": 3}])
    assert np.allclose(answer.json()["predictions"], [1.0, 3.0])


@pytest.mark.parametrize("name", ["forest", "histogram", "boosted", "raw-boosted", "light"])
def test_null_is_a_missing_value_where_the_model_takes_them(serving: Serving, name: str) -> None:
    row = [None, *SETOSA[1:]] if name != "raw-boosted" else [None, 1.0, 2.0]
    assert serving(name).predict([row]).status_code == 200


def test_boosters(serving: Serving) -> None:
    assert serving("boosted").predict([SETOSA, VIRGINICA]).json() == {"predictions": [0, 2]}
    proba = serving("boosted").predict([SETOSA], parameters={"probabilities": True}).json()["predictions"]
    assert np.isclose(np.sum(proba), 1.0)
    raw = serving("raw-boosted")
    positive = raw.predict([[14.0, 20.0, 90.0]]).json()["predictions"]
    pair = raw.predict([[14.0, 20.0, 90.0]], parameters={"probabilities": True}).json()["predictions"]
    assert np.allclose(pair, [[1 - positive[0], positive[0]]])
    light = serving("light").predict([SETOSA, VIRGINICA]).json()["predictions"]
    assert np.argmax(light, axis=1).tolist() == [0, 2]


@pytest.mark.parametrize("name", ["onnx", "onnx-plain"])
def test_onnx_classifiers(serving: Serving, name: str) -> None:
    server = serving(name)
    assert server.predict([SETOSA, VIRGINICA]).json() == {"predictions": [0, 2]}
    proba = server.predict([SETOSA, VIRGINICA], parameters={"probabilities": True}).json()["predictions"]
    assert np.argmax(proba, axis=1).tolist() == [0, 2]


def test_onnx_with_several_inputs(serving: Serving) -> None:
    server = serving("onnx-people")
    rows = [{"age": 1.0, "city": "a"}, {"age": 4, "city": "b"}]
    assert server.predict(rows).json() == {"predictions": [0, 1]}
    answer = server.infer(
        {"name": "city", "shape": [2, 1], "datatype": "BYTES", "data": ["a", "b"]},
        {"name": "age", "shape": [2, 1], "datatype": "FP64", "data": [1.0, 4.0]},
    )
    assert answer.json()["outputs"][0]["data"] == [0, 1]


# V2.


def test_v2_json(serving: Serving) -> None:
    server = serving("iris")
    flat = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [*SETOSA, *VIRGINICA]}
    answer = server.infer(flat, id="request-7")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["model_name"], body["model_version"], body["id"]) == ("iris", "3", "request-7")
    predict, proba = body["outputs"]
    assert predict == {"name": "predict", "shape": [2], "datatype": "INT64", "data": [0, 2]}
    assert (proba["name"], proba["shape"], proba["datatype"]) == ("predict_proba", [2, 3], "FP64")
    assert len(proba["data"]) == 6
    nested = server.infer({**flat, "data": [SETOSA, VIRGINICA]})
    assert nested.json()["outputs"] == body["outputs"]
    assert "id" not in nested.json()


def test_v2_outputs_are_chosen_and_versions_honoured(serving: Serving) -> None:
    server = serving("iris")
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP64", "data": SETOSA}
    body = {"inputs": [tensor], "outputs": [{"name": "predict"}]}
    answer = server.client.post("/v2/models/iris/versions/3/infer", json=body).json()
    assert [output["name"] for output in answer["outputs"]] == ["predict"]
    unknown = server.infer(tensor, outputs=[{"name": "depth"}])
    assert unknown.status_code == 400
    assert "predict_proba" in unknown.json()["error"]


@pytest.mark.parametrize(
    "datatype",
    ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64"],
)
def test_v2_takes_every_numeric_datatype(serving: Serving, datatype: str) -> None:
    data: list[Any] = [True, False, True, True] if datatype == "BOOL" else [5, 3, 1, 0]
    answer = serving("iris").infer({"name": "x", "shape": [1, 4], "datatype": datatype, "data": data})
    assert answer.status_code == 200, answer.text


def test_v2_binary_both_ways(serving: Serving) -> None:
    rows = np.array([SETOSA, VIRGINICA], dtype="<f4")
    head = json.dumps(
        {
            "id": "b",
            "inputs": [
                {
                    "name": "x",
                    "shape": [2, 4],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": rows.nbytes},
                }
            ],
            "outputs": [{"name": "predict"}, {"name": "predict_proba", "parameters": {"binary_data": True}}],
        }
    ).encode()
    answer = serving("iris").client.post(
        "/v2/models/iris/infer",
        content=head + rows.tobytes(),
        headers={
            "Inference-Header-Content-Length": str(len(head)),
            "content-type": "application/octet-stream",
        },
    )
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["inference-header-content-length"])
    body = json.loads(answer.content[:length])
    predict, proba = body["outputs"]
    assert predict["data"] == [0, 2]
    assert proba["parameters"]["binary_data_size"] == len(answer.content) - length
    values = np.frombuffer(answer.content[length:], dtype="<f8").reshape(proba["shape"])
    assert np.argmax(values, axis=1).tolist() == [0, 2]


def test_v2_binary_half_floats_and_strings(serving: Serving) -> None:
    half = np.array([SETOSA], dtype="<f2").tobytes()
    answer = _binary(serving("iris"), "FP16", [1, 4], half)
    assert answer.json()["outputs"][0]["data"] == [0]
    words = b"".join(struct.pack("<I", len(text)) + text for text in (b"good film", b"awful day"))
    answer = _binary(serving("text"), "BYTES", [2], words, parameters={"binary_data_output": True})
    length = int(answer.headers["inference-header-content-length"])
    size = json.loads(answer.content[:length])["outputs"][0]["parameters"]["binary_data_size"]
    assert answer.content[length : length + size] == b"\x01\0\0\0+\x01\0\0\0-"


def test_v2_columns_as_tensors(serving: Serving) -> None:
    answer = serving("people").infer(
        {"name": "city", "shape": [2], "datatype": "BYTES", "data": ["Rome", "Oslo"]},
        {"name": "age", "shape": [2], "datatype": "FP64", "data": [32.0, None]},
        {"name": "visits", "shape": [2, 1], "datatype": "INT64", "data": [4, 1]},
    )
    assert answer.status_code == 200, answer.text
    records = [{"city": "Rome", "visits": 4, "age": 32}, {"city": "Oslo", "visits": 1, "age": None}]
    assert answer.json()["outputs"][0]["data"] == serving("people").predict(records).json()["predictions"]


def test_metrics(serving: Serving) -> None:
    server = serving("iris")
    server.predict([SETOSA])
    answer = server.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert any(
        line.startswith('inferplane_model_requests_total{model="iris",protocol="v1",code="200"}')
        for line in lines
    )
    for name in (
        "request_seconds_bucket",
        "batch_rows_count",
        "queue_rows",
        "load_seconds",
        "in_flight_requests",
    ):
        assert any(line.startswith(f"inferplane_model_{name}") for line in lines), name


def _binary(server: Any, datatype: str, shape: list[int], blob: bytes, **more: Any) -> Any:
    tensor = {
        "name": "x",
        "shape": shape,
        "datatype": datatype,
        "parameters": {"binary_data_size": len(blob)},
    }
    head = json.dumps({"inputs": [tensor], **more}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = server.client.post(f"/v2/models/{server.name}/infer", content=head + blob, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer
