"""Tensors of the Open Inference Protocol: datatypes, and their JSON and binary forms.

A tensor in memory is a numpy array of the datatype's dtype; BYTES tensors are object arrays whose
elements are `str` (they came as JSON) or `bytes` (they came in binary form). Everything here checks
sizes before it allocates, and refuses with BadInput sentences that name the tensor.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from enum import StrEnum
from functools import lru_cache
from itertools import chain
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from inferplane.modelserver.errors import BadInput

Array: TypeAlias = NDArray[Any]

#: Tensors of more dimensions than this are refused; no model here takes more.
RANK_MAX = 8


class Datatype(StrEnum):
    """The datatypes of the protocol's table."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"


DTYPES: dict[Datatype, np.dtype[Any]] = {
    Datatype.BOOL: np.dtype("bool"),
    Datatype.UINT8: np.dtype("u1"),
    Datatype.UINT16: np.dtype("<u2"),
    Datatype.UINT32: np.dtype("<u4"),
    Datatype.UINT64: np.dtype("<u8"),
    Datatype.INT8: np.dtype("i1"),
    Datatype.INT16: np.dtype("<i2"),
    Datatype.INT32: np.dtype("<i4"),
    Datatype.INT64: np.dtype("<i8"),
    Datatype.FP16: np.dtype("<f2"),
    Datatype.FP32: np.dtype("<f4"),
    Datatype.FP64: np.dtype("<f8"),
    Datatype.BYTES: np.dtype(object),
}
_DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items() if datatype is not Datatype.BYTES}
_FLOAT_LIST = msgspec.json.Decoder(list[float])
_INT_LIST = msgspec.json.Decoder(list[int])
_ANY = msgspec.json.Decoder()


def datatype_of(array: Array) -> Datatype:
    """The protocol's name for an array's dtype; strings and everything odd are BYTES."""
    return _datatype_of(array.dtype)


@lru_cache(maxsize=256)  # strings of every length are dtypes of their own
def _datatype_of(dtype: np.dtype[Any]) -> Datatype:
    return _DATATYPES.get(dtype.newbyteorder("<"), Datatype.BYTES)


def parse_datatype(name: str, text: str) -> Datatype:
    """Read a datatype. Raises BadInput listing the known ones."""
    try:
        return Datatype(text)
    except ValueError:
        known = ", ".join(Datatype)
        raise BadInput(
            f"input '{name}' has the unknown datatype {text!r}; the known ones are {known}"
        ) from None


def check_shape(name: str, shape: Sequence[int]) -> int:
    """Return how many elements `shape` asks for. Raises BadInput for sizes below 1 or too many axes."""
    if len(shape) > RANK_MAX:
        raise BadInput(f"input '{name}' has {len(shape)} dimensions; at most {RANK_MAX} are supported")
    if any(size < 0 for size in shape):
        raise BadInput(f"input '{name}' has a negative size in its shape {list(shape)}")
    if 0 in shape:
        raise BadInput(f"input '{name}' is empty: its shape is {list(shape)}")
    return math.prod(shape)


def from_json(name: str, datatype: Datatype, shape: Sequence[int], data: msgspec.Raw) -> Array:
    """Build an array from JSON data, nested as the shape says or flat in row-major order.

    `null` in FP32 and FP64 data becomes NaN, for models that take missing values. Raises BadInput.
    """
    check_shape(name, shape)
    if datatype is Datatype.FP16:
        raise BadInput(
            f"input '{name}' has datatype FP16, which has no JSON form; send it as binary data (binary_data_size) or as FP32"
        )
    return from_values(name, datatype, shape, _elements(name, datatype, shape, data))


def from_values(name: str, datatype: Datatype, shape: Sequence[int], values: list[Any]) -> Array:
    """Build an array from its elements in row-major order, each of the datatype's type. Raises BadInput."""
    count = check_shape(name, shape)
    if len(values) != count:
        raise BadInput(f"input '{name}' has {len(values)} values, but its shape {list(shape)} needs {count}")
    if datatype is Datatype.BYTES:
        array = np.empty(count, dtype=object)
        array[:] = values
        return array.reshape(tuple(shape))
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=DTYPES[datatype])
    except OverflowError:
        raise BadInput(f"input '{name}' holds a value that does not fit into {datatype}") from None
    if datatype is Datatype.FP32 and bool(np.isinf(array).any()):
        raise BadInput(f"input '{name}' holds a value that does not fit into FP32")
    return array.reshape(tuple(shape))


def from_binary(name: str, datatype: Datatype, shape: Sequence[int], data: memoryview) -> Array:
    """Build an array from the binary extension's bytes: little-endian, row-major, no padding.

    Numbers are read in place, without a copy. Raises BadInput when the sizes do not agree.
    """
    count = check_shape(name, shape)
    if datatype is Datatype.BYTES:
        return _strings_from_binary(name, count, data).reshape(tuple(shape))
    dtype = DTYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise BadInput(
            f"input '{name}' has {len(data)} bytes of binary data, but {datatype} of shape {list(shape)} is "
            f"{count * dtype.itemsize} bytes"
        )
    if datatype is Datatype.BOOL:
        raw = np.frombuffer(data, dtype=np.uint8)
        if bool((raw > 1).any()):
            raise BadInput(f"input '{name}' has a BOOL byte that is neither 0 nor 1")
        return raw.view(np.bool_).reshape(tuple(shape))
    return np.frombuffer(data, dtype=dtype).reshape(tuple(shape))


def to_json_data(name: str, array: Array) -> list[Any]:
    """The flat, row-major JSON form. Raises BadInput for bytes that are no text: those need binary form."""
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    values: list[Any] = array.ravel().tolist()
    if array.dtype.kind in "OS":
        return [_json_text(name, value) for value in values]
    return values


def to_binary(array: Array) -> bytes | memoryview:
    """The binary extension's form: little-endian, row-major; BYTES as 4-byte lengths and contents.

    Numbers that lie in memory like that are not copied: the answer is a view of them.
    """
    datatype = datatype_of(array)
    if datatype is not Datatype.BYTES:
        plain = np.ascontiguousarray(array, dtype=DTYPES[datatype])
        return plain.reshape(-1).view(np.uint8).data if plain.size else b""
    parts: list[bytes] = []
    for value in array.ravel().tolist():
        content = value if isinstance(value, bytes) else str(value).encode()
        parts += (struct.pack("<I", len(content)), content)
    return b"".join(parts)


def texts(name: str, array: Array) -> Array:
    """The same strings, all as `str`. Raises BadInput for bytes that are not UTF-8."""
    out = np.empty(array.size, dtype=object)
    for index, value in enumerate(array.ravel().tolist()):
        if isinstance(value, bytes):
            try:
                out[index] = value.decode()
            except UnicodeDecodeError:
                raise BadInput(f"element {index} of '{name}' is not UTF-8 text") from None
        else:
            out[index] = value
    return out.reshape(array.shape)


def kind_of(value: object) -> str:
    """What a JSON value is, in a sentence."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        shown = value if len(value) <= 40 else value[:39] + "…"
        return f"the string {shown!r}"
    return "a list" if isinstance(value, list) else "an object"


def as_number(value: object, where: str, *, missing: bool) -> float:
    """A JSON number (or boolean) as float; null as NaN when `missing` allows. Raises BadInput."""
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            raise BadInput(f"{where} is a number too large for a float") from None
    if value is None:
        if missing:
            return math.nan
        raise BadInput(f"{where} is null, and this model does not take missing values")
    raise BadInput(f"{where} is {kind_of(value)}, and this model takes numbers")


def _elements(name: str, datatype: Datatype, shape: Sequence[int], data: msgspec.Raw) -> list[Any]:
    """The flat element list, each element checked to be of the datatype's JSON type."""
    try:
        if datatype in (Datatype.FP32, Datatype.FP64):
            return _FLOAT_LIST.decode(data)
        if datatype not in (Datatype.BOOL, Datatype.BYTES):
            return _INT_LIST.decode(data)
    except msgspec.ValidationError:
        pass  # nested, or a wrong element: the slow way below tells which
    value = decode_any(data)
    if not isinstance(value, list):
        raise BadInput(f"the data of input '{name}' is {kind_of(value)}; it must be a list")
    flat = _flatten(name, value, shape) if value and isinstance(value[0], list) else value
    where = f"a value of input '{name}'"
    if datatype in (Datatype.FP32, Datatype.FP64):
        return [as_number(element, where, missing=True) for element in flat]
    wanted, label = _JSON_TYPES.get(datatype, (int, "an integer"))
    for element in flat:
        if not isinstance(element, wanted) or (isinstance(element, bool) and wanted is not bool):
            raise BadInput(f"{where} is {kind_of(element)}; {datatype} needs {label}")
    return flat


_JSON_TYPES: dict[Datatype, tuple[type, str]] = {
    Datatype.BOOL: (bool, "true or false"),
    Datatype.BYTES: (str, "a string"),
}


def decode_any(data: msgspec.Raw | bytes) -> Any:
    """Decode JSON of unknown form. Raises BadInput, also for nesting that is too deep."""
    try:
        return _ANY.decode(data)
    except RecursionError:
        raise BadInput("the body is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise BadInput(f"the body is not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise BadInput("the body is not valid UTF-8") from None


def _flatten(name: str, value: list[Any], shape: Sequence[int]) -> list[Any]:
    level: list[Any] = [value]
    for size in shape:
        for item in level:
            if not isinstance(item, list):
                raise BadInput(f"the data of input '{name}' is not nested as its shape {list(shape)} says")
            if len(item) != size:
                raise BadInput(
                    f"the data of input '{name}' is ragged: a list has {len(item)} elements where its shape {list(shape)} says {size}"
                )
        level = list(chain.from_iterable(level))
    return level


def _strings_from_binary(name: str, count: int, data: memoryview) -> Array:
    # Each element takes at least its 4-byte length, which bounds `count` before anything is allocated.
    if count * 4 > len(data):
        raise BadInput(
            f"input '{name}' has {len(data)} bytes of binary data, too few for {count} BYTES elements"
        )
    out = np.empty(count, dtype=object)
    offset = 0
    for index in range(count):
        if offset + 4 > len(data):
            raise BadInput(f"the binary data of input '{name}' ends within element {index}")
        (size,) = struct.unpack_from("<I", data, offset)
        offset += 4
        if offset + size > len(data):
            raise BadInput(f"the binary data of input '{name}' ends within element {index}")
        out[index] = bytes(data[offset : offset + size])
        offset += size
    if offset != len(data):
        raise BadInput(f"the binary data of input '{name}' has {len(data) - offset} bytes too many")
    return out


def _json_text(name: str, value: object) -> object:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise BadInput(
                f"output '{name}' holds bytes that are no text; ask for it as binary data"
            ) from None
    return value if isinstance(value, str) else str(value)
