"""Forests without the cost of organising work that is not shared out.

scikit-learn's forests hand each tree to joblib, which for one row on one thread costs many times what the
trees themselves take. `hasten` gives fitted forests a method of their own that asks tree after tree: the
same additions in the same order as the library's on one thread, hence the same numbers to the last bit.
That is not taken on trust: each forest answers made-up rows in both ways when it is loaded, and one whose
answers differ anywhere, or whose library looks different inside, keeps the library's way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from inferplane.modelserver.errors import short
from inferplane.modelserver.tensor import Array

log = logging.getLogger(__name__)

CLASSIFIERS = frozenset({"RandomForestClassifier", "ExtraTreesClassifier"})
REGRESSORS = frozenset({"RandomForestRegressor", "ExtraTreesRegressor"})
FOREST_MODULE = "sklearn.ensemble._forest"
#: Larger batches of a forest that has several threads go the library's way, which shares them out.
ROWS_MAX = 1024
#: Rows that both ways are asked for, as far apart as features usually are.
TRIAL_ROWS = 16
TRIAL_SPREAD = 10.0


def hasten(parts: Iterable[Any]) -> None:
    """Give every forest among these fitted estimators the direct way, where it proves to be the same."""
    for part in parts:
        name = type(part).__name__
        if type(part).__module__ != FOREST_MODULE or getattr(part, "n_outputs_", 0) != 1:
            continue
        method = "predict_proba" if name in CLASSIFIERS else "predict" if name in REGRESSORS else ""
        if not method:
            continue
        try:
            direct = _direct(part, method)
            same = _same(part, getattr(part, method), direct)
        except (AttributeError, TypeError, ValueError, IndexError) as error:
            log.info("%s keeps its library's way to predict: %s", name, short(error))
            continue
        if same:
            # On the instance: whatever holds the forest (a pipeline, a search) finds it there.
            setattr(part, method, direct)
        else:
            log.info("%s keeps its library's way to predict: the direct one differs", name)


def _direct(forest: Any, method: str) -> Callable[[Any], Array]:
    trees = [tree.tree_.predict for tree in forest.estimators_]
    check = forest._validate_X_predict  # refuses what the library's own method refuses
    library = getattr(forest, method)
    columns: Any = slice(int(forest.n_classes_)) if method == "predict_proba" else 0
    shape = (int(forest.n_classes_),) if method == "predict_proba" else ()
    count = len(trees)

    def predict(rows: Any) -> Array:
        if len(rows) > ROWS_MAX and forest.n_jobs not in (None, 1):
            whole: Array = library(rows)
            return whole
        checked = check(rows)
        total = np.zeros((len(checked), *shape), dtype=np.float64)
        for tree in trees:
            total += tree(checked)[:, columns]
        total /= count
        return total

    return predict


def _same(forest: Any, library: Callable[[Any], Any], direct: Callable[[Any], Any]) -> bool:
    generator = np.random.default_rng(0)
    rows = generator.normal(0.0, TRIAL_SPREAD, (TRIAL_ROWS, int(forest.n_features_in_)))
    return bool(np.array_equal(library(rows), direct(rows)))
