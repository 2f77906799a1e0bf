"""How long it takes to say how long each kind of node would take.

    python bench/wait_times.py

A question about anything with 20 GB: thirty kinds of node in six clusters. Side by side: one
forecast for each kind with the request put in line (which defines what is right), and the way the platform
does it. A low priority has everybody ahead of it, a high one everybody behind, whom it may hold up, so that
less can be shared. Times are CPU time of one core. Estimates are compared; any difference is an error.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from random import Random

from scheduler_cycle import BEGIN, a_request, ago, full_floor, some_nodes

from inferplane.domain.gpu_request import GpuRequest, Selection
from inferplane.scheduler import Snapshot, Switches, forecast, wait_times
from inferplane.scheduler.questions import pinned_to

SIZES = (30, 100, 300, 500)
NODES = 300


def main() -> None:
    print(f"\n{NODES} nodes of 30 kinds, 97 % held\n")
    print("| waiting | who is asked about | a forecast for each kind | as the platform does it | estimates |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        chance = Random(1)
        nodes = tuple(some_nodes(NODES))
        holders = tuple(full_floor(nodes, chance))
        waiting = tuple(a_request(n, chance, BEGIN - ago(chance, 200_000)) for n in range(size))
        snapshot = Snapshot(BEGIN, nodes, (*holders, *waiting), switches=Switches())
        for priority in (50, 101, 250):
            question = replace(
                a_request(9_999_999, chance, BEGIN),
                selection=Selection(auto_cluster=True, auto_gpu=True, memory_gb=20),
                priority=priority,
                exit_duration=timedelta(hours=10),
                enable_eviction=False,
            )
            compare(snapshot, question, size)


def compare(snapshot: Snapshot, question: GpuRequest, size: int) -> None:
    began = time.process_time()
    found = wait_times(snapshot, question)
    fast = time.process_time() - began
    began = time.process_time()
    for candidate in found:
        asked = replace(question, selection=pinned_to(question.selection, candidate.pool))
        with_it = replace(snapshot, requests=(*snapshot.requests, asked))
        assert forecast(with_it)[question.id].start == candidate.estimate.start
    plain = time.process_time() - began
    known = sum(each.estimate.start is not None for each in found)
    print(
        f"| {size} | priority {question.priority} | {plain:.2f} s | {fast:.2f} s | {known} of {len(found)} |"
    )


if __name__ == "__main__":
    main()
