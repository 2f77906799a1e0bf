"""Large V2 tensors: JSON against the binary extension.

    .venv/bin/python bench/tensors.py [--rounds 3] [--seconds 3]

A linear regression of 1,000 features; requests of 10, 100 and 500 rows of FP64 (80 kB, 800 kB, 4 MB as
numbers in memory), one connection, ours and KServe's server (which also takes the binary form) and
MLServer (JSON).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import harness
import peers

FEATURES = 1000
SIZES = (10, 100, 500)


def train(path: Path) -> Path:
    """A wide linear model."""
    import joblib
    import numpy as np
    from sklearn.linear_model import LinearRegression

    generator = np.random.default_rng(0)
    rows = generator.normal(size=(1200, FEATURES))
    joblib.dump(LinearRegression().fit(rows, rows[:, 0]), path)
    return path


def requests(rows: int) -> dict[str, tuple[bytes, tuple[str, ...]]]:
    """The same tensor in both forms: body and headers."""
    import numpy as np

    array = np.random.default_rng(rows).normal(size=(rows, FEATURES))
    tensor = {"name": "input-0", "shape": list(array.shape), "datatype": "FP64"}
    text = json.dumps({"inputs": [tensor | {"data": array.ravel().tolist()}]}).encode()
    size = {"parameters": {"binary_data_size": array.nbytes}}
    wanted = {"binary_data_output": True}
    head = json.dumps({"inputs": [tensor | size], "parameters": wanted}).encode()
    headers = ("content-type: application/octet-stream", f"inference-header-content-length: {len(head)}")
    return {
        "JSON": (text, ("content-type: application/json",)),
        "binary": (head + array.tobytes(), headers),
    }


@contextlib.contextmanager
def side(name: str, model: Path) -> Iterator[harness.Server]:
    """Start one side, to be asked over V2."""
    small = harness.v1_body([[0.0] * FEATURES])
    if name == "inferplane":
        with harness.model_server(model, body=small) as server:
            server.url = server.url.replace("/v1/models/iris:predict", "/v2/models/iris/infer")
            yield server
    else:
        with peers.V2_PEERS[name](model, FEATURES) as server:
            yield server


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--sides", nargs="+", default=["inferplane", *peers.V2_PEERS])
    options = parser.parse_args()
    times: dict[tuple[str, str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="ip-") as folder:
        model = train(Path(folder) / "model.joblib")
        for number in range(options.rounds):
            for name in options.sides:
                with side(name, model) as server:
                    for rows in SIZES:
                        for form, (body, headers) in requests(rows).items():
                            if form == "binary" and name == "mlserver":
                                continue
                            server.body, server.headers = body, headers
                            figures = harness.measure(server, connections=1, seconds=options.seconds)
                            if figures.bad or not figures.p50:
                                raise SystemExit(f"{server.name}, {form}, {rows} rows: {figures}")
                            times.setdefault((server.name, form, rows), []).append(figures.p50)
                            print(
                                f"round {number + 1}  {server.name:<16} {form:<6} {rows:>5} rows  "
                                f"p50 {figures.p50:.2f} ms",
                                flush=True,
                            )
    sides = list(dict.fromkeys((title, form) for title, form, _ in times))
    table = [
        [f"{title}, {form}", *(harness.Spread(tuple(times[title, form, rows])).show(2) for rows in SIZES)]
        for title, form in sides
    ]
    head = ["ms a request", *(f"{rows * FEATURES * 8 / 1e6:g} MB" for rows in SIZES)]
    text = (
        f"{harness.machine()}; {options.rounds} rounds, one connection; median of p50 (least to most).\n\n"
        + harness.table(head, table)
    )
    harness.publish("tensors", text)


if __name__ == "__main__":
    main()
