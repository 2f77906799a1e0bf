"""While a batch computes, the next one gathers.

One worker thread runs the model. A request that finds it idle is handed over at once; requests
that arrive meanwhile wait in a queue, and when the worker is free, those that can share a call of
the model (same input names, dtypes and row shapes, same outputs wanted) leave together with the one
that waited longest. Under light load nothing waits, under heavy load batches grow by themselves;
there is nothing to tune. `max_batch_delay_seconds` > 0 lets a first request wait for company.

Answers and errors go to their own caller: when a joint call fails, each member is computed again on
its own, so that a bad row fails only its own request. A caller who went away is skipped.
The queue is bounded in rows; what does not fit is refused as not processed.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from inferplane.modelserver.errors import NotProcessed
from inferplane.modelserver.frameworks.base import Inputs, Outputs
from inferplane.modelserver.intake import Work

Compute = Callable[[Inputs, Sequence[str]], Outputs]
_Result = Outputs | Exception


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of a batch and of the queue behind it. A single request may be larger than a batch."""

    max_batch_rows: int
    queue_rows_max: int
    max_batch_delay_seconds: float = 0.0


@dataclass(slots=True, eq=False)
class _Entry:
    work: Work
    key: Hashable
    answer: asyncio.Future[Outputs]


@dataclass(slots=True)
class BatchStats:
    """What metrics are told: `on_batch(requests, rows)` after each call of the model."""

    on_batch: Callable[[int, int], None] = field(default=lambda _requests, _rows: None)


class Batcher:
    """Gathers requests into calls of `compute`. Its public methods belong to the event loop's thread."""

    def __init__(
        self,
        compute: Compute,
        limits: BatchLimits,
        *,
        batchable: bool = True,
        stats: BatchStats | None = None,
    ) -> None:
        self._compute = compute
        self._limits = limits
        self._batchable = batchable
        self._stats = stats or BatchStats()
        self._loop = asyncio.get_running_loop()
        # In order of arrival, and by what can share a call: a batch is found without a look at the rest.
        self._waiting: OrderedDict[_Entry, None] = OrderedDict()
        self._alike: dict[Hashable, OrderedDict[_Entry, None]] = {}
        self._waiting_rows = 0
        self._busy_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._batches: queue.SimpleQueue[list[_Entry] | None] = queue.SimpleQueue()
        # A daemon, because a model stuck in a computation must not keep the process alive.
        self._worker = threading.Thread(target=self._work, name="model", daemon=True)
        self._worker.start()

    @property
    def queued_rows(self) -> int:
        """Rows that wait behind the batch being computed."""
        return self._waiting_rows

    def busy_seconds(self) -> float:
        """How long the present batch has been computing; 0 when the worker is idle."""
        return 0.0 if self._busy_since is None else self._loop.time() - self._busy_since

    async def submit(self, work: Work) -> Outputs:
        """Compute one request. Raises NotProcessed when the queue is full, and the model's own errors."""
        if self._waiting and self._waiting_rows + work.rows > self._limits.queue_rows_max:
            raise NotProcessed("too many requests are waiting for this model; try again in a moment")
        entry = _Entry(work, _key(work), self._loop.create_future())
        self._append(entry)
        if self._busy_since is None:
            self._start_or_wait()
        try:
            return await entry.answer
        finally:
            if entry in self._waiting:  # the caller went away: its place is free at once
                self._remove(entry)

    def close(self) -> None:
        """Let the worker end after its present batch. What still waits is cancelled."""
        self._batches.put(None)
        for entry in self._waiting:
            entry.answer.cancel()
        self._waiting.clear()
        self._alike.clear()
        self._waiting_rows = 0

    def _start_or_wait(self) -> None:
        delay = self._limits.max_batch_delay_seconds
        if delay <= 0 or self._waiting_rows >= self._limits.max_batch_rows:
            self._start()
        elif self._timer is None:
            self._timer = self._loop.call_later(delay, self._start)

    def _start(self) -> None:
        """Hand the next batch to the idle worker, if anyone waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = self._gather()
        if batch:
            self._busy_since = self._loop.time()
            self._batches.put(batch)

    def _append(self, entry: _Entry) -> None:
        self._waiting[entry] = None
        self._waiting_rows += entry.work.rows
        if self._batchable:
            self._alike.setdefault(entry.key, OrderedDict())[entry] = None

    def _remove(self, entry: _Entry) -> None:
        del self._waiting[entry]
        self._waiting_rows -= entry.work.rows
        if self._batchable:
            alike = self._alike[entry.key]
            del alike[entry]
            if not alike:
                del self._alike[entry.key]

    def _gather(self) -> list[_Entry]:
        """Take the longest-waiting entry and those like it behind it that fit with it, in order.

        Looks at no more entries than a full batch could hold, however many wait.
        """
        batch: list[_Entry] = []
        rows = 0
        for entry in self._next_ones():
            if not batch or rows + entry.work.rows <= self._limits.max_batch_rows:
                self._remove(entry)
                batch.append(entry)
                rows += entry.work.rows
            if rows >= self._limits.max_batch_rows:
                break
        return batch

    def _next_ones(self) -> list[_Entry]:
        """The longest-waiting entry, and those that can share a call with it."""
        while self._waiting:
            first = next(iter(self._waiting))
            if first.answer.done():  # its caller went away a moment ago
                self._remove(first)
            elif self._batchable:
                alike = islice(self._alike[first.key], self._limits.max_batch_rows)
                return [entry for entry in alike if not entry.answer.done()]
            else:
                return [first]
        return []

    def _finish(self, batch: list[_Entry], results: list[_Result]) -> None:
        self._busy_since = None
        self._stats.on_batch(len(batch), sum(entry.work.rows for entry in batch))
        # The worker's next batch first: it computes while the answers below are written.
        if self._waiting:
            self._start()
        for entry, result in zip(batch, results, strict=True):
            if entry.answer.done():
                continue
            if isinstance(result, Exception):
                entry.answer.set_exception(result)
            else:
                entry.answer.set_result(result)

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            results = compute_batch(self._compute, [entry.work for entry in batch])
            try:
                self._loop.call_soon_threadsafe(self._finish, batch, results)
            except RuntimeError:
                return  # the loop is closed: the server has ended


def compute_batch(compute: Compute, works: Sequence[Work]) -> list[_Result]:
    """One result a work: from a joint call when that succeeds, else each from its own call."""
    if len(works) > 1:
        # Whatever went wrong: whose fault it was shows when each is computed on its own.
        with contextlib.suppress(Exception):
            return _jointly(compute, works)
    return [_alone(compute, work) for work in works]


def _jointly(compute: Compute, works: Sequence[Work]) -> list[_Result]:
    inputs = {name: np.concatenate([work.inputs[name] for work in works]) for name in works[0].inputs}
    outputs = compute(inputs, works[0].outputs)
    total = sum(work.rows for work in works)
    if any(array.ndim == 0 or len(array) != total for array in outputs.values()):
        raise ValueError("the model does not answer row by row")
    results: list[_Result] = []
    start = 0
    for work in works:
        end = start + work.rows
        results.append({name: array[start:end] for name, array in outputs.items()})
        start = end
    return results


def _alone(compute: Compute, work: Work) -> _Result:
    try:
        return compute(work.inputs, work.outputs)
    except Exception as error:  # noqa: BLE001 - a model raises anything; it is the caller's answer, not ours
        return error


def _key(work: Work) -> Hashable:
    """Requests of equal keys can share a call of the model."""
    return (
        work.outputs,
        tuple((name, array.dtype.str, array.shape[1:]) for name, array in work.inputs.items()),
    )
