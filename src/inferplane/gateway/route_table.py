"""The route table: which names and paths lead to which replicas, in no proxy's language.

Controllers say what should be routed; the publisher turns the whole table into the proxy's own
configuration. An Envoy "cluster" is called an *upstream* here, because a cluster is a Kubernetes
cluster. Plain values, standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Upstream:
    """One replica that may receive requests.

    `replica` is its name within the endpoint (`r<revision>-<index>`), `address` is `unix:<path>` or
    `<host>:<port>`, `weight` its share among the endpoint's upstreams (1 unless a canary says else).
    """

    replica: str
    address: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class EndpointRoutes:
    """How one endpoint is reached.

    `models` are the model names it answers to: the endpoint's own name first, then aliases.
    Without upstreams the gateway answers 503 with `unavailable_reason` (a public status word or
    reason code) as JSON and `Retry-After`.
    Limits: `max_request_bytes` → 413, `timeout_seconds` → 504, both as JSON.
    """

    uid: str
    workspace: str
    endpoint: str
    upstreams: tuple[Upstream, ...] = ()
    models: tuple[str, ...] = ()
    max_request_bytes: int = 16 * 1024 * 1024
    timeout_seconds: float = 60.0
    unavailable_reason: str = "Pending"

    def host(self, domain: str) -> str:
        """`<endpoint>.<workspace>.<domain>`."""
        return f"{self.endpoint}.{self.workspace}.{domain}"

    @property
    def path_prefix(self) -> str:
        """`/serving/<workspace>/<endpoint>`: needs no DNS."""
        return f"/serving/{self.workspace}/{self.endpoint}"


@dataclass(frozen=True, slots=True)
class RouteTable:
    """Everything the gateway should route, by endpoint uid."""

    endpoints: Mapping[str, EndpointRoutes] = field(default_factory=dict)
