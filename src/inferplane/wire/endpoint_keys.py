"""Endpoint keys on the wire."""

from __future__ import annotations

from datetime import datetime

import msgspec


class CreateEndpointKey(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`POST /endpoint-key`. `endpoints` are names; absent: every endpoint of the workspace, later ones too.

    `validity` is a date `YYYY-MM-DD` or a duration such as `30d`; `requests_per_second` this key's own limit
    at each endpoint.
    """

    workspace: str
    name: str
    validity: str
    endpoints: list[str] | None = None
    requests_per_second: float | None = None


class EndpointKeyCreated(msgspec.Struct, frozen=True, rename="camel"):
    """The key itself, shown this once, and the id that it has in lists, logs and usage."""

    endpoint_key: str
    key_id: str


class EndpointKeyRef(msgspec.Struct, frozen=True, rename="camel"):
    """`DELETE /endpoint-key`: the key's id."""

    key_id: str


class EndpointKeyItem(msgspec.Struct, frozen=True, rename="camel"):
    """A key as listed, never its value. No `endpoints`: every endpoint of the workspace."""

    key_id: str
    name: str
    workspace: str
    endpoints: tuple[str, ...] = ()
    requests_per_second: float | None = None
    validity: str = ""
    created_at: datetime | None = None
    created_by: str = ""
    expires_at: datetime | None = None
    expired: bool = False


class EndpointKeyList(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /endpoint-key/list`, oldest first; revoked keys are not among them."""

    items: tuple[EndpointKeyItem, ...] = ()
