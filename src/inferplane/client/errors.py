"""Everything that a call through the SDK can raise on purpose.

    ClientError
    ├── ConfigurationError          no API key, a closed client: nothing was sent
    ├── UnreachableError            nothing answered at the address
    ├── ProtocolError               something answered, but it does not speak this API
    ├── ApiError                    the platform (or the gateway, or a model) said no
    │   ├── UnauthenticatedError    401   the key is unknown, expired or deleted
    │   ├── ForbiddenError          403   the key's role does not allow this
    │   │   └── QuotaExceededError  403   a policy's number is reached
    │   ├── NotFoundError           404   there is no such thing, or not for this key to know
    │   ├── ConflictError           409   it is in a state that forbids this
    │   │   └── AlreadyExistsError  409   the name is taken
    │   ├── InvalidError            400, 422   the request cannot be meant; `field` says where
    │   ├── PayloadTooLargeError    413   more bytes than the stated limit
    │   ├── RateLimitedError        429   later, please
    │   └── ServerError             5xx   not the caller's fault
    │       ├── UnavailableError    503   a part that this needs does not answer right now
    │       └── AnswerTimeoutError  504   the model took longer than its stated limit
    ├── EndpointFailedError         waited for an endpoint that will not run by waiting
    ├── GprEndedError               waited for GPUs of a request that ended before it got any
    ├── EndpointNotReadyError       asked an endpoint for a prediction that has no address yet
    └── WaitTimeoutError            waited as long as was allowed

Whatever the class, the same attributes say the same things, so that one handler can show any of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Detail:
    """One of possibly several things wrong with a request."""

    field: str
    reason: str
    message: str


class ClientError(Exception):
    """Base of the tree.

    `message` is a sentence for a person, `reason` a word for a program, `field` the offending field in
    the caller's own spelling, `next_action` what to do about it, `request_id` what to quote to whoever
    runs the platform, `status` the HTTP status (0 where none was received). Texts are "" when unknown.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        field: str = "",
        next_action: str = "",
        request_id: str = "",
        details: tuple[Detail, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.reason = reason or type(self).__name__.removesuffix("Error")
        self.field = field
        self.next_action = next_action
        self.request_id = request_id
        self.details = details


class ConfigurationError(ClientError):
    """The client cannot be used as it is set up; nothing was sent."""


class UnreachableError(ClientError):
    """Nothing answered: the platform is not running, or not there."""


class ProtocolError(ClientError):
    """What answered does not speak this API."""


class ApiError(ClientError):
    """The platform answered, and the answer is no."""


class UnauthenticatedError(ApiError):
    """The API key is unknown, expired or deleted."""


class ForbiddenError(ApiError):
    """The key's role does not allow this."""


class QuotaExceededError(ForbiddenError):
    """A limit set by policy is reached."""


class NotFoundError(ApiError):
    """There is no such thing, or this key may not know of it."""


class ConflictError(ApiError):
    """The thing is in a state in which this cannot be done."""


class AlreadyExistsError(ConflictError):
    """The name is taken."""


class InvalidError(ApiError):
    """The request cannot be meant: `field` and `details` say what is wrong with it."""


class PayloadTooLargeError(ApiError):
    """The body is larger than the stated limit."""


class RateLimitedError(ApiError):
    """Too many requests."""


class ServerError(ApiError):
    """It failed on the other side."""


class UnavailableError(ServerError):
    """A part of the platform that this needs does not answer right now."""


class AnswerTimeoutError(ServerError):
    """The model took longer to answer than its stated limit."""


class EndpointFailedError(ClientError):
    """The endpoint ended where waiting does not help; `reason` is its reason code."""


class GprEndedError(ClientError):
    """The GPU request ended where waiting for its GPUs does not help; `reason` is its status."""


class EndpointNotReadyError(ClientError):
    """The endpoint has no address to send a prediction to yet; `reason` says why."""


class WaitTimeoutError(ClientError):
    """The time allowed for waiting is over; `reason` is where it was at that moment."""
