"""Many live endpoints on one machine: what each costs, and whether the next one still starts as fast.

    .venv/bin/python bench/density.py [--levels 1,10,100,500] [--probes 20] [--rest 30] [--quick]

Two platforms stand side by side, each with a small scikit-learn model on disk and one server an endpoint, by
fork. One keeps ten endpoints; the other grows. At each level of the growing one, with nothing else of
the benchmark running: the memory of its servers, and for a while the memory and the CPU time of every part
of it at rest; then further endpoints one at a time, by turns on the one platform and on the other (who is first
changes each time), each measured from sending POST to the first 200 through the gateway, and deleted. So
whatever else the machine does meets both.

The small platform is not blind to the large one: they share the cores, so what five hundred idle servers
take from a start is taken from both. That is why the growing platform is compared with itself at ten as well.

Memory is proportional (PSS): what several processes share counts by its part for each, and the warm parent
of the servers is a process like any other. Bare times depend on the machine; what to quote are the ratios.
`--quick` is for looking at a change: fewer levels, fewer endpoints, shorter rests.
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
#: After an endpoint is gone: what its end leaves to do is not part of the next one's start.
PAUSE_SECONDS = 0.3
WARM_UPS = 3
SMALL = 10
USUAL = {"levels": [1, 10, 100, 500], "probes": 20, "rest": 30.0}
QUICK = {"levels": [10, 100], "probes": 6, "rest": 10.0}
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
    """What was measured with so many live endpoints. CPU in seconds a minute, at rest.

    `first_answers` are the seconds from POST to the first 200 on the growing platform, `beside` those on the
    small one in the same minutes.
    """

    endpoints: int
    servers: Memory
    parents: Memory
    control: Memory
    gateway: Memory
    cpu_control: float
    cpu_gateway: float
    cpu_servers: float
    first_answers: tuple[float, ...]
    beside: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds from POST to the first 200 on the growing platform."""
        return statistics.median(self.first_answers)

    @property
    def ratio_beside(self) -> float:
        """To the small platform, measured by turns."""
        return self.median / statistics.median(self.beside)


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
    """Every process of the platform.

    Model servers are what replicas' folders name, and their children; the gateway is nobody's child, and known
    by the folder that it was started with.
    """
    records = Path(platform.home).glob("replicas/*/*/pid")
    named = {json.loads(record.read_text())["pid"] for record in records}
    parts = Parts([psutil.Process(platform.process.pid)], [], [], [])
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.name().startswith("envoy") and str(platform.home) in " ".join(process.cmdline()):
                parts.gateway.append(process)
    for process in parts.control[0].children(recursive=True):
        if process.pid in named or process.ppid() in named:
            parts.servers.append(process)
        elif process in parts.gateway:
            continue
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


def measure(
    growing: Platform, small: Platform, count: int, model: Path, options: argparse.Namespace
) -> Level:
    time.sleep(SETTLE_SECONDS)
    parts = parts_of(growing)
    if len(parts.servers) < count:
        raise SystemExit(f"{len(parts.servers)} model servers of {count} are there")
    groups = (parts.control, parts.gateway, parts.servers)
    before = [cpu_seconds(group) for group in groups]
    began = time.monotonic()
    time.sleep(options.rest)
    passed = time.monotonic() - began
    cpu_control, cpu_gateway, cpu_servers = (
        60 * (cpu_seconds(group) - earlier) / passed for group, earlier in zip(groups, before, strict=True)
    )
    memories = [memory_of(each) for each in (parts.servers, parts.parents, parts.control, parts.gateway)]
    first_answers: list[float] = []
    beside: list[float] = []
    for index in range(options.probes):
        turns = [(growing, first_answers), (small, beside)]
        for platform, times in turns if index % 2 == 0 else reversed(turns):
            times.append(probe(platform, f"probe-{count}-{index}", model))
            time.sleep(PAUSE_SECONDS)
    servers, parents, control, gateway = memories
    return Level(
        endpoints=count,
        servers=servers,
        parents=parents,
        control=control,
        gateway=gateway,
        cpu_control=cpu_control,
        cpu_gateway=cpu_gateway,
        cpu_servers=cpu_servers,
        first_answers=tuple(first_answers),
        beside=tuple(beside),
    )


def levels(options: argparse.Namespace) -> Iterator[Level]:
    """Fill up to each level in turn, and measure there."""
    with (
        tempfile.TemporaryDirectory(prefix="ip-") as folder,
        inferplane_platform() as small,
        inferplane_platform() as growing,
    ):
        model = train(Path(folder) / "model.joblib")
        for platform in (small, growing):
            for index in range(WARM_UPS):  # the first use of everything is not what is measured
                probe(platform, f"warm-up-{index}", model)
        fill(small, [f"e{index}" for index in range(SMALL)], model)
        there = 0
        for count in options.levels:
            began = time.monotonic()
            fill(growing, [f"e{index}" for index in range(there, count)], model)
            filled = time.monotonic() - began
            there = count
            for platform in (small, growing):
                platform.sign_in()  # a token does not live as long as this takes
            level = measure(growing, small, count, model, options)
            print(
                f"{count} endpoints  filled in {filled:.1f} s  first answer median {1000 * level.median:.0f} ms"
                f"  beside {1000 * statistics.median(level.beside):.0f} ms"
                f"  PSS {level.servers.pss / count / MEBIBYTE:.1f} MiB  CPU s/min at rest"
                f" {level.cpu_control:.1f} {level.cpu_gateway:.1f} {level.cpu_servers:.1f}"
                f"  load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            yield level


def show(found: list[Level]) -> str:
    """The table, and whether the targets are met."""
    head = ["", *(f"{level.endpoints:,}" for level in found)]

    def row(name: str, values: Iterable[float], digits: int = 0) -> list[str]:
        return [name, *(f"{value:,.{digits}f}" for value in values)]

    def times(name: str, found: Iterable[tuple[float, ...]]) -> list[str]:
        return [name, *(_quartiles(each) for each in found)]

    base = next((level for level in found if level.endpoints >= SMALL), found[0])
    rows = [
        times("POST to first 200, ms: median (middle half)", (level.first_answers for level in found)),
        times(f"the same by turns on the platform with {SMALL}", (level.beside for level in found)),
        row("ratio of the two", (level.ratio_beside for level in found), 2),
        row(f"ratio to itself at {base.endpoints}", (level.median / base.median for level in found), 2),
        row("PSS of a server, MiB", (level.servers.pss / level.endpoints / MEBIBYTE for level in found), 1),
        row(
            "private memory of a server, MiB",
            (level.servers.private / level.endpoints / MEBIBYTE for level in found),
            1,
        ),
        row("PSS of the warm parent and its spare, MiB", (level.parents.pss / MEBIBYTE for level in found)),
        row("control plane: resident, MiB", (level.control.resident / MEBIBYTE for level in found)),
        row("Envoy: resident, MiB", (level.gateway.resident / MEBIBYTE for level in found)),
        row("CPU at rest, seconds a minute: control plane", (level.cpu_control for level in found), 2),
        row("CPU at rest: Envoy", (level.cpu_gateway for level in found), 2),
        row("CPU at rest: all servers together", (level.cpu_servers for level in found), 2),
    ]
    last = found[-1]
    size, ratio, own = last.servers.pss / last.endpoints, last.ratio_beside, last.median / base.median
    verdict = (
        f"At {last.endpoints:,} endpoints a server takes {size / MEBIBYTE:.1f} MiB"
        f" (at most {TARGET_BYTES / MEBIBYTE:.0f}: {_yes(size <= TARGET_BYTES)}), and one more is"
        f" there after {ratio:.2f} times what it takes on the platform with {SMALL} beside it"
        f" (at most {TARGET_RATIO}: {_yes(ratio <= TARGET_RATIO)}), and {own:.2f} times what it took on this one"
        f" at {base.endpoints} (at most {TARGET_RATIO}: {_yes(own <= TARGET_RATIO)})."
    )
    return f"{table(head, rows)}\n\n{verdict}"


def _quartiles(seconds: tuple[float, ...]) -> str:
    """Milliseconds: `median (lower to upper quartile)`."""
    if len(seconds) < 2:
        return f"{1000 * seconds[0]:.0f}"
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return f"{1000 * middle:.0f} ({1000 * low:.0f} to {1000 * high:.0f})"


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="10 and 100 endpoints, 6 probes, 10 s of rest")
    parser.add_argument("--levels", type=lambda text: [int(each) for each in text.split(",")])
    parser.add_argument("--probes", type=int)
    parser.add_argument("--rest", type=float)
    options = parser.parse_args()
    usual = QUICK if options.quick else USUAL
    for name, value in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    began_load = os.getloadavg()[0]
    found = list(levels(options))
    text = f"{machine()}; load average {began_load:.1f} before.\n\n{show(found)}"
    if options.quick:
        print(f"\n{text}\n")
    else:
        publish("density", text)


if __name__ == "__main__":
    main()
