"""The size of batches, asked of real sockets; who does not answer, or counts none, is left out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

from gateway_world import Request, World, response
from inferplane.gateway.batches import ANSWER_BYTES_MAX, Batches, BatchMeter, batches_in
from inferplane.gateway.route_table import Upstream
from inferplane.modelserver.metrics import Metrics


def metrics_of(*rows: int) -> bytes:
    """The metrics of a model server whose calls had so many rows."""
    counted = Metrics()
    for each in rows:
        counted.on_batch(cast(Any, SimpleNamespace(requests=1, rows=each, compute_seconds=0.0, waits=())))
    return counted.render("iris", ready=True, in_flight=0, queued_rows=0).encode()


def test_a_model_server_says_its_batches() -> None:
    assert batches_in(metrics_of(3, 5)) == Batches(2, 8)
    assert batches_in(metrics_of()) == Batches()
    for text in (
        b"",
        b"other 1\n",
        b"inferplane_model_batch_rows_sum 1\n",
        b"inferplane_model_batch_rows_count x\n",
    ):
        assert batches_in(text) is None


def test_a_server_that_began_anew_has_counted_from_nothing() -> None:
    assert Batches(5, 50).since(Batches(2, 10)) == Batches(3, 40)
    assert Batches(1, 4).since(Batches(2, 10)) == Batches(1, 4)
    assert Batches().rows_of_one is None


async def test_rows_of_a_call_by_revision_since_the_last_time(world: World) -> None:
    counted = {"r1-0": metrics_of(4), "r1-1": metrics_of(8), "r2-0": metrics_of(1, 1)}

    def replica_that_says(name: str) -> Any:
        async def answer(request: Request) -> AsyncIterator[bytes]:
            assert (request.method, request.path) == ("GET", "/metrics")
            yield response(200, counted[name])
            raise ConnectionAbortedError

        return answer

    there = [await world.replica(name, replica_that_says(name)) for name in counted]
    upstreams = [each.upstream for each in there]
    meter = BatchMeter(lambda uid: upstreams if uid == "iris" else ())
    assert await meter.since_last(["iris", "other"]) == {("iris", 1): 6.0, ("iris", 2): 1.0}
    counted["r1-0"] = metrics_of(4, 10, 20)
    assert await meter.since_last(["iris"]) == {("iris", 1): 15.0}


async def test_who_does_not_answer_is_left_out(world: World) -> None:
    async def never(_: Request) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def endless(_: Request) -> AsyncIterator[bytes]:
        for _each in range(ANSWER_BYTES_MAX // 65536 + 2):
            yield b"x" * 65536

    async def strange(_: Request) -> AsyncIterator[bytes]:
        yield response(404, b'{"error": "no metrics here"}')
        raise ConnectionAbortedError

    there = [await world.replica(f"r1-{i}", how) for i, how in enumerate((never, endless, strange))]
    gone = Upstream("r1-8", f"unix:{world.folder}/gone.sock")
    elsewhere = Upstream("r1-9", "127.0.0.1:9")
    meter = BatchMeter(lambda _uid: [*(each.upstream for each in there), gone, elsewhere])
    assert await meter.since_last(["iris"]) == {}
