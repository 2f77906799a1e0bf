"""The event stream parser: whatever the network cuts, the events are the same."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.client.sse import EVENT_BYTES_MAX, EventParser, EventTooLongError, ServerEvent

STREAM = (
    b': that was all\n\nevent: ADDED\nid: 7\ndata: {"a":1}\n\n'
    b"data: one\r\ndata:two\r\n\r\nretry: 5\n\nevent: EMPTY\n\n"
    b"event: LINE\rdata: \xc3\xa9\r\r"
)
EVENTS = [
    ServerEvent("ADDED", b'{"a":1}'),
    ServerEvent("message", b"one\ntwo"),
    ServerEvent("LINE", b"\xc3\xa9"),
]


def test_events_comments_and_every_line_ending() -> None:
    parser = EventParser()
    assert [*parser.feed(STREAM), *parser.feed(b"\n")] == EVENTS


@given(st.lists(st.integers(min_value=0, max_value=len(STREAM)), max_size=12))
def test_cut_anywhere_the_events_are_the_same(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    parser = EventParser()
    events = [event for start, end in itertools.pairwise(edges) for event in parser.feed(STREAM[start:end])]
    assert [*events, *parser.feed(b"\n")] == EVENTS


def test_an_event_without_its_empty_line_is_not_complete() -> None:
    assert EventParser().feed(b"event: ADDED\ndata: {}\n") == []


@pytest.mark.parametrize(
    "chunk", [b"data: " + b"x" * EVENT_BYTES_MAX, (b"data: " + b"x" * 1_000_000 + b"\n") * 9]
)
def test_an_endless_event_is_refused(chunk: bytes) -> None:
    with pytest.raises(EventTooLongError):
        EventParser().feed(chunk + b"y" * 10)
