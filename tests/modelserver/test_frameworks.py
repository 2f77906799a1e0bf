"""Adapters on models with a twist: categories, several outputs, one row at a time, odd pipelines."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferplane.modelserver import v1
from inferplane.modelserver.errors import BadInput
from inferplane.modelserver.frameworks import load_model
from inferplane.modelserver.frameworks.base import PREDICT, PREDICT_PROBA, InputKind


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        yield


def predict(model: Any, instances: Any, *, probabilities: bool = False) -> Any:
    """V1's predictions for these instances, as a caller would get them."""
    work = v1.parse(
        json.dumps({"instances": instances}).encode(), model.signature, probabilities=probabilities
    )
    return json.loads(v1.render(model.predict(work.inputs, work.outputs), work))["predictions"]


def dumped(estimator: Any, folder: Path) -> Any:
    import joblib

    joblib.dump(estimator, folder / "model.joblib")
    return load_model("sklearn", str(folder), 1)


def test_lightgbm_takes_the_strings_of_a_data_frames_categories(tmp_path: Path) -> None:
    import lightgbm
    import pandas as pd

    table = pd.DataFrame({"city": pd.Categorical(["a", "b"] * 50), "size": np.linspace(0, 1, 100)})
    target = [0, 1] * 50
    booster = lightgbm.train(
        {
            "objective": "binary",
            "verbose": -1,
            "min_data_in_leaf": 1,
            "min_data_per_group": 1,
            "num_threads": 1,
        },
        lightgbm.Dataset(table, target),
        20,
    )
    booster.save_model(tmp_path / "model.txt")
    model = load_model("lightgbm", str(tmp_path), 1)
    expected = booster.predict(table.iloc[:2])
    assert np.allclose(
        predict(model, [{"city": "a", "size": 0.0}, {"city": "b", "size": float(table["size"][1])}]), expected
    )
    assert np.allclose(predict(model, [["a", 0.0]], probabilities=True), [[1 - expected[0], expected[0]]])
    assert len(predict(model, [["unseen", 0.0], [None, None]])) == 2
    example = next(model.examples())
    assert example[0][0] in ("a", "b")
    assert len(predict(model, example)) == 1


def test_sklearn_with_several_outputs(tmp_path: Path) -> None:
    from sklearn.tree import DecisionTreeClassifier

    rows = np.arange(12.0).reshape(6, 2)
    labels = np.array([[0, 1], [1, 0], [0, 1], [1, 0], [0, 1], [1, 0]])
    model = dumped(DecisionTreeClassifier(random_state=0).fit(rows, labels), tmp_path)
    assert predict(model, rows[:2].tolist()) == [[0, 1], [1, 0]]
    assert np.array(predict(model, rows[:2].tolist(), probabilities=True)).shape == (2, 2, 2)


def test_sklearn_of_string_features_without_names(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rows = np.array([["a", "x"], ["b", "y"], ["a", "y"], ["b", "x"]], dtype=object)
    model = dumped(make_pipeline(OneHotEncoder(), LogisticRegression()).fit(rows, [0, 1, 0, 1]), tmp_path)
    assert model.signature.kind is InputKind.MATRIX
    assert model.signature.strings
    assert predict(model, [["a", "x"], ["b", "y"]]) == [0, 1]
    assert predict(model, next(model.examples())) in ([0], [1])


def test_sklearn_clusters_and_outliers_have_no_probabilities(tmp_path: Path) -> None:
    from sklearn.cluster import KMeans

    rows = np.array([[0.0, 0.0], [0.1, 0.0], [9.0, 9.0], [9.1, 9.0]])
    model = dumped(KMeans(2, n_init=1, random_state=0).fit(rows), tmp_path)
    near, _, far, _ = predict(model, rows.tolist())
    assert near != far
    body = json.dumps({"instances": rows.tolist(), "parameters": {"probabilities": True}}).encode()
    with pytest.raises(BadInput, match="no class probabilities"):
        v1.parse(body, model.signature, probabilities=False)


def test_sklearn_text_column_beside_numbers(tmp_path: Path) -> None:
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    table = pd.DataFrame({"note": ["good", "bad", "good one", "bad one"], "stars": [5, 1, 4, 2]})
    columns = ColumnTransformer([("t", TfidfVectorizer(), "note"), ("n", "passthrough", ["stars"])])
    model = dumped(make_pipeline(columns, LogisticRegression()).fit(table, [1, 0, 1, 0]), tmp_path)
    example = next(model.examples())
    assert set(example[0]) == {"note", "stars"}
    assert isinstance(example[0]["note"], str)
    assert predict(model, [{"note": "good", "stars": 5}, {"note": "bad", "stars": 1}]) == [1, 0]
    assert len(predict(model, example)) == 1


def test_sklearn_examples_look_like_the_training_data(tmp_path: Path) -> None:
    from sklearn.datasets import load_wine
    from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    features, labels = load_wine(return_X_y=True)
    for number, estimator in enumerate(
        (
            make_pipeline(StandardScaler(), SVC()),
            SVC(),
            KNeighborsClassifier(),
            GradientBoostingClassifier(n_estimators=10),
            HistGradientBoostingClassifier(max_iter=3),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        model = dumped(estimator.fit(features, labels), folder)
        row = np.array(next(model.examples())[0])
        low, high = features.min(axis=0), features.max(axis=0)
        assert np.mean((row >= low * 0.9) & (row <= high * 1.1)) > 0.7
        assert len(predict(model, [row.tolist()])) == 1


def test_xgboost_files_of_both_kinds(tmp_path: Path) -> None:
    import xgboost

    rows = np.arange(20.0).reshape(10, 2)
    target = [0] * 5 + [1] * 5
    xgboost.XGBClassifier(n_estimators=3, n_jobs=1).fit(rows, target).save_model(tmp_path / "model.json")
    model = load_model("xgboost", str(tmp_path), 1)
    assert predict(model, rows[[0, 9]].tolist()) == [0, 1]
    assert np.array(predict(model, rows[[0, 9]].tolist(), probabilities=True)).shape == (2, 2)
    linear = tmp_path / "linear"
    linear.mkdir()
    matrix = xgboost.DMatrix(rows, np.arange(10.0), feature_names=["a", "b"])
    xgboost.train({"booster": "gblinear", "nthread": 1}, matrix, 20).save_model(linear / "m.ubj")
    model = load_model("xgboost", str(linear), 1)
    assert model.signature.output_names == (PREDICT,)
    assert len(predict(model, [{"a": 1.0, "b": 2.0}])) == 1


def test_onnx_that_takes_one_row_at_a_time(tmp_path: Path) -> None:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LinearRegression

    fitted = LinearRegression().fit([[0.0, 0.0], [1.0, 1.0]], [0.0, 2.0])
    converted = convert_sklearn(fitted, initial_types=[("x", FloatTensorType([1, 2]))])
    (tmp_path / "m.onnx").write_bytes(converted.SerializeToString())
    model = load_model("onnx", str(tmp_path), 1)
    assert np.allclose(np.ravel(predict(model, [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])), [0, 2, 4], atol=1e-5)


def test_outputs_that_are_not_asked_for_are_not_computed(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    model = dumped(LogisticRegression().fit([[0.0], [1.0]], ["no", "yes"]), tmp_path)
    outputs = model.predict({"input-0": np.array([[1.0]])}, (PREDICT_PROBA,))
    assert list(outputs) == [PREDICT_PROBA]
    assert [spec.datatype for spec in model.signature.outputs] == ["BYTES", "FP64"]
