"""The Open Inference Protocol over gRPC: messages ⇄ tensors, and what each method answers.

Tensors come as typed contents, one list of numbers a tensor, or as `raw_input_contents`, the bytes that the
binary extension of the HTTP form has; an answer comes in the form of its question. How calls travel is
`http2`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from inferplane.modelserver import v2
from inferplane.modelserver.app import ROWS_HEADER, App, Job, Serving
from inferplane.modelserver.errors import BadInput, RequestError
from inferplane.modelserver.exchange import Answer, Exchange, error_answer
from inferplane.modelserver.frameworks.base import Outputs
from inferplane.modelserver.grpc_messages import MESSAGES, SERVICE
from inferplane.modelserver.intake import Work, inputs_from_tensors
from inferplane.modelserver.tensor import (
    DTYPES,
    Array,
    Datatype,
    check_shape,
    datatype_of,
    from_binary,
    parse_datatype,
    to_binary,
)
from inferplane.version import VERSION

#: Which list of `InferTensorContents` holds which datatype. FP16 has none and comes raw.
CONTENTS: Mapping[Datatype, str] = {
    Datatype.BOOL: "bool_contents",
    Datatype.INT8: "int_contents",
    Datatype.INT16: "int_contents",
    Datatype.INT32: "int_contents",
    Datatype.INT64: "int64_contents",
    Datatype.UINT8: "uint_contents",
    Datatype.UINT16: "uint_contents",
    Datatype.UINT32: "uint_contents",
    Datatype.UINT64: "uint64_contents",
    Datatype.FP32: "fp32_contents",
    Datatype.FP64: "fp64_contents",
    Datatype.BYTES: "bytes_contents",
}
ALL_CONTENTS = tuple(dict.fromkeys(CONTENTS.values()))
_PREFIX = f"/{SERVICE}/"


class Methods:
    """The service's methods on one application, by the paths that calls name."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._asked: Mapping[str, Callable[[bytes], Any]] = {
            f"{_PREFIX}ServerLive": self._server_live,
            f"{_PREFIX}ServerReady": self._server_ready,
            f"{_PREFIX}ModelReady": self._model_ready,
            f"{_PREFIX}ServerMetadata": self._server_metadata,
            f"{_PREFIX}ModelMetadata": self._model_metadata,
        }

    def call(self, path: str, exchange: Exchange, message: bytes) -> None:
        """Answer one call; `exchange.finish` gets the response message or what went wrong."""
        if path == f"{_PREFIX}ModelInfer":
            self._app.start(exchange, self._read, message)
            return
        asked = self._asked.get(path)
        if asked is None:
            self._app.end(exchange, error_answer(501, f"there is no method {path[:200]}"))
            return
        try:
            answer = Answer(200, asked(message).SerializeToString(), ())
        except Exception as error:  # noqa: BLE001 - translated in one place
            answer = self._app.failure(error)
        self._app.end(exchange, answer)

    def _server_live(self, _message: bytes) -> Any:
        return MESSAGES["ServerLiveResponse"](live=not self._app.stalled)

    def _server_ready(self, _message: bytes) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self._app.ready)

    def _model_ready(self, message: bytes) -> Any:
        request = _parse("ModelReadyRequest", message)
        self._check(request.name, request.version)
        return MESSAGES["ModelReadyResponse"](ready=self._app.ready)

    def _server_metadata(self, _message: bytes) -> Any:
        return MESSAGES["ServerMetadataResponse"](
            name="inferplane", version=VERSION, extensions=list(v2.EXTENSIONS)
        )

    def _model_metadata(self, message: bytes) -> Any:
        request = _parse("ModelMetadataRequest", message)
        self._check(request.name, request.version)
        serving = self._app.serving
        if serving is None:
            raise RequestError(f"Model with name {request.name} is not ready.", status=503)
        about = v2.metadata(
            request.name, self._app.config.version, serving.model.platform, serving.model.signature
        )
        return MESSAGES["ModelMetadataResponse"](
            name=about["name"],
            versions=about.get("versions", ()),
            platform=about["platform"],
            inputs=about["inputs"],
            outputs=about["outputs"],
        )

    def _read(self, serving: Serving, message: bytes, _exchange: Exchange) -> Job:
        request = _parse("ModelInferRequest", message)
        self._check(request.model_name, request.model_version)
        tensors = _tensors(request)
        names = _wanted(request.outputs, serving.signature.output_names)
        inputs, rows = inputs_from_tensors(tensors, serving.signature)
        work = Work(inputs, rows, names)
        return work, partial(
            _render,
            work,
            request.model_name,
            self._app.config.version,
            request.id,
            bool(request.raw_input_contents),
        )

    def _check(self, name: str, version: str) -> None:
        config = self._app.config
        if name not in config.names:
            raise RequestError(f"Model with name {name[:200]} does not exist.", status=404)
        if version not in ("", config.version):
            raise RequestError(
                f"Model with name {name} has no version {version[:200]}; it has version {config.version}.",
                status=404,
            )


def _parse(name: str, message: bytes) -> Any:
    try:
        return MESSAGES[name].FromString(message)
    except DecodeError:
        raise BadInput(f"the message is no {name}") from None


def _tensors(request: Any) -> dict[str, Array]:
    if not request.inputs:
        raise BadInput("inputs is empty; send at least one tensor")
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadInput(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs; send one for each"
        )
    tensors: dict[str, Array] = {}
    for index, tensor in enumerate(request.inputs):
        if tensor.name in tensors:
            raise BadInput(f"input '{tensor.name}' is given twice")
        datatype = parse_datatype(tensor.name, tensor.datatype)
        shape = list(tensor.shape)
        if not raw:
            tensors[tensor.name] = _from_contents(tensor.name, datatype, shape, tensor.contents)
            continue
        if tensor.HasField("contents"):
            raise BadInput(
                f"input '{tensor.name}' has contents, and the request has raw_input_contents; send one of them"
            )
        tensors[tensor.name] = from_binary(tensor.name, datatype, shape, memoryview(raw[index]))
    return tensors


def _from_contents(name: str, datatype: Datatype, shape: Sequence[int], contents: Any) -> Array:
    count = check_shape(name, shape)
    field = CONTENTS.get(datatype)
    if field is None:
        raise BadInput(f"input '{name}' has datatype {datatype}, which only raw_input_contents can carry")
    values = getattr(contents, field)
    if len(values) != count:
        strays = [other for other in ALL_CONTENTS if other != field and len(getattr(contents, other))]
        hint = f" (it has {strays[0]})" if strays else ""
        raise BadInput(
            f"input '{name}' has {len(values)} values in {field}, but its shape {list(shape)} needs {count}{hint}"
        )
    if datatype is Datatype.BYTES:
        array: Array = np.empty(count, dtype=object)
        array[:] = list(values)
        return array.reshape(tuple(shape))
    try:
        return np.array(list(values), dtype=DTYPES[datatype]).reshape(tuple(shape))
    except OverflowError:
        raise BadInput(f"input '{name}' holds a value that does not fit into {datatype}") from None


def _wanted(outputs: Sequence[Any], known: tuple[str, ...]) -> tuple[str, ...]:
    names: list[str] = []
    for output in outputs:
        if output.name not in known:
            listed = ", ".join(f"'{name}'" for name in known)
            raise BadInput(f"the model has no output '{output.name}'; its outputs are {listed}")
        if output.name in names:
            raise BadInput(f"output '{output.name}' is asked for twice")
        names.append(output.name)
    return tuple(names) or known


def _render(work: Work, name: str, version: str, request_id: str, raw: bool, outputs: Outputs) -> Answer:
    response = MESSAGES["ModelInferResponse"](model_name=name, model_version=version, id=request_id)
    arrays = {output: outputs[output] for output in work.outputs}
    # A response is raw or typed as a whole, and half floats exist only raw.
    raw = raw or any(datatype_of(array) is Datatype.FP16 for array in arrays.values())
    for output, array in arrays.items():
        datatype = datatype_of(array)
        tensor = response.outputs.add(name=output, datatype=datatype, shape=array.shape)
        if raw:
            response.raw_output_contents.append(bytes(to_binary(array)))
            continue
        values = array.ravel().tolist()
        if datatype is Datatype.BYTES:
            values = [value if isinstance(value, bytes) else str(value).encode() for value in values]
        getattr(tensor.contents, CONTENTS[datatype]).extend(values)
    return Answer(200, response.SerializeToString(), ((ROWS_HEADER, b"%d" % work.rows),))
