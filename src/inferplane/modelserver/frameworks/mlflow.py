"""MLflow's folders: the file MLmodel says which library saved the model and where it lies beside it.

Models of libraries that are served here are loaded by those libraries directly, so the large package
mlflow is not needed. Any other flavor has only its `python_function`, which mlflow itself must load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from inferplane.modelserver.errors import LoadError, LoadReason, short
from inferplane.modelserver.frameworks.base import (
    PREDICT,
    WHOLE,
    InputKind,
    Inputs,
    Model,
    Outputs,
    Signature,
    TensorSpec,
    missing_extra,
)
from inferplane.modelserver.tensor import Array, Datatype

MODEL_FILE = "MLmodel"
MODEL_FILE_BYTES_MAX = 4 * 1024 * 1024
PYTHON_FUNCTION = "python_function"
#: Which entries of a flavor name its file, the usual place where an older MLflow did not write one.
_DATA: Mapping[str, tuple[tuple[str, ...], str]] = {
    "sklearn": (("pickled_model", "data"), "model.pkl"),
    "xgboost": (("data",), "model.xgb"),
    "lightgbm": (("data",), "model.lgb"),
    "onnx": (("data",), "model.onnx"),
    "transformers": (("model_binary",), "model"),
}
#: MLflow's types of columns.
_TYPES = {
    "boolean": Datatype.BOOL,
    "integer": Datatype.INT32,
    "long": Datatype.INT64,
    "float": Datatype.FP32,
    "double": Datatype.FP64,
    "string": Datatype.BYTES,
}


def load(root: Path, threads: int, args: Sequence[str] = ()) -> Model:
    """Load the model of a folder that MLflow saved. Raises LoadError."""
    folder = find_folder(root)
    flavors = _flavors(folder)
    for flavor in _DATA:
        if flavor in flavors:
            file = data_file(folder, flavor, flavors[flavor])
            return _load_flavor(flavor, file, threads, args)
    if PYTHON_FUNCTION in flavors:
        return _load_function(folder, flavors)
    known = ", ".join([*_DATA, PYTHON_FUNCTION])
    raise LoadError(
        LoadReason.UNSUPPORTED_FORMAT,
        f"{MODEL_FILE} has the flavors {', '.join(map(str, flavors)) or '(none)'}; served are {known}",
    )


def find_folder(root: Path) -> Path:
    """The folder that holds MLmodel: `root`, or the only one in it. Raises LoadError."""
    if root.name == MODEL_FILE and root.is_file():
        return root.parent
    if (root / MODEL_FILE).is_file():
        return root
    nested = sorted(path.parent for path in root.glob(f"*/{MODEL_FILE}"))
    if len(nested) == 1:
        return nested[0]
    reason = LoadReason.MODEL_FILE_AMBIGUOUS if nested else LoadReason.MODEL_FILE_MISSING
    what = f"{len(nested)} folders in it hold one" if nested else "there is none"
    raise LoadError(reason, f"a model saved by MLflow is a folder with a file {MODEL_FILE}, and {what}")


def data_file(folder: Path, flavor: str, about: Mapping[str, Any]) -> Path:
    """The file or folder of a flavor. Raises LoadError when it is missing or lies outside of the model."""
    keys, usual = _DATA[flavor]
    name = next((str(about[key]) for key in keys if about.get(key)), usual)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise LoadError(
            LoadReason.MODEL_LOAD_FAILED, f"{MODEL_FILE} names {name[:80]!r}, outside of the model"
        )
    if not (folder / path).exists():
        raise LoadError(LoadReason.MODEL_FILE_MISSING, f"{MODEL_FILE} names {name[:80]!r}, which is missing")
    return folder / path


def _flavors(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    import yaml

    file = folder / MODEL_FILE
    try:
        if file.stat().st_size > MODEL_FILE_BYTES_MAX:
            raise ValueError("it is too large")  # noqa: TRY301 - told like every other reason
        content = yaml.safe_load(file.read_bytes())
        flavors = content["flavors"]
        return {str(name): dict(about or {}) for name, about in flavors.items()}
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        yaml.YAMLError,
    ) as error:
        raise LoadError(
            LoadReason.MODEL_LOAD_FAILED, f"{MODEL_FILE} cannot be read: {short(error)}"
        ) from error


def _load_flavor(flavor: str, file: Path, threads: int, args: Sequence[str]) -> Model:
    if flavor == "transformers":
        from inferplane.modelserver.frameworks import huggingface

        return huggingface.load(file, threads, args)
    # Estimators of every library with scikit-learn's interface are saved as pickles.
    if flavor == "sklearn" or file.suffix in (".pkl", ".pickle"):
        from inferplane.modelserver.frameworks import sklearn

        return sklearn.load(file, threads)
    if flavor == "xgboost":
        from inferplane.modelserver.frameworks import xgboost

        return xgboost.load(file, threads)
    if flavor == "lightgbm":
        from inferplane.modelserver.frameworks import lightgbm

        return lightgbm.load(file, threads)
    from inferplane.modelserver.frameworks import onnx

    return onnx.load(file, threads)


def _load_function(folder: Path, flavors: Mapping[str, Mapping[str, Any]]) -> Model:
    about = flavors[PYTHON_FUNCTION]
    try:
        import mlflow
    except ImportError as error:
        module = str(about.get("loader_module", "a module of its own"))[:80]
        raise LoadError(
            LoadReason.MISSING_EXTRA,
            f"this model is loaded by {module}, for which the Python package mlflow is needed where models are"
            " served; install it with: pip install mlflow",
        ) from error
    try:
        function = mlflow.pyfunc.load_model(str(folder))
        return FunctionModel(function)
    except MemoryError:
        raise
    except ImportError as error:
        raise missing_extra("pandas", "sklearn", error) from error
    except Exception as error:
        raise LoadError(
            LoadReason.MODEL_LOAD_FAILED, f"mlflow could not load it: {type(error).__name__}: {short(error)}"
        ) from error


class FunctionModel(Model):
    """MLflow's python_function: a table in, anything out."""

    platform = "mlflow_pyfunc"
    steady = False

    def __init__(self, function: Any) -> None:
        import pandas as pd

        self._frame = pd.DataFrame
        self._function = function
        schema: Any = function.metadata.get_input_schema() if function.metadata is not None else None
        names = [str(name) for name in schema.input_names()] if schema and schema.has_input_names() else []
        types = [str(kind) for kind in schema.input_types()] if names and not schema.is_tensor_spec() else []
        self._types = dict(zip(names, types, strict=False))
        inputs = tuple(
            TensorSpec(name, _TYPES.get(self._types.get(name, ""), Datatype.FP64), (-1,)) for name in names
        )
        self.signature = Signature(
            kind=InputKind.TABLE if names else InputKind.MATRIX,
            inputs=inputs or (TensorSpec(WHOLE, Datatype.FP64, (-1, -1)),),
            outputs=(TensorSpec(PREDICT, Datatype.FP64, (-1,)),),
            columns=tuple(names),
            missing=True,
            strings=True,
        )

    def predict(self, inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        table = self._frame(dict(inputs)) if self.signature.columns else inputs[WHOLE]
        answer = self._function.predict(table)
        array: Array = np.asarray(answer)
        return dict.fromkeys(outputs, array)

    def examples(self) -> Iterator[list[Any]]:
        if self.signature.columns:
            yield [
                {name: "a" if self._types.get(name) == "string" else 1.0 for name in self.signature.columns}
            ]
        else:
            yield [[1.0]]
