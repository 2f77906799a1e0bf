"""How long a scheduling cycle takes as the queue grows, and how well it schedules over days.

    python bench/scheduler_cycle.py            # both parts, about five minutes on two cores
    python bench/scheduler_cycle.py growth     # the cycle's time and memory, 1,000 → 100,000 requests
    python bench/scheduler_cycle.py days       # simulated days: utilisation, waits, fairness, forecast error

Everything is seeded. Times are CPU time of one core, the best of several runs, with Python's garbage
collector on as it is in production; the snapshot is built outside of the measurement, as the controller
reads it from the store.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import itertools
import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from statistics import mean, median

from inferplane.domain import gpu_request as gpr
from inferplane.domain.gpu_request import GpuRequest, Grant, ProvisioningStatus, Selection
from inferplane.domain.inventory import Node
from inferplane.scheduler import Ageing, FairShare, Snapshot, Switches, forecast, schedule
from inferplane.scheduler.ordering import advance_usage

BEGIN = datetime(2026, 1, 5, tzinfo=UTC)
KINDS = (
    ("A100", "a2-ultragpu-8g", 8, 80),
    ("A100", "a2-highgpu-4g", 4, 40),
    ("H100", "a3-highgpu-8g", 8, 80),
    ("L4", "g2-standard-48", 4, 24),
    ("L4", "g2-standard-4", 1, 24),
)
CLUSTERS = tuple(f"worker-{number}" for number in range(1, 7))
WORKSPACES = tuple(f"team-{number:02}" for number in range(40))
PRIORITIES = (50, 101, 101, 101, 150, 250)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=["growth", "days", "both"], default="both")
    parser.add_argument("--nodes", type=int, default=10_000, help="nodes of the growth part")
    parser.add_argument("--queue-max", type=int, default=100_000)
    parser.add_argument("--days", type=float, default=3.0)
    parser.add_argument("--days-nodes", type=int, default=60)
    parser.add_argument("--load", type=float, nargs="*", default=[1.05, 1.4], help="of the GPU time there is")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if asked.part in ("growth", "both"):
        growth(asked.nodes, asked.queue_max, asked.seed)
    if asked.part in ("days", "both"):
        for load in asked.load:
            days(asked.days, asked.days_nodes, load, asked.seed)


# --- Growth ------------------------------------------------------------------------------------


def growth(node_count: int, queue_max: int, seed: int) -> None:
    print(f"\nOne cycle over {node_count:,} nodes, 97 % held\n")
    print(
        "| queued | cycle | of it floor | cycle, ageing and fair share | forecast | peak memory | per request |"
    )
    print("|---|---|---|---|---|---|---|")
    sizes = [size for size in (1_000, 3_000, 10_000, 30_000, 100_000) if size <= queue_max]
    chance = Random(seed)
    nodes = tuple(some_nodes(node_count))
    holders = list(full_floor(nodes, chance))
    fair = Switches(ageing=Ageing(), fair_share=FairShare())
    for size in sizes:
        waiting = [a_request(number, chance, BEGIN - ago(chance, 200_000)) for number in range(size)]
        requests = (*holders, *waiting)
        snapshot = Snapshot(BEGIN, nodes, requests)
        empty = replace(snapshot, requests=tuple(holders))
        base = best_of(5, partial(schedule, empty))
        plain = best_of(5, partial(schedule, snapshot))
        shared = best_of(3, partial(schedule, replace(snapshot, switches=fair)))
        replayed = best_of(1, partial(forecast, snapshot))
        peak = peak_bytes(partial(schedule, snapshot))
        print(
            f"| {size:,} | {plain:.2f} s | {base:.2f} s | {shared:.2f} s | {replayed:.1f} s "
            f"| {peak / 2**20:.0f} MiB | {1e6 * (plain - base) / size:.1f} µs |"
        )


def some_nodes(count: int) -> Iterator[Node]:
    for number in range(count):
        shape, instance_type, gpus, memory_gb = KINDS[number // len(CLUSTERS) % len(KINDS)]
        cluster = CLUSTERS[number % len(CLUSTERS)]
        yield Node(cluster, f"node-{number:05}", instance_type, shape, gpus, memory_gb, simulated=True)


def full_floor(nodes: tuple[Node, ...], chance: Random) -> Iterator[GpuRequest]:
    """Running requests on nearly every GPU, of one to eight GPUs each."""
    numbers = itertools.count(10_000_000)
    for node in nodes:
        left = list(node.indexes)
        while left and chance.random() < 0.97:
            gpus = min(len(left), chance.choice([1, 1, 2, 4, 8]))
            began = BEGIN - timedelta(minutes=chance.randint(1, 600))
            request = a_request(next(numbers), chance, began)
            wish = replace(request.selection, gpus_per_node=gpus, nodes=1)
            request = replace(
                request, selection=wish, exit_duration=timedelta(minutes=chance.randint(610, 3000))
            )
            held, left = tuple(left[:gpus]), left[gpus:]
            yield gpr.started(gpr.granted(request, Grant(node.cluster, ((node.name, held),)), began), began)


def a_request(number: int, chance: Random, queued_at: datetime) -> GpuRequest:
    shape, instance_type, per_node, memory_gb = chance.choice(KINDS)
    anywhere = chance.random() < 0.2
    wish = Selection(
        cluster_name="" if anywhere else chance.choice(CLUSTERS),
        auto_cluster=anywhere,
        gpu_shape=shape,
        instance_type=instance_type,
        memory_gb=memory_gb,
        gpus_per_node=chance.choice([gpus for gpus in (1, 2, 4, 8) if gpus <= per_node]),
        nodes=chance.choice([1, 1, 1, 1, 2, 4, 16]),
    )
    return GpuRequest(
        id=f"gpr-{number:08x}-0000",
        name=f"request-{number}",
        workspace=chance.choice(WORKSPACES),
        selection=wish,
        created_at=queued_at,
        queued_at=queued_at,
        exit_duration=timedelta(minutes=chance.randint(5, 3000)),
        priority=chance.choice(PRIORITIES),
        enable_eviction=chance.random() < 0.1,
    )


def ago(chance: Random, seconds_max: int) -> timedelta:
    return timedelta(seconds=chance.randint(0, seconds_max))


def best_of(times: int, work: Callable[[], object]) -> float:
    taken = []
    for _ in range(times):
        gc.collect()
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def peak_bytes(work: Callable[[], object]) -> int:
    gc.collect()
    tracemalloc.start()
    kept = work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    del kept
    return peak


# --- Days --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    name: str
    switches: Switches


@dataclass
class Outcome:
    """What a simulation measured. Waits in minutes."""

    waits: dict[int, list[float]]
    utilisation: float
    jain: float
    errors: list[float]
    early: float
    gang_waits: list[float]
    evictions: int
    greedy_wait: float
    other_wait: float


def days(day_count: float, node_count: int, load: float, seed: int) -> None:
    variants = [
        Variant("strict order", Switches(backfill=False, eviction=False)),
        Variant("backfill", Switches(eviction=False)),
        Variant("backfill, ageing", Switches(eviction=False, ageing=Ageing())),
        Variant("backfill, fair share", Switches(eviction=False, fair_share=FairShare())),
        Variant("all, and eviction", Switches(ageing=Ageing(), fair_share=FairShare())),
    ]
    nodes = tuple(
        Node("worker-1", f"node-{number:04}", "a2-ultragpu-8g", "A100", 8, 80, simulated=True)
        for number in range(node_count)
    )
    arrivals = list(some_arrivals(day_count, node_count * 8, load, seed))
    print(
        f"\n{day_count:g} simulated days, {node_count} nodes of 8 GPUs, {len(arrivals):,} requests, "
        f"load {load:g}, runs end after 50-100 % of what was asked\n"
    )
    print(
        "| policies | utilisation | mean wait 201-300 | 101-200 | 1-100 | gangs | longest | Jain's index "
        "| wait, greedy team / others | forecast error, median | later than said | evictions |"
    )
    print("|---" * 12 + "|")
    for variant in variants:
        seen = Simulation(nodes, arrivals, variant.switches, seed).run(timedelta(days=day_count))
        bands = [
            [wait for priority, waits in seen.waits.items() if low <= priority <= high for wait in waits]
            for low, high in ((201, 300), (101, 200), (1, 100))
        ]
        longest = max(itertools.chain.from_iterable(bands))
        error = f"{median(seen.errors):.0f} min" if seen.errors else "-"
        cells = [
            variant.name,
            f"{seen.utilisation:.1%}",
            *(f"{mean(band):.0f} min" if band else "-" for band in bands),
            f"{mean(seen.gang_waits):.0f} min" if seen.gang_waits else "-",
            f"{longest / 60:.1f} h",
            f"{seen.jain:.3f}",
            f"{seen.greedy_wait:.0f} / {seen.other_wait:.0f} min",
            error,
            f"{seen.early:.0%}",
            str(seen.evictions),
        ]
        print(f"| {' | '.join(cells)} |")


def some_arrivals(day_count: float, gpus: int, load: float, seed: int) -> Iterator[GpuRequest]:
    """Poisson arrivals, busier by day; ten workspaces, of which the first asks for as much as four others."""
    chance = Random(seed)
    teams = WORKSPACES[:10]
    weights = [4, *[1] * (len(teams) - 1)]
    mean_gpu_minutes = 370.0 * 3.1 * 0.75  # duration x GPUs x share that is really used, as drawn below
    per_minute = load * gpus / mean_gpu_minutes
    at, number = 0.0, 0
    while at < day_count * 1440:
        busy = 1.5 if 480 <= at % 1440 <= 1200 else 0.5
        at += chance.expovariate(per_minute * busy)
        number += 1
        wish = Selection(
            cluster_name="worker-1",
            gpu_shape="A100",
            instance_type="a2-ultragpu-8g",
            memory_gb=80,
            gpus_per_node=chance.choice([1, 1, 1, 2, 2, 4, 8]),
            nodes=chance.choices([1, 2, 4], [92, 5, 3])[0],
        )
        queued_at = BEGIN + timedelta(minutes=at)
        yield GpuRequest(
            id=f"gpr-{number:08x}-0000",
            name=f"request-{number}",
            workspace=chance.choices(teams, weights)[0],
            selection=wish,
            created_at=queued_at,
            queued_at=queued_at,
            exit_duration=timedelta(minutes=chance.choice([20, 60, 120, 240, 480, 1300])),
            priority=chance.choice(PRIORITIES),
            enable_eviction=chance.random() < 0.2,
            requeue_on_failure=True,
        )


class Simulation:
    """Runs the cycle at each arrival and each end. A run ends early by chance, so forecasts err as they would."""

    def __init__(self, nodes: tuple[Node, ...], arrivals: list[GpuRequest], switches: Switches, seed: int):
        chance = Random(seed)
        self.nodes = nodes
        self.arrivals = arrivals
        self.switches = switches
        self.lasts = {each.id: each.exit_duration * chance.uniform(0.5, 1.0) for each in arrivals}
        self.live: dict[str, GpuRequest] = {}
        self.ends: list[tuple[datetime, str, int]] = []
        self.now = BEGIN
        self.usage: dict[str, float] = {}
        self.first_start: dict[str, datetime] = {}
        self.expected: dict[str, datetime] = {}
        self.asked: Counter[str] = Counter()
        self.used: defaultdict[str, float] = defaultdict(float)
        self.evictions = 0

    def run(self, span: timedelta) -> Outcome:
        stop = BEGIN + span
        coming = 0
        while True:
            upcoming = [self.ends[0][0]] if self.ends else []
            if coming < len(self.arrivals):
                upcoming.append(self.arrivals[coming].queued_at)
            if not upcoming or min(upcoming) >= stop:
                break
            self._pass_time(min(upcoming))
            newest = ""
            while coming < len(self.arrivals) and self.arrivals[coming].queued_at <= self.now:
                request = self.arrivals[coming]
                newest = request.id if coming % 20 == 0 else newest
                self.live[request.id] = request
                gpu_seconds = request.selection.gpus * self.lasts[request.id].total_seconds()
                self.asked[request.workspace] += int(gpu_seconds)
                coming += 1
            while self.ends and self.ends[0][0] <= self.now:
                self._end(*heapq.heappop(self.ends)[1:])
            self._cycle(newest)
        self._pass_time(stop)
        return self._outcome(stop, span)

    def _pass_time(self, until: datetime) -> None:
        held = Counter(dict.fromkeys(self.usage, 0))
        for each in self.live.values():
            held[each.workspace] += each.gpus_allocated
        elapsed, self.now = until - self.now, until
        for name, gpus in held.items():
            self.used[name] += gpus * elapsed.total_seconds()
        if self.switches.fair_share is not None:
            self.usage = advance_usage(self.usage, held, elapsed, self.switches.fair_share)

    def _end(self, request_id: str, version: int) -> None:
        request = self.live.get(request_id)
        if request is None or request.version != version or not request.holds_gpus:
            return
        if request.status is ProvisioningStatus.SUCCESSFUL:
            request = gpr.draining(request, ProvisioningStatus.COMPLETE, self.now)
        request = gpr.ended(request, self.now)
        if gpr.wants_requeue(request):
            self.live[request_id] = replace(gpr.requeued(request, self.now), version=version + 1)
        else:
            del self.live[request_id]

    def _cycle(self, newest: str) -> None:
        requests = tuple(self.live.values())
        snapshot = Snapshot(self.now, self.nodes, requests, usage=self.usage, switches=self.switches)
        decisions = schedule(snapshot)
        for eviction in decisions.evictions:
            victim = self.live[eviction.victim_id]
            victim = gpr.draining(
                victim, ProvisioningStatus.EVICTED, self.now, evicted_by=eviction.newcomer_id
            )
            self.live[victim.id] = victim = replace(victim, version=victim.version + 1)
            heapq.heappush(self.ends, (self.now + self.switches.draining, victim.id, victim.version))
            self.evictions += 1
        for decision in decisions.grants:
            request = self.live[decision.request_id]
            request = gpr.started(gpr.granted(request, decision.grant, self.now), self.now)
            self.live[request.id] = request
            self.first_start.setdefault(request.id, self.now)
            heapq.heappush(self.ends, (self.now + self.lasts[request.id], request.id, request.version))
        if newest and newest not in self.first_start:
            estimate = forecast(snapshot)[newest]
            if estimate.start is not None:
                self.expected[newest] = estimate.start

    def _outcome(self, stop: datetime, span: timedelta) -> Outcome:
        waits: dict[int, list[float]] = {}
        gangs = []
        by_team: defaultdict[bool, list[float]] = defaultdict(list)
        for request in self.arrivals:
            if request.queued_at < stop:
                began = self.first_start.get(request.id, stop)
                wait = (began - request.queued_at).total_seconds() / 60
                waits.setdefault(request.priority, []).append(wait)
                by_team[request.workspace == WORKSPACES[0]].append(wait)
                if request.selection.nodes > 1:
                    gangs.append(wait)
        errors = [
            (self.first_start[each] - expected).total_seconds() / 60
            for each, expected in self.expected.items()
            if each in self.first_start
        ]
        shares = [self.used[name] / self.asked[name] for name in sorted(self.asked)]
        jain = sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))
        capacity = sum(node.gpu_count for node in self.nodes) * span.total_seconds()
        early = sum(error > 1 for error in errors) / len(errors) if errors else 0.0
        absolute = [abs(error) for error in errors]
        return Outcome(
            waits,
            sum(self.used.values()) / capacity,
            jain,
            absolute,
            early,
            gangs,
            self.evictions,
            mean(by_team[True]),
            mean(by_team[False]),
        )


if __name__ == "__main__":
    main()
