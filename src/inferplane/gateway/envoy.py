"""From the route table to Envoy's own configuration, and back. Pure: values in, values out.

Envoy watches three files and takes each up as soon as it is renamed into place:

    listener.json    one listener                      changes with the program only
    upstreams.json   the replicas of each endpoint     changes when replicas come and go
    routes.json      one virtual host per endpoint,    changes with endpoints, limits and reasons
                     and one for everything else

Three, and not a file per endpoint: Envoy opens an inotify instance for every watched file, a user has
128 of them by default, and Envoy aborts when there is none left.

An endpoint without replicas keeps its routes: Envoy finds no replica and answers 503, to which the
sentence and the reason are added from the route's metadata. All of Envoy's own answers become JSON
in this way (`_local_replies`), so that limits and names stand in one place, the route.

Envoy refuses a file as a whole, so nothing that it would refuse may get in: an address that means
nothing to it counts as no replica, and numbers are brought into its ranges.

The files carry everything that is in a route table, so that a new control plane can read back what a
running Envoy was told by the old one (`table_from_files`).
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from inferplane.domain.errors import Invalid
from inferplane.domain.reasons import ReasonCode
from inferplane.gateway.config import Address, GatewayConfig, parse_address
from inferplane.gateway.route_table import EndpointRoutes, RouteTable, Upstream
from inferplane.private_folders import SOCKET_PATH_BYTES_MAX

LISTENER_FILE = "listener.json"
UPSTREAMS_FILE = "upstreams.json"
ROUTES_FILE = "routes.json"

LISTENER = "gateway"
ROUTES = "routes"
API_UPSTREAM = "inferplane-api"
UNMATCHED_PATH = "/api/v1/gateway/unmatched"
NOT_PROCESSED_HEADER = "x-inferplane-not-processed"
METADATA = "inferplane"

# An idle connection to a replica is closed by us, well before the server would do it (75 s): a server
# that closes just as a request is sent leaves us not knowing whether it was processed.
UPSTREAM_IDLE_SECONDS = 30
UPSTREAM_CONNECT_SECONDS = 2
RETRIES_MAX = 3
RETRY_FIRST_SECONDS = 0.01
RETRY_LAST_SECONDS = 0.1
RETRY_BUDGET_PERCENT = 25
RETRY_CONCURRENCY_MIN = 10
IN_FLIGHT_MAX = 4096
EJECT_AFTER_FAILURES = 3
EJECT_FIRST_SECONDS = 1
EJECT_LAST_SECONDS = 10
RETRY_AFTER_SECONDS = 1
NOT_READY_RETRY_AFTER_SECONDS = 2

REQUEST_HEADERS_SECONDS = 15
REQUEST_UPLOAD_SECONDS = 600
STREAM_IDLE_SECONDS = 300
STREAM_IDLE_SLACK_SECONDS = 60
CONNECTION_IDLE_SECONDS = 600
CONNECTIONS_MAX = 20_000
HTTP2_STREAMS_MAX = 128
CONNECTION_BUFFER_BYTES = 1024 * 1024
UNMATCHED_TIMEOUT_SECONDS = 10
# So much of a body that is refused anyway is taken in, so that the refusal is read.
REFUSED_BODY_BYTES_MAX = 64 * 1024 * 1024

WEIGHT_MAX = 1_000_000
BODY_BYTES_MAX = 2**32 - 1
TIMEOUT_SECONDS_MIN = 0.001
TIMEOUT_SECONDS_MAX = 7 * 24 * 3600.0

_STATISTICS = {
    LISTENER_FILE: "listener_manager.lds.version_text",
    UPSTREAMS_FILE: "cluster_manager.cds.version_text",
    ROUTES_FILE: f"http.{LISTENER}.rds.{ROUTES}.version_text",
}
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?")
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")
_TYPE = "type.googleapis.com/"
_BUFFER = "envoy.filters.http.buffer"
_ROUTER = "envoy.filters.http.router"


@dataclass(frozen=True, slots=True)
class Resource:
    """One file for Envoy to watch: its text, its version, and the statistic in which Envoy confirms it.

    `parts` are the resources in it, as JSON by name.
    """

    text: str
    version: str
    statistic: str
    parts: Mapping[str, str]


def bootstrap_config(config: GatewayConfig, *, files: str, admin_socket: str) -> dict[str, Any]:
    """The part of the configuration that needs a restart to change.

    `files` is the folder that Envoy watches, `admin_socket` the unix socket of its admin interface;
    there is no other way to reach it.
    """
    return {
        "node": {"id": "inferplane-gateway", "cluster": "inferplane"},
        "admin": {"address": {"pipe": {"path": admin_socket, "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": _watched(f"{files}/{LISTENER_FILE}"),
            "cds_config": _watched(f"{files}/{UPSTREAMS_FILE}"),
        },
        "overload_manager": {
            "refresh_interval": "0.25s",
            "resource_monitors": [
                _extension(
                    "envoy.resource_monitors.fixed_heap",
                    "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    max_heap_size_bytes=config.heap_bytes_max,
                ),
                _extension(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=CONNECTIONS_MAX,
                ),
            ],
            "actions": [
                _above("envoy.overload_actions.shrink_heap", 0.9),
                _above("envoy.overload_actions.stop_accepting_requests", 0.98),
            ],
        },
    }


class Renderer:
    """Turns route tables into files. Remembers the pieces of the last table, and nothing else.

    Of hundreds of endpoints one changes at a time; the others' pieces are used again.
    """

    def __init__(self, config: GatewayConfig, *, files: str) -> None:
        self._config = config
        self._listener = {LISTENER: _json(_listener(config, files))}
        self._api = _json(_api_upstream(config))
        self._unmatched = [_json(route) for route in _unmatched_routes()]
        self._pieces: dict[EndpointRoutes, _Pieces] = {}

    def resources(self, table: RouteTable) -> dict[str, Resource]:
        """Every file that Envoy watches, by its name."""
        served = routable(table, self._config.domain)
        known = self._pieces
        self._pieces = {routes: known.get(routes) or _pieces(routes, self._config) for routes in served}
        pieces = self._pieces.values()
        everything_else = _json(
            {
                "name": "everything-else",
                "domains": ["*"],
                "retry_policy": _retry_policy(),
                "routes": [
                    *(_Json(route) for piece in pieces for route in piece.path_routes),
                    *map(_Json, self._unmatched),
                ],
            }
        )
        routes = _json(
            {
                "@type": _TYPE + "envoy.config.route.v3.RouteConfiguration",
                "name": ROUTES,
                # Any port will do: clients come through port mappings and tunnels that we cannot know.
                "ignore_port_in_host_matching": True,
                "virtual_hosts": [*(_Json(piece.host) for piece in pieces), _Json(everything_else)],
            }
        )
        upstreams = {API_UPSTREAM: self._api} | {piece.name: piece.upstream for piece in pieces}
        return {
            LISTENER_FILE: _resource(LISTENER_FILE, self._listener),
            UPSTREAMS_FILE: _resource(UPSTREAMS_FILE, upstreams),
            ROUTES_FILE: _resource(ROUTES_FILE, {ROUTES: routes}),
        }


@dataclass(frozen=True, slots=True)
class _Pieces:
    """What one endpoint adds to the files, as JSON."""

    name: str
    upstream: str
    host: str
    path_routes: tuple[str, ...]


def _pieces(routes: EndpointRoutes, config: GatewayConfig) -> _Pieces:
    return _Pieces(
        name=upstream_name(routes),
        upstream=_json(_upstream(routes)),
        host=_json(_endpoint_host(routes, config)),
        path_routes=tuple(_json(route) for route in _path_routes(routes)),
    )


def routable(table: RouteTable, domain: str) -> tuple[EndpointRoutes, ...]:
    """The endpoints that get routes, in order of workspace, name, uid.

    Of several with one host name (names of endpoints that were made before clusters became a part of
    them), one is served: the first that has replicas, else the first by uid. Envoy would refuse them all
    together, as it would for a name that is no label of a host name; those are left out.
    """
    by_host: dict[str, EndpointRoutes] = {}
    order = sorted(table.endpoints.values(), key=lambda r: (not r.upstreams, r.uid))
    for routes in order:
        labels = (routes.workspace, routes.endpoint, routes.cluster or routes.endpoint)
        if all(_LABEL.fullmatch(label) for label in labels):
            by_host.setdefault(routes.host(domain).lower(), routes)
    return tuple(sorted(by_host.values(), key=lambda r: (r.workspace, r.endpoint, r.uid)))


def upstream_name(routes: EndpointRoutes) -> str:
    """What Envoy calls the endpoint's replicas. The uid keeps it unique, the rest is for people."""
    return f"{routes.workspace}/{routes.endpoint}/{routes.uid}"


def resource_from_text(name: str, text: str) -> Resource | None:
    """A file as it was read back; None when it is no file of ours."""
    try:
        content = json.loads(text)
        version = content["version_info"]
        parts = {part["name"]: _json(part) for part in content["resources"]}
    except (ValueError, LookupError, TypeError):
        return None
    return Resource(text, version, _STATISTICS[name], parts) if isinstance(version, str) else None


def table_from_files(files: Mapping[str, Resource]) -> RouteTable:
    """The route table that these files were made from, as far as Envoy was told of it.

    What cannot be read as ours counts as absent: it is about to be written anew.
    """
    replicas: dict[str, tuple[Upstream, ...]] = {}
    for upstream in _parts(files, UPSTREAMS_FILE):
        with contextlib.suppress(LookupError, TypeError, ValueError):
            replicas[upstream["name"]] = _upstreams_of(upstream["load_assignment"])
    hosts: list[Any] = []
    for configuration in _parts(files, ROUTES_FILE):
        with contextlib.suppress(LookupError, TypeError):
            hosts += configuration["virtual_hosts"]
    table: dict[str, EndpointRoutes] = {}
    for host in hosts:
        try:
            facts = host["metadata"]["filter_metadata"][METADATA]
            routes = EndpointRoutes(
                uid=facts["uid"],
                workspace=facts["workspace"],
                endpoint=facts["endpoint"],
                models=tuple(facts["models"]),
                max_request_bytes=facts["max_request_bytes"],
                timeout_seconds=facts["timeout_seconds"],
                unavailable_reason=facts["reason"],
                cluster=facts.get("cluster", ""),  # absent in files of versions that knew none
            )
        except (LookupError, TypeError):  # the catch-all host, or another version's idea of a host
            continue
        table[routes.uid] = replace(routes, upstreams=replicas.get(upstream_name(routes), ()))
    return RouteTable(table)


# --- in which order ---------------------------------------------------------------------------------


def stages(
    written: Mapping[str, Resource], wanted: Mapping[str, Resource]
) -> tuple[Mapping[str, Resource], ...]:
    """How to get from what is `written` to what is `wanted` (by file name), step by step.

    The files of a step are written together; before the next one, Envoy must have taken them up.
    Upstreams come before the routes that lead to them and go after them, so that at no moment a
    request meets a route to nowhere. A change to the replicas of known upstreams needs no order.
    """
    changed = {
        name: new for name, new in wanted.items() if name not in written or written[name].text != new.text
    }
    before = written[UPSTREAMS_FILE].parts if UPSTREAMS_FILE in written else {}
    after = wanted[UPSTREAMS_FILE].parts
    leaving = {name: part for name, part in before.items() if name not in after}
    arriving = after.keys() - before.keys()

    first, second, last = dict(changed), {}, {}
    if leaving:
        first[UPSTREAMS_FILE] = _resource(UPSTREAMS_FILE, {**after, **leaving})
        last = {UPSTREAMS_FILE: wanted[UPSTREAMS_FILE]}
        if first[UPSTREAMS_FILE].text == written[UPSTREAMS_FILE].text:
            del first[UPSTREAMS_FILE]
    if arriving and ROUTES_FILE in first:
        second = {ROUTES_FILE: first.pop(ROUTES_FILE)}
    return tuple(step for step in (first, second, last) if step)


def _parts(files: Mapping[str, Resource], name: str) -> list[Any]:
    return [json.loads(part) for part in files[name].parts.values()] if name in files else []


# --- listener ---------------------------------------------------------------------------------------


def _listener(config: GatewayConfig, files: str) -> dict[str, Any]:
    manager = {
        "@type": _TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": LISTENER,
        "codec_type": "AUTO",
        "server_name": "inferplane",
        # The first proxy a client meets: x-envoy-* request headers from outside are dropped, so that
        # nobody can ask for a retry that may process a request twice.
        "use_remote_address": True,
        # With no range at all, Envoy would trust private addresses and loopback, so one that no client has.
        "internal_address_config": {
            "cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}],
        },
        "normalize_path": True,
        "merge_slashes": True,
        "strip_trailing_host_dot": True,
        "common_http_protocol_options": {"idle_timeout": f"{CONNECTION_IDLE_SECONDS}s"},
        "http2_protocol_options": {"max_concurrent_streams": HTTP2_STREAMS_MAX},
        "request_headers_timeout": f"{REQUEST_HEADERS_SECONDS}s",
        "request_timeout": f"{REQUEST_UPLOAD_SECONDS}s",
        "stream_idle_timeout": f"{STREAM_IDLE_SECONDS}s",
        "rds": {"route_config_name": ROUTES, "config_source": _watched(f"{files}/{ROUTES_FILE}")},
        "local_reply_config": _local_replies(),
        "http_filters": [
            # Off unless a route says how much it takes: then the whole body is held before a replica
            # sees the request. Answers are never held.
            {
                **_extension(_BUFFER, "envoy.extensions.filters.http.buffer.v3.Buffer", max_request_bytes=1),
                "disabled": True,
            },
            _extension(_ROUTER, "envoy.extensions.filters.http.router.v3.Router"),
        ],
    }
    return {
        "@type": _TYPE + "envoy.config.listener.v3.Listener",
        "name": LISTENER,
        "address": _socket_address(Address(host=config.host, port=config.port)),
        # One listening socket: a second program on the port is refused by the kernel instead of
        # silently sharing it. Connections are then spread over the workers by Envoy.
        "enable_reuse_port": False,
        "connection_balance_config": {"exact_balance": {}},
        "per_connection_buffer_limit_bytes": CONNECTION_BUFFER_BYTES,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _local_replies() -> dict[str, Any]:
    """What Envoy says itself, as JSON. The first mapper that matches decides."""
    subject = _fact("subject")
    return {
        "mappers": [
            _reply(
                _flagged("UH", "NC"),
                f"{subject} is not ready: {_fact('reason')}",
                _fact("reason"),
                status=503,
                retry_after=NOT_READY_RETRY_AFTER_SECONDS,
            ),
            _reply(
                _both(_flagged("UT", "SI", "DT"), _status_is(504)),
                f"no answer within {_fact('seconds_max')} seconds, the limit of {subject}",
                "RequestTimeout",
                number=("timeoutSeconds", _fact("seconds_max")),
            ),
            _reply(
                _flagged("UO"),
                f"{subject} has too many requests in flight",
                "Overloaded",
                status=503,
                retry_after=RETRY_AFTER_SECONDS,
            ),
            # Sent, and no answer: whether it was processed is not known, so neither we nor a client
            # should send it again blindly. 502 tells this apart from 503.
            _reply(
                _flagged("UC", "UR", "UPE", "LR"),
                f"the replica of {subject} that took the request went away before it answered",
                "ReplicaWentAway",
                status=502,
            ),
            _reply(
                _flagged("UF"),
                f"{subject} cannot be reached at the moment",
                "Unreachable",
                status=503,
                retry_after=RETRY_AFTER_SECONDS,
            ),
            _reply(
                _status_is(413),
                f"the request body is larger than {_fact('bytes_max')} bytes, the limit of {subject}",
                "RequestTooLarge",
                number=("maxRequestBytes", _fact("bytes_max")),
            ),
            _reply(_status_is(408), "the request did not arrive in time", "RequestTimeout"),
            _reply(_status_is(431), "the request's headers are too large", "HeadersTooLarge"),
            _reply(_flagged("DPE"), "the request is not valid HTTP: %RESPONSE_CODE_DETAILS%", "NotHttp"),
        ],
        "body_format": {
            "json_format": {"error": "%LOCAL_REPLY_BODY%", "reason": _fact("reason")},
            "omit_empty_values": True,
        },
    }


def _reply(
    when: dict[str, Any],
    error: str,
    reason: str,
    *,
    number: tuple[str, str] = ("", ""),
    status: int | None = None,
    retry_after: int | None = None,
) -> dict[str, Any]:
    """A body in the shape of every error: `error`, `reason`, and a number if one explains it."""
    body = {"error": error, "reason": reason}
    mapper: dict[str, Any] = {"filter": when}
    if number[0]:
        # As text: Envoy writes numbers with six digits, and a limit of 16777216 would be 1.67772e+07.
        text = f'{json.dumps(body)[:-1]}, "{number[0]}": {number[1]}}}\n'
        mapper["body_format_override"] = {
            "text_format_source": {"inline_string": text},
            "content_type": "application/json",
        }
    else:
        mapper["body_format_override"] = {"json_format": body}
    if status is not None:
        mapper["status_code"] = status
    if retry_after is not None:
        mapper["headers_to_add"] = [_overwritten("retry-after", str(retry_after))]
    return mapper


def _flagged(*flags: str) -> dict[str, Any]:
    return {"response_flag_filter": {"flags": list(flags)}}


def _both(*filters: dict[str, Any]) -> dict[str, Any]:
    return {"and_filter": {"filters": list(filters)}}


def _status_is(status: int) -> dict[str, Any]:
    return {
        "status_code_filter": {
            "comparison": {"op": "EQ", "value": {"default_value": status, "runtime_key": "unused"}}
        }
    }


def _fact(name: str) -> str:
    return f"%METADATA(ROUTE:{METADATA}:{name})%"


# --- routes -----------------------------------------------------------------------------------------


def _endpoint_host(routes: EndpointRoutes, config: GatewayConfig) -> dict[str, Any]:
    return {
        "name": upstream_name(routes),
        "domains": [routes.host(config.domain)],
        "metadata": {"filter_metadata": {METADATA: _facts(routes)}},
        "retry_policy": _retry_policy(),
        "routes": [
            _too_large(routes, {"prefix": "/"}),
            _route(routes, {"prefix": "/v1/model/"}, {"prefix_rewrite": "/v1/models/"}),
            _route(routes, {"prefix": "/"}, {}),
        ],
    }


def _path_routes(routes: EndpointRoutes) -> list[dict[str, Any]]:
    prefix = routes.path_prefix
    return [
        _too_large(routes, {"path_separated_prefix": prefix}),
        _route(routes, {"prefix": f"{prefix}/v1/model/"}, {"prefix_rewrite": "/v1/models/"}),
        _route(
            routes,
            {"path_separated_prefix": prefix},
            {"regex_rewrite": {"pattern": {"regex": f"^{re.escape(prefix)}/?"}, "substitution": "/"}},
        ),
    ]


def _route(routes: EndpointRoutes, match: dict[str, Any], rewrite: dict[str, Any]) -> dict[str, Any]:
    timeout = _timeout_seconds(routes)
    action: dict[str, Any] = {"cluster": upstream_name(routes), "timeout": _seconds(timeout), **rewrite}
    if timeout + STREAM_IDLE_SLACK_SECONDS > STREAM_IDLE_SECONDS:
        action["idle_timeout"] = _seconds(timeout + STREAM_IDLE_SLACK_SECONDS)
    return {
        "match": match,
        "route": action,
        "metadata": {"filter_metadata": {METADATA: _words(routes)}},
        "typed_per_filter_config": _holding(_body_bytes_max(routes)),
    }


def _too_large(routes: EndpointRoutes, match: dict[str, Any]) -> dict[str, Any]:
    """Refuse a body that says it is too large, but only once it is here.

    Refused half-way, Envoy stops to read and soon closes the connection, upon which clients that send
    everything before they look for an answer lose the answer. So a body that is not absurd is taken in.
    """
    content_length = {
        "name": "content-length",
        "range_match": {
            "start": _body_bytes_max(routes) + 1,
            "end": max(REFUSED_BODY_BYTES_MAX, _body_bytes_max(routes)) + 1,
        },
    }
    return {
        "match": {**match, "headers": [content_length]},
        "direct_response": {"status": 413},
        "metadata": {"filter_metadata": {METADATA: _words(routes)}},
        "typed_per_filter_config": _holding(REFUSED_BODY_BYTES_MAX),
    }


def _holding(body_bytes_max: int) -> dict[str, Any]:
    """Hold the body until it is whole, up to so many bytes."""
    return {
        _BUFFER: {
            "@type": _TYPE + "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
            "buffer": {"max_request_bytes": body_bytes_max},
        }
    }


def _words(routes: EndpointRoutes) -> dict[str, str]:
    """What the gateway's own answers are made of."""
    return {
        "subject": f"endpoint {routes.endpoint} in workspace {routes.workspace}"
        + (f" on cluster {routes.cluster}" if routes.cluster else ""),
        "reason": _reason(routes),
        "bytes_max": str(_body_bytes_max(routes)),
        "seconds_max": f"{_timeout_seconds(routes):.10g}",
    }


def _body_bytes_max(routes: EndpointRoutes) -> int:
    return min(max(routes.max_request_bytes, 1), BODY_BYTES_MAX)


def _timeout_seconds(routes: EndpointRoutes) -> float:
    return min(max(routes.timeout_seconds, TIMEOUT_SECONDS_MIN), TIMEOUT_SECONDS_MAX)


def _facts(routes: EndpointRoutes) -> dict[str, Any]:
    return {
        "uid": routes.uid,
        "workspace": routes.workspace,
        "endpoint": routes.endpoint,
        "models": list(routes.models),
        "max_request_bytes": routes.max_request_bytes,
        "timeout_seconds": routes.timeout_seconds,
        "reason": _reason(routes),
        **({"cluster": routes.cluster} if routes.cluster else {}),
    }


def _reason(routes: EndpointRoutes) -> str:
    """What a 503 says when there is no replica."""
    return routes.unavailable_reason or ReasonCode.ROUTE_NOT_READY.value


def _unmatched_routes() -> list[dict[str, Any]]:
    words = {
        "subject": "the API, which knows what this key may see,",
        "reason": "Unreachable",
        "bytes_max": str(REFUSED_BODY_BYTES_MAX),
        "seconds_max": str(UNMATCHED_TIMEOUT_SECONDS),
    }
    return [
        {
            "match": {
                "prefix": "/",
                "headers": [{"name": "authorization", "present_match": True}],
            },
            "route": {
                "cluster": API_UPSTREAM,
                "timeout": f"{UNMATCHED_TIMEOUT_SECONDS}s",
                "regex_rewrite": {"pattern": {"regex": "^/.*"}, "substitution": UNMATCHED_PATH},
            },
            "request_headers_to_add": [
                _overwritten("x-inferplane-original-host", "%REQ(:AUTHORITY)%"),
                _overwritten("x-inferplane-original-path", "%REQ(:PATH)%"),
            ],
            "metadata": {"filter_metadata": {METADATA: words}},
            "typed_per_filter_config": _holding(REFUSED_BODY_BYTES_MAX),
        },
        {
            "match": {"prefix": "/"},
            "direct_response": {
                "status": 404,
                "body": {"inline_string": "no endpoint is served at this host and path"},
            },
            "metadata": {
                "filter_metadata": {METADATA: {**words, "subject": "a refusal", "reason": "NotFound"}}
            },
            "typed_per_filter_config": _holding(REFUSED_BODY_BYTES_MAX),
        },
    ]


def _overwritten(name: str, value: str) -> dict[str, Any]:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _retry_policy() -> dict[str, Any]:
    """Again, elsewhere, and only where no replica can have begun to process the request."""
    return {
        "retry_on": "connect-failure,refused-stream,reset-before-request,retriable-headers",
        "retriable_headers": [{"name": NOT_PROCESSED_HEADER, "present_match": True}],
        "num_retries": RETRIES_MAX,
        "retry_host_predicate": [
            _extension(
                "envoy.retry_host_predicates.previous_hosts",
                "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            )
        ],
        "host_selection_retry_max_attempts": 5,
        "retry_back_off": {
            "base_interval": _seconds(RETRY_FIRST_SECONDS),
            "max_interval": _seconds(RETRY_LAST_SECONDS),
        },
    }


# --- upstreams --------------------------------------------------------------------------------------


def _upstream(routes: EndpointRoutes) -> dict[str, Any]:
    replicas = [
        {
            "endpoint": {"address": _envoy_address(parse_address(upstream.address))},
            "load_balancing_weight": upstream.weight,
            "metadata": {"filter_metadata": {METADATA: {"replica": upstream.replica}}},
        }
        for upstream in _sendable(routes)
    ]
    upstream = _cluster(upstream_name(routes), replicas, names=_has_names(routes))
    if len(replicas) < 2:
        return upstream  # nothing to choose, and nothing that could be left out
    upstream["load_balancing_policy"] = {
        "policies": [
            {
                "typed_extension_config": _extension(
                    "envoy.load_balancing_policies.least_request",
                    "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
                    selection_method="FULL_SCAN",
                )
            }
        ]
    }
    # Only when every replica is left out, all are tried.
    upstream["common_lb_config"] = {"healthy_panic_threshold": {"value": 1}}
    # A replica that cannot be reached is left out for a while. Only failures to connect count, never
    # what a replica answers; and when none is left, all are tried (panic), so the last one stays.
    upstream["outlier_detection"] = {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": EJECT_AFTER_FAILURES,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_local_origin_success_rate": 0,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "max_ejection_percent": 100,
        "interval": "1s",
        "base_ejection_time": f"{EJECT_FIRST_SECONDS}s",
        "max_ejection_time": f"{EJECT_LAST_SECONDS}s",
    }
    return upstream


def _api_upstream(config: GatewayConfig) -> dict[str, Any]:
    address = parse_address(config.api_address)
    replica = {"endpoint": {"address": _envoy_address(address)}}
    return _cluster(API_UPSTREAM, [replica], names=_is_name(address))


def _cluster(name: str, replicas: list[dict[str, Any]], *, names: bool) -> dict[str, Any]:
    """`names`: some replica is at a host name, which Envoy then resolves itself."""
    return {
        "@type": _TYPE + "envoy.config.cluster.v3.Cluster",
        "name": name,
        **({"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED"} if names else {"type": "STATIC"}),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": replicas}]},
        "connect_timeout": f"{UPSTREAM_CONNECT_SECONDS}s",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": IN_FLIGHT_MAX,
                    "max_pending_requests": IN_FLIGHT_MAX,
                    "max_requests": IN_FLIGHT_MAX,
                    "retry_budget": {
                        "budget_percent": {"value": RETRY_BUDGET_PERCENT},
                        "min_retry_concurrency": RETRY_CONCURRENCY_MIN,
                    },
                }
            ]
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"idle_timeout": f"{UPSTREAM_IDLE_SECONDS}s"},
                "explicit_http_config": {"http_protocol_options": {}},
            }
        },
    }


def _upstreams_of(assignment: Mapping[str, Any]) -> tuple[Upstream, ...]:
    return tuple(
        Upstream(
            replica=found["metadata"]["filter_metadata"][METADATA]["replica"],
            address=_address_text(found["endpoint"]["address"]),
            weight=found["load_balancing_weight"],
        )
        for group in assignment["endpoints"]
        for found in group["lb_endpoints"]
    )


def _sendable(routes: EndpointRoutes) -> tuple[Upstream, ...]:
    """The replicas that get requests: with a weight, and with an address that Envoy understands.

    Envoy resolves names and connects to sockets, but not both in one upstream: sockets go first.
    """
    weighed = [u for u in routes.upstreams if 0 < u.weight <= WEIGHT_MAX and _understood(u.address)]
    if any(parse_address(u.address).path for u in weighed):
        weighed = [u for u in weighed if not _is_name(parse_address(u.address))]
    return tuple(weighed)


def _has_names(routes: EndpointRoutes) -> bool:
    return any(_is_name(parse_address(upstream.address)) for upstream in _sendable(routes))


def _is_name(address: Address) -> bool:
    if address.path:
        return False
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        return True
    return False


def _understood(text: str) -> bool:
    try:
        address = parse_address(text)
    except Invalid:
        return False
    if address.path:
        return len(os.fsencode(address.path)) <= SOCKET_PATH_BYTES_MAX and "\0" not in address.path
    if "%" in address.host:  # the zone of an IPv6 address
        return False
    return not _is_name(address) or _HOST_NAME.fullmatch(address.host) is not None


def _envoy_address(address: Address) -> dict[str, Any]:
    return {"pipe": {"path": address.path}} if address.path else _socket_address(address)


def _socket_address(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _address_text(address: Mapping[str, Any]) -> str:
    if "pipe" in address:
        return f"unix:{address['pipe']['path']}"
    host = address["socket_address"]["address"]
    return f"{f'[{host}]' if ':' in host else host}:{address['socket_address']['port_value']}"


# --- small pieces -----------------------------------------------------------------------------------


class _Json(str):
    """Text that is JSON already."""

    __slots__ = ()


def _json(value: Any) -> str:
    """Compact JSON in which `_Json` stands for itself; keys in the order given."""
    if isinstance(value, _Json):
        return value
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    return json.dumps(value)


def _resource(name: str, parts: Mapping[str, str]) -> Resource:
    body = ",".join(parts.values())
    version = hashlib.blake2b(body.encode(), digest_size=8).hexdigest()
    text = f'{{"version_info":"{version}","resources":[{body}]}}\n'
    return Resource(text, version, _STATISTICS[name], parts)


def _watched(path: str) -> dict[str, Any]:
    # Without `watched_directory` Envoy reacts to a rename onto this very file, not to every rename in
    # the folder; ours are plain files, renamed into place.
    return {"resource_api_version": "V3", "path_config_source": {"path": path}}


def _extension(name: str, type_name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": _TYPE + type_name, **fields}}


def _above(name: str, share: float) -> dict[str, Any]:
    return {
        "name": name,
        "triggers": [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": share}}],
    }


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}s"
