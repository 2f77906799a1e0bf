"""How a new revision takes over from the one that serves.

    update    → the candidate is started beside the base, and gets all requests once it answers
    canary    → it gets its percentage, until a person promotes it or goes back
    shadow    → it gets copies of requests, whose answers are dropped and only counted
    in place  → where there is no room for both (GPUs), the base is stopped first, once the candidate's model
                is here; said in the timeline

While a candidate gets requests it is watched: where its errors or its latency are worse than the base's
beyond a bound, over a window, requests go back to the base and the candidate is stopped. That is a fact
of the status, written by a controller; the wish stays as the user wrote it, until he changes it.

    (in place: Preparing →) Starting → Shifted → Complete
                                └─────────┴────→ RolledBack
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

PERCENT_ALL = 100
OBSERVE_DEFAULT = timedelta(seconds=30)
"""How long the base is kept at hand after an update has shifted all requests."""

STICKY_HEADER_CHARACTERS_MAX = 64


class Strategy(StrEnum):
    """What happens to the base while the candidate starts."""

    START_THEN_STOP = "startThenStop"
    STOP_THEN_START = "stopThenStart"


class RolloutPhase(StrEnum):
    """How far a rollout has come."""

    PREPARING = "Preparing"  # in place: the candidate's model is fetched while the base serves
    STARTING = "Starting"  # the candidate does not answer yet; the base serves
    SHIFTED = "Shifted"  # the candidate gets its share and is watched
    COMPLETE = "Complete"  # the base is no longer needed
    ROLLED_BACK = "RolledBack"  # the candidate was worse, or could not start in place of the base


@dataclass(frozen=True, slots=True)
class Guard:
    """When a candidate counts as worse than its base.

    Its share of answers with 5xx is more than `error_points` (0.05: five in a hundred) above the base's,
    or its 95th percentile of latency is over `latency_factor` times the base's and over
    `latency_least_ms`. Neither is judged on fewer than `requests_min` requests in `window`.
    """

    enabled: bool = True
    error_points: float = 0.05
    latency_factor: float = 3.0
    latency_least_ms: float = 100.0
    requests_min: int = 20
    window: timedelta = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Rollout:
    """The wish: the newest revision shall take over from `base`.

    `canary_percent` is the candidate's share of requests, None for an update that takes all of them once
    it answers. `mirror_percent` of the base's requests are copied to the candidate. Requests with equal
    values of `sticky_header` go to the same revision.
    """

    base: int
    canary_percent: int | None = None
    mirror_percent: int = 0
    sticky_header: str = ""
    strategy: Strategy = Strategy.START_THEN_STOP
    guard: Guard = Guard()
    observe: timedelta = OBSERVE_DEFAULT

    @property
    def is_gradual(self) -> bool:
        """Whether it waits for a person to finish it."""
        return self.canary_percent is not None or self.mirror_percent > 0

    @property
    def is_in_place(self) -> bool:
        """Whether the base has to make room before the candidate starts."""
        return self.strategy is Strategy.STOP_THEN_START and not self.is_gradual

    @property
    def candidate_percent(self) -> int:
        """The candidate's share of requests once it answers."""
        if self.canary_percent is not None:
            return self.canary_percent
        return 0 if self.mirror_percent > 0 else PERCENT_ALL


@dataclass(frozen=True, slots=True)
class RolloutNote:
    """The fact: how far the rollout from `base` to `candidate` has come, since when, and why.

    `message` is the evidence for a rollback, in words; "" otherwise.
    """

    base: int
    candidate: int
    phase: RolloutPhase
    since: datetime
    message: str = ""


@dataclass(frozen=True, slots=True)
class RevisionTraffic:
    """What the gateway saw of one revision in the last window in which it had requests.

    `errors` are answers with 5xx. `latency_p95_ms` is None where nothing was measured.
    """

    requests: int = 0
    errors: int = 0
    latency_p95_ms: float | None = None

    @property
    def error_share(self) -> float:
        """Errors by requests; 0.0 where there was none."""
        return self.errors / self.requests if self.requests else 0.0


def why_worse(base: RevisionTraffic, candidate: RevisionTraffic, guard: Guard) -> str:
    """The evidence, in words, that the candidate is worse than the base beyond the guard's bounds; else "".

    Without enough requests of the base it is compared with one that makes no errors; its latency is not
    judged then, because there is nothing to compare it with.
    """
    if not guard.enabled or candidate.requests < guard.requests_min:
        return ""
    usual = base.error_share if base.requests >= guard.requests_min else 0.0
    if candidate.error_share > usual + guard.error_points:
        return (
            f"{_percent(candidate.error_share)} of its {candidate.requests} requests failed,"
            f" {_percent(usual)} of those to the revision before"
        )
    if base.requests < guard.requests_min or base.latency_p95_ms is None or candidate.latency_p95_ms is None:
        return ""
    bound = max(guard.latency_least_ms, guard.latency_factor * base.latency_p95_ms)
    if candidate.latency_p95_ms > bound:
        return (
            f"its slowest 5 % of {candidate.requests} requests took over {candidate.latency_p95_ms:.0f} ms,"
            f" those of the revision before {base.latency_p95_ms:.0f} ms"
        )
    return ""


def candidate_replicas(desired: int, percent: int) -> int:
    """How many of `desired` replicas a candidate needs for its share of requests: one at least."""
    if desired <= 0:
        return 0
    return max(1, math.ceil(desired * percent / PERCENT_ALL))


def replicas_by_revision(
    revision: int, desired: int, rollout: Rollout | None, note: RolloutNote | None
) -> dict[int, int]:
    """How many servers of which revision should run, the serving one first. `note` is the last known fact.

    The base is kept, and restarted if it ends, until the candidate has taken over and was watched.
    """
    if rollout is None or desired <= 0:
        return {revision: desired}
    phase = phase_of(revision, rollout, note)
    if phase in (RolloutPhase.PREPARING, RolloutPhase.ROLLED_BACK):
        return {rollout.base: desired}
    needed = candidate_replicas(desired, rollout.candidate_percent) if rollout.is_gradual else desired
    if phase is RolloutPhase.COMPLETE or rollout.is_in_place:
        return {revision: desired}
    return {rollout.base: desired, revision: needed}


def phase_of(revision: int, rollout: Rollout, note: RolloutNote | None) -> RolloutPhase:
    """How far this rollout has come; a note on another one says nothing about it."""
    if note is None or (note.base, note.candidate) != (rollout.base, revision):
        return RolloutPhase.PREPARING if rollout.is_in_place else RolloutPhase.STARTING
    return note.phase


def shares(
    revision: int, rollout: Rollout | None, note: RolloutNote | None, answering: frozenset[int]
) -> tuple[tuple[int, int], ...]:
    """The percentage of requests for each revision that gets any, by number; empty where nobody answers.

    `answering` are the revisions of which a server does. Who is meant to get requests and does not answer
    leaves its share to the other one.
    """
    if rollout is None:
        wished = {revision: PERCENT_ALL}
    else:
        phase = phase_of(revision, rollout, note)
        if phase is RolloutPhase.STARTING and rollout.is_in_place:
            answering &= {revision}  # the base has to go
        match phase:
            case RolloutPhase.PREPARING | RolloutPhase.STARTING | RolloutPhase.ROLLED_BACK:
                wished = {rollout.base: PERCENT_ALL}
            case RolloutPhase.SHIFTED:
                percent = rollout.candidate_percent
                wished = {rollout.base: PERCENT_ALL - percent, revision: percent}
            case RolloutPhase.COMPLETE:
                wished = {revision: PERCENT_ALL}
    found = {each: percent for each, percent in wished.items() if percent and each in answering}
    if not found:  # anybody is better than nobody: the wished one first, else the newest
        stand_in = revision if revision in answering else max(answering, default=None)
        return () if stand_in is None else ((stand_in, PERCENT_ALL),)
    if len(found) == 1:
        return ((next(iter(found)), PERCENT_ALL),)
    return tuple(sorted(found.items()))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %".replace(".0 %", " %")
