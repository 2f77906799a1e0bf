"""One request, as a handler sees it: caller, body, query, idempotency ticket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from litestar.types import Receive, Scope

from inferplane.api.auth import Authenticator
from inferplane.api.metrics import Metrics
from inferplane.api.streams import Streams
from inferplane.domain.access import ApiKey, Caller
from inferplane.domain.errors import Invalid, Malformed, PayloadTooLarge
from inferplane.services.api_keys import caller_of
from inferplane.services.context import Platform
from inferplane.services.idempotency import Ticket
from inferplane.wire.decode import read
from inferplane.wire.paths import IDEMPOTENCY_KEY_HEADER

QUERY_CHARACTERS_MAX = 8 * 1024
QUERY_FIELDS_MAX = 100
NUMBER_DIGITS_MAX = 18
BODY_TOO_SLOW = "BodyTooSlow"

# Other words for the same thing, all accepted.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "workspace": ("workspaceName", "sliceName"),
    "workspaceName": ("workspace", "sliceName"),
    "endpoint": ("endpointName",),
    "cluster": ("clusterName",),
    "modelName": ("model",),
    "after": ("continue",),
    "gprTemplateName": ("name",),
    "gprTemplateBindingName": ("name", "workspaceName", "workspace", "sliceName"),
}

S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Tools:
    """What handlers share, made once by `create_app`."""

    platform: Platform
    authenticator: Authenticator
    metrics: Metrics
    streams: Streams
    version: str
    readiness: Callable[[], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Call:
    """A request that has been let in. `key` is None on routes that need no token."""

    tools: Tools
    method: str
    path: str
    headers: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    key: ApiKey | None
    request_id: str

    @property
    def platform(self) -> Platform:
        """Store, engines, clock, limits."""
        return self.tools.platform

    @property
    def caller(self) -> Caller:
        """Who asks."""
        assert self.key is not None, "only routes with authentication ask for the caller"
        return caller_of(self.key)

    def read(self, shape: type[S]) -> S:
        """The body as `shape`. Raises Malformed, or Invalid with every problem."""
        return read(self.body, shape)

    def text(self, name: str) -> str:
        """A query parameter, by any of its names; "" when absent."""
        for each in (name, *SYNONYMS.get(name, ())):
            if value := self.query.get(each.lower(), ""):
                return value
        return ""

    def needed(self, name: str) -> str:
        """A query parameter that must be there. Raises Invalid."""
        value = self.text(name)
        if not value:
            raise Invalid(f"the query parameter {name} is needed", reason="Missing", field=name)
        return value

    def flag(self, name: str) -> bool:
        """A query parameter that is true or false; absent is false. Raises Invalid."""
        value = self.text(name).lower()
        if value in {"", "false", "0", "no"}:
            return False
        if value in {"true", "1", "yes"}:
            return True
        raise Invalid(f"{name} must be true or false", reason="WrongType", field=name)

    def number(self, name: str) -> int | None:
        """A query parameter that is a whole number of at least 0, or None. Raises Invalid."""
        value = self.text(name)
        if not value:
            return None
        if not value.isascii() or not value.isdigit() or len(value) > NUMBER_DIGITS_MAX:
            raise Invalid(f"{name} must be a whole number of at least 0", reason="WrongType", field=name)
        return int(value)

    def workspace(self) -> str:
        """The workspace asked about; for a key that belongs to one, that one unless said otherwise."""
        return self.text("workspace") or self.caller.workspace

    def ticket(self) -> Ticket | None:
        """The idempotency ticket of a POST, if the caller gave a key."""
        return Ticket.of(
            self.headers.get(IDEMPOTENCY_KEY_HEADER.lower(), "").strip(),
            self.method.encode(),
            self.path.encode(),
            self.body.strip(),
        )


def headers_of(scope: Scope) -> dict[str, str]:
    """Header names in lower case; of two of one name the first counts."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return headers


def query_of(scope: Scope) -> dict[str, str]:
    """Query parameters by name in lower case. Raises Invalid when there are too many."""
    raw = scope["query_string"]
    if len(raw) > QUERY_CHARACTERS_MAX:
        raise Invalid(f"the query is longer than {QUERY_CHARACTERS_MAX} bytes", reason="TooLong")
    try:
        pairs = parse_qsl(raw.decode("latin-1"), max_num_fields=QUERY_FIELDS_MAX, errors="replace")
    except ValueError as error:
        raise Invalid(f"the query has more than {QUERY_FIELDS_MAX} parameters", reason="TooMany") from error
    if any("\x00" in value for _, value in pairs):
        raise Invalid("the query holds a NUL character", reason="InvalidText")
    return {name.lower(): value.strip() for name, value in reversed(pairs)}


async def body_of(receive: Receive, headers: Mapping[str, str], bytes_max: int, seconds_max: float) -> bytes:
    """The whole body. Raises PayloadTooLarge without reading what is too much, Malformed when it dawdles."""
    try:
        async with asyncio.timeout(seconds_max):
            return await _whole_body(receive, headers, bytes_max)
    except TimeoutError as error:
        raise Malformed(
            f"the body did not arrive within {seconds_max:g} seconds",
            reason=BODY_TOO_SLOW,
            next_action="Send the request again.",
        ) from error


async def _whole_body(receive: Receive, headers: Mapping[str, str], bytes_max: int) -> bytes:
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced[:NUMBER_DIGITS_MAX]) > bytes_max:
        raise _too_large(bytes_max)
    chunks: list[bytes] = []
    size = 0
    while True:
        message: Any = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > bytes_max:
            raise _too_large(bytes_max)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


class ClientGoneError(Exception):
    """The client went away before its request was whole; nobody is left to answer."""


def _too_large(bytes_max: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is larger than {bytes_max} bytes",
        reason="BodyTooLarge",
        next_action="Send less; models travel by storage URI, not in requests.",
    )
