"""XGBoost: boosters saved by `save_model` (.json, .ubj, .bst).

`predict` is what the booster itself answers (for `binary:logistic` the probability of class 1, for
`multi:softprob` a row of probabilities), as KServe's server answers, with one exception: a file
saved by XGBClassifier says that it is a classifier, and then `predict` is the class label, as the
user's own program would print it. `predict_proba` is one probability a class for both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inferplane.modelserver.errors import short
from inferplane.modelserver.frameworks.base import (
    PREDICT,
    PREDICT_PROBA,
    WHOLE,
    InputKind,
    Inputs,
    Outputs,
    Signature,
    TensorSpec,
    load_failed,
    matrix_input,
    missing_extra,
    plain_row,
    two_columns,
)
from inferplane.modelserver.tensor import Array, Datatype

BINARY_OBJECTIVES = frozenset({"binary:logistic", "reg:logistic"})
CLASS_OBJECTIVES = frozenset({"multi:softprob"})
#: Boosters that can answer without building a DMatrix.
IN_PLACE_BOOSTERS = frozenset({"gbtree", "dart"})


def load(file: Path, threads: int) -> XgboostModel:
    """Load a booster. Raises LoadError."""
    try:
        import xgboost
    except ImportError as error:
        raise missing_extra("xgboost", "xgboost", error) from error
    try:
        booster = xgboost.Booster({"nthread": threads})
        booster.load_model(str(file))
        booster.set_param({"nthread": threads})
        return XgboostModel(booster, xgboost.DMatrix)
    except (xgboost.core.XGBoostError, ValueError, KeyError, TypeError) as error:
        raise load_failed(
            file, f"it is not an XGBoost model of a compatible version ({_tell(error)})"
        ) from error


class XgboostModel:
    """A booster behind the Model protocol."""

    platform = "xgboost_booster"
    steady = True

    def __init__(self, booster: Any, matrix: Any) -> None:
        learner = json.loads(booster.save_config())["learner"]
        objective = str(learner["objective"]["name"])
        classes = int(learner["learner_model_param"].get("num_class", "0") or 0)
        self._booster = booster
        self._matrix = matrix
        self._in_place = str(learner["gradient_booster"]["name"]) in IN_PLACE_BOOSTERS
        self._binary = objective in BINARY_OBJECTIVES
        self._labels = _saved_by_classifier(booster) and (self._binary or objective in CLASS_OBJECTIVES)
        probabilities = self._binary or objective in CLASS_OBJECTIVES
        features = int(booster.num_features()) or None
        rows = TensorSpec(PREDICT, Datatype.INT64 if self._labels else Datatype.FP32, (-1,))
        if objective in CLASS_OBJECTIVES and not self._labels:
            rows = TensorSpec(PREDICT, Datatype.FP32, (-1, classes))
        proba = TensorSpec(PREDICT_PROBA, Datatype.FP32, (-1, 2 if self._binary else classes))
        self.signature = Signature(
            kind=InputKind.MATRIX,
            inputs=matrix_input(features, Datatype.FP32),
            outputs=(rows, proba) if probabilities else (rows,),
            features=features,
            columns=tuple(booster.feature_names or ()),
            missing=True,
            certain=features is not None,
            number=np.dtype(np.float32),
            probability_output=PREDICT_PROBA if probabilities else "",
        )

    def predict(self, inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        rows = np.ascontiguousarray(inputs[WHOLE])
        answer: Array
        if self._in_place:
            answer = self._booster.inplace_predict(rows, validate_features=False)
        else:
            names = self._booster.feature_names
            answer = self._booster.predict(self._matrix(rows, feature_names=names), validate_features=False)
        return {
            name: self._proba(answer) if name == PREDICT_PROBA else self._plain(answer) for name in outputs
        }

    def examples(self) -> Iterator[list[Any]]:
        features = self.signature.features
        yield [plain_row(features if features is not None else 1)]

    def _proba(self, answer: Array) -> Array:
        return two_columns(answer) if self._binary else answer

    def _plain(self, answer: Array) -> Array:
        if not self._labels:
            return answer
        if self._binary:
            return (answer > 0.5).astype(np.int64)
        labels: Array = np.argmax(answer, axis=1).astype(np.int64)
        return labels


def _saved_by_classifier(booster: Any) -> bool:
    try:
        note = json.loads(booster.attr("scikit_learn") or "{}")
    except ValueError:
        return False
    return isinstance(note, dict) and note.get("_estimator_type") == "classifier"


def _tell(error: BaseException) -> str:
    """XGBoost's messages start with a time stamp, a file and a line, and end with a stack."""
    text = short(error)
    head, found, tail = text.partition(": ")
    return tail if found and head.startswith("[") else text
