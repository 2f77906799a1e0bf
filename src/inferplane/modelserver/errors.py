"""What can go wrong inside a model server, in its own words.

    ModelServerError
    ├── LoadError          the model cannot be served; ends the program with the reason
    └── RequestError       one request cannot be answered; the program lives on
        ├── BadInput         400: the caller can mend it
        ├── TooLarge         413
        ├── NotProcessed     503: nothing was computed, safe to send again elsewhere
        └── TooLate          504: the caller's time was over before anything was computed

The reason codes are the platform's closed list, written out here because this program imports
nothing of the platform.
"""

from __future__ import annotations

from enum import StrEnum


class LoadReason(StrEnum):
    """Why a model cannot be served; the values are the platform's reason codes."""

    UNSUPPORTED_FORMAT = "UnsupportedFormat"
    MISSING_EXTRA = "MissingExtra"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_FILE_MISSING = "ModelFileMissing"
    MODEL_FILE_AMBIGUOUS = "ModelFileAmbiguous"
    MODEL_LOAD_FAILED = "ModelLoadFailed"
    OUT_OF_MEMORY = "OutOfMemory"
    PORT_UNAVAILABLE = "PortUnavailable"


class ModelServerError(Exception):
    """The root of this program's own errors. `message` is a sentence that is safe to show."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class LoadError(ModelServerError):
    """The model cannot be served. `reason` says which kind of trouble it is."""

    def __init__(self, reason: LoadReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RequestError(ModelServerError):
    """One request cannot be answered; `status` is the HTTP status the caller gets."""

    status = 500

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        if status is not None:
            self.status = status


class BadInput(RequestError):
    """The caller sent something this model does not take; the message says what and where."""

    status = 400


class TooLarge(RequestError):
    """The body is over the limit."""

    status = 413


class NotProcessed(RequestError):
    """Nothing was computed for this request, so it is safe to send it to another replica, or to this one
    after `retry_after` seconds."""

    status = 503

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooLate(RequestError):
    """The caller stopped waiting before the model was free; nothing was computed."""

    status = 504


def short(error: BaseException, limit: int = 300) -> str:
    """The first line of a foreign error, cut to `limit` characters, or its class when it says nothing."""
    lines = str(error).strip().splitlines()
    text = lines[0].strip() if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
