"""Counting the access log: every whole line once, wherever reading stops, whatever becomes of the files."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferplane.domain.endpoint_access import LogPosition, Usage, Used
from inferplane.gateway.usage_log import LINE_BYTES_MAX, count, read_on

BEGINNING = LogPosition()
TEN = datetime(2026, 1, 31, 10, tzinfo=UTC)


def line(number: int = 0, **more: Any) -> bytes:
    facts = {
        "time": "2026-01-31T10:20:30.400Z",
        "requestId": f"r{number}",
        "endpoint": "iris.default",
        "uid": "u1",
        "keyId": "k1",
        "status": 200,
        "milliseconds": 12,
        **more,
    }
    return json.dumps({name: value for name, value in facts.items() if value is not None}).encode() + b"\n"


def requests(log: Path, position: LogPosition = BEGINNING, bytes_max: int = 4096) -> tuple[int, LogPosition]:
    """Read until there is no more; how many requests, and where it ended."""
    total = 0
    while True:
        part = read_on(log, position, bytes_max)
        total += sum(each.used.requests for each in part.usage)
        position = part.position
        if not part.more:
            return total, position


def test_lines_become_sums_by_hour_endpoint_and_key() -> None:
    lines = [
        line(rows="3"),
        line(status=429, rows=None),
        line(status=0, milliseconds=-5),
        line(keyId=None, tokens="70", milliseconds=2500),
        line(keyId=None, streamTokens="30"),
        line(time="2026-01-31T11:00:00.000Z", rows="x", tokens=-1),
        line(endpoint="iris.default.edge", uid="u2", rows=4),
        line(uid=None),
        line(endpoint="-"),
        line(time="when?"),
        b"nonsense\n",
        b"\xff\xfe\n",
        b"[]\n",
        b'{"status": "200"}\n',
    ]
    assert count(b"".join(lines).splitlines()) == (
        Usage(TEN, "default", "iris", "u1", "", Used(2, tokens=100, milliseconds=2512)),
        Usage(TEN, "default", "iris", "u1", "k1", Used(3, 2, 3, milliseconds=24)),
        Usage(TEN, "default", "iris", "u2", "k1", Used(1, rows=4, milliseconds=12)),
        Usage(TEN.replace(hour=11), "default", "iris", "u1", "k1", Used(1, milliseconds=12)),
    )
    (bounded,) = count([line(milliseconds=10**30, rows="9" * 40)])
    assert bounded.used == Used(1, milliseconds=10**15)


def test_a_line_that_is_not_whole_waits(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    assert read_on(log, LogPosition()).position == LogPosition()
    log.write_bytes(line(1)[:20])
    assert read_on(log, LogPosition()).usage == ()
    log.write_bytes(line(1) + line(2)[:20])
    total, position = requests(log)
    assert (total, position.offset) == (1, len(line(1)))
    log.write_bytes(line(1) + line(2))
    assert requests(log, position)[0] == 1


def test_a_line_that_never_ends_is_skipped(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(line(1) + b"x" * (3 * LINE_BYTES_MAX) + b"\n" + line(2))
    assert requests(log, bytes_max=LINE_BYTES_MAX)[0] == 2


def test_what_was_moved_aside_is_read_to_its_end_before_the_new_one(tmp_path: Path) -> None:
    log, older = tmp_path / "access.log", tmp_path / "access.log.1"
    log.write_bytes(line(1) + line(2))
    total, position = requests(log, bytes_max=len(line(1)) + 5)
    assert total == 2
    log.rename(older)
    with older.open("ab") as file:
        file.write(line(3))
    total, position = requests(log, position)
    assert total == 1, "Envoy still writes to the old one"
    log.write_bytes(b"")
    total, position = requests(log, position)
    assert total == 0, "nobody knows what the new one is yet"
    with older.open("ab") as file:
        file.write(line(4))
    log.write_bytes(line(5) + line(6))
    total, position = requests(log, position)
    assert total == 3
    assert requests(log, position)[0] == 0
    older.unlink()
    with log.open("ab") as file:
        file.write(line(7))
    assert requests(log, position)[0] == 1


def test_what_went_before_it_was_read_is_said_to_be_lost(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(line(1))
    _, position = requests(log)
    log.write_bytes(line(2) + line(3))  # another file, by the same name
    part = read_on(log, position)
    assert part.lost
    assert sum(each.used.requests for each in part.usage) == 2


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from(["write", "half", "read", "forget", "rotate"]), max_size=25),
    st.integers(250, 900),
)
def test_every_line_counts_once_whatever_is_interrupted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str], bytes_max: int
) -> None:
    """`forget` reads a part and loses it, as a kill between reading and storing does."""
    folder = tmp_path_factory.mktemp("log")
    log, older = folder / "access.log", folder / "access.log.1"
    log.touch()
    written = counted = 0
    rest = b""
    position = LogPosition()
    for step in (*steps, "read"):
        match step:
            case "write" | "half":
                new = rest or line(written)
                written += not rest
                cut = len(new) // 2 if step == "half" and not rest else len(new)
                rest = new[cut:]
                with log.open("ab") as file:
                    file.write(new[:cut])
            case "forget":
                read_on(log, position, bytes_max)
            case "read":
                total, position = requests(log, position, bytes_max)
                counted += total
            case "rotate" if not rest and not older.exists() and log.stat().st_size:
                log.rename(older)
                log.touch()
    assert counted == written - bool(rest)
