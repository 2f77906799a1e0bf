"""What every framework's adapter looks like from the protocols' side.

A model takes `Inputs`: named arrays whose first axis is the row, so that requests can be joined
into a batch and answers split again. Which names and dtypes it wants is its `Signature`, a value;
the protocols (v1, v2) translate JSON and tensors to it without knowing the framework.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from inferplane.modelserver.errors import LoadError, LoadReason
from inferplane.modelserver.tensor import Array, Datatype

Inputs: TypeAlias = Mapping[str, Array]
Outputs: TypeAlias = Mapping[str, Array]

#: The name under which a model that takes one nameless array finds it in its inputs.
WHOLE = "input-0"
#: Example numbers where nothing is known about a feature.
PLAIN_NUMBERS = (5.1, 3.5, 1.4, 0.2)
EXAMPLE_TEXT = "a short example text"
PREDICT = "predict"
PREDICT_PROBA = "predict_proba"


class InputKind(Enum):
    """What a row is to the model."""

    #: A row of numbers; inputs = {WHOLE: [rows, features]}.
    MATRIX = auto()
    #: A row of named columns, strings allowed; inputs = {column: [rows]}.
    TABLE = auto()
    #: One string; inputs = {WHOLE: [rows] of str}.
    TEXT = auto()
    #: One mapping from feature names to values; inputs = {WHOLE: [rows] of dict}.
    MAPPINGS = auto()
    #: Named tensors with their own datatypes and shapes; inputs = {input name: [rows, …]}.
    TENSORS = auto()


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as V2 metadata shows it; -1 is a size that may vary."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives.

    `features` is the number of values in a row, None when the model does not say. `columns` are
    their names in order, () when it was trained without. `missing`: NaN is allowed. `strings`: a
    MATRIX may hold strings (an object array). `number` is the dtype that numbers are turned into.
    `outputs` lists every output; V1 shows `plain_output`, or `probability_output` when
    probabilities are asked for ("" when the model has none). `batchable`: rows are independent, so
    requests may be joined. `certain`: what is known suffices to make a row that a sound model answers,
    so a model that does not answer one is broken.
    """

    kind: InputKind
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    features: int | None = None
    columns: tuple[str, ...] = ()
    missing: bool = False
    strings: bool = False
    number: np.dtype[Any] = np.dtype(np.float64)
    plain_output: str = PREDICT
    probability_output: str = ""
    batchable: bool = True
    certain: bool = False

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of all outputs, in order."""
        return tuple(output.name for output in self.outputs)


class Model(Protocol):
    """A loaded model. Used from one thread at a time."""

    #: V2's platform string, `<project>_<format>`.
    platform: str
    signature: Signature
    #: Whether the time of a call depends on the number of rows alone, not on what is in them.
    steady: bool

    def predict(self, inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        """Compute the named outputs for all rows. Errors of the library come through as they are."""
        ...

    def examples(self) -> Iterator[list[Any]]:
        """V1 `instances` that this model probably answers, the most likely first."""
        ...


def missing_extra(package: str, extra: str, error: ImportError) -> LoadError:
    """The error for a framework that is not installed, or is broken."""
    if isinstance(error, ModuleNotFoundError):
        message = f"the Python package {error.name or package} is not installed; install it with: pip install 'inferplane[{extra}]'"
    else:
        message = (
            f"the Python package {package} cannot be imported ({error}); "
            f"install it anew with: pip install 'inferplane[{extra}]'"
        )
    return LoadError(LoadReason.MISSING_EXTRA, message)


def load_failed(file: Path, why: str) -> LoadError:
    """The error for a file that is there but is no model of its format."""
    return LoadError(LoadReason.MODEL_LOAD_FAILED, f"{file.name} could not be loaded: {why}")


def matrix_input(features: int | None, datatype: Datatype = Datatype.FP64) -> tuple[TensorSpec, ...]:
    """The metadata of a model that takes rows of numbers."""
    return (TensorSpec(WHOLE, datatype, (-1, -1 if features is None else features)),)


def plain_row(features: int) -> list[float]:
    """A row of ordinary numbers, for models that tell nothing about their features."""
    return [PLAIN_NUMBERS[index % len(PLAIN_NUMBERS)] for index in range(features)]


def tidy(value: float) -> float:
    """A number as a person would write it in an example: three significant digits."""
    return float(f"{value:.3g}")


def two_columns(positive: Array) -> Array:
    """Probabilities of both classes from that of the positive one; [rows] becomes [rows, 2]."""
    return np.column_stack((1.0 - positive, positive))
