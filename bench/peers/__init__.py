"""Servers to compare with, as few lines each as their own documentation needs."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import harness

SKLEARN = "scikit-learn==1.9.1"
FOLDER = Path(__file__).parent

Peer = Callable[[Path], AbstractContextManager[harness.Server]]


@contextlib.contextmanager
def kserve(model: Path, features: int = 0) -> Iterator[harness.Server]:
    """KServe's Python server: V1, or V2 for rows of so many features."""
    python = harness.environment("kserve", ["kserve==0.21.0", SKLEARN])
    port = harness.free_port()
    server = harness.Server(
        "KServe 0.21.0", f"http://127.0.0.1:{port}/v1/models/iris:predict", harness.v1_body()
    )
    if features:
        server.url = f"http://127.0.0.1:{port}/v2/models/iris/infer"
        server.body = harness.v2_body([[0.0] * features], outputs=())
    command = [str(python), str(FOLDER / "kserve_server.py"), str(model), str(port)]
    with harness.running(server, command):
        yield server


@contextlib.contextmanager
def mlserver(model: Path, features: int = 0) -> Iterator[harness.Server]:
    """MLServer with its sklearn runtime and adaptive batching, V2, for rows of so many features."""
    python = harness.environment("mlserver", ["mlserver==1.7.1", "mlserver-sklearn==1.7.1", SKLEARN])
    http, grpc, metrics = harness.free_port(), harness.free_port(), harness.free_port()
    with tempfile.TemporaryDirectory(prefix="mlserver-") as folder:
        settings = {
            "host": "127.0.0.1",
            "http_port": http,
            "grpc_port": grpc,
            "metrics_port": metrics,
            "parallel_workers": 0,
            "debug": False,
        }
        about = {
            "name": "iris",
            "implementation": "mlserver_sklearn.SKLearnModel",
            "parameters": {"uri": str(model)},
            "max_batch_size": 64,
            "max_batch_time": 0.002,
        }
        Path(folder, "settings.json").write_text(json.dumps(settings))
        Path(folder, "model-settings.json").write_text(json.dumps(about))
        body = harness.v2_body([[0.0] * features]) if features else harness.v2_body()
        server = harness.Server("MLServer 1.7.1", f"http://127.0.0.1:{http}/v2/models/iris/infer", body)
        with harness.running(server, [str(python.with_name("mlserver")), "start", folder]):
            yield server


@contextlib.contextmanager
def bentoml(model: Path) -> Iterator[harness.Server]:
    """BentoML with adaptive batching."""
    python = harness.environment("bentoml", ["bentoml==1.4.40", SKLEARN])
    port = harness.free_port()
    server = harness.Server("BentoML 1.4.40", f"http://127.0.0.1:{port}/predict", harness.v1_body())
    command = [str(python), "-m", "bentoml", "serve", "bentoml_server:Iris", "--host", "127.0.0.1"]
    with tempfile.TemporaryDirectory(prefix="bentoml-") as home:
        extra = {"BENCH_MODEL": str(model), "BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "True"}
        with harness.running(server, [*command, "--port", str(port)], extra_env=extra, cwd=FOLDER):
            yield server


@contextlib.contextmanager
def litserve(model: Path) -> Iterator[harness.Server]:
    """LitServe with batching."""
    python = harness.environment("litserve", ["litserve==0.2.19", SKLEARN])
    port = harness.free_port()
    server = harness.Server("LitServe 0.2.19", f"http://127.0.0.1:{port}/predict", harness.v1_body())
    command = [str(python), str(FOLDER / "litserve_server.py"), str(model), str(port)]
    with harness.running(server, command):
        yield server


@contextlib.contextmanager
def ray(model: Path) -> Iterator[harness.Server]:
    """Ray Serve with batching."""
    python = harness.environment("ray", ["ray[serve]==2.60.0", SKLEARN])
    port = harness.free_port()
    server = harness.Server("Ray Serve 2.60.0", f"http://127.0.0.1:{port}/", harness.v1_body())
    command = [str(python), str(FOLDER / "ray_server.py"), str(model), str(port)]
    extra = {"RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{python.parent}:{os.environ['PATH']}"}
    with harness.running(server, command, extra_env=extra):
        yield server


PEERS: dict[str, Peer] = {
    "kserve": kserve,
    "mlserver": mlserver,
    "bentoml": bentoml,
    "litserve": litserve,
    "ray": ray,
}
#: Those that speak V2, for rows of any width.
V2_PEERS: dict[str, Callable[[Path, int], AbstractContextManager[harness.Server]]] = {
    "kserve": kserve,
    "mlserver": mlserver,
}
