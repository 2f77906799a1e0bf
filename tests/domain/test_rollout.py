"""When a new revision counts as worse than the one before, and how many servers its share needs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferplane.domain.rollout import Guard, RevisionTraffic, Rollout, candidate_replicas, why_worse

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
