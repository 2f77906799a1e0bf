"""Why a model could not be fetched: one reason code and one sentence, made at the edge that failed.

Errors of HTTP, sockets, disks and object stores are translated here, once. What an exception says
is never shown as it is, because it may repeat a URL with its signature: sentences are built from
the redacted address and the storage's status.
"""

from __future__ import annotations

import errno
import http
import socket
import ssl
from collections.abc import Iterator

import httpx

from inferplane.domain.reasons import ReasonCode
from inferplane.domain.storage_uri import redacted

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TRANSIENT_STATUSES = {408, 425, 429}


class FetchFailed(Exception):
    """The model is not here, and why.

    `transient` is True where the very next try may succeed (a cut, a timeout, a busy server): such
    failures are tried again a few times within one fetch. `status` is the HTTP status, 0 for none.
    """

    def __init__(self, reason: ReasonCode, message: str, *, transient: bool = False, status: int = 0) -> None:
        self.reason = reason
        self.message = redacted(message)
        self.transient = transient
        self.status = status
        super().__init__(self.message)


class ObjectChanged(Exception):
    """What is stored at the URI is no longer what the fetch began with; it must be planned anew."""


def from_status(status: int, shown: str, detail: str = "") -> FetchFailed:
    """The failure for an HTTP status that is neither success nor redirect."""
    answer = f"HTTP {status}{_phrase(status)}" + (f": {detail}" if detail else "")
    if status == 401:
        return FetchFailed(
            ReasonCode.STORAGE_UNAUTHORIZED, f"{shown} asks for credentials ({answer})", status=status
        )
    if status == 403:
        return FetchFailed(ReasonCode.STORAGE_FORBIDDEN, f"{shown} refuses access ({answer})", status=status)
    if status == 407:
        return FetchFailed(
            ReasonCode.STORAGE_UNREACHABLE,
            f"the proxy in front of {shown} asks for credentials ({answer})",
            status=status,
        )
    if status in _TRANSIENT_STATUSES or status >= 500:
        return FetchFailed(
            ReasonCode.STORAGE_UNREACHABLE,
            f"{shown} does not answer as it should ({answer})",
            transient=True,
            status=status,
        )
    return FetchFailed(ReasonCode.MODEL_NOT_FOUND, f"nothing is stored at {shown} ({answer})", status=status)


def from_http_error(error: Exception, shown: str, host: str) -> FetchFailed:
    """The failure for an exception of httpx; `host` is the one that was asked."""
    causes = list(_causes(error))
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return FetchFailed(
            ReasonCode.HOST_NOT_FOUND, f"the host {host} of {shown} cannot be found", transient=True
        )
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return FetchFailed(
            ReasonCode.STORAGE_UNREACHABLE,
            f"the certificate of {host} is not trusted by this machine ({shown})",
        )
    if isinstance(error, httpx.TooManyRedirects):
        return FetchFailed(ReasonCode.STORAGE_UNREACHABLE, f"{shown} redirects in circles")
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
        return FetchFailed(
            ReasonCode.MODEL_NOT_FOUND, f"{shown} leads to an address that is not http or https"
        )
    if isinstance(error, httpx.ConnectTimeout):
        sentence = f"{host} did not accept a connection in time ({shown})"
    elif isinstance(error, httpx.TimeoutException):
        sentence = f"{host} stopped answering ({shown})"
    elif isinstance(error, httpx.ConnectError):
        sentence = f"{host} refuses the connection ({shown})"
    elif isinstance(error, httpx.ProxyError):
        sentence = f"the proxy does not reach {host} ({shown})"
    else:
        sentence = f"the connection to {host} broke ({shown})"
    return FetchFailed(ReasonCode.STORAGE_UNREACHABLE, sentence, transient=True)


def from_disk_error(error: OSError, where: str) -> FetchFailed:
    """The failure for an error while writing into the store."""
    if error.errno in _NO_SPACE:
        return FetchFailed(
            ReasonCode.DISK_FULL,
            f"the disk under {where} is full ({error.strerror}, while writing the model)",
        )
    return FetchFailed(
        ReasonCode.DISK_FULL,
        f"the model cannot be written under {where}: {error.strerror or type(error).__name__}",
    )


def disk_full(needed: int, free: int, where: str) -> FetchFailed:
    """The failure found before (or while) writing: so much is needed, so much is free."""
    return FetchFailed(
        ReasonCode.DISK_FULL,
        f"the model needs {bytes_text(needed)} and {bytes_text(free)} are free under {where}",
    )


def bytes_text(count: int) -> str:
    """A size for a person: `512 B`, `1.5 MiB`."""
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def _phrase(status: int) -> str:
    try:
        return f" {http.HTTPStatus(status).phrase}"
    except ValueError:
        return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
