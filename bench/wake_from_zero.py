"""Wake from zero: from sending a request to an endpoint without a server to its answer.

    .venv/bin/python bench/wake_from_zero.py [--wakes 10] [--endpoints 4]

One platform, small scikit-learn models, servers by fork. Each endpoint answers once, falls asleep, and is
asked again as soon as its server is gone; the same request is then timed once more while it is awake, so
that the table says what the wake alone costs. Endpoints take turns, one wake at a time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import urllib.request
from pathlib import Path

from harness import Platform, Spread, inferplane_platform, machine, publish, table, train, v1_body

REST_AFTER = "1s"
LIMIT_SECONDS = 60.0
POLL_SECONDS = 0.05


def ask(platform: Platform, name: str) -> float:
    """Seconds for one prediction through the gateway."""
    url = f"{platform.gateway}/serving/default/{name}/v1/models/{name}:predict"
    request = urllib.request.Request(url, v1_body(), {"content-type": "application/json"})
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=LIMIT_SECONDS) as answer:
        answer.read()
    return time.perf_counter() - began


def make(platform: Platform, name: str, model: Path) -> None:
    """An endpoint that sleeps, awake for the first time."""
    body = {
        "endpointName": name,
        "workspace": "default",
        "modelSpec": {"modelName": "sklearn", "storageURI": str(model)},
        "autoscaling": {"minReplicas": 0, "scaleToZeroAfter": REST_AFTER},
    }
    status, content = platform.call("POST", "inference-endpoint", body)
    if status != 200:
        raise SystemExit(f"not accepted: {content}")


def wait_asleep(platform: Platform, name: str) -> None:
    """Until it is asleep and no server of it is left."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        _, content = platform.call("GET", f"inference-endpoint?workspace=default&endpoint={name}")
        endpoint = content["data"]["endpoint"]
        alive = [each for each in endpoint["replicas"] if each["state"] != "Exited"]
        if endpoint["status"] == "Idle" and not alive:
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"{name} does not fall asleep: {endpoint['status']} {endpoint['message']}")
        time.sleep(POLL_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wakes", type=int, default=10)
    parser.add_argument("--endpoints", type=int, default=4)
    options = parser.parse_args()
    woken: dict[str, list[float]] = {}
    awake: list[float] = []
    with tempfile.TemporaryDirectory(prefix="ip-") as folder, inferplane_platform() as platform:
        models = {kind: train(Path(folder) / f"{kind}.joblib", kind) for kind in ("logistic", "forest")}
        names = {f"{kind}-{n}": kind for kind in models for n in range(max(options.endpoints // 2, 1))}
        for name, kind in names.items():
            make(platform, name, models[kind])
        for round_number in range(options.wakes + 1):
            for name, kind in names.items():
                wait_asleep(platform, name)
                seconds = ask(platform, name)
                if round_number:  # the first wake of all warms what is shared
                    woken.setdefault(kind, []).append(seconds)
                    awake.append(ask(platform, name))
            print(f"round {round_number} of {options.wakes}", flush=True)
    rows = [
        [
            f"{kind} regression" if kind == "logistic" else "forest of 100 trees",
            *(f"{1000 * value:,.0f}" for value in _quantiles(times)),
            str(len(times)),
        ]
        for kind, times in woken.items()
    ]
    rows.append(
        ["the same request, awake", *(f"{1000 * value:,.1f}" for value in _quantiles(awake)), str(len(awake))]
    )
    every = Spread(tuple(each for times in woken.values() for each in times))
    text = table(["scikit-learn model", "median ms", "p90 ms", "most ms", "wakes"], rows)
    publish("wake", f"{machine()}.\n\n{text}\n\nMedian of all wakes: {1000 * every.median:,.0f} ms.")


def _quantiles(times: list[float]) -> tuple[float, float, float]:
    ordered = sorted(times)
    return statistics.median(ordered), ordered[int(0.9 * (len(ordered) - 1))], ordered[-1]


if __name__ == "__main__":
    main()
