"""Reading bodies: lenient about spelling and extras, exact about types, complete about mistakes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from inferplane.domain.errors import Invalid, Malformed, Problem
from inferplane.wire.decode import PROBLEMS_MAX, read, read_object, read_struct
from inferplane.wire.endpoints import CreateEndpoint, GpuSpecBody, ModelSpecBody


class Inner(msgspec.Struct, rename="camel"):
    some_text: str
    ratio: float | None = None


class Outer(msgspec.Struct, rename="camel"):
    inner: Inner
    count: int = 1
    words: list[str] | None = None
    labels: dict[str, str] | None = None
    either: Inner | str | None = None
    anything: Any = None


def problems(values: dict[str, Any]) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        read_struct(values, Outer)
    return list(caught.value.details)


def test_null_is_absent_and_case_does_not_matter() -> None:
    value = read_struct({"INNER": {"sometext": "x", "ratio": None}, "count": None, "words": None}, Outer)
    assert value == Outer(Inner("x"))


def test_the_exact_spelling_wins() -> None:
    assert read_struct({"inner": {"SOMETEXT": "b", "someText": "a"}}, Outer).inner.some_text == "a"


def test_whole_numbers_are_numbers_but_truth_is_not() -> None:
    assert read_struct({"inner": {"someText": "", "ratio": 2}}, Outer).inner.ratio == 2.0
    assert problems({"inner": {"someText": "", "ratio": True}, "count": False}) == [
        Problem("inner.ratio", "WrongType", "inner.ratio must be a number, not true or false"),
        Problem("count", "WrongType", "count must be a whole number, not true or false"),
    ]


def test_nulls_inside_an_object_are_absent_inside_a_list_they_are_wrong() -> None:
    value = read_struct({"inner": {"someText": ""}, "labels": {"a": "1", "b": None}}, Outer)
    assert value.labels == {"a": "1"}
    assert problems({"inner": {"someText": ""}, "words": ["a", None]}) == [
        Problem("words[1]", "WrongType", "words[1] must be text, not null")
    ]


def test_problems_name_the_field_and_never_the_value() -> None:
    found = problems({"inner": {"ratio": "hunter2"}, "labels": {"k": 7}, "words": "hunter2", "either": 5})
    assert [each.field for each in found] == ["inner.someText", "inner.ratio", "words", "labels", "either"]
    assert "hunter2" not in str(found)
    assert found[3].message == "every value in labels must be text, not a whole number"


def test_a_union_of_an_object_and_text() -> None:
    assert read_struct({"inner": {"someText": ""}, "either": "None"}, Outer).either == "None"
    assert read_struct({"inner": {"someText": ""}, "either": {"someText": "y"}}, Outer).either == Inner("y")
    assert problems({"inner": {"someText": ""}, "either": {}}) == [
        Problem("either.someText", "Missing", "either.someText is needed")
    ]


def test_the_number_of_problems_is_bounded() -> None:
    shape = msgspec.defstruct("Wide", [(f"f{n}", int) for n in range(200)])
    with pytest.raises(Invalid) as caught:
        read_struct({}, shape)
    assert len(caught.value.details) == PROBLEMS_MAX


@pytest.mark.parametrize("body", [b"", b" ", b"null", b"{}"])
def test_nothing_is_an_empty_object(body: bytes) -> None:
    assert read_object(body) == {}


@pytest.mark.parametrize("body", [b"{", b"\xff", b'{"a":' + b"1" * 5000 + b"}", b"[" * 100_000])
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        read_object(body)


def test_a_create_request_is_read() -> None:
    body = b"""{"endpointName":"e","workspace":"w","clusterName":"c","modelSpec":{"modelName":"sklearn",
      "storageUri":"/m"},"gpuSpec":{"memoryPerGpu":24,"numberOfGPUs":1},"unknown":[{}]}"""
    assert read(body, CreateEndpoint) == CreateEndpoint(
        endpoint_name="e",
        workspace="w",
        cluster_name="c",
        model_spec=ModelSpecBody(model_name="sklearn", storage_uri="/m"),
        gpu_spec=GpuSpecBody(memory_per_gpu=24, number_of_gpus=1),
    )
