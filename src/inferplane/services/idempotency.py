"""The same request twice is one request: answers kept under the caller's Idempotency-Key.

The answer is remembered in the transaction of the change itself, so there is no moment at which the
change exists and its answer does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from inferplane.domain.access import Caller
from inferplane.domain.errors import AlreadyExists, Conflict, Invalid
from inferplane.store.sql import Tx

IDEMPOTENCY_KEY_CHARACTERS_MAX = 255
IDEMPOTENCY_KEY_HEADER = "Idempotency-Key"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request that may come again: its key, and a digest of what it asked for."""

    key: str
    digest: str

    @classmethod
    def of(cls, key: str, *parts: bytes) -> Ticket | None:
        """None when the caller gave no key. Raises Invalid for a key that is too long."""
        if not key:
            return None
        if len(key) > IDEMPOTENCY_KEY_CHARACTERS_MAX or not key.isprintable():
            raise Invalid(
                f"the {IDEMPOTENCY_KEY_HEADER} header holds at most {IDEMPOTENCY_KEY_CHARACTERS_MAX} printable characters",
                reason="InvalidIdempotencyKey",
                field=IDEMPOTENCY_KEY_HEADER,
            )
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return cls(key, digest.hexdigest())


async def once(ticket: Ticket | None, attempt: Callable[[], Awaitable[str]]) -> str:
    """Run `attempt`; when a twin of the same request was faster, run it again to get the twin's answer."""
    try:
        return await attempt()
    except AlreadyExists:
        if ticket is None:
            raise
        return await attempt()


async def recall(tx: Tx, caller: Caller, ticket: Ticket | None) -> str | None:
    """The answer given before. Raises Conflict when the key was used for another request."""
    if ticket is None:
        return None
    found = await tx.recall_answer(caller.key_id, ticket.key)
    if found is None:
        return None
    digest, answer = found
    if digest != ticket.digest:
        raise Conflict(
            "this idempotency key was used for another request",
            reason="IdempotencyKeyReused",
            field=IDEMPOTENCY_KEY_HEADER,
            next_action="Use a new key for a new request.",
        )
    return answer


async def remember(tx: Tx, caller: Caller, ticket: Ticket | None, answer: str, at: datetime) -> None:
    """Keep `answer` for the next time. Never give it a secret: it is stored as it is."""
    if ticket is not None:
        await tx.remember_answer(caller.key_id, ticket.key, ticket.digest, answer, at)
