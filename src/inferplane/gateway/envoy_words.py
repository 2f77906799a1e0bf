"""Names, types and small pieces of Envoy's language that the translation shares. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from inferplane.gateway.config import Address, parse_address

TYPE = "type.googleapis.com/"
METADATA = "inferplane"

# Filters of the listener that a route configures.
LUA = "envoy.filters.http.lua"
JWT = "envoy.filters.http.jwt_authn"
RBAC = "envoy.filters.http.rbac"
RATE_LIMIT = "envoy.filters.http.local_ratelimit"
BUFFER = "envoy.filters.http.buffer"
ROUTER = "envoy.filters.http.router"

# Upstreams that belong to no endpoint.
XDS_UPSTREAM = "inferplane-control-plane"
API_UPSTREAM = "inferplane-api"
ACTIVATOR_UPSTREAM = "inferplane-activator"
NOBODY_UPSTREAM = "inferplane-nobody"
COLLECTOR_UPSTREAM = "inferplane-trace-collector"

KEY_REQUIREMENT = "endpoint-key"
KEY_CLAIMS = "key"

UPSTREAM_CONNECT_SECONDS = 2


class Kind(Enum):
    """What Envoy is told of, in the order in which it must hear of it; the value is the type's name."""

    UPSTREAM = TYPE + "envoy.config.cluster.v3.Cluster"
    LISTENER = TYPE + "envoy.config.listener.v3.Listener"
    ROUTES = TYPE + "envoy.config.route.v3.ScopedRouteConfiguration"


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing that Envoy is told. `content` is Envoy's message as JSON values; `version` its hash."""

    kind: Kind
    name: str
    version: str
    content: dict[str, Any] = field(compare=False, repr=False)


def resource(kind: Kind, content: dict[str, Any]) -> Resource:
    """A resource with the version that its content gives it."""
    # Content is always put together in the same order, so there is no need to sort it.
    version = hashlib.blake2b(msgspec.json.encode(content), digest_size=8).hexdigest()
    return Resource(kind, content["name"], version, content)


def typed(type_name: str, **fields: Any) -> dict[str, Any]:
    """A message that names its type."""
    return {"@type": TYPE + type_name, **fields}


def extension(name: str, type_name: str, **fields: Any) -> dict[str, Any]:
    """A named extension and how it is set."""
    return {"name": name, "typed_config": typed(type_name, **fields)}


def seconds(value: float) -> str:
    """A duration."""
    return f"{value:.3f}s"


def overwritten(name: str, value: str) -> dict[str, Any]:
    """A header that replaces one of the same name."""
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def envoy_address(address: Address) -> dict[str, Any]:
    """A unix socket, or a host and port."""
    if address.path:
        return {"pipe": {"path": address.path}}
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def target(text: str) -> dict[str, Any]:
    """One member of an upstream, by the address in our notation."""
    return {"endpoint": {"address": envoy_address(parse_address(text))}}


def upstream_protocol(idle_seconds: float, *, http2: bool = False, trailers: bool = False) -> dict[str, Any]:
    """HTTP/1.1 or HTTP/2 towards an upstream.

    `trailers`: HTTP/1.1 with what stands behind a body, of requests as well as of answers. Servers there are that
    take a request's trailers for headers, so never towards one that believes headers the gateway has set.
    """
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        name: typed(
            name,
            common_http_protocol_options={"idle_timeout": seconds(idle_seconds)},
            explicit_http_config={"http2_protocol_options": {}}
            if http2
            else {"http_protocol_options": {"enable_trailers": True} if trailers else {}},
        )
    }
