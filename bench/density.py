"""Many live endpoints on one machine: what each costs, and whether the next one still starts as fast.

    .venv/bin/python bench/density.py [--levels 1,10,100,500] [--probes 10] [--rest 10]

One platform, a small scikit-learn model on disk, one server an endpoint, by fork. At each level, with nothing
else of the benchmark running: the memory of the servers, and for a while the memory and the CPU time of
every part of the platform at rest; then further endpoints one at a time, each measured from sending POST to the first
200 through the gateway, and deleted. Memory is proportional (PSS): what several processes share counts by its
part for each, and the warm parent of the servers is a process like any other. Bare times depend on the
machine; what to quote are the ratios between the levels.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import tempfile
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
from harness import Platform, inferplane_platform, machine, publish, table, train, v1_body

LIMIT_SECONDS = 120.0
POLL_SECONDS = 0.002
FILL_POLL_SECONDS = 0.05
FILLERS = 4
SETTLE_SECONDS = 5.0
MEBIBYTE = 2**20
TARGET_BYTES = 20 * MEBIBYTE
TARGET_RATIO = 1.5


@dataclass(frozen=True)
class Memory:
    """What processes have in memory, in bytes: proportional, theirs alone, and resident."""

    pss: int = 0
    private: int = 0
    resident: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.pss + other.pss, self.private + other.private, self.resident + other.resident)


@dataclass(frozen=True)
class Parts:
    """The platform's processes by what they are."""

    control: list[psutil.Process]
    gateway: list[psutil.Process]
    parents: list[psutil.Process]
    servers: list[psutil.Process]


@dataclass(frozen=True)
class Level:
    """What was measured with so many live endpoints. CPU in percent of one core, at rest."""

    endpoints: int
    servers: Memory
    parents: Memory
    control: Memory
    gateway: Memory
    cpu_control: float
    cpu_gateway: float
    cpu_servers: float
    first_answers: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds from POST to the first 200."""
        return statistics.median(self.first_answers)


def make(platform: Platform, name: str, model: Path) -> None:
    body = {
        "endpointName": name,
        "workspace": "default",
        "modelSpec": {"modelName": "sklearn", "storageURI": str(model)},
    }
    status, content = platform.call("POST", "inference-endpoint", body)
    if status != 200:
        raise SystemExit(f"not accepted: {content}")


def wait_for_answer(platform: Platform, name: str, poll_seconds: float) -> None:
    """Until it answers through the gateway, over one connection."""
    place = urllib.parse.urlsplit(platform.gateway)
    path = f"/serving/default/{name}/v1/models/{name}:predict"
    deadline = time.monotonic() + LIMIT_SECONDS
    with contextlib.closing(http.client.HTTPConnection(place.netloc, timeout=60)) as connection:
        while True:
            connection.request("POST", path, v1_body(), {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"{name} does not answer")
            time.sleep(poll_seconds)


def fill(platform: Platform, names: Iterable[str], model: Path) -> None:
    """Have these endpoints answer, a few at a time."""

    def one(name: str) -> None:
        make(platform, name, model)
        wait_for_answer(platform, name, FILL_POLL_SECONDS)

    with ThreadPoolExecutor(FILLERS) as pool:
        for _ in pool.map(one, names):
            pass


def probe(platform: Platform, name: str, model: Path) -> float:
    """Seconds from POST to the first 200 of one further endpoint, which is gone afterwards."""
    began = time.perf_counter()
    make(platform, name, model)
    wait_for_answer(platform, name, POLL_SECONDS)
    took = time.perf_counter() - began
    platform.call("DELETE", "inference-endpoint", {"endpoint": name, "workspace": "default"})
    deadline = time.monotonic() + LIMIT_SECONDS
    while platform.call("GET", f"inference-endpoint?workspace=default&endpoint={name}")[0] != 404:
        if time.monotonic() > deadline:
            raise SystemExit(f"{name} does not go")
        time.sleep(FILL_POLL_SECONDS)
    return took


def parts_of(platform: Platform) -> Parts:
    """Every process of the platform: model servers are what replicas' folders name, and their children."""
    records = Path(platform.home).glob("replicas/*/*/pid")
    named = {json.loads(record.read_text())["pid"] for record in records}
    parts = Parts([psutil.Process(platform.process.pid)], [], [], [])
    for process in parts.control[0].children(recursive=True):
        if process.pid in named or process.ppid() in named:
            parts.servers.append(process)
        elif process.name().startswith("envoy"):
            parts.gateway.append(process)
        elif "inferplane.modelserver.forkserver" in process.cmdline():
            parts.parents.append(process)
        else:
            parts.control.append(process)
    return parts


def memory_of(processes: Iterable[psutil.Process]) -> Memory:
    return sum((_memory(process.pid) for process in processes), Memory())


def _memory(pid: int) -> Memory:
    sizes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024
    return Memory(sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Rss"])


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)


def measure(platform: Platform, count: int, model: Path, *, probes: int, rest: float) -> Level:
    time.sleep(SETTLE_SECONDS)
    parts = parts_of(platform)
    if len(parts.servers) < count:
        raise SystemExit(f"{len(parts.servers)} model servers of {count} are there")
    groups = (parts.control, parts.gateway, parts.servers)
    before = [cpu_seconds(group) for group in groups]
    began = time.monotonic()
    time.sleep(rest)
    passed = time.monotonic() - began
    cpu_control, cpu_gateway, cpu_servers = (
        100 * (cpu_seconds(group) - earlier) / passed for group, earlier in zip(groups, before, strict=True)
    )
    return Level(
        endpoints=count,
        servers=memory_of(parts.servers),
        parents=memory_of(parts.parents),
        control=memory_of(parts.control),
        gateway=memory_of(parts.gateway),
        cpu_control=cpu_control,
        cpu_gateway=cpu_gateway,
        cpu_servers=cpu_servers,
        first_answers=tuple(probe(platform, f"probe-{count}-{index}", model) for index in range(probes)),
    )


def levels(options: argparse.Namespace) -> Iterator[Level]:
    """Fill up to each level in turn, and measure there."""
    with tempfile.TemporaryDirectory(prefix="ip-") as folder, inferplane_platform() as platform:
        model = train(Path(folder) / "model.joblib")
        probe(platform, "warm-up", model)  # the first use of everything is not what is measured
        there = 0
        for count in options.levels:
            began = time.monotonic()
            fill(platform, [f"e{index}" for index in range(there, count)], model)
            filled = time.monotonic() - began
            there = count
            platform.sign_in()  # a token does not live as long as this takes
            level = measure(platform, count, model, probes=options.probes, rest=options.rest)
            print(
                f"{count} endpoints  filled in {filled:.1f} s  first answer median {1000 * level.median:.0f} ms"
                f"  PSS {level.servers.pss / count / MEBIBYTE:.1f} MiB  at rest {level.cpu_control:.1f} %"
                f" {level.cpu_gateway:.1f} % {level.cpu_servers:.1f} %  load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            yield level


def show(found: list[Level]) -> str:
    """The table, and whether the targets are met."""
    head = ["", *(f"{level.endpoints:,}" for level in found)]

    def row(name: str, values: Iterable[float], digits: int = 0) -> list[str]:
        return [name, *(f"{value:,.{digits}f}" for value in values)]

    base = next((level for level in found if level.endpoints >= 10), found[0])
    rows = [
        row("POST to first 200, median ms", (1000 * level.median for level in found)),
        row("POST to first 200, most ms", (1000 * max(level.first_answers) for level in found)),
        row(f"ratio to that at {base.endpoints}", (level.median / base.median for level in found), 2),
        row("PSS of a server, MiB", (level.servers.pss / level.endpoints / MEBIBYTE for level in found), 1),
        row(
            "private memory of a server, MiB",
            (level.servers.private / level.endpoints / MEBIBYTE for level in found),
            1,
        ),
        row("PSS of the warm parent, MiB", (level.parents.pss / MEBIBYTE for level in found)),
        row("control plane: resident, MiB", (level.control.resident / MEBIBYTE for level in found)),
        row("control plane: CPU at rest, % of a core", (level.cpu_control for level in found), 1),
        row("Envoy: resident, MiB", (level.gateway.resident / MEBIBYTE for level in found)),
        row("Envoy: CPU at rest, % of a core", (level.cpu_gateway for level in found), 1),
        row("all servers together: CPU at rest, % of a core", (level.cpu_servers for level in found), 1),
    ]
    last = found[-1]
    size, ratio = last.servers.pss / last.endpoints, last.median / base.median
    verdict = (
        f"At {last.endpoints:,} endpoints a server takes {size / MEBIBYTE:.1f} MiB"
        f" (at most {TARGET_BYTES / MEBIBYTE:.0f}: {'yes' if size <= TARGET_BYTES else 'no'}), and one more is"
        f" there after {ratio:.2f} times what it takes at {base.endpoints}"
        f" (at most {TARGET_RATIO}: {'yes' if ratio <= TARGET_RATIO else 'no'})."
    )
    return f"{table(head, rows)}\n\n{verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--levels", type=lambda text: [int(each) for each in text.split(",")], default=[1, 10, 100, 500]
    )
    parser.add_argument("--probes", type=int, default=10)
    parser.add_argument("--rest", type=float, default=10.0)
    options = parser.parse_args()
    began_load = os.getloadavg()[0]
    found = list(levels(options))
    publish("density", f"{machine()}; load average {began_load:.1f} before.\n\n{show(found)}")


if __name__ == "__main__":
    main()
