"""ONNX by onnxruntime: named tensors in, named tensors out.

Classifiers converted from scikit-learn answer with probabilities as a list of mappings; those are
turned into a table, one column a class, so that they can be split by row and shown as a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from inferplane.modelserver.errors import short
from inferplane.modelserver.frameworks.base import (
    EXAMPLE_TEXT,
    PLAIN_NUMBERS,
    InputKind,
    Inputs,
    Outputs,
    Signature,
    TensorSpec,
    load_failed,
    missing_extra,
)
from inferplane.modelserver.tensor import Array, Datatype

_DATATYPES: Mapping[str, Datatype] = {
    "bool": Datatype.BOOL,
    "uint8": Datatype.UINT8,
    "uint16": Datatype.UINT16,
    "uint32": Datatype.UINT32,
    "uint64": Datatype.UINT64,
    "int8": Datatype.INT8,
    "int16": Datatype.INT16,
    "int32": Datatype.INT32,
    "int64": Datatype.INT64,
    "float16": Datatype.FP16,
    "float": Datatype.FP32,
    "double": Datatype.FP64,
    "string": Datatype.BYTES,
}
INPUT_ERROR_NAMES = frozenset({"InvalidArgument", "RuntimeException", "Fail"})
#: Dimensions of unknown size are this long in a probe.
PROBE_SIZES = (1, 8, 32, 224)


def load(file: Path, threads: int) -> OnnxModel:
    """Load a model into an inference session. Raises LoadError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "onnx", error) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return OnnxModel(session)
    except MemoryError:
        raise
    except Exception as error:
        raise load_failed(
            file, f"it is not an ONNX model that onnxruntime can run ({_tell(error)})"
        ) from error


class OnnxModel:
    """An inference session behind the Model protocol."""

    platform = "onnxruntime_onnx"
    steady = False  # a graph may hold loops

    def __init__(self, session: Any) -> None:
        self._session = session
        inputs = tuple(_spec(node) for node in session.get_inputs())
        nodes = session.get_outputs()
        outputs = tuple(_spec(node) for node in nodes)
        tables = [node.name for node in nodes if "map(" in node.type]
        proba = tables or [node.name for node in nodes if "probab" in node.name.lower()]
        self._one_row = any(spec.shape and spec.shape[0] == 1 for spec in inputs)
        rows_vary = all(spec.shape and spec.shape[0] == -1 for spec in inputs)
        self.signature = Signature(
            kind=InputKind.TENSORS,
            inputs=inputs,
            outputs=outputs,
            missing=True,
            strings=True,
            plain_output=outputs[0].name,
            probability_output=proba[0] if proba and len(outputs) == 2 else "",
            batchable=rows_vary or self._one_row,
            certain=all(-1 not in spec.shape[1:] and spec.datatype is not Datatype.BYTES for spec in inputs),
        )
        if self._one_row:
            # The graph takes one row at a time; rows are fed to it one by one.
            self.signature = replace(
                self.signature, inputs=tuple(replace(spec, shape=(-1, *spec.shape[1:])) for spec in inputs)
            )

    def predict(self, inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        rows = len(next(iter(inputs.values())))
        if self._one_row and rows > 1:
            parts = [self._run({k: v[i : i + 1] for k, v in inputs.items()}, outputs) for i in range(rows)]
            return {name: np.concatenate([part[name] for part in parts]) for name in outputs}
        return self._run(inputs, outputs)

    def examples(self) -> Iterator[list[Any]]:
        for size in PROBE_SIZES:
            row = {spec.name: _example(spec, size) for spec in self.signature.inputs}
            yield [next(iter(row.values()))] if len(row) == 1 else [row]
            if all(-1 not in spec.shape[1:] for spec in self.signature.inputs):
                return

    def _run(self, inputs: Inputs, outputs: Sequence[str]) -> dict[str, Array]:
        try:
            answers = self._session.run(list(outputs), dict(inputs))
        except Exception as error:
            # onnxruntime's errors share no base class with anything; these may come from the input.
            if type(error).__name__ in INPUT_ERROR_NAMES:
                raise ValueError(_tell(error)) from error
            raise
        return {name: _as_array(answer) for name, answer in zip(outputs, answers, strict=True)}


def _spec(node: Any) -> TensorSpec:
    inner = node.type.partition("tensor(")[2].partition(")")[0]
    if "map(" in node.type:
        inner = "float"
        shape: tuple[int, ...] = (-1, -1)
    else:
        shape = tuple(size if isinstance(size, int) and size > 0 else -1 for size in node.shape or ())
    return TensorSpec(node.name, _DATATYPES.get(inner, Datatype.BYTES), shape)


def _as_array(answer: Any) -> Array:
    if isinstance(answer, list) and answer and isinstance(answer[0], dict):
        keys = list(answer[0])
        return np.array([[row[key] for key in keys] for row in answer], dtype=np.float32)
    return np.asarray(answer)


def _example(spec: TensorSpec, unknown: int) -> Any:
    """One row for an input: nested lists of plausible values."""
    shape = [unknown if size == -1 else size for size in spec.shape[1:]]
    count = int(np.prod(shape)) if shape else 1
    if spec.datatype is Datatype.BYTES:
        values: list[Any] = [EXAMPLE_TEXT] * count
    elif spec.datatype is Datatype.BOOL:
        values = [True] * count
    elif spec.datatype in (Datatype.FP16, Datatype.FP32, Datatype.FP64):
        values = [PLAIN_NUMBERS[index % len(PLAIN_NUMBERS)] for index in range(count)]
    else:
        values = [1] * count
    array = np.empty(count, dtype=object)
    array[:] = values
    return array.reshape(shape).tolist()


def _tell(error: BaseException) -> str:
    """onnxruntime's messages begin with its name, a number and a status."""
    text = short(error)
    return text.rpartition(" : ")[2] or text
