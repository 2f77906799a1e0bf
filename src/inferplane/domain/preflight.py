"""What a pre-flight found: one answer per check, good or bad, each with what to do."""

from __future__ import annotations

from dataclasses import dataclass

from inferplane.domain.reasons import ReasonCode


@dataclass(frozen=True, slots=True)
class Check:
    """One check of a pre-flight. `check` is a short word (storage, format, runtime, name, quota, …).

    `reason` is None exactly when `ok`.
    """

    check: str
    ok: bool
    reason: ReasonCode | None
    message: str
    next_action: str = ""
