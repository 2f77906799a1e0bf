"""Traces through a real Envoy: what reaches replicas, and what reaches the collector."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gateway_world import Replica, World, eventually, publish, routes
from inferplane.gateway.publisher import RoutePublisher
from otlp_collector import Collector, Span

SERVICE = "inferplane-gateway"
TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
HOST = "iris.default.localhost"
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running


def from_caller(flags: str = "01", trace: str = TRACE) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{CALLER}-{flags}", "tracestate": "vendor=1"}


async def serving(world: World, **settings: Any) -> tuple[RoutePublisher, Replica]:
    """A gateway with the endpoint iris."""
    publisher = await world.gateway(**settings)
    replica = await world.replica()
    await publish(publisher, routes(replica.upstream))
    return publisher, replica


async def ask(publisher: RoutePublisher, headers: dict[str, str] | None = None, host: str = HOST) -> Any:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{publisher.port}") as client:
        return await client.post("/v1/models/iris:predict", headers={"host": host, **(headers or {})})


def parent_seen(replica: Replica) -> tuple[str, str, str]:
    """Trace, parent and flags of the last request that the replica got."""
    match = TRACEPARENT.fullmatch(replica.requests[-1].headers["traceparent"])
    assert match is not None
    return match[1], match[2], match[3]


async def span_of(collector: Collector, trace: str) -> Span:
    await eventually(lambda: collector.of(SERVICE, trace), "the gateway's span")
    (span,) = collector.of(SERVICE, trace)
    return span


async def test_without_a_collector_trace_context_passes_unchanged(world: World) -> None:
    publisher, replica = await serving(world)
    answer = await ask(publisher, from_caller())
    seen = replica.requests[-1].headers
    assert {name: seen[name] for name in from_caller()} == from_caller()
    # The id that Envoy made is the one that the replica, the caller and the log have.
    assert len(answer.headers["x-request-id"]) == 36
    assert seen["x-request-id"] == answer.headers["x-request-id"]
    await ask(publisher, {"x-request-id": "mine"})
    assert "traceparent" not in replica.requests[-1].headers
    assert replica.requests[-1].headers["x-request-id"] == "mine"


async def test_the_gateways_span_lies_between_caller_and_replica(world: World, collector: Collector) -> None:
    publisher, replica = await serving(world, otlp_endpoint=collector.endpoint)
    mine = "11111111-2222-4333-8444-555555555555"
    answer = await ask(publisher, {**from_caller(), "x-request-id": mine})
    assert answer.headers["x-request-id"] == replica.requests[-1].headers["x-request-id"] == mine
    trace, parent, flags = parent_seen(replica)
    assert (trace, flags) == (TRACE, "01")
    assert replica.requests[-1].headers["tracestate"] == "vendor=1"
    span = await span_of(collector, TRACE)
    assert (span.span_id, span.parent_id) == (parent, CALLER)
    about = span.attributes
    assert about["inferplane.endpoint"] == "iris.default"
    assert about["inferplane.uid"] == "uid-iris"
    assert about["inferplane.revision"] == "1"
    assert about["inferplane.replica"] == "r1-0"
    assert about["inferplane.request_id"] == mine
    assert about["http.status_code"] == "200"


async def test_who_brings_no_trace_begins_one(world: World, collector: Collector) -> None:
    publisher, replica = await serving(world, otlp_endpoint=collector.endpoint)
    for headers in ({}, {"x-request-id": "not-a-uuid"}):
        await ask(publisher, headers)
        trace, parent, flags = parent_seen(replica)
        assert flags == "01"
        span = await span_of(collector, trace)
        assert (span.span_id, span.parent_id) == (parent, "")


async def test_not_sampled_means_no_span(world: World, collector: Collector) -> None:
    publisher, replica = await serving(world, otlp_endpoint=collector.endpoint, trace_sample_percent=0.0)
    await ask(publisher)
    ours, _, flags = parent_seen(replica)
    assert flags == "00"
    await ask(publisher, from_caller("00"))
    trace, _, flags = parent_seen(replica)
    assert (trace, flags) == (TRACE, "00")
    # Nor by a way of Envoy's own. Only a caller's traceparent decides.
    await ask(publisher, {"x-client-trace-id": "please", "x-envoy-force-trace": "true"})
    forced, _, flags = parent_seen(replica)
    assert flags == "00"
    sampled = f"{7:032x}"
    await ask(publisher, from_caller(trace=sampled))
    await span_of(collector, sampled)
    assert [each.trace_id for each in collector.of(SERVICE)] == [sampled]
    assert len({ours, forced, TRACE}) == 3


async def test_a_malformed_trace_context_is_no_error(world: World, collector: Collector) -> None:
    publisher, _ = await serving(world, otlp_endpoint=collector.endpoint)
    for wrong in ("nonsense", f"00-{'0' * 32}-{CALLER}-01", f"ff-{TRACE}-{CALLER}-01", "x" * 5000):
        answer = await ask(publisher, {"traceparent": wrong})
        assert answer.status_code == 200


@pytest.mark.parametrize("why", ["nobody listens", "it never answers", "it fails"])
async def test_a_collector_that_is_away_costs_requests_nothing(
    world: World, collector: Collector, why: str
) -> None:
    collector.status = 500
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if why == "it never answers":
            silent.listen()
        silent_endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        endpoint = collector.endpoint if why == "it fails" else silent_endpoint
        publisher, replica = await serving(world, otlp_endpoint=endpoint)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{publisher.port}") as client:

            async def some() -> None:
                for _ in range(100):
                    answer = await client.post("/v1/models/iris:predict", headers={"host": HOST})
                    assert answer.status_code == 200

            await asyncio.gather(*(some() for _ in range(4)))
        assert len(replica.requests) == 400
        assert publisher.problem() == ""


async def test_tracing_is_turned_on_and_off_while_requests_go_on(world: World, collector: Collector) -> None:
    publisher, replica = await serving(world)
    base = f"http://127.0.0.1:{publisher.port}"
    async with httpx.AsyncClient(base_url=base) as client:

        async def ask_until(traced: bool) -> None:
            """Ask on new connections until the replica sees what is meant."""

            async def seen() -> bool:
                headers = {"host": HOST, "connection": "close"}
                answer = await client.post("/v1/models/iris:predict", headers=headers)
                assert answer.status_code == 200, answer.text
                return "traceparent" in replica.requests[-1].headers

            async with asyncio.timeout(20):
                while await seen() is not traced:
                    pass

        for endpoint in (collector.endpoint, ""):
            await publisher.close(stop_gateway=False)
            publisher = world.unopened(otlp_endpoint=endpoint)
            await publisher.start()
            publisher.set(routes(replica.upstream))
            publisher.open()
            await ask_until(traced=bool(endpoint))
            await eventually(lambda: collector.of(SERVICE), "spans while it is on")


async def test_what_the_gateway_answers_itself_has_a_span(world: World, collector: Collector) -> None:
    publisher = await world.gateway(otlp_endpoint=collector.endpoint)
    await publish(publisher, routes(unavailable_reason="Pending"))
    answer = await ask(publisher, from_caller())
    assert answer.status_code == 503
    assert json.loads(answer.text)["reason"] == "Pending"
    span = await span_of(collector, TRACE)
    assert span.attributes["http.status_code"] == "503"
    assert span.status.get("code") == "STATUS_CODE_ERROR"
