"""What somebody hears who only asks how long GPUs would take: true of today, and pleasant to read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from inferplane.domain.gpu_request import Selection
from inferplane.domain.workspace import WorkspacePolicy
from inferplane.scheduler import Snapshot, Switches, wait_times
from inferplane.scheduler.decisions import Basis

World = Any
ANYTHING = Selection(auto_cluster=True, auto_gpu=True, memory_gb=20)
WHOLE = {"a": tuple(range(8))}


def said(snapshot: Snapshot, request: Any, keep_going: Callable[[], bool] = lambda: True) -> str:
    """What is said of the only candidate."""
    (candidate,) = wait_times(snapshot, request, keep_going)
    return candidate.explanation


def test_what_is_free_is_said_to_be_free(world: World) -> None:
    held = world.holds(9, {"a": (0, 1, 2, 3, 4)})
    snapshot = world.snapshot([world.node("a")], [held])
    assert said(snapshot, world.waits(1, 1)) == (
        "1 GPU is needed; 3 are free, and nobody ahead in line needs them"
    )
    tight = world.snapshot([world.node("a")], [world.holds(9, {"a": tuple(range(7))})])
    assert said(tight, world.waits(1, 1)).startswith("1 GPU is needed; 1 is free, and nobody")


def test_todays_holders_are_named_and_those_ahead_counted(world: World) -> None:
    floor = [world.node("a")]
    mine = world.holds(9, {"a": (0, 1, 2, 3, 4, 5, 6)}, left=30)
    other = world.holds(8, {"a": (7,)}, left=60, workspace="rival", auto_renew=True)
    line = [world.waits(number, 8, since=9 - number, workspace="rival") for number in (1, 2)]
    question = world.waits(3, 8)
    assert said(world.snapshot(floor, [mine, other]), question) == (
        "8 GPUs are needed; none is free; r9 holds 7 GPUs until 2026-01-05 12:30:00Z, "
        "a request of another workspace holds 1 GPU until 2026-01-05 13:00:00Z, unless it is renewed"
    )
    allowance = replace(
        world.snapshot(floor, [mine, other]), switches=Switches(draining=timedelta(seconds=10))
    )
    assert "until 2026-01-05 12:30:00Z" in said(allowance, question), "as its own description says"
    crowded = said(world.snapshot(floor, [mine, other, *line]), question)
    assert "none is free; 2 requests ahead in line want GPUs of this kind; r9 holds 7 GPUs" in crowded
    assert "1 request ahead in line wants GPUs" in said(
        world.snapshot(floor, [mine, other, line[0]]), question
    )


def test_neither_the_question_nor_who_waits_is_called_a_holder(world: World) -> None:
    """The simulation seats them later; that is not today."""
    held = world.holds(9, WHOLE, left=30)
    line = [world.waits(number, 8, since=9 - number, minutes=10) for number in (1, 2)]
    words = said(
        world.snapshot([world.node("a")], [held, *line]), replace(world.waits(3, 8), name="question")
    )
    assert "r9 holds 8 GPUs" in words
    assert not [name for name in ("r1 ", "r2 ", "question") if name in words]


def test_many_holders_are_summed_up(world: World) -> None:
    held = [world.holds(10 + index, {"a": (index,)}, left=10 + index) for index in range(8)]
    assert said(world.snapshot([world.node("a")], held), world.waits(1, 8)).endswith(
        "r12 holds 1 GPU until 2026-01-05 12:12:00Z, 5 requests more hold others for longer"
    )


def test_what_is_free_but_not_for_it(world: World) -> None:
    spread = [world.holds(8, {"a": (0, 1, 2, 3)}), world.holds(9, {"b": (0, 1, 2, 3)})]
    floor = [world.node("a"), world.node("b")]
    assert "8 are free, but not together on one node" in said(
        world.snapshot(floor, spread), world.waits(1, 8)
    )
    half = world.holds(9, {"a": (0, 1, 2, 3)}, left=30)
    ahead = world.waits(1, 8, since=5)
    promised = said(world.snapshot([world.node("a")], [half, ahead]), world.waits(2, 4, minutes=60))
    assert promised.startswith("4 GPUs are needed; 4 are free, but promised to requests ahead in line; 1 req")


def test_what_lower_priorities_would_have_to_give(world: World) -> None:
    held = world.holds(9, WHOLE, priority=50, enable_eviction=True)
    question = world.waits(1, 8, priority=250, enable_eviction=True)
    assert said(world.snapshot([world.node("a")], [held]), question).startswith(
        "8 GPUs are needed; none is free, and 1 request of lower priority would have to yield"
    )


def test_what_never_fits_says_what_there_is(world: World) -> None:
    small = world.snapshot([world.node("a", 4)], [])
    assert said(small, world.waits(1, 8)) == "8 GPUs are needed; a node of this kind has only 4"
    single = world.snapshot([world.node("a")], [])
    assert said(single, world.waits(1, 8, nodes=2)) == (
        "8 GPUs on each of 2 nodes are needed; the cluster has too few such nodes"
    )


def test_a_policy_that_counts_requests_is_named_in_the_singular_too(world: World) -> None:
    held = world.holds(9, {"a": (0,)})
    policy = WorkspacePolicy("team", max_requests=1)
    words = said(world.snapshot([world.node("a")], [held], policies=[policy]), world.waits(1, 1))
    assert words == "its workspace holds GPUs for 1 request; its policy allows 1 at a time"


def test_who_renews_for_ever_is_why_there_is_no_estimate(world: World) -> None:
    held = world.holds(9, WHOLE, auto_renew=True)
    words = said(world.snapshot([world.node("a")], [held]), world.waits(1, 8, priority=50))
    assert words.endswith(
        "there is no estimate, because what holds the GPUs is renewed as long as "
        "nobody ahead of it waits, so its end is not known"
    )


BEFORE_THE_FIRST_WALK = 3
"""So often `keep_going` is asked until then."""


def _a_while(steps: int) -> Callable[[], bool]:
    left = iter([True] * steps)
    return lambda: next(left, False)


def test_what_there_was_no_time_for_is_listed_without_an_estimate(world: World) -> None:
    floor = [
        world.node("a", cluster="east"),
        world.node("b", cluster="west"),
        world.node("c", cluster="north"),
    ]
    held = [
        world.holds(7, {"a": tuple(range(8))}, cluster="east", left=30),
        world.holds(8, {"b": tuple(range(8))}, cluster="west", left=60),
    ]
    snapshot, question = world.snapshot(floor, held), world.waits(1, 8, selection=ANYTHING)
    free, *others = wait_times(snapshot, question, _a_while(BEFORE_THE_FIRST_WALK))
    assert free.estimate.basis is Basis.FITS_NOW  # what is known without time going by is said
    assert [each.estimate.start for each in others] == [None, None]
    assert all("working it out would have taken too long" in each.explanation for each in others)
    starts = [
        each.estimate.wait(world.now)
        for each in wait_times(snapshot, question, _a_while(BEFORE_THE_FIRST_WALK + 1))
    ]
    assert starts == [timedelta(0), timedelta(minutes=30), None]


def test_without_any_time_nothing_is_said_of_what_is_free(world: World) -> None:
    snapshot = world.snapshot([world.node("a")], [])
    assert [said(snapshot, world.waits(1, 8), _a_while(steps)) for steps in range(BEFORE_THE_FIRST_WALK)] == [
        "8 GPUs are needed; there is no estimate, because working it out would have taken too long"
    ] * BEFORE_THE_FIRST_WALK


def test_wherever_time_runs_out_what_was_found_is_what_would_be_found(world: World) -> None:
    floor = [world.node(name, cluster=name) for name in ("east", "west", "north", "south")]
    requests = [
        world.holds(7, {"east": WHOLE["a"]}, cluster="east", left=30),
        world.holds(8, {"west": tuple(range(7))}, cluster="west", left=60),
        world.holds(9, {"south": WHOLE["a"]}, cluster="south", left=90, auto_renew=True),
        world.waits(2, 8, since=5, minutes=600, selection=Selection(cluster_name="west")),
        world.waits(3, 1, since=5, minutes=300, priority=50, selection=Selection(cluster_name="west")),
        world.waits(4, 8, since=5, minutes=300, priority=50, selection=Selection(cluster_name="south")),
    ]
    snapshot, question = world.snapshot(floor, requests), world.waits(1, 8, selection=ANYTHING)
    asked = 0

    def always() -> bool:
        nonlocal asked
        asked += 1
        return True

    whole = {each.pool: each.estimate.start for each in wait_times(snapshot, question, always)}
    known = []
    for steps in range(asked + 1):
        found = wait_times(snapshot, question, _a_while(steps))
        told = {each.pool: each.estimate.start for each in found if each.estimate.start is not None}
        assert told.items() <= whole.items()
        assert len(found) == len(whole)
        known.append(len(told))
    assert known == sorted(known)
    assert (known[0], known[-1]) == (0, sum(start is not None for start in whole.values()))


def test_how_others_hang_together_is_only_worked_out_where_something_waits(world: World) -> None:
    line = [world.waits(number, 8, selection=Selection(cluster_name="west")) for number in range(2, 5000)]
    held = world.holds(9, {"west": WHOLE["a"]}, cluster="west")
    snapshot = world.snapshot(
        [world.node("east", cluster="east"), world.node("west", cluster="west")], [held, *line]
    )
    here = world.waits(1, 1, since=9, selection=Selection(cluster_name="east"))
    (free,) = wait_times(snapshot, here, _a_while(BEFORE_THE_FIRST_WALK))
    assert free.estimate.basis is Basis.FITS_NOW
    there = world.waits(1, 1, since=9, selection=Selection(cluster_name="west"))
    (late,) = wait_times(snapshot, there, _a_while(BEFORE_THE_FIRST_WALK + 1))
    assert late.estimate.start is None
    assert "taken too long" in late.explanation


def test_one_simulation_answers_for_many_kinds_and_others_get_their_own(world: World) -> None:
    """A lower priority behind that fits could be passed by the question: there the ghost cannot tell."""
    floor = [world.node("a", cluster="east"), world.node("b", cluster="west")]
    requests = [
        world.holds(7, {"a": tuple(range(8))}, cluster="east", left=30),
        world.holds(8, {"b": tuple(range(7))}, cluster="west", left=60),
        world.waits(2, 8, since=5, minutes=600, selection=Selection(cluster_name="west")),
        world.waits(3, 1, since=5, minutes=300, priority=50, selection=Selection(cluster_name="west")),
    ]
    found = wait_times(world.snapshot(floor, requests), world.waits(1, 8, selection=ANYTHING))
    assert [(each.pool.cluster, each.estimate.wait(world.now)) for each in found] == [
        ("east", timedelta(minutes=30)),
        ("west", timedelta(minutes=660)),
    ]
