"""When the runner looks at what nobody asked about."""

from __future__ import annotations

from inferplane.controllers.runner import spread


def test_regular_looks_are_spread_evenly_over_the_time() -> None:
    assert spread(["a", "b", "c", "d"], 20.0) == [("a", 0.0), ("b", 5.0), ("c", 10.0), ("d", 15.0)]
    assert spread(["only"], 20.0) == [("only", 0.0)]
    assert spread([], 20.0) == []
