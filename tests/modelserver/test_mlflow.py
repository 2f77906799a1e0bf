"""Folders that MLflow saved, served without MLflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferplane.modelserver.errors import LoadError
from inferplane.modelserver.frameworks.mlflow import load


def _folder(path: Path, text: str, **files: Path) -> Path:
    path.mkdir(exist_ok=True)
    (path / "MLmodel").write_text(text)
    for name, source in files.items():
        (path / name.replace("_", ".")).write_bytes(source.read_bytes())
    return path


FUNCTION = "  python_function:\n    loader_module: {module}\n    env: {{conda: conda.yaml}}\n"


@pytest.mark.parametrize(
    ("stored", "file", "flavors"),
    [
        ("iris.joblib", "model_pkl", "  sklearn:\n    pickled_model: model.pkl\n"),
        ("boosted.json", "model_json", "  xgboost:\n    data: model.json\n    model_class: XGBClassifier\n"),
        ("light.txt", "model_lgb", "  lightgbm:\n    data: model.lgb\n"),
        ("iris.onnx", "model_onnx", "  onnx:\n    data: model.onnx\n"),
        ("iris.joblib", "model_pkl", "  lightgbm:\n    data: model.pkl\n    model_class: LGBMClassifier\n"),
    ],
)
def test_a_known_flavor_is_loaded_by_its_own_library(
    launch: Callable[..., Any], model_files: Path, tmp_path: Path, stored: str, file: str, flavors: str
) -> None:
    text = "artifact_path: model\nflavors:\n" + FUNCTION.format(module="mlflow.any") + flavors
    folder = _folder(tmp_path / "m", text, **{file: model_files / stored})
    server = launch("mlflow", folder)
    assert server.wait_for("ready", "failed")["state"] == "ready", server.log()
    answer = server.predict([[5.1, 3.5, 1.4, 0.2]])
    assert answer.status_code == 200
    assert len(answer.json()["predictions"]) == 1


@pytest.mark.parametrize(
    ("text", "reason", "words"),
    [
        ("flavors: {python_function: {loader_module: my_code}}", "MissingExtra", "pip install mlflow"),
        ("flavors: {spark: {}}", "UnsupportedFormat", "spark"),
        ("flavors: {sklearn: {pickled_model: ../../etc/passwd}}", "ModelLoadFailed", "outside of the model"),
        ("flavors: {sklearn: {pickled_model: /etc/passwd}}", "ModelLoadFailed", "outside of the model"),
        ("flavors: {sklearn: {}}", "ModelFileMissing", "model.pkl"),
        ("flavors: [a]", "ModelLoadFailed", "cannot be read"),
        ("- a\n- b", "ModelLoadFailed", "cannot be read"),
        ("a: [", "ModelLoadFailed", "cannot be read"),
        ("a: !!python/object:os.system x", "ModelLoadFailed", "cannot be read"),
    ],
)
def test_what_cannot_be_served_says_why(tmp_path: Path, text: str, reason: str, words: str) -> None:
    with pytest.raises(LoadError, match=words) as caught:
        load(_folder(tmp_path, text), 1)
    assert str(caught.value.reason) == reason


def test_the_folder_may_be_one_level_down(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="there is none"):
        load(tmp_path, 1)
    _folder(tmp_path / "a", "flavors: {spark: {}}")
    with pytest.raises(LoadError, match="spark"):
        load(tmp_path, 1)
    _folder(tmp_path / "b", "flavors: {spark: {}}")
    with pytest.raises(LoadError, match="2 folders"):
        load(tmp_path, 1)
