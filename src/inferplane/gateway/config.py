"""What the gateway is told once, and where its files lie. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inferplane.domain.errors import Invalid

DOMAIN_DEFAULT = "localhost"
API_ADDRESS_DEFAULT = "127.0.0.1:7070"
WORKERS_DEFAULT = 2
HEAP_BYTES_MAX_DEFAULT = 2 * 1024**3
ACCESS_LOG_BYTES_MAX_DEFAULT = 64 * 1024**2
FORMER_SECONDS_DEFAULT = 60
KEY_UPSTREAMS_MAX_DEFAULT = 10_000
"""At 67 KB each, a third of the heap."""


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """How the gateway runs.

    `directory` holds its files and belongs to it alone. `port` 0 chooses a free port once and keeps
    it in the directory. `host` is an IP address or a name that resolves to one. `domain` ends every
    endpoint's host name. `api_address` (`host:port`) answers requests that carry credentials and
    match no endpoint. `workers` are Envoy's threads. Beyond `heap_bytes_max` Envoy sheds load.
    `activator_address` (`unix:<path>`) takes the requests of endpoints that are asleep; without it they
    are answered as having no replica. `key_set` is the public part of the key by which endpoint keys are
    signed, a JWK set as JSON (`gateway.endpoint_keys`); without it, access KEY lets nobody in.
    An Envoy that another one takes over from has `former_seconds` to finish what it has.
    Spans go to the collector at `otlp_endpoint` (`domain.traces`; "" for none); `trace_sample_percent` of the
    requests whose callers did not decide are traced.
    Where the requests of each key are counted, that takes upstreams; beyond `key_upstreams_max` of them, over all
    endpoints, an endpoint's keys are counted together.
    An access log that has grown beyond `access_log_bytes_max` is moved aside; one older one is kept.
    """

    directory: Path
    host: str = "127.0.0.1"
    port: int = 7080
    domain: str = DOMAIN_DEFAULT
    api_address: str = API_ADDRESS_DEFAULT
    workers: int = WORKERS_DEFAULT
    heap_bytes_max: int = HEAP_BYTES_MAX_DEFAULT
    activator_address: str = ""
    key_set: str = ""
    access_log_bytes_max: int = ACCESS_LOG_BYTES_MAX_DEFAULT
    former_seconds: int = FORMER_SECONDS_DEFAULT
    otlp_endpoint: str = ""
    trace_sample_percent: float = 100.0
    key_upstreams_max: int = KEY_UPSTREAMS_MAX_DEFAULT


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens: a unix socket (`path`), or `host` and `port`."""

    path: str = ""
    host: str = ""
    port: int = 0


def parse_address(text: str) -> Address:
    """`unix:<path>`, `<host>:<port>` or `[<IPv6>]:<port>`. Raises Invalid."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/"):
            raise Invalid(
                f"{text!r} is not an address: a unix socket needs an absolute path", field="address"
            )
        return Address(path=path)
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65535:
        raise Invalid(f"{text!r} is not an address: use unix:<path> or <host>:<port>", field="address")
    return Address(host=host, port=int(port))
