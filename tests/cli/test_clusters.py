"""`inferplane cluster …` and `inferplane workspace kubeconfig`: what is sent, what is printed, how it ends."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from fake_platform import AT
from inferplane.wire.endpoints import CheckItem
from inferplane.wire.workspaces import ClusterCapacity, ClusterItem

SECRET = "hunter2hunter2"
MISSING = CheckItem(
    "permissions",
    False,
    "ClusterForbidden",
    "the credentials may not: create inferenceservices.serving.kserve.io (endpoints)",
    "Bind a ClusterRole.",
)


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    """Two contexts, a certificate in a file beside it."""
    (tmp_path / "ca.pem").write_text("authority")
    file = tmp_path / "config"
    file.write_text(
        yaml.safe_dump(
            {
                "current-context": "east",
                "clusters": [
                    {
                        "name": each,
                        "cluster": {"server": f"https://{each}", "certificate-authority": "ca.pem"},
                    }
                    for each in ("east", "west")
                ],
                "users": [
                    {"name": "robot", "user": {"token": SECRET}},
                    {"name": "person", "user": {"exec": {"command": "login"}}},
                ],
                "contexts": [
                    {"name": "east", "context": {"cluster": "east", "user": "robot"}},
                    {"name": "west", "context": {"cluster": "west", "user": "robot"}},
                    {"name": "mine", "context": {"cluster": "west", "user": "person"}},
                ],
            }
        )
    )
    return file


def test_one_context_of_a_kubeconfig_is_sent(shell: Any, kubeconfig: Path) -> None:
    ran = shell.run(
        "cluster", "add", "east", "--kubeconfig", str(kubeconfig), "--context", "west",
        "--domain", "models.example.com", "--ingress", "192.0.2.10", "--drift", "leave",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "ok  api: Kubernetes v1.36.2" in ran.out
    assert "cluster east is known" in ran.out
    assert "--cluster east" in ran.err
    body = shell.platform.asked[-1].body
    sent = yaml.safe_load(body.pop("kubeconfig"))
    assert body == {
        "name": "east",
        "engine": "kserve",
        "context": "west",
        "domain": "models.example.com",
        "ingressAddress": "192.0.2.10",
        "drift": "leave",
    }
    assert [each["name"] for each in sent["contexts"]] == ["west"]
    assert sent["clusters"] == [
        {
            "name": "west",
            "cluster": {
                "server": "https://west",
                "certificate-authority-data": b64encode(b"authority").decode(),
            },
        }
    ]
    assert SECRET not in ran.out + ran.err


def test_a_dry_run_only_looks(shell: Any, kubeconfig: Path) -> None:
    ran = shell.run("cluster", "add", "east", "--kubeconfig", str(kubeconfig), "--dry-run")
    assert ran.code == 0
    assert "Nothing was stored." in ran.err
    assert shell.platform.asked[-1].query == {"dryRun": "true"}


def test_other_ways_to_a_cluster(shell: Any) -> None:
    assert shell.run("cluster", "add", "a", "--kubeconfig-ref", "/etc/a.yaml", "--force").code == 0
    assert shell.platform.asked[-1].body == {
        "name": "a",
        "engine": "kserve",
        "kubeconfigRef": "/etc/a.yaml",
        "force": True,
    }
    assert shell.run("cluster", "add", "a", "--in-cluster", "-o", "json").json["report"]["reachable"] is True
    assert shell.platform.asked[-1].body == {"name": "a", "engine": "kserve", "inCluster": True}


def test_one_without_kubernetes(shell: Any) -> None:
    ran = shell.run("cluster", "add", "worker-2", "--engine", "simulated")
    assert (ran.code, ran.out) == (0, "cluster worker-2 is known\n")
    assert "until it is declared" in ran.err
    ran = shell.run("cluster", "add", "worker-2", "--engine", "simulated", "--ingress", "192.0.2.1")
    assert ran.code == 2
    assert "only for clusters of Kubernetes" in ran.err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--context", "mine"), "gets its credentials from a program"),
        (("--context", "north"), "has no context north"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used(
    shell: Any, kubeconfig: Path, options: tuple[str, ...], said: str
) -> None:
    ran = shell.run("cluster", "add", "east", "--kubeconfig", str(kubeconfig), *options)
    assert ran.code == 2
    assert said in ran.err
    assert "Traceback" not in ran.err
    assert shell.platform.asked == []


def test_files_that_are_none(shell: Any, kubeconfig: Path, tmp_path: Path) -> None:
    assert shell.run("cluster", "add", "e", "--kubeconfig", str(tmp_path / "no")).code == 2
    (tmp_path / "ca.pem").unlink()
    ran = shell.run("cluster", "add", "e", "--kubeconfig", str(kubeconfig))
    assert (ran.code, "ca.pem, which cannot be read" in ran.err) == (2, True)
    kubeconfig.write_text(f"{SECRET}: [")
    ran = shell.run("cluster", "add", "e", "--kubeconfig", str(kubeconfig))
    assert (ran.code, "no kubeconfig" in ran.err, SECRET in ran.err) == (2, True, False)


def test_a_check_says_what_is_missing_and_fails(shell: Any) -> None:
    assert shell.run("cluster", "check", "east").code == 0
    report = shell.platform.cluster_report
    shell.platform.cluster_report = msgspec.structs.replace(report, checks=(*report.checks, MISSING))
    ran = shell.run("cluster", "check", "east")
    assert ran.code == 1
    assert ran.out.splitlines() == [
        "ok  api: Kubernetes v1.36.2",
        "NO  permissions: the credentials may not: create inferenceservices.serving.kserve.io (endpoints)",
        "      ClusterForbidden",
        "      Bind a ClusterRole.",
    ]
    ran = shell.run("cluster", "add", "east", "--in-cluster")
    assert (ran.code, "not ready for endpoints yet" in ran.err) == (0, True)


def test_a_change(shell: Any, kubeconfig: Path) -> None:
    assert shell.run("cluster", "update", "east").code == 2
    assert shell.run("cluster", "update", "east", "--domain", "", "--drift", "restore").code == 0
    assert shell.platform.asked[-1].body == {"name": "east", "domain": "", "drift": "restore"}
    ran = shell.run("cluster", "update", "east", "--kubeconfig", str(kubeconfig))
    assert (ran.code, "cluster east is changed" in ran.out) == (0, True)
    assert shell.platform.asked[-1].body["context"] == "east"


def test_the_list_says_what_runs_there(shell: Any) -> None:
    shell.platform.clusters = [
        ClusterItem(
            "east",
            "kserve",
            reachable=False,
            message="not reachable since 2026-01-01: no route",
            engine_version="Kubernetes v1.36.2",
            capacity=ClusterCapacity(2, 8, 3),
            created_at=AT,
        )
    ]
    row = shell.run("cluster", "list").out.splitlines()[2]
    for word in ("east", "kserve", "no", "Kubernetes v1.36.2", "3 of 8", "not reachable since"):
        assert word in row
    assert shell.run("cluster", "remove", "east").out == "cluster east is forgotten\n"


def test_a_workspace_s_kubeconfig_is_printed_as_it_is(shell: Any) -> None:
    ran = shell.run("workspace", "kubeconfig", "team", "--cluster", "east")
    assert (ran.code, ran.out) == (0, "kind: Config\n")
    assert shell.platform.asked[-1].body == {"workspaceName": "team", "clusterName": "east"}
    assert shell.run("workspace", "kubeconfig", "team", "-o", "json").json == {"kubeConfig": "kind: Config\n"}
