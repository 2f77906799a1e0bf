"""Who may do what: the permission table, case by case, and names that do not leak."""

from __future__ import annotations

import pytest

from inferplane.domain.access import PERMISSIONS, Caller, Role, Verb
from inferplane.domain.errors import Forbidden, NotFound

O, E, V = Role.OWNER, Role.EDITOR, Role.VIEWER  # noqa: E741 — the three columns of the table

TABLE = {
    Verb.MANAGE_KEYS: {O},
    Verb.MANAGE_WORKSPACES: {O},
    Verb.READ_WORKSPACE: {O, E, V},
    Verb.READ_CLUSTERS: {O, E, V},
    Verb.READ_ENDPOINT: {O, E, V},
    Verb.WRITE_ENDPOINT: {O, E},
    Verb.READ_LOGS: {O, E, V},
    Verb.READ_GPUS: {O, E, V},
    Verb.WRITE_GPUS: {O, E},
    Verb.MANAGE_GPUS: {O},
    Verb.MANAGE_CLUSTERS: {O},
    Verb.READ_AUDIT: {O},
    Verb.READ_ENDPOINT_KEYS: {O, E, V},
    Verb.WRITE_ENDPOINT_KEYS: {O, E},
    Verb.READ_USAGE: {O, E, V},
}


def _caller(role: Role, workspace: str = "team") -> Caller:
    return Caller("id", "name", role, "" if role is Role.OWNER else workspace)


def test_the_table_here_speaks_of_every_verb() -> None:
    assert set(TABLE) == set(Verb) == set(PERMISSIONS)


@pytest.mark.parametrize("verb", list(Verb))
@pytest.mark.parametrize("role", list(Role))
def test_in_ones_own_workspace_the_table_decides(role: Role, verb: Verb) -> None:
    if role in TABLE[verb]:
        _caller(role).require(verb, "team")
        return
    with pytest.raises(Forbidden, match=f"{role} may not {verb}") as caught:
        _caller(role).require(verb, "team")
    assert caught.value.reason == "RoleForbids"
    assert caught.value.next_action


@pytest.mark.parametrize("verb", list(Verb))
@pytest.mark.parametrize("role", [E, V])
def test_a_foreign_workspace_does_not_exist(role: Role, verb: Verb) -> None:
    """Even where the role would be too low: the answer must not tell that the name is taken."""
    with pytest.raises(NotFound, match="workspace other does not exist") as caught:
        _caller(role).require(verb, "other")
    assert caught.value.reason == "WorkspaceNotFound"


@pytest.mark.parametrize("verb", list(Verb))
def test_an_owner_may_everything_everywhere(verb: Verb) -> None:
    _caller(O).require(verb, "any")
    _caller(O).require(verb)


def test_what_a_caller_may_see() -> None:
    assert _caller(O).may_see("any")
    assert _caller(V).may_see("team")
    assert not _caller(E).may_see("other")
