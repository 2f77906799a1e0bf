"""The Python SDK: `Client`, `AsyncClient`, and the errors that their calls raise.

`requests` says what is sent and how answers are read, `conversations` (and for GPUs `gpu_conversations`)
in which order, `client` sends.
Values come back as the structs of `inferplane.wire`.
"""

from inferplane.client.client import AsyncClient, Client
from inferplane.client.conversations import Deployment
from inferplane.client.errors import (
    AlreadyExistsError,
    AnswerTimeoutError,
    ApiError,
    ClientError,
    ConfigurationError,
    ConflictError,
    Detail,
    EndpointFailedError,
    EndpointNotReadyError,
    ForbiddenError,
    GprEndedError,
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
from inferplane.client.gpu_conversations import BoundCluster
from inferplane.client.gpu_wish import GpuWish

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
    "Deployment",
    "Detail",
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
]
