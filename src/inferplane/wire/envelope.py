"""The one shape of every answer.

Success: `{"statusCode":200,"status":"OK","message":"Success","data":{…}}`.
Failure: `{"statusCode","status","message","data":null,"error":{…}}`, nothing else at the top, because
strict readers break on one key more. What we have to add lives inside `error`; `error.data` is the
*string* of JSON that old readers parse.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class ErrorKey(StrEnum):
    """What went wrong, as a word for programs."""

    UNAUTHENTICATED = "UNAUTHENTICATED"
    FORBIDDEN = "FORBIDDEN"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    CONFLICT = "CONFLICT"
    INVALID = "INVALID"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    RATE_LIMITED = "RATE_LIMITED"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


class ErrorDetail(msgspec.Struct, frozen=True, rename="camel"):
    """One of possibly several things wrong with a request."""

    reason: str
    message: str
    field: str = ""


class ErrorBody(msgspec.Struct, frozen=True, rename="camel"):
    """The `error` object. `data` is a string holding JSON, kept for old readers."""

    error_key: str = "UNKNOWN"
    message: str = ""
    data: str = ""
    reason: str = ""
    field: str = ""
    details: tuple[ErrorDetail, ...] = ()
    next_action: str = ""
    request_id: str = ""


class Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """Any answer, for reading: `data` stays raw until the reader knows its shape."""

    status_code: int
    status: str = ""
    message: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")
    error: ErrorBody | None = None


class _Success(msgspec.Struct, frozen=True, rename="camel"):
    status_code: int
    status: str
    message: str
    data: Any


class _Failure(msgspec.Struct, frozen=True, rename="camel"):
    status_code: int
    status: str
    message: str
    data: None
    error: ErrorBody


_encoder = msgspec.json.Encoder()


def success(data: Any) -> bytes:
    """The success envelope around `data` (a struct or JSON value; never None)."""
    return _encoder.encode(_Success(200, "OK", "Success", data))


def failure(
    status_code: int,
    key: ErrorKey,
    message: str,
    *,
    reason: str = "",
    field: str = "",
    details: tuple[ErrorDetail, ...] = (),
    next_action: str = "",
    request_id: str = "",
) -> bytes:
    """The failure envelope, with the old readers' JSON string inside."""
    old = {
        "error": {
            "Message": message,
            "Status": status_code,
            "DetailedError": {
                "Errormessage": message,
                "Reason": reason,
                "Details": details or "",
            },
            "StatusCode": status_code,
            "ReferenceDocumentation": "NA",
        }
    }
    error = ErrorBody(
        error_key=key.value,
        message=message,
        data=_encoder.encode(old).decode(),
        reason=reason,
        field=field,
        details=details,
        next_action=next_action,
        request_id=request_id,
    )
    return _encoder.encode(_Failure(status_code, key.value, message, None, error))
