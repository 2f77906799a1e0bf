"""What an overloaded server sees of a request without parsing it: only what the parser would see too."""

from __future__ import annotations

import math

import pytest

from inferplane.modelserver.http import HEADS_SEEN_MAX, Glance, glance_at

PATH = "/v1/models/iris:predict"
BODY = b'{"instances": [[1, 2]]}'


def request(*headers: str, line: str = f"POST {PATH} HTTP/1.1", body: bytes = BODY) -> bytes:
    return "\r\n".join((line, *headers, "", "")).encode() + body


LENGTH = f"content-length: {len(BODY)}"


@pytest.mark.parametrize(
    "headers",
    [
        ("host: x", LENGTH),
        (f"Content-Length:{len(BODY)}", "Host: x", "Connection: keep-alive"),
        ("inference-header-content-length-is-not-it: 5", LENGTH)[1:],
    ],
)
def test_a_whole_plain_post_is_seen(headers: tuple[str, ...]) -> None:
    assert glance_at(request(*headers), {}) == Glance(PATH, len(BODY), math.inf)


@pytest.mark.parametrize(
    ("word", "patience"), [("500", 0.5), ("0", math.inf), ("soon", math.inf), ("", math.inf)]
)
def test_the_callers_patience_is_seen(word: str, patience: float) -> None:
    glance = glance_at(request(f"X-Envoy-Expected-Rq-Timeout-Ms: {word}", LENGTH), {})
    assert glance == Glance(PATH, len(BODY), patience)


@pytest.mark.parametrize(
    "data",
    [
        request("host: x"),
        request(LENGTH, LENGTH),
        request("inference-header-content-length: 5", LENGTH),
        request(LENGTH, "transfer-encoding: chunked"),
        request(LENGTH, "expect: 100-continue"),
        request(LENGTH, "connection: close"),
        request(LENGTH, "connection: upgrade", "upgrade: h2c"),
        request("content-length: -1"),
        request("content-length: 0x17"),
        request("content-length:"),
        request("x: y", body=f"\r\n{LENGTH}\r\n\r\n".encode()),
        request(f" {LENGTH}"),
        request(LENGTH, line=f"GET {PATH} HTTP/1.1"),
        request(LENGTH, line=f"POST {PATH} HTTP/1.0"),
        request(LENGTH, line=f"POST {PATH} HTTP/1.1 "),
        request(LENGTH, line=f"POST {PATH}"),
        request(LENGTH, line="POST http://elsewhere/ HTTP/1.1"),
        request(LENGTH)[:-1],
        request(LENGTH) + b"G",
        request(LENGTH) * 2,
        request(LENGTH, "long: " + "x" * 5000),
        request(LENGTH)[:20],
        b"",
        b"\r\n\r\n",
    ],
)
def test_everything_else_is_left_to_the_parser(data: bytes) -> None:
    seen: dict[bytes, Glance | None] = {}
    assert glance_at(data, seen) is None
    assert glance_at(data, seen) is None, "nor when its head has been seen before"


def test_a_head_is_remembered_without_its_request_id() -> None:
    seen: dict[bytes, Glance | None] = {}
    for name in ("one", "two", ""):
        glance = glance_at(request("host: x", f"x-request-id: {name}", LENGTH), seen)
        assert glance == Glance(PATH, len(BODY), math.inf)
    assert len(seen) == 1
    assert glance_at(request("host: x", "x-request-id: three", LENGTH) + b"G", seen) is None
    assert glance_at(request("host: x", "x-request-id: a\nexpect: 100-continue", LENGTH), seen) is None
    assert glance_at(request("host: x", LENGTH, "x-request-id: last"), seen) is not None
    assert glance_at(request("host: x", LENGTH, "x-request-id: last", body=BODY * 2), seen) is None


def test_no_more_heads_are_remembered_than_there_is_room_for() -> None:
    seen: dict[bytes, Glance | None] = {}
    for number in range(2 * HEADS_SEEN_MAX):
        assert glance_at(request(LENGTH, f"traceparent: {number}"), seen) is not None
        assert len(seen) <= HEADS_SEEN_MAX
