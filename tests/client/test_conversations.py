"""What is said in which order, in a world where time is a number: retries, tokens, waiting, following."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import pytest

from fake_platform import AT, KEY, Asked, FakePlatform, Told, no, running, stream, waiting
from inferplane.client import conversations, errors, requests
from inferplane.client.conversations import ConnectionFailedError, Emit, Now, Pause, Read, Send, Session
from inferplane.wire import paths
from inferplane.wire.endpoints import EventItem
from inferplane.wire.envelope import ErrorKey, success


@dataclass
class World:
    """Performs effects against a fake platform; a pause moves the clock and costs nothing."""

    platform: FakePlatform = field(default_factory=FakePlatform)
    session: Session = field(default_factory=lambda: Session("http://api.test", KEY, iter("abcdef").__next__))
    now: float = 100.0
    pauses: list[float] = field(default_factory=list)
    emitted: list[Any] = field(default_factory=list)
    chunks: list[bytes | Exception] = field(default_factory=list)
    on_pause: Callable[[], None] = lambda: None

    def hold(self, conversation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Hold the conversation to its end and return its value."""
        flow = conversation(self.session, *args, **kwargs)
        step: Callable[[], Any] = partial(next, flow)
        while True:
            try:
                effect = step()
            except StopIteration as end:
                return end.value
            try:
                step = partial(flow.send, self.perform(effect))
            except ConnectionFailedError as failure:
                step = partial(flow.throw, failure)

    def perform(self, effect: Any) -> Any:
        match effect:
            case Send(request):
                told = self.platform.answer(_asked(request))
                self.chunks = list(told.chunks or ())
                return requests.Answer(told.status, told.headers, told.body)
            case Read():
                chunk = self.chunks.pop(0) if self.chunks else b""
                if isinstance(chunk, Exception):
                    raise chunk
                return chunk
            case Pause(seconds):
                self.now += seconds
                self.pauses.append(seconds)
                self.on_pause()
            case Now():
                return self.now
            case Emit(item):
                self.emitted.append(item)
            case _:
                pytest.fail(f"not an effect: {effect}")
        return None


def _asked(request: requests.Request[Any]) -> Asked:
    import json

    path = httpx.URL(request.target).path
    body = json.loads(request.body) if request.body else None
    headers = {name.lower(): value for name, value in request.headers}
    return Asked(request.method, path, dict(request.query), body, headers, request.body or b"")


REFUSED = ConnectionFailedError("connection refused", unsent=True)
CUT = ConnectionFailedError("the connection ended in the middle of the answer", unsent=False)
BUSY = no(503, ErrorKey.UNAVAILABLE, "the store is away")


# --- tokens -----------------------------------------------------------------------------------------


def test_a_token_is_fetched_once_and_used_for_every_call() -> None:
    world = World()
    world.hold(conversations.list_clusters)
    world.hold(conversations.list_workspaces)
    assert [each.path for each in world.platform.asked] == [
        paths.AUTH,
        paths.CLUSTER_LIST,
        paths.WORKSPACE_LIST,
    ]


def test_a_stale_token_is_renewed_once() -> None:
    world = World()
    world.hold(conversations.list_clusters)
    world.platform.valid_tokens.clear()
    world.hold(conversations.list_clusters)
    assert [each.path for each in world.platform.asked][2:] == [
        paths.CLUSTER_LIST,
        paths.AUTH,
        paths.CLUSTER_LIST,
    ]


def test_a_platform_that_refuses_a_fresh_token_is_not_asked_for_ever() -> None:
    world = World()
    unauthenticated = no(401, ErrorKey.UNAUTHENTICATED, "Unauthenticated")
    world.platform.script = [Told(200, success({"token": "t"})), unauthenticated]
    with pytest.raises(errors.UnauthenticatedError):
        world.hold(conversations.list_clusters)
    assert len(world.platform.asked) == 2


def test_an_expired_key_says_so() -> None:
    world = World()
    world.platform.script = [no(401, ErrorKey.UNAUTHENTICATED, "Api Key has expired", reason="ApiKeyExpired")]
    with pytest.raises(errors.UnauthenticatedError, match="Api Key has expired"):
        world.hold(conversations.list_clusters)


def test_without_a_key_nothing_is_sent() -> None:
    world = World(session=Session("http://api.test", "", str, why_no_key="no API key was given"))
    with pytest.raises(errors.ConfigurationError, match="no API key was given") as caught:
        world.hold(conversations.list_clusters)
    assert (caught.value.reason, world.platform.asked) == ("NoApiKey", [])


# --- retries ----------------------------------------------------------------------------------------


def test_reading_survives_a_cut_and_a_busy_platform() -> None:
    world = World()
    world.hold(conversations.list_clusters)
    world.platform.script = [CUT, BUSY, REFUSED]
    assert [each.name for each in world.hold(conversations.list_clusters)] == ["local"]
    assert world.pauses == list(requests.RETRY_PAUSE_SECONDS)


def test_a_platform_that_is_not_there_is_told_after_a_moment() -> None:
    world = World()
    world.platform.script = [REFUSED] * 10
    with pytest.raises(
        errors.UnreachableError, match=r"does not answer at http://api\.test: connection refused"
    ) as caught:
        world.hold(conversations.list_clusters)
    assert len(world.platform.asked) == requests.ATTEMPTS_MAX
    assert "inferplane up" in caught.value.next_action


def test_a_create_is_sent_again_with_the_same_idempotency_key() -> None:
    world = World()
    world.hold(conversations.list_clusters)
    world.platform.script = [CUT]
    world.hold(conversations.deploy, "iris", format="sklearn", uri="/m")
    keys = [each.headers.get("idempotency-key") for each in world.platform.asked if each.method == "POST"][1:]
    assert keys == ["a", "a"]


def test_two_creates_have_two_keys_unless_the_caller_has_one() -> None:
    world = World()
    world.hold(conversations.deploy, "one", format="sklearn", uri="/m")
    world.hold(conversations.deploy, "two", format="sklearn", uri="/m")
    world.hold(conversations.deploy, "three", format="sklearn", uri="/m", idempotency_key="mine")
    found = [each.headers["idempotency-key"] for each in world.platform.asked if each.path == paths.ENDPOINT]
    assert found == ["a", "b", "mine"]


def test_a_delete_that_may_have_happened_is_not_repeated() -> None:
    world = World(FakePlatform({"iris": [running("iris")]}))
    world.hold(conversations.list_clusters)
    world.platform.script = [CUT]
    with pytest.raises(errors.UnreachableError):
        world.hold(conversations.delete, "iris")
    world.platform.script = [REFUSED]
    assert world.hold(conversations.delete, "iris") == "iris"


# --- waiting ----------------------------------------------------------------------------------------


def test_waiting_reports_each_step_and_ends_when_it_runs() -> None:
    life = [
        waiting("iris", "Pending", "Accepted"),
        waiting("iris", "Downloading", "Downloading", "1 MiB of 2 MiB"),
        waiting("iris", "Loading", "Loading"),
        running("iris"),
    ]
    world = World(FakePlatform({"iris": list(life)}))
    seen: list[str] = []
    found = world.hold(
        conversations.wait_until_running, "iris", progress=lambda endpoint: seen.append(endpoint.status)
    )
    assert found == life[-1]
    assert seen == ["Pending", "Downloading", "Loading", "Running"]
    assert world.pauses == pytest.approx([0.05, 0.065, 0.0845])


def test_pauses_between_looks_grow_up_to_a_second() -> None:
    world = World(FakePlatform({"iris": [waiting("iris", "Loading", "Loading")]}))
    with pytest.raises(errors.WaitTimeoutError):
        world.hold(conversations.wait_until_running, "iris", 60)
    assert max(world.pauses) == conversations.POLL_SECONDS_MAX
    assert world.now == pytest.approx(160)


def test_a_failure_that_nobody_but_a_person_can_mend_ends_the_waiting_at_once() -> None:
    world = World(FakePlatform({"iris": [waiting("iris", "Failed", "ModelNotFound", "nothing at /m")]}))
    with pytest.raises(errors.EndpointFailedError) as caught:
        world.hold(conversations.wait_until_running, "iris")
    assert (caught.value.reason, caught.value.next_action) == ("ModelNotFound", "Mend ModelNotFound.")
    assert caught.value.message == "iris is Failed — ModelNotFound: nothing at /m"
    assert world.pauses == []


def test_a_failure_that_may_mend_itself_is_given_some_patience() -> None:
    failed = waiting("iris", "Failed", "StorageUnreachable", "no answer")
    world = World(
        FakePlatform({"iris": [failed, failed, waiting("iris", "Loading", "Loading"), running("iris")]})
    )
    assert world.hold(conversations.wait_until_running, "iris").status == "Running"

    world = World(FakePlatform({"iris": [failed]}))
    with pytest.raises(errors.EndpointFailedError):
        world.hold(conversations.wait_until_running, "iris")
    assert (
        conversations.FAILED_PATIENCE_SECONDS <= world.now - 100 < conversations.FAILED_PATIENCE_SECONDS + 2
    )


def test_an_endpoint_that_failed_when_the_time_is_over_has_failed() -> None:
    world = World(FakePlatform({"iris": [waiting("iris", "Failed", "StorageUnreachable")]}))
    with pytest.raises(errors.EndpointFailedError):
        world.hold(conversations.wait_until_running, "iris", 1)


def test_what_is_said_about_an_earlier_spec_does_not_end_the_waiting() -> None:
    stale = waiting("iris", "Stopped", "StoppedByUser", generation=2, observed_generation=1)
    world = World(FakePlatform({"iris": [stale, running("iris")]}))
    assert world.hold(conversations.wait_until_running, "iris").status == "Running"


@pytest.mark.parametrize(("status", "reason"), [("Stopped", "StoppedByUser"), ("Terminating", "Terminating")])
def test_waiting_ends_for_what_will_not_run(status: str, reason: str) -> None:
    world = World(FakePlatform({"iris": [waiting("iris", status, reason)]}))
    with pytest.raises(errors.EndpointFailedError, match=status):
        world.hold(conversations.wait_until_running, "iris")


def test_a_reason_of_a_newer_platform_is_waited_for_a_little() -> None:
    world = World(FakePlatform({"iris": [waiting("iris", "Failed", "SomethingNew"), running("iris")]}))
    assert world.hold(conversations.wait_until_running, "iris").status == "Running"


def test_the_timeout_says_where_the_endpoint_was() -> None:
    world = World(FakePlatform({"iris": [waiting("iris", "Downloading", "Downloading", "1 MiB of 9 GiB")]}))
    with pytest.raises(
        errors.WaitTimeoutError, match="iris is still Downloading after 5 s: 1 MiB of 9 GiB"
    ) as caught:
        world.hold(conversations.wait_until_running, "iris", 5)
    assert caught.value.reason == "Downloading"


def test_the_time_in_the_queue_for_gpus_does_not_count() -> None:
    queued, loading = waiting("iris", "Queued", "WaitingForGpus"), waiting("iris", "Loading", "Loading")
    world = World(FakePlatform({"iris": [*[queued] * 100, loading, running("iris")]}))
    assert world.hold(conversations.wait_until_running, "iris", 5).status == "Running"
    assert world.now > 100 + 90

    world = World(FakePlatform({"iris": [*[queued] * 100, loading]}))
    with pytest.raises(errors.WaitTimeoutError, match="still Loading after 5 s"):
        world.hold(conversations.wait_until_running, "iris", 5)


def test_the_queue_can_have_a_limit_of_its_own() -> None:
    world = World(FakePlatform({"iris": [waiting("iris", "Queued", "WaitingForGpus", "position 3")]}))
    with pytest.raises(errors.WaitTimeoutError, match="iris is still Queued after 30 s in line: position 3"):
        world.hold(conversations.wait_until_running, "iris", 5, queue_timeout=30)
    assert world.now == pytest.approx(130)


def test_waiting_for_what_is_not_there() -> None:
    with pytest.raises(errors.NotFoundError):
        World().hold(conversations.wait_until_running, "iris")
    World().hold(conversations.wait_until_deleted, "iris")


def test_waiting_for_the_end_says_what_is_left() -> None:
    going = waiting("iris", "Terminating", "Terminating", "being deleted; left: 1 model server")
    world = World(FakePlatform({"iris": [going, going, None]}))
    world.hold(conversations.wait_until_deleted, "iris")
    world = World(FakePlatform({"iris": [going]}))
    with pytest.raises(errors.WaitTimeoutError, match="1 model server"):
        world.hold(conversations.wait_until_deleted, "iris", 3)


def test_waiting_for_a_stop() -> None:
    world = World(FakePlatform({"iris": [running("iris"), waiting("iris", "Stopped", "StoppedByUser")]}))
    assert world.hold(conversations.wait_until_stopped, "iris").status == "Stopped"
    world = World(FakePlatform({"iris": [running("iris")]}))
    with pytest.raises(errors.WaitTimeoutError):
        world.hold(conversations.wait_until_stopped, "iris", 3)


# --- lists, events, logs ------------------------------------------------------------------------------


def test_a_list_is_read_to_its_last_page() -> None:
    names = [f"e{number}" for number in range(5)]
    world = World(FakePlatform({name: [running(name)] for name in names}, page_size=2))
    assert [item.endpoint_name for item in world.hold(conversations.list_endpoints)] == names
    assert [
        each.query.get("continue") for each in world.platform.asked if each.path == paths.ENDPOINT_LIST
    ] == [
        None,
        "2",
        "4",
    ]


def test_followed_events_come_once_each_until_the_endpoint_is_gone() -> None:
    world = World(FakePlatform({"iris": [running("iris")]}))
    world.platform.events = [EventItem(1, AT, "EndpointCreated", "accepted")]
    steps: list[Callable[[], None]] = [
        lambda: world.platform.events.append(EventItem(2, AT, "EndpointRunning", "runs")),
        lambda: None,
        lambda: world.platform.events.append(EventItem(5, AT, "EndpointDeleted", "gone")),
        lambda: world.platform.endpoints.clear(),
    ]
    world.on_pause = lambda: steps.pop(0)()
    world.hold(conversations.follow_events, "iris")
    assert [event.seq for event in world.emitted] == [1, 2, 5]
    with pytest.raises(errors.NotFoundError):
        world.hold(conversations.follow_events, "iris")


def test_a_stream_that_breaks_is_told_with_what_to_do() -> None:
    world = World(FakePlatform({"iris": [running("iris")]}))
    world.hold(conversations.list_clusters)
    line = b'event: LINE\ndata: {"replica":"r1-0","text":"hello"}\n\n'
    world.platform.script = [stream(line, b"event: LI", CUT)]
    with pytest.raises(errors.UnreachableError, match="broke") as caught:
        world.hold(conversations.follow_logs, "iris")
    assert (caught.value.reason, [each.text for each in world.emitted]) == ("ConnectionLost", ["hello"])


def test_a_stream_that_is_none_is_a_protocol_error() -> None:
    world = World()
    world.hold(conversations.list_clusters)
    world.platform.script = [stream(*[b"data: " + b"x" * 1_000_000 + b"\n"] * 10)]
    with pytest.raises(errors.ProtocolError):
        world.hold(conversations.follow_logs, "iris")


# --- predictions --------------------------------------------------------------------------------------


def test_the_address_is_looked_up_once() -> None:
    world = World(FakePlatform({"iris": [running("iris")]}))
    for _ in range(3):
        assert world.hold(conversations.predict, "iris", instances=[[1, 2]]) == {"predictions": [0]}
    assert world.hold(conversations.infer, "iris", inputs=[])["outputs"] == []
    assert world.platform.calls() == [
        ("GET", paths.ENDPOINT),
        *[("POST", "/serving/default/iris/v1/models/iris:predict")] * 3,
        ("POST", "/serving/default/iris/v2/models/iris/infer"),
    ]
    assert all(
        "authorization" not in each.headers for each in world.platform.asked if "/serving/" in each.path
    )


def test_an_endpoint_that_moved_is_looked_up_again_once() -> None:
    world = World(FakePlatform({"iris": [running("iris")]}))
    world.hold(conversations.predict, "iris", instances=[[1]])
    world.platform.script = [Told(404, b'{"error":"no endpoint is served at this host and path"}')]
    assert world.hold(conversations.predict, "iris", instances=[[1]]) == {"predictions": [0]}

    world.platform.endpoints.clear()
    world.platform.prediction = Told(404, b'{"error":"no endpoint is served at this host and path"}')
    with pytest.raises(errors.NotFoundError, match="endpoint iris does not exist"):
        world.hold(conversations.predict, "iris", instances=[[1]])


def test_a_prediction_is_repeated_only_when_it_surely_was_not_made() -> None:
    world = World(FakePlatform({"iris": [running("iris")]}))
    world.hold(conversations.predict, "iris", instances=[[1]])
    untouched = Told(503, b'{"error":"draining"}', {"x-inferplane-not-processed": "1"})
    world.platform.script = [untouched, REFUSED]
    assert world.hold(conversations.predict, "iris", instances=[[1]]) == {"predictions": [0]}
    world.platform.script = [Told(503, b'{"error":"busy"}')]
    with pytest.raises(errors.UnavailableError, match="busy"):
        world.hold(conversations.predict, "iris", instances=[[1]])


def test_an_endpoint_without_address_is_not_ready() -> None:
    queued = waiting("iris", "Queued", "AwaitingGpu", "position 3", path_endpoint="")
    world = World(FakePlatform({"iris": [queued]}))
    with pytest.raises(errors.EndpointNotReadyError, match="position 3") as caught:
        world.hold(conversations.predict, "iris", instances=[[1]])
    assert caught.value.reason == "AwaitingGpu"


def test_a_gateway_that_is_away_is_named() -> None:
    world = World(FakePlatform({"iris": [running("iris")]}))
    world.hold(conversations.list_clusters)
    world.hold(conversations.describe, "iris")
    world.platform.script = [Told(200, success({"endpoint": running("iris")})), *[REFUSED] * 4]
    with pytest.raises(errors.UnreachableError, match=r"the gateway does not answer at http://gateway\.test"):
        world.hold(conversations.predict, "iris", instances=[[1]])


@pytest.mark.parametrize("given", [{}, {"body": {}, "instances": []}])
def test_a_prediction_has_one_body(given: dict[str, Any]) -> None:
    world = World()
    with pytest.raises(errors.InvalidError):
        world.hold(conversations.predict, "iris", **given)
    assert world.platform.asked == []


# --- manifests ----------------------------------------------------------------------------------------


def test_a_manifest_brings_its_name_unless_another_is_given() -> None:
    manifest = "apiVersion: serving.kserve.io/v1beta1\nmetadata:\n  name: from-manifest\nspec: {}\n"
    world = World()
    assert world.hold(conversations.apply, manifest).name == "from-manifest"
    assert world.hold(conversations.apply, manifest, name="mine").name == "mine"
    assert world.hold(conversations.apply, {"metadata": {"name": "dict"}, "spec": {}}).name == "dict"
    sent = [each.body["rawModelSpec"] for each in world.platform.asked if each.path == paths.ENDPOINT]
    assert sent == [manifest, manifest, '{"metadata":{"name":"dict"},"spec":{}}']


@pytest.mark.parametrize(
    "manifest",
    [
        "spec: {}",
        "- 1",
        "",
        "metadata: {name: 5}",
        "a: [",
        "x" * (conversations.MANIFEST_CHARACTERS_MAX + 1),
        "\x00",
    ],
)
def test_a_manifest_without_a_name_is_refused_before_it_is_sent(manifest: str) -> None:
    world = World()
    with pytest.raises(errors.InvalidError):
        world.hold(conversations.apply, manifest)
    assert world.platform.asked == []


def test_a_dry_run_says_what_it_found() -> None:
    from inferplane.wire.endpoints import CheckItem

    world = World()
    world.platform.checks = [CheckItem("name", True), CheckItem("storage", False, "ModelNotFound")]
    made = world.hold(conversations.deploy, "iris", format="sklearn", uri="/m", dry_run=True)
    assert (made.dry_run, made.ok, len(made.checks)) == (True, False, 2)
    assert world.platform.endpoints == {}


def test_everything_that_deploy_takes_arrives() -> None:
    world = World()
    world.hold(
        conversations.deploy,
        "iris",
        format="sklearn",
        uri="s3://b/k",
        workspace="a",
        cluster="c",
        secret={"AWS_ACCESS_KEY_ID": "x"},
        digest="sha256:00",
        env={"PREDICT_PROBA": "true"},
        args=["--x"],
        cpu="500m",
        memory="1Gi",
        replicas=2,
        protocol="v2",
        runtime="r",
        request_seconds_max=5.0,
        request_bytes_max=10,
        start_seconds_max=9.0,
    )
    assert world.platform.asked[-1].body == {
        "endpointName": "iris",
        "workspace": "a",
        "clusterName": "c",
        "modelSpec": {
            "modelName": "sklearn",
            "storageURI": "s3://b/k",
            "runtime": "r",
            "protocolVersion": "v2",
            "args": ["--x"],
            "env": {"PREDICT_PROBA": "true"},
            "secret": {"AWS_ACCESS_KEY_ID": "x"},
            "resources": {"cpu": "500m", "memory": "1Gi"},
            "digest": "sha256:00",
            "startTimeoutSeconds": 9.0,
        },
        "autoscaling": {"minReplicas": 2, "maxReplicas": 2},
        "limits": {"maxRequestBytes": 10, "timeoutSeconds": 5.0},
    }
