"""What the admission controller last said about a request that waits for GPUs.

It is derived, renewed as the queue moves, and kept only so that everybody who asks hears the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from inferplane.domain.reasons import ReasonCode


@dataclass(frozen=True, slots=True)
class WaitNote:
    """Where a queued request stands, said at `at`.

    `position` is 1 for the next one, None where no place in a line would help (its shape does not
    exist, for instance). `explanation` is whole: it names the position too. `assumption` is what
    `estimated_start` rests on, or why there is none. `remedy` says what would change it, "" for what
    `reason` advises anyway.
    """

    position: int | None
    explanation: str
    estimated_start: datetime | None
    assumption: str
    at: datetime
    remedy: str = ""
    reason: ReasonCode = ReasonCode.AWAITING_GPU
