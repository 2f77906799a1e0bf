"""`POST /inference-endpoint`: both forms, everything it refuses, dry runs."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import pytest

from api_world import Client, World
from inferplane.domain.endpoint import Resources, Scaling, TrafficLimits
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode

ENDPOINT = "/api/v1/inference-endpoint"
SEED_MANIFEST = (
    'apiVersion: "serving.kserve.io/v1beta1"\nkind: "InferenceService"\nmetadata:\n name: "sklearn-iris"\n'
    "spec:\n predictor:\n model:\n modelFormat:\n name: sklearn\n"
)
MANIFEST = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: their-name
spec:
  predictor:
    minReplicas: 2
    maxReplicas: 3
    timeout: 30
    model:
      modelFormat: {name: sklearn}
      storageUri: gs://kfserving-examples/models/sklearn/1.0/model
      resources: {limits: {cpu: 500m, memory: 1Gi}}
"""


def request(world: World, team: str, **change: Any) -> dict[str, Any]:
    return {
        "endpointName": world.name("e"),
        "workspace": team,
        "clusterName": "local",
        "modelSpec": {
            "modelName": "sklearn",
            "storageURI": "gs://kfserving-examples/models/sklearn/1.0/model",
        },
        **change,
    }


def with_model(world: World, team: str, **change: Any) -> dict[str, Any]:
    body = request(world, team)
    body["modelSpec"] |= change
    return body


def test_the_documented_request_is_accepted(world: World, owner: Client, team: str) -> None:
    body = request(world, team)
    reply = owner("POST", ENDPOINT, body)
    assert reply.data == {"endpointName": body["endpointName"]}
    stored = world.stored(team, body["endpointName"])
    assert re.fullmatch(r"[0-9a-f]{12}", stored.uid)
    assert re.fullmatch(f"{team}-{body['endpointName'][:12]}-[a-z0-9]{{6}}", stored.namespace)
    assert (stored.cluster, stored.generation, stored.created_by) == ("local", 1, "owner")


def test_everything_in_a_model_spec_is_kept(world: World, owner: Client, team: str) -> None:
    body = with_model(
        world,
        team,
        modelVersion="1",
        protocolVersion="v2",
        args=["--x", "1"],
        env={"PREDICT_PROBA": "true"},
        secret={"AWS_ACCESS_KEY_ID": "AKIA", "AWS_SECRET_ACCESS_KEY": "hunter2"},
        resources={"cpu": "500m", "memory": "1Gi"},
        digest="SHA256:" + "A" * 64,
        startTimeoutSeconds=10,
        timeoutSeconds=5,
        maxRequestBytes=1000,
    )
    body["autoscaling"] = {"minReplicas": 2, "maxReplicas": 4}
    owner("POST", ENDPOINT, body).ok()
    spec = world.stored(team, body["endpointName"]).spec
    model = spec.model
    assert (model.format, model.format_version, model.protocol_version) == ("sklearn", "1", "v2")
    assert model.args == ("--x", "1")
    assert model.env == (("PREDICT_PROBA", "true"),)
    assert model.resources == Resources(500, 1024**3)
    assert model.digest == "sha256:" + "a" * 64
    assert model.start_timeout_seconds == 10
    assert spec.scaling == Scaling(2, 4)
    assert spec.limits == TrafficLimits(1000, 5)


def test_limits_may_stand_on_their_own(world: World, owner: Client, team: str) -> None:
    body = request(world, team, limits={"maxRequestBytes": 5, "timeoutSeconds": 1.5})
    owner("POST", ENDPOINT, body).ok()
    assert world.stored(team, body["endpointName"]).spec.limits == TrafficLimits(5, 1.5)


@pytest.mark.parametrize("gpu", [None, "None", "none", "", {}, {"gpuShape": None}])
def test_no_gpu_spec_means_cpu(world: World, owner: Client, team: str, gpu: Any) -> None:
    owner("POST", ENDPOINT, request(world, team, gpuSpec=gpu)).ok()


def test_gpus_on_a_cluster_without_any_are_refused(world: World, owner: Client, team: str) -> None:
    seed = {
        "gpuShape": "hello",
        "instanceType": "world",
        "memoryPerGPU": 1024,
        "numberOfGPUNodes": 1,
        "numberOfGPUs": 1,
    }
    error = owner("POST", ENDPOINT, request(world, team, gpuSpec=seed)).is_error(
        422, "INVALID", "NoSuchShape"
    )
    assert error["field"] == "gpuSpec.gpuShape"
    assert "no GPUs" in error["message"]
    assert "CPU" in error["nextAction"]
    owner("POST", ENDPOINT, request(world, team, gpuSpec="many")).is_error(422, "INVALID", "WrongType")
    raw = MANIFEST.replace("memory: 1Gi", "memory: 1Gi, nvidia.com/gpu: '1'")
    owner("POST", ENDPOINT, raw_request(world, team, raw)).is_error(422, "INVALID", "NoSuchShape")


def raw_request(world: World, team: str, text: Any, **change: Any) -> dict[str, Any]:
    return {"endpointName": world.name("e"), "workspace": team, "rawModelSpec": text, **change}


def test_a_whole_inference_service_is_accepted(world: World, owner: Client, team: str) -> None:
    body = raw_request(world, team, MANIFEST)
    data = owner("POST", ENDPOINT, body).data
    assert data == {"endpointName": body["endpointName"]}
    spec = world.stored(team, body["endpointName"]).spec
    assert (spec.model.format, spec.model.alias) == ("sklearn", "their-name")
    assert spec.model.storage_uri == "gs://kfserving-examples/models/sklearn/1.0/model"
    assert (spec.scaling, spec.limits.timeout_seconds) == (Scaling(2, 3), 30.0)
    assert spec.model.resources == Resources(500, 1024**3)
    assert spec.manifest is not None
    assert spec.manifest["kind"] == "InferenceService"


def test_only_the_spec_is_enough(world: World, owner: Client, team: str) -> None:
    for text in (
        MANIFEST[MANIFEST.index("spec:") :],
        json.dumps({"spec": {"predictor": {"sklearn": {"storageUri": "/m.joblib"}}}}),
    ):
        owner("POST", ENDPOINT, raw_request(world, team, text)).ok()


def test_autoscaling_beside_a_manifest_wins(world: World, owner: Client, team: str) -> None:
    body = raw_request(world, team, MANIFEST, autoscaling={"minReplicas": 1, "maxReplicas": 1})
    owner("POST", ENDPOINT, body).ok()
    assert world.stored(team, body["endpointName"]).spec.scaling == Scaling(1, 1)


def test_a_manifest_may_ask_to_be_stopped(world: World, owner: Client, team: str) -> None:
    text = MANIFEST.replace("name: their-name", 'name: x\n  annotations: {serving.kserve.io/stop: "true"}')
    body = raw_request(world, team, text)
    owner("POST", ENDPOINT, body).ok()
    stored = world.stored(team, body["endpointName"])
    assert (stored.spec.stopped, stored.spec.stopped_by, stored.desired_replicas) == (True, "owner", 0)


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        ("spec: [", 400, "MalformedYaml"),
        ("a: 1\n---\nb: 2", 400, "MalformedYaml"),
        ("a: 2024-99-99", 400, "MalformedYaml"),
        ("a: !!python/object/apply:os.system ['true']", 422, "InvalidManifest"),
        ("a: !!bool maybe", 422, "InvalidManifest"),
        ("a: &a [1]\nb: {<<: *a}", 422, "InvalidManifest"),
        ("just text", 422, "InvalidManifest"),
        ("- a\n- b", 422, "InvalidManifest"),
        ("", 422, "InvalidManifest"),
        ("[" * 1000, 422, "InvalidManifest"),
        ("a: " + "[" * 100 + "]" * 100, 422, "InvalidManifest"),
        ("a: " + "x" * 200_000, 422, "TooLong"),
        ("kind: Deployment\nspec: {}", 422, "InvalidManifest"),
        (SEED_MANIFEST, 422, "InvalidManifest"),
        ("spec: {}", 422, "InvalidManifest"),
        ("predictor: {model: {modelFormat: {name: skleran}, storageUri: /m}}", 422, "UnsupportedFormat"),
        ("predictor: {model: {modelFormat: {name: pytorch}, storageUri: /m}}", 422, "NoRuntime"),
        ("predictor: {containers: [{name: kserve-container, image: x}]}", 422, "NoRuntime"),
        ("predictor: {sklearn: {storageUri: 'pvc://claim/m'}}", 422, "SchemeNotSupported"),
        ("&a [*a]", 422, "InvalidManifest"),
        ("a: \x07", 400, "MalformedYaml"),
    ],
)
def test_a_bad_manifest_is_refused_with_a_sentence(
    world: World, owner: Client, team: str, text: str, status: int, reason: str
) -> None:
    error = owner("POST", ENDPOINT, raw_request(world, team, text)).is_error(status, "INVALID", reason)
    assert error["field"].startswith("rawModelSpec")


def test_an_alias_bomb_is_refused_quickly(world: World, owner: Client, team: str) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    owner("POST", ENDPOINT, raw_request(world, team, "\n".join(lines))).is_error(
        422, "INVALID", "InvalidManifest"
    )


def test_exactly_one_form_is_needed(world: World, owner: Client, team: str) -> None:
    both = request(world, team, rawModelSpec=MANIFEST)
    owner("POST", ENDPOINT, both).is_error(422, "INVALID", "Contradiction")
    neither = request(world, team, modelSpec=None)
    error = owner("POST", ENDPOINT, neither).is_error(422, "INVALID", "Missing")
    assert "modelSpec" in error["message"]
    assert "rawModelSpec" in error["message"]


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"modelName": "skleran"}, "modelSpec.modelName", "UnsupportedFormat"),
        ({"modelName": "tensorflow"}, "modelSpec.modelName", "NoRuntime"),
        ({"modelName": ""}, "modelSpec.modelName", "UnsupportedFormat"),
        ({"storageURI": None}, "modelSpec.storageURI", "Missing"),
        ({"storageURI": "pvc://claim/model"}, "modelSpec.storageURI", "SchemeNotSupported"),
        ({"storageURI": "oci://registry/image:1"}, "modelSpec.storageURI", "SchemeNotSupported"),
        ({"storageURI": "hdfs://x/y"}, "modelSpec.storageURI", "SchemeNotSupported"),
        ({"storageURI": "relative/path"}, "modelSpec.storageURI", "InvalidStorageUri"),
        ({"storageURI": "https://ada:hunter2@host/m.joblib"}, "modelSpec.storageURI", "CredentialsInUri"),
        ({"digest": "md5:abc"}, "modelSpec.digest", "InvalidDigest"),
        ({"protocolVersion": "v9"}, "modelSpec.protocolVersion", "InvalidProtocol"),
        ({"protocolVersion": "grpc-v2"}, "modelSpec.modelName", "NoRuntime"),
        ({"runtime": "tritonish"}, "modelSpec.modelName", "NoRuntime"),
        ({"modelVersion": "99"}, "modelSpec.modelName", "NoRuntime"),
        ({"resources": {"memory": "lots"}}, "modelSpec.resources.memory", "InvalidQuantity"),
        ({"resources": {"cpu": 0}}, "modelSpec.resources.cpu", "InvalidQuantity"),
        ({"secret": {"not a name": "hunter2"}}, "modelSpec.secret", "InvalidName"),
        ({"secret": {f"K{n}": "hunter2" for n in range(60)}}, "modelSpec.secret", "TooMany"),
        ({"secret": {"K": "hunter2" * 20_000}}, "modelSpec.secret", "TooLong"),
        ({"env": {"": "x"}}, "modelSpec.env", "InvalidName"),
        ({"args": ["x"] * 300}, "modelSpec.args", "TooMany"),
        ({"args": ["x" * 40_000]}, "modelSpec.args[0]", "TooLong"),
        ({"startTimeoutSeconds": 0}, "modelSpec.startTimeoutSeconds", "OutOfRange"),
        ({"startTimeoutSeconds": 1e9}, "modelSpec.startTimeoutSeconds", "OutOfRange"),
        ({"timeoutSeconds": -1}, "limits.timeoutSeconds", "OutOfRange"),
        ({"maxRequestBytes": 0}, "limits.maxRequestBytes", "OutOfRange"),
    ],
)
def test_a_bad_model_spec_is_422(
    world: World, owner: Client, team: str, change: dict[str, Any], field: str, reason: str
) -> None:
    reply = owner("POST", ENDPOINT, with_model(world, team, **change))
    assert reply.is_error(422, "INVALID", reason)["field"] == field
    assert "hunter2" not in str(reply.body)


def test_refusals_name_the_nearest_match_and_the_place_where_it_works(
    world: World, owner: Client, team: str
) -> None:
    near = owner("POST", ENDPOINT, with_model(world, team, modelName="skleran"))
    assert "did you mean sklearn?" in near.body["message"]
    place = owner("POST", ENDPOINT, with_model(world, team, storageURI="pvc://claim/m"))
    assert "kserve" in place.body["message"]


@pytest.mark.parametrize(
    ("scaling", "field"),
    [
        ({"minReplicas": 0, "maxReplicas": 0}, "autoscaling.maxReplicas"),
        ({"maxReplicas": 0}, "autoscaling.maxReplicas"),
        ({"minReplicas": 3, "maxReplicas": 2}, "autoscaling.minReplicas"),
        ({"minReplicas": -1}, "autoscaling.minReplicas"),
        ({"maxReplicas": 1000}, "autoscaling.maxReplicas"),
        ({"minReplicas": "1"}, "autoscaling.minReplicas"),
        ({"minReplicas": 0, "scaleToZeroAfter": "soon"}, "autoscaling.scaleToZeroAfter"),
        ({"minReplicas": 0, "scaleToZeroAfter": "0s"}, "autoscaling.scaleToZeroAfter"),
        ({"minReplicas": 0, "scaleToZeroAfter": "366d"}, "autoscaling.scaleToZeroAfter"),
        ({"maxReplicas": 3, "targetConcurrency": 0}, "autoscaling.targetConcurrency"),
        ({"maxReplicas": 3, "targetRate": -1}, "autoscaling.targetRate"),
    ],
)
def test_scaling_that_cannot_be(
    world: World, owner: Client, team: str, scaling: dict[str, Any], field: str
) -> None:
    error = owner("POST", ENDPOINT, request(world, team, autoscaling=scaling)).is_error(422, "INVALID")
    assert error["field"] == field


def test_scaling_is_stored_and_shown(world: World, owner: Client, team: str) -> None:
    scaling = {"minReplicas": 0, "maxReplicas": 3, "targetConcurrency": 2.5, "scaleToZeroAfter": "90s"}
    body = request(world, team, autoscaling=scaling)
    assert owner("POST", ENDPOINT, body).data == {"endpointName": body["endpointName"]}
    spec = world.stored(team, body["endpointName"]).spec
    assert spec.scaling == Scaling(0, 3, 2.5, None, timedelta(seconds=90))
    path = f"{ENDPOINT}?workspace={team}&endpoint={body['endpointName']}"
    shown = owner("GET", path).data["endpoint"]["autoscaling"]
    assert (shown["minReplicas"], shown["maxReplicas"], shown["targetConcurrency"]) == (0, 3, 2.5)
    assert shown["scaleToZeroAfter"] == "0h1m30s"
    assert shown["replicas"] == 1, "it answers once before it sleeps"


def test_what_of_scaling_has_no_effect_is_said(world: World, owner: Client, team: str) -> None:
    scaling = {"targetRate": 5, "scaleToZeroAfter": "5m", "autoscalingProvider": "keda"}
    warnings = owner("POST", ENDPOINT, request(world, team, autoscaling=scaling)).data["warnings"]
    assert [warning.split()[0] for warning in warnings] == [
        "autoscaling.scaleToZeroAfter",
        "autoscaling.targetRate",
        "autoscaling.autoscalingProvider",
    ]


@pytest.mark.parametrize("name", ["Iris", "a_b", "-a", "a-", "a" * 64, "a.b", "ä", "a b", "a/b"])
def test_a_name_is_a_dns_label(world: World, owner: Client, team: str, name: str) -> None:
    error = owner("POST", ENDPOINT, request(world, team, endpointName=name)).is_error(
        422, "INVALID", "InvalidName"
    )
    assert error["field"] == "endpointName"


def test_a_name_of_63_characters_works(world: World, owner: Client, team: str) -> None:
    owner("POST", ENDPOINT, request(world, team, endpointName="a" * 63)).ok()


def test_all_problems_of_meaning_are_told_at_once(world: World, owner: Client, team: str) -> None:
    body = with_model(world, team, modelName="skleran", storageURI="x", digest="y", resources={"cpu": "z"})
    body |= {"endpointName": "Bad", "autoscaling": {"minReplicas": -1}}
    details = owner("POST", ENDPOINT, body).is_error(422, "INVALID")["details"]
    assert [detail["field"] for detail in details] == [
        "endpointName",
        "modelSpec.modelName",
        "modelSpec.storageURI",
        "modelSpec.digest",
        "modelSpec.resources.cpu",
        "autoscaling.minReplicas",
    ]


def test_the_cluster_is_found(world: World, owner: Client) -> None:
    two = world.workspace("local", "edge")
    for change, cluster in (
        ({"clusterName": "edge"}, "edge"),
        ({"clusterName": "", "clusterPrecedence": ["edge", "local"]}, "edge"),
        ({"clusterName": None, "clusterPrecedence": ["nowhere", "local"]}, "local"),
        ({"clusterName": "local", "clusterPrecedence": ["edge"]}, "local"),
    ):
        body = request(world, two, **change)
        owner("POST", ENDPOINT, body).ok()
        assert world.stored(two, body["endpointName"]).cluster == cluster
    error = owner("POST", ENDPOINT, request(world, two, clusterName=None)).is_error(422, "INVALID", "Missing")
    assert error["field"] == "clusterName"
    for change in ({"clusterName": "cloud"}, {"clusterName": "", "clusterPrecedence": ["cloud"]}):
        owner("POST", ENDPOINT, request(world, two, **change)).is_error(
            422, "INVALID", "ClusterNotInWorkspace"
        )
    one = world.workspace("edge")
    owner("POST", ENDPOINT, request(world, one, clusterName="")).ok()


def test_unknown_workspaces_are_404(world: World, owner: Client) -> None:
    owner("POST", ENDPOINT, request(world, "nowhere")).is_error(404, "NOT_FOUND", "WorkspaceNotFound")
    owner("POST", ENDPOINT, request(world, "")).is_error(422, "INVALID", "Missing")


def test_the_same_name_on_the_same_cluster_is_409(world: World, owner: Client) -> None:
    two = world.workspace("local", "edge")
    body = request(world, two)
    owner("POST", ENDPOINT, body).ok()
    owner("POST", ENDPOINT, body).is_error(409, "ALREADY_EXISTS", "EndpointExists")
    owner("POST", ENDPOINT, {**body, "clusterName": "edge"}).ok()
    owner("DELETE", ENDPOINT, {"endpoint": body["endpointName"], "workspace": two, "cluster": "local"}).ok()
    error = owner("POST", ENDPOINT, body).is_error(409, "ALREADY_EXISTS", "EndpointTerminating")
    assert "being deleted" in error["message"]


def test_a_repeated_create_gives_the_same_answer(world: World, owner: Client, team: str) -> None:
    headers = {"Idempotency-Key": world.name("k")}
    body = request(world, team)
    first = owner("POST", ENDPOINT, body, headers=headers)
    again = owner("POST", ENDPOINT, body, headers=headers)
    assert first.data == again.data
    other = request(world, team)
    owner("POST", ENDPOINT, other, headers=headers).is_error(409, "CONFLICT", "IdempotencyKeyReused")
    # Another caller's key of the same name is another key.
    editor = world.client("Editor", team)
    editor("POST", ENDPOINT, other, headers=headers).ok()


def test_a_repeated_create_does_not_speak_of_an_endpoint_that_is_gone(
    world: World, owner: Client, team: str
) -> None:
    headers = {"Idempotency-Key": world.name("k")}
    body = request(world, team)
    owner("POST", ENDPOINT, body, headers=headers).ok()
    owner("DELETE", ENDPOINT, {"endpoint": body["endpointName"], "workspace": team}).ok()
    error = owner("POST", ENDPOINT, body, headers=headers).is_error(409, "CONFLICT", "IdempotencyKeySpent")
    assert "deleted" in error["message"]
    assert "new idempotency key" in error["nextAction"]


def test_what_has_no_effect_is_said_with_the_answer(world: World, owner: Client, team: str) -> None:
    body = with_model(world, team, args=["--predict_proba", "--password=hunter2"])
    data = owner("POST", ENDPOINT, body).data
    assert data["endpointName"] == body["endpointName"]
    (args,) = data["warnings"]
    assert args.startswith("modelSpec.args: --password has no effect")
    assert "hunter2" not in args
    events = owner("GET", f"{ENDPOINT}/events?workspace={team}&endpoint={body['endpointName']}").data[
        "events"
    ]
    assert events[0]["message"].endswith(", with a warning")
    assert events[0]["data"]["warnings"] == data["warnings"]


@pytest.mark.parametrize("spelling", ["dryRun", "dryrun", "DRYRUN"])
def test_the_case_of_a_query_parameter_does_not_matter(
    world: World, owner: Client, team: str, spelling: str
) -> None:
    data = owner("POST", f"{ENDPOINT}?{spelling}=True", request(world, team)).data
    assert "preflight" in data


def test_a_failed_create_is_not_remembered(world: World, owner: Client, team: str) -> None:
    headers = {"Idempotency-Key": world.name("k")}
    owner("POST", ENDPOINT, request(world, team, endpointName="Bad"), headers=headers).is_error(
        422, "INVALID"
    )
    owner("POST", ENDPOINT, request(world, team), headers=headers).ok()


def test_secrets_are_never_shown_again(world: World, owner: Client, team: str) -> None:
    body = with_model(
        world,
        team,
        storageURI="https://host/m.joblib?X-Amz-Signature=hunter2&v=1",
        secret={"AWS_SECRET_ACCESS_KEY": "hunter3"},
    )
    owner("POST", ENDPOINT, body).ok()
    place = f"workspace={team}&endpoint={body['endpointName']}"
    for path in (
        f"{ENDPOINT}?{place}",
        f"{ENDPOINT}/list?workspace={team}",
        f"{ENDPOINT}/events?{place}",
        f"{ENDPOINT}/explain?{place}",
        f"{ENDPOINT}?{place}&dryRun=true",
    ):
        shown = str(owner("GET", path).body)
        assert "hunter" not in shown
    described = owner("GET", f"{ENDPOINT}?{place}").data["endpoint"]
    assert described["model"]["secretKeys"] == ["AWS_SECRET_ACCESS_KEY"]
    assert described["model"]["storageURI"] == "https://host/m.joblib?X-Amz-Signature=***&v=1"
    error = owner("POST", ENDPOINT, body).is_error(409, "ALREADY_EXISTS")
    assert "hunter" not in str(error)


def test_a_dry_run_tells_everything_and_stores_nothing(world: World, owner: Client, team: str) -> None:
    world.engine.checks = (
        Check("storage", True, None, "reachable, 1.2 KiB"),
        Check("format", False, ReasonCode.MODEL_FILE_MISSING, "no .joblib in s3://k:hunter2@b", "Store one."),
    )
    body = with_model(world, team, secret={"K": "hunter2"})
    data = owner("POST", f"{ENDPOINT}?dryRun=true", body).data
    assert set(data) == {"endpointName", "preflight"}
    checks = {each["check"]: each for each in data["preflight"]}
    assert {"name", "quota", "runtime", "storage", "format"} <= set(checks)
    assert all(set(each) == {"check", "ok", "reason", "message", "nextAction"} for each in data["preflight"])
    assert all((each["reason"] == "") == each["ok"] for each in data["preflight"])
    assert checks["format"]["reason"] == "ModelFileMissing"
    assert "hunter2" not in str(data)
    assert world.engine.asked[-1].secret == {"K": "hunter2"}
    owner("GET", f"{ENDPOINT}?workspace={team}&endpoint={body['endpointName']}").is_error(404, "NOT_FOUND")
    assert owner("GET", f"{ENDPOINT}/events?workspace={team}").data == {"events": []}


def test_a_dry_run_reports_what_create_would_refuse(world: World, owner: Client, team: str) -> None:
    taken = world.create(team)

    def failed(body: dict[str, Any]) -> dict[str, str]:
        data = owner("POST", f"{ENDPOINT}?dryRun=true", body).data
        return {each["check"]: each["reason"] for each in data["preflight"] if not each["ok"]}

    assert failed(request(world, team, endpointName=taken)) == {"name": "EndpointExists"}
    assert failed(with_model(world, team, modelName="tensorflow")) == {"runtime": "NoRuntime"}
    assert failed(with_model(world, team, storageURI="pvc://c/m")) == {"scheme": "SchemeNotSupported"}
    assert failed(request(world, team, gpuSpec={"numberOfGPUs": 1})) == {"gpu": "NoSuchShape"}
    assert failed(request(world, world.workspace("edge"), clusterName="edge")) == {
        "cluster": "ClusterUnreachable"
    }
    world.engine.failure = "cannot look at s3://k:hunter2@bucket"
    assert failed(request(world, team)) == {"cluster": "EngineError"}
    world.engine.hangs = True
    assert failed(request(world, team)) == {"cluster": "ClusterUnreachable"}
    owner("POST", f"{ENDPOINT}?dryRun=true", request(world, team, endpointName="Bad")).is_error(
        422, "INVALID"
    )
    owner("POST", f"{ENDPOINT}?dryRun=true", request(world, "nowhere")).is_error(404, "NOT_FOUND")
