"""What happened, to what, by whom: audit log, timeline and wake-up hint in one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from inferplane.domain.reasons import ReasonCode

SCALING_KINDS = ("ScaledUp", "ScaledDown", "ScaledToZero", "Woken")
"""Another number of replicas was decided; the message says from what."""


@dataclass(frozen=True, slots=True)
class Event:
    """One entry, appended in the transaction of the change it tells of.

    `kind` is a past-tense word (EndpointCreated, ReplicaExited); `actor` is a key's name or
    `controller`. `seq` is 0 until stored, then increases without gaps mattering.
    `data` holds JSON values and never a secret; what was changed by a person is there as `before` and
    `after`. `gpu_request_id` names the GPR it is about, if any.
    """

    at: datetime
    kind: str
    message: str
    actor: str
    workspace: str = ""
    endpoint: str = ""
    endpoint_uid: str = ""
    reason: ReasonCode | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    seq: int = 0
    gpu_request_id: str = ""
