"""LightGBM: boosters in the library's own text format (.txt, .bst).

`predict` is what the booster answers (for a binary objective the probability of class 1, for
multiclass a row of probabilities); the file does not say whether a classifier class saved it.
Categories that were strings in a data frame are recoded here, so that callers send the strings.
"""

from __future__ import annotations

import math
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
    tidy,
    two_columns,
)
from inferplane.modelserver.tensor import Array, Datatype

BINARY_OBJECTIVES = frozenset({"binary", "cross_entropy"})
CLASS_OBJECTIVES = frozenset({"multiclass", "multiclassova"})
#: The header of the text format ends long before this many lines.
HEADER_LINES_MAX = 64


def load(file: Path, threads: int) -> LightgbmModel:
    """Load a booster. Raises LoadError."""
    try:
        import lightgbm
    except ImportError as error:
        raise missing_extra("lightgbm", "lightgbm", error) from error
    header = _header(file)
    if "version" not in header or "feature_names" not in header:
        # The library's own parser ends the process on some files that are not its own.
        raise load_failed(file, "it does not begin like a LightGBM text model")
    try:
        booster = lightgbm.Booster(model_file=str(file))
        return LightgbmModel(booster, header, threads, lightgbm.basic.LightGBMError)
    except (lightgbm.basic.LightGBMError, ValueError, KeyError, TypeError) as error:
        raise load_failed(
            file, f"it is not a LightGBM model of a compatible version ({short(error)})"
        ) from error


class LightgbmModel:
    """A booster behind the Model protocol."""

    platform = "lightgbm_booster"
    steady = True

    def __init__(
        self, booster: Any, header: dict[str, str], threads: int, error_class: type[Exception]
    ) -> None:
        self._booster = booster
        self._error = error_class
        self._threads = threads
        objective = header.get("objective", "").split(" ")[0]
        classes = int(header.get("num_class", "1"))
        features = int(booster.num_feature())
        self._infos = header.get("feature_infos", "").split(" ")
        self._categories = _categories(booster, self._infos)
        self._binary = objective in BINARY_OBJECTIVES
        multiclass = objective in CLASS_OBJECTIVES
        plain = TensorSpec(PREDICT, Datatype.FP64, (-1, classes) if multiclass else (-1,))
        proba = TensorSpec(PREDICT_PROBA, Datatype.FP64, (-1, classes if multiclass else 2))
        known = self._binary or multiclass
        self.signature = Signature(
            kind=InputKind.MATRIX,
            inputs=matrix_input(features, Datatype.BYTES if self._categories else Datatype.FP64),
            outputs=(plain, proba) if known else (plain,),
            features=features,
            columns=tuple(booster.feature_name()),
            missing=True,
            certain=True,
            strings=bool(self._categories),
            probability_output=PREDICT_PROBA if known else "",
        )

    def predict(self, inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        rows = inputs[WHOLE]
        if rows.dtype == object:
            rows = self._recoded(rows)
        try:
            answer: Array = np.asarray(self._booster.predict(rows, num_threads=self._threads))
        except self._error as error:
            raise ValueError(short(error)) from error
        return {
            name: two_columns(answer) if name == PREDICT_PROBA and self._binary else answer
            for name in outputs
        }

    def examples(self) -> Iterator[list[Any]]:
        row: list[Any] = [self._typical(index, info) for index, info in enumerate(self._infos)]
        if len(row) == self.signature.features:
            yield [row]
        yield [plain_row(self.signature.features or 1)]

    def _recoded(self, rows: Array) -> Array:
        out = np.empty(rows.shape, dtype=np.float64)
        for column in range(rows.shape[1]):
            codes = self._categories.get(column)
            values = rows[:, column].tolist()
            if codes is None:
                out[:, column] = [_number(value, self.signature.columns[column]) for value in values]
            else:
                out[:, column] = [codes.get(value, math.nan) for value in values]
        return out

    def _typical(self, column: int, info: str) -> Any:
        codes = self._categories.get(column)
        if codes:
            return next(iter(codes))
        if info.startswith("[") and ":" in info:
            low, high = (float(edge) for edge in info.strip("[]").split(":"))
            return tidy((low + high) / 2)
        return 0.0


def _header(file: Path) -> dict[str, str]:
    pairs: dict[str, str] = {}
    with file.open(encoding="utf-8", errors="replace") as lines:
        for _, line in zip(range(HEADER_LINES_MAX), lines, strict=False):
            key, found, value = line.rstrip("\n").partition("=")
            if key == "Tree":
                break
            if found:
                pairs[key] = value
    return pairs


def _categories(booster: Any, infos: Sequence[str]) -> dict[int, dict[Any, float]]:
    """Column → category → code, for columns that were categories of a data frame."""
    known = booster.pandas_categorical or []
    columns = [index for index, info in enumerate(infos) if info != "none" and not info.startswith("[")]
    if len(columns) != len(known):
        return {}
    return {
        column: {value: float(code) for code, value in enumerate(values)}
        for column, values in zip(columns, known, strict=True)
    }


def _number(value: Any, column: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str):
        raise ValueError(f"column {column!r} holds the string {value[:40]!r}, and it takes numbers")  # noqa: TRY004 - a wrong value of a request
    return float(value)
