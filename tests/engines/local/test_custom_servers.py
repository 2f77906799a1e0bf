"""Commands of one's own, and vLLM: what is refused, and a real one from its start to its end."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx
import pytest

from engine_world import ModelsAtHand, endpoint, first_replica, now, target, wait_for_state
from inferplane.domain.artifact import ArtifactPhase
from inferplane.domain.endpoint import ReplicaState
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.local.engine import LocalEngine
from inferplane.engines.local.launch import server_command
from inferplane.engines.local.preflight import check_program
from inferplane.engines.port import DropModel, FetchModel, Release, StartReplica, StopReplica

PROGRAM = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.environ["MODEL_NAME"].encode())
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
CUSTOM = {"format": "custom", "storage_uri": "", "command": (sys.executable, "-c", PROGRAM)}


async def test_a_command_is_started_found_ready_relayed_to_and_ended(home: Path) -> None:
    models = ModelsAtHand(home.parent / "models", home)
    engine = LocalEngine(home=home, models=models, clock=now, fork_servers=False, custom_servers=True)
    await engine.start(lambda _uid: None)
    try:
        one = endpoint("a1", model=CUSTOM)
        assert all(check.ok for check in await engine.preflight(target(one)))
        await engine.apply(target(one), FetchModel())
        assert (await engine.observe(one.uid)).artifact(1).phase is ArtifactPhase.PRESENT
        assert models.asked == []
        await engine.apply(target(one), StartReplica(first_replica(one)))
        replica = await wait_for_state(engine, first_replica(one), ReplicaState.READY, seconds=60)
        transport = httpx.AsyncHTTPTransport(uds=replica.address.removeprefix("unix:"))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            assert (await client.get("/anything")).text == one.name
        await engine.apply(target(one), StopReplica(replica.id, 30))
        ended = await wait_for_state(engine, replica.id, ReplicaState.EXITED)
        assert ended.exit is not None
        assert ended.exit.exit_code == 0
        await engine.apply(target(one), DropModel(1))
        await engine.apply(target(one), Release())
        assert await engine.owned() == frozenset()
    finally:
        await engine.close(stop_servers=True)


async def test_where_they_are_not_allowed_a_sentence_says_so(engine: LocalEngine) -> None:
    one = endpoint("a1", model=CUSTOM)
    checks = {check.check: check for check in await engine.preflight(target(one))}
    assert checks["runtime"].reason is ReasonCode.NO_RUNTIME
    await engine.apply(target(one), FetchModel())
    artifact = (await engine.observe(one.uid)).artifact(1)
    assert (artifact.phase, artifact.reason) == (ArtifactPhase.FAILED, ReasonCode.NO_RUNTIME)
    assert "not allowed here" in artifact.message


@pytest.mark.parametrize(
    ("installed", "gpus", "words"),
    [
        (False, 0, "the Python package vllm and a GPU"),
        (True, 0, "needs a GPU"),
        (False, 2, "package vllm on"),
    ],
)
def test_vllm_needs_its_package_and_a_gpu(installed: bool, gpus: int, words: str) -> None:
    model = endpoint(model={"format": "vllm"}).spec.model
    check = check_program(model, lambda _package: installed, gpus=gpus, custom_servers=True)
    assert check is not None
    assert check.reason is ReasonCode.NO_RUNTIME
    assert words in check.message
    assert check.next_action


def test_with_both_vllm_is_started_on_the_models_files() -> None:
    one = endpoint(model={"format": "vllm", "args": ("--model_id=o/r", "--max-model-len=128"), "alias": "m"})
    check = check_program(one.spec.model, lambda _package: True, gpus=1, custom_servers=False)
    assert check is not None
    assert check.ok
    command, args = server_command(one, "/models/x")
    assert command[1:] == (
        "-m", "vllm.entrypoints.cli.main", "serve", "/models/x",
        "--host", "$(HOST)", "--port", "$(PORT)", "--served-model-name", one.name, "m",
    )  # fmt: skip
    assert args == ("--max-model-len=128",)


def test_other_formats_bring_no_program() -> None:
    one = endpoint(model={"format": "sklearn", "args": ("--predict_proba",)})
    assert check_program(one.spec.model, lambda _package: False, gpus=0, custom_servers=False) is None
    assert server_command(one, "/m") == ((), ("--predict_proba",))
