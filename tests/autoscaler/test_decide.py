"""Simulated traffic against `decide`: what happens over minutes, second by second, in milliseconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from inferplane.autoscaler import Decision, History, Sample, Traffic, decide
from inferplane.domain.endpoint import Scaling

START = datetime(2026, 1, 1, tzinfo=UTC)
STEP = 2.0
AWAKE = Scaling(min_replicas=1, max_replicas=10, target_concurrency=10.0)
BY_RATE = Scaling(min_replicas=1, max_replicas=10, target_rate=100.0)
SLEEPY = Scaling(
    min_replicas=0, max_replicas=4, target_concurrency=10.0, scale_to_zero_after=timedelta(seconds=60)
)

Load = Callable[[float], float]


@dataclass
class World:
    """An endpoint under a load that is a function of the seconds since the start."""

    scaling: Scaling
    replicas: int = 1
    history: History = History()
    seconds: float = 0.0
    requests: int = 0
    idle_since: datetime | None = START
    seen: list[int] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def run(self, seconds: float, load: Load, *, measured: bool = True) -> World:
        """Let time go by; `load` gives requests at once, of which each takes a tenth of a second."""
        for _ in range(round(seconds / STEP)):
            self.seconds += STEP
            active = round(load(self.seconds))
            self.requests += round(active * 10 * STEP)
            if active:
                self.idle_since = self.now
            if measured:
                self.history = self.history.add(Sample(self.now, self.requests, active))
            self.decide()
        return self

    def decide(self, held: int = 0) -> Decision:
        decision = decide(
            self.scaling, self.replicas, Traffic(self.history, held, self.idle_since), self.now, START
        )
        if decision.replicas != self.replicas:
            self.said.append(decision.message)
        self.replicas = decision.replicas
        self.seen.append(self.replicas)
        return decision

    @property
    def changes(self) -> int:
        return sum(earlier != later for earlier, later in pairwise(self.seen))


def _turns(world: World) -> int:
    """How often going up turned into going down or the other way round."""
    moves = [later > earlier for earlier, later in pairwise(world.seen) if later != earlier]
    return sum(earlier != later for earlier, later in pairwise(moves))


def constant(load: float) -> Load:
    return lambda _: load


def test_a_step_is_followed_within_seconds_and_left_slowly() -> None:
    world = World(AWAKE).run(120, constant(5))
    assert world.replicas == 1
    world.run(8, constant(45))
    assert world.replicas == 5
    assert "requests at once against 10 for each replica" in world.said[-1]
    world.run(40, constant(5))
    assert world.replicas == 5, "it waits whether the load comes back"
    world.run(60, constant(5))
    assert world.replicas == 1
    assert "in the last 60 s" in world.said[-1]
    assert _turns(world) == 1


def test_a_ramp_goes_up_without_a_step_back() -> None:
    world = World(AWAKE).run(300, lambda second: second / 4)
    assert world.seen == sorted(world.seen)
    assert world.replicas == 8


def test_a_spike_goes_up_once_and_down_once() -> None:
    world = World(AWAKE).run(120, constant(2))
    world.run(6, constant(95)).run(200, constant(2))
    assert max(world.seen) == 10
    assert world.replicas == 1
    assert _turns(world) == 1


def test_noise_around_a_threshold_changes_nothing_after_the_first_step() -> None:
    chance = random.Random(7)
    world = World(AWAKE).run(60, lambda _: 20 + chance.uniform(-2, 2))
    before = world.changes
    world.run(1200, lambda _: 20 + chance.uniform(-2, 2))
    assert world.changes == before
    assert world.replicas == 3


def test_silence_puts_to_sleep_only_what_may_and_only_after_its_time() -> None:
    world = World(SLEEPY).run(30, constant(3)).run(56, constant(0))
    assert world.replicas == 1
    world.run(8, constant(0))
    assert world.replicas == 0
    assert world.said[-1] == "no request came for 60 s"
    assert World(AWAKE).run(3600, constant(0)).replicas == 1


def test_what_sleeps_wakes_for_a_held_request_and_jumps_to_what_the_held_ones_need() -> None:
    world = World(SLEEPY, replicas=0).run(600, constant(0))
    assert world.replicas == 0
    assert world.decide(held=1).replicas == 1
    world.replicas = 0
    assert world.decide(held=25).replicas == 3
    world.replicas = 0
    assert world.decide(held=1000).replicas == 4


def test_a_held_request_keeps_awake() -> None:
    world = World(SLEEPY).run(58, constant(0))
    world.seconds += 60
    world.history = world.history.add(Sample(world.now))
    assert world.decide(held=1).replicas == 1


def test_nothing_sleeps_before_it_has_ever_answered() -> None:
    history = History((Sample(START + timedelta(hours=1)),))
    decision = decide(SLEEPY, 1, Traffic(history, 0, START), START + timedelta(hours=1), None)
    assert decision.replicas == 1


def test_the_silence_before_it_was_ready_does_not_count() -> None:
    now = START + timedelta(hours=1)
    history = History((Sample(now),))
    ready = now - timedelta(seconds=10)
    assert decide(SLEEPY, 1, Traffic(history, 0, START), now, ready).replicas == 1
    assert decide(SLEEPY, 1, Traffic(history, 0, START), now, ready).look_again_seconds == 50.0


def test_nothing_goes_down_while_nobody_looks() -> None:
    world = World(AWAKE).run(60, constant(45))
    up = world.replicas
    world.run(600, constant(0), measured=False)
    assert world.replicas == up
    sleepy = World(SLEEPY).run(30, constant(1))
    sleepy.run(600, constant(0), measured=False)
    assert sleepy.replicas == 1


def test_a_gap_in_what_was_seen_starts_the_calm_anew() -> None:
    world = World(AWAKE).run(30, constant(45)).run(40, constant(1))
    world.run(14, constant(1), measured=False)
    up = world.replicas
    world.run(50, constant(1))
    assert world.replicas == up
    world.run(20, constant(1))
    assert world.replicas == 1


def test_a_restart_that_loses_the_history_changes_nothing_at_first() -> None:
    world = World(AWAKE).run(100, constant(35))
    assert world.replicas == 4
    world.history = History()
    world.run(50, constant(35))
    assert world.changes == 1
    lost = World(AWAKE, replicas=4)
    lost.run(STEP, constant(95))
    assert lost.replicas == 4, "one look alone is no average"


def test_a_counter_that_begins_anew_is_no_flood_and_no_silence() -> None:
    world = World(BY_RATE).run(100, constant(25))
    assert world.replicas == 3
    world.requests = 0
    world.run(100, constant(25))
    assert world.changes == 1


def test_a_rate_is_followed_like_concurrency_and_the_greater_wish_counts() -> None:
    assert World(BY_RATE).run(20, constant(45)).replicas == 5
    both = replace(BY_RATE, target_concurrency=5.0)
    assert World(both).run(20, constant(45)).replicas == 9


def test_a_small_target_is_followed_and_said_with_the_digits_that_count() -> None:
    history = History(tuple(Sample(START + timedelta(seconds=2 * n), n, int(n == 2)) for n in range(4)))
    scaling = Scaling(1, 3, 0.05)
    decision = decide(scaling, 2, Traffic(history, 0, START), START + timedelta(seconds=6), START)
    assert decision.replicas == 3
    assert decision.message == "0.33 requests at once against 0.05 for each replica; maxReplicas is 3"


def test_bounds_that_changed_are_followed_at_once() -> None:
    assert World(replace(AWAKE, min_replicas=3)).decide().replicas == 3
    assert World(replace(AWAKE, max_replicas=2), replicas=7).decide().replicas == 2


def test_it_says_when_to_look_again() -> None:
    assert World(Scaling(1, 1)).decide().look_again_seconds is None
    assert World(AWAKE).run(60, constant(1)).decide().look_again_seconds is None
    assert World(AWAKE).run(60, constant(1)).decide().on_traffic
    assert World(AWAKE, replicas=3).run(10, constant(1)).decide().look_again_seconds == 2.0
    assert not World(Scaling(0, 1)).run(10, constant(0)).decide().on_traffic


# --- properties -----------------------------------------------------------------------------------

SCALINGS = st.builds(
    lambda least, more, concurrency, rate, after: Scaling(
        least, max(1, least + more), concurrency, rate, timedelta(seconds=after)
    ),
    st.integers(0, 5),
    st.integers(0, 20),
    st.none() | st.floats(0.01, 1000),
    st.none() | st.floats(0.01, 1000),
    st.integers(1, 600),
)
STEPS = st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 500), st.integers(0, 500)), max_size=40)


def _history(steps: list[tuple[float, int, int]], factor: int = 1) -> tuple[History, datetime]:
    history, at, requests = History(), START, 0
    for seconds, moved, active in steps:
        at += timedelta(seconds=seconds)
        requests += moved * factor
        history = history.add(Sample(at, requests, active * factor))
    return history, at


@settings(max_examples=150, deadline=None)
@given(SCALINGS, STEPS, st.integers(0, 30), st.integers(0, 200), st.booleans(), st.floats(0, 700))
def test_always_an_answer_within_bounds_and_always_the_same(
    scaling: Scaling,
    steps: list[tuple[float, int, int]],
    current: int,
    held: int,
    ready: bool,
    later: float,
) -> None:
    history, at = _history(steps)
    traffic = Traffic(history, held, START if ready else None)
    now = at + timedelta(seconds=later)
    decision = decide(scaling, current, traffic, now, START if ready else None)
    assert scaling.min_replicas <= decision.replicas <= scaling.max_replicas
    assert decision == decide(scaling, current, traffic, now, START if ready else None)
    assert (decision.replicas == current) is not bool(decision.message)
    if held and scaling.max_replicas:
        assert decision.replicas >= 1 or current > scaling.max_replicas


@settings(max_examples=150, deadline=None)
@given(SCALINGS, STEPS, st.integers(1, 5), st.integers(1, 20), st.floats(0, 20))
def test_more_load_never_means_fewer_replicas(
    scaling: Scaling, steps: list[tuple[float, int, int]], factor: int, current: int, later: float
) -> None:
    little, at = _history(steps)
    much, _ = _history(steps, factor)
    now = at + timedelta(seconds=later)
    few = decide(scaling, current, Traffic(little), now, START)
    many = decide(scaling, current, Traffic(much), now, START)
    assert many.replicas >= few.replicas


@settings(max_examples=60, deadline=None)
@given(SCALINGS, st.integers(0, 300), st.integers(1, 10))
def test_a_constant_load_is_answered_by_one_number(scaling: Scaling, load: int, first: int) -> None:
    world = World(scaling, replicas=min(max(first, scaling.min_replicas), scaling.max_replicas))
    world.run(200 if load else 800, constant(load))
    ups = [later - earlier for earlier, later in pairwise(world.seen)]
    signs = [change > 0 for change in ups if change]
    assert signs == sorted(signs, reverse=True), "never up again after it went down"
    assert not any(ups[-20:])
