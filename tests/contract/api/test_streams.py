"""Logs and watches: what comes, in which order, and that nothing is left when the client goes."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from api_world import Client, World, wait_for
from inferplane.engines.port import LogLine
from inferplane.services.context import Limits

ENDPOINT = "/api/v1/inference-endpoint"


def with_log(world: World, team: str, *lines: LogLine) -> tuple[str, str]:
    name = world.create(team)
    uid = world.stored(team, name).uid
    world.engine.lines[uid] = list(lines)
    world.engine.more[uid] = asyncio.Queue()
    return name, uid


def test_logs_are_the_last_lines(world: World, owner: Client, team: str) -> None:
    name, _ = with_log(
        world, team, *[LogLine("r1-0", f"line {n}") for n in range(5)], LogLine("r1-1", "other")
    )
    place = f"{ENDPOINT}/logs?workspace={team}&endpoint={name}"
    data = owner("GET", place).data
    assert set(data) == {"lines"}
    assert data["lines"][0] == {"replica": "r1-0", "text": "line 0"}
    assert len(data["lines"]) == 6
    assert owner("GET", f"{place}&tail=2").data["lines"][0]["text"] == "line 4"
    assert [each["text"] for each in owner("GET", f"{place}&replica=r1-1").data["lines"]] == ["other"]
    assert owner("GET", f"{place}&previous=true").data["lines"][0]["text"] == "previous line 0"
    assert world.engine.followers == 0


def test_no_log_is_404_also_when_followed(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    place = f"{ENDPOINT}/logs?workspace={team}&endpoint={name}"
    for query in ("", "&follow=true", "&replica=r9-9", "&follow=maybe"):
        reply = owner("GET", place + query)
        if query == "&follow=maybe":
            reply.is_error(422, "INVALID", "WrongType")
        else:
            reply.is_error(404, "NOT_FOUND", "NoLog")


def test_logs_of_a_cluster_without_engine_are_503(world: World, owner: Client) -> None:
    team = world.workspace("edge")
    name = world.create(team)
    reply = owner("GET", f"{ENDPOINT}/logs?workspace={team}&endpoint={name}")
    reply.is_error(503, "UNAVAILABLE", "ClusterUnreachable")
    assert reply.headers["retry-after"]


def test_followed_logs_come_as_they_are_printed(world: World, owner: Client, team: str) -> None:
    name, uid = with_log(world, team, LogLine("r1-0", "old"))
    with owner.stream(f"{ENDPOINT}/logs", workspace=team, endpoint=name, follow="true") as events:
        assert events.next_event() == ("LINE", {"replica": "r1-0", "text": "old"})
        assert events.next() == ("", "still here")
        world.do(world.engine.more[uid].put(LogLine("r1-0", "two\nlines: ü")))
        assert events.next_event() == ("LINE", {"replica": "r1-0", "text": "two\nlines: ü"})
    wait_for(lambda: world.engine.followers == 0, "the engine's log to be let go")


def test_a_followed_log_without_a_line_yet_begins_at_once(world: World, owner: Client, team: str) -> None:
    name, uid = with_log(world, team)
    with owner.stream(f"{ENDPOINT}/logs", workspace=team, endpoint=name, follow="true") as events:
        assert events.next() == ("", "still here")
        world.do(world.engine.more[uid].put(LogLine("r1-0", "first")))
        assert events.next_event() == ("LINE", {"replica": "r1-0", "text": "first"})
    wait_for(lambda: world.engine.followers == 0, "the engine's log to be let go")


def test_an_error_in_the_middle_is_an_event(world: World, owner: Client, team: str) -> None:
    name, uid = with_log(world, team, LogLine("r1-0", "old"))
    with owner.stream(f"{ENDPOINT}/logs", workspace=team, endpoint=name, follow="true") as events:
        world.do(world.engine.more[uid].put(None))
        rest = [each for each in events.rest() if each[0]]
    assert [kind for kind, _ in rest] == ["LINE", "ERROR"]
    assert "taken away" in rest[1][1]["message"]
    assert "hunter2" not in rest[1][1]["message"]


def test_a_watch_begins_with_everything_and_goes_on_with_changes(
    world: World, owner: Client, team: str
) -> None:
    first = world.create(team)
    with owner.stream(f"{ENDPOINT}/watch", workspace=team) as events:
        kind, item = events.next()
        assert (kind, item["endpointName"], item["status"]) == ("ADDED", first, "Pending")
        listed = owner("GET", f"{ENDPOINT}/list?workspace={team}").data["endpoints"]
        assert item == listed[0]
        assert events.next() == ("", "that was all; changes follow")
        world.run(team, first)
        kind, item = events.next_event()
        assert (kind, item["status"]) == ("MODIFIED", "Running")
        second = world.create(team)
        kind, item = events.next_event()
        assert (kind, item["endpointName"]) == ("ADDED", second)
        owner("DELETE", ENDPOINT, {"workspace": team, "endpoint": first}).ok()
        kind, item = events.next_event()
        assert (kind, item["status"]) == ("MODIFIED", "Terminating")
        world.finish_deletion(team, first)
        kind, item = events.next_event()
        assert (kind, item["endpointName"]) == ("DELETED", first)
        assert events.next() == ("", "still here")


def test_a_watch_is_silent_about_what_does_not_show(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    world.run(team, name)
    other = world.workspace()
    with owner.stream(f"{ENDPOINT}/watch", workspace=team) as events:
        assert events.next()[0] == "ADDED"
        world.run(team, name)  # saved again, nothing new in it
        world.create(other)
        last = world.create(team)
        kind, item = events.next_event()
        assert (kind, item["endpointName"]) == ("ADDED", last)


def test_a_filtered_watch_follows_what_comes_and_goes(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    with owner.stream(f"{ENDPOINT}/watch", workspace=team, status="Running") as events:
        assert events.next()[0] == ""
        world.run(team, name)
        kind, item = events.next_event()
        assert (kind, item["endpointName"], item["status"]) == ("ADDED", name, "Running")
        owner("DELETE", ENDPOINT, {"workspace": team, "endpoint": name}).ok()
        kind, item = events.next_event()
        assert (kind, item["endpointName"]) == ("DELETED", name)


def test_a_viewer_watches_only_what_is_theirs(world: World, team: str) -> None:
    theirs = world.workspace()
    viewer = world.client("Viewer", team)
    with viewer.stream(f"{ENDPOINT}/watch") as events:
        assert events.next()[0] == ""
        world.create(theirs)
        mine = world.create(team)
        assert events.next_event()[1]["endpointName"] == mine
    viewer("GET", f"{ENDPOINT}/watch?workspace={theirs}").is_error(404, "NOT_FOUND")


def test_a_watch_ends_with_the_key(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    viewer = world.client("Viewer", team)
    with viewer.stream(f"{ENDPOINT}/watch") as events:
        assert events.next()[0] == "ADDED"
        owner("DELETE", "/api/v1/api-key", {"apiKey": viewer.key}).ok()
        world.run(team, name)
        assert all(kind == "" for kind, _ in events.rest())


def test_a_followed_log_that_is_never_silent_ends_with_the_key_too(
    world: World, owner: Client, team: str
) -> None:
    name, uid = with_log(world, team, LogLine("r1-0", "old"))
    viewer = world.client("Viewer", team)
    gone = threading.Event()

    def chatter() -> None:
        while not gone.is_set():
            world.do(world.engine.more[uid].put(LogLine("r1-0", "again")))
            gone.wait(0.01)

    printer = threading.Thread(target=chatter)
    with viewer.stream(f"{ENDPOINT}/logs", endpoint=name, follow="true") as events:
        assert events.next_event()[0] == "LINE"
        printer.start()
        owner("DELETE", "/api/v1/api-key", {"apiKey": viewer.key}).ok()
        assert {kind for kind, _ in events.rest()} <= {"LINE", ""}
    gone.set()
    printer.join()


def test_nothing_is_left_when_watchers_go(world: World, owner: Client, team: str) -> None:
    def open_streams() -> float:
        lines = world.http.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith("inferplane_api_streams ")).split()[1])

    before = open_streams()
    with owner.stream(f"{ENDPOINT}/watch", workspace=team) as events:
        events.next()
        assert open_streams() == before + 1
    wait_for(lambda: open_streams() == before, "the stream to be closed")


def test_filters_of_a_watch_are_checked_before_it_begins(owner: Client, team: str) -> None:
    owner("GET", f"{ENDPOINT}/watch?workspace={team}&status=Sleepy").is_error(422, "INVALID", "UnknownStatus")
    owner("GET", f"{ENDPOINT}/watch?workspace=nowhere").is_error(404, "NOT_FOUND")


def test_streams_are_bounded_and_end_with_the_api(tmp_path: Path) -> None:
    with World(tmp_path, Limits(watchers_max=1, heartbeat_seconds=60)) as world:
        team = world.workspace()
        got: list[tuple[str, str]] = []

        def watch() -> None:
            with world.owner.stream(f"{ENDPOINT}/watch", workspace=team) as events:
                got.extend(events.rest())

        world.owner.token()
        watcher = threading.Thread(target=watch)
        watcher.start()
        wait_for(lambda: "inferplane_api_streams 1.0" in world.http.get("/metrics").text, "a stream")
        for path in (f"watch?workspace={team}", f"logs?workspace={team}&endpoint=x&follow=true"):
            world.owner("GET", f"{ENDPOINT}/{path}").is_error(429, "RATE_LIMITED", "TooManyStreams")
    watcher.join(10)
    assert not watcher.is_alive()
    assert got == [("", "that was all; changes follow")]
