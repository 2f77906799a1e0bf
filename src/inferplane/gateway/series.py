"""What Envoy counted, by endpoint and revision: read from its Prometheus text, and told in ours. Pure.

Envoy counts by upstream, and an upstream's name says whose it is (`envoy.upstream_name`). Requests that
were answered by Envoy itself (a limit, a missing key) never reached an upstream and are not in here; they
are in the access log. Mirrored requests count for the revision that they were mirrored to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# What to ask Envoy for: everybody's counters, or those of one endpoint.
COUNTED = r"^cluster\.[^.]+/[^.]+\.upstream_rq_(total|active|[1-5]xx|time|active_overflow)$"
_COUNTED_OF = r"^cluster\.[^.]+/%s/[^.]+\.upstream_rq_(total|active|[1-5]xx|time|active_overflow)$"

_LINE = re.compile(r"envoy_cluster_upstream_rq_(\w+)\{([^}]*)\} (\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_MILLISECONDS = 1000.0


@dataclass(frozen=True, slots=True, order=True)
class Served:
    """One revision of one endpoint."""

    workspace: str
    endpoint: str
    uid: str
    revision: int


@dataclass(frozen=True, slots=True)
class Counters:
    """What was counted since Envoy started. All but `active` only grow, unless another Envoy begins anew.

    `classes` are answers by the first digit of their status. `seconds` is the sum of the times from
    sending a request to its last byte, `answered` how many those were, and `buckets` how many of them
    took at most so many seconds (upper bound, count), in order. `refused` are those that were more than may
    be in flight: Envoy counts each as a 503 of the upstream, although its client gets 429 and no server saw it.
    """

    requests: int = 0
    active: int = 0
    classes: Mapping[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    answered: int = 0
    buckets: tuple[tuple[float, int], ...] = ()
    refused: int = 0

    @property
    def failed(self) -> int:
        """Answers that say that the server is at fault."""
        return self.classes.get(5, 0)

    def since(self, earlier: Counters) -> Counters:
        """What came since then; everything of what began anew in between.

        Where an upstream is made anew (another limit), Envoy goes on counting its requests, and begins to
        count statuses and times from nothing: the two are told apart.
        """
        requests = self.requests - earlier.requests
        if requests < 0:  # another Envoy
            return self
        anew = earlier.answered > self.answered or any(
            count > self.classes.get(code, 0) for code, count in earlier.classes.items()
        )
        if anew:
            return replace(self, requests=requests, refused=max(self.refused - earlier.refused, 0))
        before = dict(earlier.buckets)
        return Counters(
            requests=requests,
            active=self.active,
            classes={code: count - earlier.classes.get(code, 0) for code, count in self.classes.items()},
            seconds=self.seconds - earlier.seconds,
            answered=self.answered - earlier.answered,
            buckets=tuple((bound, count - before.get(bound, 0)) for bound, count in self.buckets),
            refused=max(self.refused - earlier.refused, 0),
        )

    def plus(self, other: Counters) -> Counters:
        """Both together."""
        buckets = dict(self.buckets)
        for bound, count in other.buckets:
            buckets[bound] = buckets.get(bound, 0) + count
        return Counters(
            requests=self.requests + other.requests,
            active=self.active + other.active,
            classes={
                code: self.classes.get(code, 0) + other.classes.get(code, 0)
                for code in sorted({*self.classes, *other.classes})
            },
            seconds=self.seconds + other.seconds,
            answered=self.answered + other.answered,
            buckets=tuple(sorted(buckets.items())),
            refused=self.refused + other.refused,
        )

    def answers(self) -> Counters:
        """Only what a server is answerable for: without those that were refused."""
        failed = max(self.failed - self.refused, 0)
        classes = {code: count for code, count in self.classes.items() if code != 5}
        return replace(self, classes={**classes, **({5: failed} if failed else {})}, refused=0)

    def quantile_seconds(self, share: float) -> float | None:
        """The time within which this share of the answers came, interpolated; None without answers."""
        wanted = share * self.answered
        low, below = 0.0, 0
        for bound, count in self.buckets:
            if count >= wanted and count > below:
                return low + (bound - low) * (wanted - below) / (count - below)
            low, below = bound, count
        return low if self.answered else None


_NOTHING = Counters()


def counted(uid: str) -> str:
    """What to ask Envoy for to know one endpoint's counters; everybody's for ""."""
    return _COUNTED_OF % re.escape(uid) if uid else COUNTED


def by_upstream(text: str) -> dict[str, Counters]:
    """The counters of every upstream that is a revision's. What was never used may be missing."""
    found: dict[str, _Sum] = {}
    for metric, labelled, value in _LINE.findall(text):
        labels = dict(_LABEL.findall(labelled))
        upstream = labels.get("envoy_cluster_name", "")
        if _served(upstream) is None:
            continue
        one = found.setdefault(upstream, _Sum())
        try:
            one.add(metric, labels, float(value))
        except ValueError:  # not a number that means anything here
            continue
    return {upstream: one.counters() for upstream, one in found.items()}


def counters_of(text: str) -> dict[Served, Counters]:
    """Every revision's counters, over its upstreams. What was never used may be missing."""
    return Tally().add(by_upstream(text))


class Tally:
    """Counters of revisions that only grow while their upstreams come and go.

    A revision's upstreams change while it serves: one for each key where these are counted apart, one for
    all where they are not. A sum over those that are there falls when one goes, and would look like another
    Envoy that has counted all that is left since a moment ago. So what each upstream counted more is added
    up. An upstream that was not there at the last look counts from nothing, as Envoy does: it forgets what
    it takes away. A revision that has none left is forgotten.
    """

    def __init__(self) -> None:
        self._last: dict[str, Counters] = {}
        self._totals: dict[Served, Counters] = {}

    def add(self, present: Mapping[str, Counters], uid: str = "") -> dict[Served, Counters]:
        """The totals after a look at one endpoint, at everybody for "". Looks must come in order."""
        active: dict[Served, int] = {}
        for upstream, counters in present.items():
            served = _served(upstream)
            if served is None:
                continue
            came = counters.since(self._last.get(upstream, _NOTHING)).answers()
            self._totals[served] = self._totals.get(served, _NOTHING).plus(came)
            self._last[upstream] = counters
            active[served] = active.get(served, 0) + counters.active
        for upstream in self._last.keys() - present.keys():
            gone = _served(upstream)
            if gone is None or uid in ("", gone.uid):
                del self._last[upstream]
        for served in self._totals.keys() - active.keys():
            if uid in ("", served.uid):
                del self._totals[served]
        return {served: replace(self._totals[served], active=count) for served, count in active.items()}


def render(counters: Mapping[Served, Counters]) -> str:
    """Prometheus text, version 0.0.4."""
    lines: list[str] = []
    ordered = sorted(counters.items())
    requests = "inferplane_endpoint_requests_total"
    lines += [f"# HELP {requests} Answers of replicas, by class of status.", f"# TYPE {requests} counter"]
    for served, one in ordered:
        for code, count in sorted(one.classes.items()):
            lines.append(f'{requests}{{{_labels(served)},code="{code}xx"}} {count}')
    active = "inferplane_endpoint_requests_in_flight"
    lines += [f"# HELP {active} Requests that are with a replica now.", f"# TYPE {active} gauge"]
    lines += [f"{active}{{{_labels(served)}}} {one.active}" for served, one in ordered]
    time = "inferplane_endpoint_request_seconds"
    lines += [
        f"# HELP {time} From sending a request to a replica to the last byte of its answer.",
        f"# TYPE {time} histogram",
    ]
    for served, one in ordered:
        labels = _labels(served)
        lines += [f'{time}_bucket{{{labels},le="{bound:g}"}} {count}' for bound, count in one.buckets]
        lines.append(f'{time}_bucket{{{labels},le="+Inf"}} {one.answered}')
        lines += [f"{time}_sum{{{labels}}} {one.seconds:.6g}", f"{time}_count{{{labels}}} {one.answered}"]
    return "\n".join(lines) + "\n"


def _labels(served: Served) -> str:
    return f'workspace="{served.workspace}",endpoint="{served.endpoint}",revision="{served.revision}"'


def _served(upstream: str) -> Served | None:
    parts = upstream.split("/")
    if len(parts) not in (4, 5):  # the fifth is whose requests, where keys are counted apart
        return None
    number = parts[3].removeprefix("r").removesuffix("-grpc")
    return Served(parts[0], parts[1], parts[2], int(number)) if number.isdigit() else None


class _Sum:
    """Counters in the making."""

    def __init__(self) -> None:
        self.requests = self.active = self.answered = self.refused = 0
        self.classes: dict[int, int] = {}
        self.seconds = 0.0
        self.buckets: dict[float, int] = {}

    def add(self, metric: str, labels: Mapping[str, str], value: float) -> None:
        match metric:
            case "total":
                self.requests += int(value)
            case "active":
                self.active += int(value)
            case "xx":
                code = int(labels["envoy_response_code_class"])
                self.classes[code] = self.classes.get(code, 0) + int(value)
            case "active_overflow":
                self.refused += int(value)
            case "time_sum":
                self.seconds += value / _MILLISECONDS
            case "time_count":
                self.answered += int(value)
            case "time_bucket" if labels["le"] != "+Inf":
                bound = float(labels["le"]) / _MILLISECONDS
                self.buckets[bound] = self.buckets.get(bound, 0) + int(value)

    def counters(self) -> Counters:
        return Counters(
            self.requests,
            self.active,
            dict(sorted(self.classes.items())),
            self.seconds,
            self.answered,
            tuple(sorted(self.buckets.items())),
            self.refused,
        )
