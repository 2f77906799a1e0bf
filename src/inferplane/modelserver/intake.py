"""From what callers send to what a model takes: the checks that keep a caller's mistake a 400.

Pure functions from JSON rows (V1) or tensors (V2) and a model's `Signature` to `Inputs` and a row
count. Rows of numbers go through one strict typed decode and one array construction; only when
that fails is the body looked at value by value, to say which value is wrong and why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import numpy as np

from inferplane.modelserver.errors import BadInput
from inferplane.modelserver.frameworks.base import WHOLE, InputKind, Inputs, Signature, TensorSpec
from inferplane.modelserver.tensor import (
    DTYPES,
    RANK_MAX,
    Array,
    Datatype,
    as_number,
    datatype_of,
    decode_any,
    kind_of,
    texts,
)

#: How many column names a sentence lists.
COLUMNS_SHOWN_MAX = 12


@dataclass(frozen=True, slots=True)
class Work:
    """One request, ready for the model: inputs of `rows` rows, and the outputs wanted, in order."""

    inputs: Inputs
    rows: int
    outputs: tuple[str, ...]


def inputs_from_json(data: msgspec.Raw, signature: Signature, field: str) -> tuple[Inputs, int]:
    """Turn V1's `instances` (a list of rows) or `inputs` (the same, or an object of columns) into inputs.

    Returns the inputs and the number of rows. Raises BadInput naming `field`.
    """
    if signature.kind is InputKind.MATRIX or (
        signature.kind is InputKind.TENSORS and len(signature.inputs) == 1
    ):
        array = _fast(data, signature)
        if array is not None:
            return array, len(next(iter(array.values())))
    value = decode_any(data)
    if isinstance(value, dict) and field == "inputs":
        return _columns(value, signature)
    if not isinstance(value, list):
        raise BadInput(f"{field} is {kind_of(value)}; it must be a list of rows")
    if not value:
        raise BadInput(f"{field} is an empty list; send at least one row")
    inputs = _ROWS[signature.kind](value, signature, field)
    return inputs, len(value)


def matrix_from_rows(rows: list[list[float]], signature: Signature) -> Inputs | None:
    """Rows of numbers for a MATRIX model, or None when anything about them needs a closer look."""
    try:
        array: Array = np.array(rows, dtype=np.float64)
    except ValueError:  # ragged
        return None
    if array.ndim != 2 or not array.size or signature.features not in (None, array.shape[1]):
        return None
    return {WHOLE: _narrow(array, signature.number)}


def inputs_from_tensors(tensors: Mapping[str, Array], signature: Signature) -> tuple[Inputs, int]:
    """Turn V2's named tensors into inputs. Returns them and the number of rows. Raises BadInput."""
    inputs = _TENSORS[signature.kind](tensors, signature)
    sizes = {len(array) for array in inputs.values()}
    if len(sizes) != 1:
        raise BadInput(f"the inputs have different numbers of rows: {sorted(sizes)}")
    return inputs, sizes.pop()


# Rows of numbers, the hot path.


def _fast(data: msgspec.Raw, signature: Signature) -> Inputs | None:
    """Strictly numeric rows in one go, or None when anything about them needs a closer look."""
    if signature.kind is InputKind.MATRIX:
        name, dtype, rank = WHOLE, signature.number, 2
        sizes: tuple[int, ...] = (-1 if signature.features is None else signature.features,)
    else:
        spec = signature.inputs[0]
        name, dtype, rank, sizes = spec.name, DTYPES[spec.datatype], len(spec.shape), spec.shape[1:]
        if dtype.kind != "f" or not 1 <= rank <= RANK_MAX:
            return None
    try:
        array: Array = np.array(_nested_decoder(rank).decode(data), dtype=np.float64)
    except (ValueError, RecursionError):  # also msgspec's errors; ragged rows
        return None
    if array.ndim != rank or not len(array):
        return None
    if any(wanted not in (-1, found) for wanted, found in zip(sizes, array.shape[1:], strict=True)):
        return None
    return {name: _narrow(array, dtype)}


@cache
def _nested_decoder(rank: int) -> msgspec.json.Decoder[Any]:
    wanted: Any = float
    for _ in range(rank):
        wanted = list[wanted]
    return msgspec.json.Decoder(wanted)


def _narrow(array: Array, dtype: np.dtype[Any]) -> Array:
    """Cast to a smaller float; a value that does not fit is refused instead of becoming infinite."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if (
        dtype.kind == "f"
        and not np.isfinite(cast).all()
        and bool((np.isinf(cast) & np.isfinite(array)).any())
    ):
        raise BadInput(f"a value is too large for the model's {datatype_of(cast)} numbers")
    return cast


# V1 rows, value by value.


def _matrix_rows(rows: list[Any], signature: Signature, field: str) -> Inputs:
    out: list[list[Any]] = []
    width = signature.features
    for index, row in enumerate(rows):
        values = _row_values(row, signature, f"{field}[{index}]")
        _check_width(
            len(values), width if width is not None else len(out[0]) if out else None, signature, field, index
        )
        out.append(values)
    if signature.strings and any(isinstance(value, str) for row in out for value in row):
        table = np.empty((len(out), len(out[0])), dtype=object)
        for index, row in enumerate(out):
            table[index, :] = [_cell(value, f"{field}[{index}]", signature) for value in row]
        return {WHOLE: table}
    numbers = [
        [as_number(value, f"{field}[{i}][{j}]", missing=signature.missing) for j, value in enumerate(row)]
        for i, row in enumerate(out)
    ]
    return {WHOLE: _narrow(np.array(numbers, dtype=np.float64), signature.number)}


def _row_values(row: Any, signature: Signature, where: str) -> list[Any]:
    if isinstance(row, list):
        return row
    if isinstance(row, dict):
        if not signature.columns:
            raise BadInput(
                f"{where} is an object, but this model was trained without column names; "
                f"send each row as a list of {_count(signature)}"
            )
        return _in_order(row, signature.columns, where)
    if signature.features is None and signature.strings:
        return [row]
    raise BadInput(
        f"{where} is {kind_of(row)}; each row must be a list of {_count(signature)}, as in {_shape_hint(signature)}"
    )


def _in_order(row: dict[str, Any], columns: Sequence[str], where: str) -> list[Any]:
    try:
        return [row[name] for name in columns]
    except KeyError:
        missing = [name for name in columns if name not in row]
        raise BadInput(
            f"{where} lacks {_listed(missing)}; the model's columns are {_listed(columns)}"
        ) from None


def _table_rows(rows: list[Any], signature: Signature, field: str) -> Inputs:
    table = [_table_row(row, signature, field, index) for index, row in enumerate(rows)]
    return {
        name: _column([row[position] for row in table], name, signature)
        for position, name in enumerate(signature.columns)
    }


def _table_row(row: Any, signature: Signature, field: str, index: int) -> list[Any]:
    where = f"{field}[{index}]"
    if isinstance(row, dict):
        return _in_order(row, signature.columns, where)
    if isinstance(row, list):
        _check_width(len(row), len(signature.columns), signature, field, index)
        return row
    raise BadInput(f"{where} is {kind_of(row)}; each row must be an object with {_listed(signature.columns)}")


def _column(values: list[Any], name: str, signature: Signature) -> Array:
    """One column's values as the narrowest array that holds them all; null becomes NaN."""
    kinds = {type(value) for value in values}
    where = f"column {name!r}"
    if kinds <= {int} or kinds == {bool}:
        try:
            return np.array(values, dtype=np.int64 if int in kinds else np.bool_)
        except OverflowError:
            pass  # beyond 64 bits: a float will have to do
    if kinds <= {int, float, bool, type(None)}:
        return np.array(
            [as_number(value, where, missing=signature.missing) for value in values], dtype=np.float64
        )
    column = np.empty(len(values), dtype=object)
    column[:] = [_cell(value, where, signature) for value in values]
    return column


def _cell(value: Any, where: str, signature: Signature) -> Any:
    if value is None:
        if not signature.missing:
            raise BadInput(f"{where} holds null, and this model does not take missing values")
        return math.nan
    if isinstance(value, (list, dict)):
        raise BadInput(f"{where} holds {kind_of(value)} where the model takes a single value")
    return value


def _text_rows(rows: list[Any], signature: Signature, field: str) -> Inputs:  # noqa: ARG001 - one shape for all kinds
    out = np.empty(len(rows), dtype=object)
    for index, row in enumerate(rows):
        value = row
        if isinstance(row, list) and len(row) == 1:
            value = row[0]
        elif isinstance(row, dict) and len(row) == 1:
            value = next(iter(row.values()))
        if not isinstance(value, str):
            raise BadInput(
                f"{field}[{index}] is {kind_of(value)}; this model takes text: each row must be one string"
            )
        out[index] = value
    return {WHOLE: out}


def _mapping_rows(rows: list[Any], signature: Signature, field: str) -> Inputs:
    out = np.empty(len(rows), dtype=object)
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadInput(
                f"{field}[{index}] is {kind_of(row)}; each row must be an object of feature names and values"
            )
        for key, value in row.items():
            _cell(value, f"{field}[{index}][{key!r}]", signature)
        out[index] = row
    return {WHOLE: out}


def _tensor_rows(rows: list[Any], signature: Signature, field: str) -> Inputs:
    specs = signature.inputs
    if len(specs) == 1:
        spec = specs[0]
        bare = [row[spec.name] if isinstance(row, dict) and spec.name in row else row for row in rows]
        return {spec.name: _tensor_from_values(bare, spec, field)}
    names = [spec.name for spec in specs]
    ordered: list[list[Any]] = []
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadInput(
                f"{field}[{index}] is {kind_of(row)}; this model has {len(names)} inputs, so each row must be an object with {_listed(names)}"
            )
        ordered.append(_in_order(row, names, f"{field}[{index}]"))
    return {
        spec.name: _tensor_from_values([row[position] for row in ordered], spec, f"{field}[…].{spec.name}")
        for position, spec in enumerate(specs)
    }


def _tensor_from_values(values: list[Any], spec: TensorSpec, field: str) -> Array:
    """Nested JSON lists as one tensor of the input's datatype, checked against its shape."""
    rank = len(spec.shape)
    if rank == 2 and spec.shape[1] in (1, -1) and not any(isinstance(value, list) for value in values):
        values = [[value] for value in values]  # one value a row, written without its brackets
    shape: list[int] = []
    level: Any = values
    while isinstance(level, list) and len(shape) < RANK_MAX:
        if not level:
            raise BadInput(f"{field} holds an empty list")
        shape.append(len(level))
        level = level[0]
    flat: list[Any] = [values]
    for size in shape:
        below: list[Any] = []
        for item in flat:
            if not isinstance(item, list) or len(item) != size:
                raise BadInput(
                    f"{field} is ragged: its rows are not all of the shape {shape[1:]} of the first"
                )
            below += item
        flat = below
    array = np.empty(len(flat), dtype=object)
    array[:] = [_element(value, spec, field) for value in flat]
    return _fitted(_as_dtype(array, spec, field).reshape(shape), spec)


def _element(value: Any, spec: TensorSpec, field: str) -> Any:
    if spec.datatype is Datatype.BYTES:
        if not isinstance(value, str):
            raise BadInput(f"{field} holds {kind_of(value)}, and the model takes strings there")
        return value
    if DTYPES[spec.datatype].kind in "iu" and isinstance(value, float) and not value.is_integer():
        raise BadInput(f"{field} holds {value}, and the model takes whole numbers ({spec.datatype}) there")
    if isinstance(value, int):
        return value
    return as_number(value, field, missing=DTYPES[spec.datatype].kind == "f")


def _as_dtype(array: Array, spec: TensorSpec, field: str) -> Array:
    if spec.datatype is Datatype.BYTES:
        return array
    dtype = DTYPES[spec.datatype]
    try:
        if dtype.kind == "f":
            return _narrow(array.astype(np.float64), dtype)
        if dtype.kind in "iu":
            return np.array([int(value) for value in array.tolist()], dtype=dtype)
        return array.astype(dtype)
    except OverflowError:
        raise BadInput(f"{field} holds a value that does not fit into {spec.datatype}") from None


def _columns(value: dict[str, Any], signature: Signature) -> tuple[Inputs, int]:
    """V1's `inputs` as an object of columns: {"a": [1, 2], "b": [3, 4]}."""
    names = signature.columns or tuple(spec.name for spec in signature.inputs)
    columns = _in_order(value, names, "inputs")
    for name, column in zip(names, columns, strict=True):
        if not isinstance(column, list):
            raise BadInput(f"inputs.{name} is {kind_of(column)}; it must be a list with one value a row")
    sizes = {len(column) for column in columns}
    if len(sizes) != 1 or 0 in sizes:
        raise BadInput(
            f"the columns in inputs must have the same number of rows, at least one; they have {sorted(sizes)}"
        )
    if signature.kind in (InputKind.TENSORS, InputKind.TABLE) or signature.columns:
        rows: list[Any] = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    else:
        rows = columns[0]
    return _ROWS[signature.kind](rows, signature, "inputs"), sizes.pop()


_ROWS: Mapping[InputKind, Any] = {
    InputKind.MATRIX: _matrix_rows,
    InputKind.TABLE: _table_rows,
    InputKind.TEXT: _text_rows,
    InputKind.MAPPINGS: _mapping_rows,
    InputKind.TENSORS: _tensor_rows,
}


# V2 tensors.


def _matrix_tensors(tensors: Mapping[str, Array], signature: Signature) -> Inputs:
    name, array = next(iter(tensors.items()))
    wide = signature.features not in (None, 1)
    if len(tensors) > 1 or (wide and (array.ndim == 1 or name in signature.columns)):
        stacked = _stacked_columns(tensors, signature)
        return {WHOLE: _numbers(stacked, signature)}
    if array.ndim == 1 and signature.features in (None, 1):
        array = array.reshape(-1, 1)
    if array.ndim != 2:
        raise BadInput(
            f"input '{name}' has shape {list(array.shape)}; this model takes [rows, {_size(signature.features)}]"
        )
    if signature.features is not None and array.shape[1] != signature.features:
        raise BadInput(
            f"input '{name}' has {array.shape[1]} values a row, and this model takes {signature.features}"
        )
    return {WHOLE: _numbers(array, signature)}


def _stacked_columns(tensors: Mapping[str, Array], signature: Signature) -> Array:
    if not signature.columns:
        shapes = ", ".join(
            f"'{name}' {list(array.shape)}" for name, array in list(tensors.items())[:COLUMNS_SHOWN_MAX]
        )
        raise BadInput(
            f"this model takes one input of shape [rows, {_size(signature.features)}]; the request has {shapes}"
        )
    columns = [_flat_column(name, array) for name, array in _by_name(tensors, signature.columns).items()]
    if len({len(column) for column in columns}) != 1:
        raise BadInput("the inputs have different numbers of rows")
    if any(column.dtype == object for column in columns):
        columns = [column.astype(object) for column in columns]
    return np.column_stack(columns)


def _numbers(array: Array, signature: Signature) -> Array:
    if array.dtype == object:
        if not signature.strings:
            raise BadInput("this model takes numbers, and the input's datatype is BYTES")
        return texts(WHOLE, array)
    numbers = _narrow(array, signature.number) if array.dtype != signature.number else array
    if not signature.missing and not np.isfinite(numbers).all():
        place = np.argwhere(~np.isfinite(numbers))[0].tolist()
        if np.isnan(numbers[tuple(place)]):
            raise BadInput(
                f"the value at {place} of the input is null or NaN, and this model does not take missing values"
            )
        raise BadInput(f"the value at {place} of the input is infinite, and this model takes finite numbers")
    return numbers


def _table_tensors(tensors: Mapping[str, Array], signature: Signature) -> Inputs:
    if len(tensors) == 1 and len(signature.columns) != 1:
        name, array = next(iter(tensors.items()))
        if array.ndim != 2 or array.shape[1] != len(signature.columns):
            raise BadInput(
                f"input '{name}' has shape {list(array.shape)}; send one input a column ({_listed(signature.columns)}), "
                f"or one of shape [rows, {len(signature.columns)}]"
            )
        return {
            column: _plain_column(column, array[:, index]) for index, column in enumerate(signature.columns)
        }
    return {
        name: _plain_column(name, _flat_column(name, array))
        for name, array in _by_name(tensors, signature.columns).items()
    }


def _plain_column(name: str, array: Array) -> Array:
    return texts(name, array) if array.dtype == object else array


def _text_tensors(tensors: Mapping[str, Array], signature: Signature) -> Inputs:  # noqa: ARG001 - one shape for all kinds
    if len(tensors) != 1:
        raise BadInput("this model takes text: one BYTES input of shape [rows]")
    name, array = next(iter(tensors.items()))
    if array.dtype != object:
        raise BadInput(
            f"input '{name}' has datatype {datatype_of(array)}; this model takes text, as BYTES of shape [rows]"
        )
    return {WHOLE: texts(name, _flat_column(name, array))}


def _mapping_tensors(tensors: Mapping[str, Array], signature: Signature) -> Inputs:  # noqa: ARG001 - one shape for all kinds
    """Each tensor is one feature; a row is the mapping of all of them."""
    columns = {
        name: _plain_column(name, _flat_column(name, array)).tolist() for name, array in tensors.items()
    }
    if len({len(column) for column in columns.values()}) != 1:
        raise BadInput("the inputs have different numbers of rows")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    out = np.empty(len(rows), dtype=object)
    out[:] = rows
    return {WHOLE: out}


def _named_tensors(tensors: Mapping[str, Array], signature: Signature) -> Inputs:
    specs = signature.inputs
    if len(specs) == 1 and len(tensors) == 1:
        found: Mapping[str, Array] = {specs[0].name: next(iter(tensors.values()))}
    else:
        found = _by_name(tensors, [spec.name for spec in specs])
    return {spec.name: _fitted(_coerced(found[spec.name], spec), spec) for spec in specs}


def _coerced(array: Array, spec: TensorSpec) -> Array:
    """The tensor in the input's datatype where no value changes its meaning. Raises BadInput otherwise."""
    wanted = DTYPES[spec.datatype]
    if array.dtype == wanted:
        return texts(spec.name, array) if wanted.kind == "O" else array
    given = datatype_of(array)
    allowed = {"f": "fiub", "i": "iub", "u": "iub", "b": "b"}.get(wanted.kind, "")
    if array.dtype.kind not in allowed:
        raise BadInput(f"input '{spec.name}' has datatype {given}, and the model takes {spec.datatype}")
    if wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if array.dtype.kind != "b" and (int(array.min()) < limits.min or int(array.max()) > limits.max):
            raise BadInput(f"input '{spec.name}' holds a value that does not fit into {spec.datatype}")
        return array.astype(wanted)
    return _narrow(array, wanted)


def _fitted(array: Array, spec: TensorSpec) -> Array:
    """Check a tensor against an input's shape. Raises BadInput."""
    if array.ndim != len(spec.shape) or any(
        wanted not in (-1, found) for wanted, found in zip(spec.shape, array.shape, strict=True)
    ):
        raise BadInput(
            f"input '{spec.name}' has shape {list(array.shape)}, and the model takes {list(spec.shape)}"
        )
    if array.ndim == 0:
        raise BadInput(f"input '{spec.name}' has no rows")
    return array


def _by_name(tensors: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise BadInput(
            f"the request lacks the input {_listed(missing)}; the model's inputs are {_listed(names)}"
        )
    strangers = [name for name in tensors if name not in names]
    if strangers:
        raise BadInput(f"the model has no input {_listed(strangers)}; its inputs are {_listed(names)}")
    return {name: tensors[name] for name in names}


def _flat_column(name: str, array: Array) -> Array:
    if array.ndim == 1:
        return array
    if array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    raise BadInput(f"input '{name}' has shape {list(array.shape)}; it must be [rows] or [rows, 1]")


_TENSORS: Mapping[InputKind, Any] = {
    InputKind.MATRIX: _matrix_tensors,
    InputKind.TABLE: _table_tensors,
    InputKind.TEXT: _text_tensors,
    InputKind.MAPPINGS: _mapping_tensors,
    InputKind.TENSORS: _named_tensors,
}


# Words.


def _check_width(found: int, wanted: int | None, signature: Signature, field: str, index: int) -> None:
    if wanted is None or found == wanted:
        return
    values = "value" if found == 1 else "values"
    if signature.features is None and signature.kind is InputKind.MATRIX:
        raise BadInput(
            f"{field}[{index}] has {found} {values}, and {field}[0] has {wanted}; all rows must be of one length"
        )
    named = f" ({_listed(signature.columns)})" if signature.columns else ""
    raise BadInput(
        f"{field}[{index}] has {found} {values}, and this model takes {wanted} values a row{named}"
    )


def _count(signature: Signature) -> str:
    what = "values" if signature.strings else "numbers"
    return what if signature.features is None else f"{signature.features} {what}"


def _shape_hint(signature: Signature) -> str:
    row = ", ".join("1.0" for _ in range(min(signature.features or 2, 4)))
    return f"[[{row}{', …' if (signature.features or 0) > 4 else ''}]]"


def _size(features: int | None) -> str:
    return "features" if features is None else str(features)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:COLUMNS_SHOWN_MAX])
    more = len(names) - COLUMNS_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown
