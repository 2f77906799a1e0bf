"""When a new revision counts as worse than the one before, and how many servers its share needs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from inferplane.domain.rollout import (
    Guard,
    RevisionTraffic,
    Rollout,
    RolloutNote,
    RolloutPhase,
    Strategy,
    candidate_replicas,
    replicas_by_revision,
    shares,
    why_worse,
)

GUARD = Guard()
WELL = RevisionTraffic(requests=1000, errors=1, latency_p95_ms=20.0)


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        (RevisionTraffic(100, 0, 20.0), ""),
        (RevisionTraffic(100, 5, 20.0), ""),
        (
            RevisionTraffic(100, 6, 20.0),
            "6 % of its 100 requests failed, 0.1 % of those to the revision before",
        ),
        (RevisionTraffic(19, 19, 20.0), ""),
        (RevisionTraffic(100, 0, 99.0), ""),
        (RevisionTraffic(100, 0, 101.0), "its slowest 5 % of 100 requests took over 101 ms"),
        (RevisionTraffic(100, 0, None), ""),
    ],
    ids=["as-well", "at-bound", "errors", "too-few", "slow-but-quick", "slow", "not-measured"],
)
def test_a_candidate_is_worse_only_beyond_the_bounds_and_on_enough_requests(
    candidate: RevisionTraffic, said: str
) -> None:
    found = why_worse(WELL, candidate, GUARD)
    assert found.startswith(said) if said else found == ""


def test_latency_is_compared_with_a_factor_of_the_base() -> None:
    slow_base = replace(WELL, latency_p95_ms=200.0)
    assert why_worse(slow_base, RevisionTraffic(100, 0, 590.0), GUARD) == ""
    assert why_worse(slow_base, RevisionTraffic(100, 0, 610.0), GUARD)


def test_errors_are_judged_even_where_the_base_had_no_requests() -> None:
    assert why_worse(RevisionTraffic(), RevisionTraffic(50, 50, 5.0), GUARD)
    assert why_worse(RevisionTraffic(), RevisionTraffic(50, 0, 5000.0), GUARD) == ""


def test_a_guard_can_be_switched_off() -> None:
    assert why_worse(WELL, RevisionTraffic(50, 50, 5.0), replace(GUARD, enabled=False)) == ""


@pytest.mark.parametrize(
    ("desired", "percent", "replicas"), [(1, 10, 1), (10, 10, 1), (10, 25, 3), (3, 100, 3), (0, 50, 0)]
)
def test_a_share_needs_its_part_of_the_replicas_and_one_at_least(
    desired: int, percent: int, replicas: int
) -> None:
    assert candidate_replicas(desired, percent) == replicas


def test_an_update_takes_everything_a_shadow_nothing() -> None:
    assert (Rollout(1).candidate_percent, Rollout(1).is_gradual) == (100, False)
    assert (Rollout(1, canary_percent=5).candidate_percent, Rollout(1, canary_percent=5).is_gradual) == (
        5,
        True,
    )
    assert (Rollout(1, mirror_percent=50).candidate_percent, Rollout(1, mirror_percent=50).is_gradual) == (
        0,
        True,
    )


def note(phase: RolloutPhase, candidate: int = 2) -> RolloutNote:
    return RolloutNote(1, candidate, phase, datetime(2026, 1, 1, tzinfo=UTC))


UPDATE, CANARY, SHADOW = Rollout(1), Rollout(1, canary_percent=10), Rollout(1, mirror_percent=50)
IN_PLACE = Rollout(1, strategy=Strategy.STOP_THEN_START)
STARTING, SHIFTED = note(RolloutPhase.STARTING), note(RolloutPhase.SHIFTED)
COMPLETE, ROLLED_BACK = note(RolloutPhase.COMPLETE), note(RolloutPhase.ROLLED_BACK)


@pytest.mark.parametrize(
    ("rollout", "fact", "counts"),
    [
        (None, None, {2: 3}),
        (UPDATE, None, {1: 3, 2: 3}),
        (UPDATE, note(RolloutPhase.COMPLETE, candidate=3), {1: 3, 2: 3}),
        (UPDATE, SHIFTED, {1: 3, 2: 3}),
        (UPDATE, COMPLETE, {2: 3}),
        (UPDATE, ROLLED_BACK, {1: 3}),
        (CANARY, STARTING, {1: 3, 2: 1}),
        (CANARY, SHIFTED, {1: 3, 2: 1}),
        (SHADOW, SHIFTED, {1: 3, 2: 1}),
        (IN_PLACE, None, {1: 3}),
        (IN_PLACE, STARTING, {2: 3}),
        (IN_PLACE, ROLLED_BACK, {1: 3}),
    ],
)
def test_the_base_keeps_its_servers_until_the_candidate_has_taken_over(
    rollout: Rollout | None, fact: RolloutNote | None, counts: dict[int, int]
) -> None:
    assert replicas_by_revision(2, 3, rollout, fact) == counts


@pytest.mark.parametrize(
    ("rollout", "fact", "answering", "expected"),
    [
        (None, None, {2}, ((2, 100),)),
        (None, None, {1}, ((1, 100),)),
        (None, None, set[int](), ()),
        (UPDATE, STARTING, {1, 2}, ((1, 100),)),
        (UPDATE, STARTING, {2}, ((2, 100),)),
        (UPDATE, SHIFTED, {1, 2}, ((2, 100),)),
        (UPDATE, SHIFTED, {1}, ((1, 100),)),
        (UPDATE, ROLLED_BACK, {1, 2}, ((1, 100),)),
        (IN_PLACE, None, {1}, ((1, 100),)),
        (IN_PLACE, STARTING, {1}, ()),
        (IN_PLACE, STARTING, {1, 2}, ((2, 100),)),
        (CANARY, STARTING, {1, 2}, ((1, 100),)),
        (CANARY, SHIFTED, {1, 2}, ((1, 90), (2, 10))),
        (CANARY, SHIFTED, {1}, ((1, 100),)),
        (CANARY, SHIFTED, {2}, ((2, 100),)),
        (SHADOW, SHIFTED, {1, 2}, ((1, 100),)),
        (UPDATE, COMPLETE, {1}, ((1, 100),)),
    ],
)
def test_requests_go_where_they_are_meant_to_as_long_as_somebody_answers_there(
    rollout: Rollout | None,
    fact: RolloutNote | None,
    answering: set[int],
    expected: tuple[tuple[int, int], ...],
) -> None:
    assert shares(2, rollout, fact, frozenset(answering)) == expected
