"""Requests per second and latency of a small model: ours and others', straight and through our gateway.

    .venv/bin/python bench/serving.py [--rounds 5] [--seconds 3] [--sides inferplane gateway kserve …]

A scikit-learn logistic regression, two rows a request, at 1, 8 and 64 connections over loopback TCP. Each
round starts every side anew, alone on the machine, and measures it; the load generator shares the machine
with all alike. `gateway` is a whole platform: the request goes through Envoy to a replica that the platform
has started. The ratios quoted are medians over the rounds, each within its round against the best peer.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import peers

CONNECTIONS = (1, 8, 64)
OURS = ("inferplane", "gateway")


@contextlib.contextmanager
def side(name: str, model: Path) -> Iterator[harness.Server]:
    """Start one side."""
    if name == "inferplane":
        with harness.model_server(model) as server:
            yield server
    elif name == "gateway":
        with harness.inferplane_platform() as started:
            yield started.deploy("iris", model)
    else:
        with peers.PEERS[name](model) as server:
            yield server


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--sides", nargs="+", default=[*OURS, *peers.PEERS])
    options = parser.parse_args()
    rounds: list[dict[tuple[str, int], harness.Figures]] = []
    titles: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="ip-") as folder:
        model = harness.train(Path(folder) / "model.joblib")
        for number in range(options.rounds):
            seen: dict[tuple[str, int], harness.Figures] = {}
            for name in options.sides:
                with side(name, model) as server:
                    titles[name] = server.name
                    for connections in CONNECTIONS:
                        figures = harness.measure(server, connections=connections, seconds=options.seconds)
                        seen[name, connections] = figures
                        print(
                            f"round {number + 1}  {server.name:<28} {connections:>3} connections "
                            f"{figures.good_per_second:>10,.0f}/s  p50 {figures.p50:.2f} ms  "
                            f"p99 {figures.p99:.2f} ms  bad {figures.bad}",
                            flush=True,
                        )
            rounds.append(seen)
    harness.publish("serving", report(options.sides, titles, rounds))


def report(
    sides: list[str], titles: dict[str, str], rounds: list[dict[tuple[str, int], harness.Figures]]
) -> str:
    """Two tables and the ratios."""
    rate_rows, time_rows = [], []
    for name in sides:
        rates = [
            harness.Spread(tuple(one[name, count].good_per_second for one in rounds)).show()
            for count in CONNECTIONS
        ]
        rate_rows.append([titles[name], *rates])
        times = []
        for count in CONNECTIONS:
            p50 = harness.Spread(tuple(one[name, count].p50 for one in rounds))
            p99 = harness.Spread(tuple(one[name, count].p99 for one in rounds))
            times.append(f"{p50.median:.2f} / {p99.median:.2f}")
        time_rows.append([titles[name], *times])
    head = [f"{count} connection{'s' if count > 1 else ''}" for count in CONNECTIONS]
    parts = [
        f"{harness.machine()}; {len(rounds)} rounds.",
        "Requests per second, median (least to most):",
        harness.table(["", *head], rate_rows),
        "Latency in milliseconds, median of p50 / median of p99:",
        harness.table(["", *head], time_rows),
    ]
    others = [name for name in sides if name not in OURS]
    if others:
        ratio_rows = []
        for name in (name for name in sides if name in OURS):
            cells = []
            for count in CONNECTIONS:
                ratios = tuple(
                    one[name, count].good_per_second
                    / max(one[peer, count].good_per_second for peer in others)
                    for one in rounds
                )
                cells.append(harness.Spread(ratios).show(1))
            ratio_rows.append([titles[name], *cells])
        parts += ["Times the best peer straight, within a round:", harness.table(["", *head], ratio_rows)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
