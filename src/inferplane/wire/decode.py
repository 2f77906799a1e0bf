"""Bytes of a request → a struct, or every reason why not.

Readers of this API send what they like: a body on a GET, any content type, null for "not given",
keys we do not know, `memoryPerGPU` or `memoryPerGpu`. So a body is first read as plain JSON, then
matched with the struct field by field: null counts as absent, keys match whatever their case (the
exact spelling wins), unknown keys are skipped. Unlike a strict decoder this does not stop at the
first problem: the caller is told all of them at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import msgspec

from inferplane.domain.errors import Invalid, Malformed, Problem

PROBLEMS_MAX = 50
"""More problems than a person reads are not collected."""

FIELD_CHARACTERS_MAX = 200

S = TypeVar("S", bound=msgspec.Struct)

_decoder = msgspec.json.Decoder()


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`; an empty body and `null` are an empty one.

    Raises Malformed for what is not JSON, Invalid for JSON that is no object.
    """
    if not body.strip():
        return {}
    try:
        value = _decoder.decode(body)
    except RecursionError as error:
        raise Malformed("the body is nested too deeply", reason="NestedTooDeeply") from error
    except (msgspec.DecodeError, UnicodeError, ValueError) as error:
        raise Malformed(
            f"the body is not JSON: {_sentence(error)}",
            reason="MalformedJson",
            next_action="Send a JSON object.",
        ) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid(
            f"the body must be a JSON object, not {_kind(value)}",
            reason="NotAnObject",
            next_action="Send a JSON object.",
        )
    return value


def read(body: bytes, shape: type[S]) -> S:
    """`body` as a `shape`. Raises Malformed, or Invalid with one detail for each problem."""
    return read_struct(read_object(body), shape)


def read_struct(values: Mapping[str, Any], shape: type[S]) -> S:
    """`values` as a `shape`. Raises Invalid with one detail for each problem found."""
    problems: list[Problem] = []
    result = _struct(values, shape, "", problems)
    if problems or result is None:
        raise invalid(problems)
    return result


def invalid(problems: list[Problem]) -> Invalid:
    """One error that tells of all `problems`; the first gives it its field and reason."""
    first = problems[0]
    more = f" (and {len(problems) - 1} more, see details)" if len(problems) > 1 else ""
    return Invalid(first.message + more, reason=first.reason, field=first.field, details=tuple(problems))


@cache
def _fields(shape: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(shape)


def _struct(values: Mapping[str, Any], shape: type[S], path: str, problems: list[Problem]) -> S | None:
    """The struct, or None when at least one problem was added."""
    by_lower = {key.lower(): key for key in reversed(list(values)) if values[key] is not None}
    known: dict[str, Any] = {}
    before = len(problems)
    for field in _fields(shape):
        name = field.encode_name
        raw = values.get(name)
        if raw is None:
            raw = values.get(by_lower.get(name.lower(), name))
        where = f"{path}.{name}" if path else name
        if raw is None:
            if field.required:
                problems.append(Problem(where, "Missing", f"{where} is needed"))
        else:
            known[field.name] = _value(raw, field.type, where, problems)
        if len(problems) >= PROBLEMS_MAX:
            return None
    return shape(**known) if len(problems) == before else None


def _value(raw: Any, wanted: Any, path: str, problems: list[Problem]) -> Any:
    """`raw` as `wanted`; adds a problem and returns None when it is something else."""
    if isinstance(raw, dict):
        nested = _nested(wanted)
        if nested is not None:
            return _struct(raw, nested, path, problems)
        raw = {key: value for key, value in raw.items() if value is not None}
    unstorable = _unstorable(raw)
    if unstorable:
        problems.append(Problem(path, "InvalidText", f"{path} {unstorable}"))
        return None
    try:
        return msgspec.convert(raw, wanted)
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        where, sentence = _explain(str(error), path)
        problems.append(Problem(where, "WrongType", sentence))
        return None


def _nested(wanted: Any) -> type[msgspec.Struct] | None:
    """The struct among the types of a field, if there is one."""
    options = get_args(wanted) if get_origin(wanted) in {Union, UnionType} else (wanted,)
    for option in options:
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option
    return None


def _unstorable(raw: Any) -> str:
    """Text that no database, file name or environment can hold is refused at the door."""
    texts: list[Any] = []
    if isinstance(raw, str):
        texts = [raw]
    elif isinstance(raw, list):
        texts = raw
    elif isinstance(raw, dict):
        texts = [*raw.keys(), *raw.values()]
    if any(isinstance(text, str) and "\x00" in text for text in texts):
        return "holds a NUL character"
    return ""


_EXPECTED = re.compile(r"Expected `([^`]+)`(?:, got `([^`]+)`)?(?:.* - at `([^`]+)`)?")
_WORDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def _explain(message: str, path: str) -> tuple[str, str]:
    """msgspec's message in our words, and the field down to the list item."""
    match = _EXPECTED.search(message)
    if match is None:
        return path, f"{path} is out of range or of the wrong type"
    expected, got, at = match.groups()
    where = path + (at or "").removeprefix("$")
    if "[...]" in where:  # some value of an object
        path = where.partition("[...]")[0][:FIELD_CHARACTERS_MAX]
        where, subject = path, f"every value in {path}"
    else:
        where = subject = where[:FIELD_CHARACTERS_MAX]
    wanted = " or ".join(_WORDS.get(word, word) for word in expected.split(" | ") if word != "null")
    found = f", not {_WORDS.get(got, got)}" if got else ""
    return where, f"{subject} must be {wanted}{found}"


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    return {"str": "text", "int": "a number", "float": "a number", "list": "a list"}.get(
        type(value).__name__, "this"
    )


def _sentence(error: Exception) -> str:
    text = str(error).removeprefix("JSON is malformed: ")
    return text[:FIELD_CHARACTERS_MAX] or "it cannot be read"
