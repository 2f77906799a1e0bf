"""The queue's promises, on a clock that the test moves."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from inferplane.controllers.workqueue import BACKOFF_FIRST_SECONDS, BACKOFF_MAX_SECONDS, Schedule, WorkQueue


def test_a_burst_of_asks_is_one_appointment() -> None:
    schedule = Schedule()
    for _ in range(5):
        schedule.ask("a", 0.0)
    assert schedule.take(0.0) == "a"
    schedule.done("a")
    assert schedule.take(10.0) is None


def test_a_key_being_worked_on_is_not_given_to_a_second_worker_but_comes_again() -> None:
    schedule = Schedule()
    schedule.ask("a", 0.0)
    assert schedule.take(0.0) == "a"
    schedule.ask("a", 0.0)
    assert schedule.take(1.0) is None
    schedule.done("a")
    assert schedule.take(1.0) == "a"


def test_the_earlier_of_two_appointments_stands() -> None:
    schedule = Schedule()
    schedule.ask("a", 5.0)
    schedule.ask("a", 2.0)
    schedule.ask("a", 9.0)
    assert schedule.next_at() == 2.0
    assert schedule.take(1.9) is None
    assert schedule.take(2.0) == "a"
    schedule.done("a")
    assert schedule.next_at() is None


def test_pauses_double_up_to_the_limit_and_are_forgotten_after_success() -> None:
    schedule = Schedule()
    pauses = [schedule.failed("a") for _ in range(12)]
    assert pauses[:3] == [BACKOFF_FIRST_SECONDS, 2 * BACKOFF_FIRST_SECONDS, 4 * BACKOFF_FIRST_SECONDS]
    assert pauses[-1] == BACKOFF_MAX_SECONDS
    schedule.succeeded("a")
    assert schedule.failed("a") == BACKOFF_FIRST_SECONDS


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), max_size=40))
def test_every_key_that_was_asked_for_is_given_out_exactly_once_when_all_are_due(
    asks: list[tuple[str, int]],
) -> None:
    schedule = Schedule()
    for key, at in asks:
        schedule.ask(key, float(at))
    given_out: list[str] = []
    while (due := schedule.take(100.0)) is not None:
        given_out.append(due)
        schedule.done(due)
    assert sorted(given_out) == sorted({key for key, _ in asks})


async def test_workers_share_the_keys_and_wait_for_more() -> None:
    queue = WorkQueue(asyncio.get_running_loop().time)
    seen: list[str] = []
    finished = asyncio.Event()

    async def work() -> None:
        while True:
            key = await queue.get()
            seen.append(key)
            queue.done(key)
            if len(seen) == 4:
                finished.set()

    workers = [asyncio.create_task(work()) for _ in range(2)]
    for key in ("a", "b", "c", "d"):
        queue.put_after(key, 0.01)
    async with asyncio.timeout(5):
        await finished.wait()
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    assert sorted(seen) == ["a", "b", "c", "d"]
