"""Who is next: a total order over the waiting requests.

In this order:
1. priority, higher first (raised by waiting, where ageing is on);
2. where fair share is on: the workspace that has used least. Each request that is put in line counts as
   used at once, so that workspaces take turns in proportion to what they ask for (max-min fairness);
3. age: who was queued first;
4. id.
Without ageing and fair share nobody is ever put before an equal that came earlier.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from math import log
from operator import attrgetter

from inferplane.domain.gpu_request import PRIORITY_HIGHEST, GpuRequest
from inferplane.scheduler.snapshot import Ageing, FairShare, Snapshot, Switches

USAGE_LEAST = 1.0
"""GPU-seconds below which a workspace counts as having used nothing."""


@dataclass(frozen=True, slots=True)
class Order:
    """The line, first to last. `moved` names those whom fair share put earlier or later than their age."""

    requests: tuple[GpuRequest, ...]
    moved: Mapping[str, int]


def order_queue(
    waiting: Iterable[GpuRequest], now: datetime, usage: Mapping[str, float], switches: Switches
) -> Order:
    """Put `waiting` in line. `moved` maps an id to how many places fair share moved it (negative: forward)."""
    by_age = sorted(waiting, key=attrgetter("id"))
    by_age.sort(key=attrgetter("queued_at"))  # a stable sort keeps equals in order
    if switches.ageing is None:
        line = sorted(by_age, key=attrgetter("priority"), reverse=True)
        levels: dict[str, int] = {}
    else:
        ageing = switches.ageing
        levels = {each.id: aged_priority(each, now, ageing) for each in by_age}
        line = sorted(by_age, key=lambda each: levels[each.id], reverse=True)
    if switches.fair_share is None:
        return Order(tuple(line), {})
    fair: list[GpuRequest] = []
    counted = dict(usage)
    for _, level in groupby(line, key=lambda each: levels.get(each.id, each.priority)):
        fair.extend(_take_turns(list(level), counted, switches.fair_share))
    moved = {each.id: place - before for place, each, before in _places(line, fair) if place != before}
    return Order(tuple(fair), moved)


def aged_priority(request: GpuRequest, now: datetime, ageing: Ageing) -> int:
    """The priority with what waiting has added; never above the highest there is."""
    return min(max(PRIORITY_HIGHEST, request.priority), request.priority + aged_points(request, now, ageing))


def aged_points(request: GpuRequest, now: datetime, ageing: Ageing) -> int:
    """Points that waiting has added so far."""
    waited = max(timedelta(0), now - request.queued_at)
    return min(ageing.points_max, waited // ageing.every * ageing.points)


def advance_usage(
    usage: Mapping[str, float], held_gpus: Mapping[str, int], elapsed: timedelta, fair_share: FairShare
) -> dict[str, float]:
    """Usage after `elapsed`, during which each workspace held `held_gpus` throughout. In GPU-seconds.

    What was used fades by half each half-life, and what is used meanwhile fades from the moment it is used.
    """
    seconds, half_life = elapsed.total_seconds(), fair_share.half_life.total_seconds()
    left = 0.5 ** (seconds / half_life)
    grown = (1.0 - left) * half_life / log(2)
    workspaces = sorted(usage.keys() | held_gpus.keys())
    return {each: usage.get(each, 0.0) * left + held_gpus.get(each, 0) * grown for each in workspaces}


def usage_now(snapshot: Snapshot, usage: Mapping[str, float], at: datetime | None) -> dict[str, float]:
    """The workspaces' use as of the snapshot, given that of `at`, since when nobody's GPUs have changed.

    `at` None: that is not known, and nothing is added. Who has used less than USAGE_LEAST is left out.
    """
    held: dict[str, int] = {}
    for request in snapshot.requests:
        held[request.workspace] = held.get(request.workspace, 0) + request.gpus_allocated
    elapsed = max(timedelta(0), snapshot.now - at) if at is not None else timedelta(0)
    advanced = advance_usage(usage, held, elapsed, snapshot.switches.fair_share or FairShare())
    return {name: used for name, used in advanced.items() if used >= USAGE_LEAST}


def _take_turns(level: list[GpuRequest], counted: dict[str, float], share: FairShare) -> list[GpuRequest]:
    """One priority level, by turns; `level` comes in by age. `counted` grows by what is put in line."""
    lines: dict[str, list[GpuRequest]] = {}
    for request in reversed(level):
        lines.setdefault(request.workspace, []).append(request)
    half_life = share.half_life
    heap = [(counted.get(name, 0.0), line[-1].queued_at, line[-1].id, name) for name, line in lines.items()]
    heapq.heapify(heap)
    turns = []
    while heap:
        used, _, _, name = heap[0]
        line = lines[name]
        request = line.pop()
        turns.append(request)
        used += request.selection.gpus * min(request.exit_duration, half_life).total_seconds()
        counted[name] = used
        if line:
            heapq.heapreplace(heap, (used, line[-1].queued_at, line[-1].id, name))
        else:
            heapq.heappop(heap)
    return turns


def _places(before: list[GpuRequest], after: list[GpuRequest]) -> Iterable[tuple[int, GpuRequest, int]]:
    old = {each.id: place for place, each in enumerate(before)}
    return ((place, each, old[each.id]) for place, each in enumerate(after))
