"""Spans of a real model server at a real collector, and what names a parent."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from inferplane.modelserver.config import ConfigError, otlp_collector, parse_config
from inferplane.modelserver.grpc_messages import MESSAGES, SERVICE
from inferplane.modelserver.tracing import QUEUE_SPANS_MAX, parent_of
from otlp_collector import Collector

Until = Callable[[Callable[[], Any], str], Any]
Launch = Callable[..., Any]

SERVICE_NAME = "inferplane-model-server"
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
UNSAMPLED = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
ROW = [5.1, 3.5, 1.4, 0.2]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(launch: Launch, model_files: Path, collector: Collector) -> Any:
    """A ready server whose spans go to `collector`."""
    server = launch("sklearn", model_files / "iris.joblib", name="iris", otlp_endpoint=collector.endpoint)
    server.wait_for("ready")
    return server


def trace_id(number: int) -> str:
    return f"{number:032x}"


def predict(server: Any, headers: dict[str, str], instances: Any = None) -> Any:
    return server.client.post(
        f"/v1/models/{server.name}:predict", json={"instances": instances or [ROW]}, headers=headers
    )


def test_a_sampled_request_gets_one_span_under_its_callers(
    traced: Any, collector: Collector, until: Until
) -> None:
    trace = trace_id(1)
    before = time.time_ns()
    headers = {
        "traceparent": f"00-{trace}-{CALLER}-01",
        "tracestate": "vendor=1,other=2",
        "x-request-id": "request-1",
    }
    assert predict(traced, headers, [ROW, ROW]).status_code == 200
    (span,) = until(lambda: collector.of(SERVICE_NAME, trace), "the span arrives")
    assert (span.name, span.parent_id, span.state) == ("v1 predict", CALLER, "vendor=1,other=2")
    assert len(span.span_id) == 16
    assert span.span_id != CALLER
    assert before - 10**9 < span.started <= span.ended < time.time_ns() + 10**9
    about = span.attributes
    assert about["inferplane.model"] == "iris"
    assert (about["inferplane.rows"], about["inferplane.batch.rows"]) == (2, 2)
    assert about["inferplane.batch.requests"] == 1
    assert about["inferplane.request_id"] == "request-1"
    assert about["http.response.status_code"] == 200
    lasted = (span.ended - span.started) / 1e9
    assert 0 <= about["inferplane.queue.seconds"] <= lasted
    assert 0 < about["inferplane.compute.seconds"] <= lasted
    assert span.status == {}


def test_only_failures_of_the_server_are_errors(traced: Any, collector: Collector, until: Until) -> None:
    trace = trace_id(2)
    assert predict(traced, {"traceparent": f"00-{trace}-{CALLER}-01"}, [["x"]]).status_code == 400
    (span,) = until(lambda: collector.of(SERVICE_NAME, trace), "the span arrives")
    assert span.attributes["http.response.status_code"] == 400
    assert span.status == {}


def test_a_failing_model_is_an_error_in_its_span(
    launch: Launch, model_files: Path, collector: Collector, until: Until
) -> None:
    server = launch("sklearn", model_files / "sleeper.pkl", name="sleeper", otlp_endpoint=collector.endpoint)
    server.wait_for("ready")
    trace = trace_id(3)
    answer = predict(server, {"traceparent": f"00-{trace}-{CALLER}-01"}, [[0, 13]])
    assert answer.status_code == 500
    (span,) = until(lambda: collector.of(SERVICE_NAME, trace), "the span arrives")
    assert span.status["code"] == 2
    assert "thirteen" in span.status["message"]
    # A caller that goes away leaves a span as well.
    gone = trace_id(4)
    request = MESSAGES["ModelInferRequest"](model_name="sleeper")
    request.inputs.add(name="input-0", datatype="FP64", shape=[1, 2]).contents.fp64_contents.extend([1, 1])
    with grpc.insecure_channel(str(server.config["address"])) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        asked = ask.future(request.SerializeToString(), metadata=(("traceparent", f"00-{gone}-{CALLER}-01"),))
        # This very question is in flight as well.
        both = 'in_flight_requests{model="sleeper"} 2'
        until(lambda: both in server.client.get("/metrics").text, "the model computes")
        asked.cancel()
    (span,) = until(lambda: collector.of(SERVICE_NAME, gone), "the span arrives")
    assert span.attributes["http.response.status_code"] == 499


def test_every_protocol_has_its_operation(traced: Any, collector: Collector, until: Until) -> None:
    trace = trace_id(5)
    tensor = {"name": "input-0", "datatype": "FP64", "shape": [1, 4], "data": ROW}
    headers = {"traceparent": f"00-{trace}-{CALLER}-01"}
    answer = traced.client.post("/v2/models/iris/infer", json={"inputs": [tensor]}, headers=headers)
    assert answer.status_code == 200, answer.text
    request = MESSAGES["ModelInferRequest"](model_name="iris")
    given = request.inputs.add(name="input-0", datatype="FP64", shape=[1, 4])
    given.contents.fp64_contents.extend(ROW)
    with grpc.insecure_channel(str(traced.config["address"])) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        ask(request.SerializeToString(), timeout=30, metadata=tuple(headers.items()))
    spans = until(
        lambda: found if len(found := collector.of(SERVICE_NAME, trace)) == 2 else None, "both arrive"
    )
    assert {each.name for each in spans} == {"v2 infer", "grpc ModelInfer"}
    assert all(each.attributes["inferplane.rows"] == 1 for each in spans)
    assert len({each.span_id for each in spans}) == 2


def test_requests_that_are_not_sampled_leave_nothing(traced: Any, collector: Collector, until: Until) -> None:
    assert predict(traced, UNSAMPLED).status_code == 200
    assert predict(traced, {}).status_code == 200
    assert predict(traced, {"traceparent": "nonsense"}).status_code == 200
    last = trace_id(6)
    predict(traced, {"traceparent": f"00-{last}-{CALLER}-01"})
    until(lambda: collector.of(SERVICE_NAME, last), "the last one's span arrives")
    assert collector.of(SERVICE_NAME, TRACE) == []


def test_forked_siblings_and_workers_give_different_ids(
    launch: Launch, model_files: Path, collector: Collector, until: Until
) -> None:
    trace = trace_id(7)
    servers = [
        launch(
            "sklearn",
            model_files / "iris.joblib",
            name=f"twin-{number}",
            otlp_endpoint=collector.endpoint,
            workers=1 + number,
        )
        for number in range(2)
    ]
    for server in servers:
        server.wait_for("ready")
        for _ in range(5):
            predict(server, {"traceparent": f"00-{trace}-{CALLER}-01", "connection": "close"})
    spans = until(
        lambda: found if len(found := collector.of(SERVICE_NAME, trace)) == 10 else None, "all arrive"
    )
    assert len({each.span_id for each in spans}) == 10


def test_the_last_spans_are_sent_when_the_server_ends(
    launch: Launch, model_files: Path, collector: Collector, until: Until
) -> None:
    server = launch("sklearn", model_files / "iris.joblib", name="brief", otlp_endpoint=collector.endpoint)
    server.wait_for("ready")
    trace = trace_id(8)
    predict(server, {"traceparent": f"00-{trace}-{CALLER}-01"})
    server.stop()
    until(server.ended, "it ends")
    assert len(collector.of(SERVICE_NAME, trace)) == 1


def test_a_collector_that_is_away_costs_nothing_but_spans(
    launch: Launch, model_files: Path, until: Until
) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections, and never answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        server = launch("sklearn", model_files / "iris.joblib", name="alone", otlp_endpoint=endpoint)
        server.wait_for("ready")
        # Requests sent ahead, so that the queue of spans overflows quickly.
        ahead, rounds = 16, (QUEUE_SPANS_MAX + 160) // 16
        body = b'{"instances": [[5.1, 3.5, 1.4, 0.2]]}'
        request = (
            b"POST /v1/models/alone:predict HTTP/1.1\r\nhost: m\r\ntraceparent: %b\r\n"
            b"content-length: %d\r\n\r\n%b" % (SAMPLED["traceparent"].encode(), len(body), body)
        )
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(server.config["address"].removeprefix("unix:"))
            with caller.makefile("rb") as answers:
                for _ in range(rounds):
                    caller.sendall(request * ahead)
                    for _ in range(ahead):
                        assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
                        length = 0
                        while (line := answers.readline()) != b"\r\n":
                            name, _, value = line.partition(b": ")
                            length = int(value) if name == b"content-length" else length
                        answers.read(length)
        metrics = server.client.get("/metrics").text
        assert 'inferplane_model_spans_dropped_total{model="alone"} 160' in metrics
        server.stop()
        until(server.ended, "it ends although nobody takes its spans")
    assert f"{QUEUE_SPANS_MAX} spans were not sent" in server.log()


def test_spans_wait_for_a_collector_that_comes_back(launch: Launch, model_files: Path, until: Until) -> None:
    with Collector() as collector:
        collector.status = 503
        server = launch(
            "sklearn", model_files / "iris.joblib", name="patient", otlp_endpoint=collector.endpoint
        )
        server.wait_for("ready")
        predict(server, SAMPLED)
        until(lambda: collector.posts, "the collector refuses")
        collector.status = 200
        until(lambda: collector.of(SERVICE_NAME, TRACE), "the span arrives after all")
        server.stop()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{CALLER}-00",
        f"00-{TRACE}-{CALLER}-02",
        f"00-{TRACE}-{CALLER}-01-more",
        f"ff-{TRACE}-{CALLER}-01",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{CALLER}-01",
        f"00-{TRACE}-{CALLER}",
        "\xff" * 55,
    ],
)
def test_what_names_no_sampled_parent(value: str) -> None:
    assert parent_of([(b"traceparent", value.encode("latin-1"))]) is None


def test_what_names_a_parent() -> None:
    one = (b"traceparent", SAMPLED["traceparent"].encode())
    found = parent_of([(b"host", b"m"), one, (b"tracestate", b"a=1"), (b"tracestate", b"b=2")])
    assert found is not None
    assert (found.trace_id, found.span_id, found.flags, found.state) == (TRACE, CALLER, 1, "a=1,b=2")
    later = parent_of([(b"traceparent", f"01-{TRACE}-{CALLER}-03-new".encode())])
    assert later is not None
    assert later.flags == 1
    assert parent_of([one, one]) is None
    long = parent_of([one, (b"tracestate", b"a" * 600)])
    assert long is not None
    assert long.state == ""


def test_addresses_of_collectors() -> None:
    assert str(otlp_collector("http://127.0.0.1:4318")) == "http://127.0.0.1:4318/v1/traces"
    assert str(otlp_collector("http://[::1]:4318/otlp/")) == "http://[::1]:4318/otlp/v1/traces"
    assert otlp_collector("http://collector").port == 80
    config = '{"name": "m", "format": "sklearn", "path": "/m", "address": "unix:/s", "otlp_endpoint": "%s"}'
    for wrong in (
        "127.0.0.1:4318",
        "https://a:1",
        "http://a:99999",
        "http://u:p@a:1",
        "http://a b",
        "http://",
    ):
        with pytest.raises(ConfigError, match="otlp_endpoint"):
            parse_config(config % wrong)
