"""Durations and sizes: exact in, readable out, and a sentence for everything else."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.domain.errors import Invalid
from inferplane.domain.quantity import (
    CPU_MILLIS_MAX,
    DURATION_MAX,
    MEMORY_BYTES_MAX,
    format_duration,
    parse_cpu,
    parse_duration,
    parse_memory,
)

_ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()), st.just({})
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0d0h5m", timedelta(minutes=5)),
        ("5m", timedelta(minutes=5)),
        ("1h", timedelta(hours=1)),
        ("1d", timedelta(days=1)),
        ("30d", timedelta(days=30)),
        ("1w", timedelta(days=7)),
        ("1W", timedelta(days=7)),
        ("1h15m0s", timedelta(minutes=75)),
        ("90m", timedelta(minutes=90)),
        ("45s", timedelta(seconds=45)),
        (" 2h ", timedelta(hours=2)),
        ("0m", timedelta(0)),
    ],
)
def test_durations_that_are_understood(text: str, expected: timedelta) -> None:
    assert parse_duration(text, "f") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "5",
        "5 m",
        "m",
        "-5m",
        "5m1h",
        "1h1h",
        "1.5h",
        "1y",
        "\uff15m",
        "1" * 50 + "m",
        "36526d",
        None,
        5,
        True,
        [],
        {},
    ],
)
def test_durations_that_are_none(text: Any) -> None:
    with pytest.raises(Invalid) as caught:
        parse_duration(text, "exitDuration")
    assert (caught.value.field, caught.value.reason) == ("exitDuration", "InvalidDuration")
    assert caught.value.next_action


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(minutes=75), "1h15m0s"),
        (timedelta(0), "0h0m0s"),
        (timedelta(seconds=142), "0h2m22s"),
        (timedelta(days=30), "720h0m0s"),
        (timedelta(milliseconds=1999), "0h0m1s"),
        (timedelta(seconds=-5), "0h0m0s"),
    ],
)
def test_durations_as_they_are_shown(duration: timedelta, text: str) -> None:
    assert format_duration(duration) == text


@given(st.integers(0, int(DURATION_MAX.total_seconds())))
def test_a_duration_that_was_shown_can_be_read_again(seconds: int) -> None:
    duration = timedelta(seconds=seconds)
    assert parse_duration(format_duration(duration), "f") == duration


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2Gi", 2 * 1024**3),
        ("512Mi", 512 * 1024**2),
        ("1G", 10**9),
        ("1k", 1000),
        ("1.5Gi", 3 * 1024**3 // 2),
        ("128974848000m", 128974848),
        ("1e9", 10**9),
        ("1E", 10**18),
        ("0.1", 1),
        (1024, 1024),
        (1e6, 10**6),
        (1.5, 2),
        ("7Ei", 7 * 1024**6),
    ],
)
def test_memory_that_is_understood(value: Any, expected: int) -> None:
    assert parse_memory(value, "f") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("500m", 500), ("2", 2000), (2, 2000), (0.5, 500), ("0.1", 100), ("1u", 1), (0.0001, 1)],
)
def test_cpu_that_is_understood(value: Any, expected: int) -> None:
    assert parse_cpu(value, "f") == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "lots",
        "-1",
        "2GiB",
        "2 Gi",
        "Gi",
        "1e999",
        "9" * 30,
        "8Ei",
        "0",
        0,
        -1,
        True,
        None,
        [],
        {},
        10**400,
        "\uff11Gi",
        float("nan"),
        float("inf"),
    ],
)
def test_sizes_that_are_none(value: Any) -> None:
    for parse in (parse_memory, parse_cpu):
        with pytest.raises(Invalid) as caught:
            parse(value, "resources.x")
        assert (caught.value.field, caught.value.reason) == ("resources.x", "InvalidQuantity")
        assert len(caught.value.message) < 200


@given(_ANYTHING)
def test_anything_is_read_or_refused(value: Any) -> None:
    for parse, largest in ((parse_memory, MEMORY_BYTES_MAX), (parse_cpu, CPU_MILLIS_MAX)):
        try:
            blamed, amount = "f", parse(value, "f")
        except Invalid as refusal:
            blamed, amount = refusal.field, 1
        assert blamed == "f"
        assert 1 <= amount <= largest


@given(_ANYTHING)
def test_anything_is_a_duration_or_refused(value: Any) -> None:
    try:
        blamed, duration = "f", parse_duration(value, "f")
    except Invalid as refusal:
        blamed, duration = refusal.field, timedelta(0)
    assert blamed == "f"
    assert timedelta(0) <= duration <= DURATION_MAX


@given(st.integers(1, MEMORY_BYTES_MAX))
def test_bytes_are_exact(size: int) -> None:
    assert parse_memory(size, "f") == parse_memory(str(size), "f") == size


@given(st.integers(1, 10**6))
def test_millis_are_exact(millis: int) -> None:
    assert parse_cpu(f"{millis}m", "f") == parse_cpu(f"{millis / 1000:.3f}", "f") == millis
