"""Starting, being killed, being adopted, draining and stopping: what a running gateway must survive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from gateway_world import Request, World, client, echo, eventually, publish, routes
from inferplane.domain.errors import Invalid, Unavailable
from inferplane.gateway.publisher import RoutePublisher

PREDICT = "/serving/default/iris/v1/models/iris:predict"


async def test_a_killed_envoy_comes_back_on_the_same_port_with_its_routes(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream))
    first, port = gateway.pid, gateway.port
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: "started again" in gateway.problem(), "the death to be noticed")
    await eventually(lambda: gateway.problem() == "", "the gateway to be back")
    assert (gateway.pid != first, gateway.port) == (True, port)
    async with client(gateway) as http:
        assert (await http.get(PREDICT)).status_code == 200


async def test_clients_that_try_again_get_through_after_envoy_was_killed(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream))
    async with client(gateway) as http:  # its connections are kept, and end with Envoy
        assert (await http.get(PREDICT)).status_code == 200
        os.kill(gateway.pid, signal.SIGKILL)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 20
        answers: list[int] = []
        while not answers:
            assert loop.time() < deadline
            with contextlib.suppress(httpx.TransportError):
                answers.append((await http.get(PREDICT)).status_code)
        assert answers == [200], "the first answer is the replica's: no port without routes in between"


async def test_routes_set_while_envoy_is_dead_are_there_when_it_is_back(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    os.kill(gateway.pid, signal.SIGKILL)
    await publish(gateway, routes(replica.upstream))
    async with client(gateway) as http:
        assert (await http.get(PREDICT)).status_code == 200


async def test_envoy_serves_without_a_control_plane_and_is_adopted_by_the_next(world: World) -> None:
    replica = await world.replica()
    first = await world.gateway()
    wanted = routes(replica.upstream, max_request_bytes=12345, timeout_seconds=7.5)
    await publish(first, wanted)
    await first.close(stop_gateway=False)
    async with client(first) as http:
        assert (await http.get(PREDICT)).status_code == 200

        second = world.unopened()
        await second.start()
        assert (second.pid, second.port) == (first.pid, first.port)
        # Known before anything is set: what Envoy was told by the first.
        assert second.confirmed(wanted.uid) == wanted
        assert (await http.get(PREDICT)).status_code == 200
        assert second.problem() == "the gateway has not taken up its routes yet"

        second.set(wanted)
        second.open()
        await eventually(lambda: second.problem() == "", "the second to be ready")
        assert (await http.get(PREDICT)).status_code == 200

        # And the adopted Envoy is supervised like its own.
        os.kill(second.pid, signal.SIGKILL)
        await eventually(lambda: second.problem() != "", "the death to be noticed")
        await eventually(lambda: second.problem() == "", "the gateway to be back")
        assert (await http.get(PREDICT)).status_code == 200


async def test_what_the_next_control_plane_does_not_want_is_forgotten_when_it_opens(world: World) -> None:
    replica = await world.replica()
    first = await world.gateway()
    await publish(first, routes(replica.upstream))
    await first.close(stop_gateway=False)
    second = world.unopened()
    await second.start()
    assert second.confirmed("uid-iris") is not None
    second.open()
    await eventually(lambda: second.confirmed("uid-iris") is None, "the old routes to go")
    async with client(second) as http:
        assert (await http.get(PREDICT)).status_code == 404


async def test_an_envoy_started_otherwise_is_replaced(world: World) -> None:
    replica = await world.replica()
    first = await world.gateway()
    await publish(first, routes(replica.upstream))
    await first.close(stop_gateway=False)
    second = await world.gateway(port=_free_port())
    assert second.pid != first.pid
    assert not psutil.pid_exists(first.pid) or psutil.Process(first.pid).status() == psutil.STATUS_ZOMBIE
    assert second.port != first.port


async def test_an_envoy_is_replaced_under_load_without_losing_a_request(world: World) -> None:
    replica = await world.replica()
    current = await world.gateway(port=_free_port(), former_seconds=1)
    await publish(current, routes(replica.upstream))
    stop, statuses = asyncio.Event(), list[int]()
    answered = asyncio.Event()

    async def load(*, anew: bool) -> None:
        """On one connection for as long as it lasts, or on a new one for each request."""
        async with client(current) as http:
            while not stop.is_set():
                headers = {"connection": "close"} if anew else {}
                statuses.append((await http.post(PREDICT, content=b"{}", headers=headers)).status_code)
                answered.set()

    clients = [asyncio.create_task(load(anew=number % 2 == 0)) for number in range(8)]
    seen = [current.pid]
    for workers in (3, 1, 2):
        answered.clear()
        async with asyncio.timeout(20):
            await answered.wait()
        await current.close(stop_gateway=False)
        former, port = psutil.Process(current.pid), current.port
        current = world.unopened(port=port, workers=workers, former_seconds=1)
        await current.start()
        current.set(routes(replica.upstream))
        current.open()
        seen.append(current.pid)
        await eventually(partial(_ended, former), "the former one to end")
        answered.clear()
        async with asyncio.timeout(20):
            await answered.wait()
    stop.set()
    await asyncio.gather(*clients)
    assert len(set(seen)) == 4
    assert set(statuses) == {200}
    assert len(statuses) > 100


async def test_an_envoy_that_nobody_can_take_over_from_is_ended_first(world: World) -> None:
    replica = await world.replica()
    first = await world.gateway(port=_free_port())
    await publish(first, routes(replica.upstream))
    await first.close(stop_gateway=False)
    former = psutil.Process(first.pid)
    running = world.folder / "gateway" / "running.json"
    running.write_text(running.read_text().replace('"epoch": 0', '"epoch": 7'))  # so the next looks for no. 8
    second = world.unopened(port=first.port, workers=1)
    await second.start()
    second.set(routes(replica.upstream))
    second.open()
    assert _ended(former)
    async with client(second) as http:
        assert (await http.get(PREDICT)).status_code == 200


async def test_an_envoy_whose_successor_dies_is_not_forgotten(world: World) -> None:
    first = await world.gateway(port=_free_port(), former_seconds=1)
    await first.close(stop_gateway=False)
    former = psutil.Process(first.pid)
    second = await world.gateway(port=first.port, workers=1, former_seconds=1)
    os.kill(second.pid, signal.SIGKILL)
    await eventually(lambda: second.problem() != "", "the death to be noticed")
    await eventually(lambda: second.problem() == "", "the gateway to be back")
    await eventually(partial(_ended, former), "the one before to end")


async def test_swapping_replicas_under_load_loses_no_request(world: World) -> None:
    async def takes_a_moment(request: Request) -> AsyncIterator[bytes]:
        await asyncio.sleep(0.005)
        async for piece in echo(request):
            yield piece

    gateway = await world.gateway()
    current = await world.replica("r1-0", takes_a_moment)
    await publish(gateway, routes(current.upstream))
    stop = asyncio.Event()
    statuses: list[int] = []

    async def load(http: httpx.AsyncClient) -> None:
        while not stop.is_set():
            statuses.append((await http.post(PREDICT, content=b"{}")).status_code)

    async with client(gateway) as http:
        clients = [asyncio.create_task(load(http)) for _ in range(8)]
        for revision in range(2, 12):
            following = await world.replica(f"r{revision}-0", takes_a_moment)
            gateway.set(routes(following.upstream))

            def dropped(name: str = current.name) -> bool:
                found = gateway.confirmed("uid-iris")
                return found is not None and name not in {u.replica for u in found.upstreams}

            await eventually(dropped, "the old replica to be dropped")
            await current.stop()
            current = following
        stop.set()
        await asyncio.gather(*clients)
    assert len(statuses) > 50
    assert set(statuses) == {200}


async def test_an_endpoint_that_is_removed_answers_what_it_accepted(world: World) -> None:
    release = asyncio.Event()

    async def slow(request: Request) -> AsyncIterator[bytes]:
        await release.wait()
        async for piece in echo(request):
            yield piece

    replica = await world.replica("r1-0", slow)
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream))
    async with client(gateway) as http:
        accepted = asyncio.create_task(http.post(PREDICT, content=b"{}"))
        await eventually(lambda: replica.requests, "the request to reach the replica")
        gateway.remove("uid-iris")
        assert gateway.confirmed("uid-iris") is not None, "it may still be sent to"
        await eventually(lambda: gateway.confirmed("uid-iris") is None, "the endpoint to be gone")
        assert (await http.post(PREDICT, content=b"{}")).status_code == 404
        release.set()
        assert (await accepted).status_code == 200
    await eventually(lambda: "iris" not in _config_dump(gateway), "the endpoint to be nowhere in Envoy")


async def test_stopping_the_gateway_answers_what_it_accepted_and_leaves_nothing(world: World) -> None:
    release = asyncio.Event()

    async def slow(request: Request) -> AsyncIterator[bytes]:
        await release.wait()
        async for piece in echo(request):
            yield piece

    replica = await world.replica("r1-0", slow)
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream))
    async with client(gateway) as http:
        accepted = asyncio.create_task(http.post(PREDICT, content=b"{}"))
        await eventually(lambda: replica.requests, "the request to reach the replica")
        closing = asyncio.create_task(gateway.close(stop_gateway=True))
        await asyncio.sleep(0)
        release.set()
        assert (await accepted).status_code == 200
        await closing
    assert not psutil.pid_exists(gateway.pid) or _ended(psutil.Process(gateway.pid))
    assert not (world.folder / "gateway" / "admin.sock").exists()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", gateway.port), timeout=1)
    world.publishers.remove(gateway)


async def test_confirmations_are_told(world: World) -> None:
    replica, other = await world.replica("r1-0"), await world.replica("r2-0")
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream))
    assert world.confirmations == ["uid-iris"]
    gateway.set(routes(replica.upstream, other.upstream))
    gateway.set(routes(other.upstream))
    gateway.set(routes(other.upstream))
    await eventually(
        lambda: gateway.confirmed("uid-iris") == routes(other.upstream), "the first replica to be dropped"
    )
    told = len(world.confirmations)
    assert told >= 2
    gateway.remove("uid-iris")
    await eventually(lambda: gateway.confirmed("uid-iris") is None, "the endpoint to be gone")
    assert world.confirmations[told:] == ["uid-iris"]


async def test_a_replica_that_was_wanted_for_a_moment_is_not_forgotten_too_early(world: World) -> None:
    """Whatever was once written may be in use until Envoy has confirmed something newer."""
    replica, other = await world.replica("r1-0"), await world.replica("r2-0")
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream))
    gateway.set(routes(replica.upstream, other.upstream))
    journal = world.folder / "gateway" / "told.jsonl"
    await eventually(lambda: "r2-0" in journal.read_text(), "the second replica to be told")
    gateway.set(routes(replica.upstream))
    found = gateway.confirmed("uid-iris")
    assert found is not None
    assert "r2-0" in {upstream.replica for upstream in found.upstreams}
    await eventually(
        lambda: gateway.confirmed("uid-iris") == routes(replica.upstream), "the second to be dropped"
    )


async def test_two_gateways_on_one_machine_do_not_meet(world: World) -> None:
    one, two = await world.gateway(), await world.gateway(directory=world.folder / "other")
    replica = await world.replica()
    await publish(one, routes(replica.upstream))
    assert one.port != two.port
    async with client(one) as first, client(two) as second:
        assert (await first.get(PREDICT)).status_code == 200
        assert (await second.get(PREDICT)).status_code == 404


async def test_the_admin_interface_is_a_private_socket_and_nothing_else(world: World) -> None:
    gateway = await world.gateway()
    listening = [
        connection.laddr.port
        for connection in psutil.Process(gateway.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {gateway.port}
    admin = world.folder / "gateway" / "admin.sock"
    assert stat.S_IMODE(admin.stat().st_mode) == 0o600
    assert stat.S_IMODE(admin.parent.stat().st_mode) == 0o700
    async with client(gateway) as http:
        for path in ("/stats", "/config_dump", "/quitquitquit", "/ready"):
            assert (await http.post(path)).status_code == 404


async def test_nothing_of_our_environment_reaches_envoy(world: World) -> None:
    gateway = await world.gateway()
    assert psutil.Process(gateway.pid).environ() == {}


async def test_a_folder_with_a_long_name_gets_a_short_private_place_for_its_socket(world: World) -> None:
    directory = world.folder / ("long" * 30) / "gateway"
    gateway = await world.gateway(directory=directory)
    replica = await world.replica()
    await publish(gateway, routes(replica.upstream))
    sockets = [
        Path(str(found.laddr))
        for found in psutil.Process(gateway.pid).net_connections("unix")
        if str(found.laddr).endswith("admin.sock")
    ]
    assert sockets
    folder = sockets[0].parent
    assert folder.parent == Path(tempfile.gettempdir())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    await gateway.close(stop_gateway=True)
    assert not folder.exists()


async def test_a_port_in_use_is_said_with_what_to_do(world: World) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        gateway = world.unopened(port=port)
        with pytest.raises(Unavailable) as refused:
            await gateway.start()
    assert refused.value.reason == "PortUnavailable"
    assert str(port) in refused.value.message
    assert "INFERPLANE_GATEWAY_PORT" in refused.value.next_action


async def test_a_port_taken_while_envoy_is_dead_is_said_and_tried_again(world: World) -> None:
    gateway = await world.gateway()
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        os.kill(gateway.pid, signal.SIGKILL)

        def taken() -> bool:
            with contextlib.suppress(OSError):
                stranger.bind(("127.0.0.1", gateway.port))
                stranger.listen()
                return True
            return False

        await eventually(taken, "the port to be free for a stranger")
        await eventually(lambda: "listen on" in gateway.problem(), "the trouble to be told")
    await eventually(lambda: gateway.problem() == "", "the gateway to be back")


async def test_a_host_that_means_nothing_is_refused(world: World) -> None:
    with pytest.raises(Invalid):
        await world.unopened(host="no such host").start()


async def test_a_chosen_port_is_kept(world: World) -> None:
    first = await world.gateway()
    await first.close(stop_gateway=True)
    second = await world.gateway()
    assert second.port == first.port


async def test_a_journal_of_no_sense_does_not_keep_the_gateway_from_starting(world: World) -> None:
    replica = await world.replica()
    first = await world.gateway()
    await publish(first, routes(replica.upstream))
    await first.close(stop_gateway=False)
    journal = world.folder / "gateway" / "told.jsonl"
    journal.write_text('{"uid":7}\nnonsense\n' + journal.read_text() + '{"uid":"uid-iris","rou')
    second = world.unopened()
    await second.start()
    assert second.confirmed("uid-iris") == routes(replica.upstream)
    second.set(routes(replica.upstream))
    second.open()
    await eventually(lambda: second.problem() == "", "the gateway to be ready")
    async with client(second) as http:
        assert (await http.get(PREDICT)).status_code == 200


async def test_what_envoy_refuses_is_told_of_that_endpoint_and_the_others_go_on(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    good = [routes(replica.upstream, endpoint=f"good{number}") for number in range(20)]
    other = replace(replica.upstream, replica="r2-0")
    bad = routes(replica.upstream, other, sticky_header="no\nheader")
    gateway.set(bad)
    await publish(gateway, *good)
    await eventually(lambda: gateway.refusal("uid-iris"), "the refusal to be told")
    assert "refuses the routes of this endpoint" in gateway.refusal("uid-iris")
    assert "HeaderName" in gateway.refusal("uid-iris"), "Envoy's own words are part of it"
    assert "uid-iris" in world.confirmations
    assert gateway.confirmed("uid-iris") is None
    assert gateway.problem() == ""
    assert not any(gateway.refusal(one.uid) for one in good)

    await publish(gateway, routes(replica.upstream, other, sticky_header="x-user"))
    assert gateway.refusal("uid-iris") == ""


async def test_a_refused_change_leaves_the_former_routes_and_their_replicas_in_use(world: World) -> None:
    replica, other = await world.replica("r1-0"), await world.replica("r2-0")
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream))
    third = replace(other.upstream, replica="r3-0")
    gateway.set(routes(other.upstream, third, sticky_header="no\nheader"))
    await eventually(lambda: gateway.refusal("uid-iris"), "the refusal to be told")
    found = gateway.confirmed("uid-iris")
    assert found is not None
    assert "r1-0" in {upstream.replica for upstream in found.upstreams}
    async with client(gateway) as http:
        assert (await http.get(PREDICT)).status_code == 200
    assert replica.requests


async def test_an_envoy_that_hangs_is_told_and_catches_up(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    os.kill(gateway.pid, signal.SIGSTOP)
    try:
        gateway.set(routes(replica.upstream))
        await eventually(lambda: "does not answer" in gateway.problem(), "the silence to be told")
        assert gateway.confirmed("uid-iris") is None
    finally:
        os.kill(gateway.pid, signal.SIGCONT)
    await eventually(lambda: gateway.problem() == "", "the gateway to be well again")
    # It answers upstreams first: well again is not yet all taken up.
    wanted = routes(replica.upstream)
    await eventually(lambda: gateway.confirmed("uid-iris") == wanted, "the routes to be taken up")


async def test_a_name_that_cannot_be_routed_harms_nobody_else(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    for name in ("", "a\nb", "*", "a.b", "%REQ(x)%"):
        gateway.set(routes(replica.upstream, endpoint=name))
    await publish(gateway, routes(replica.upstream))
    await eventually(lambda: gateway.problem() == "", "the rest to be routed")
    assert gateway.confirmed("uid-*") is None


async def test_a_folder_that_cannot_be_used_is_said(world: World) -> None:
    in_the_way = world.folder / "file"
    in_the_way.write_text("")
    with pytest.raises(Unavailable, match="cannot be used"):
        world.unopened(directory=in_the_way / "gateway")


async def test_hundreds_of_endpoints_come_and_go(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    many = [routes(replica.upstream, endpoint=f"e{number}") for number in range(200)]
    for one in many:
        gateway.set(one)
    await eventually(lambda: all(gateway.confirmed(one.uid) == one for one in many), "all to be routed")
    async with client(gateway) as http:
        for number in (0, 99, 199):
            assert (await http.get(f"/serving/default/e{number}/v2")).status_code == 200
        for one in many:
            gateway.remove(one.uid)
        await eventually(lambda: all(gateway.confirmed(one.uid) is None for one in many), "all to be gone")
        assert (await http.get("/serving/default/e0/v2")).status_code == 404
    await eventually(lambda: "/e1" not in _config_dump(gateway), "all to be nowhere in Envoy")
    assert gateway.problem() == ""


def _config_dump(gateway: RoutePublisher) -> str:
    """Everything that Envoy is configured with."""
    transport = httpx.HTTPTransport(uds=str(gateway.admin_socket))
    with httpx.Client(transport=transport, base_url="http://admin", trust_env=False) as admin:
        return admin.get("/config_dump").text


def _ended(process: psutil.Process) -> bool:
    """Whether it has ended, though perhaps nobody waited for it yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])
