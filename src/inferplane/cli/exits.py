"""Exit codes: what a script may rely on. Documented in `inferplane --help` from this very list."""

from __future__ import annotations

from enum import IntEnum

from inferplane.client import errors


class ExitCode(IntEnum):
    """How a command ended."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_PERMITTED = 4
    CONFLICT = 5
    ENDPOINT_FAILED = 6
    TIMED_OUT = 7
    UNREACHABLE = 8
    INVALID = 9
    INTERRUPTED = 130

    @property
    def meaning(self) -> str:
        """One line for `--help`."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.OK: "it worked",
    ExitCode.FAILED: "it failed, and none of the following says how",
    ExitCode.USAGE: "the command line cannot be meant",
    ExitCode.NOT_FOUND: "there is no such thing, or not for this key",
    ExitCode.NOT_PERMITTED: "no valid API key, or its role or quota does not allow this",
    ExitCode.CONFLICT: "it exists already, or is in a state that forbids this",
    ExitCode.ENDPOINT_FAILED: "the endpoint that was waited for does not run, or the GPU request has ended",
    ExitCode.TIMED_OUT: "the time allowed was over first",
    ExitCode.UNREACHABLE: "the platform, or the part of it that this needs, does not answer",
    ExitCode.INVALID: "the request was refused: a field is missing, out of range or contradictory",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
}

# The first class that fits decides, so a class stands before its base.
_TABLE: tuple[tuple[type[errors.ClientError], ExitCode], ...] = (
    (errors.UnreachableError, ExitCode.UNREACHABLE),
    (errors.UnavailableError, ExitCode.UNREACHABLE),
    (errors.RateLimitedError, ExitCode.UNREACHABLE),
    (errors.EndpointNotReadyError, ExitCode.UNREACHABLE),
    (errors.AnswerTimeoutError, ExitCode.TIMED_OUT),
    (errors.WaitTimeoutError, ExitCode.TIMED_OUT),
    (errors.EndpointFailedError, ExitCode.ENDPOINT_FAILED),
    (errors.GprEndedError, ExitCode.ENDPOINT_FAILED),
    (errors.NotFoundError, ExitCode.NOT_FOUND),
    (errors.UnauthenticatedError, ExitCode.NOT_PERMITTED),
    (errors.ForbiddenError, ExitCode.NOT_PERMITTED),
    (errors.ConflictError, ExitCode.CONFLICT),
    (errors.InvalidError, ExitCode.INVALID),
    (errors.PayloadTooLargeError, ExitCode.INVALID),
)


def exit_code_of(error: errors.ClientError) -> ExitCode:
    """The exit code that tells a script what `error` tells a person."""
    if isinstance(error, errors.ConfigurationError):
        return ExitCode.NOT_PERMITTED if error.reason == "NoApiKey" else ExitCode.USAGE
    return next((code for kind, code in _TABLE if isinstance(error, kind)), ExitCode.FAILED)
