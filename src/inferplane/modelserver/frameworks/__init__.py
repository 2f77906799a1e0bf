"""One module a framework: load(file, options) → Model. Heavy libraries are imported only there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inferplane.modelserver.errors import LoadError, LoadReason
from inferplane.modelserver.files import find_model_file

if TYPE_CHECKING:
    from inferplane.modelserver.frameworks.base import Model


@dataclass(frozen=True, slots=True)
class Framework:
    """A model format: its name and the file endings it is stored under."""

    name: str
    suffixes: tuple[str, ...]
    load: Callable[[Path, int], Model]


def load_model(format_name: str, path: str, threads: int) -> Model:
    """Find the model file under `path` and load it. Raises LoadError with the reason."""
    framework = FRAMEWORKS.get(format_name)
    if framework is None:
        known = ", ".join(sorted(FRAMEWORKS))
        raise LoadError(
            LoadReason.UNSUPPORTED_FORMAT,
            f"the format {format_name!r} is not known here; the known formats are {known}",
        )
    return framework.load(find_model_file(path, framework.suffixes), threads)


def _sklearn(file: Path, threads: int) -> Model:
    from inferplane.modelserver.frameworks import sklearn

    return sklearn.load(file, threads)


def _xgboost(file: Path, threads: int) -> Model:
    from inferplane.modelserver.frameworks import xgboost

    return xgboost.load(file, threads)


def _lightgbm(file: Path, threads: int) -> Model:
    from inferplane.modelserver.frameworks import lightgbm

    return lightgbm.load(file, threads)


def _onnx(file: Path, threads: int) -> Model:
    from inferplane.modelserver.frameworks import onnx

    return onnx.load(file, threads)


FRAMEWORKS: Mapping[str, Framework] = {
    framework.name: framework
    for framework in (
        Framework("sklearn", (".joblib", ".pkl", ".pickle"), _sklearn),
        Framework("xgboost", (".json", ".ubj", ".bst"), _xgboost),
        Framework("lightgbm", (".txt", ".bst"), _lightgbm),
        Framework("onnx", (".onnx",), _onnx),
    )
}
