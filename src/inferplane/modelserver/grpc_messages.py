"""The messages of `inference.GRPCInferenceService`, built from a table when they are first needed.

Names, numbers and types are those of the Open Inference Protocol's gRPC interface (the file
`specification/protocol/open_inference_grpc.proto` of kserve/open-inference-protocol); any client of that
interface reads and writes the same bytes. They live in a pool of their own, so that a model which brings
its own definitions of the same names does not meet them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES: Mapping[str, Any] = {
    "bool": _Field.TYPE_BOOL,
    "string": _Field.TYPE_STRING,
    "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32,
    "int64": _Field.TYPE_INT64,
    "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64,
    "float": _Field.TYPE_FLOAT,
    "double": _Field.TYPE_DOUBLE,
}
#: Message → its fields in the order of their numbers, from 1. `*` is repeated, `{}` a map from strings.
#: A name with dots is a message inside another.
_MESSAGES: Mapping[str, str] = {
    "InferParameter": (
        "bool bool_param, int64 int64_param, string string_param, double double_param, uint64 uint64_param"
    ),
    "InferTensorContents": (
        "bool* bool_contents, int32* int_contents, int64* int64_contents, uint32* uint_contents, "
        "uint64* uint64_contents, float* fp32_contents, double* fp64_contents, bytes* bytes_contents"
    ),
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready",
    "ModelReadyRequest": "string name, string version",
    "ModelReadyResponse": "bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name, string version, string* extensions",
    "ModelMetadataRequest": "string name, string version",
    "ModelMetadataResponse.TensorMetadata": "string name, string datatype, int64* shape",
    "ModelMetadataResponse": (
        "string name, string* versions, string platform, ModelMetadataResponse.TensorMetadata* inputs, "
        "ModelMetadataResponse.TensorMetadata* outputs"
    ),
    "ModelInferRequest.InferInputTensor": (
        "string name, string datatype, int64* shape, InferParameter{} parameters, InferTensorContents contents"
    ),
    "ModelInferRequest.InferRequestedOutputTensor": "string name, InferParameter{} parameters",
    "ModelInferRequest": (
        "string model_name, string model_version, string id, InferParameter{} parameters, "
        "ModelInferRequest.InferInputTensor* inputs, "
        "ModelInferRequest.InferRequestedOutputTensor* outputs, bytes* raw_input_contents"
    ),
    "ModelInferResponse.InferOutputTensor": (
        "string name, string datatype, int64* shape, InferParameter{} parameters, InferTensorContents contents"
    ),
    "ModelInferResponse": (
        "string model_name, string model_version, string id, InferParameter{} parameters, "
        "ModelInferResponse.InferOutputTensor* outputs, bytes* raw_output_contents"
    ),
}
_ONE_OF = {"InferParameter": "parameter_choice"}


def _build() -> Mapping[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="open_inference_grpc.proto", package=PACKAGE, syntax="proto3"
    )
    described: dict[str, Any] = {}
    for name in sorted(_MESSAGES, key=lambda name: name.count(".")):  # outer ones before inner ones
        outer, _, inner = name.rpartition(".")
        messages = described[outer].nested_type if outer else file.message_type
        described[name] = messages.add(name=inner)
        _add_fields(described[name], name, _MESSAGES[name])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in _MESSAGES
    }


def _add_fields(message: Any, name: str, fields: str) -> None:
    for number, text in enumerate((text for text in fields.split(", ") if text), start=1):
        kind, field_name = text.split(" ")
        repeated = kind.endswith(("*", "{}"))
        bare = kind.rstrip("*{}")
        field = message.field.add(
            name=field_name,
            number=number,
            label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL,
        )
        if kind.endswith("{}"):
            entry = message.nested_type.add(
                name="".join(map(str.capitalize, field_name.split("_"))) + "Entry"
            )
            entry.options.map_entry = True
            entry.field.add(name="key", number=1, type=_Field.TYPE_STRING, label=_Field.LABEL_OPTIONAL)
            entry.field.add(
                name="value",
                number=2,
                type=_Field.TYPE_MESSAGE,
                type_name=f".{PACKAGE}.{bare}",
                label=_Field.LABEL_OPTIONAL,
            )
            field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{name}.{entry.name}"
        elif bare in _TYPES:
            field.type = _TYPES[bare]
        else:
            field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{bare}"
        if name in _ONE_OF:
            if not message.oneof_decl:
                message.oneof_decl.add(name=_ONE_OF[name])
            field.oneof_index = 0


MESSAGES = _build()
