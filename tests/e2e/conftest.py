"""Fixtures for whole platforms; the harness itself is `tests/support/platform_stack.py`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from platform_stack import Stack


@pytest.fixture
def home() -> Iterator[Path]:
    """A home folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ip-"))
    yield folder / "home"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def stack(home: Path) -> Iterator[Stack]:
    """A platform that is up, on ports of its own; whatever happens, nothing of it survives the test."""
    one = Stack(home)
    try:
        one.start()
        yield one
        if one.process is not None and one.process.poll() is None:
            one.stop()
    finally:
        for process in one.processes():
            process.kill()


@pytest.fixture(scope="session")
def iris_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small scikit-learn model on disk."""
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    data = load_iris()
    path = tmp_path_factory.mktemp("iris") / "model.joblib"
    joblib.dump(LogisticRegression(max_iter=500).fit(data.data, data.target), path)
    return path
