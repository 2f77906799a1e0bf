"""The route table: which names and paths lead to which replicas, in no proxy's language.

Controllers say what should be routed; the publisher turns the whole table into the proxy's own
configuration. An Envoy "cluster" is called an *upstream* here, because a cluster is a Kubernetes
cluster. Plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inferplane.domain.endpoint_access import Access

__all__ = ["ENDPOINT_HEADER", "REVISION_HEADER", "Access", "EndpointRoutes", "RouteTable", "Upstream"]

REVISION_HEADER = "x-inferplane-revision"
ENDPOINT_HEADER = "x-inferplane-endpoint"


@dataclass(frozen=True, slots=True)
class Upstream:
    """One replica that may receive requests.

    `replica` is its name within the endpoint (`r<revision>-<index>`), `address` is `unix:<path>` or
    `<host>:<port>`, `weight` its share among the upstreams of its revision. `grpc_address` is where it
    speaks HTTP/2 for gRPC; empty: where it is, if that is a unix socket (our model servers speak both on
    one), else nowhere.
    """

    replica: str
    address: str
    weight: int = 1
    grpc_address: str = ""

    @property
    def revision(self) -> int:
        """The revision in the replica's name; 0 when the name tells none."""
        number = self.replica.removeprefix("r").partition("-")[0]
        return int(number) if number.isascii() and number.isdigit() else 0


@dataclass(frozen=True, slots=True)
class EndpointRoutes:
    """How one endpoint is reached.

    `models` are the model names it answers to: the endpoint's own name first, then aliases.
    Without upstreams the gateway answers 503 with `unavailable_reason` (a public status word or
    reason code) as JSON and `Retry-After`.
    Limits: `max_request_bytes` → 413, `timeout_seconds` → 504, both as JSON.

    Revisions: `shares` are (revision, percent); empty means that all upstreams of all revisions share
    evenly. A share of a revision without upstreams goes to the others. `mirror` is (revision, percent):
    so many requests are sent there as well, and what it answers is dropped. Requests with equal values of
    `sticky_header` go to the same revision, as long as the shares stay; `X-Inferplane-Revision: <n>`
    always selects one that has upstreams.
    `asleep`: requests go to the activator, which is told the uid in `x-inferplane-endpoint`; upstreams
    are ignored meanwhile.
    `access` KEY: only requests with `Authorization: Bearer <endpoint key>` (`gateway.endpoint_keys`), not
    those whose key's id is in `revoked_keys`: 401 without a valid key, 403 with one of another endpoint.
    Rates are requests a second over all connections; `burst` may come at once (default: one second's
    worth); 429 with `Retry-After` beyond. The rate per key needs access KEY; `key_rates` are
    (key id, rate) of keys with a rate of their own, which counts instead. `concurrency_max` requests
    are in flight at most, over all revisions; 429 beyond. `concurrency_max_per_key` of one key are in flight at
    most, at each revision; it needs access KEY, and `keys`, the ids of the keys that may come: others are
    counted together.
    `cluster` is "" unless the endpoint's name was taken on another cluster of the workspace when it was
    made: then it comes into the host and the path, so that both can be reached.
    `retriable`: processing a request twice does no harm, so one whose replica went away before it began to
    answer is sent to another. Without it, only a request that cannot have been processed is.
    """

    uid: str
    workspace: str
    endpoint: str
    upstreams: tuple[Upstream, ...] = ()
    models: tuple[str, ...] = ()
    max_request_bytes: int = 16 * 1024 * 1024
    timeout_seconds: float = 60.0
    unavailable_reason: str = "Pending"
    shares: tuple[tuple[int, int], ...] = ()
    mirror: tuple[int, int] | None = None
    sticky_header: str = ""
    asleep: bool = False
    access: Access = Access.OPEN
    revoked_keys: tuple[str, ...] = ()
    key_rates: tuple[tuple[str, float], ...] = ()
    requests_per_second: float | None = None
    burst: int | None = None
    requests_per_second_per_key: float | None = None
    concurrency_max: int | None = None
    concurrency_max_per_key: int | None = None
    keys: tuple[str, ...] = ()
    cluster: str = ""
    retriable: bool = False

    def host(self, domain: str) -> str:
        """`<endpoint>.<workspace>.<domain>`, or `<endpoint>.<workspace>.<cluster>.<domain>`."""
        cluster = f"{self.cluster}." if self.cluster else ""
        return f"{self.endpoint}.{self.workspace}.{cluster}{domain}"

    @property
    def path_prefix(self) -> str:
        """`/serving/<workspace>/<endpoint>` or `/serving/<workspace>/<endpoint>.<cluster>`: needs no DNS."""
        cluster = f".{self.cluster}" if self.cluster else ""
        return f"/serving/{self.workspace}/{self.endpoint}{cluster}"


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Everything the gateway should route, by endpoint uid."""

    endpoints: Mapping[str, EndpointRoutes] = field(default_factory=dict)
