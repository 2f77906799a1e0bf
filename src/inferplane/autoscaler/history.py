"""What is remembered of an endpoint's traffic: a short row of samples, as a value.

A sample is one look at the gateway's counters. Samples may be missing (the gateway did not answer, the
control plane was away) and the counter may begin anew (another Envoy): both are seen here, so that a
decision can tell "no requests" from "nobody looked".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise

KEEP_SECONDS = 90.0
SAMPLES_MAX = 200
GAP_SECONDS_MAX = 10.0  # between two samples; beyond it something was missed


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. `requests` is a counter that only grows, unless it begins anew; `active` are in flight."""

    at: datetime
    requests: int = 0
    active: int = 0


@dataclass(frozen=True, slots=True)
class History:
    """Samples by time, oldest first; at most those of KEEP_SECONDS."""

    samples: tuple[Sample, ...] = ()

    def add(self, sample: Sample) -> History:
        """With one more sample. One that is not newer than the last (a clock set back) begins a new history."""
        if self.samples and sample.at <= self.samples[-1].at:
            return History((sample,))
        oldest = sample.at - timedelta(seconds=KEEP_SECONDS)
        kept = tuple(each for each in self.samples[-(SAMPLES_MAX - 1) :] if each.at >= oldest)
        return replace(self, samples=(*kept, sample))

    def since(self, moment: datetime) -> tuple[Sample, ...]:
        """The samples from `moment` on."""
        return tuple(sample for sample in self.samples if sample.at >= moment)

    def is_fresh(self, now: datetime) -> bool:
        """Whether the last look is recent enough to say anything of now."""
        return bool(self.samples) and (now - self.samples[-1].at).total_seconds() <= GAP_SECONDS_MAX

    def covers(self, window: timedelta, now: datetime) -> bool:
        """Whether somebody looked all through the last `window`, without a gap."""
        if not self.is_fresh(now):
            return False
        began = now - window
        before = [sample for sample in self.samples if sample.at <= began]
        looked = [began, *(each.at for each in self.since(began)), now] if before else []
        gap = timedelta(seconds=GAP_SECONDS_MAX)
        return bool(looked) and all(later - earlier <= gap for earlier, later in pairwise(looked))


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is known of an endpoint's traffic at this moment.

    `held` are requests that wait at the activator for a replica. `idle_since` is when the last request was
    over; None while there is one, and while nobody can tell.
    """

    history: History = History()
    held: int = 0
    idle_since: datetime | None = None


def rate_between(earlier: Sample, later: Sample) -> float:
    """Requests a second from one sample to the next. A counter that went back began anew at nothing."""
    moved = later.requests - earlier.requests
    seconds = (later.at - earlier.at).total_seconds()
    return (later.requests if moved < 0 else moved) / seconds if seconds > 0 else 0.0
