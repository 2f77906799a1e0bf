"""What our gateway costs: beside the same Envoy with one fixed upstream, and beside no proxy at all.

    .venv/bin/python bench/gateway_cost.py [--seconds 3] [--rounds 5] [--connections 1 8 64]

The replica is an Envoy with one worker that answers every request by itself, on a unix socket as ours are,
so that what is measured is the way there. *Fixed* is an Envoy with nothing but a listener, one route and
one upstream. *Gateway* is what `inferplane up` runs, with one endpoint: finding routes, limits, holding the
body, retries, JSON answers, counters and the access log. Both proxies have two workers. Sides are measured
one after the other within each round; ratios and differences are taken within a round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import harness

from inferplane.gateway.envoy_words import typed, upstream_protocol
from inferplane.gateway.publisher import GatewayConfig, RoutePublisher, envoy_program
from inferplane.gateway.route_table import EndpointRoutes, Upstream

ANSWER = '{"predictions":[0,2]}'
BODY = b'{"instances":[[5.1,3.5,1.4,0.2],[6.7,3.0,5.2,2.3]]}'
PATH = "/v1/models/iris:predict"
SECTION = "gateway-cost"


def listener(address: dict[str, Any], action: dict[str, Any]) -> dict[str, Any]:
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="plain",
        route_config={
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **action}]}
            ]
        },
        http_filters=[
            {
                "name": "envoy.filters.http.router",
                "typed_config": typed("envoy.extensions.filters.http.router.v3.Router"),
            }
        ],
    )
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {
        "name": "plain",
        "address": address,
        "enable_reuse_port": False,
        "connection_balance_config": {"exact_balance": {}},
        "filter_chains": [chain],
    }


@contextmanager
def plain_envoy(folder: Path, name: str, workers: int, resources: dict[str, Any]) -> Iterator[None]:
    """An Envoy with nothing but these resources."""
    config = folder / f"{name}.json"
    config.write_text(json.dumps({"static_resources": resources}))
    command: list[str | Path] = [
        envoy_program(),
        "-c",
        config,
        "--concurrency",
        str(workers),
        "--log-level",
        "error",
    ]
    process = subprocess.Popen(
        [*command, "--disable-hot-restart"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def gateway(folder: Path, replica: str) -> Iterator[int]:
    """Our gateway with one endpoint; yields its port. Envoy serves by itself while this process measures."""
    config = GatewayConfig(folder / "gateway", port=0)

    async def start() -> RoutePublisher:
        confirmed = asyncio.Event()
        publisher = RoutePublisher(config, on_confirmed=lambda _: confirmed.set())
        await publisher.start()
        publisher.set(EndpointRoutes("uid-iris", "default", "iris", (Upstream("r1-0", replica),), ("iris",)))
        publisher.open()
        async with asyncio.timeout(30):
            await confirmed.wait()
        return publisher

    with asyncio.Runner() as runner:
        publisher = runner.run(start())
        try:
            yield publisher.port
        finally:
            runner.run(publisher.close(stop_gateway=True))


def main(seconds: float, rounds: int, connections: list[int]) -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    socket = folder / "replica.sock"
    port = harness.free_port()
    answer = {"direct_response": {"status": 200, "body": {"inline_string": ANSWER}}}
    upstream = {
        "name": "fixed",
        "type": "STATIC",
        "typed_extension_protocol_options": upstream_protocol(30),
        "load_assignment": {
            "cluster_name": "fixed",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(socket)}}}}]}],
        },
    }
    here = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    fixed = {"listeners": [listener(here, {"route": {"cluster": "fixed"}})], "clusters": [upstream]}
    try:
        with ExitStack() as stack:
            replica = {"listeners": [listener({"pipe": {"path": str(socket)}}, answer)]}
            stack.enter_context(plain_envoy(folder, "replica", 1, replica))
            stack.enter_context(plain_envoy(folder, "fixed", 2, fixed))
            ours = stack.enter_context(gateway(folder, f"unix:{socket}"))
            json_body = "content-type: application/json"
            sides = [
                harness.Server("straight", f"unix:{socket}:{PATH}", BODY, (json_body,)),
                harness.Server("fixed", f"http://127.0.0.1:{port}{PATH}", BODY, (json_body,)),
                harness.Server(
                    "gateway", f"http://127.0.0.1:{ours}/serving/default/iris{PATH}", BODY, (json_body,)
                ),
            ]
            measured: dict[tuple[str, int], list[harness.Figures]] = {}
            for _ in range(rounds):
                for count in connections:
                    for side in sides:
                        figures = harness.measure(side, connections=count, seconds=seconds)
                        assert not figures.bad, (side.name, figures)
                        measured.setdefault((side.name, count), []).append(figures)
    finally:
        shutil.rmtree(folder)
    rows = []
    for count in connections:
        straight, plain = measured["straight", count], measured["fixed", count]
        for side in sides:
            found = measured[side.name, count]
            rate = harness.Spread(tuple(each.answers_per_second for each in found))
            p50 = harness.Spread(tuple(each.p50 for each in found))
            added = harness.Spread(tuple(a.p50 - b.p50 for a, b in zip(found, straight, strict=True)))
            share = harness.Spread(
                tuple(
                    a.answers_per_second / b.answers_per_second * 100
                    for a, b in zip(found, plain, strict=True)
                )
            )
            rows.append(
                (f"{side.name}, {count} conn.", rate.show(), p50.show(3), added.show(3), share.show())
            )
    head = ("side", "requests/s", "p50, ms", "p50 added to straight, ms", "throughput, % of fixed")
    load = os.getloadavg()[0]
    harness.publish(
        SECTION, f"{harness.table(head, rows)}\n\n{harness.machine()}; load {load:.1f} at the end."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64])
    arguments = parser.parse_args()
    main(arguments.seconds, arguments.rounds, arguments.connections)
