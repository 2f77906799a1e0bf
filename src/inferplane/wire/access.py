"""Keys and tokens on the wire."""

from __future__ import annotations

from datetime import datetime

import msgspec


class AuthRequest(msgspec.Struct, frozen=True, rename="camel"):
    """`POST /auth`."""

    api_key: str


class AuthToken(msgspec.Struct, frozen=True, rename="camel"):
    """A bearer token. Strict: no other key."""

    token: str


class CreateApiKey(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`POST /api-key`. `validity` is a date `YYYY-MM-DD` or a duration such as `30d`."""

    name: str
    role: str
    validity: str
    user_name: str | None = None
    description: str | None = None
    workspace_name: str | None = None


class ApiKeyCreated(msgspec.Struct, frozen=True, rename="camel"):
    """The key itself, shown this once."""

    api_key: str


class DeleteApiKey(msgspec.Struct, frozen=True, rename="camel"):
    """`DELETE /api-key`: the key's value or its id."""

    api_key: str


class ApiKeyItem(msgspec.Struct, frozen=True, rename="camel"):
    """A key as listed: `api_key` is a masked form."""

    id: str
    api_key: str
    name: str
    role: str
    workspace_name: str = ""
    user_name: str = ""
    description: str = ""
    validity: str = ""
    created_at: datetime | None = None
    expires_at: datetime | None = None
    last_used_at: datetime | None = None


class ApiKeyList(msgspec.Struct, frozen=True, rename="camel"):
    """The same items twice: old readers look into `data`, new ones into `items`."""

    data: tuple[ApiKeyItem, ...] = ()
    items: tuple[ApiKeyItem, ...] = ()
