"""List, describe, explain, events, delete, stop and start on the wire."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from api_world import Client, World
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointStatus,
    Exit,
    ModelInfo,
    Replica,
    ReplicaId,
    ReplicaState,
    RestartRecord,
    ScaleNote,
)
from inferplane.domain.events import Event
from inferplane.domain.reasons import REASONS, ReasonCode

ENDPOINT = "/api/v1/inference-endpoint"
LISTED = {"endpointName", "modelName", "status", "endpoint", "clusterName", "namespace", "autoScalingStatus"}
LISTED_OURS = {
    *("workspace", "uid", "reason", "message", "pathEndpoint", "replicaCount", "queuePosition"),
    *("createdAt", "since", "access"),
}
DESCRIBED = (LISTED) | {"predictStatus", "ingressStatus", "tryCommand", "dnsRecords", "gpuRequests"}
DESCRIBED_OURS = {
    *("workspace", "uid", "reason", "message", "nextAction", "nextRetryAt", "evidence", "conditions"),
    *(
        "replicas",
        "replicaCount",
        "revisions",
        "traffic",
        "rollout",
        "pathEndpoint",
        "tryPathCommand",
        "tryNote",
    ),
    *("protocols", "model", "limits", "autoscaling", "download", "generation", "observedGeneration"),
    *("stopped", "createdAt", "createdBy", "since", "timeline", "gpu", "access"),
}


def described(owner: Client, team: str, name: str) -> dict[str, Any]:
    data = owner("GET", f"{ENDPOINT}?workspace={team}&endpoint={name}").data
    assert set(data) == {"endpoint"}
    endpoint: dict[str, Any] = data["endpoint"]
    assert set(endpoint) == DESCRIBED | DESCRIBED_OURS
    return endpoint


def explained(owner: Client, team: str, name: str) -> dict[str, Any]:
    data: dict[str, Any] = owner("GET", f"{ENDPOINT}/explain?workspace={team}&endpoint={name}").data
    assert set(data) == {
        *("endpointName", "status", "reason", "meaning", "message", "evidence"),
        *("nextAction", "nextRetryAt", "waitingFor", "timeline", "autoscaling", "scalingDecisions"),
    }
    return data


def listed(owner: Client, query: str) -> list[dict[str, Any]]:
    data = owner("GET", f"{ENDPOINT}/list?{query}").data
    assert set(data) <= {"endpoints", "continue"}
    endpoints: list[dict[str, Any]] = data["endpoints"]
    assert all(set(each) == LISTED | LISTED_OURS for each in endpoints)
    return endpoints


def test_a_new_endpoint_is_pending_and_says_why(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    [item] = listed(owner, f"workspace={team}")
    assert (item["status"], item["reason"], item["endpoint"]) == ("Pending", "Accepted", "")
    assert item["replicaCount"] == {"ready": 0, "desired": 1}
    endpoint = described(owner, team, name)
    assert (endpoint["predictStatus"], endpoint["ingressStatus"]) == ("Accepted", "Accepted")
    assert [each["name"] for each in endpoint["timeline"]] == ["accepted"]
    assert endpoint["gpuRequests"] == []
    assert "placeholder" in endpoint["tryNote"]


def test_a_running_endpoint_says_where_it_is_and_how_to_try_it(
    world: World, owner: Client, team: str
) -> None:
    name = world.create(team)
    example = '{"instances": [{"it\'s": "a \\"quote\\""}],\n "n": 1}'
    world.run(team, name, example)
    url = f"http://{name}.{team}.localhost:7080/v1/models/{name}:predict"
    [item] = listed(owner, f"workspace={team}")
    assert (item["status"], item["reason"], item["endpoint"]) == ("Running", "", url)
    assert item["pathEndpoint"] == f"http://127.0.0.1:7080/serving/{team}/{name}/v1/models/{name}:predict"
    assert item["replicaCount"] == {"ready": 1, "desired": 1}
    endpoint = described(owner, team, name)
    assert endpoint["endpoint"] == url
    assert {endpoint[key] for key in ("predictStatus", "ingressStatus", "autoScalingStatus")} == {"Ready"}
    assert endpoint["dnsRecords"] == [{"dns": f"{name}.{team}.localhost", "type": "A", "value": "127.0.0.1"}]
    assert endpoint["protocols"] == ["v1", "v2"]
    assert endpoint["tryNote"] == ""
    lines = endpoint["tryCommand"]
    assert lines[0] == "curl -v \\"
    assert lines[1] == f'-H "Host: {name}.{team}.localhost" \\'
    assert lines[2] == '-H "Content-Type: application/json" \\'
    assert lines[3] == f'"http://127.0.0.1:7080/v1/models/{name}:predict" \\'
    words = shlex.split("\n".join(lines).replace("\\\n", " "))
    assert words[:2] == ["curl", "-v"]
    assert json.loads(words[-1]) == json.loads(example)
    by_path = shlex.split("\n".join(endpoint["tryPathCommand"]).replace("\\\n", " "))
    assert item["pathEndpoint"] in by_path


@pytest.mark.parametrize(
    ("outputs", "path", "words"),
    [
        (({"name": "generated_text"},), "/v1/chat/completions", '"messages":[{"role":"user"'),
        (({"name": "embedding"}, {"name": "tokens"}), "/v1/embeddings", '"input":['),
        ((), "/v1/chat/completions", '"max_tokens":32'),
    ],
)
def test_what_generates_or_embeds_is_tried_in_openais_protocol(
    world: World, owner: Client, team: str, outputs: tuple[dict[str, Any], ...], path: str, words: str
) -> None:
    name = world.create(team)
    world.run(team, name)
    endpoint = world.stored(team, name)
    model = ModelInfo(outputs=outputs, protocols=("v1", "v2", "openai"))
    world.become(endpoint, replace(endpoint.status, model=model))
    shown = described(owner, team, name)
    assert shown["tryCommand"][-2] == f'"http://127.0.0.1:7080{path}" \\'
    assert shown["tryPathCommand"][-2] == f'"http://127.0.0.1:7080/serving/{team}/{name}{path}" \\'
    body = shlex.split("\n".join(shown["tryCommand"]).replace("\\\n", " "))[-1]
    assert json.loads(body)["model"] == name
    assert words in body
    assert shown["tryNote"] == ""
    assert shown["endpoint"].endswith(f"/v1/models/{name}:predict")


def test_the_timeline_has_durations(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    world.run(team, name)
    timeline = described(owner, team, name)["timeline"]
    assert [(each["name"], each["durationMs"], each["elapsedMs"]) for each in timeline] == [
        ("accepted", 0, 0),
        ("downloaded", 200, 200),
        ("started", 50, 250),
        ("loaded", 150, 400),
        ("ready", 50, 450),
    ]
    assert explained(owner, team, name)["timeline"] == timeline


def test_conditions_come_true_in_order(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    before = described(owner, team, name)["conditions"]
    assert [each["type"] for each in before] == [
        *("Accepted", "Observed", "ModelAvailable", "PredictReady", "IngressReady", "Ready")
    ]
    assert [each["status"] for each in before] == ["True", *["False"] * 5]
    assert all(each["reason"] in set(ReasonCode) for each in before if each["status"] == "False")
    assert all(each["lastTransitionTime"] for each in before)
    world.run(team, name)
    assert {each["status"] for each in described(owner, team, name)["conditions"]} == {"True"}


def test_a_download_shows_its_progress(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    endpoint = world.stored(team, name)
    artifact = ArtifactState(
        ArtifactPhase.FETCHING,
        uri="https://k:hunter2@host/m",
        received_bytes=1024,
        total_bytes=4096,
        resumed_from_bytes=512,
        rate_bytes_per_second=1024.0,
        started_at=endpoint.created_at,
    )
    world.become(endpoint, EndpointStatus(observed_generation=1, artifact=artifact))
    shown = described(owner, team, name)
    assert (shown["status"], shown["reason"]) == ("Downloading", "Downloading")
    assert "1.0 KiB of 4.0 KiB" in shown["message"]
    download = shown["download"]
    assert (download["receivedBytes"], download["totalBytes"], download["etaSeconds"]) == (1024, 4096, 3.0)
    assert download["resumedFromBytes"] == 512
    assert "hunter2" not in str(shown)
    assert explained(owner, team, name)["waitingFor"] == shown["message"]


def failing_status(world: World, team: str, name: str, reason: ReasonCode, failures: int) -> EndpointStatus:
    endpoint = world.stored(team, name)
    ended = Exit(
        at=endpoint.created_at,
        exit_code=137 if reason is ReasonCode.OUT_OF_MEMORY else 3,
        reason=reason,
        message="not a model: s3://key:hunter2@bucket",
        log_tail=("Traceback…", "ValueError: not a model"),
    )
    retry_at = endpoint.created_at + timedelta(seconds=30)
    return EndpointStatus(
        observed_generation=1,
        artifact=ArtifactState(ArtifactPhase.PRESENT),
        replicas=(Replica(ReplicaId(endpoint.uid, 1, 0), ReplicaState.EXITED, exit=ended),),
        restarts=(RestartRecord("r1-0", failures, ended, retry_at),),
    )


@pytest.mark.parametrize(
    ("reason", "failures", "shown"),
    [
        (ReasonCode.MODEL_LOAD_FAILED, 1, "ModelLoadFailed"),
        (ReasonCode.OUT_OF_MEMORY, 2, "OutOfMemory"),
        (ReasonCode.SERVER_EXITED, 9, "CrashLoop"),
    ],
)
def test_a_failure_brings_evidence_and_advice(
    world: World, owner: Client, team: str, reason: ReasonCode, failures: int, shown: str
) -> None:
    name = world.create(team)
    endpoint = world.stored(team, name)
    world.become(endpoint, failing_status(world, team, name, reason, failures))
    answer = explained(owner, team, name)
    assert (answer["status"], answer["reason"]) == ("Failed", shown)
    assert answer["meaning"] == REASONS[ReasonCode(shown)].meaning
    advice = REASONS[ReasonCode(shown)].next_action
    assert answer["nextAction"] == advice.replace("NAME", f"{name} -w {team}")
    assert answer["nextRetryAt"]
    assert "next try" in answer["waitingFor"]
    assert answer["evidence"]["logTail"] == ["Traceback…", "ValueError: not a model"]
    assert answer["evidence"]["exitCode"] in {3, 137}
    assert answer["evidence"]["restarts"] == failures
    assert "hunter2" not in str(answer)
    full = described(owner, team, name)
    assert full["replicas"][0]["exit"]["exitCode"] == answer["evidence"]["exitCode"]
    assert full["replicas"][0]["nextStartAt"] == answer["nextRetryAt"]
    assert full["endpoint"] == ""


def test_a_running_endpoint_explains_itself_too(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    world.run(team, name)
    answer = explained(owner, team, name)
    assert (answer["status"], answer["reason"], answer["waitingFor"]) == ("Running", "", "")
    assert answer["meaning"]
    assert answer["nextAction"]


def test_explain_tells_how_the_number_of_replicas_was_decided(world: World, owner: Client, team: str) -> None:
    name = world.create(team, autoscaling={"minReplicas": 0, "maxReplicas": 4})
    world.run(team, name)
    endpoint = world.stored(team, name)
    why = "the last 6 s had 80 requests at once, 32 for each replica"
    since = endpoint.created_at + timedelta(minutes=1)
    note = ScaleNote(3, why, since=since)
    about: dict[str, Any] = {"workspace": team, "endpoint": name, "endpoint_uid": endpoint.uid}
    news = [
        Event(
            since - timedelta(seconds=9), "ScaledToZero", "scaled to zero: no request for 5m", "c", **about
        ),
        Event(since - timedelta(seconds=5), "ReplicaExited", "replica r1-0 ended", "c", **about),
        Event(since - timedelta(seconds=3), "Woken", "woken: a request waits", "c", **about),
        Event(since, "ScaledUp", f"from 1 to 3 replicas: {why}", "c", **about),
    ]
    world.become(endpoint, replace(endpoint.status, scale=note), *news)
    answer = explained(owner, team, name)
    assert (answer["autoscaling"]["replicas"], answer["autoscaling"]["message"]) == (3, why)
    told = [(each["kind"], each["message"]) for each in answer["scalingDecisions"]]
    assert told == [
        ("ScaledToZero", "scaled to zero: no request for 5m"),
        ("Woken", "woken: a request waits"),
        ("ScaledUp", f"from 1 to 3 replicas: {why}"),
    ]


def test_a_degraded_endpoint_stays_reachable(world: World, owner: Client, team: str) -> None:
    name = world.create(team, autoscaling={"minReplicas": 2})
    endpoint = world.stored(team, name)
    status = world.running_status(endpoint)
    one = replace(status, replicas=status.replicas[:1], routed=status.routed[:1])
    world.become(endpoint, one)
    shown = described(owner, team, name)
    assert (shown["status"], shown["replicaCount"]) == ("Degraded", {"ready": 1, "desired": 2})
    assert shown["endpoint"].startswith("http://")
    assert shown["traffic"] == [{"revision": 1, "percent": 100}]


def test_without_an_endpoint_the_path_lists(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    assert (
        owner("GET", f"{ENDPOINT}?workspace={team}").data
        == owner("GET", f"{ENDPOINT}/list?workspace={team}").data
    )
    assert [
        each["endpointName"] for each in owner("GET", f"{ENDPOINT}?workspaceName={team}").data["endpoints"]
    ] == [name]


def test_filters(world: World, owner: Client) -> None:
    team = world.workspace("local", "edge")
    running, pending = world.create(team, clusterName="local"), world.create(team, clusterName="edge")
    world.run(team, running)
    onnx = world.create(team, clusterName="local", modelSpec={"modelName": "onnx", "storageURI": "/m.onnx"})

    def names(query: str) -> set[str]:
        return {each["endpointName"] for each in listed(owner, f"workspace={team}&{query}")}

    assert names("") == {running, pending, onnx}
    assert names("status=Running") == names("status=running") == {running}
    assert names("status=Pending") == {pending, onnx}
    assert names("cluster=edge") == {pending}
    assert names("modelName=onnx") == {onnx}
    assert names("modelName=onnx&status=Running") == set()
    assert names("cluster=nowhere") == set()


def test_pages_cover_everything_once(world: World, owner: Client) -> None:
    team = world.workspace("local", "edge")
    made = sorted(world.create(team, clusterName="local") for _ in range(5))
    for name in made[:2]:
        world.create(team, name, clusterName="edge")
        world.run(team, name, cluster="local")
    for size in (1, 2, 3, 7, 100):
        seen: list[tuple[str, str]] = []
        position = ""
        while True:
            data = owner("GET", f"{ENDPOINT}/list?workspace={team}&limit={size}&continue={position}").data
            assert len(data["endpoints"]) <= size
            seen += [(each["endpointName"], each["clusterName"]) for each in data["endpoints"]]
            position = data.get("continue", "")
            if not position:
                break
        assert seen == sorted(seen)
        assert len(seen) == len(set(seen)) == 7
    one = owner("GET", f"{ENDPOINT}/list?workspace={team}&limit=1&status=Running").data
    two = owner(
        "GET", f"{ENDPOINT}/list?workspace={team}&limit=1&status=Running&continue={one['continue']}"
    ).data
    assert [one["endpoints"][0]["endpointName"], two["endpoints"][0]["endpointName"]] == made[:2]
    assert "continue" not in two


def test_an_owner_without_a_workspace_sees_all(world: World, owner: Client, team: str) -> None:
    other = world.workspace()
    mine, theirs = world.create(team), world.create(other)
    everything = {each["endpointName"] for each in listed(owner, "limit=1000")}
    assert {mine, theirs} <= everything
    viewer = world.client("Viewer", team)
    assert [each["endpointName"] for each in listed(viewer, "")] == [mine]


def test_what_does_not_exist_is_404(world: World, owner: Client, team: str) -> None:
    for path in ("", "/explain", "/logs", "/events"):
        error = owner("GET", f"{ENDPOINT}{path}?workspace={team}&endpoint=none").is_error(
            404, "NOT_FOUND", "EndpointNotFound"
        )
        assert f"`inferplane list -w {team}`" in error["nextAction"]
        error = owner("GET", f"{ENDPOINT}{path}?workspace=nowhere&endpoint=none").is_error(
            404, "NOT_FOUND", "WorkspaceNotFound"
        )
        assert "`inferplane workspace list`" in error["nextAction"]
    owner("GET", f"{ENDPOINT}/list?workspace=nowhere").is_error(404, "NOT_FOUND", "WorkspaceNotFound")
    owner("GET", f"{ENDPOINT}?endpoint=x").is_error(422, "INVALID", "Missing")
    for path in ("/explain", "/logs"):
        owner("GET", f"{ENDPOINT}{path}?workspace={team}").is_error(422, "INVALID", "Missing")


def test_a_name_on_two_clusters_needs_the_cluster(world: World, owner: Client) -> None:
    team = world.workspace("local", "edge")
    name = world.create(team, clusterName="local")
    world.create(team, name, clusterName="edge")
    owner("GET", f"{ENDPOINT}?workspace={team}&endpoint={name}").is_error(409, "CONFLICT", "ClusterAmbiguous")
    for cluster in ("local", "edge"):
        data = owner("GET", f"{ENDPOINT}?workspace={team}&endpoint={name}&cluster={cluster}").data
        assert data["endpoint"]["clusterName"] == cluster
    owner("GET", f"{ENDPOINT}?workspace={team}&endpoint={name}&cluster=cloud").is_error(404, "NOT_FOUND")


@pytest.mark.parametrize("key", ["endpoint", "endpointName"])
def test_delete_is_idempotent_and_total(world: World, owner: Client, team: str, key: str) -> None:
    name = world.create(team)
    world.run(team, name)
    body = {key: name, "workspace": team}
    assert owner("DELETE", ENDPOINT, body).data == {"endpoint": name}
    [item] = listed(owner, f"workspace={team}")
    assert (item["status"], item["reason"], item["endpoint"]) == ("Terminating", "Terminating", "")
    marked = world.stored(team, name)
    assert marked.deletion_requested_by == "owner"
    assert owner("DELETE", ENDPOINT, body).data == {"endpoint": name}
    assert world.stored(team, name) == marked
    world.finish_deletion(team, name)
    owner("DELETE", ENDPOINT, body).is_error(404, "NOT_FOUND", "EndpointNotFound")
    assert listed(owner, f"workspace={team}") == []
    world.create(team, name)


def test_stop_and_start(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    body = {"endpoint": name, "workspace": team}
    for _ in range(2):
        assert owner("POST", f"{ENDPOINT}/stop", body).data == {"endpoint": name}
    stopped = world.stored(team, name)
    assert (stopped.spec.stopped, stopped.spec.stopped_by, stopped.generation) == (True, "owner", 2)
    world.become(stopped, EndpointStatus(observed_generation=2))
    shown = described(owner, team, name)
    assert (shown["status"], shown["reason"], shown["stopped"]) == ("Stopped", "StoppedByUser", True)
    assert shown["message"] == "stopped by owner"
    assert shown["replicaCount"] == {"ready": 0, "desired": 0}
    for _ in range(2):
        assert owner("POST", f"{ENDPOINT}/start", body).data == {"endpoint": name}
    started = world.stored(team, name)
    assert (started.spec.stopped, started.generation) == (False, 3)
    owner("DELETE", ENDPOINT, body).ok()
    for verb in ("stop", "start"):
        owner("POST", f"{ENDPOINT}/{verb}", body).is_error(409, "CONFLICT", "EndpointTerminating")


@pytest.mark.parametrize(("method", "path"), [("DELETE", ""), ("POST", "/stop"), ("POST", "/start")])
def test_changes_of_nothing(owner: Client, team: str, method: str, path: str) -> None:
    owner(method, ENDPOINT + path, {"endpoint": "x", "workspace": team}).is_error(
        404, "NOT_FOUND", "EndpointNotFound"
    )
    owner(method, ENDPOINT + path, {"endpoint": "x", "workspace": "nowhere"}).is_error(404, "NOT_FOUND")
    owner(method, ENDPOINT + path, {"workspace": team}).is_error(422, "INVALID", "Missing")
    owner(method, ENDPOINT + path, {"endpoint": "x"}).is_error(422, "INVALID", "Missing")
    owner(method, ENDPOINT + path, {"endpoint": "x", "workspace": ""}).is_error(422, "INVALID", "Missing")
    owner(method, ENDPOINT + path, {"endpoint": 1, "workspace": team}).is_error(422, "INVALID", "WrongType")


def test_every_change_leaves_an_event(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    body = {"endpoint": name, "workspace": team}
    for method, path in (("POST", "/stop"), ("POST", "/start"), ("DELETE", ""), ("DELETE", "")):
        owner(method, ENDPOINT + path, body).ok()
    data = owner("GET", f"{ENDPOINT}/events?workspace={team}&endpoint={name}").data
    assert set(data) == {"events"}
    events = data["events"]
    keys = {"seq", "at", "kind", "message", "actor", "workspace", "endpoint", "reason", "data"}
    assert all(set(each) == keys for each in events)
    assert [each["kind"] for each in events] == [
        *("EndpointCreated", "EndpointStopRequested", "EndpointStartRequested", "EndpointDeletionRequested")
    ]
    assert {(each["actor"], each["endpoint"], each["workspace"]) for each in events} == {
        ("owner", name, team)
    }
    assert [each["seq"] for each in events] == sorted(each["seq"] for each in events)


def test_events_page_forward(world: World, owner: Client, team: str) -> None:
    name = world.create(team)
    endpoint = world.stored(team, name)

    async def add() -> None:
        async with world.store.transaction() as tx:
            for number in range(10):
                await tx.append_event(
                    Event(
                        world.now(),
                        "ReplicaExited",
                        "at s3://k:hunter2@b",
                        "controller",
                        team,
                        name,
                        endpoint.uid,
                        ReasonCode.SERVER_EXITED,
                        {"number": number, "uri": ["s3://k:hunter2@b"]},
                    )
                )

    world.do(add())
    place = f"{ENDPOINT}/events?workspace={team}&endpoint={name}"
    newest = owner("GET", f"{place}&limit=3").data
    assert [each["data"]["number"] for each in newest["events"]] == [7, 8, 9]
    assert "hunter2" not in str(newest)
    seen: list[int] = []
    after = "0"
    while after:
        page = owner("GET", f"{place}&limit=4&after={after}").data
        seen += [each["data"].get("number", -1) for each in page["events"]]
        after = page.get("continue", "")
    assert seen == [-1, *range(10)]
    assert len(owner("GET", f"{ENDPOINT}/events?workspace={team}&limit=100").data["events"]) == 11
    owner("GET", f"{ENDPOINT}/events?workspace=nowhere").is_error(404, "NOT_FOUND")
