"""Every error the platform raises on purpose, in the domain's own words.

    InferplaneError
    ├── Unauthenticated      who are you?                                   401
    ├── Forbidden            you may not                                    403
    ├── NotFound             no such thing (or not for you to know)         404
    ├── AlreadyExists        the name is taken                              409
    ├── Conflict             the thing is in a state that forbids it        409
    ├── Malformed            not JSON, not YAML                             400
    ├── Invalid              well-formed, but it cannot mean anything       422
    ├── QuotaExceeded        a policy's number is reached                   403
    ├── PayloadTooLarge      more bytes than the stated limit               413
    ├── RateLimited          later, please                                  429
    ├── Unavailable          a part we need does not answer                 503
    ├── StaleVersion         compare-and-set lost; the caller reads again   (never leaves the process)
    └── StaleLease           another control plane acts now; stand down     (never leaves the process)

The status table in `api/app.py` is the only place that turns these into HTTP.
Errors of libraries are translated once, at the edge that called the library, with the cause kept.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a request: which field, the machine's reason, a sentence for a person."""

    field: str
    reason: str
    message: str


class InferplaneError(Exception):
    """Base of the tree.

    `reason` is a machine-readable word, `field` the offending field in the caller's own spelling
    ("" when no single field is to blame), `next_action` what the caller can do about it.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        next_action: str = "",
        details: tuple[Problem, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or type(self).__name__
        self.field = field
        self.next_action = next_action
        self.details = details


class Unauthenticated(InferplaneError):
    """The caller did not prove who they are."""


class Forbidden(InferplaneError):
    """The caller is known and may not do this."""


class NotFound(InferplaneError):
    """The thing does not exist, or the caller may not know that it does."""


class AlreadyExists(InferplaneError):
    """The name is taken."""


class Conflict(InferplaneError):
    """The thing is in a state in which this cannot be done."""


class Malformed(InferplaneError):
    """The bytes are not what they claim to be (JSON, YAML)."""


class Invalid(InferplaneError):
    """The request is well-formed and cannot be meant: a field is missing, out of range or contradictory."""


class QuotaExceeded(InferplaneError):
    """A limit set by policy is reached."""


class PayloadTooLarge(InferplaneError):
    """The body is larger than the stated limit."""


class RateLimited(InferplaneError):
    """Too many requests; the answer says when to come back."""


class Unavailable(InferplaneError):
    """A part of the platform that this needs does not answer right now."""


class StaleVersion(InferplaneError):
    """A compare-and-set found a newer row. The loser reads again and decides again."""


class StaleLease(InferplaneError):
    """A write was made under a lease that another control plane has now. Whoever made it stands down."""
