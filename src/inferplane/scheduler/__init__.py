"""Who gets GPUs: `schedule(Snapshot) → Decisions`, and `forecast`, which replays it. Pure."""

from inferplane.scheduler.cycle import schedule
from inferplane.scheduler.decisions import Decisions, Estimate, Eviction, GrantDecision, Wait
from inferplane.scheduler.forecast import forecast, renewal
from inferplane.scheduler.questions import wait_times
from inferplane.scheduler.snapshot import Ageing, FairShare, Snapshot, Switches

__all__ = [
    "Ageing",
    "Decisions",
    "Estimate",
    "Eviction",
    "FairShare",
    "GrantDecision",
    "Snapshot",
    "Switches",
    "Wait",
    "forecast",
    "renewal",
    "schedule",
    "wait_times",
]
