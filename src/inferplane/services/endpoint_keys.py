"""Endpoint keys: made, listed, revoked. They open endpoints at the gateway, and never this API.

A key's value is a token that the gateway verifies by itself (`gateway.endpoint_keys`), so it is stored
nowhere: whoever lost it makes another. What is stored is what people see of it, and that it was revoked;
that is told to the gateway with the routes of the endpoints that it opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from inferplane.domain.access import Caller, Verb
from inferplane.domain.endpoint_access import EndpointKey
from inferplane.domain.errors import Conflict, Invalid, NotFound, QuotaExceeded, Unavailable
from inferplane.gateway.endpoint_keys import KeyClaims, mint, whole_workspace
from inferplane.services.access_drafts import RATE_MAX, RATE_MIN
from inferplane.services.api_keys import expiry_of
from inferplane.services.context import Platform
from inferplane.services.findings import Findings, check_text
from inferplane.services.idempotency import IDEMPOTENCY_KEY_HEADER, Ticket, once, recall, remember
from inferplane.services.trail import entry
from inferplane.store.sql import Tx

KEY_ID_PREFIX = "ek-"
KEY_ID_CHARACTERS = 12
KEY_ID_CHARACTERS_MAX = 80


@dataclass(frozen=True, slots=True)
class EndpointKeyDraft:
    """What is asked of a new key. `endpoints` are names; None: every endpoint of the workspace."""

    workspace: str
    name: str
    validity: str
    endpoints: tuple[str, ...] | None = None
    requests_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class KeyMade:
    """A new key: its value, shown this once, and what it is called in lists, logs and usage."""

    value: str
    key_id: str


async def create(
    platform: Platform, caller: Caller, draft: EndpointKeyDraft, ticket: Ticket | None = None
) -> KeyMade:
    """Make a key and return its value, which nobody can read again.

    With a ticket the same request gives the same key. Raises Invalid with every problem, NotFound for the
    workspace, QuotaExceeded, Conflict when the key of this request has been revoked since.
    """
    caller.require(Verb.WRITE_ENDPOINT_KEYS, draft.workspace)
    if not platform.signing_key:
        raise Unavailable("this platform has no key to sign endpoint keys with", reason="NoSigningKey")
    key_id = await once(ticket, lambda: _create(platform, caller, draft, ticket))
    async with platform.store.read() as tx:
        key = await tx.get_endpoint_key(key_id)
    if key.revoked_at is not None:
        raise Conflict(
            "the endpoint key that was made for this idempotency key has been revoked",
            reason="EndpointKeyRevoked",
            field=IDEMPOTENCY_KEY_HEADER,
            next_action="Send the request with a new idempotency key to make a new endpoint key.",
        )
    return KeyMade(_value(platform, key), key.id)


async def _create(platform: Platform, caller: Caller, draft: EndpointKeyDraft, ticket: Ticket | None) -> str:
    now = platform.clock()
    async with platform.store.transaction() as tx:
        await tx.hold_workspace(draft.workspace)
        answered = await recall(tx, caller, ticket)
        if answered is not None:
            return answered
        key = await _understand(tx, platform, caller, draft, now)
        if await tx.count_endpoint_keys(draft.workspace) >= platform.limits.endpoint_keys_max:
            raise QuotaExceeded(
                f"workspace {draft.workspace} has {platform.limits.endpoint_keys_max} endpoint keys already",
                reason="TooManyEndpointKeys",
                next_action="Revoke keys that nobody uses; a revoked key counts until it would have expired.",
            )
        await tx.add_endpoint_key(key)
        await tx.touch_opened(key)  # the gateway may have to know its rate, or to count its requests
        await remember(tx, caller, ticket, key.id, now)
        await tx.append_event(
            entry(
                now,
                caller,
                "EndpointKeyCreated",
                f"endpoint key {key.name} was made for {_opened(key)}",
                workspace=key.workspace,
                after=_told(key),
                data={"id": key.id},
            )
        )
    return key.id


async def list_keys(platform: Platform, caller: Caller, workspace: str) -> list[EndpointKey]:
    """A workspace's keys without revoked ones, oldest first. Raises NotFound."""
    caller.require(Verb.READ_ENDPOINT_KEYS, workspace)
    async with platform.store.read() as tx:
        await tx.get_workspace(workspace)
        return await tx.list_endpoint_keys(workspace)


async def revoke(platform: Platform, caller: Caller, key_id: str) -> None:
    """Have a key refused from now on. Raises NotFound also for a key that is revoked already."""
    caller.require(Verb.WRITE_ENDPOINT_KEYS)
    text = key_id.strip()
    if text.count(".") == 2 and len(text) > KEY_ID_CHARACTERS_MAX:
        raise Invalid(
            "keyId is the key's id, not the key",
            reason="NotAnId",
            field="keyId",
            next_action="GET /endpoint-key/list shows the ids.",
        )
    async with platform.store.transaction() as tx:
        key = await tx.get_endpoint_key(text[:KEY_ID_CHARACTERS_MAX])
        if not caller.may_see(key.workspace) or key.revoked_at is not None:
            raise NotFound("there is no such endpoint key", reason="EndpointKeyNotFound", field="keyId")
        now = platform.clock()
        await tx.revoke_endpoint_key(key, now)
        await tx.append_event(
            entry(
                now,
                caller,
                "EndpointKeyRevoked",
                f"endpoint key {key.name} was revoked",
                workspace=key.workspace,
                before=_told(key),
                data={"id": key.id},
            )
        )


async def _understand(
    tx: Tx, platform: Platform, caller: Caller, draft: EndpointKeyDraft, now: datetime
) -> EndpointKey:
    findings, limits = Findings(), platform.limits
    name = findings.check(check_text, draft.name, "name", limits.text_characters_max)
    expires_at = findings.check(expiry_of, draft.validity, now)
    rate = draft.requests_per_second
    if rate is not None and not RATE_MIN <= rate <= RATE_MAX:
        findings.add(
            f"requestsPerSecond must be from {RATE_MIN:g} to {RATE_MAX:g}",
            field="requestsPerSecond",
            reason="OutOfRange",
        )
    endpoints: list[tuple[str, str]] = []
    if draft.endpoints is not None:
        endpoints = await _named(tx, draft, findings, limits.endpoint_key_endpoints_max)
    findings.raise_any()
    assert name is not None and expires_at is not None  # noqa: PT018 - or raise_any had raised
    return EndpointKey(
        id=KEY_ID_PREFIX + platform.new_id(KEY_ID_CHARACTERS),
        workspace=draft.workspace,
        name=name,
        created_at=now,
        expires_at=expires_at.replace(microsecond=0),  # as the gateway counts
        endpoints=tuple(endpoints),
        created_by=caller.key_name,
        validity=draft.validity.strip(),
        requests_per_second=rate,
    )


async def _named(
    tx: Tx, draft: EndpointKeyDraft, findings: Findings, count_max: int
) -> list[tuple[str, str]]:
    names = tuple(dict.fromkeys(draft.endpoints or ()))
    if not names or len(names) > count_max:
        findings.add(
            f"endpoints must name 1 to {count_max} endpoints",
            field="endpoints",
            reason="OutOfRange",
            next_action="Leave it out for every endpoint of the workspace, later ones too.",
        )
        return []
    by_name: dict[str, list[str]] = {}
    for each in await tx.list_endpoints(draft.workspace):
        if each.deletion_requested_at is None:
            by_name.setdefault(each.name, []).append(each.uid)
    for index, name in enumerate(names):
        if name not in by_name:
            findings.add(
                f"endpoint “{name[:80]}” does not exist in workspace {draft.workspace}",
                field=f"endpoints[{index}]",
                reason="EndpointNotFound",
                next_action="A key is for endpoints that exist; one made anew needs a new key.",
            )
    return [(uid, name) for name in names for uid in by_name.get(name, ())]


def _value(platform: Platform, key: EndpointKey) -> str:
    scope = tuple(uid for uid, _ in key.endpoints) or (whole_workspace(key.workspace),)
    return mint(KeyClaims(key.id, scope, key.created_at, key.expires_at), platform.signing_key)


def _opened(key: EndpointKey) -> str:
    names = dict.fromkeys(name for _, name in key.endpoints)
    return ", ".join(names) or f"every endpoint of workspace {key.workspace}"


def _told(key: EndpointKey) -> dict[str, object]:
    """What the audit log keeps of a key: nothing of its value."""
    return {
        "id": key.id,
        "name": key.name,
        "workspace": key.workspace,
        "endpoints": [name for _, name in key.endpoints],
        "validity": key.validity,
        "expiresAt": key.expires_at.isoformat(),
        "requestsPerSecond": key.requests_per_second,
    }
