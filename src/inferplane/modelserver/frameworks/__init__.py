"""One module a framework: load(file, options) → Model. Heavy libraries are imported only there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inferplane.modelserver.errors import LoadError, LoadReason
from inferplane.modelserver.files import find_model_file

if TYPE_CHECKING:
    from inferplane.modelserver.frameworks.base import Model


@dataclass(frozen=True, slots=True)
class Framework:
    """A model format: its name and the file endings it is stored under; () for one that is a folder.

    `load` gets the model file or folder, the number of threads, and the manifest's arguments.
    """

    name: str
    suffixes: tuple[str, ...]
    load: Callable[[Path, int, Sequence[str]], Model]


def load_model(format_name: str, path: str, threads: int, args: Sequence[str] = ()) -> Model:
    """Find the model under `path` and load it. Raises LoadError with the reason."""
    framework = FRAMEWORKS.get(format_name)
    if framework is None:
        known = ", ".join(sorted(FRAMEWORKS))
        raise LoadError(
            LoadReason.UNSUPPORTED_FORMAT,
            f"the format {format_name!r} is not known here; the known formats are {known}",
        )
    if not framework.suffixes:
        if not Path(path).exists():
            raise LoadError(LoadReason.MODEL_NOT_FOUND, f"there is no file or folder {path}")
        return framework.load(Path(path), threads, args)
    return framework.load(find_model_file(path, framework.suffixes), threads, args)


def _sklearn(file: Path, threads: int, _args: Sequence[str]) -> Model:
    from inferplane.modelserver.frameworks import sklearn

    return sklearn.load(file, threads)


def _xgboost(file: Path, threads: int, _args: Sequence[str]) -> Model:
    from inferplane.modelserver.frameworks import xgboost

    return xgboost.load(file, threads)


def _lightgbm(file: Path, threads: int, _args: Sequence[str]) -> Model:
    from inferplane.modelserver.frameworks import lightgbm

    return lightgbm.load(file, threads)


def _onnx(file: Path, threads: int, _args: Sequence[str]) -> Model:
    from inferplane.modelserver.frameworks import onnx

    return onnx.load(file, threads)


def _huggingface(folder: Path, threads: int, args: Sequence[str]) -> Model:
    from inferplane.modelserver.frameworks import huggingface

    return huggingface.load(folder, threads, args)


def _mlflow(folder: Path, threads: int, args: Sequence[str]) -> Model:
    from inferplane.modelserver.frameworks import mlflow

    return mlflow.load(folder, threads, args)


FRAMEWORKS: Mapping[str, Framework] = {
    framework.name: framework
    for framework in (
        Framework("sklearn", (".joblib", ".pkl", ".pickle"), _sklearn),
        Framework("xgboost", (".json", ".ubj", ".bst"), _xgboost),
        Framework("lightgbm", (".txt", ".bst"), _lightgbm),
        Framework("onnx", (".onnx",), _onnx),
        Framework("huggingface", (), _huggingface),
        Framework("mlflow", (), _mlflow),
    )
}
