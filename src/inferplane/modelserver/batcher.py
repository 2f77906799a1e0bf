"""While a batch computes, the next one gathers.

A request that finds the model idle is computed as soon as the event loop has read what else had arrived
with it; requests that arrive during a computation wait in a queue, and when the model is free, those that
can share a call of it (same input names, dtypes and row shapes, same outputs wanted) leave together with
the one that waited longest. Under light load nothing waits, under heavy load batches grow by themselves;
there is nothing to tune. `max_batch_delay_seconds` > 0 lets a first request wait for company. Where the time of
a call is known beforehand (below) a batch may have more rows than usual as long as it is quick: what a call costs
whatever its size is then shared by more, so a server with a long queue does more than one with a short one.

A call runs in one worker thread, so that the event loop stays free. For models whose time depends on the
number of rows alone (`steady`), the time of each size of batch is remembered, and a size that takes less
than `INLINE_SECONDS_MAX` is computed in the event loop itself: handing a tenth of a millisecond of work
from thread to thread costs as much as the work. One slow call sends that size back to the thread.

Answers and errors go to their own caller: when a joint call fails, each member is computed again on
its own, so that a bad row fails only its own request. A caller who went away is skipped, and so is one
whose time is over: nobody would read the answer.

The queue is bounded in rows, in bytes, and in time: a request that would wait longer than half as long as its
caller does, as the last batches went, is refused at once as not processed. So a server that is offered more than it can
do keeps doing all it can, instead of answering late what nobody waits for any more. Refusing costs time too,
and the interpreter's lock with it, which the computing thread wants after each step of the model: once
something was refused, the event loop pauses until the present batch is done, for `YIELD_SECONDS` at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from inferplane.modelserver.errors import NotProcessed, TooLate
from inferplane.modelserver.frameworks.base import Inputs, Outputs
from inferplane.modelserver.intake import Work

Compute = Callable[[Inputs, Sequence[str]], Outputs]
Result = Outputs | Exception

#: A call of the model that takes no longer than this may be made in the event loop.
INLINE_SECONDS_MAX = 0.002
#: How much a quicker call pulls the remembered time of its size down; a slower one replaces it.
FORGETTING = 0.25
#: How much the latest batch counts in what a row takes.
LATEST = 0.2
#: The part of its caller's patience that a request may wait. A longer queue computes no more, only later.
PATIENCE_SHARE = 0.5
#: Bytes of input that may wait, whatever the number of rows.
QUEUE_BYTES_MAX = 512 * 1024 * 1024
RETRY_AFTER_SECONDS_MAX = 30
#: Where time depends on rows alone, a batch may have this many times the usual rows, while it takes no longer than
#: this as the last ones went, and no more bytes than this.
GROWTH_MAX = 8
GROWN_SECONDS_MAX = 0.02
GROWN_BYTES_MAX = 8 * 1024 * 1024
QUEUE_FULL = "too many requests are waiting for this model; try again in a moment"
#: How long the event loop stands back for a batch at a time when requests are being refused.
YIELD_SECONDS = 0.02
#: Sizes of batches are told apart by powers of two, up to this one.
SIZES = 33


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of a batch and of the queue behind it. A single request may be larger than a batch, and a batch of a
    steady model larger than `max_batch_rows` while that is quick."""

    max_batch_rows: int
    queue_rows_max: int
    max_batch_delay_seconds: float = 0.0
    queue_bytes_max: int = QUEUE_BYTES_MAX


class Entry:
    """One request in the queue. `done` is called once with its outputs or what went wrong.

    `batch` is the call of the model that computed it, once it has.
    """

    __slots__ = ("arrived", "batch", "deadline", "done", "key", "size", "work")

    def __init__(
        self, work: Work, key: Hashable, arrived: float, deadline: float, done: Callable[[Result], None]
    ) -> None:
        self.work = work
        self.key = key
        self.arrived = arrived
        self.deadline = deadline
        self.done: Callable[[Result], None] | None = done
        self.batch: Batch | None = None
        self.size = sum(array.nbytes for array in work.inputs.values())


@dataclass(frozen=True, slots=True)
class Batch:
    """What metrics are told after each call of the model: times in seconds, one wait a request.

    `began` is the loop's time when the call began.
    """

    requests: int
    rows: int
    compute_seconds: float
    waits: Sequence[float]
    began: float = 0.0


@dataclass(slots=True)
class BatchStats:
    """Who is told of each batch, and of requests whose time was over before they were computed."""

    on_batch: Callable[[Batch], None] = field(default=lambda _batch: None)
    on_late: Callable[[], None] = field(default=lambda: None)


class Batcher:
    """Gathers requests into calls of `compute`. Its public methods belong to the event loop's thread."""

    def __init__(
        self,
        compute: Compute,
        limits: BatchLimits,
        *,
        batchable: bool = True,
        steady: bool = False,
        stats: BatchStats | None = None,
    ) -> None:
        self._compute = compute
        self._limits = limits
        self._batchable = batchable
        self._steady = steady
        self._stats = stats or BatchStats()
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        # In order of arrival, and by what can share a call: a batch is found without a look at the rest.
        self._waiting: OrderedDict[Entry, None] = OrderedDict()
        self._alike: dict[Hashable, OrderedDict[Entry, None]] = {}
        self._waiting_rows = 0
        self._waiting_bytes = 0
        self._row_seconds = 0.0
        self._batch_seconds = 0.0
        self._computing_rows = 0
        self._finished_at: float | None = None
        self._busy_since: float | None = None
        self._planned: asyncio.Handle | None = None
        self._pace = Pace()
        # The worker's present batch, as far as the event loop knows: clear while it computes.
        self._idle = threading.Event()
        self._idle.set()
        self._yielding = False
        #: Whether a request was refused since the last batch was begun.
        self.crowded = False
        self._batches: queue.SimpleQueue[list[Entry] | None] = queue.SimpleQueue()
        # A daemon, because a model stuck in a computation must not keep the process alive.
        self._worker = threading.Thread(target=self._work, name="model", daemon=True)
        self._worker.start()

    @property
    def queued_rows(self) -> int:
        """Rows that wait behind the batch being computed."""
        return self._waiting_rows

    def busy_seconds(self) -> float:
        """How long the present batch has been computing; 0 when the worker is idle."""
        return 0.0 if self._busy_since is None else self._now() - self._busy_since

    def add(self, work: Work, deadline: float, done: Callable[[Result], None]) -> Entry:
        """Queue one request, whose caller waits until `deadline` (loop time). Raises NotProcessed when
        the queue is full."""
        now = self._now()
        entry = Entry(work, _key(work), now, deadline, done)
        if self._waiting and self._is_too_much(work.rows, entry.size, deadline - now):
            self._refuse()
            raise NotProcessed(QUEUE_FULL, retry_after=self.retry_after)
        self._waiting[entry] = None
        self._waiting_rows += work.rows
        self._waiting_bytes += entry.size
        if self._batchable:
            alike = self._alike.get(entry.key)
            if alike is None:
                alike = self._alike[entry.key] = OrderedDict()
            alike[entry] = None
        if self._busy_since is None:
            self._plan()
        return entry

    def room(self, patience: float) -> bool:
        """Whether a request that comes now, and whose caller waits so many seconds, may fit: known before it is
        even read."""
        if not self._waiting or not self._is_too_much(1, 1, patience):
            return True
        self._refuse()
        return False

    @property
    def retry_after(self) -> int:
        """Seconds after which what waits now will have been computed, as the last batches went."""
        return max(1, min(math.ceil(self._wait()), RETRY_AFTER_SECONDS_MAX))

    def drop(self, entry: Entry) -> None:
        """Forget a request whose caller went away or got another answer: its place is free at once."""
        entry.done = None
        if entry in self._waiting:
            self._remove(entry)

    async def submit(self, work: Work, deadline: float = math.inf) -> Outputs:
        """Compute one request. Raises NotProcessed when the queue is full, TooLate, and the model's own
        errors."""
        answer: asyncio.Future[Outputs] = self._loop.create_future()

        def done(result: Result) -> None:
            if answer.done():
                return
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        entry = self.add(work, deadline, done)
        try:
            return await answer
        finally:
            self.drop(entry)

    def close(self) -> None:
        """Let the worker end after its present batch. What still waits is refused."""
        self._batches.put(None)
        waiting = list(self._waiting)
        self._waiting.clear()
        self._alike.clear()
        self._waiting_rows = self._waiting_bytes = 0
        for entry in waiting:
            _tell(entry, NotProcessed("this server is shutting down; send the request again"))

    def _is_too_much(self, rows: int, size: int, patience: float) -> bool:
        return (
            self._waiting_rows + rows > self._limits.queue_rows_max
            or self._waiting_bytes + size > self._limits.queue_bytes_max
            or self._wait() > patience * PATIENCE_SHARE
        )

    def _wait(self) -> float:
        """Seconds until what is here is computed: by its rows, and no more than by its requests one by one.

        What a row takes was seen on other batches, and most of a small one is not the rows.
        """
        batches = len(self._waiting) + bool(self._computing_rows)
        return min(
            (self._waiting_rows + self._computing_rows) * self._row_seconds, batches * self._batch_seconds
        )

    def _refuse(self) -> None:
        self.crowded = True
        if not self._yielding and not self._idle.is_set():
            self._yielding = True
            self._loop.call_soon(self._yield)

    def _yield(self) -> None:
        """Leave the interpreter's lock to the worker."""
        self._yielding = False
        self._idle.wait(YIELD_SECONDS)

    def _plan(self) -> None:
        """Start a batch once the event loop has handed over all that it has read by now."""
        full = self._waiting_rows >= self._rows_max()
        delay = 0.0 if full else self._limits.max_batch_delay_seconds
        if self._planned is None:
            later = self._loop.call_soon if delay <= 0 else lambda start: self._loop.call_later(delay, start)
            self._planned = later(self._start)
        elif full and self._limits.max_batch_delay_seconds > 0:
            self._planned.cancel()
            self._planned = self._loop.call_soon(self._start)

    def _start(self) -> None:
        """Compute the next batch if anyone waits: here when that is quick, else in the worker's thread."""
        if self._planned is not None:
            self._planned.cancel()
            self._planned = None
        self.crowded = False
        batch = self._gather()
        if not batch:
            return
        self._busy_since = self._now()
        self._computing_rows = _rows(batch)
        if not self._steady or not self._pace.quick(self._computing_rows):
            self._idle.clear()
            self._batches.put(batch)
            return
        results, seconds, own_seconds = self._timed(batch)
        self._finish(batch, results, seconds, own_seconds)

    def _remove(self, entry: Entry) -> None:
        del self._waiting[entry]
        self._waiting_rows -= entry.work.rows
        self._waiting_bytes -= entry.size
        if self._batchable:
            alike = self._alike[entry.key]
            del alike[entry]
            if not alike:
                del self._alike[entry.key]

    def _rows_max(self) -> int:
        """How many rows the next batch may have."""
        usual = self._limits.max_batch_rows
        if not self._steady or not self._row_seconds:
            return usual
        return min(max(usual, int(GROWN_SECONDS_MAX / self._row_seconds)), usual * GROWTH_MAX)

    def _gather(self) -> list[Entry]:
        """Take the longest-waiting entry and those like it behind it that fit with it, in order.

        Looks at no more entries than a full batch could hold, however many wait.
        """
        now = self._now()
        usual, rows_max = self._limits.max_batch_rows, self._rows_max()
        batch: list[Entry] = []
        rows = size = 0
        for entry in self._next_ones(now, rows_max):
            if entry.deadline <= now:
                self._too_late(entry)
            elif (
                not batch
                or rows + entry.work.rows <= usual
                or (rows + entry.work.rows <= rows_max and size + entry.size <= GROWN_BYTES_MAX)
            ):
                self._remove(entry)
                batch.append(entry)
                rows += entry.work.rows
                size += entry.size
            if rows >= rows_max:
                break
        return batch

    def _next_ones(self, now: float, rows_max: int) -> list[Entry]:
        """The longest-waiting entry that is still waited for, and those that can share a call with it."""
        while self._waiting:
            first = next(iter(self._waiting))
            if first.deadline <= now:
                self._too_late(first)
            elif self._batchable:
                return list(islice(self._alike[first.key], rows_max))
            else:
                return [first]
        return []

    def _too_late(self, entry: Entry) -> None:
        self._remove(entry)
        self._stats.on_late()
        _tell(entry, TooLate("its time was over before the model was free; nothing was computed"))

    def _finish(self, batch: list[Entry], results: list[Result], seconds: float, own_seconds: float) -> None:
        began = self._busy_since or 0.0
        self._busy_since = None
        rows, self._computing_rows = self._computing_rows, 0
        self._pace.saw(rows, own_seconds)
        # From end to end where batches follow one another, so that what lies between them counts.
        now = self._now()
        taken = now - (began if self._finished_at is None else self._finished_at)
        self._row_seconds += (taken / rows - self._row_seconds) * LATEST
        self._batch_seconds += (taken - self._batch_seconds) * LATEST
        self._finished_at = now if self._waiting else None
        waits = [began - entry.arrived for entry in batch]
        told = Batch(len(batch), rows, seconds, waits, began)
        self._stats.on_batch(told)
        # The next batch first: in the worker's thread it computes while the answers below are written.
        if self._waiting:
            self._plan()
        for entry, result in zip(batch, results, strict=True):
            entry.batch = told
            _tell(entry, result)

    def _timed(self, batch: list[Entry]) -> tuple[list[Result], float, float]:
        """Compute a batch: its results, the time that went by, and the time that this thread worked.

        What a thread waited for a core, or for the interpreter's lock, says nothing about the model.
        """
        began, own = time.perf_counter(), time.thread_time()
        results = compute_batch(self._compute, [entry.work for entry in batch])
        return results, time.perf_counter() - began, time.thread_time() - own

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            results, seconds, own_seconds = self._timed(batch)
            self._idle.set()
            try:
                self._loop.call_soon_threadsafe(self._finish, batch, results, seconds, own_seconds)
            except RuntimeError:
                return  # the loop is closed: the server has ended


class Pace:
    """What a call of the model takes by the size of its batch, as far as it has been seen."""

    def __init__(self) -> None:
        self._seconds = [math.inf] * SIZES

    def quick(self, rows: int) -> bool:
        """Whether a batch of this size is known to be done within `INLINE_SECONDS_MAX`."""
        return self._seconds[min(rows.bit_length(), SIZES - 1)] <= INLINE_SECONDS_MAX

    def saw(self, rows: int, seconds: float) -> None:
        """Remember one call."""
        size = min(rows.bit_length(), SIZES - 1)
        known = self._seconds[size]
        quicker = seconds < known < math.inf
        self._seconds[size] = known + (seconds - known) * FORGETTING if quicker else seconds


def compute_batch(compute: Compute, works: Sequence[Work]) -> list[Result]:
    """One result a work: from a joint call when that succeeds, else each from its own call."""
    if len(works) > 1:
        # Whatever went wrong: whose fault it was shows when each is computed on its own.
        with contextlib.suppress(Exception, SystemExit):
            return _jointly(compute, works)
    return [_alone(compute, work) for work in works]


def _jointly(compute: Compute, works: Sequence[Work]) -> list[Result]:
    inputs = {name: np.concatenate([work.inputs[name] for work in works]) for name in works[0].inputs}
    outputs = compute(inputs, works[0].outputs)
    total = sum(work.rows for work in works)
    if any(array.ndim == 0 or len(array) != total for array in outputs.values()):
        raise ValueError("the model does not answer row by row")
    results: list[Result] = []
    start = 0
    if len(outputs) == 1:
        (name, array) = next(iter(outputs.items()))
        for work in works:
            end = start + work.rows
            results.append({name: array[start:end]})
            start = end
        return results
    for work in works:
        end = start + work.rows
        results.append({name: array[start:end] for name, array in outputs.items()})
        start = end
    return results


def _alone(compute: Compute, work: Work) -> Result:
    try:
        return compute(work.inputs, work.outputs)
    except SystemExit as error:  # a model's own code may call exit(); that must not end the server
        return RuntimeError(f"the model tried to end the process: {error}")
    except Exception as error:  # noqa: BLE001 - a model raises anything; it is the caller's answer, not ours
        return error


def _tell(entry: Entry, result: Result) -> None:
    done, entry.done = entry.done, None
    if done is not None:
        done(result)


def _rows(batch: Sequence[Entry]) -> int:
    return sum(entry.work.rows for entry in batch)


def _key(work: Work) -> Hashable:
    """Requests of equal keys can share a call of the model."""
    if len(work.inputs) == 1:
        ((name, array),) = work.inputs.items()
        return (work.outputs, name, array.dtype, array.shape[1:])
    return (
        work.outputs,
        tuple((name, array.dtype, array.shape[1:]) for name, array in work.inputs.items()),
    )
