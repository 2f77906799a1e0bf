"""Who may do what: users with a token and rules of their own, and service accounts with Roles and bindings.

The answers (401, 403 and their words, self subject reviews) are those of the real authorizer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rule:
    """A right. Empty `namespaces`: everywhere (and cluster-wide resources); empty `names`: every name."""

    verbs: tuple[str, ...]
    groups: tuple[str, ...] = ("*",)
    resources: tuple[str, ...] = ("*",)
    """Plurals, subresources as "pods/log"."""
    namespaces: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a token."""

    name: str
    token: str
    rules: tuple[Rule, ...] = ()


ADMIN = User("admin", "token-of-admin", (Rule(("*",)),))
"""May do everything."""
