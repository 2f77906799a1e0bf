"""Telling a caller everything that is wrong at once, instead of one thing a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from inferplane.domain.errors import Invalid, Problem

P = ParamSpec("P")
T = TypeVar("T")


class Findings:
    """Collects what checks complain about; `raise_any` turns it into one Invalid with details."""

    def __init__(self) -> None:
        self._errors: list[Invalid] = []

    def check(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The function's value, or None when it raised Invalid, which is kept."""
        try:
            return function(*args, **kwargs)
        except Invalid as error:
            self._errors.append(error)
            return None

    def add(self, message: str, *, field: str, reason: str, next_action: str = "") -> None:
        """Note one problem."""
        self._errors.append(Invalid(message, reason=reason, field=field, next_action=next_action))

    def raise_any(self) -> None:
        """Raise Invalid when anything was noted: the first problem speaks, `details` has them all."""
        if not self._errors:
            return
        first = self._errors[0]
        details = tuple(
            detail
            for error in self._errors
            for detail in (error.details or (Problem(error.field, error.reason, error.message),))
        )
        more = f" (and {len(details) - 1} more, see details)" if len(details) > 1 else ""
        raise Invalid(
            first.message + more,
            reason=first.reason,
            field=first.field,
            next_action=first.next_action,
            details=details,
        ) from first


def check_text(text: str, field: str, characters_max: int) -> str:
    """`text` without surrounding blanks. Raises Invalid when it is empty, too long or has control characters."""
    text = text.strip()
    if not text:
        raise Invalid(f"{field} is needed", reason="Missing", field=field)
    return check_optional_text(text, field, characters_max)


def check_optional_text(text: str, field: str, characters_max: int) -> str:
    """Like `check_text`, but may be empty."""
    text = text.strip()
    if len(text) > characters_max:
        raise Invalid(f"{field} is longer than {characters_max} characters", reason="TooLong", field=field)
    if any((ord(character) < 32 and character not in "\t\n") or ord(character) == 127 for character in text):
        raise Invalid(f"{field} holds control characters", reason="InvalidText", field=field)
    return text
