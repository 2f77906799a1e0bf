"""KServe's V1 protocol: `{"instances": […]}` in, `{"predictions": […]}` out.

Rows are lists of values, records (objects) for models that know their columns, or bare strings for
text models. `inputs` is accepted in place of `instances`, also as an object of columns. Ours:
`"parameters": {"probabilities": true}` asks for class probabilities instead of the prediction
(false: for the prediction where probabilities are the endpoint's default).
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from inferplane.modelserver.errors import BadInput
from inferplane.modelserver.frameworks.base import InputKind, Outputs, Signature
from inferplane.modelserver.intake import Work, inputs_from_json, matrix_from_rows
from inferplane.modelserver.tensor import Array

PROBABILITIES = "probabilities"


class _Body(msgspec.Struct):
    instances: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    inputs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] | None = None


class _NumericBody(msgspec.Struct):
    """The commonest request by far: rows of numbers."""

    instances: list[list[float]]
    parameters: dict[str, Any] | None = None


_DECODER = msgspec.json.Decoder(_Body)
_NUMERIC = msgspec.json.Decoder(_NumericBody)


def parse(body: bytes, signature: Signature, *, probabilities: bool) -> Work:
    """Read a predict request. `probabilities` is the endpoint's default. Raises BadInput."""
    if signature.kind is InputKind.MATRIX:
        try:
            numeric = _NUMERIC.decode(body)
        except (ValueError, RecursionError):  # msgspec's errors among them
            pass  # something else, or wrong: the way below tells which
        else:
            rows_of_numbers = matrix_from_rows(numeric.instances, signature)
            if rows_of_numbers is not None:
                names = _outputs(numeric.parameters, signature, default=probabilities)
                return Work(rows_of_numbers, len(numeric.instances), names)
    request = decode_body(body, _DECODER, 'send a JSON object such as {"instances": [[…], …]}')
    outputs = _outputs(request.parameters, signature, default=probabilities)
    if request.instances is not msgspec.UNSET:
        data, field = request.instances, "instances"
    elif request.inputs is not msgspec.UNSET:
        data, field = request.inputs, "inputs"
    else:
        raise BadInput('the body has neither "instances" nor "inputs"; send {"instances": [[…], …]}')
    assert isinstance(data, msgspec.Raw)
    inputs, rows = inputs_from_json(data, signature, field)
    return Work(inputs, rows, outputs)


def render(outputs: Outputs, work: Work) -> bytes:
    """The answer: one prediction a row; a model of several outputs answers with one object a row."""
    if len(work.outputs) == 1:
        predictions = _plain(outputs[work.outputs[0]])
    else:
        columns = [_plain(outputs[name]) for name in work.outputs]
        predictions = [dict(zip(work.outputs, row, strict=True)) for row in zip(*columns, strict=False)]
    return msgspec.json.encode({"predictions": predictions}, enc_hook=encode_numpy)


def decode_body(body: bytes | memoryview, decoder: msgspec.json.Decoder[Any], hint: str) -> Any:
    """Decode a request body into its struct. Raises BadInput with a sentence for every way to be wrong."""
    if not len(body):
        raise BadInput(f"the body is empty; {hint}")
    try:
        return decoder.decode(body)
    except RecursionError:
        raise BadInput("the body is nested too deeply") from None
    except msgspec.ValidationError as error:
        raise BadInput(f"the body is not a request of this protocol: {error}; {hint}") from None
    except msgspec.DecodeError as error:
        text = bytes(body[:65536])
        constants = [token for token in (b"NaN", b"Infinity") if token in text]
        tip = "; JSON has no NaN or Infinity, send null for a missing value" if constants else ""
        raise BadInput(f"the body is not valid JSON: {error}{tip}") from None
    except UnicodeDecodeError:
        raise BadInput("the body is not valid UTF-8") from None


def encode_numpy(value: object) -> object:
    """What models put into object arrays, as JSON knows it."""
    if isinstance(value, np.generic):
        item: object = value.item()
        return item
    if isinstance(value, np.ndarray):
        items: object = value.tolist()
        return items
    return str(value)


def _outputs(parameters: dict[str, Any] | None, signature: Signature, *, default: bool) -> tuple[str, ...]:
    wanted = (parameters or {}).get(PROBABILITIES)
    if wanted is None:
        wanted = default and bool(signature.probability_output)
    elif not isinstance(wanted, bool):
        raise BadInput(f"parameters.{PROBABILITIES} must be true or false")
    if wanted:
        if not signature.probability_output:
            raise BadInput("this model has no class probabilities; leave parameters.probabilities out")
        return (signature.probability_output,)
    if (
        signature.kind is InputKind.TENSORS
        and len(signature.outputs) > 1
        and not signature.probability_output
    ):
        return signature.output_names
    return (signature.plain_output,)


def _plain(array: Array) -> list[Any]:
    values = array.tolist()
    if not isinstance(values, list):
        return [values]
    if array.dtype.kind in "OS":
        return [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]
    return values
