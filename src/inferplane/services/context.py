"""What every verb works with: the store, the engines, the clock, and named limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from inferplane.domain.endpoint_access import Access
from inferplane.domain.gpu_request import Grant
from inferplane.engines.clusters import ClusterLinks, NoLinks
from inferplane.engines.port import Clock, Engine
from inferplane.gateway.history import TrafficHistory
from inferplane.scheduler import Switches
from inferplane.services.key_memory import KeyMemory
from inferplane.services.names import Names
from inferplane.services.questions import Questions
from inferplane.store.sql import Store

DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """Where predictions go. `advertised_host` is what a client connects to, `domain` what names end in.

    Where a `cluster` is asked for, it is the endpoint's `host_cluster`: "" for most.
    """

    scheme: str
    port: int
    domain: str
    advertised_host: str

    @property
    def port_suffix(self) -> str:
        """`:<port>`, or "" for the scheme's own port."""
        return "" if DEFAULT_PORTS.get(self.scheme) == self.port else f":{self.port}"

    def host_of(self, workspace: str, endpoint: str, cluster: str = "") -> str:
        """`<endpoint>.<workspace>.<domain>`, or `<endpoint>.<workspace>.<cluster>.<domain>`."""
        return ".".join(part for part in (endpoint, workspace, cluster, self.domain) if part)

    def url_of(self, workspace: str, endpoint: str, cluster: str = "") -> str:
        """Base URL by host name, without a trailing slash."""
        return f"{self.scheme}://{self.host_of(workspace, endpoint, cluster)}{self.port_suffix}"

    def address_url(self) -> str:
        """Base URL by address: needs no DNS."""
        host = f"[{self.advertised_host}]" if ":" in self.advertised_host else self.advertised_host
        return f"{self.scheme}://{host}{self.port_suffix}"

    def path_of(self, workspace: str, endpoint: str, cluster: str = "") -> str:
        """`/serving/<workspace>/<endpoint>`, or `/serving/<workspace>/<endpoint>.<cluster>`."""
        return f"/serving/{workspace}/{'.'.join(part for part in (endpoint, cluster) if part)}"

    def path_url_of(self, workspace: str, endpoint: str, cluster: str = "") -> str:
        """Base URL by path, without a trailing slash: needs no DNS."""
        return self.address_url() + self.path_of(workspace, endpoint, cluster)


@dataclass(frozen=True, slots=True)
class Limits:
    """Every bound that services keep. Sizes are bytes or items, as the name says."""

    request_bytes_max: int = 1024 * 1024
    request_seconds_max: float = 30.0
    manifest_bytes_max: int = 128 * 1024
    page_items_default: int = 500
    page_items_max: int = 1000
    gpu_requests_listed_max: int = 10_000
    questions_max: int = 8
    questions_per_workspace_max: int = 4
    question_seconds_max: float = 2.0
    question_line_seconds_max: float = 5.0
    templates_max: int = 1_000
    event_items_default: int = 200
    event_items_max: int = 1000
    log_lines_default: int = 200
    log_lines_max: int = 10_000
    endpoints_max: int = 10_000
    workspaces_max: int = 1_000
    api_keys_max: int = 10_000
    endpoint_keys_max: int = 1_000
    endpoint_key_endpoints_max: int = 100
    usage_items_max: int = 10_000
    watchers_max: int = 500
    text_characters_max: int = 256
    force_delete_wait_seconds: float = 30.0
    preflight_seconds_max: float = 15.0
    heartbeat_seconds: float = 15.0


@dataclass(frozen=True, slots=True)
class Platform:
    """Everything a verb may reach. `engines` is keyed by cluster name; `new_id(n)` gives n of a-z0-9.

    Engines come and go as clusters are registered and forgotten; `links` reaches those of Kubernetes.
    `names` asks DNS, None where nobody may.

    `scheduling` holds the switches that the admission controller runs with, so that estimates agree.
    `keys` holds API keys that were read a moment ago; whoever deletes a key tells it.
    `grant_measured` says whether anybody can tell if granted GPUs are used.
    `questions` answers how long GPUs would take. `default_access` is that of endpoints for which none is
    asked, `signing_key` (PEM) signs endpoint keys. `traffic` is what the gateway saw, None
    without one.
    """

    store: Store
    engines: Mapping[str, Engine]
    clock: Clock
    gateway: GatewayAddress
    new_id: Callable[[int], str]
    limits: Limits = field(default_factory=Limits)
    scheduling: Switches = Switches()
    grant_measured: Callable[[Grant], bool] = lambda _grant: False
    keys: KeyMemory = field(default_factory=KeyMemory)
    questions: Questions = field(default_factory=Questions)
    default_access: Access = Access.OPEN
    signing_key: str = field(default="", repr=False)
    traffic: TrafficHistory | None = None
    links: ClusterLinks = field(default_factory=NoLinks)
    names: Names | None = None
