"""What leaves together, who gets which answer, and what happens to the rest."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.modelserver.batcher import Batcher, BatchLimits, BatchStats, compute_batch
from inferplane.modelserver.errors import NotProcessed, TooLate
from inferplane.modelserver.frameworks.base import Inputs, Outputs
from inferplane.modelserver.intake import Work

PATIENT = BatchLimits(max_batch_rows=100, queue_rows_max=1000)


class Gate:
    """A model that answers with its rows doubled, once `open` is set; it refuses negative rows."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.started = threading.Event()
        self.calls: list[list[float]] = []

    def __call__(self, inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        self.started.set()
        assert self.open.wait(60)
        rows = inputs["x"]
        self.calls.append(rows.ravel().tolist())
        if (rows < 0).any():
            raise ValueError("negative")
        return {name: rows.ravel() * 2 for name in outputs}


def work(*rows: float, outputs: tuple[str, ...] = ("y",), dtype: Any = np.float64) -> Work:
    return Work({"x": np.array(rows, dtype=dtype).reshape(-1, 1)}, len(rows), outputs)


@asynccontextmanager
async def batching(gate: Gate, limits: BatchLimits = PATIENT, **more: Any) -> AsyncIterator[Batcher]:
    batcher = Batcher(gate, limits, **more)
    try:
        yield batcher
    finally:
        gate.open.set()
        batcher.close()


async def first_is_computing(batcher: Batcher, gate: Gate) -> asyncio.Task[Outputs]:
    """Submit a request that occupies the worker until the gate opens."""
    task = asyncio.create_task(batcher.submit(work(0)))
    await asyncio.to_thread(gate.started.wait)
    return task


async def submitted(batcher: Batcher, *works: Work) -> list[asyncio.Task[Outputs]]:
    """Submit these; on return each of them waits in the queue."""
    tasks = [asyncio.create_task(batcher.submit(one)) for one in works]
    await asyncio.sleep(0)
    return tasks


async def test_a_lone_request_is_computed_alone_and_at_once() -> None:
    gate = Gate()
    gate.open.set()
    async with batching(gate) as batcher:
        assert (await batcher.submit(work(1, 2)))["y"].tolist() == [2, 4]
    assert gate.calls == [[1, 2]]


async def test_what_arrives_meanwhile_leaves_together_and_each_gets_its_own() -> None:
    gate = Gate()
    seen: list[tuple[int, int]] = []
    stats = BatchStats(lambda batch: seen.append((batch.requests, batch.rows)))
    async with batching(gate, stats=stats) as batcher:
        first = await first_is_computing(batcher, gate)
        rest = await submitted(batcher, work(1), work(2, 3), work(4))
        assert batcher.queued_rows == 4
        gate.open.set()
        answers = [(await task)["y"].tolist() for task in (first, *rest)]
    assert answers == [[0], [2], [4, 6], [8]]
    assert gate.calls == [[0], [1, 2, 3, 4]]
    assert seen == [(1, 1), (3, 4)]


async def test_only_equal_kinds_leave_together_in_order() -> None:
    gate = Gate()
    async with batching(gate) as batcher:
        first = await first_is_computing(batcher, gate)
        rest = await submitted(
            batcher,
            work(1),
            work(2, dtype=np.float32),
            work(3, outputs=("y", "z")),
            work(4),
            work(5, dtype=np.float32),
        )
        gate.open.set()
        await asyncio.gather(first, *rest)
    assert gate.calls == [[0], [1, 4], [2, 5], [3]]


async def test_a_batch_is_bounded_in_rows_but_a_request_is_never_cut() -> None:
    gate = Gate()
    async with batching(gate, BatchLimits(max_batch_rows=3, queue_rows_max=100)) as batcher:
        first = await first_is_computing(batcher, gate)
        rest = await submitted(batcher, work(1, 2), work(3, 4, 5, 6), work(7))
        gate.open.set()
        await asyncio.gather(first, *rest)
    assert gate.calls == [[0], [1, 2, 7], [3, 4, 5, 6]]


async def test_one_bad_row_fails_only_its_own_request() -> None:
    gate = Gate()
    async with batching(gate) as batcher:
        first = await first_is_computing(batcher, gate)
        good, bad, other = await submitted(batcher, work(1), work(2, -2), work(3))
        gate.open.set()
        await first
        assert (await good)["y"].tolist() == [2]
        assert (await other)["y"].tolist() == [6]
        with pytest.raises(ValueError, match="negative"):
            await bad


async def test_a_caller_who_left_is_not_computed_and_breaks_nothing() -> None:
    gate = Gate()
    async with batching(gate) as batcher:
        first = await first_is_computing(batcher, gate)
        gone, stays = await submitted(batcher, work(1), work(2))
        gone.cancel()
        await asyncio.wait([gone])
        gate.open.set()
        await first
        assert (await stays)["y"].tolist() == [4]
        assert batcher.queued_rows == 0
    assert gate.calls == [[0], [2]]


async def test_a_caller_who_leaves_during_its_batch_breaks_nothing() -> None:
    gate = Gate()
    async with batching(gate) as batcher:
        first = await first_is_computing(batcher, gate)
        first.cancel()
        await asyncio.wait([first])
        gate.open.set()
        assert (await batcher.submit(work(5)))["y"].tolist() == [10]


async def test_a_full_queue_refuses_what_it_did_not_process() -> None:
    gate = Gate()
    async with batching(gate, BatchLimits(max_batch_rows=10, queue_rows_max=2)) as batcher:
        first = await first_is_computing(batcher, gate)
        rest = await submitted(batcher, work(1), work(2))
        with pytest.raises(NotProcessed):
            await batcher.submit(work(3))
        gate.open.set()
        await asyncio.gather(first, *rest)
        assert (await batcher.submit(work(3)))["y"].tolist() == [6]


async def test_a_model_that_is_not_batchable_computes_one_request_at_a_time() -> None:
    gate = Gate()
    async with batching(gate, batchable=False) as batcher:
        first = await first_is_computing(batcher, gate)
        rest = await submitted(batcher, work(1), work(2))
        gate.open.set()
        await asyncio.gather(first, *rest)
    assert gate.calls == [[0], [1], [2]]


async def test_a_caller_who_leaves_frees_its_place_at_once() -> None:
    gate = Gate()
    async with batching(gate, BatchLimits(max_batch_rows=10, queue_rows_max=3)) as batcher:
        first = await first_is_computing(batcher, gate)
        gone, stays = await submitted(batcher, work(1, 2), work(3))
        gone.cancel()
        await asyncio.wait([gone])
        assert batcher.queued_rows == 1
        (late,) = await submitted(batcher, work(4, 5))
        gate.open.set()
        await asyncio.gather(first, stays, late)
    assert gate.calls == [[0], [3, 4, 5]]


class Key(str):
    """A key that counts comparisons and hashes, by which a batch is found."""

    __slots__ = ()
    looks = 0

    def __hash__(self) -> int:
        Key.looks += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        Key.looks += 1
        return super().__eq__(other)


async def test_finding_a_batch_does_not_look_at_all_that_wait() -> None:
    """Counted, not timed: each request's key is looked at a few times in its life, not once a batch."""
    gate = Gate()
    many = 1000
    limits = BatchLimits(max_batch_rows=4, queue_rows_max=many)
    async with batching(gate, limits) as batcher:
        first = await first_is_computing(batcher, gate)
        rest = await submitted(batcher, *(work(n, outputs=(Key(f"y{n % 5}"),)) for n in range(many)))
        Key.looks = 0
        gate.open.set()
        await asyncio.gather(first, *rest)
    assert Key.looks <= 20 * many


async def test_a_delay_lets_a_first_request_wait_for_company() -> None:
    gate = Gate()
    gate.open.set()
    limits = BatchLimits(max_batch_rows=2, queue_rows_max=10, max_batch_delay_seconds=600)
    async with batching(gate, limits) as batcher:
        answers = await asyncio.gather(batcher.submit(work(1)), batcher.submit(work(2)))
    assert [answer["y"].tolist() for answer in answers] == [[2], [4]]
    assert gate.calls == [[1, 2]]  # the batch was full long before the delay was over


async def test_busy_time_is_known_while_a_batch_computes() -> None:
    gate = Gate()
    async with batching(gate) as batcher:
        assert batcher.busy_seconds() == 0
        first = await first_is_computing(batcher, gate)
        await asyncio.sleep(0.001)
        assert batcher.busy_seconds() > 0
        gate.open.set()
        await first
        assert batcher.busy_seconds() == 0


@given(st.lists(st.lists(st.integers(-3, 20), min_size=1, max_size=5), min_size=1, max_size=8))
def test_results_are_those_of_each_request_alone(requests: list[list[int]]) -> None:
    gate = Gate()
    gate.open.set()
    works = [work(*rows) for rows in requests]
    for rows, result in zip(requests, compute_batch(gate, works), strict=True):
        if min(rows) < 0:
            assert isinstance(result, ValueError)
        else:
            assert not isinstance(result, Exception)
            assert result["y"].tolist() == [2 * row for row in rows]


def test_a_model_that_does_not_answer_row_by_row_is_asked_for_each_request() -> None:
    def total(inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        return {name: np.array([inputs["x"].sum()]) for name in outputs}

    results = compute_batch(total, [work(1, 2), work(3, 4)])
    assert [result["y"].tolist() for result in results if not isinstance(result, Exception)] == [[3], [7]]


async def test_what_nobody_waits_for_any_more_is_not_computed() -> None:
    gate = Gate()
    late: list[int] = []
    async with batching(gate, stats=BatchStats(on_late=lambda: late.append(1))) as batcher:
        first = await first_is_computing(batcher, gate)
        now = asyncio.get_running_loop().time()
        over = asyncio.create_task(batcher.submit(work(1), deadline=now))
        stays = asyncio.create_task(batcher.submit(work(2), deadline=now + 600))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(first, stays)
        with pytest.raises(TooLate):
            await over
    assert gate.calls == [[0], [2]]
    assert late == [1]


async def test_what_would_wait_longer_than_its_caller_is_refused_at_once() -> None:
    gate = Gate()
    gate.open.set()

    def slow(inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        threading.Event().wait(0.05)  # a model that takes its time
        return gate(inputs, outputs)

    batcher = Batcher(slow, BatchLimits(max_batch_rows=1, queue_rows_max=1000))
    for _ in range(3):
        await batcher.submit(work(1))  # by now it is known what a row takes
    now = asyncio.get_running_loop().time()
    waiting = [asyncio.create_task(batcher.submit(work(n))) for n in range(100)]
    await asyncio.sleep(0)
    with pytest.raises(NotProcessed) as refused:
        await batcher.submit(work(1), deadline=now + 0.1)
    assert refused.value.retry_after >= 1
    patient = asyncio.create_task(batcher.submit(work(2), deadline=now + 600))
    await asyncio.sleep(0)
    assert batcher.queued_rows > 90
    for task in (*waiting, patient):
        task.cancel()
    await asyncio.gather(*waiting, patient, return_exceptions=True)
    assert batcher.queued_rows == 0
    batcher.close()


async def test_slow_small_requests_do_not_make_large_ones_look_endless() -> None:
    gate = Gate()
    async with batching(gate) as batcher:
        slow = await first_is_computing(batcher, gate)
        await asyncio.sleep(0.5)  # so long for one row
        gate.open.set()
        await slow
        gate.open.clear()
        gate.started.clear()
        large = asyncio.create_task(batcher.submit(work(*range(100))))
        await asyncio.to_thread(gate.started.wait)
        behind = asyncio.create_task(batcher.submit(work(1), asyncio.get_running_loop().time() + 5))
        await asyncio.sleep(0)
        gate.open.set()
        assert (await behind)["y"].tolist() == [2]
        await large


@pytest.mark.parametrize(("steady", "most"), [(False, 4), (True, 32)])
async def test_batches_of_a_quick_steady_model_grow_beyond_the_usual_when_many_wait(
    steady: bool, most: int
) -> None:
    gate = Gate()
    gate.open.set()
    limits = BatchLimits(max_batch_rows=4, queue_rows_max=1000)
    async with batching(gate, limits, steady=steady) as batcher:
        await batcher.submit(work(*range(200)))  # by now it is known that a row takes next to nothing
        await asyncio.gather(*(batcher.submit(work(n)) for n in range(100)))
    calls = gate.calls[1:]
    assert max(len(call) for call in calls) == most
    assert sorted(number for call in calls for number in call) == list(range(100))


async def test_a_queue_is_bounded_in_bytes_too() -> None:
    gate = Gate()
    limits = BatchLimits(max_batch_rows=100, queue_rows_max=1000, queue_bytes_max=100)
    async with batching(gate, limits) as batcher:
        first = await first_is_computing(batcher, gate)
        (fits,) = await submitted(batcher, work(*range(10)))
        with pytest.raises(NotProcessed):
            await batcher.submit(work(*range(10)))
        gate.open.set()
        await asyncio.gather(first, fits)


async def test_a_quick_steady_model_is_computed_in_the_event_loop_and_a_slow_one_is_not() -> None:
    threads: list[bool] = []
    pause = 0.0

    def model(inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        threads.append(threading.current_thread() is threading.main_thread())
        deadline = time.thread_time() + pause
        while time.thread_time() < deadline:
            pass
        return {name: inputs["x"].ravel() for name in outputs}

    batcher = Batcher(model, PATIENT, steady=True)
    await batcher.submit(work(1))
    await batcher.submit(work(1))
    assert threads == [False, True]  # the first of a size is a trial
    pause = 0.02
    await batcher.submit(work(1))
    await batcher.submit(work(1))
    assert threads[2:] == [True, False]
    assert (await batcher.submit(work(1, 2, 3, 4)))["y"].tolist() == [1, 2, 3, 4]
    assert threads[4] is False  # a size that has not been seen
    batcher.close()


async def test_a_model_that_tries_to_end_the_process_fails_its_own_request() -> None:
    def model(inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        raise SystemExit(3)

    batcher = Batcher(model, PATIENT)
    with pytest.raises(RuntimeError, match="end the process"):
        await batcher.submit(work(1))
    batcher.close()
