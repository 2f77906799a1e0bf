"""The part of Envoy's configuration that all endpoints share: how it starts, and its one listener. Pure.

A request's way through the listener's filters:

    Lua       find the endpoint's routes by host, path or header      (FIND_ROUTES)
    JWT       read and verify the endpoint key, where a route asks for one
    RBAC      is the key for this endpoint, and not revoked
    rate      per endpoint and per key
    buffer    hold the body until it is whole
    router    send it

Each endpoint's routes are a configuration of their own (a scope), found by a key in one hash table. So
a change of one endpoint costs the same whatever the number of others, and so does a request.

All of Envoy's own answers become JSON (`_local_replies`), with the limits and names of the route that
the request took.
"""

from __future__ import annotations

import json
from typing import Any

from inferplane.gateway.config import Address, GatewayConfig
from inferplane.gateway.endpoint_keys import AUDIENCE, ISSUER
from inferplane.gateway.envoy_tracing import RUNTIME, tracing
from inferplane.gateway.envoy_words import (
    BUFFER,
    JWT,
    KEY_CLAIMS,
    KEY_REQUIREMENT,
    LUA,
    METADATA,
    RATE_LIMIT,
    RBAC,
    ROUTER,
    XDS_UPSTREAM,
    envoy_address,
    extension,
    overwritten,
    seconds,
    typed,
    upstream_protocol,
)
from inferplane.gateway.route_table import ENDPOINT_HEADER

LISTENER = "gateway"
ROUTE_KEY_HEADER = "x-inferplane-route"
EVERYTHING_ELSE = "-"
GRPC_PREFIX = "/inference.GRPCInferenceService/"

REQUEST_HEADERS_SECONDS = 15
REQUEST_UPLOAD_SECONDS = 600
STREAM_IDLE_SECONDS = 300
CONNECTION_IDLE_SECONDS = 600
CONNECTIONS_MAX = 20_000
HTTP2_STREAMS_MAX = 128
CONNECTION_BUFFER_BYTES = 1024 * 1024
RETRY_AFTER_SECONDS = 1
NOT_READY_RETRY_AFTER_SECONDS = 2
# Envoy comes back to a control plane that was away as quickly as this.
RECONNECT_FIRST_SECONDS = 0.05
RECONNECT_LAST_SECONDS = 0.25
CLOCK_SKEW_SECONDS = 1
XDS_IDLE_SECONDS = 7 * 24 * 3600.0

STATISTICS_SECONDS = 2
LATENCY_BUCKETS_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 300_000)
# Of an upstream's hundred statistics only these are kept: the others would be half of Envoy's memory.
UPSTREAM_STATISTICS = (
    r"^cluster\..*\.(upstream_rq_(total|active|active_overflow|[1-5]xx|time|timeout|retry)"
    r"|upstream_cx_active)$"
)
OTHER_STATISTICS = (
    "http.",
    "listener",
    "server.",
    "cluster_manager.",
    "control_plane.",
    "overload.",
    "main_thread.",
    "tracing.",
)

# Lua, because a choice between host, path and header is beyond what Envoy's own matching can do in one
# table. It sees headers only. The header that names an endpoint goes no further: behind here it is ours.
# `routeName` is empty while no endpoint has the key.
FIND_ROUTES = """
local domain = {domain}
local function key_of(headers, path)
  if string.sub(path, 1, 9) == "/serving/" then
    local workspace, endpoint, rest = string.match(path, "^/serving/([^/?]+)/([^/?]+)(.*)$")
    if not workspace then return nil, nil end
    local name, cluster = string.match(endpoint, "^([^.]+)%.(.+)$")
    local key = name and (name .. "." .. workspace .. "." .. cluster) or (endpoint .. "." .. workspace)
    if string.sub(rest, 1, 1) ~= "/" then rest = "/" .. rest end
    return key, rest
  end
  local named = headers:get("{endpoint_header}")
  if named and string.sub(path, 1, {grpc_length}) == "{grpc_prefix}" then
    local workspace, endpoint = string.match(named, "^([^/]+)/([^/]+)$")
    if workspace then
      local name, cluster = string.match(endpoint, "^([^.]+)%.(.+)$")
      return name and (name .. "." .. workspace .. "." .. cluster) or (endpoint .. "." .. workspace), nil
    end
  end
  local host = string.lower(string.match(headers:get(":authority") or "", "^[^:]*"))
  if string.sub(host, -#domain) == domain then return string.sub(host, 1, -#domain - 1), nil end
  return nil, nil
end
function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path") or "/"
  local key, rest = key_of(headers, path)
  headers:remove("{endpoint_header}")
  if key then
    headers:replace("{route_header}", key)
    handle:clearRouteCache()
    handle:metadata()
    if handle:streamInfo():routeName() ~= "" then
      rest = rest or path
      if string.sub(rest, 1, 10) == "/v1/model/" then rest = "/v1/models/" .. string.sub(rest, 11) end
      if rest ~= path then headers:replace(":path", rest) end
      return
    end
  end
  headers:replace("{route_header}", "{everything_else}")
  handle:clearRouteCache()
end
"""


def bootstrap_config(config: GatewayConfig, *, admin_socket: str, xds_socket: str) -> dict[str, Any]:
    """The part of the configuration that needs a restart to change.

    `admin_socket` is the unix socket of Envoy's admin interface; there is no other way to reach it.
    Everything else comes from the control plane at `xds_socket`.
    """
    ads = {"ads": {}, "resource_api_version": "V3"}
    back_off = {
        "base_interval": seconds(RECONNECT_FIRST_SECONDS),
        "max_interval": seconds(RECONNECT_LAST_SECONDS),
    }
    return {
        "node": {"id": "inferplane-gateway", "cluster": "inferplane"},
        "admin": {"address": {"pipe": {"path": admin_socket, "mode": 0o600}}},
        "dynamic_resources": {
            "lds_config": ads,
            "cds_config": ads,
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": XDS_UPSTREAM,
                            "retry_policy": {"retry_back_off": back_off},
                        }
                    }
                ],
            },
        },
        "static_resources": {
            "clusters": [
                {
                    "name": XDS_UPSTREAM,
                    "type": "STATIC",
                    "load_assignment": {
                        "cluster_name": XDS_UPSTREAM,
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": xds_socket}}}}]}
                        ],
                    },
                    "typed_extension_protocol_options": upstream_protocol(XDS_IDLE_SECONDS, http2=True),
                }
            ]
        },
        "layered_runtime": {"layers": [{"name": "inferplane", "static_layer": RUNTIME}]},
        # Histograms are summed up at each flush, and not before.
        "stats_flush_interval": seconds(STATISTICS_SECONDS),
        "stats_config": {
            "histogram_bucket_settings": [
                {"match": {"safe_regex": {"regex": ".*"}}, "buckets": list(LATENCY_BUCKETS_MS)}
            ],
            "stats_matcher": {
                "inclusion_list": {
                    "patterns": [
                        {"safe_regex": {"regex": UPSTREAM_STATISTICS}},
                        *({"prefix": prefix} for prefix in OTHER_STATISTICS),
                    ]
                }
            },
        },
        "overload_manager": {
            "refresh_interval": "0.25s",
            "resource_monitors": [
                extension(
                    "envoy.resource_monitors.fixed_heap",
                    "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    max_heap_size_bytes=config.heap_bytes_max,
                ),
                extension(
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


def listener(config: GatewayConfig, *, access_log: str) -> dict[str, Any]:
    """The one listener. `access_log` is the file for one line of JSON per request."""
    ads = {"ads": {}, "resource_api_version": "V3"}
    manager = typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=LISTENER,
        codec_type="AUTO",
        server_name="inferplane",
        # The first proxy a client meets: x-envoy-* request headers from outside are dropped, so that
        # nobody can ask for a retry that may process a request twice.
        use_remote_address=True,
        # With no range at all, Envoy would trust private addresses and loopback, so one that no client has.
        internal_address_config={"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]},
        normalize_path=True,
        merge_slashes=True,
        strip_trailing_host_dot=True,
        # A client's own id is the one it will ask about.
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        common_http_protocol_options={"idle_timeout": f"{CONNECTION_IDLE_SECONDS}s"},
        http2_protocol_options={"max_concurrent_streams": HTTP2_STREAMS_MAX},
        request_headers_timeout=f"{REQUEST_HEADERS_SECONDS}s",
        request_timeout=f"{REQUEST_UPLOAD_SECONDS}s",
        stream_idle_timeout=f"{STREAM_IDLE_SECONDS}s",
        scoped_routes={
            "name": LISTENER,
            "scope_key_builder": {
                "fragments": [{"header_value_extractor": {"name": ROUTE_KEY_HEADER, "index": 0}}]
            },
            "rds_config_source": ads,
            "scoped_rds": {"scoped_rds_config_source": ads},
        },
        **tracing(config, ROUTE_KEY_HEADER),
        local_reply_config=_local_replies(),
        access_log=[_access_log(access_log)],
        http_filters=_filters(config),
    )
    return {
        "name": LISTENER,
        "address": envoy_address(Address(host=config.host, port=config.port)),
        # One listening socket: a second program on the port is refused by the kernel instead of
        # silently sharing it. Connections are then spread over the workers by Envoy.
        "enable_reuse_port": False,
        "connection_balance_config": {"exact_balance": {}},
        "per_connection_buffer_limit_bytes": CONNECTION_BUFFER_BYTES,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _filters(config: GatewayConfig) -> list[dict[str, Any]]:
    """None may be `disabled`: Envoy decides that before Lua has found the routes."""
    script = _filled(
        FIND_ROUTES,
        domain=_lua_text(f".{config.domain}".lower()),
        endpoint_header=ENDPOINT_HEADER,
        grpc_prefix=GRPC_PREFIX,
        grpc_length=len(GRPC_PREFIX),
        route_header=ROUTE_KEY_HEADER,
        everything_else=EVERYTHING_ELSE,
    )
    guards = [_key_filter(config.key_set)] if config.key_set else []
    return [
        extension(
            LUA,
            "envoy.extensions.filters.http.lua.v3.Lua",
            default_source_code={"inline_string": script},
        ),
        *guards,
        extension(RBAC, "envoy.extensions.filters.http.rbac.v3.RBAC"),
        extension(
            RATE_LIMIT,
            "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            stat_prefix=LISTENER,
        ),
        # Each route says how much it takes. Then the whole body is held before a replica sees the
        # request. Answers are never held.
        extension(BUFFER, "envoy.extensions.filters.http.buffer.v3.Buffer", max_request_bytes=1),
        extension(ROUTER, "envoy.extensions.filters.http.router.v3.Router"),
    ]


def _key_filter(key_set: str) -> dict[str, Any]:
    """Verifies endpoint keys, for the routes that require one."""
    provider = {
        "issuer": ISSUER,
        "audiences": [AUDIENCE],
        "local_jwks": {"inline_string": key_set},
        "from_headers": [{"name": "Authorization", "value_prefix": "Bearer "}],
        "payload_in_metadata": KEY_CLAIMS,
        # Whose key it is may decide where a request goes; see `envoy._ways`.
        "clear_route_cache": True,
        # Envoy's clock is ours: without this, a key would be good for a minute longer than it says.
        "clock_skew_seconds": CLOCK_SKEW_SECONDS,
        # Verifying a signature costs more than the rest of a request's way through Envoy.
        "jwt_cache_config": {"jwt_cache_size": 1000},
    }
    return extension(
        JWT,
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        providers={KEY_REQUIREMENT: provider},
        requirement_map={KEY_REQUIREMENT: {"provider_name": KEY_REQUIREMENT}},
    )


def _access_log(path: str) -> dict[str, Any]:
    return extension(
        "envoy.access_loggers.file",
        "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        path=path,
        log_format={
            "omit_empty_values": True,
            "json_format": {
                "time": "%START_TIME%",
                "requestId": "%REQ(X-REQUEST-ID)%",
                "trace": "%REQ(TRACEPARENT)%",
                "endpoint": f"%REQ({ROUTE_KEY_HEADER})%",
                "uid": "%ROUTE_NAME%",
                "revision": f"%METADATA(CLUSTER:{METADATA}:revision)%",
                "replica": f"%UPSTREAM_METADATA({METADATA}:replica)%",
                "keyId": f"%DYNAMIC_METADATA({JWT}:{KEY_CLAIMS}:sub)%",
                "method": "%REQ(:METHOD)%",
                "path": "%PATH(NQ:PATH)%",
                "protocol": "%PROTOCOL%",
                "status": "%RESPONSE_CODE%",
                "grpcStatus": "%GRPC_STATUS_NUMBER%",
                "flags": "%RESPONSE_FLAGS%",
                "details": "%RESPONSE_CODE_DETAILS%",
                "bytesReceived": "%BYTES_RECEIVED%",
                "bytesSent": "%BYTES_SENT%",
                "milliseconds": "%DURATION%",
                "upstreamMilliseconds": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
                "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
                "rows": "%RESP(X-INFERPLANE-ROWS)%",
                "tokens": "%RESP(X-INFERPLANE-TOKENS)%",
                # What a stream took is known at its end only.
                "streamTokens": "%TRAILER(X-INFERPLANE-TOKENS)%",
            },
        },
    )


def _local_replies() -> dict[str, Any]:
    """What Envoy says itself, as JSON. The first mapper that matches decides."""
    subject = fact("subject")
    return {
        "mappers": [
            _reply(
                _flagged("UH", "NC"),
                f"{subject} is not ready: {fact('reason')}",
                fact("reason"),
                status=503,
                retry_after=NOT_READY_RETRY_AFTER_SECONDS,
                next_action="Send the request again in a moment; "
                "'inferplane explain' says what the endpoint waits for.",
            ),
            _reply(
                _both(_flagged("UT", "SI", "DT"), _status_is(504)),
                f"no answer within {fact('seconds_max')} seconds, the limit of {subject}",
                "RequestTimeout",
                number=("timeoutSeconds", fact("seconds_max")),
            ),
            _reply(
                _status_is(401),
                f"{subject} wants an endpoint key that is valid: send it as 'Authorization: Bearer <key>'",
                "KeyRequired",
                next_action="An Editor makes one with 'inferplane endpoint-key create'.",
            ),
            _reply(
                _status_is(403),
                f"this key is not, or no longer, for {subject}",
                "KeyRefused",
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
                next_action="Send the request again in a moment: "
                "a model server that ended is started anew by itself.",
            ),
            _reply(
                _flagged("UO"),
                f"{subject} has {fact('concurrency_max')} in flight, its limit",
                "Overloaded",
                status=429,
                retry_after=RETRY_AFTER_SECONDS,
            ),
            _reply(
                _status_is(429),
                f"{subject} takes no more requests for the moment; its limit a second is {fact('rate_max')}",
                "RateLimited",
                retry_after=RETRY_AFTER_SECONDS,
            ),
            _reply(
                _status_is(413),
                f"the request body is larger than {fact('bytes_max')} bytes, the limit of {subject}",
                "RequestTooLarge",
                number=("maxRequestBytes", fact("bytes_max")),
            ),
            _reply(_status_is(408), "the request did not arrive in time", "RequestTimeout"),
            _reply(_status_is(431), "the request's headers are too large", "HeadersTooLarge"),
            _reply(_flagged("DPE"), "the request is not valid HTTP: %RESPONSE_CODE_DETAILS%", "NotHttp"),
        ],
        "body_format": {
            "json_format": {"error": "%LOCAL_REPLY_BODY%", "reason": fact("reason")},
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
    next_action: str = "",
) -> dict[str, Any]:
    """A body in the shape of every error: `error`, `reason`, what to do, and a number if one explains it."""
    body = {"error": error, "reason": reason, **({"nextAction": next_action} if next_action else {})}
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
        mapper["headers_to_add"] = [overwritten("retry-after", str(retry_after))]
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


def fact(name: str) -> str:
    """What the route that was taken says under this name."""
    return f"%METADATA(ROUTE:{METADATA}:{name})%"


def _filled(script: str, **values: object) -> str:
    """The script with `{name}` replaced; other braces are Lua's own."""
    for name, value in values.items():
        script = script.replace("{" + name + "}", str(value))
    return script


def _lua_text(text: str) -> str:
    """A Lua string, whatever is in it."""
    return '"' + "".join(f"\\{byte:03d}" for byte in text.encode()) + '"'


def _above(name: str, share: float) -> dict[str, Any]:
    return {
        "name": name,
        "triggers": [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": share}}],
    }
