"""The Open Inference Protocol (V2): named tensors in, named tensors out, with the binary extension.

A body may carry its tensors as JSON (nested or flat) or, with the header
`Inference-Header-Content-Length`, as raw bytes after the JSON part, in the order of the inputs.
Each output comes back in the form that was asked for. Without `outputs`, all of the model's
outputs come back, as the protocol says; naming only those that are needed saves computing the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from inferplane.modelserver.errors import BadInput
from inferplane.modelserver.frameworks.base import Outputs, Signature, TensorSpec
from inferplane.modelserver.intake import Work, inputs_from_tensors
from inferplane.modelserver.tensor import (
    Array,
    Datatype,
    datatype_of,
    from_binary,
    from_json,
    from_values,
    parse_datatype,
    to_binary,
    to_json_data,
)
from inferplane.modelserver.v1 import decode_body, encode_numpy

#: Name of the header that carries the length of the JSON part.
LENGTH_HEADER = "inference-header-content-length"
EXTENSIONS = ("binary_tensor_data",)

_Parameters = dict[str, Any] | None


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: _Parameters = None
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct):
    name: str
    parameters: _Parameters = None


class _Body(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: _Parameters = None
    outputs: list[_Output] | None = None


class _FloatInput(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]
    parameters: _Parameters = None


class _FloatBody(msgspec.Struct):
    """A request whose tensors are all floats in flat JSON: read in one go."""

    inputs: list[_FloatInput]
    id: str | None = None
    parameters: _Parameters = None
    outputs: list[_Output] | None = None


_DECODER = msgspec.json.Decoder(_Body)
_FLOATS = msgspec.json.Decoder(_FloatBody)
_FLOAT_TYPES = {"FP32": Datatype.FP32, "FP64": Datatype.FP64}
#: A datatype named so early says that trying to read floats is worth it.
_FLOAT_SIGN = b'"FP'
_SIGN_BYTES = 512


@dataclass(frozen=True, slots=True)
class Request:
    """A parsed infer request: the work, and how the answer is to look."""

    work: Work
    id: str | None
    binary: frozenset[str]


def parse(body: bytes, json_length: int | None, signature: Signature) -> Request:
    """Read an infer request. `json_length` is the length header's value, None without it. Raises BadInput."""
    if json_length is None and body.find(_FLOAT_SIGN, 0, _SIGN_BYTES) >= 0:
        quick = _parse_floats(body, signature)
        if quick is not None:
            return quick
    view = memoryview(body)
    if json_length is not None and not 0 <= json_length <= len(body):
        raise BadInput(f"{LENGTH_HEADER} is {json_length}, and the body has {len(body)} bytes")
    head = body if json_length is None else view[:json_length]
    request: _Body = decode_body(head, _DECODER, 'send {"inputs": [{"name", "shape", "datatype", "data"}]}')
    if not request.inputs:
        raise BadInput('"inputs" is empty; send at least one tensor')
    tensors: dict[str, Array] = {}
    rest = None if json_length is None else view[json_length:]
    offset = 0
    for tensor in request.inputs:
        if tensor.name in tensors:
            raise BadInput(f"input '{tensor.name}' is given twice")
        size = _binary_size(tensor)
        tensors[tensor.name] = _read(tensor, rest, offset, size)
        offset += size or 0
    if rest is not None and offset != len(rest):
        raise BadInput(
            f"the body has {len(rest)} bytes after its JSON part, and the inputs' binary_data_size sum to {offset}"
        )
    names, binary = _wanted(request, signature)
    inputs, rows = inputs_from_tensors(tensors, signature)
    return Request(Work(inputs, rows, names), request.id, binary)


def _parse_floats(body: bytes, signature: Signature) -> Request | None:
    """A request of flat float tensors, or None when anything about it needs a closer look."""
    try:
        request = _FLOATS.decode(body)
    except (ValueError, RecursionError):  # msgspec's errors among them
        return None
    tensors: dict[str, Array] = {}
    for tensor in request.inputs:
        datatype = _FLOAT_TYPES.get(tensor.datatype)
        if datatype is None or tensor.name in tensors or tensor.parameters:
            return None
        tensors[tensor.name] = from_values(tensor.name, datatype, tensor.shape, tensor.data)
    if not tensors:
        return None
    names, binary = _wanted(request, signature)
    inputs, rows = inputs_from_tensors(tensors, signature)
    return Request(Work(inputs, rows, names), request.id, binary)


def render(
    outputs: Outputs, request: Request, model_name: str, version: str
) -> tuple[bytes, list[bytes | memoryview]]:
    """The answer's JSON part, and the binary tensors that follow it, not copied where that is possible."""
    entries: list[dict[str, Any]] = []
    blobs: list[bytes | memoryview] = []
    for name in request.work.outputs:
        array = outputs[name]
        if name in request.binary:
            blob = to_binary(array)
            entries.append(_entry(name, array) | {"parameters": {"binary_data_size": len(blob)}})
            blobs.append(blob)
        else:
            if array.dtype == np.float16:
                array = array.astype(np.float32)  # FP16 has no JSON form
            entries.append(_entry(name, array) | {"data": to_json_data(name, array)})
    answer: dict[str, Any] = {"model_name": model_name}
    if version:
        answer["model_version"] = version
    if request.id is not None:
        answer["id"] = request.id
    answer["outputs"] = entries
    return msgspec.json.encode(answer, enc_hook=encode_numpy), blobs


def metadata(name: str, version: str, platform: str, signature: Signature) -> dict[str, Any]:
    """The model's metadata: what it takes and gives."""
    answer: dict[str, Any] = {"name": name}
    if version:
        answer["versions"] = [version]
    return answer | {
        "platform": platform,
        "inputs": [_described(spec) for spec in signature.inputs],
        "outputs": [_described(spec) for spec in signature.outputs],
    }


def _read(tensor: _Input, rest: memoryview | None, offset: int, size: int | None) -> Array:
    datatype = parse_datatype(tensor.name, tensor.datatype)
    if size is None:
        if tensor.data is msgspec.UNSET:
            raise BadInput(f"input '{tensor.name}' has neither data nor parameters.binary_data_size")
        assert isinstance(tensor.data, msgspec.Raw)
        return from_json(tensor.name, datatype, tensor.shape, tensor.data)
    if tensor.data is not msgspec.UNSET:
        raise BadInput(
            f"input '{tensor.name}' has both data and parameters.binary_data_size; send one of them"
        )
    if rest is None:
        raise BadInput(
            f"input '{tensor.name}' has parameters.binary_data_size, but the header {LENGTH_HEADER} is missing"
        )
    if offset + size > len(rest):
        raise BadInput(f"the body ends before the {size} bytes of input '{tensor.name}'")
    return from_binary(tensor.name, datatype, tensor.shape, rest[offset : offset + size])


def _binary_size(tensor: _Input) -> int | None:
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is None:
        return None
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise BadInput(f"parameters.binary_data_size of input '{tensor.name}' must be a number of bytes")
    return size


def _wanted(request: _Body | _FloatBody, signature: Signature) -> tuple[tuple[str, ...], frozenset[str]]:
    known = signature.output_names
    default = _flag(request.parameters, "binary_data_output", "the request") or False
    if not request.outputs:
        return known, frozenset(known if default else ())
    names: list[str] = []
    binary: set[str] = set()
    for output in request.outputs:
        if output.name not in known:
            listed = ", ".join(f"'{name}'" for name in known)
            raise BadInput(f"the model has no output '{output.name}'; its outputs are {listed}")
        if output.name in names:
            raise BadInput(f"output '{output.name}' is asked for twice")
        names.append(output.name)
        own = _flag(output.parameters, "binary_data", f"output '{output.name}'")
        if default if own is None else own:
            binary.add(output.name)
    return tuple(names), frozenset(binary)


def _flag(parameters: _Parameters, key: str, where: str) -> bool | None:
    value = (parameters or {}).get(key)
    if value is not None and not isinstance(value, bool):
        raise BadInput(f"parameters.{key} of {where} must be true or false")
    return value


def _entry(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "shape": array.shape, "datatype": datatype_of(array)}


def _described(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": str(spec.datatype), "shape": list(spec.shape)}
