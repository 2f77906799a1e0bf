"""A model on its way from a storage URI to a local directory.

The state is a value: absent, being fetched, present, or failed. The model store produces it, the
local engine reports it in its observation, the endpoint's status keeps the last one seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from inferplane.domain.reasons import ReasonCode


class ArtifactPhase(StrEnum):
    """Where a model is between its URI and this machine."""

    ABSENT = "Absent"
    FETCHING = "Fetching"
    PRESENT = "Present"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class ArtifactState:
    """What is known about one endpoint's model files.

    Sizes are bytes; `total_bytes` is None while the source has not said. `resumed_from_bytes` is
    how much an earlier, interrupted attempt had left that did not have to be fetched again.
    `path` is the file or directory to load, set only when PRESENT. `attempts` counts failures in a
    row of the fetch itself; `next_attempt_at` is set when the store will try again by itself.
    """

    phase: ArtifactPhase = ArtifactPhase.ABSENT
    uri: str = ""
    path: str = ""
    digest: str = ""
    received_bytes: int = 0
    total_bytes: int | None = None
    resumed_from_bytes: int = 0
    rate_bytes_per_second: float = 0.0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    reason: ReasonCode | None = None
    message: str = ""
    attempts: int = 0
    next_attempt_at: datetime | None = None

    @property
    def eta_seconds(self) -> float | None:
        """Seconds until the rest has arrived at the present rate; None when it cannot be known."""
        if self.total_bytes is None or self.rate_bytes_per_second <= 0:
            return None
        return max(0, self.total_bytes - self.received_bytes) / self.rate_bytes_per_second
