"""Who may send requests to an endpoint, and how many, as a caller wrote it → what it means. No I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from inferplane.domain.endpoint import TrafficLimits
from inferplane.domain.endpoint_access import Access
from inferplane.domain.errors import Invalid
from inferplane.services.findings import Findings

RATE_MIN = 0.001
RATE_MAX = 1_000_000.0
BURST_MAX = 1_000_000
CONCURRENCY_MAX = 100_000


@dataclass(frozen=True, slots=True)
class TrafficDraft:
    """What was asked for. None means not given, 0 takes a limit away."""

    access: str | None = None
    requests_per_second: float | None = None
    burst: int | None = None
    requests_per_second_per_key: float | None = None
    concurrency_max: int | None = None
    concurrency_max_per_key: int | None = None


def access_of(draft: TrafficDraft) -> Access | None:
    """What was asked for; None when nothing was. Raises Invalid."""
    return None if draft.access is None else parse_access(draft.access, "access")


def parse_access(text: str, field: str) -> Access:
    """`open` or `key`. Raises Invalid."""
    word = text.strip().lower()
    if word not in tuple(Access):
        raise Invalid(
            f"“{text[:40]}” is not a kind of access",
            reason="InvalidAccess",
            field=field,
            next_action="Use open (whoever reaches the gateway) or key (whoever has an endpoint key).",
        )
    return Access(word)


def limited(draft: TrafficDraft, base: TrafficLimits) -> TrafficLimits:
    """`base` with the rates and the concurrency that were asked for. Raises Invalid with every problem."""
    findings = Findings()
    wanted = replace(
        base,
        requests_per_second=findings.check(
            _bounded,
            draft.requests_per_second,
            base.requests_per_second,
            "requestsPerSecond",
            RATE_MIN,
            RATE_MAX,
        ),
        requests_per_second_per_key=findings.check(
            _bounded,
            draft.requests_per_second_per_key,
            base.requests_per_second_per_key,
            "requestsPerSecondPerKey",
            RATE_MIN,
            RATE_MAX,
        ),
        burst=_whole(findings.check(_bounded, draft.burst, base.burst, "burst", 1, BURST_MAX)),
        concurrency_max=_whole(
            findings.check(
                _bounded, draft.concurrency_max, base.concurrency_max, "concurrencyMax", 1, CONCURRENCY_MAX
            )
        ),
        concurrency_max_per_key=_whole(
            findings.check(
                _bounded,
                draft.concurrency_max_per_key,
                base.concurrency_max_per_key,
                "concurrencyMaxPerKey",
                1,
                CONCURRENCY_MAX,
            )
        ),
    )
    if wanted.concurrency_max is not None and wanted.concurrency_max_per_key is not None:
        findings.add(
            "limits.concurrencyMax and limits.concurrencyMaxPerKey cannot both be kept",
            field="limits.concurrencyMaxPerKey",
            reason="Contradiction",
            next_action="Give one of them, and 0 for one that is in force.",
        )
    findings.raise_any()
    return wanted


def with_rates_of(present: TrafficLimits, other: TrafficLimits) -> TrafficLimits:
    """`other` with the rates of `present`: a manifest has no words for them, so it leaves them alone."""
    return replace(present, max_request_bytes=other.max_request_bytes, timeout_seconds=other.timeout_seconds)


def without_effect(draft: TrafficDraft, access: Access, limits: TrafficLimits) -> list[str]:
    """What was asked for and changes nothing."""
    said = []
    rates = [limits.requests_per_second]
    if access is Access.KEY:
        rates.append(limits.requests_per_second_per_key)
    elif draft.requests_per_second_per_key:
        said.append("limits.requestsPerSecondPerKey has no effect, because access is open: there are no keys")
    if draft.concurrency_max_per_key and access is not Access.KEY:
        said.append("limits.concurrencyMaxPerKey has no effect, because access is open: there are no keys")
    if draft.burst and not any(rates):
        said.append("limits.burst has no effect, because there is no rate that it belongs to")
    return said


def _bounded(
    value: float | None, otherwise: float | None, name: str, lowest: float, highest: float
) -> float | None:
    if value is None:
        return otherwise
    if value == 0:
        return None
    if not math.isfinite(value) or not lowest <= value <= highest:
        raise Invalid(
            f"limits.{name} must be from {lowest:g} to {highest:g}, or 0 for no limit",
            reason="OutOfRange",
            field=f"limits.{name}",
        )
    return value


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
