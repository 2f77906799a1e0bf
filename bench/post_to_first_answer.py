"""From POST to the first 200: a fresh interpreter per model server against servers by fork.

    .venv/bin/python bench/post_to_first_answer.py [--endpoints 20] [--rounds 3]

Two platforms stand side by side on this machine, one with `fork_servers = false`, one with `true`,
both idle but for the endpoint being measured. The rounds alternate between them; each round makes
`--endpoints` endpoints one after the other (a small scikit-learn model already on disk), measures
from sending POST to the first answered prediction through the gateway, deletes it and waits until
it is gone. Bare times depend on the machine; the ratio of the medians is what to quote.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

ROW = [[5.1, 3.5, 1.4, 0.2]]
POLL_SECONDS = 0.002
LIMIT_SECONDS = 120.0


@dataclass
class Side:
    """One of the two platforms."""

    name: str
    process: subprocess.Popen[str]
    api: str
    gateway: str
    token: str

    def call(self, method: str, path: str, body: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.request(
            method, f"{self.api}/api/v1/{path}", headers=headers, content=json.dumps(body), timeout=60
        )

    def post_to_first_answer(self, name: str, model: Path) -> float:
        """Seconds from sending the POST to the first prediction that is a 200."""
        body = {
            "endpointName": name,
            "workspace": "default",
            "modelSpec": {"modelName": "sklearn", "storageURI": str(model)},
        }
        url = f"{self.gateway}/serving/default/{name}/v1/models/{name}:predict"
        with httpx.Client(timeout=60) as client:
            began = time.perf_counter()
            accepted = self.call("POST", "inference-endpoint", body)
            if accepted.status_code != 200:
                raise SystemExit(f"not accepted: {accepted.text}")
            while client.post(url, json={"instances": ROW}).status_code != 200:
                if time.perf_counter() - began > LIMIT_SECONDS:
                    raise SystemExit(f"{name} did not answer within {LIMIT_SECONDS:.0f} s")
                time.sleep(POLL_SECONDS)
            return time.perf_counter() - began

    def delete(self, name: str) -> None:
        """Delete and wait until it is gone, so that the next one finds an idle platform."""
        self.call("DELETE", "inference-endpoint", {"endpoint": name, "workspace": "default"})
        while (
            self.call("GET", f"inference-endpoint?workspace=default&endpoint={name}", {}).status_code != 404
        ):
            time.sleep(0.02)


def start(name: str, home: Path, *, fork_servers: bool) -> Side:
    """Start a platform and wait for its line of readiness."""
    environment = os.environ | {
        "INFERPLANE_HOME": str(home),
        "INFERPLANE_API_PORT": "0",
        "INFERPLANE_GATEWAY_PORT": "0",
        "INFERPLANE_FORK_SERVERS": str(fork_servers).lower(),
        "INFERPLANE_LOG_LEVEL": "error",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "inferplane", "up"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    words = process.stdout.readline().split()
    api, gateway = words[words.index("api") + 1], words[words.index("gateway") + 1]
    key = (home / "owner.key").read_text().strip()
    token = httpx.post(f"{api}/api/v1/auth", json={"apiKey": key}).json()["data"]["token"]
    return Side(name, process, api, gateway, token)


def train(path: Path) -> Path:
    """A small model, on disk before anything is measured."""
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    data = load_iris()
    joblib.dump(LogisticRegression(max_iter=500).fit(data.data, data.target), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--endpoints", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ip-") as folder:
        model = train(Path(folder) / "model.joblib")
        sides = [
            start("fresh interpreter", Path(folder) / "fresh", fork_servers=False),
            start("fork", Path(folder) / "fork", fork_servers=True),
        ]
        medians: dict[str, list[float]] = {side.name: [] for side in sides}
        try:
            for side in sides:  # first use of everything is not what is measured
                side.post_to_first_answer("warm-up", model)
                side.delete("warm-up")
            for round_number in range(options.rounds):
                for side in sides:
                    times = []
                    for index in range(options.endpoints):
                        name = f"e{round_number}-{index}"
                        times.append(side.post_to_first_answer(name, model))
                        side.delete(name)
                    medians[side.name].append(statistics.median(times))
                    print(
                        f"round {round_number + 1}  {side.name:<18} median {statistics.median(times):.3f} s"
                        f"  min {min(times):.3f}  max {max(times):.3f}",
                        flush=True,
                    )
        finally:
            for side in sides:
                side.process.send_signal(signal.SIGTERM)
            for side in sides:
                side.process.wait(60)
    fresh, fork = (statistics.median(medians[side.name]) for side in sides)
    print(f"\n{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    print(f"median of medians: fresh interpreter {fresh:.3f} s, fork {fork:.3f} s, ratio {fresh / fork:.1f}")


if __name__ == "__main__":
    main()
