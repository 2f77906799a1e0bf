"""The verbs on endpoints: what goes to stdout, what to stderr, and how a script learns how it went."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fake_platform import AT, KEY, Told, no, running, waiting
from inferplane.wire import paths
from inferplane.wire.endpoints import CheckItem, EventItem, LogLineItem
from inferplane.wire.envelope import ErrorKey

DEPLOY = ("deploy", "iris", "--format", "sklearn", "--uri", "/m.joblib")
MANIFEST = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: from-yaml}
spec:
  predictor:
    model: {modelFormat: {name: sklearn}, storageUri: /m.joblib}
"""


def test_deploy_says_that_it_was_accepted(shell: Any) -> None:
    ran = shell.run(*DEPLOY)
    assert (ran.code, ran.out) == (0, "iris is accepted in workspace default\n")
    assert ran.err == "Follow it with: inferplane describe iris -w default\n"
    assert shell.run("deploy", "two", "-f", "onnx", "-u", "hf://a/b", "-o", "json").json == {
        "endpointName": "two"
    }


def test_what_has_no_effect_is_told_without_disturbing_the_result(shell: Any) -> None:
    shell.platform.warnings = ["maxReplicas has no effect yet"]
    ran = shell.run(*DEPLOY, "-o", "json")
    assert (ran.code, ran.json) == (0, {"endpointName": "iris"})
    assert ran.err == "warning: maxReplicas has no effect yet\n"


def test_deploy_sends_what_it_was_told(shell: Any, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text("# credentials\nAWS_ACCESS_KEY_ID=a=b\nAWS_SECRET_ACCESS_KEY=from file\n\n")
    ran = shell.run(
        *DEPLOY,
        *("-w", "team", "-c", "local", "--secret-file", str(secrets), "--secret", "AWS_SECRET_ACCESS_KEY=x"),
        *("--digest", "sha256:00", "--env", "PREDICT_PROBA=true", "--cpu", "500m", "--memory", "1Gi"),
        *("--replicas", "2", "--request-timeout", "5", "--max-request-bytes", "1000"),
    )
    assert ran.code == 0, ran.err
    assert shell.platform.asked[-1].body == {
        "endpointName": "iris",
        "workspace": "team",
        "clusterName": "local",
        "modelSpec": {
            "modelName": "sklearn",
            "storageURI": "/m.joblib",
            "env": {"PREDICT_PROBA": "true"},
            "secret": {"AWS_ACCESS_KEY_ID": "a=b", "AWS_SECRET_ACCESS_KEY": "x"},
            "resources": {"cpu": "500m", "memory": "1Gi"},
            "digest": "sha256:00",
        },
        "autoscaling": {"minReplicas": 2, "maxReplicas": 2},
        "limits": {"maxRequestBytes": 1000, "timeoutSeconds": 5.0},
    }


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("models/iris.joblib", f"{Path.cwd()}/models/iris.joblib"),
        ("~/iris.joblib", f"{Path.home()}/iris.joblib"),
        ("/models/iris.joblib", "/models/iris.joblib"),
        ("s3://bucket/key", "s3://bucket/key"),
    ],
)
def test_a_path_is_meant_from_where_the_command_is_run(shell: Any, given: str, sent: str) -> None:
    assert shell.run("deploy", "iris", "-f", "sklearn", "-u", given).code == 0
    assert shell.platform.asked[-1].body["modelSpec"]["storageURI"] == sent


def test_a_secret_is_not_repeated_when_it_is_misspelt(shell: Any) -> None:
    ran = shell.run(*DEPLOY, "--secret", "hunter2")
    assert (ran.code, ran.out) == (2, "")
    assert "NAME=VALUE" in ran.err
    assert "hunter2" not in ran.err


def test_deploy_waits_and_shows_each_step_once_where_nobody_looks(shell: Any) -> None:
    loading = waiting("iris", "Downloading", "Downloading", "1.0 MiB of 2.0 MiB")
    shell.platform.after_create = [
        waiting("iris", "Pending", "Accepted", "accepted"),
        loading,
        waiting("iris", "Downloading", "Downloading", "1.5 MiB of 2.0 MiB"),
        running("iris"),
    ]
    ran = shell.run(*DEPLOY, "--wait")
    assert ran.code == 0
    assert ran.out == "iris is Running at http://iris.default.localhost:7080/v1/models/iris:predict\n"
    assert ran.err.splitlines() == [
        "iris: accepted",
        "iris: Pending — accepted",
        "iris: Downloading — 1.0 MiB of 2.0 MiB",
        "iris: Running",
    ]


def test_waiting_with_json_brings_the_description(shell: Any) -> None:
    ran = shell.run(*DEPLOY, "--wait", "-o", "json")
    assert (ran.json["endpointName"], ran.json["status"]) == ("iris", "Running")


def test_an_endpoint_that_fails_while_waiting(shell: Any) -> None:
    shell.platform.after_create = [
        waiting("iris", "Failed", "ModelNotFound", "nothing is stored at /m.joblib")
    ]
    ran = shell.run(*DEPLOY, "--wait")
    assert (ran.code, ran.out) == (6, "")
    assert ran.err.splitlines()[-3:] == [
        "Error: iris is Failed — ModelNotFound: nothing is stored at /m.joblib",
        "  reason: ModelNotFound",
        "  next: Mend ModelNotFound.",
    ]


def test_the_time_to_wait_is_bounded(shell: Any) -> None:
    shell.platform.after_create = [waiting("iris", "Loading", "Loading", "loading")]
    ran = shell.run(*DEPLOY, "--wait", "--timeout", "0.1")
    assert ran.code == 7
    assert "iris is still Loading after 0.1 s: loading" in ran.err


def test_a_dry_run_lists_its_findings(shell: Any) -> None:
    shell.platform.checks = [
        CheckItem("name", True, message="the name is free"),
        CheckItem("manifest", True, message="x has no effect"),
        CheckItem("storage", False, "ModelNotFound", "nothing at /m.joblib", "Correct the storage URI."),
    ]
    ran = shell.run(*DEPLOY, "--dry-run")
    assert ran.code == 9
    assert ran.out.splitlines() == [
        "ok    name: the name is free",
        "warn  manifest: x has no effect",
        "FAIL  storage: nothing at /m.joblib [ModelNotFound]",
        "      Correct the storage URI.",
    ]
    shell.platform.checks.pop()
    ran = shell.run(*DEPLOY, "--dry-run", "-o", "json")
    assert (ran.code, ran.json["preflight"][0]["check"]) == (0, "name")
    assert shell.platform.endpoints == {}


def test_a_taken_name(shell: Any) -> None:
    shell.run(*DEPLOY)
    ran = shell.run(*DEPLOY)
    assert (ran.code, ran.out) == (5, "")
    assert ran.err.splitlines() == [
        "Error: endpoint iris exists already",
        "  reason: EndpointExists",
        "  field: endpointName",
        "  next: Choose another name.",
        "  request: req-1",
    ]


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_apply_takes_a_manifest_from_a_file_or_a_pipe(shell: Any, source: str, tmp_path: Path) -> None:
    file = tmp_path / "isvc.yaml"
    file.write_text(MANIFEST)
    if source == "file":
        ran = shell.run("apply", "-f", str(file))
    else:
        ran = shell.run("apply", "-f", "-", stdin=MANIFEST)
    assert (ran.code, ran.out) == (0, "from-yaml is accepted in workspace default\n")
    assert shell.platform.asked[-1].body["rawModelSpec"] == MANIFEST


def test_apply_of_a_bare_spec_needs_a_name(shell: Any) -> None:
    bare = "spec: {predictor: {sklearn: {storageUri: /m}}}"
    ran = shell.run("apply", "-f", "-", stdin=bare)
    assert ran.code == 9
    assert "--name" in ran.err
    assert shell.run("apply", "-f", "-", "--name", "mine", "--wait", stdin=bare).code == 0


def test_a_manifest_that_cannot_be_read(shell: Any, tmp_path: Path) -> None:
    ran = shell.run("apply", "-f", str(tmp_path / "nope.yaml"))
    assert ran.code == 2
    assert "cannot be read: No such file" in ran.err
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert shell.run("apply", "-f", str(tmp_path / "binary")).code == 9
    assert shell.run("apply", "-f", "-", stdin="a: [").code == 9


def test_list_as_columns_and_as_json(shell: Any) -> None:
    assert shell.run("list").out == "no endpoints\n"
    shell.platform.endpoints = {
        "a-very-long-endpoint-name-that-no-terminal-may-cut": [
            running("a-very-long-endpoint-name-that-no-terminal-may-cut")
        ],
        "b": [waiting("b", "Failed", "ModelNotFound")],
    }
    lines = shell.run("list", COLUMNS="40").out.splitlines()
    assert lines[0].split() == ["NAME", "FORMAT", "STATUS", "REASON", "REPLICAS", "CLUSTER", "URL"]
    assert lines[1].split()[0] == "a-very-long-endpoint-name-that-no-terminal-may-cut"
    assert lines[2].split() == ["b", "sklearn", "Failed", "ModelNotFound", "0/1", "local", "-"]
    items = shell.run("list", "-o", "json").json["endpoints"]
    assert [item["endpointName"] for item in items] == [*shell.platform.endpoints]
    assert shell.run("list", "--all").out.startswith("WORKSPACE")
    failed = shell.run("list", "--status", "Failed", "-o", "json").json["endpoints"]
    assert [item["endpointName"] for item in failed] == ["b"]


def test_the_workspace_comes_from_the_flag_then_the_environment(shell: Any) -> None:
    shell.run("list", INFERPLANE_WORKSPACE="team")
    shell.run("list", "-w", "other", INFERPLANE_WORKSPACE="team")
    shell.run("list", "--all", INFERPLANE_WORKSPACE="team")
    asked = [each.query.get("workspace") for each in shell.platform.asked if each.path == paths.ENDPOINT_LIST]
    assert asked == ["team", "other", None]


def test_describe_for_people_and_for_programs(shell: Any) -> None:
    shell.platform.endpoints["iris"] = [running("iris")]
    text = shell.run("describe", "iris").out
    assert "Status:" in text
    assert "http://iris.default.localhost:7080/v1/models/iris:predict" in text
    assert "ready     2026-01-31 12:00:00 UTC  +340 ms  340 ms" in text
    assert text.endswith("-d '{\"instances\":[[1.0]]}'\n"), "the try command can be copied as it stands"
    found = shell.run("describe", "iris", "-o", "json").json
    assert (found["status"], found["model"]["storageURI"]) == ("Running", "/m.joblib")


def test_what_is_not_there(shell: Any) -> None:
    for command in ("describe", "explain", "logs", "events", "stop", "start", "delete"):
        ran = shell.run(command, "nope")
        assert (ran.code, ran.out) == (3, ""), command
        assert "Error: endpoint nope does not exist" in ran.err


def test_predict_prints_the_answer_and_nothing_else(shell: Any, tmp_path: Path) -> None:
    url = str(shell.environment["INFERPLANE_API_URL"])
    shell.platform.endpoints["iris"] = [running("iris", url)]
    file = tmp_path / "request.json"
    file.write_text('{"instances": [[1], [2]]}')
    ran = shell.run("predict", "iris", "-d", '{"instances": [[1.5]]}')
    assert (ran.code, ran.out, ran.err) == (0, '{"predictions":[0]}\n', "")
    assert shell.run("predict", "iris", "-d", f"@{file}", "-o", "json").json == {"predictions": [0, 0]}
    assert shell.run("predict", "iris", "-d", "-", stdin='{"instances": [[1]]}').code == 0
    assert shell.run("predict", "iris", "--example").out == '{"predictions":[0]}\n'
    assert shell.run("predict", "iris", "-d", '{"inputs": []}').out.startswith('{"model_name"')
    assert shell.platform.asked[-1].path.endswith("/v2/models/iris/infer")


@pytest.mark.parametrize(
    ("told", "code", "said"),
    [
        (Told(400, b'{"error":"instances[0] has 3 values"}'), 9, "instances[0] has 3 values"),
        (Told(413, b'{"error":"larger than 16 MiB"}'), 9, "larger than 16 MiB"),
        (Told(503, b'{"error":"not ready: Loading","reason":"Loading"}'), 8, "reason: Loading"),
        (Told(504, b'{"error":"took longer than 60 s"}'), 7, "took longer than 60 s"),
        (Told(500, b"oops"), 1, "oops"),
    ],
)
def test_a_prediction_that_fails(shell: Any, told: Told, code: int, said: str) -> None:
    shell.platform.endpoints["iris"] = [running("iris", str(shell.environment["INFERPLANE_API_URL"]))]
    shell.platform.prediction = told
    ran = shell.run("predict", "iris", "-d", '{"instances": [[1]]}')
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err


@pytest.mark.parametrize(
    ("words", "code"),
    [((), 2), (("-d", "{}", "--example"), 2), (("-d", "{instances"), 9), (("-d", "@/no/such/file"), 2)],
)
def test_a_request_that_is_none_is_not_sent(shell: Any, words: tuple[str, ...], code: int) -> None:
    assert shell.run("predict", "iris", *words).code == code
    assert shell.platform.asked == []


def test_logs(shell: Any) -> None:
    shell.platform.endpoints["iris"] = [running("iris")]
    shell.platform.lines = [LogLineItem("r1-0", "loading"), LogLineItem("r1-0", "[bold]ready[/bold]")]
    assert shell.run("logs", "iris").out == "loading\n[bold]ready[/bold]\n"
    assert shell.run("logs", "iris", "-o", "json").json["lines"][0] == {"replica": "r1-0", "text": "loading"}
    followed = shell.run("logs", "iris", "--follow", "-o", "json").out.splitlines()
    assert followed == [
        '{"replica":"r1-0","text":"loading"}',
        '{"replica":"r1-0","text":"[bold]ready[/bold]"}',
    ]
    shell.run("logs", "iris", "--previous", "--tail", "5", "--replica", "r1-0")
    assert shell.platform.asked[-1].query == {
        "workspace": "default",
        "endpoint": "iris",
        "replica": "r1-0",
        "previous": "true",
        "tail": "5",
    }
    shell.platform.lines.append(LogLineItem("r1-1", "other"))
    assert shell.run("logs", "iris").out.splitlines()[-1] == "r1-1  other"


def test_events(shell: Any) -> None:
    shell.platform.endpoints["iris"] = [running("iris")]
    assert shell.run("events", "iris").out == "no events\n"
    shell.platform.events = [
        EventItem(1, AT, "EndpointCreated", "sklearn model", "owner", "default", "iris", "Accepted"),
        EventItem(2, AT + timedelta(seconds=1), "EndpointRunning", "Running", endpoint="iris"),
    ]
    lines = shell.run("events", "iris").out.splitlines()
    assert lines == [
        "2026-01-31 12:00:00 UTC  EndpointCreated       iris: sklearn model [Accepted] (by owner)",
        "2026-01-31 12:00:01 UTC  EndpointRunning       iris: Running",
    ]
    assert [event["seq"] for event in shell.run("events", "-o", "json").json["events"]] == [1, 2]


def test_explain(shell: Any) -> None:
    shell.platform.endpoints["iris"] = [waiting("iris", "Failed", "ModelLoadFailed", "it is no model")]
    shell.platform.events.append(
        EventItem(3, AT, "ScaledUp", "from 1 to 2 replicas: 40 requests at once", "controller")
    )
    text = shell.run("explain", "iris").out
    for said in ("Meaning:", "What it means.", "Exit code:  3", "  ValueError: no", "Mend ModelLoadFailed."):
        assert said in text
    assert "ScaledUp  2026-01-31 12:00:00 UTC  from 1 to 2 replicas: 40 requests at once" in text
    assert shell.run("explain", "iris", "-o", "json").json["reason"] == "ModelLoadFailed"


def test_stop_and_start(shell: Any) -> None:
    shell.platform.endpoints["iris"] = [running("iris")]
    assert shell.run("stop", "iris").out == "iris is being stopped\n"
    assert shell.run("stop", "iris", "--wait").out == "iris is stopped\n"
    assert shell.run("start", "iris", "-o", "json").json == {"endpoint": "iris"}
    ran = shell.run("start", "iris", "--wait")
    assert ran.out.startswith("iris is Running at ")


def test_delete_waits_until_nothing_is_left(shell: Any) -> None:
    shell.platform.endpoints = {"a": [running("a")], "b": [running("b")]}
    ran = shell.run("delete", "a", "nope", "b")
    assert (ran.code, ran.out) == (3, "a is deleted\nb is deleted\n")
    assert "endpoint nope does not exist" in ran.err
    assert "a: Terminating — being deleted; left: routes" in ran.err
    shell.platform.endpoints = {"a": [running("a")]}
    assert shell.run("delete", "a", "--no-wait", "-o", "json").json == {"endpoints": [{"endpoint": "a"}]}


@pytest.mark.parametrize(
    ("told", "code"),
    [
        (no(401, ErrorKey.UNAUTHENTICATED, "Api Key has expired"), 4),
        (no(403, ErrorKey.FORBIDDEN, "a Viewer may not"), 4),
        (no(403, ErrorKey.QUOTA_EXCEEDED, "10 endpoints are the limit"), 4),
        (no(409, ErrorKey.CONFLICT, "it is being deleted"), 5),
        (no(422, ErrorKey.INVALID, "no such format"), 9),
        (no(500, ErrorKey.INTERNAL, "that is our fault"), 1),
        (Told(200, b"<html>"), 1),
    ],
)
def test_each_refusal_has_its_exit_code(shell: Any, told: Told, code: int) -> None:
    from inferplane.wire.envelope import success

    shell.platform.script = [Told(200, success({"token": "t"})), told]
    ran = shell.run(*DEPLOY)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("Error: ")
    assert "Traceback" not in ran.err


def test_several_problems_are_all_told(shell: Any) -> None:
    from inferplane.wire.envelope import ErrorDetail, success

    details = (
        ErrorDetail("Missing", "modelName is needed", "modelSpec.modelName"),
        ErrorDetail("Bad", "no", "workspace"),
    )
    shell.platform.script = [
        Told(200, success({"token": "t"})),
        no(422, ErrorKey.INVALID, "modelName is needed (and 1 more, see details)", details=details),
    ]
    err = shell.run(*DEPLOY).err
    assert "  modelSpec.modelName: modelName is needed" in err
    assert "  workspace: no" in err


def test_no_platform_and_no_key(shell: Any) -> None:
    ran = shell.run("list", INFERPLANE_API_URL="http://127.0.0.1:1")
    assert (ran.code, ran.out) == (8, "")
    assert "the platform does not answer at http://127.0.0.1:1" in ran.err
    assert "inferplane up" in ran.err
    ran = shell.run("list", INFERPLANE_API_KEY="")
    assert ran.code == 4
    assert "no API key was given, and no platform runs with the home folder" in ran.err
    ran = shell.run("list", INFERPLANE_API_KEY="", INFERPLANE_API_URL="")
    assert (ran.code, ran.out) == (8, "")
    assert "no platform runs with the home folder" in ran.err
    assert "inferplane up" in ran.err
    ran = shell.run("--api-url", "ftp://x", "list")
    assert (ran.code, KEY in ran.err) == (2, False)
