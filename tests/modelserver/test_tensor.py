"""Tensors go out and come back the same, in JSON and in binary form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.modelserver.errors import BadInput
from inferplane.modelserver.tensor import (
    DTYPES,
    Array,
    Datatype,
    as_number,
    check_shape,
    datatype_of,
    from_binary,
    from_json,
    texts,
    to_binary,
    to_json_data,
)

SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)
NUMERIC = [datatype for datatype in Datatype if datatype is not Datatype.BYTES]
IN_JSON = [datatype for datatype in NUMERIC if datatype is not Datatype.FP16]
# Without the control characters of lone surrogates, which are no text in any encoding.
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def arrays(draw: st.DrawFn, datatypes: Sequence[Datatype]) -> Array:
    """An array of any datatype and shape with any values that the datatype has."""
    datatype = draw(st.sampled_from(datatypes))
    shape = draw(SHAPES)
    dtype = DTYPES[datatype]
    count = math.prod(shape)
    if dtype.kind == "b":
        values: Any = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    elif dtype.kind == "f":
        width = 8 * dtype.itemsize
        assert width in (16, 32, 64)
        floats = st.floats(width=width, allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]
        values = draw(st.lists(floats, min_size=count, max_size=count))
    else:
        limits = np.iinfo(dtype)
        values = draw(st.lists(st.integers(int(limits.min), int(limits.max)), min_size=count, max_size=count))
    return np.array(values, dtype=dtype).reshape(shape)


def raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


@given(arrays(NUMERIC))
def test_binary_numbers_come_back(array: Array) -> None:
    back = from_binary("x", datatype_of(array), array.shape, memoryview(to_binary(array)))
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


@given(arrays(IN_JSON), st.booleans())
def test_json_numbers_come_back_flat_or_nested(array: Array, nested: bool) -> None:
    data = array.tolist() if nested else to_json_data("x", array)
    back = from_json("x", datatype_of(array), array.shape, raw(data))
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


@given(st.lists(WORDS, min_size=1, max_size=6))
def test_strings_come_back_in_both_forms(words: list[str]) -> None:
    array = np.empty(len(words), dtype=object)
    array[:] = words
    assert from_json("x", Datatype.BYTES, (len(words),), raw(to_json_data("x", array))).tolist() == words
    back = from_binary("x", Datatype.BYTES, (len(words),), memoryview(to_binary(array)))
    assert texts("x", back).tolist() == words


@given(st.sampled_from(list(Datatype)), SHAPES, st.binary(max_size=64))
def test_any_bytes_give_a_tensor_or_a_refusal(
    datatype: Datatype, shape: tuple[int, ...], blob: bytes
) -> None:
    try:
        array = from_binary("x", datatype, shape, memoryview(blob))
    except BadInput:
        return
    assert array.shape == shape


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=2),
    max_leaves=12,
)


@given(st.sampled_from(list(Datatype)), SHAPES, json_values)
def test_any_json_gives_a_tensor_or_a_refusal(datatype: Datatype, shape: tuple[int, ...], value: Any) -> None:
    try:
        data = raw(value)
    except (OverflowError, ValueError):
        return  # not writable as JSON in the first place
    try:
        array = from_json("x", datatype, shape, data)
    except BadInput:
        return
    assert array.shape == shape
    assert datatype_of(array) == datatype


def test_a_half_float_example_has_two_bytes_a_value() -> None:
    assert len(to_binary(np.ones((2, 2), dtype=np.float16))) == 8


def test_null_is_nan_in_floats_only() -> None:
    assert np.isnan(from_json("x", Datatype.FP64, (1,), raw([None]))).all()
    with pytest.raises(BadInput, match="null"):
        from_json("x", Datatype.INT32, (1,), raw([None]))


def test_sizes_are_checked_before_anything_is_allocated() -> None:
    with pytest.raises(BadInput, match="too few"):
        from_binary("x", Datatype.BYTES, (2**40,), memoryview(b"\0" * 8))
    with pytest.raises(BadInput, match="needs"):
        from_json("x", Datatype.FP32, (2**40, 2**40), raw([1.0]))
    with pytest.raises(BadInput, match="negative"):
        check_shape("x", (-1,))


@pytest.mark.parametrize(
    ("value", "missing", "words"),
    [(None, False, "missing values"), ("a", True, "'a'"), ([], True, "a list"), (10**400, True, "too large")],
)
def test_what_is_no_number_is_named(value: object, missing: bool, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        as_number(value, "instances[0][0]", missing=missing)


def test_odd_dtypes_are_strings() -> None:
    assert datatype_of(np.array(["a"])) is Datatype.BYTES
    assert to_json_data("x", np.array(["a", "b"])) == ["a", "b"]
    assert datatype_of(np.array([1], dtype=">i4")) is Datatype.INT32
    assert to_binary(np.array([1], dtype=">i4")) == b"\x01\0\0\0"
