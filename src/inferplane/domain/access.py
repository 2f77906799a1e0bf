"""Who may do what: API keys, roles and the permission table.

An Owner acts on the whole installation; Editor and Viewer on one workspace. What a caller may not
even know about is answered with NotFound, so that names do not leak.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from inferplane.domain.errors import Forbidden, NotFound


class Role(StrEnum):
    """The three roles of the contract."""

    OWNER = "Owner"
    EDITOR = "Editor"
    VIEWER = "Viewer"


class Verb(StrEnum):
    """Everything the table speaks about."""

    MANAGE_KEYS = "manage keys"
    MANAGE_WORKSPACES = "manage workspaces"
    READ_WORKSPACE = "read workspace"
    READ_CLUSTERS = "read clusters"
    READ_ENDPOINT = "read endpoint"
    WRITE_ENDPOINT = "write endpoint"
    READ_LOGS = "read logs"
    READ_ENDPOINT_KEYS = "read endpoint keys"
    WRITE_ENDPOINT_KEYS = "make and revoke endpoint keys"
    READ_USAGE = "read usage"
    READ_GPUS = "read GPUs"
    WRITE_GPUS = "write GPU requests"
    MANAGE_GPUS = "manage policies, templates and bindings"
    MANAGE_CLUSTERS = "manage clusters"
    READ_AUDIT = "read the audit log"


_EVERYONE = frozenset(Role)
_WRITERS = frozenset({Role.OWNER, Role.EDITOR})
_OWNERS = frozenset({Role.OWNER})

PERMISSIONS: dict[Verb, frozenset[Role]] = {
    Verb.MANAGE_KEYS: _OWNERS,
    Verb.MANAGE_WORKSPACES: _OWNERS,
    Verb.READ_WORKSPACE: _EVERYONE,
    Verb.READ_CLUSTERS: _EVERYONE,
    Verb.READ_ENDPOINT: _EVERYONE,
    Verb.WRITE_ENDPOINT: _WRITERS,
    Verb.READ_LOGS: _EVERYONE,
    Verb.READ_ENDPOINT_KEYS: _EVERYONE,
    Verb.WRITE_ENDPOINT_KEYS: _WRITERS,
    Verb.READ_USAGE: _EVERYONE,
    Verb.READ_GPUS: _EVERYONE,
    Verb.WRITE_GPUS: _WRITERS,
    Verb.MANAGE_GPUS: _OWNERS,
    Verb.MANAGE_CLUSTERS: _OWNERS,
    Verb.READ_AUDIT: _OWNERS,
}


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as stored: never its value, only a keyed digest and a masked form for people.

    `expires_at` is the first moment at which it no longer works.
    """

    id: str
    name: str
    digest: str
    masked: str
    role: Role
    workspace: str  # "" for an Owner
    created_at: datetime
    expires_at: datetime
    created_by: str = ""
    user_name: str = ""
    description: str = ""
    validity: str = ""  # as the caller wrote it
    last_used_at: datetime | None = None


def no_such_workspace(name: str) -> NotFound:
    """The same words for a workspace that is not there and for one that the caller may not know of."""
    return NotFound(
        f"workspace {name} does not exist",
        reason="WorkspaceNotFound",
        field="workspace",
        next_action="`inferplane workspace list` shows the workspaces that this key may see.",
    )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking. `workspace` is "" for an Owner."""

    key_id: str
    key_name: str
    role: Role
    workspace: str

    def require(self, verb: Verb, workspace: str = "") -> None:
        """Raise NotFound for a foreign workspace, Forbidden for a verb beyond the role."""
        if self.role is not Role.OWNER and workspace and workspace != self.workspace:
            raise no_such_workspace(workspace)
        if self.role not in PERMISSIONS[verb]:
            raise Forbidden(
                f"a key with role {self.role} may not {verb}",
                reason="RoleForbids",
                next_action="Use a key with a role that may, or ask an Owner for one.",
            )

    def may_see(self, workspace: str) -> bool:
        """Whether things in `workspace` exist for this caller at all."""
        return self.role is Role.OWNER or workspace == self.workspace
