"""What comes through when twice as much is offered as a server can do.

    .venv/bin/python bench/overload.py [--rounds 3] [--seconds 5] [--rows 32 128] [--sides inferplane kserve …]

A scikit-learn forest of 500 trees, and 32 or 128 rows a request: a request that the model does in a fraction
of a millisecond, where refusing costs a share of it, and one that takes some. First the capacity
is measured (the better of 64 and 256 connections, closed loops), then twice that is offered at even intervals
over 1,024 connections (an open loop, as users are). Callers wait 500 ms: an answer that comes later is worth
nothing to them and does not count. *Goodput* is what came in time, as a share of the capacity. `gateway` is a
whole platform: the request goes through Envoy to a replica that the platform has started.

The load generator shares the machine, and offers and reads twice what the server can do. When it is late with what
it sends, or has no time left, its row has a star: then the server was offered less than the table says.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import harness
import peers

PATIENCE_MS = 500.0
CONNECTIONS = 1024
CAPACITY_CONNECTIONS = (64, 256)
#: A load generator that takes this share of a core, or is so late with its requests (p99), offers less than it should.
GENERATOR_CPU_MAX = 0.9
GENERATOR_LATE_MS_MAX = PATIENCE_MS / 10
REQUEST_ROWS = (32, 128)
TREES = 500


def train(path: Path) -> Path:
    """A model that takes its time."""
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    data = load_iris()
    joblib.dump(RandomForestClassifier(TREES, random_state=0).fit(data.data, data.target), path)
    return path


@contextlib.contextmanager
def side(name: str, model: Path, request_rows: int) -> Iterator[harness.Server]:
    """Start one side, to be asked for so many rows at a time."""
    rows = harness.ROWS * (request_rows // len(harness.ROWS))
    with contextlib.ExitStack() as stack:
        if name == "gateway":
            platform = stack.enter_context(harness.inferplane_platform())
            server = platform.deploy("iris", model)
            # Through the gateway, a caller's patience is the endpoint's limit of time: nobody can send it along.
            limits = {"timeoutSeconds": PATIENCE_MS / 1000}
            change = {"workspace": "default", "endpoint": "iris", "limits": limits}
            status, content = platform.call("PATCH", "inference-endpoint", change)
            if status != 200:
                raise SystemExit(f"not accepted: {content}")
        elif name == "inferplane":
            server = stack.enter_context(harness.model_server(model))
        else:
            server = stack.enter_context(peers.PEERS[name](model))
        server.body = harness.v2_body(rows) if "inputs" in json.loads(server.body) else harness.v1_body(rows)
        yield server


@dataclass(frozen=True)
class Outcome:
    """One round of one side: requests a second, and the generator's own doing."""

    capacity: float
    over: harness.Figures
    seconds: float

    @property
    def share(self) -> float:
        """What came in time, in percent of the capacity."""
        return 100 * self.over.good_per_second / self.capacity

    @property
    def refused(self) -> float:
        """Refusals a second."""
        return self.over.statuses.get("503", 0) / self.seconds

    @property
    def offered(self) -> bool:
        """Whether the generator did what it should."""
        return self.over.generator_cpu < GENERATOR_CPU_MAX and self.over.late_ms < GENERATOR_LATE_MS_MAX


def measured(server: harness.Server, seconds: float) -> Outcome:
    """The capacity, and what comes through at twice that."""
    capacity = max(
        harness.measure(server, connections=count, seconds=seconds).good_per_second
        for count in CAPACITY_CONNECTIONS
    )
    over = harness.measure(
        server,
        connections=CONNECTIONS,
        seconds=seconds,
        warmup=2.0,
        rate=2 * capacity,
        patience_ms=PATIENCE_MS,
    )
    return Outcome(capacity, over, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rows", type=int, nargs="+", default=REQUEST_ROWS)
    parser.add_argument("--sides", nargs="+", default=["inferplane", "gateway", *peers.PEERS])
    options = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ip-") as folder:
        model = train(Path(folder) / "model.joblib")
        for number in range(options.rounds):
            for name, request_rows in itertools.product(options.sides, options.rows):
                with side(name, model, request_rows) as server:
                    one = measured(server, options.seconds)
                    title = f"{server.name}, {request_rows} rows"
                outcomes.setdefault(title, []).append(one)
                print(
                    f"round {number + 1}  {title:<26} capacity {one.capacity:,.0f}/s, offered "
                    f"{one.over.due_per_second:,.0f}/s: {one.over.good_per_second:,.0f}/s in time "
                    f"({one.share:.0f} %), {one.over.statuses}, unsent {one.over.unsent}, failures "
                    f"{one.over.failures}, p50 {one.over.p50:.0f} ms, p99 {one.over.p99:.0f} ms; generator: "
                    f"{100 * one.over.generator_cpu:.0f} % of a core, {one.over.late_ms:.1f} ms late",
                    flush=True,
                )
    rows = [
        [
            title + ("" if all(one.offered for one in found) else " *"),
            harness.Spread(tuple(one.capacity for one in found)).show(),
            harness.Spread(tuple(one.over.good_per_second for one in found)).show(),
            harness.Spread(tuple(one.share for one in found)).show(),
            harness.Spread(tuple(one.refused for one in found)).show(),
        ]
        for title, found in outcomes.items()
    ]
    head = ["", "capacity /s", "in time /s at twice that", "goodput %", "refused at once /s"]
    text = (
        f"{harness.machine()}; {options.rounds} rounds; median (least to most); load average "
        f"{load:.1f} before.\n\n{harness.table(head, rows)}"
    )
    harness.publish("overload", text)


if __name__ == "__main__":
    main()
