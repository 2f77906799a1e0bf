"""Answers that are errors, as the Status objects of the real API server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kube_api.kinds import Kind
from kube_api.schema import Cause

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

    @property
    def status(self) -> Raw:
        """The body of the answer."""
        body: Raw = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.details is not None:
            body["details"] = dict(self.details)
        body["code"] = self.code
        return body


def _details(kind: Kind, name: str, *, by_kind: bool = False) -> Raw:
    details: Raw = {"name": name} if name else {}
    if kind.group:
        details["group"] = kind.group
    details["kind"] = kind.name if by_kind else kind.plural
    return details


def bad_request(message: str) -> Refused:
    """400."""
    return Refused(400, "BadRequest", message)


def unauthorized() -> Refused:
    """401."""
    return Refused(401, "Unauthorized", "Unauthorized")


def forbidden(kind: Kind, name: str, why: str) -> Refused:
    """403, `pods "x" is forbidden: why`."""
    named = f' "{name}"' if name else ""
    return Refused(403, "Forbidden", f"{kind.resource}{named} is forbidden: {why}", _details(kind, name))


def not_found(kind: Kind, name: str) -> Refused:
    """404."""
    return Refused(404, "NotFound", f'{kind.resource} "{name}" not found', _details(kind, name))


def already_exists(kind: Kind, name: str) -> Refused:
    """409 of a create."""
    return Refused(409, "AlreadyExists", f'{kind.resource} "{name}" already exists', _details(kind, name))


def conflict(kind: Kind, name: str, why: str = "") -> Refused:
    """409 of an update of what has been changed meanwhile."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    return Refused(
        409,
        "Conflict",
        f'Operation cannot be fulfilled on {kind.resource} "{name}": {why}',
        _details(kind, name),
    )


def field_conflicts(found: Iterable[tuple[str, str, str, str]]) -> Refused:
    """409 of a server-side apply: manager, apiVersion, subresource, field."""
    by_owner: dict[str, list[str]] = {}
    causes = []
    for manager, api_version, subresource, field in sorted(found):
        apart = f' with subresource "{subresource}"' if subresource else ""
        owner = f'"{manager}"{apart} using {api_version}'
        by_owner.setdefault(owner, []).append(field)
        causes.append({"reason": "FieldManagerConflict", "message": f"conflict with {owner}", "field": field})
    if len(causes) == 1:
        text = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        parts = [
            f"conflicts with {owner}:\n" + "\n".join(f"- {each}" for each in fields)
            for owner, fields in by_owner.items()
        ]
        text = f"Apply failed with {len(causes)} conflicts: " + "\n".join(parts)
    return Refused(409, "Conflict", text, {"causes": causes})


def gone(message: str) -> Refused:
    """410."""
    return Refused(410, "Expired", message)


def unsupported_media(accepted: Iterable[str]) -> Refused:
    """415."""
    return Refused(
        415,
        "UnsupportedMediaType",
        "the body of the request was in an unknown format - accepted media types include: "
        + ", ".join(accepted),
    )


def invalid(kind: Kind, name: str, causes: Iterable[Cause]) -> Refused:
    """422 with its causes."""
    found = list(causes)
    texts = [str(each) for each in found]
    text = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    title = f"{kind.name}.{kind.group}" if kind.group else kind.name
    details = _details(kind, name, by_kind=True)
    details["causes"] = [
        {"reason": each.reason, "message": each.message, "field": each.field} for each in found
    ]
    return Refused(422, "Invalid", f'{title} "{name}" is invalid: {text}', details)
