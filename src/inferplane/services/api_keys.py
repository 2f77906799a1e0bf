"""API keys: made, listed, deleted, exchanged for tokens.

Keys are long and random, so a keyed digest is enough to store and costs microseconds to check:
callers exchange their key before every call. A token is a JWT that names its key; whoever shows it
is looked up again each time, so deleting a key ends its tokens at once. The look-up may be one of a
moment ago (`key_memory`), but never one from before a deletion in this process.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import re
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import jwt

from inferplane.domain.access import ApiKey, Caller, Role, Verb
from inferplane.domain.errors import Conflict, Invalid, NotFound, QuotaExceeded, Unauthenticated
from inferplane.domain.quantity import parse_duration
from inferplane.gateway.endpoint_keys import ALGORITHM as ENDPOINT_KEY_ALGORITHM
from inferplane.services.context import Platform
from inferplane.services.findings import Findings, check_optional_text, check_text
from inferplane.services.idempotency import IDEMPOTENCY_KEY_HEADER, Ticket, once, recall, remember
from inferplane.services.trail import entry
from inferplane.store.sql import Store, Tx

KEY_PREFIX = "ipk_"
KEY_RANDOM_CHARACTERS = 43
KEY_CHARACTERS_MAX = 200
KEY_SHOWN_CHARACTERS = 8
KEY_ID_CHARACTERS = 12
TOKEN_SECONDS = 900
TOKEN_ALGORITHM = "HS256"  # noqa: S105 - an algorithm's name
TOKEN_CHARACTERS_MAX = 4096
ENDPOINT_KEY_CHARACTERS_MAX = 16 * 1024
VALIDITY_DAYS_MAX = 3660
LAST_USED_RESOLUTION = timedelta(minutes=1)
"""How exact `lastUsedAt` is: one write a key in this time, not one a call."""

EXPIRED = "Api Key has expired"
UNKNOWN = "Unauthenticated"
HOW_TO_SIGN_IN = "Exchange an API key for a token at /api/v1/auth, and send that as a bearer token."

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Secrets:
    """The installation's own secrets; they never leave the process."""

    digest: bytes
    token: bytes


async def load_secrets(store: Store) -> Secrets:
    """Read the installation's secrets, made at the first time."""
    async with store.transaction() as tx:
        return Secrets(await tx.installation_secret("api-key-digest"), await tx.installation_secret("token"))


def digest_of(secrets: Secrets, key: str) -> str:
    """What is stored of a key."""
    return hashlib.blake2b(key.encode(), key=secrets.digest, digest_size=32).hexdigest()


def masked(key: str, key_id: str) -> str:
    """What people see of a key: enough to tell two apart, too little to use."""
    return f"{key[:KEY_SHOWN_CHARACTERS]}…{key_id}"


async def exchange(platform: Platform, secrets: Secrets, key: str) -> tuple[str, ApiKey]:
    """A token for `key`, and the key's record. Raises Unauthenticated."""
    found = None
    _refuse_endpoint_key(key)
    if len(key) <= KEY_CHARACTERS_MAX:
        digest = digest_of(secrets, key)
        found, mark = platform.keys.recall(digest), platform.keys.mark
        if found is None:
            async with platform.store.read() as tx:
                found = await tx.find_api_key(digest)
            if found is not None:
                platform.keys.keep(digest, found, mark)
    now = platform.clock()
    record = _alive(found, now)
    claims: dict[str, Any] = {"sub": record.id, "iat": int(now.timestamp()), "exp": _expiry(now)}
    return jwt.encode(claims, secrets.token, algorithm=TOKEN_ALGORITHM), record


async def identify(platform: Platform, secrets: Secrets, token: str) -> ApiKey:
    """The record of the key behind `token`. Raises Unauthenticated."""
    now = platform.clock()
    claims = _claims(secrets, token)
    if claims["exp"] <= now.timestamp():
        raise Unauthenticated(
            UNKNOWN,
            reason="TokenExpired",
            next_action="Exchange the API key for a new token at /api/v1/auth.",
        )
    key_id = claims["sub"]
    found, mark = platform.keys.recall(key_id), platform.keys.mark
    if found is None:
        async with platform.store.read() as tx:
            with contextlib.suppress(NotFound):
                found = await tx.get_api_key(key_id)
        if found is not None:
            platform.keys.keep(key_id, found, mark)
    return _alive(found, now)


async def is_alive(platform: Platform, key_id: str) -> bool:
    """Whether the key still exists and has not expired."""
    async with platform.store.read() as tx:
        try:
            key = await tx.get_api_key(key_id)
        except NotFound:
            return False
    return key.expires_at > platform.clock()


def caller_of(key: ApiKey) -> Caller:
    """The key's bearer."""
    return Caller(key.id, key.name, key.role, key.workspace)


async def note_use(platform: Platform, key: ApiKey) -> None:
    """Record that `key` was used, unless that is known to within `LAST_USED_RESOLUTION`."""
    now = platform.clock()
    if key.last_used_at is not None and now - key.last_used_at < LAST_USED_RESOLUTION:
        return
    async with platform.store.transaction(durable=False) as tx:
        await tx.touch_api_key(key.id, now)
    platform.keys.replace(replace(key, last_used_at=now))


@dataclass(frozen=True, slots=True)
class KeyDraft:
    """What is asked of a new key."""

    name: str
    role: str
    validity: str
    workspace: str = ""
    user_name: str = ""
    description: str = ""


async def create(
    platform: Platform, secrets: Secrets, caller: Caller, draft: KeyDraft, ticket: Ticket | None = None
) -> str:
    """Make a key and return its value, which nobody can read again.

    With a ticket the value is derived from the caller's request, so that the same request gives the
    same key without the key having been stored. Raises Invalid, NotFound, Conflict.
    """
    caller.require(Verb.MANAGE_KEYS)
    return await once(ticket, lambda: _create(platform, secrets, caller, draft, ticket))


async def _create(
    platform: Platform, secrets: Secrets, caller: Caller, draft: KeyDraft, ticket: Ticket | None
) -> str:
    now = platform.clock()
    role, expires_at = _understand(draft, now, platform.limits.text_characters_max)
    async with platform.store.transaction() as tx:
        answered = await recall(tx, caller, ticket)
        key_id = answered or platform.new_id(KEY_ID_CHARACTERS)
        value = _derived(secrets, caller, ticket, key_id) if ticket else _fresh(platform)
        if answered is not None:
            await _check_still_there(tx, key_id)
            return value
        record = ApiKey(
            id=key_id,
            name=draft.name.strip(),
            digest=digest_of(secrets, value),
            masked=masked(value, key_id),
            role=role,
            workspace=draft.workspace,
            created_at=now,
            expires_at=expires_at,
            created_by=caller.key_name,
            user_name=draft.user_name.strip(),
            description=draft.description.strip(),
            validity=draft.validity.strip(),
        )
        if record.workspace:
            await tx.get_workspace(record.workspace)
        if len(await tx.list_api_keys(None)) >= platform.limits.api_keys_max:
            raise QuotaExceeded(
                f"there are {platform.limits.api_keys_max} API keys already",
                reason="TooManyApiKeys",
                next_action="Delete keys that nobody uses.",
            )
        await tx.add_api_key(record)
        await remember(tx, caller, ticket, key_id, now)
        await tx.append_event(
            entry(
                now,
                caller,
                "ApiKeyCreated",
                f"key {record.name} ({record.role}) was made",
                workspace=record.workspace,
                after=_told(record),
                data={"id": record.id, "role": record.role.value},
            )
        )
    return value


async def _check_still_there(tx: Tx, key_id: str) -> None:
    """Raise Conflict when the key that this request once made is gone: its value would open nothing."""
    try:
        await tx.get_api_key(key_id)
    except NotFound as error:
        raise Conflict(
            "the key that was made for this idempotency key has been deleted",
            reason="ApiKeyDeleted",
            field=IDEMPOTENCY_KEY_HEADER,
            next_action="Send the request with a new idempotency key to make a new API key.",
        ) from error


async def list_keys(platform: Platform, caller: Caller, workspace: str = "") -> list[ApiKey]:
    """All keys, or those of one workspace. Raises NotFound for an unknown workspace."""
    caller.require(Verb.MANAGE_KEYS)
    async with platform.store.read() as tx:
        if workspace:
            await tx.get_workspace(workspace)
        return await tx.list_api_keys(workspace or None)


async def delete(platform: Platform, secrets: Secrets, caller: Caller, key_or_id: str) -> None:
    """Delete a key by its value or id; its tokens end at once. Raises NotFound."""
    caller.require(Verb.MANAGE_KEYS)
    text = key_or_id.strip()[:KEY_CHARACTERS_MAX]
    try:
        async with platform.store.transaction() as tx:
            record = await tx.find_api_key(digest_of(secrets, text)) or await tx.get_api_key(text)
            await tx.delete_api_key(record.id)
            await tx.append_event(
                entry(
                    platform.clock(),
                    caller,
                    "ApiKeyDeleted",
                    f"key {record.name} was deleted",
                    workspace=record.workspace,
                    before=_told(record),
                    data={"id": record.id},
                )
            )
    finally:  # however it ended: a commit of which the answer was lost is one too
        platform.keys.forget()


def _told(key: ApiKey) -> dict[str, str]:
    """What the audit log keeps of a key: nothing of its value."""
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role.value,
        "workspace": key.workspace,
        "userName": key.user_name,
        "validity": key.validity,
        "expiresAt": key.expires_at.isoformat(),
    }


def expiry_of(validity: str, now: datetime, field: str = "validity") -> datetime:
    """The first moment at which a key made `now` no longer works.

    `validity` is a date, of which the whole day (UTC) still counts, or a duration. Raises Invalid.
    """
    text = validity.strip()
    if _DATE.fullmatch(text):
        try:
            last_day = date.fromisoformat(text)
        except ValueError as error:
            raise Invalid(f"{text} is not a date", reason="InvalidValidity", field=field) from error
        if last_day < now.date():
            raise Invalid(
                f"{text} is in the past",
                reason="ValidityInThePast",
                field=field,
                next_action="Give a date from today on, or a duration such as 30d.",
            )
        days = (last_day - now.date()).days
        end = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(
            days=min(days, VALIDITY_DAYS_MAX) + 1
        )
    else:
        duration = parse_duration(text, field)
        if duration <= timedelta(0):
            raise Invalid(
                "a key must be valid for some time",
                reason="InvalidValidity",
                field=field,
                next_action="Give a duration such as 30d, or a date.",
            )
        days = duration.days
        end = now + min(duration, timedelta(days=VALIDITY_DAYS_MAX))
    if days > VALIDITY_DAYS_MAX:
        raise Invalid(
            f"a key is valid for at most {VALIDITY_DAYS_MAX} days",
            reason="InvalidValidity",
            field=field,
            next_action="Give an earlier date or a shorter duration.",
        )
    return end


def _understand(draft: KeyDraft, now: datetime, characters_max: int) -> tuple[Role, datetime]:
    findings = Findings()
    findings.check(check_text, draft.name, "name", characters_max)
    findings.check(check_optional_text, draft.user_name, "userName", characters_max)
    findings.check(check_optional_text, draft.description, "description", characters_max)
    roles = {role.value.lower(): role for role in Role}
    role = roles.get(draft.role.strip().lower())
    if role is None:
        findings.add(
            f"there is no role “{draft.role[:40]}”",
            field="role",
            reason="UnknownRole",
            next_action=f"Use one of {', '.join(Role)}.",
        )
    elif role is not Role.OWNER and not draft.workspace:
        findings.add(
            f"a key with role {role} belongs to a workspace; workspaceName is needed",
            field="workspaceName",
            reason="Missing",
        )
    elif role is Role.OWNER and draft.workspace:
        findings.add(
            "an Owner key is for every workspace, so workspaceName cannot limit it",
            field="workspaceName",
            reason="OwnerIsEverywhere",
            next_action="Leave workspaceName out, or use the role Editor.",
        )
    expires_at = findings.check(expiry_of, draft.validity, now)
    findings.raise_any()
    assert role is not None and expires_at is not None  # noqa: PT018 - both were checked above
    return role, expires_at


def _fresh(platform: Platform) -> str:
    return KEY_PREFIX + platform.new_id(KEY_RANDOM_CHARACTERS)


def _derived(secrets: Secrets, caller: Caller, ticket: Ticket, key_id: str) -> str:
    text = f"{caller.key_id}\n{ticket.digest}\n{key_id}\n{ticket.key}"
    return KEY_PREFIX + hmac.new(secrets.digest, text.encode(), "sha256").hexdigest()[:KEY_RANDOM_CHARACTERS]


def _alive(key: ApiKey | None, now: datetime) -> ApiKey:
    if key is None:
        raise Unauthenticated(UNKNOWN, reason="Unauthenticated")
    if key.expires_at <= now:
        raise Unauthenticated(EXPIRED, reason="ApiKeyExpired", next_action="Ask an Owner for a new key.")
    return key


def _expiry(now: datetime) -> int:
    return int(now.timestamp()) + TOKEN_SECONDS


def _refuse_endpoint_key(text: str) -> None:
    """Say so where an endpoint key was given: it looks like a token, and opens nothing here."""
    if not text.startswith("eyJ") or text.count(".") != 2:
        return
    try:
        signed_how = jwt.get_unverified_header(text[:ENDPOINT_KEY_CHARACTERS_MAX]).get("alg")
    except (jwt.InvalidTokenError, ValueError):
        return
    if signed_how == ENDPOINT_KEY_ALGORITHM:
        raise Unauthenticated(
            "this is an endpoint key: it opens endpoints at the gateway, and not this API",
            reason="EndpointKeyNotAccepted",
            next_action="Use an API key here; an Owner makes one.",
        )


def _claims(secrets: Secrets, token: str) -> dict[str, Any]:
    """The token's claims; its times are compared with our own clock, not the library's."""
    _refuse_endpoint_key(token)
    if len(token) > TOKEN_CHARACTERS_MAX:
        raise Unauthenticated(UNKNOWN, reason="InvalidToken", next_action=HOW_TO_SIGN_IN)
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            secrets.token,
            algorithms=[TOKEN_ALGORITHM],
            options={
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
                "require": ["sub", "exp"],
            },
        )
    except (jwt.InvalidTokenError, ValueError) as error:
        raise Unauthenticated(UNKNOWN, reason="InvalidToken", next_action=HOW_TO_SIGN_IN) from error
    if not isinstance(claims["exp"], int) or not isinstance(claims["sub"], str):
        raise Unauthenticated(UNKNOWN, reason="InvalidToken", next_action=HOW_TO_SIGN_IN)
    return claims
