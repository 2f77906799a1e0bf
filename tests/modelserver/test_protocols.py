"""V1 and V2 as pure functions: any body gives work or a refusal, and answers keep their shape."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.modelserver import v1, v2
from inferplane.modelserver.errors import BadInput
from inferplane.modelserver.frameworks.base import (
    PREDICT,
    PREDICT_PROBA,
    WHOLE,
    InputKind,
    Signature,
    TensorSpec,
    matrix_input,
)
from inferplane.modelserver.tensor import Datatype

OUTPUTS = (TensorSpec(PREDICT, Datatype.INT64, (-1,)), TensorSpec(PREDICT_PROBA, Datatype.FP64, (-1, 2)))
MATRIX = Signature(InputKind.MATRIX, matrix_input(2), OUTPUTS, features=2, probability_output=PREDICT_PROBA)
NAMED = Signature(
    InputKind.MATRIX, matrix_input(2), OUTPUTS[:1], features=2, columns=("a", "b"), missing=True
)
TABLE = Signature(
    InputKind.TABLE,
    (TensorSpec("a", Datatype.FP64, (-1,)), TensorSpec("b", Datatype.BYTES, (-1,))),
    OUTPUTS[:1],
    features=2,
    columns=("a", "b"),
    missing=True,
    strings=True,
)
TEXT = Signature(InputKind.TEXT, (TensorSpec(WHOLE, Datatype.BYTES, (-1,)),), OUTPUTS[:1])
MAPPINGS = Signature(InputKind.MAPPINGS, (TensorSpec(WHOLE, Datatype.BYTES, (-1,)),), OUTPUTS[:1])
IMAGE = Signature(
    InputKind.TENSORS,
    (TensorSpec("image", Datatype.FP32, (-1, 2, 2)),),
    (TensorSpec("out", Datatype.FP32, (-1, 1)),),
)
PAIR = Signature(
    InputKind.TENSORS,
    (TensorSpec("n", Datatype.INT64, (-1, 1)), TensorSpec("s", Datatype.BYTES, (-1, 1))),
    (TensorSpec("p", Datatype.FP32, (-1, 1)), TensorSpec("q", Datatype.FP32, (-1, 1))),
)
SIGNATURES = [MATRIX, NAMED, TABLE, TEXT, MAPPINGS, IMAGE, PAIR]

finite = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | words,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "n", "s", "x"]), inner)
    ),
    max_leaves=16,
)


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


@given(st.sampled_from(SIGNATURES), st.sampled_from(["instances", "inputs"]), anything)
def test_any_v1_body_gives_work_or_a_refusal(signature: Signature, field: str, value: Any) -> None:
    try:
        work = v1.parse(body(**{field: value}), signature, probabilities=False)
    except BadInput:
        return
    assert work.rows >= 1
    assert {len(array) for array in work.inputs.values()} == {work.rows}


@given(
    st.sampled_from(SIGNATURES),
    st.sampled_from(list(Datatype)),
    st.lists(st.integers(-1, 3), max_size=3),
    anything,
    st.sampled_from(["a", "b", "n", "s", "image", "input-0"]),
)
def test_any_v2_body_gives_work_or_a_refusal(
    signature: Signature, datatype: Datatype, shape: list[int], data: Any, name: str
) -> None:
    tensor = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    try:
        request = v2.parse(body(inputs=[tensor]), None, signature)
    except BadInput:
        return
    assert {len(array) for array in request.work.inputs.values()} == {request.work.rows}


@given(st.sampled_from([v1, v2]), st.binary(max_size=200))
def test_any_bytes_are_refused_or_understood(protocol: Any, content: bytes) -> None:
    try:
        if protocol is v1:
            v1.parse(content, MATRIX, probabilities=False)
        else:
            v2.parse(content, None, MATRIX)
    except BadInput:
        return


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=5))
def test_rows_of_numbers_arrive_as_they_are(rows: list[tuple[float, float]]) -> None:
    for signature, sent in (
        (MATRIX, [list(row) for row in rows]),
        (NAMED, [{"b": row[1], "a": row[0], "unused": None} for row in rows]),
    ):
        work = v1.parse(body(instances=sent), signature, probabilities=False)
        assert work.inputs[WHOLE].tolist() == [list(row) for row in rows]
        assert work.inputs[WHOLE].dtype == np.float64


def test_probabilities() -> None:
    asked = {"probabilities": True}
    rows = [[1, 2]]
    assert v1.parse(body(instances=rows), MATRIX, probabilities=False).outputs == (PREDICT,)
    assert v1.parse(body(instances=rows), MATRIX, probabilities=True).outputs == (PREDICT_PROBA,)
    assert v1.parse(body(instances=rows, parameters=asked), MATRIX, probabilities=False).outputs == (
        PREDICT_PROBA,
    )
    assert v1.parse(body(instances=rows), NAMED, probabilities=True).outputs == (PREDICT,)
    with pytest.raises(BadInput, match="no class probabilities"):
        v1.parse(body(instances=rows, parameters=asked), NAMED, probabilities=False)


def test_columns_take_the_narrowest_type_that_holds_them() -> None:
    rows = [{"a": 1, "b": "x"}, {"a": None, "b": None}]
    inputs = v1.parse(body(instances=rows), TABLE, probabilities=False).inputs
    assert inputs["a"].dtype == np.float64
    assert np.isnan(inputs["a"][1])
    assert inputs["b"][0] == "x"
    assert np.isnan(inputs["b"][1])
    whole = v1.parse(body(inputs={"b": ["x", "y"], "a": [1, 2]}), TABLE, probabilities=False).inputs
    assert whole["a"].dtype == np.int64


def test_named_tensors_by_row_and_by_column() -> None:
    by_row = v1.parse(body(instances=[{"n": 1, "s": "a"}, {"n": 2, "s": "b"}]), PAIR, probabilities=False)
    by_column = v1.parse(body(inputs={"n": [1, 2], "s": ["a", "b"]}), PAIR, probabilities=False)
    for work in (by_row, by_column):
        assert work.inputs["n"].tolist() == [[1], [2]]
        assert work.inputs["s"].tolist() == [["a"], ["b"]]
        assert work.outputs == ("p", "q")
    answer = v1.render({"p": np.array([[1.0], [2.0]]), "q": np.array([[3.0], [4.0]])}, by_row)
    assert json.loads(answer) == {"predictions": [{"p": [1.0], "q": [3.0]}, {"p": [2.0], "q": [4.0]}]}


@pytest.mark.parametrize("value", [1.5, 2**70, "1", None, [1, 2]])
def test_what_is_no_whole_number_is_refused_where_one_is_taken(value: Any) -> None:
    with pytest.raises(BadInput):
        v1.parse(body(instances=[{"n": value, "s": "a"}]), PAIR, probabilities=False)


def test_tensors_of_more_dimensions() -> None:
    work = v1.parse(body(instances=[[[1, 2], [3, 4]]]), IMAGE, probabilities=False)
    assert work.inputs["image"].shape == (1, 2, 2)
    assert work.inputs["image"].dtype == np.float32
    for wrong in ([[1, 2]], [[[1, 2, 3], [4, 5, 6]]], [[[1, 2], [3]]], [[[1, 2], [3, 1e300]]]):
        with pytest.raises(BadInput):
            v1.parse(body(instances=wrong), IMAGE, probabilities=False)


def test_answers_hold_what_json_has_no_word_for() -> None:
    work = v1.parse(body(instances=[[1, 2]]), MATRIX, probabilities=False)
    odd = np.array([np.float64(1.5), np.int64(2), "a", float("nan"), np.array([1])], dtype=object)
    assert json.loads(v1.render({PREDICT: odd}, work)) == {"predictions": [1.5, 2, "a", None, [1]]}


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=4), st.booleans(), st.booleans())
def test_v2_binary_and_json_mean_the_same(
    rows: list[tuple[float, float]], binary_in: bool, binary_out: bool
) -> None:
    array = np.array(rows, dtype="<f8")
    tensor: dict[str, Any] = {"name": "x", "shape": list(array.shape), "datatype": "FP64"}
    blob = b""
    if binary_in:
        blob = array.tobytes()
        tensor["parameters"] = {"binary_data_size": len(blob)}
    else:
        tensor["data"] = array.tolist()
    head = body(inputs=[tensor], id="1", parameters={"binary_data_output": binary_out})
    request = v2.parse(head + blob, len(head) if binary_in else None, MATRIX)
    assert np.array_equal(request.work.inputs[WHOLE], array)
    outputs = {PREDICT: np.arange(len(rows)), PREDICT_PROBA: array}
    head, blobs = v2.render(outputs, request, "m", "1")
    assert bool(blobs) == binary_out
    answer = msgspec.json.decode(head)
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("m", "1", "1")
    predict, proba = answer["outputs"]
    if binary_out:
        sizes = [output["parameters"]["binary_data_size"] for output in (predict, proba)]
        assert sizes == [len(blob) for blob in blobs]
        assert np.array_equal(np.frombuffer(blobs[1], "<f8").reshape(proba["shape"]), array)
    else:
        assert np.array_equal(np.array(proba["data"]).reshape(proba["shape"]), array)


def test_v2_half_floats_leave_as_single_ones_in_json() -> None:
    request = v2.parse(
        body(inputs=[{"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]}]), None, NAMED
    )
    content, _ = v2.render({PREDICT: np.array([0.5], dtype=np.float16)}, request, "m", "")
    answer = json.loads(content)
    assert answer["outputs"] == [{"name": PREDICT, "shape": [1], "datatype": "FP32", "data": [0.5]}]
    assert "model_version" not in answer
    assert "id" not in answer


def test_v2_columns_by_name() -> None:
    tensors = [
        {"name": "b", "shape": [2], "datatype": "INT8", "data": [3, 4]},
        {"name": "a", "shape": [2, 1], "datatype": "FP32", "data": [1, 2]},
    ]
    assert v2.parse(body(inputs=tensors), None, NAMED).work.inputs[WHOLE].tolist() == [[1, 3], [2, 4]]
    with pytest.raises(BadInput, match="lacks the input 'b'"):
        v2.parse(body(inputs=tensors[1:]), None, NAMED)
