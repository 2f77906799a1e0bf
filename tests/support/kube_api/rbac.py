"""Who may do what: users with a token and rules of their own, and service accounts with Roles and bindings.

The answers (401, 403 and their words, self subject reviews) are those of the real authorizer.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from kube_api import refusals
from kube_api.kinds import Kind
from kube_api.refusals import Refused
from kube_api.store import Store

_ISSUER = "https://kubernetes.default.svc.cluster.local"
TOKEN_SECONDS_MIN = 600
TOKEN_SECONDS_MAX = 2**32


@dataclass(frozen=True, slots=True)
class Rule:
    """A right. Empty `namespaces`: everywhere (and cluster-wide resources); empty `names`: every name."""

    verbs: tuple[str, ...]
    groups: tuple[str, ...] = ("*",)
    resources: tuple[str, ...] = ("*",)
    """Plurals, subresources as "pods/log"."""
    namespaces: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def covers(self, asked: Asked) -> bool:
        """Whether it allows what is asked."""
        return (
            ("*" in self.verbs or asked.verb in self.verbs)
            and ("*" in self.groups or asked.group in self.groups)
            and (
                "*" in self.resources
                or asked.resource in self.resources
                or any(each.startswith("*/") and asked.resource.endswith(each[1:]) for each in self.resources)
            )
            and (not self.namespaces or asked.namespace in self.namespaces)
            and (not self.names or asked.name in self.names)
        )


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a token."""

    name: str
    token: str
    rules: tuple[Rule, ...] = ()


ADMIN = User("admin", "token-of-admin", (Rule(("*",)),))
"""May do everything."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What somebody wants to do. `resource` with its subresource."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token is."""

    name: str
    groups: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    uid: str = ""


class Authorizer:
    """Reads tokens, and the Roles and bindings in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._users: dict[str, User] = {}
        self._key = uuid.uuid4().hex * 2

    def add(self, user: User) -> None:
        """One more user, or other rules for the name."""
        self._users[user.name] = user

    def remove(self, name: str) -> None:
        """That user's token is no longer known."""
        self._users.pop(name, None)

    def token_of(self, name: str) -> str:
        """A user's token. Raises KeyError."""
        return self._users[name].token

    def identify(self, authorization: str) -> Identity:
        """Who sends an Authorization header. Raises Refused (401)."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise refusals.unauthorized()
        token = token.strip()
        for user in self._users.values():
            if user.token == token:
                return Identity(user.name, ("system:authenticated",), user.rules)
        try:
            claims = jwt.decode(token, self._key, algorithms=["HS256"], options={"verify_aud": False})
        except jwt.PyJWTError:
            raise refusals.unauthorized() from None
        said = claims["kubernetes.io"]
        namespace, name = said["namespace"], said["serviceaccount"]["name"]
        account = self._store.peek(self._store.kind("ServiceAccount"), namespace, name)
        if account is None or account["metadata"]["uid"] != said["serviceaccount"]["uid"]:
            raise refusals.unauthorized()
        groups = (
            "system:serviceaccounts",
            f"system:serviceaccounts:{namespace}",
            "system:authenticated",
        )
        return Identity(
            f"system:serviceaccount:{namespace}:{name}", groups, uid=said["serviceaccount"]["uid"]
        )

    def known_as(self, name: str) -> Identity:
        """Who shows a certificate with this name. Raises Refused (401)."""
        user = self._users.get(name)
        if user is None:
            raise refusals.unauthorized()
        return Identity(user.name, ("system:authenticated",), user.rules)

    def issue(self, account: Mapping[str, Any], seconds: int) -> tuple[str, float]:
        """A token of a service account, and when it ends (seconds since the epoch)."""
        now = time.time()
        namespace, name = account["metadata"]["namespace"], account["metadata"]["name"]
        claims = {
            "iss": _ISSUER,
            "sub": f"system:serviceaccount:{namespace}:{name}",
            "aud": [_ISSUER],
            "iat": int(now),
            "exp": int(now) + seconds,
            "jti": str(uuid.uuid4()),
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {"name": name, "uid": account["metadata"]["uid"]},
            },
        }
        return jwt.encode(claims, self._key, algorithm="HS256"), int(now) + seconds

    def rules(self, who: Identity, namespace: str) -> Iterator[Rule]:
        """The rules that somebody has in a namespace ("": cluster-wide only)."""
        yield from who.rules
        for binding in self._store.all_of(self._store.kind("ClusterRoleBinding")):
            if _is_subject(binding, who, ""):
                yield from self._of_role(binding["roleRef"], "", ())
        if namespace:
            for binding in self._store.all_of(self._store.kind("RoleBinding"), namespace):
                if _is_subject(binding, who, namespace):
                    yield from self._of_role(binding["roleRef"], namespace, (namespace,))

    def _of_role(
        self, reference: Mapping[str, str], namespace: str, within: tuple[str, ...]
    ) -> Iterator[Rule]:
        kind = self._store.kind(reference["kind"])
        role = self._store.peek(kind, namespace if kind.namespaced else "", reference["name"])
        for each in (role or {}).get("rules") or ():
            yield Rule(
                tuple(each.get("verbs") or ()),
                tuple(each.get("apiGroups") or ()),
                tuple(each.get("resources") or ()),
                within,
                tuple(each.get("resourceNames") or ()),
            )

    def allowed(self, who: Identity, asked: Asked) -> bool:
        """Whether somebody may."""
        return any(rule.covers(asked) for rule in self.rules(who, asked.namespace))

    def check(self, who: Identity, kind: Kind, asked: Asked) -> None:
        """Raises Refused (403) in the authorizer's words."""
        if self.allowed(who, asked):
            return
        where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
        raise refusals.forbidden(
            kind,
            asked.name,
            f'User "{who.name}" cannot {asked.verb} resource "{asked.resource}" in API group "{asked.group}" {where}',
        )

    def check_escalation(self, who: Identity, kind: Kind, new: Mapping[str, Any], namespace: str) -> None:
        """Nobody grants what they do not have: rules of a role, or the role of a binding. Raises Refused (403)."""
        name = new["metadata"].get("name", "")
        if kind.name in ("Role", "ClusterRole"):
            if self.allowed(who, Asked("escalate", kind.group, kind.plural, namespace, name)):
                return
            wanted = [dict(each) for each in new.get("rules") or ()]
        elif kind.name in ("RoleBinding", "ClusterRoleBinding"):
            reference = new.get("roleRef") or {}
            if not reference.get("name") or reference.get("kind") not in ("Role", "ClusterRole"):
                return
            plural = "roles" if reference["kind"] == "Role" else "clusterroles"
            if self.allowed(who, Asked("bind", kind.group, plural, namespace, reference["name"])):
                return
            role_kind = self._store.kind(reference["kind"])
            role = self._store.peek(role_kind, namespace if role_kind.namespaced else "", reference["name"])
            if role is None:
                raise refusals.not_found(role_kind, reference["name"])
            wanted = [dict(each) for each in role.get("rules") or ()]
        else:
            return
        lacking = [each for each in wanted if not self._has(who, each, namespace)]
        if lacking:
            said = "\n".join(_go_rule(each) for each in lacking)
            raise refusals.forbidden(
                kind,
                name,
                f'user "{who.name}" (groups={list(who.groups)!r}) is attempting to grant RBAC permissions not '
                f"currently held:\n{said}",
            )

    def _has(self, who: Identity, rule: Mapping[str, Any], namespace: str) -> bool:
        held = list(self.rules(who, namespace))
        return all(
            any(each.covers(Asked(verb, group, resource, namespace, name)) for each in held)
            for verb in rule.get("verbs") or ()
            for group in rule.get("apiGroups") or ()
            for resource in rule.get("resources") or ()
            for name in rule.get("resourceNames") or ("",)
        )


def _go_rule(rule: Mapping[str, Any]) -> str:
    parts = [
        ("APIGroups", "apiGroups"),
        ("Resources", "resources"),
        ("ResourceNames", "resourceNames"),
        ("Verbs", "verbs"),
    ]
    said = [
        f"{title}:[{' '.join(f'{each!r}'.replace(chr(39), chr(34)) for each in rule[key])}]"
        for title, key in parts
        if rule.get(key)
    ]
    return "{" + ", ".join(said) + "}"


def _is_subject(binding: Mapping[str, Any], who: Identity, namespace: str) -> bool:
    for each in binding.get("subjects") or ():
        match each.get("kind"):
            case "User" if each["name"] == who.name:
                return True
            case "Group" if each["name"] in who.groups:
                return True
            case "ServiceAccount":
                space = each.get("namespace", namespace)
                if who.name == f"system:serviceaccount:{space}:{each['name']}":
                    return True
    return False


__all__ = ["ADMIN", "Asked", "Authorizer", "Identity", "Refused", "Rule", "User"]
