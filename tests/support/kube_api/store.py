"""What the cluster holds, and how it changes. Skeleton: see the methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Raw = dict[str, Any]


class Refused(Exception):
    """An answer that is an error, with the Status that says it."""

    def __init__(
        self, code: int, reason: str, message: str, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details


class Store:
    """The cluster from inside: no HTTP, no permissions, no log. Kinds are named by kind ("Pod")."""

    def get(self, kind: str, name: str, namespace: str = "") -> Raw | None:
        """One object, a copy; None where there is none."""
        raise NotImplementedError

    def list(self, kind: str, namespace: str = "", labels: Mapping[str, str] | None = None) -> list[Raw]:
        """Copies of the objects of a kind, of all namespaces where none is named."""
        raise NotImplementedError

    def put(self, object: Mapping[str, Any], *, manager: str = "test") -> Raw:
        """Makes it, or replaces spec, status and metadata of what is there of that name. As somebody else would."""
        raise NotImplementedError

    def delete(self, kind: str, name: str, namespace: str = "") -> bool:
        """Deletes as a client would (finalizers, owners); whether there was something."""
        raise NotImplementedError

    def vanish(self, kind: str, name: str, namespace: str = "") -> bool:
        """Removes it at once, finalizers or not."""
        raise NotImplementedError
