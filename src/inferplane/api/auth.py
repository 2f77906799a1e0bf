"""Who is calling: `Authorization: Bearer <token>` → the key behind it, looked up each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inferplane.domain.access import ApiKey
from inferplane.domain.errors import Unauthenticated, Unavailable
from inferplane.services import api_keys
from inferplane.services.api_keys import Secrets
from inferplane.services.context import Platform

SCHEME = "bearer"


@dataclass(slots=True)
class Authenticator:
    """Reads the installation's secrets once, at the first request that needs them."""

    platform: Platform
    _secrets: Secrets | None = field(default=None, init=False, repr=False)

    async def secrets(self) -> Secrets:
        """The installation's secrets. Two first requests at once read the same ones twice."""
        if self._secrets is None:
            self._secrets = await api_keys.load_secrets(self.platform.store)
        return self._secrets

    async def key(self, headers: Mapping[str, str]) -> ApiKey:
        """The key whose token the request carries. Raises Unauthenticated."""
        scheme, _, token = headers.get("authorization", "").strip().partition(" ")
        if scheme.lower() != SCHEME or not token.strip():
            raise Unauthenticated(
                api_keys.UNKNOWN,
                reason="TokenMissing",
                next_action="Exchange an API key for a token at /api/v1/auth and send it as a bearer token.",
            )
        key = await api_keys.identify(self.platform, await self.secrets(), token.strip())
        await self.note_use(key)
        return key

    async def exchange(self, value: str) -> str:
        """A token for an API key. Raises Unauthenticated."""
        token, key = await api_keys.exchange(self.platform, await self.secrets(), value)
        await self.note_use(key)
        return token

    async def note_use(self, key: ApiKey) -> None:
        """Record the use, about once a minute; a store too busy for that does not fail the request."""
        try:
            await api_keys.note_use(self.platform, key)
        except Unavailable:
            return
