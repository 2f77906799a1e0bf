"""scikit-learn: pickled estimators and pipelines, and anything else with `predict` in a pickle.

What a model wants is read from the fitted estimator itself: the number of features, their names,
whether a text vectoriser or a ColumnTransformer stands at the front, whether missing values pass.
Loading a pickle runs code that is in it; only the owner of an endpoint chooses its storage URI.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inferplane.modelserver.errors import short
from inferplane.modelserver.frameworks.base import (
    EXAMPLE_TEXT,
    PLAIN_NUMBERS,
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
)
from inferplane.modelserver.frameworks.forests import hasten
from inferplane.modelserver.tensor import Array, Datatype, datatype_of

log = logging.getLogger(__name__)

#: Classes that turn raw text into features, by name so that subclasses elsewhere count too.
TEXT_CLASSES = frozenset({"CountVectorizer", "TfidfVectorizer", "HashingVectorizer"})
#: How many words of a vocabulary make an example text.
EXAMPLE_WORDS = 4
#: How deep pipelines inside pipelines are looked into.
NESTING_MAX = 12


def load(file: Path, threads: int) -> SklearnModel:
    """Load a pickle or joblib file. Raises LoadError."""
    try:
        import joblib
        import sklearn  # noqa: F401 - most pickles need it, and its absence must be told apart
    except ImportError as error:
        raise missing_extra("sklearn", "sklearn", error) from error
    estimator = _unpickle(file, joblib.load)
    if not callable(getattr(estimator, "predict", None)):
        raise load_failed(file, f"it holds a {type(estimator).__name__}, which has no predict method")
    if _is_numeric_library(estimator) and not _is_fitted(estimator):
        raise load_failed(file, f"the {type(estimator).__name__} in it was saved before it was fitted")
    _limit_jobs(estimator, threads)
    # Names are checked by us against the signature, once; the estimator would warn at each request.
    warnings.filterwarnings("ignore", message="X does not have valid feature names")
    hasten(_parts(estimator))
    try:
        return SklearnModel(estimator)
    except ImportError as error:  # named columns need pandas
        raise missing_extra("pandas", "sklearn", error) from error


class SklearnModel:
    """An estimator or pipeline behind the Model protocol."""

    platform = "sklearn_pickle"

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator
        self._predict = estimator.predict
        self._predict_proba = getattr(estimator, "predict_proba", None)
        self.signature = _signature(estimator, proba=self._predict_proba is not None)
        # The library's own estimators do the same for every row; a stranger's may do anything.
        self.steady = self.signature.kind is InputKind.MATRIX and not _has(estimator, _is_stranger)
        if self.signature.kind is InputKind.TABLE:
            import pandas as pd

            self._frame = pd.DataFrame

    def predict(self, inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        rows: Any = self._frame(dict(inputs)) if self.signature.kind is InputKind.TABLE else inputs[WHOLE]
        result: dict[str, Array] = {}
        for name in outputs:
            if name == PREDICT_PROBA and self._predict_proba is not None:
                result[name] = _as_array(self._predict_proba(rows))
            else:
                result[name] = _as_array(self._predict(rows))
        return result

    def examples(self) -> Iterator[list[Any]]:
        signature = self.signature
        if signature.kind is InputKind.TEXT:
            yield [_example_text(self._estimator)]
            yield [EXAMPLE_TEXT]
        elif signature.kind is InputKind.MAPPINGS:
            yield [_example_mapping(self._estimator)]
        elif signature.kind is InputKind.TABLE:
            yield [_example_record(self._estimator, signature.columns)]
            yield [dict.fromkeys(signature.columns, 1.0)]
            yield [dict.fromkeys(signature.columns, "a")]
        elif signature.features is not None:
            yield [_example_row(self._estimator, signature.features)]
            yield [plain_row(signature.features)]
            if signature.strings:
                yield [["a"] * signature.features]
        else:
            yield [[1.0]]
            yield [EXAMPLE_TEXT]


def _unpickle(file: Path, loader: Any) -> Any:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator = loader(file)
    except MemoryError:
        raise
    except ModuleNotFoundError as error:
        raise load_failed(
            file,
            f"it needs the Python package {error.name!r}, which is not installed where models are served",
        ) from error
    except AttributeError as error:
        raise load_failed(
            file,
            f"it refers to something that is not there ({short(error)}); it was probably saved with another version "
            "of a library, or holds a class or function of your own program",
        ) from error
    except (pickle.UnpicklingError, EOFError, LookupError, UnicodeDecodeError) as error:
        # An unknown opcode is reported as its bare number, which tells nobody anything.
        told = "" if isinstance(error, KeyError) else f" ({short(error)})"
        raise load_failed(file, f"it is not a whole pickle or joblib file{told}") from error
    except Exception as error:
        raise load_failed(file, f"{type(error).__name__}: {short(error)}") from error
    for warning in caught:
        log.warning("while loading %s: %s", file.name, short(Warning(str(warning.message))))
    return estimator


def _is_fitted(estimator: Any) -> bool:
    """Whether one of the library's own estimators has been fitted; True where it cannot be told."""
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    except (TypeError, AttributeError):
        return True
    return True


def _limit_jobs(estimator: Any, threads: int) -> None:
    """Hold every `n_jobs` to the server's own share: forests saved with n_jobs=-1 would take all cores."""
    if not hasattr(estimator, "get_params"):
        return
    try:
        parameters = estimator.get_params(deep=True)
        wanted = {
            key: threads
            for key, value in parameters.items()
            if key.rpartition("__")[2] == "n_jobs"
            and isinstance(value, int)
            and (value < 0 or value > threads)
        }
        if wanted:
            estimator.set_params(**wanted)
    except (AttributeError, ValueError, TypeError) as error:
        log.warning("n_jobs could not be limited: %s", short(error))


def _signature(estimator: Any, *, proba: bool) -> Signature:
    front = _front(estimator)
    features = _count(getattr(estimator, "n_features_in_", None))
    columns = tuple(str(name) for name in getattr(estimator, "feature_names_in_", ()))
    kind = _kind(estimator, front, columns)
    outputs = _outputs(estimator, proba=proba)
    strings = _takes_strings(estimator)
    datatype = Datatype.BYTES if strings else Datatype.FP64
    if kind is InputKind.TABLE:
        inputs = tuple(
            TensorSpec(name, Datatype.BYTES if isinstance(value, str) else Datatype.FP64, (-1,))
            for name, value in _example_record(estimator, columns).items()
        )
    elif kind is InputKind.MATRIX:
        inputs = matrix_input(features, datatype)
    else:
        inputs = (TensorSpec(WHOLE, Datatype.BYTES, (-1,)),)
    return Signature(
        kind=kind,
        inputs=inputs,
        outputs=outputs,
        features=features if kind in (InputKind.MATRIX, InputKind.TABLE) else None,
        columns=columns,
        missing=_takes_missing(estimator),
        strings=strings,
        probability_output=PREDICT_PROBA if proba else "",
    )


def _kind(estimator: Any, front: Any, columns: tuple[str, ...]) -> InputKind:
    if type(front).__name__ in TEXT_CLASSES:
        return InputKind.TEXT
    if type(front).__name__ == "DictVectorizer":
        return InputKind.MAPPINGS
    if columns and (_takes_strings(estimator) or _has(estimator, _is_column_transformer)):
        return InputKind.TABLE
    return InputKind.MATRIX


def _outputs(estimator: Any, *, proba: bool) -> tuple[TensorSpec, ...]:
    classes = getattr(estimator, "classes_", None)
    labelled = isinstance(classes, np.ndarray)
    datatype = datatype_of(classes) if labelled and isinstance(classes, np.ndarray) else Datatype.FP64
    predict = TensorSpec(PREDICT, datatype, (-1,))
    if not proba:
        return (predict,)
    width = len(classes) if labelled and isinstance(classes, np.ndarray) else -1
    return (predict, TensorSpec(PREDICT_PROBA, Datatype.FP64, (-1, width)))


def _takes_missing(estimator: Any) -> bool:
    """Whether NaN may pass: everything up to the first imputer, and the end, must allow it."""
    if _has(estimator, _is_column_transformer) or not hasattr(estimator, "__sklearn_tags__"):
        return True  # the model itself will say
    for step in _steps(estimator):
        if "Imputer" in type(step).__name__:
            return True
        try:
            allowed = step.__sklearn_tags__().input_tags.allow_nan
        except (AttributeError, TypeError):
            return True
        if not allowed:
            return False
    return True


def _takes_strings(estimator: Any) -> bool:
    return _has(estimator, lambda part: _holds_strings(part) or not _is_numeric_library(part))


def _holds_strings(part: Any) -> bool:
    for name in ("categories_", "statistics_"):
        value = getattr(part, name, None)
        arrays = value if isinstance(value, list) else [value]
        if any(isinstance(array, np.ndarray) and array.dtype.kind in "OUS" for array in arrays):
            return True
    return False


def _is_numeric_library(part: Any) -> bool:
    """Whether a part is of a library whose estimators take plain numbers; a stranger may take anything."""
    return type(part).__module__.partition(".")[0] in {"sklearn", "xgboost", "lightgbm", "imblearn"}


def _is_stranger(part: Any) -> bool:
    # A FunctionTransformer runs whatever function it was given.
    return not _is_numeric_library(part) or type(part).__name__ == "FunctionTransformer"


def _is_column_transformer(part: Any) -> bool:
    return type(part).__name__ == "ColumnTransformer"


def _has(estimator: Any, test: Any) -> bool:
    return any(test(part) for part in _parts(estimator))


def _parts(estimator: Any, depth: int = 0) -> Iterator[Any]:
    """The estimator and what it is made of, down the input side."""
    yield estimator
    if depth > NESTING_MAX:
        return
    children: list[Any] = [step for _, step in getattr(estimator, "steps", ())]
    children += [
        entry[1] for entry in getattr(estimator, "transformers_", ()) if not isinstance(entry[1], str)
    ]
    children += [entry[1] for entry in getattr(estimator, "transformer_list", ())]
    children += [
        getattr(estimator, name)
        for name in ("best_estimator_", "regressor_", "estimator_")
        if hasattr(estimator, name)
    ]
    for child in children:
        if child is not None and not isinstance(child, str):
            yield from _parts(child, depth + 1)


def _steps(estimator: Any, depth: int = 0) -> list[Any]:
    """A pipeline's steps in order, inner pipelines unfolded; another estimator is its own only step."""
    estimator = getattr(estimator, "best_estimator_", estimator)
    if not hasattr(estimator, "steps") or depth > NESTING_MAX:
        return [estimator]
    inner = [step for _, step in estimator.steps if step is not None and not isinstance(step, str)]
    return [part for step in inner for part in _steps(step, depth + 1)]


def _front(estimator: Any) -> Any:
    steps = _steps(estimator)
    first = steps[0] if steps else estimator
    union = getattr(first, "transformer_list", None)
    return _front(union[0][1]) if union else first


def _count(value: object) -> int | None:
    return int(value) if isinstance(value, (int, np.integer)) else None


def _as_array(result: Any) -> Array:
    if isinstance(result, list) and result and all(isinstance(part, np.ndarray) for part in result):
        # Multi-output classifiers answer with one probability table an output: [rows, outputs, classes].
        if len({part.shape for part in result}) == 1:
            return np.stack(result, axis=1)
        return np.concatenate(result, axis=1)
    if hasattr(result, "toarray"):
        result = result.toarray()
    return np.asarray(result)


def _example_row(estimator: Any, features: int) -> list[Any]:
    """One row that looks like the training data as far as the fitted parts remember it."""
    for part in _steps(estimator):
        values = _remembered(part)
        if values is not None and len(values) == features:
            return [_plain(value, index) for index, value in enumerate(values)]
    return plain_row(features)


def _remembered(part: Any) -> Sequence[Any] | None:
    """Typical values of each feature, from whatever a fitted part keeps of its training data."""
    for name in ("statistics_", "mean_", "center_", "data_min_"):
        value = getattr(part, name, None)
        if isinstance(value, np.ndarray) and value.ndim == 1:
            return list(value)
    categories = getattr(part, "categories_", None)
    if isinstance(categories, list):
        return [values[0] for values in categories]
    for name in ("support_vectors_", "_fit_X", "X_train_", "theta_", "cluster_centers_"):
        value = getattr(part, name, None)
        if isinstance(value, np.ndarray) and value.ndim == 2 and len(value):
            return list(value[0])
    return _from_trees(part)


def _from_trees(part: Any) -> Sequence[Any] | None:
    """The middle of the thresholds that trees compare each feature with."""
    bins = getattr(getattr(part, "_bin_mapper", None), "bin_thresholds_", None)
    if isinstance(bins, list):
        return [float(edges[len(edges) // 2]) if len(edges) else 0.0 for edges in bins]
    members = getattr(part, "estimators_", None)
    trees = (
        [part]
        if hasattr(part, "tree_")
        else list(np.ravel(np.asarray(members, dtype=object)))
        if members is not None
        else []
    )
    features = _count(getattr(part, "n_features_in_", None))
    if features is None:
        return None
    seen: list[list[float]] = [[] for _ in range(features)]
    for member in trees[:20]:
        tree = getattr(member, "tree_", None)
        if tree is None:
            continue
        for feature, threshold in zip(tree.feature, tree.threshold, strict=True):
            if 0 <= feature < features:
                seen[int(feature)].append(float(threshold))
    if not any(seen):
        return None
    plain = plain_row(features)
    return [sorted(values)[len(values) // 2] if values else plain[index] for index, values in enumerate(seen)]


def _plain(value: Any, index: int) -> Any:
    """A value for JSON: a string, or a tidy finite number."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return tidy(number) if np.isfinite(number) else PLAIN_NUMBERS[index % len(PLAIN_NUMBERS)]


def _example_record(estimator: Any, columns: tuple[str, ...]) -> dict[str, Any]:
    """One record with a plausible value for each column."""
    record: dict[str, Any] = {
        name: PLAIN_NUMBERS[index % len(PLAIN_NUMBERS)] for index, name in enumerate(columns)
    }
    for part in _parts(estimator):
        entries = getattr(part, "transformers_", None)
        if entries is None:
            continue
        for _, transformer, chosen in entries:
            names = _column_names(chosen, columns)
            if isinstance(transformer, str) or not names:
                continue
            if type(_front(transformer)).__name__ in TEXT_CLASSES and isinstance(chosen, str):
                record[chosen] = _example_text(transformer)
                continue
            values = _example_row(transformer, len(names))
            record.update({name: value for name, value in zip(names, values, strict=True) if name in record})
        return record
    if columns:
        record.update(zip(columns, _example_row(estimator, len(columns)), strict=True))
    return record


def _column_names(chosen: Any, columns: tuple[str, ...]) -> list[str]:
    """The columns a ColumnTransformer entry takes, whether it names, numbers or masks them."""
    if isinstance(chosen, str):
        return [chosen]
    if isinstance(chosen, slice):
        return (
            list(columns[chosen])
            if all(not isinstance(edge, str) for edge in (chosen.start, chosen.stop))
            else []
        )
    entries = list(np.ravel(np.asarray(chosen, dtype=object)))
    if entries and all(isinstance(entry, (bool, np.bool_)) for entry in entries):
        return [name for name, taken in zip(columns, entries, strict=False) if taken]
    return [entry if isinstance(entry, str) else columns[int(entry)] for entry in entries]


def _example_text(estimator: Any) -> str:
    vocabulary = getattr(_front(estimator), "vocabulary_", None)
    if not isinstance(vocabulary, dict) or not vocabulary:
        return EXAMPLE_TEXT
    return " ".join(str(word) for word in sorted(vocabulary)[:EXAMPLE_WORDS])


def _example_mapping(estimator: Any) -> dict[str, Any]:
    front = _front(estimator)
    separator = str(getattr(front, "separator", "="))
    example: dict[str, Any] = {}
    for name in list(getattr(front, "feature_names_", ()))[:EXAMPLE_WORDS]:
        key, found, value = str(name).partition(separator)
        example.setdefault(key, value if found else 1.0)
    return example
