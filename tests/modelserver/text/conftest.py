"""Text models under test: made once a session, by a program of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

WHY_NOT = "text models need torch and transformers; install them with: make dev-text"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever here asks for text models is skipped where their libraries are not installed."""
    if find_spec("torch") is not None and find_spec("transformers") is not None:
        return
    for item in items:
        if {"text_models", "serving_text"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason=WHY_NOT))


@pytest.fixture(scope="session")
def text_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model of each task, and `expected.json`."""
    folder = tmp_path_factory.mktemp("texts")
    program = Path(__file__).with_name("make_models.py")
    subprocess.run(
        [sys.executable, str(program), str(folder)], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    return folder


@pytest.fixture(scope="session")
def expected(text_models: Path) -> dict[str, Any]:
    """What the library answers when it is asked without us."""
    content: dict[str, Any] = json.loads((text_models / "expected.json").read_text())
    return content


@pytest.fixture(scope="session")
def text_parent(make_forkserver: Callable[[str], Any]) -> Any:
    """A warm parent that has imported torch and transformers."""
    return make_forkserver("huggingface")


@pytest.fixture(scope="session")
def serving_text(launch: Callable[..., Any], text_models: Path, text_parent: Any) -> Callable[..., Any]:
    """`serving_text("chat")`: a ready server of one of the models, forked, started once a session."""
    running: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in running:
            server = launch(
                "huggingface", text_models / name, parent=text_parent, name=name, aliases=[f"{name}-alias"]
            )
            assert server.wait_for("ready", "failed")["state"] == "ready", server.log()
            running[name] = server
        return running[name]

    return get
