"""Counters of one model server, kept as plain numbers and rendered as Prometheus text on demand.

prometheus_client's locks and label lookups cost more than the rest of a small request, and one
process with one event loop needs none of them: every counter here is touched by the loop's thread
only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inferplane.modelserver.batcher import Batch

#: Seconds.
LATENCY_BUCKETS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
#: Rows.
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
PREFIX = "inferplane_model"


class Histogram:
    """Counts in buckets of rising upper bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def render(self, name: str, labels: str) -> Iterator[str]:
        """The lines of one histogram; `labels` is `key="value"` text without braces."""
        total = 0
        comma = "," if labels else ""
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels}{comma}le="{bound}"}} {total}'
        braces = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braces} {self._sum:.9g}"
        yield f"{name}_count{braces} {total}"


class Metrics:
    """Everything one server counts."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, int], int] = {}
        self._tokens: dict[str, int] = {}
        self._first_token = Histogram(LATENCY_BUCKETS)
        self._latency: dict[str, Histogram] = {}
        self._batch_rows = Histogram(BATCH_BUCKETS)
        self._batch_requests = Histogram(BATCH_BUCKETS)
        self._queue = Histogram(LATENCY_BUCKETS)
        self._compute = Histogram(LATENCY_BUCKETS)
        self._rows = 0
        self._late = 0
        self.load_seconds = 0.0

    def on_request(self, protocol: str, code: int, seconds: float) -> None:
        """Count one answered prediction request of `protocol` (v1 or v2)."""
        key = (protocol, code)
        self._requests[key] = self._requests.get(key, 0) + 1
        histogram = self._latency.get(protocol)
        if histogram is None:
            histogram = self._latency[protocol] = Histogram(LATENCY_BUCKETS)
        histogram.observe(seconds)

    def on_batch(self, batch: Batch) -> None:
        """Count one call of the model."""
        self._batch_requests.observe(batch.requests)
        self._batch_rows.observe(batch.rows)
        self._compute.observe(batch.compute_seconds)
        self._rows += batch.rows
        for wait in batch.waits:
            self._queue.observe(wait)

    def on_late(self) -> None:
        """Count one request whose caller stopped waiting before it was computed."""
        self._late += 1

    def on_tokens(self, prompt: int, answer: int) -> None:
        """Count the tokens of one request to a text model."""
        self._tokens["prompt"] = self._tokens.get("prompt", 0) + prompt
        self._tokens["answer"] = self._tokens.get("answer", 0) + answer

    def on_first_token(self, seconds: float) -> None:
        """Count how long one caller waited for the first token."""
        self._first_token.observe(seconds)

    def render(self, model: str, *, ready: bool, in_flight: int, queued_rows: int) -> str:
        """Prometheus text, version 0.0.4."""
        lines: list[str] = []
        name = f"{PREFIX}_requests_total"
        lines += _header(name, "counter", "Prediction requests answered, by protocol and HTTP status.")
        for (protocol, code), count in sorted(self._requests.items()):
            lines.append(f'{name}{{model="{model}",protocol="{protocol}",code="{code}"}} {count}')
        name = f"{PREFIX}_request_seconds"
        lines += _header(name, "histogram", "Time from a request's first byte to its answer.")
        for protocol, histogram in sorted(self._latency.items()):
            lines += histogram.render(name, f'model="{model}",protocol="{protocol}"')
        for name, count, text in (
            (f"{PREFIX}_rows_total", self._rows, "Rows computed."),
            (f"{PREFIX}_expired_requests_total", self._late, "Requests not computed: their time was over."),
        ):
            lines += _header(name, "counter", text)
            lines.append(f'{name}{{model="{model}"}} {count}')
        for name, seconds, text in (
            (f"{PREFIX}_queue_seconds", self._queue, "Time a request waited for the model to be free."),
            (f"{PREFIX}_compute_seconds", self._compute, "Time of one call of the model."),
        ):
            lines += _header(name, "histogram", text)
            lines += seconds.render(name, f'model="{model}"')
        if self._tokens:
            name = f"{PREFIX}_tokens_total"
            lines += _header(name, "counter", "Tokens read in prompts and texts, and written in answers.")
            for kind, count in sorted(self._tokens.items()):
                lines.append(f'{name}{{model="{model}",kind="{kind}"}} {count}')
            name = f"{PREFIX}_first_token_seconds"
            lines += _header(
                name, "histogram", "Time from a request's first byte to its answer's first token."
            )
            lines += self._first_token.render(name, f'model="{model}"')
        name = f"{PREFIX}_batch_rows"
        lines += _header(name, "histogram", "Rows in one call of the model.")
        lines += self._batch_rows.render(name, f'model="{model}"')
        name = f"{PREFIX}_batch_requests"
        lines += _header(name, "histogram", "Requests joined in one call of the model.")
        lines += self._batch_requests.render(name, f'model="{model}"')
        for gauge, value, text in (
            ("queue_rows", queued_rows, "Rows waiting behind the batch being computed."),
            ("in_flight_requests", in_flight, "Requests being answered."),
            (
                "load_seconds",
                f"{self.load_seconds:.6g}",
                "Time it took to load the model and get a first answer.",
            ),
            ("ready", int(ready), "1 when the model answers and the server is not draining."),
        ):
            lines += _header(f"{PREFIX}_{gauge}", "gauge", text)
            lines.append(f'{PREFIX}_{gauge}{{model="{model}"}} {value}')
        return "\n".join(lines) + "\n"


def _header(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"
