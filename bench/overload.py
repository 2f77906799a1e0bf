"""What comes through when twice as much is offered as a server can do.

    .venv/bin/python bench/overload.py [--rounds 3] [--seconds 5] [--rows 32 128] [--sides inferplane kserve …]

A scikit-learn forest of 500 trees, and 32 or 128 rows a request: a request that the model does in a fraction
of a millisecond, where refusing costs a share of it, and one that takes some. First the capacity
is measured (64 connections, a closed loop), then twice that is offered at even intervals over 1,024
connections (an open loop, as users are). Callers wait 500 ms: an answer that comes later is worth nothing
to them and does not count. *Goodput* is what came in time, as a share of the capacity. `gateway` is a whole
platform: the request goes through Envoy to a replica that the platform has started.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import peers

PATIENCE_MS = 500.0
CONNECTIONS = 1024
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rows", type=int, nargs="+", default=REQUEST_ROWS)
    parser.add_argument("--sides", nargs="+", default=["inferplane", "gateway", *peers.PEERS])
    options = parser.parse_args()
    capacities: dict[str, list[float]] = {}
    goods: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    refused: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="ip-") as folder:
        model = train(Path(folder) / "model.joblib")
        for number in range(options.rounds):
            for name, request_rows in itertools.product(options.sides, options.rows):
                with side(name, model, request_rows) as server:
                    capacity = harness.measure(
                        server, connections=64, seconds=options.seconds
                    ).good_per_second
                    over = harness.measure(
                        server,
                        connections=CONNECTIONS,
                        seconds=options.seconds,
                        warmup=2.0,
                        rate=2 * capacity,
                        patience_ms=PATIENCE_MS,
                    )
                    title = f"{server.name}, {request_rows} rows"
                capacities.setdefault(title, []).append(capacity)
                goods.setdefault(title, []).append(over.good_per_second)
                shares.setdefault(title, []).append(100 * over.good_per_second / capacity)
                refused.setdefault(title, []).append(over.statuses.get("503", 0) / options.seconds)
                print(
                    f"round {number + 1}  {title:<26} capacity {capacity:,.0f}/s, offered twice that: "
                    f"{over.good_per_second:,.0f}/s in time, {over.statuses}, unsent {over.unsent}, "
                    f"failures {over.failures}, p50 {over.p50:.0f} ms",
                    flush=True,
                )
    rows = [
        [
            title,
            harness.Spread(tuple(capacities[title])).show(),
            harness.Spread(tuple(goods[title])).show(),
            harness.Spread(tuple(shares[title])).show(),
            harness.Spread(tuple(refused[title])).show(),
        ]
        for title in capacities
    ]
    head = ["", "capacity /s", "in time /s at twice that", "goodput %", "refused at once /s"]
    text = f"{harness.machine()}; {options.rounds} rounds; median (least to most).\n\n{harness.table(head, rows)}"
    harness.publish("overload", text)


if __name__ == "__main__":
    main()
