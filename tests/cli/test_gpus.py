"""`gpus`, `gpr`, `policy`, `template`, `binding`, `audit`, against the real API; GPU flags of `deploy`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from gpu_world import GpuWorld
from inferplane.cli.exits import ExitCode
from inferplane.domain.gpu_request import ProvisioningStatus
from platform_stack import wait_for

A100 = (
    *("--gpu-shape", "NVIDIA-A100", "--instance-type", "a2-ultragpu-1g", "--gpu-memory", "80"),
    *("--exit-duration", "1h"),
)
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GpuWorld]:
    with GpuWorld(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def run(shell: Any, world: GpuWorld) -> Run:
    """The command line as the Owner of a platform with GPUs."""
    shell.environment |= {"INFERPLANE_API_URL": world.url, "INFERPLANE_API_KEY": world.owner.key}
    found: Run = shell.run
    return found


@pytest.fixture
def team(world: GpuWorld) -> str:
    return world.team()


def test_every_gpu_has_a_line_that_says_that_it_is_simulated(run: Run, world: GpuWorld, team: str) -> None:
    lines = run("gpus").out.splitlines()
    assert lines[0].split()[:4] == ["CLUSTER", "NODE", "GPU", "SHAPE"]
    assert len(lines) == 1 + 11
    assert all("free, simulated" in line for line in lines[1:])
    gpr_id = world.ask(team)
    world.grant(gpr_id)
    (held,) = [line for line in run("gpus").out.splitlines() if "held" in line]
    assert held.split()[:3] == ["worker-1", "gpu-0", "0"]
    assert team in held
    assert "UTC" in held
    world.drain(gpr_id, ProvisioningStatus.COMPLETE)
    world.end(gpr_id)
    nodes = run("gpus", "-o", "json").json["managedNodes"]
    assert {node["clusterName"] for node in nodes} == {"worker-1", "worker-2"}
    kinds = run("gpus", "--kinds", "-w", team).out
    assert "a3-highgpu-8g" in kinds
    assert len(run("gpus", "--kinds", "-w", team, "-o", "json").json["items"]) == 3


def test_a_request_waits_moves_and_is_deleted(run: Run, world: GpuWorld, team: str) -> None:
    made = run("gpr", "create", "train", *A100, "-c", "worker-1", "-w", team)
    assert (made.code, made.err) == (0, f"Follow it with: inferplane gpr describe {made.out.strip()}\n")
    gpr_id = made.out.strip()
    world.note(gpr_id, 1, timedelta(minutes=5), "position 1; waits for worker-1")
    shown = run("gpr", "describe", gpr_id).out
    for part in ("Queued", "position 1; waits for worker-1", "1 x NVIDIA-A100 a2-ultragpu-1g", "UTC"):
        assert part in shown
    assert run("gpr", "move", gpr_id, "--priority", "200", "--name", "sooner").out == f"{gpr_id} is changed\n"
    assert run("gpr", "extend", gpr_id, "--exit-duration", "3h").out == f"{gpr_id} now has 3h\n"
    (item,) = run("gpr", "list", "-w", team, "-o", "json").json["items"]
    assert (item["gprName"], item["priority"], item["exitDuration"]) == ("sooner", 200, "3h0m0s")
    assert "sooner" in run("gpr", "list", "-w", team).out
    refused = run("gpr", "release", gpr_id)
    assert (refused.code, refused.out) == (ExitCode.CONFLICT, "")
    assert "Cannot update early release of GPR in Queued state" in refused.err
    assert run("gpr", "delete", gpr_id).out == f"{gpr_id} is deleted\n"
    assert run("gpr", "describe", gpr_id).code == ExitCode.NOT_FOUND
    assert run("gpr", "list", "-w", team).out == "no GPU requests\n"


def test_a_request_is_named_by_its_name_in_its_workspace(run: Run, team: str) -> None:
    where = ("-w", team)
    gpr_id = run("gpr", "create", "train", *A100, "-c", "worker-1", *where).out.strip()
    assert gpr_id in run("gpr", "describe", "train", *where).out
    assert run("gpr", "move", "train", "--priority", "200", *where).out == "train is changed\n"
    assert run("gpr", "extend", "train", "--exit-duration", "3h", *where).out == "train now has 3h\n"
    assert run("gpr", "describe", "train").code == ExitCode.NOT_FOUND
    run("gpr", "create", "train", *A100, "-c", "worker-1", *where)
    ambiguous = run("gpr", "delete", "train", *where)
    assert ambiguous.code == ExitCode.INVALID
    assert gpr_id in ambiguous.err
    assert run("gpr", "delete", gpr_id).code == 0
    assert run("gpr", "delete", "train", *where).out == "train is deleted\n"


def test_a_create_can_wait_until_it_is_granted(run: Run, world: GpuWorld, team: str) -> None:
    words = ("gpr", "create", "train", *A100, "-c", "worker-1", "-w", team, "--wait")
    late = run(*words, "--timeout", "0")
    gpr_id = run("gpr", "list", "-w", team, "-o", "json").json["items"][0]["gprId"]
    assert late.code == ExitCode.TIMED_OUT
    assert f"see: inferplane gpr describe {gpr_id}" in late.err

    def grant_when_asked_for() -> None:
        wait_for(lambda: len(world.gprs_of(team)) == 2, "the second request")
        world.grant(world.gprs_of(team)[-1].id)

    with ThreadPoolExecutor(1) as aside:
        granted = aside.submit(grant_when_asked_for)
        made = run(*words, "-o", "json")
        granted.result()
    assert made.code == 0, made.err
    assert made.json["status"]["nodes"] == ["gpu-0"]
    assert "train: Queued — " in made.err
    assert "train: Successful — in use: GPU 0 of gpu-0" in made.err
    world.drain(made.json["gprId"], ProvisioningStatus.COMPLETE)
    world.end(made.json["gprId"])


def test_clusters_are_added_and_removed(run: Run, world: GpuWorld) -> None:
    name = world.name("cluster")
    added = run("cluster", "add", name, "--engine", "simulated")
    assert (added.code, added.out) == (0, f"cluster {name} is known\n")
    assert "[[cluster]]" in added.err
    assert name in run("cluster", "list").out
    assert run("cluster", "add", name).code == ExitCode.CONFLICT
    assert run("cluster", "add", world.name("c"), "--engine", "kserve").code == ExitCode.INVALID
    assert run("cluster", "remove", name).out == f"cluster {name} is forgotten\n"
    assert run("cluster", "remove", name).code == ExitCode.NOT_FOUND


def test_what_holds_gpus_is_released(run: Run, world: GpuWorld, team: str) -> None:
    gpr_id = world.ask(team)
    world.grant(gpr_id)
    assert "gpu-0" in run("gpr", "describe", gpr_id).out
    assert run("gpr", "delete", gpr_id).code == ExitCode.CONFLICT
    assert run("gpr", "release", gpr_id).out == f"{gpr_id} is being released\n"
    assert run("gpr", "describe", gpr_id, "-o", "json").json["earlyRelease"] is True
    world.end(gpr_id)


def test_how_long_each_choice_would_take(run: Run, team: str) -> None:
    words = ("gpr", "waittime", "--auto-gpu", "--gpu-memory", "40", "--exit-duration", "1h", "--auto-cluster")
    table = run(*words, "-w", team).out
    assert "worker-1" in table
    assert "worker-2" in table
    assert len(run(*words, "-w", team, "-o", "json").json["items"]) == 3


def test_a_shape_that_is_not_there_is_refused_with_those_that_are(run: Run, team: str) -> None:
    ran = run("gpr", "create", "x", *A100, "--gpu-shape", "NVIDIA-B9", "-c", "worker-1", "-w", team)
    assert ran.code == ExitCode.INVALID
    assert "a2-ultragpu-1g" in ran.err
    assert run("gpr", "move", "gpr-1").code == ExitCode.USAGE


def test_policies(run: Run, team: str) -> None:
    set_ = run("policy", "set", team, "--max-gprs", "2", "--gpu-shape", "NVIDIA-A100", "--no-eviction")
    assert set_.code == 0
    for part in ("Max GPRs:", "NVIDIA-A100", "GPRs that say --evictable", "GPRs that say --requeue"):
        assert part in set_.out
    assert run("policy", "describe", team).out == set_.out
    item = run("policy", "describe", team, "-o", "json").json["item"]
    assert (item["maxGPRs"], item["globalGPUConstraints"]["gpuShapes"]) == (2, ["NVIDIA-A100"])
    lifted = run("policy", "set", team, "--max-gprs", "-1", "--gpu-shape", "any", "-o", "json").json["item"]
    assert (lifted["maxGPRs"], lifted["globalGPUConstraints"]) == (None, None)
    assert team in run("policy", "list").out
    assert re.search(r"Eviction: +every GPR", run("policy", "set", team, "--eviction").out)
    assert run("policy", "set", team).code == ExitCode.USAGE


def test_templates_and_bindings(run: Run, world: GpuWorld, team: str) -> None:
    name = world.name("t")
    assert run("template", "create", name, *A100, "-c", "worker-1").out == f"template {name} is there\n"
    assert run("template", "change", name, "--priority", "120").out == f"template {name} is changed\n"
    assert "120" in run("template", "describe", name).out
    assert name in run("template", "list").out
    bound = run("binding", "create", team, "--template", f"worker-1={name}", "--auto-gpr")
    assert (bound.code, bound.out.splitlines()[1].split()[:4]) == (0, [team, "yes", "worker-1", name])
    assert run("template", "delete", name).code == ExitCode.CONFLICT
    assert run("binding", "change", team, "--no-auto-gpr", "-o", "json").json["enableAutoGPR"] is False
    assert run("binding", "describe", team, "-o", "json").json["clusters"][0]["defaultTemplateName"] == name
    assert team in run("binding", "list").out
    assert run("binding", "create", team, "--template", "worker-1=").code == ExitCode.USAGE
    assert run("binding", "change", team).code == ExitCode.USAGE
    assert run("binding", "delete", team).code == 0
    assert run("template", "delete", name).out == f"template {name} is deleted\n"


def test_the_audit_log(run: Run, team: str) -> None:
    run("policy", "set", team, "--max-gprs", "2")
    run("policy", "set", team, "--max-gprs", "3")
    shown = run("audit", "-w", team, "--kind", "PolicyChanged", "--limit", "1").out
    assert "PolicyChanged" in shown
    assert "2 → 3" in shown
    (first,) = run("audit", "-w", team, "--limit", "1", "-o", "json").json["items"]
    assert first["keyId"]
    assert run("audit", "-w", team, "--since", "2100-01-01").out == "no entries\n"
    assert run("audit", "--since", "tomorrow").code == ExitCode.INVALID


def test_an_endpoint_asks_for_gpus(run: Run, world: GpuWorld, team: str) -> None:
    made = run(
        *("deploy", "iris", "--format", "sklearn", "--uri", "/models/iris.joblib", "-w", team),
        *A100,
        *("--cluster-precedence", "worker-1", "--no-auto-renew", "--priority", "150"),
    )
    assert made.code == 0, made.err
    (request,) = world.requests_of(world.stored(team, "iris").uid)
    assert (request.priority, request.auto_renew, request.selection.gpu_shape) == (150, False, "NVIDIA-A100")
    assert request.id in run("describe", "iris", "-w", team).out
    assert run("list", "-w", team).code == 0


def test_without_a_gpu_flag_nothing_is_said_of_gpus(shell: Any) -> None:
    shell.run("deploy", "iris", "--format", "sklearn", "--uri", "/m")
    assert "gpuSpec" not in shell.platform.asked[-1].body
