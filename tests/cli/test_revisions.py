"""The verbs that change an endpoint while it serves: what they send, show, and end with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fake_platform import AT, Told, no, running
from inferplane.wire import paths
from inferplane.wire.endpoints import (
    CheckItem,
    EndpointChanged,
    EndpointDescription,
    Preflight,
    RevisionItem,
    RolloutItem,
)
from inferplane.wire.envelope import ErrorKey, success

TOKEN = Told(200, success({"token": "t"}))
CHANGED = Told(200, success(EndpointChanged("iris", 2)))


def described(found: EndpointDescription) -> Told:
    return Told(200, success({"endpoint": found}))


def at(phase: str, status: str = "Running", message: str = "") -> EndpointDescription:
    rollout = RolloutItem(phase, 1, 2, AT)
    return running("iris", status=status, message=message, rollout=rollout)


def test_update_sends_what_it_was_told_and_nothing_else(shell: Any) -> None:
    shell.platform.script = [TOKEN, CHANGED]
    ran = shell.run("update", "iris", "-u", "/models/two.joblib", "--canary", "10", "--sticky-header", "x-u")
    assert ran.code == 0, ran.err
    assert "revision 2" in ran.out
    asked = shell.platform.asked[-1]
    assert (asked.method, asked.path) == ("PATCH", paths.ENDPOINT)
    assert asked.headers["idempotency-key"]
    assert asked.body == {
        "workspace": "default",
        "endpoint": "iris",
        "modelSpec": {"storageURI": "/models/two.joblib"},
        "canary": {"percent": 10, "stickyHeader": "x-u"},
    }


def test_update_takes_a_manifest(shell: Any, tmp_path: Path) -> None:
    file = tmp_path / "isvc.yaml"
    file.write_text("spec: {}\n")
    shell.platform.script = [TOKEN, CHANGED]
    ran = shell.run("update", "iris", "--manifest", str(file), "-o", "json")
    assert (ran.code, ran.json) == (0, {"endpoint": "iris", "revision": 2})
    assert shell.platform.asked[-1].body["rawModelSpec"] == "spec: {}\n"


def test_warnings_go_where_they_disturb_nobody(shell: Any) -> None:
    made = EndpointChanged("iris", 2, ("in between nothing answers",))
    shell.platform.script = [TOKEN, Told(200, success(made))]
    ran = shell.run("update", "iris", "-u", "/m", "-o", "json")
    assert ran.json["revision"] == 2
    assert ran.err == "warning: in between nothing answers\n"


def test_waiting_shows_the_way_and_ends_with_the_outcome(shell: Any) -> None:
    shell.platform.script = [
        TOKEN,
        CHANGED,
        described(at("Starting", "Updating", "revision 2 starts")),
        described(at("Complete")),
    ]
    ran = shell.run("update", "iris", "-u", "/m", "--wait")
    assert ran.code == 0, ran.err
    assert "revision 2 starts" in ran.err


def test_waiting_for_one_that_was_put_back_fails(shell: Any) -> None:
    worse = "revision 2 was rolled back to revision 1: 50 % failed"
    shell.platform.script = [TOKEN, CHANGED, described(at("RolledBack", "Degraded", worse))]
    ran = shell.run("update", "iris", "-u", "/m", "--wait")
    assert ran.code == 6
    assert worse in ran.out


def test_a_dry_run_shows_the_checks(shell: Any) -> None:
    checks = (CheckItem("change", True, "", "revision 2"), CheckItem("scheme", False, "X", "no", "Do."))
    shell.platform.script = [TOKEN, Told(200, success(Preflight("iris", checks)))]
    ran = shell.run("update", "iris", "-u", "/m", "--dry-run")
    assert ran.code == 9
    assert "revision 2" in ran.out
    assert shell.platform.asked[-1].query == {"dryRun": "true"}


@pytest.mark.parametrize(
    ("words", "path", "body"),
    [
        (("promote", "iris"), paths.ENDPOINT_PROMOTE, {}),
        (("rollback", "iris"), paths.ENDPOINT_ROLLBACK, {}),
        (("rollback", "iris", "--to", "1"), paths.ENDPOINT_ROLLBACK, {"revision": 1}),
    ],
)
def test_promote_and_rollback_name_what_they_mean(
    shell: Any, words: tuple[str, ...], path: str, body: dict[str, Any]
) -> None:
    shell.platform.script = [TOKEN, CHANGED]
    ran = shell.run(*words, "-w", "team")
    assert ran.code == 0, ran.err
    asked = shell.platform.asked[-1]
    assert (asked.method, asked.path) == ("POST", path)
    assert asked.body == {"workspace": "team", "endpoint": "iris", **body}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            "1 to 3 replicas",
            "iris is changed, without a new revision: 1 to 3 replicas; revision 1 stays\n",
        ),
        ("", "iris stays as it is: revision 1\n"),
    ],
)
def test_a_change_without_a_revision_does_not_seem_to_be_on_its_way(
    shell: Any, changed: str, said: str
) -> None:
    made = EndpointChanged("iris", 1, without_revision=changed)
    shell.platform.script = [TOKEN, Told(200, success(made))]
    ran = shell.run("update", "iris", "--max-replicas", "3")
    assert (ran.code, ran.out) == (0, said)


def test_nothing_to_promote_is_a_conflict(shell: Any) -> None:
    refusal = no(409, ErrorKey.CONFLICT, "no revision is on its way", reason="NoRollout")
    shell.platform.script = [TOKEN, refusal]
    ran = shell.run("promote", "iris")
    assert ran.code == 5
    assert "no revision is on its way" in ran.err


def test_revisions_are_listed_with_what_each_gets(shell: Any) -> None:
    items = (
        RevisionItem(2, "candidate", "sklearn", "/two", AT, "bob", 10, 1, note="until somebody decides"),
        RevisionItem(1, "serving", "sklearn", "/one", AT, "ada", 90, 1),
    )
    shell.platform.script = [TOKEN, described(running("iris", revisions=items))]
    ran = shell.run("revisions", "iris")
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[1][:4] == ["2", "candidate", "10", "%"]
    assert lines[1][-4:] == ["bob", "until", "somebody", "decides"]
    assert lines[2][1] == "serving"
    assert lines[2][-3:] == ["/one", "ada", "-"]


def test_a_path_is_meant_from_where_the_command_is_run(shell: Any) -> None:
    shell.platform.script = [TOKEN, CHANGED]
    shell.run("update", "iris", "-u", "./two.joblib")
    assert shell.platform.asked[-1].body["modelSpec"] == {"storageURI": str(Path("two.joblib").absolute())}


def test_a_dry_run_is_of_everything_that_was_given(shell: Any) -> None:
    shell.platform.script = [TOKEN, Told(200, success(Preflight("iris", ())))]
    ran = shell.run("update", "iris", "--min-replicas", "2", "--mirror", "5", "--dry-run", "-o", "json")
    assert (ran.code, ran.json) == (0, {"endpointName": "iris", "preflight": []})
    body = shell.platform.asked[-1].body
    assert (body["autoscaling"], body["canary"]) == ({"minReplicas": 2}, {"mirrorPercent": 5})


def test_apply_changes_the_endpoint_that_there_is(shell: Any) -> None:
    exists = no(409, ErrorKey.ALREADY_EXISTS, "iris exists already", reason="EndpointExists")
    shell.platform.script = [TOKEN, exists, CHANGED]
    ran = shell.run("apply", "-f", "-", "--name", "iris", "--auto-cluster", stdin="spec: {}")
    assert (ran.code, ran.out) == (0, "iris is being updated: revision 2\n")
    assert shell.platform.asked[-1].method == "PATCH"
    assert shell.platform.asked[-1].body["rawModelSpec"] == "spec: {}"


def test_apply_of_one_that_is_being_deleted_stays_a_conflict(shell: Any) -> None:
    going = no(409, ErrorKey.ALREADY_EXISTS, "iris is being deleted", reason="EndpointTerminating")
    shell.platform.script = [TOKEN, going]
    assert shell.run("apply", "-f", "-", "--name", "iris", stdin="spec: {}").code == 5


def test_a_dry_run_of_apply_is_one_of_a_change_where_there_is_something(shell: Any) -> None:
    taken = CheckItem("name", False, "EndpointExists", "iris exists already", "")
    shell.platform.script = [
        TOKEN,
        Told(200, success(Preflight("iris", (taken,)))),
        Told(200, success(Preflight("iris", (CheckItem("change", True, "", "revision 2"),)))),
    ]
    ran = shell.run("apply", "-f", "-", "--name", "iris", "--dry-run", stdin="spec: {}")
    assert (ran.code, ran.out) == (0, "ok    change: revision 2\n")


def test_a_registered_model_is_no_path(shell: Any) -> None:
    shell.platform.endpoints["iris"] = [running("iris")]
    shell.run("update", "iris", "--uri", "models:/iris@champion")
    assert shell.platform.asked[-1].body["modelSpec"] == {"storageURI": "models:/iris@champion"}


def test_restart_asks_for_the_same_model_again(shell: Any) -> None:
    shell.platform.script = [TOKEN, CHANGED]
    ran = shell.run("restart", "iris", "-w", "team")
    assert (ran.code, ran.out) == (0, "iris is being restarted: revision 2\n")
    asked = shell.platform.asked[-1]
    assert (asked.method, asked.path) == ("PATCH", paths.ENDPOINT)
    assert asked.body == {"workspace": "team", "endpoint": "iris", "restart": True}


def test_update_says_all_that_a_change_takes(shell: Any, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.write_text("# from the vault\nHF_TOKEN=t0ken\n")
    shell.platform.script = [TOKEN, CHANGED]
    ran = shell.run(
        *("update", "iris", "--secret-file", str(secrets), "--secret", "HF_ENDPOINT=http://hub"),
        *("--arg=--task=embeddings", "--target-concurrency", "4", "--target-rate", "0"),
        *("--scale-to-zero-after", "5m", "--rate", "9", "--burst", "3", "--rate-per-key", "2"),
        *("--max-concurrency-per-key", "1", "--request-timeout", "5", "--max-request-bytes", "1000"),
        *("--guard", "--guard-error-points", "0.1", "--guard-latency-factor", "2"),
        *("--guard-latency-least", "50", "--guard-requests", "5", "--guard-window", "10"),
    )
    assert ran.code == 0, ran.err
    body = shell.platform.asked[-1].body
    assert body["modelSpec"] == {
        "args": ["--task=embeddings"],
        "secret": {"HF_TOKEN": "t0ken", "HF_ENDPOINT": "http://hub"},
    }
    assert body["autoscaling"] == {"targetConcurrency": 4, "targetRate": 0, "scaleToZeroAfter": "5m"}
    assert body["limits"] == {
        "requestsPerSecond": 9,
        "burst": 3,
        "requestsPerSecondPerKey": 2,
        "concurrencyMaxPerKey": 1,
        "timeoutSeconds": 5,
        "maxRequestBytes": 1000,
    }
    assert body["guard"] == {
        "enabled": True,
        "errorPoints": 0.1,
        "latencyFactor": 2,
        "latencyLeastMs": 50,
        "requestsMin": 5,
        "windowSeconds": 10,
    }


def test_an_update_of_nothing_is_refused_in_the_words_of_the_command(shell: Any) -> None:
    ran = shell.run("update", "iris")
    assert ran.code == 9, ran.err
    assert "--uri" in ran.err
    assert "modelSpec" not in ran.err
    assert not shell.platform.asked
