"""One trace from a client through the gateway to the model server, awake and asleep, everything real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from otlp_collector import Collector
from platform_stack import Stack, wait_for

GATEWAY, SERVER = "inferplane-gateway", "inferplane-model-server"
CALLER = "b7ad6b7169203331"
ROW = [[5.1, 3.5, 1.4, 0.2]]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture
def traced(home: Path, collector: Collector) -> Iterator[Stack]:
    """A platform that sends its spans to `collector`."""
    one = Stack(home, {"INFERPLANE_OTLP_ENDPOINT": collector.endpoint})
    try:
        one.start()
        yield one
        if one.process is not None and one.process.poll() is None:
            one.stop()
    finally:
        for process in one.processes():
            process.kill()


def ask(stack: Stack, name: str, trace: str, flags: str) -> None:
    answer = httpx.post(
        f"{stack.gateway}/serving/default/{name}/v1/models/{name}:predict",
        json={"instances": ROW},
        headers={"traceparent": f"00-{trace}-{CALLER}-{flags}", "tracestate": "vendor=1"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"]


def test_a_trace_goes_from_the_client_to_the_model_server(
    traced: Stack, collector: Collector, iris_model: Path
) -> None:
    def check(name: str, trace: str) -> None:
        (gateway,) = wait_for(lambda: collector.of(GATEWAY, trace), "the gateway's span")
        (server,) = wait_for(lambda: collector.of(SERVER, trace), "the model server's span")
        assert (gateway.parent_id, server.parent_id) == (CALLER, gateway.span_id)
        assert server.state == "vendor=1"
        assert (server.name, server.attributes["inferplane.model"]) == ("v1 predict", name)
        assert server.attributes["inferplane.request_id"] == gateway.attributes["inferplane.request_id"]
        assert gateway.attributes["inferplane.endpoint"] == f"{name}.default"

    traced.create("iris", str(iris_model))
    traced.wait_until("iris", "Running")
    ask(traced, "iris", f"{1:032x}", "01")
    check("iris", f"{1:032x}")
    ask(traced, "iris", f"{2:032x}", "00")

    body: dict[str, Any] = {
        "endpointName": "sleepy",
        "workspace": "default",
        "clusterName": "local",
        "modelSpec": {"modelName": "sklearn", "storageURI": str(iris_model)},
        "autoscaling": {"minReplicas": 0, "scaleToZeroAfter": "1s"},
    }
    status, answer = traced.request("POST", "inference-endpoint", body)
    assert status == 200, answer
    traced.wait_until("sleepy", "Idle")
    # The activator lies between, and makes no span of its own.
    ask(traced, "sleepy", f"{3:032x}", "01")
    check("sleepy", f"{3:032x}")
    assert not collector.of(GATEWAY, f"{2:032x}") + collector.of(SERVER, f"{2:032x}")
