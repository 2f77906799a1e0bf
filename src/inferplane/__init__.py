"""Inferplane: hosted inference endpoints, on one machine or many.

The Python SDK is here: `from inferplane import Client, AsyncClient, ClientError`. It is loaded when
it is asked for, because model servers import this package too and must start fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inferplane.version import VERSION

if TYPE_CHECKING:
    from inferplane.client import (
        AlreadyExistsError,
        AnswerTimeoutError,
        ApiError,
        AsyncClient,
        BoundCluster,
        Client,
        ClientError,
        ConfigurationError,
        ConflictError,
        EndpointFailedError,
        EndpointNotReadyError,
        ForbiddenError,
        GprEndedError,
        GpuWish,
        InvalidError,
        NotFoundError,
        PayloadTooLargeError,
        ProtocolError,
        QuotaExceededError,
        RateLimitedError,
        ServerError,
        UnauthenticatedError,
        UnavailableError,
        UnreachableError,
        WaitTimeoutError,
    )

__version__ = VERSION

__all__ = [
    "AlreadyExistsError",
    "AnswerTimeoutError",
    "ApiError",
    "AsyncClient",
    "BoundCluster",
    "Client",
    "ClientError",
    "ConfigurationError",
    "ConflictError",
    "EndpointFailedError",
    "EndpointNotReadyError",
    "ForbiddenError",
    "GprEndedError",
    "GpuWish",
    "InvalidError",
    "NotFoundError",
    "PayloadTooLargeError",
    "ProtocolError",
    "QuotaExceededError",
    "RateLimitedError",
    "ServerError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnreachableError",
    "WaitTimeoutError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from inferplane import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
