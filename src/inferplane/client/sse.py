"""Server-sent events: bytes as they arrive → events. Pure; knows nothing of where the bytes come from.

Only what this API sends is kept: `event` and `data`. Comments (the heartbeat), `id` and `retry` are
skipped. Lines may end in LF, CR or CRLF, and any of them may be cut in two by the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field

EVENT_BYTES_MAX = 8 * 1024 * 1024
"""A longer event is nothing that this API sends."""


class EventTooLongError(ValueError):
    """What arrives is not a stream of this API's events."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event. `name` is "message" unless the server named it."""

    name: str
    data: bytes


@dataclass(slots=True)
class EventParser:
    """Feed it chunks in order; each call returns the events that became complete."""

    _rest: bytes = b""
    _name: str = ""
    _data: list[bytes] = field(default_factory=list)
    _size: int = 0

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """The events completed by `chunk`. Raises EventTooLongError."""
        text = self._rest + chunk
        # A CR at the very end may be the first half of CRLF: keep it until the next chunk.
        held = b"\r" if text.endswith(b"\r") else b""
        lines = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + held
        if self._size + len(self._rest) > EVENT_BYTES_MAX:
            raise EventTooLongError(f"an event is longer than {EVENT_BYTES_MAX} bytes")
        events = []
        for line in lines:
            event = self._line(line)
            if event is not None:
                events.append(event)
        return events

    def _line(self, line: bytes) -> ServerEvent | None:
        if not line:
            name, data = self._name, self._data
            self._name, self._data, self._size = "", [], 0
            return ServerEvent(name or "message", b"\n".join(data)) if data else None
        key, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if key == b"event":
            self._name = value.decode("utf-8", "replace")
        elif key == b"data":
            self._data.append(value)
            self._size += len(value)
            if self._size > EVENT_BYTES_MAX:
                raise EventTooLongError(f"an event is longer than {EVENT_BYTES_MAX} bytes")
        return None
