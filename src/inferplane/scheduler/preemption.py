"""Who would have to yield, and why them.

A victim takes part in eviction, has a strictly lower priority than the newcomer, is not ending already,
and has not been evicted a short while ago. Among all sets of victims that let the newcomer fit:
1. the fewest requests;
2. the lowest priorities (compared by the highest among them);
3. the least work lost, in GPU-seconds since they were granted;
4. the order of pools and nodes.
For a newcomer on one node this is exact. For one on several nodes each node is chosen by the same
criteria, and then whoever turns out not to be needed is spared: nobody is ever evicted for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations

from inferplane.scheduler.placement import Holder, Pool, Slot

EXACT_HOLDERS_MAX = 12
"""Up to this many possible victims on a node every combination is compared; beyond, the largest go first."""


@dataclass(frozen=True, slots=True, order=True)
class Cost:
    """How bad a set of victims is, worst criterion first."""

    victims: int
    highest_priority: int
    lost_gpu_seconds: float


def choose_victims(
    pools: Iterable[Pool], gpus: int, nodes: int, may_evict: Callable[[Holder], bool], now: datetime
) -> tuple[Pool, tuple[Holder, ...]] | None:
    """The best pool and victims there, by request id; None where no eviction would make room."""
    best: tuple[Cost, Pool, tuple[Holder, ...]] | None = None
    for pool in pools:
        victims = _victims_in(pool, gpus, nodes, may_evict, now)
        if victims:
            cost = cost_of(victims, now)
            if best is None or cost < best[0]:
                best = (cost, pool, victims)
    return None if best is None else best[1:]


def cost_of(victims: Iterable[Holder], now: datetime) -> Cost:
    """Add up what evicting `victims` costs."""
    count, highest, lost = 0, 0, 0.0
    for holder in victims:
        count += 1
        highest = max(highest, holder.request.priority)
        lost += holder.gpus * max(0.0, (now - holder.granted_at).total_seconds())
    return Cost(count, highest, lost)


def _victims_in(
    pool: Pool, gpus: int, nodes: int, may_evict: Callable[[Holder], bool], now: datetime
) -> tuple[Holder, ...]:
    offers: list[tuple[Cost, int, tuple[Holder, ...]]] = []
    for slot in pool.slots:
        if slot.capacity >= gpus:
            offer = _cheapest_on(slot, gpus, may_evict, now)
            if offer is not None:
                offers.append((cost_of(offer, now), slot.ordinal, offer))
    if len(offers) < nodes:
        return ()
    offers.sort(key=lambda offer: offer[:2])
    victims = {holder.request.id: holder for _, _, offer in offers[:nodes] for holder in offer}
    return _spared(pool, gpus, nodes, victims, now)


def _cheapest_on(
    slot: Slot, gpus: int, may_evict: Callable[[Holder], bool], now: datetime
) -> tuple[Holder, ...] | None:
    """The best victims that make `slot` have `gpus` free GPUs: () if it has them, None if nobody can."""
    missing = gpus - slot.free
    if missing <= 0:
        return ()
    possible = [(count, holder) for holder, count in slot.held.values() if count and may_evict(holder)]
    possible.sort(key=lambda each: (-each[0], each[1].request.priority, each[1].request.id))
    total = fewest = 0
    for count, _ in possible:
        if total >= missing:
            break
        total += count
        fewest += 1
    if total < missing:
        return None
    if len(possible) > EXACT_HOLDERS_MAX:
        return tuple(holder for _, holder in possible[:fewest])
    enough = (
        tuple(holder for _, holder in chosen)
        for chosen in combinations(possible, fewest)
        if sum(count for count, _ in chosen) >= missing
    )
    return min(enough, key=lambda chosen: (cost_of(chosen, now), [each.request.id for each in chosen]))


def _spared(
    pool: Pool, gpus: int, nodes: int, victims: dict[str, Holder], now: datetime
) -> tuple[Holder, ...]:
    """Without those that are not needed: a victim on several nodes may make another one needless."""
    dearest_first = sorted(victims.values(), key=lambda each: (cost_of([each], now), each.request.id))
    for holder in reversed(dearest_first):
        rest = victims.keys() - {holder.request.id}
        if _room_without(pool, gpus, rest) >= nodes:
            del victims[holder.request.id]
    return tuple(victims[each] for each in sorted(victims))


def _room_without(pool: Pool, gpus: int, gone: set[str]) -> int:
    """Nodes with `gpus` free GPUs if the requests `gone` had left."""
    room = 0
    for slot in pool.slots:
        free = slot.free
        if free < gpus and slot.held:
            free += sum(count for each, (_, count) in slot.held.items() if each in gone)
        room += free >= gpus
    return room
