"""When the runner looks at what nobody asked about."""

from __future__ import annotations

from inferplane.controllers.runner import (
    AGAIN_SECONDS_MIN,
    RESYNC_SECONDS,
    RESYNC_SECONDS_MAX,
    pause_seconds,
    resync_seconds,
    spread,
)


def test_regular_looks_are_spread_evenly_over_the_time() -> None:
    assert spread(["a", "b", "c", "d"], 20.0) == [("a", 0.0), ("b", 5.0), ("c", 10.0), ("d", 15.0)]
    assert spread(["only"], 20.0) == [("only", 0.0)]
    assert spread([], 20.0) == []


def test_with_many_keys_regular_looks_are_spread_over_longer_up_to_a_bound() -> None:
    assert [resync_seconds(count) for count in (0, 1, 300)] == [RESYNC_SECONDS] * 3
    assert resync_seconds(500) == 50.0
    assert resync_seconds(1_000_000) == RESYNC_SECONDS_MAX


def test_who_wants_to_be_looked_at_again_at_once_is_slowed_down() -> None:
    assert pause_seconds(30.0, 1.0) == 30.0
    assert pause_seconds(30.0, 60.0) == 0.5
    for hasty in (0.0, -1.0, 1e-9):
        assert pause_seconds(hasty, 1.0) == AGAIN_SECONDS_MIN
