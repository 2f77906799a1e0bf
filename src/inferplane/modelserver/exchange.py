"""One request and its answer, whatever protocol carries them.

The protocols (`http`, `grpc`) make an exchange when a request has arrived whole, the application
computes, and `finish` hands the answer back exactly once. All of it happens in the event loop's thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    from inferplane.modelserver.batcher import Entry

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]
Buffer: TypeAlias = bytes | memoryview

JSON_TYPE = (b"content-type", b"application/json")
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole response: the body is `body` followed by the buffers of `tail`, which are not copied.

    `message` is the sentence of an error, for protocols that carry it outside the body.
    """

    status: int
    body: Buffer
    headers: Headers = (JSON_TYPE,)
    tail: tuple[Buffer, ...] = ()
    message: str = ""

    @property
    def length(self) -> int:
        """Bytes of the whole body."""
        return len(self.body) + sum(len(buffer) for buffer in self.tail)


class Exchange:
    """One request on its way. Times are the event loop's, in seconds.

    `deadline` is when its caller stops waiting: what has not been computed by then is not computed any
    more. `entry` is its place in the batcher while it has one. `left` is set when the caller went away.
    """

    __slots__ = ("deadline", "done", "entry", "headers", "left", "patience", "protocol", "started")

    def __init__(
        self, protocol: str, headers: Iterable[tuple[bytes, bytes]], started: float, patience: float
    ) -> None:
        self.protocol = protocol
        self.headers = headers
        self.started = started
        self.patience = patience
        self.deadline = started + patience
        self.entry: Entry | None = None
        self.done = False
        self.left = False

    def finish(self, answer: Answer) -> None:
        """Send the answer. Called once, and not at all when the caller went away."""
        raise NotImplementedError

    def header(self, name: bytes) -> bytes | None:
        """A header's first value; `name` in small letters."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


def json_answer(status: int, value: object) -> Answer:
    """An answer in JSON."""
    return Answer(status, _ENCODER.encode(value))


def error_answer(status: int, message: str, headers: Headers = (JSON_TYPE,)) -> Answer:
    """The shape of every error: `{"error": "sentence"}`."""
    return Answer(status, _ENCODER.encode({"error": message}), headers, message=message)


def caller_patience(headers: Iterable[tuple[bytes, bytes]], limit: float) -> float:
    """How many seconds the caller waits, as the gateway says, and at most `limit`."""
    for key, value in headers:
        if key == EXPECTED_TIMEOUT_HEADER and value.isdigit() and len(value) < 12:
            milliseconds = int(value)
            return min(limit, milliseconds / 1000) if milliseconds else limit
    return limit if math.isfinite(limit) else math.inf


#: Envoy's word for the time limit it applies to this request, in milliseconds; 0 is none.
EXPECTED_TIMEOUT_HEADER = b"x-envoy-expected-rq-timeout-ms"
