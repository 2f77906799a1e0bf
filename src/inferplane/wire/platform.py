"""Health of the platform itself."""

from __future__ import annotations

import msgspec


class Health(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /healthz`: the process answers."""

    status: str
    version: str


class Readiness(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /readyz`: each part with "ready" or a sentence saying what is not."""

    status: str
    parts: dict[str, str] = {}
