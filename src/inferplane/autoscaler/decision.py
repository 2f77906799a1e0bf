"""The decision: how many replicas from now on, and why.

    load     = requests at once (or a second), averaged over QUICK_SECONDS
    up       when load > current * target: at once, straight to the number that carries it
    down     when the greatest load of the last CALM_SECONDS would fit into fewer with ROOM to spare
    to zero  when no request came for `scale_to_zero_after`, counted from the first Ready at the earliest
    awake    when a request waits at the activator

It never flaps: what made it go up (load > n * target) can never be what makes it go down again
(load ≤ ROOM * n * target), and between the two lies a fifth of a replica's target. It never goes down on
what it did not see: a missing, late or single sample leaves the number as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from inferplane.autoscaler.history import History, Traffic, rate_between
from inferplane.domain.endpoint import DEFAULT_TARGET_CONCURRENCY, Scaling, human_seconds

QUICK_SECONDS = 6.0
CALM_SECONDS = 60.0
QUICK_SAMPLES_MIN = 2
ROOM = 0.8
LOOK_AGAIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas, and why, for people. `message` is "" where nothing changes.

    `look_again_seconds` is when time alone may change it (None: never). `on_traffic` says whether new
    traffic may, so that whoever measures it need not wake everybody.
    """

    replicas: int
    message: str = ""
    look_again_seconds: float | None = None
    on_traffic: bool = False


@dataclass(frozen=True, slots=True)
class _Load:
    """One measure of traffic against what a replica should carry. `quick` ≤ `peak` where both are known."""

    target: float
    unit: str
    quick: float | None
    peak: float | None

    @property
    def up(self) -> int:
        """Replicas for what comes now."""
        return 0 if self.quick is None else _ceil(self.quick / self.target)

    @property
    def down(self) -> int | None:
        """Replicas that would have carried the last minute with room to spare; None where that is not known."""
        return None if self.peak is None else _ceil(self.peak / (self.target * ROOM))


def decide(
    scaling: Scaling, current: int, traffic: Traffic, now: datetime, ready_since: datetime | None = None
) -> Decision:
    """How many replicas from now on. Total; always within the bounds of `scaling`.

    `current` is the number in force, `ready_since` when the first of the replicas that answer now came to
    answer (None: none does).
    """
    least, most = scaling.min_replicas, max(scaling.max_replicas, scaling.min_replicas, 1)
    if current < least or current > most:
        bounded = min(max(current, least), most)
        bound = f"minReplicas is {least}" if current < least else f"maxReplicas is {most}"
        return Decision(bounded, bound, 0.0, on_traffic=True)
    if current == 0:
        return _asleep(scaling, traffic, most)
    loads = _loads(scaling, traffic, now) if most > 1 else ()
    wanted = max((load.up for load in loads), default=0)
    if current < most and wanted > current:
        load = max(loads, key=lambda each: each.up)
        limited = f"; maxReplicas is {most}" if wanted > most else ""
        said = f"{_number(load.quick)} {load.unit} against {_number(load.target)} for each replica{limited}"
        return Decision(min(wanted, most), said, LOOK_AGAIN_SECONDS, on_traffic=True)
    quiet = _quiet_for(traffic, now, ready_since)
    if least == 0 and quiet is not None and quiet >= scaling.scale_to_zero_after:
        return Decision(
            0,
            f"no request came for {human_seconds(scaling.scale_to_zero_after.total_seconds())}",
            on_traffic=True,
        )
    floor = max(least, 1)
    fewer = max((floor, *(load.down for load in loads if load.down is not None)))
    if loads and fewer < current and all(load.down is not None for load in loads):
        load = max(loads, key=lambda each: each.down or 0)
        said = f"at most {_number(load.peak)} {load.unit} in the last {CALM_SECONDS:.0f} s"
        return Decision(fewer, said, LOOK_AGAIN_SECONDS, on_traffic=True)
    moments = [LOOK_AGAIN_SECONDS] if current > floor else []
    if least == 0:
        left = LOOK_AGAIN_SECONDS if quiet is None else (scaling.scale_to_zero_after - quiet).total_seconds()
        moments.append(max(left, 0.05))
    return Decision(current, "", min(moments, default=None), on_traffic=most > 1 and most != least)


def _asleep(scaling: Scaling, traffic: Traffic, most: int) -> Decision:
    if traffic.held <= 0:
        return Decision(0, on_traffic=True)
    target = max(scaling.target_concurrency or DEFAULT_TARGET_CONCURRENCY, 1.0)
    said = f"{traffic.held} request{'s wait' if traffic.held > 1 else ' waits'} for it"
    replicas = min(max(_ceil(traffic.held / target), 1), most)
    return Decision(replicas, said, LOOK_AGAIN_SECONDS, on_traffic=True)


def _quiet_for(traffic: Traffic, now: datetime, ready_since: datetime | None) -> timedelta | None:
    """How long nothing came while it answered; None where somebody waits or nobody can tell."""
    if traffic.held or traffic.idle_since is None or ready_since is None:
        return None
    if not traffic.history.is_fresh(now):
        return None
    return max(now - max(traffic.idle_since, ready_since), timedelta())


def _loads(scaling: Scaling, traffic: Traffic, now: datetime) -> tuple[_Load, ...]:
    concurrency, rate = (
        target if target is not None and target > 0 else None
        for target in (scaling.target_concurrency, scaling.target_rate)
    )
    if concurrency is None and rate is None:
        concurrency = DEFAULT_TARGET_CONCURRENCY
    loads = []
    history = traffic.history
    if concurrency is not None:
        points = [(sample.at, float(sample.active)) for sample in history.samples]
        loads.append(_load(history, points, concurrency, "requests at once", now, held=traffic.held))
    if rate is not None:
        points = [(later.at, rate_between(earlier, later)) for earlier, later in pairwise(history.samples)]
        loads.append(_load(history, points, rate, "requests a second", now))
    return tuple(loads)


def _load(
    history: History,
    points: list[tuple[datetime, float]],
    target: float,
    unit: str,
    now: datetime,
    *,
    held: int = 0,
) -> _Load:
    """Averages over QUICK_SECONDS: the one that ends now, and the greatest of the last CALM_SECONDS."""
    window = timedelta(seconds=QUICK_SECONDS)
    averages = _averages(points, window)
    latest = [value for at, value in averages if now - at <= window]
    quick = latest[-1] if latest else None
    if held:
        quick = max(quick or 0.0, float(held))
    peak = None
    calm = timedelta(seconds=CALM_SECONDS)
    if history.covers(calm, now):
        peak = max([value for at, value in averages if now - at <= calm], default=None)
        peak = peak if peak is None or quick is None else max(peak, quick)
    return _Load(target, unit, quick, peak)


def _averages(points: list[tuple[datetime, float]], window: timedelta) -> list[tuple[datetime, float]]:
    """For each point the mean of those in the window that ends with it; none for one that stands alone."""
    averages = []
    first, total = 0, 0.0
    for index, (at, value) in enumerate(points):
        total += value
        while at - points[first][0] >= window:
            total -= points[first][1]
            first += 1
        count = index - first + 1
        if count >= QUICK_SAMPLES_MIN:
            averages.append((at, max(total / count, 0.0)))
    return averages


def _ceil(value: float) -> int:
    """Rounded up, forgiving what floating point adds to a whole number."""
    return math.ceil(value - 1e-9)


def _number(value: float | None) -> str:
    value = value or 0.0
    # Of small numbers the digits that count: a target of 0.05 is not 0.1.
    return f"{value:.2g}" if value < 1 else f"{value:.1f}".removesuffix(".0")
