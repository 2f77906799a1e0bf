"""Forests answered directly: the same numbers as the library's, and the same refusals."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from inferplane.modelserver.frameworks.forests import hasten


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        yield


def outcome(question: Any) -> tuple[list[Any], str]:
    """The answer as plain numbers, or the refusal's words."""
    try:
        return question().tolist(), ""
    except ValueError as error:
        return [], str(error)


@pytest.mark.parametrize(
    "name", ["RandomForestClassifier", "ExtraTreesClassifier", "RandomForestRegressor", "ExtraTreesRegressor"]
)
@pytest.mark.parametrize("rows", [1, 7, 2000])
@pytest.mark.parametrize("hole", [False, True])
def test_a_hastened_forest_answers_as_its_library_does_to_the_last_bit(
    name: str, rows: int, hole: bool
) -> None:
    from sklearn import ensemble
    from sklearn.datasets import load_iris
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = load_iris(return_X_y=True)
    method = "predict_proba" if name.endswith("Classifier") else "predict"
    asked = np.random.default_rng(1).normal(3.0, 2.0, (rows, 4))
    if hole:
        asked[0, 1] = np.nan
    plain = getattr(ensemble, name)(12, n_jobs=1, random_state=0).fit(features, labels)
    piped = make_pipeline(StandardScaler(), copy.deepcopy(plain)).fit(features, labels)
    for library in (plain, piped):
        quick: Any = copy.deepcopy(library)
        forest = quick if library is plain else quick.steps[-1][1]
        hasten([forest])
        assert method in vars(forest)
        for question in {method, "predict"}:
            mine, theirs = getattr(quick, question), getattr(library, question)
            assert outcome(lambda ask=mine: ask(asked)) == outcome(lambda ask=theirs: ask(asked))
    vast = [[1e300, 1.0, 1.0, 1.0]]
    hasten([plain])
    assert "too large" in outcome(lambda: plain.predict(vast))[1]


def test_a_forest_that_is_not_what_it_seems_keeps_its_own_way() -> None:
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier

    class Contrary(RandomForestClassifier):  # type: ignore[misc] # the library has no types
        def predict_proba(self, rows: Any) -> Any:
            return 1 - super().predict_proba(rows)

    features, labels = load_iris(return_X_y=True)
    several = RandomForestClassifier(3, random_state=0).fit(features, np.column_stack((labels, labels)))
    contrary = Contrary(3, random_state=0).fit(features, labels)
    Contrary.__module__, Contrary.__name__ = (
        RandomForestClassifier.__module__,
        RandomForestClassifier.__name__,
    )
    hasten([several, contrary, object()])
    assert "predict_proba" not in vars(several)
    assert "predict_proba" not in vars(contrary)
