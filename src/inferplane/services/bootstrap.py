"""What an installation has from its first start: an Owner key, the local cluster, a workspace on it.

Run at every start and harmless each time. The Owner key lies in a file that only its owner can
read, so that the command line on this machine needs no set-up.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from inferplane.domain.access import ApiKey, Role
from inferplane.domain.errors import AlreadyExists, Unavailable
from inferplane.domain.events import Event
from inferplane.domain.workspace import Cluster, Workspace
from inferplane.engines.port import Clock
from inferplane.services.api_keys import (
    KEY_CHARACTERS_MAX,
    KEY_ID_CHARACTERS,
    KEY_PREFIX,
    KEY_RANDOM_CHARACTERS,
    VALIDITY_DAYS_MAX,
    digest_of,
    load_secrets,
    masked,
)
from inferplane.store.sql import Store

OWNER_KEY_NAME = "owner"
BOOTSTRAP = "bootstrap"
DEFAULT_WORKSPACE = "default"
LOCAL_ENGINE = "local"
KEY_FILE_MODE = 0o600
KEY_FOLDER_MODE = 0o700

NewId = Callable[[int], str]


async def ensure_installation(
    store: Store,
    owner_key_path: Path,
    clock: Clock,
    new_id: NewId,
    *,
    cluster: str,
    workspace: str = DEFAULT_WORKSPACE,
    engine: str = LOCAL_ENGINE,
) -> None:
    """Make whatever of the three is missing. Raises Unavailable when the key's file cannot be written."""
    await ensure_owner_key(store, owner_key_path, clock, new_id)
    await ensure_local_cluster(store, clock, cluster=cluster, workspace=workspace, engine=engine)


async def adopt_owner_key(store: Store, path: Path, clock: Clock, new_id: NewId) -> None:
    """Make the key in the file an Owner key of this installation; whoever installs has chosen it.

    Nothing is written to the file. An Owner key that was adopted or made here before goes: a key that was
    replaced must not go on opening everything. Harmless where several do it at once. Raises Unavailable for a
    file that holds no key, or one that cannot be used any more.
    """
    value = _read(path)
    if not value and not path.exists():
        raise _no_key(path, "is not there")
    if not value:
        raise _no_key(path, f"does not hold a key: {KEY_PREFIX} and {KEY_RANDOM_CHARACTERS} more characters")
    digest = digest_of(await load_secrets(store), value)
    now = clock()
    async with store.transaction() as tx:
        known = await tx.find_api_key(digest)
        if known is not None and (known.role is not Role.OWNER or known.expires_at <= now):
            raise _no_key(path, "holds a key that has expired, or is no Owner key")
        if known is not None:
            return
        for old in await tx.list_api_keys(None):
            if old.created_by == BOOTSTRAP and old.role is Role.OWNER:
                await tx.delete_api_key(old.id)
        try:
            await tx.add_api_key(_record(value, new_id(KEY_ID_CHARACTERS), digest, now))
        except AlreadyExists:  # another one was quicker
            return
        await tx.append_event(Event(now, "OwnerKeyCreated", "the given Owner key was taken over", BOOTSTRAP))


async def has_owner_key(store: Store, clock: Clock) -> bool:
    """Whether there is an Owner key that still opens something."""
    now = clock()
    async with store.read() as tx:
        return any(each.role is Role.OWNER and each.expires_at > now for each in await tx.list_api_keys(None))


async def ensure_workspace(
    store: Store, clock: Clock, clusters: Sequence[str], *, workspace: str = DEFAULT_WORKSPACE
) -> None:
    """A workspace on these clusters, unless there is any already."""
    now = clock()
    async with store.transaction() as tx:
        if await tx.list_workspaces():
            return
        try:
            await tx.add_workspace(Workspace(workspace, tuple(clusters), now, username=OWNER_KEY_NAME))
        except AlreadyExists:  # another one was quicker
            return
        await tx.append_event(
            Event(now, "WorkspaceCreated", f"workspace {workspace} was made", BOOTSTRAP, workspace)
        )


async def installation_id(store: Store) -> str:
    """Names this installation, for clusters that it may share with others: 12 hex digits, always the same."""
    async with store.transaction() as tx:
        secret = await tx.installation_secret("clusters")
    return hashlib.blake2b(secret, digest_size=6).hexdigest()


async def ensure_owner_key(store: Store, path: Path, clock: Clock, new_id: NewId) -> str:
    """The Owner key of this installation, at `path` with mode 0600; returns its value.

    The file's key is reused while the database knows it and it has not expired. A new database takes
    over the key of an existing file; a lost, deleted or expired key is replaced by a new one.
    """
    secrets = await load_secrets(store)
    now = clock()
    value = _read(path)
    async with store.transaction() as tx:
        if value:
            known = await tx.find_api_key(digest_of(secrets, value))
            if known is not None and known.role is Role.OWNER and known.expires_at > now:
                _protect(path)
                return value
            if known is not None or await tx.last_event_seq():
                value = ""  # expired, or deleted by somebody: in a used database it must not come back
        fresh = not value
        value = value or KEY_PREFIX + new_id(KEY_RANDOM_CHARACTERS)
        key_id = new_id(KEY_ID_CHARACTERS)
        if fresh:
            # Written before the commit: a crash in between leaves a file that the next start replaces,
            # never a key in the database that nobody has.
            _write(path, value)
        for old in await tx.list_api_keys(None):
            # What a lost file held must not go on opening everything.
            if old.created_by == BOOTSTRAP and old.role is Role.OWNER:
                await tx.delete_api_key(old.id)
        await tx.add_api_key(_record(value, key_id, digest_of(secrets, value), now))
        await tx.append_event(
            Event(now, "OwnerKeyCreated", "the installation's Owner key was made", BOOTSTRAP)
        )
    _protect(path)
    return value


async def ensure_local_cluster(
    store: Store,
    clock: Clock,
    *,
    cluster: str,
    workspace: str = DEFAULT_WORKSPACE,
    engine: str = LOCAL_ENGINE,
) -> None:
    """Register the embedded cluster, and on it a workspace, unless there is any workspace already."""
    now = clock()
    async with store.transaction() as tx:
        known = {each.name: each for each in await tx.list_clusters()}
        if cluster not in known or known[cluster].engine != engine:
            await tx.put_cluster(Cluster(cluster, engine, now))
    await ensure_workspace(store, clock, (cluster,), workspace=workspace)


def _record(value: str, key_id: str, digest: str, now: datetime) -> ApiKey:
    return ApiKey(
        id=key_id,
        name=OWNER_KEY_NAME,
        digest=digest,
        masked=masked(value, key_id),
        role=Role.OWNER,
        workspace="",
        created_at=now,
        expires_at=now + timedelta(days=VALIDITY_DAYS_MAX),
        created_by=BOOTSTRAP,
        description="made at the first start",
        validity=f"{VALIDITY_DAYS_MAX}d",
    )


def _read(path: Path) -> str:
    """The key in the file, or "" when there is none that could be one."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return ""
    except OSError as error:
        raise _unusable(path, error) from error
    if not text.startswith(KEY_PREFIX) or len(text) < len(KEY_PREFIX) + KEY_RANDOM_CHARACTERS:
        return ""
    return text if len(text) <= KEY_CHARACTERS_MAX and text.isprintable() else ""


def _write(path: Path, value: str) -> None:
    """Replace the file in one step; it is never readable by others, not even for a moment."""
    partial = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=KEY_FOLDER_MODE)
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, KEY_FILE_MODE)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(value + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise _unusable(path, error) from error


def _protect(path: Path) -> None:
    """Take away what a copy or an editor may have granted to others."""
    try:
        if path.stat().st_mode & 0o777 != KEY_FILE_MODE:
            path.chmod(KEY_FILE_MODE)
    except OSError as error:
        raise _unusable(path, error) from error


def _no_key(path: Path, why: str) -> Unavailable:
    return Unavailable(
        f"the file {path} {why}",
        reason="OwnerKeyUnusable",
        field="owner_key_file",
        next_action="Write a key into it, or leave --owner-key-file out and let the platform make one.",
    )


def _unusable(path: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"the Owner key at {path} cannot be read or written: {error.strerror}",
        reason="OwnerKeyUnusable",
        next_action="Give this user access to the file, or name another home folder.",
    )
