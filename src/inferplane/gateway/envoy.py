"""From the route table to Envoy's own configuration. Pure: values in, values out.

Each endpoint becomes a few resources of its own, and a change of it touches nothing else:

    <endpoint>.<workspace>[.<cluster>]               its routes, found by this key     (ROUTES)
    <workspace>/<endpoint>/<uid>/r<revision>         the replicas of one revision      (UPSTREAM)
    <workspace>/<endpoint>/<uid>/r<revision>-grpc    the same, where they speak gRPC   (UPSTREAM)
    …/r<revision>[-grpc]/<key id or OTHER_KEYS>      the same for one key's requests, where each key is
                                                     limited in how many may be in flight

and beside them stands what all share (`shared_resources`): the listener, the routes of everything else,
the API, the activator, and an upstream without members for endpoints without replicas. From that one
Envoy answers 503, to which the sentence and the reason are added from the route's metadata, as it is
done for all of Envoy's own answers.

Envoy refuses a resource as a whole, so nothing that it would refuse should get in: an address that means
nothing to it counts as no replica, and numbers are brought into its ranges.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from inferplane.domain.errors import Invalid
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.traces import parse_collector
from inferplane.gateway.config import Address, GatewayConfig, parse_address
from inferplane.gateway.endpoint_keys import ALL_ENDPOINTS, whole_workspace
from inferplane.gateway.envoy_listener import (
    EVERYTHING_ELSE,
    GRPC_PREFIX,
    STREAM_IDLE_SECONDS,
    listener,
)
from inferplane.gateway.envoy_tracing import EXPORTS_MAX
from inferplane.gateway.envoy_words import (
    ACTIVATOR_UPSTREAM,
    API_UPSTREAM,
    BUFFER,
    COLLECTOR_UPSTREAM,
    JWT,
    KEY_CLAIMS,
    KEY_REQUIREMENT,
    METADATA,
    NOBODY_UPSTREAM,
    RATE_LIMIT,
    RBAC,
    UPSTREAM_CONNECT_SECONDS,
    Kind,
    Resource,
    extension,
    overwritten,
    resource,
    seconds,
    target,
    typed,
    upstream_protocol,
)
from inferplane.gateway.route_table import ENDPOINT_HEADER, REVISION_HEADER, Access, EndpointRoutes, Upstream
from inferplane.private_folders import SOCKET_PATH_BYTES_MAX

UNMATCHED_PATH = "/api/v1/gateway/unmatched"
NOT_PROCESSED_HEADER = "x-inferplane-not-processed"

# An idle connection to a replica is closed by us, well before the server would do it (75 s): a server
# that closes just as a request is sent leaves us not knowing whether it was processed.
UPSTREAM_IDLE_SECONDS = 30
RETRIES_MAX = 3
# How often a replica is drawn until it is one that the request has not been to. A replica that has just died
# has the fewest requests, so it is drawn more often than not; drawing costs nothing.
HOST_CHOICES_MAX = 50
CHOICES_MAX = 100
RETRY_FIRST_SECONDS = 0.01
RETRY_LAST_SECONDS = 0.1
# A request that makes its replica end must not end all of them.
RETRIES_MAX_WHEN_RETRIABLE = 2
RETRY_BUDGET_PERCENT = 25
RETRY_CONCURRENCY_MIN = 10
# With other replicas, all that one had in flight may come again at once, however unevenly they shared it.
RETRY_CONCURRENCY_MIN_OF_SEVERAL = 1024
IN_FLIGHT_MAX = 4096
EJECT_AFTER_FAILURES = 3
EJECT_FIRST_SECONDS = 1
EJECT_LAST_SECONDS = 10

STREAM_IDLE_SLACK_SECONDS = 60
UNMATCHED_TIMEOUT_SECONDS = 10
# How long a request may wait at the activator at most; the activator itself gives up before.
WAKE_SECONDS_MAX = 660
# A gRPC call that waited at the activator is routed again, and again until the route to the replica is here.
WOKEN_AGAIN_MAX = 100
# So much of a body that is refused anyway is taken in, so that the refusal is read.
REFUSED_BODY_BYTES_MAX = 64 * 1024 * 1024

# What is not there costs no memory, and every endpoint has this route.
TOO_LARGE_WORDS = ("subject", "bytes_max", "rate_max")

WEIGHT_MAX = 1_000_000
BODY_BYTES_MAX = 2**32 - 1
TIMEOUT_SECONDS_MIN = 0.001
TIMEOUT_SECONDS_MAX = 7 * 24 * 3600.0
RATE_MIN = 0.001
RATE_MAX = 1_000_000.0
FILL_SECONDS_MIN = 0.1  # Envoy wants at least 0.05
COUNT_MAX = 2**31 - 1
# Keys with a bucket of their own at one endpoint; beyond it the least recently used one is forgotten.
KEYS_COUNTED_MAX = 10_000
# Keys whose requests in flight are counted one by one at one endpoint: each takes upstreams of its own, some
# tens of kilobytes, and a route that every request of a later key is compared with. Beyond it, and as long as
# a new key is not known here, keys are counted together.
KEYS_IN_FLIGHT_MAX = 100
OTHER_KEYS = "others"
ANYBODY = ""

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?")
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?")


@dataclass(frozen=True, slots=True)
class Pieces:
    """What one endpoint adds."""

    routes: Resource
    upstreams: tuple[Resource, ...]


def pieces_of(routes: EndpointRoutes, config: GatewayConfig) -> Pieces:
    """One endpoint's resources. Only for one that is `routable`."""
    by_revision = _by_revision(routes)
    upstreams: list[dict[str, Any]] = []
    for revision, members in () if routes.asleep else by_revision.items():
        speaking = tuple(replace(each, address=each.grpc_address) for each in members if each.grpc_address)
        for caller in _callers(routes):
            upstreams.append(_upstream(routes, revision, members, caller))
            if speaking:
                upstreams.append(_upstream(routes, revision, speaking, caller, http2=True))
    key = route_key(routes)
    content = _scope(key, _endpoint_host(routes, by_revision, config))
    return Pieces(
        routes=resource(Kind.ROUTES, content),
        upstreams=tuple(resource(Kind.UPSTREAM, each) for each in upstreams),
    )


def shared_resources(config: GatewayConfig, *, access_log: str) -> tuple[Resource, ...]:
    """What is there without any endpoint."""
    api = parse_address(config.api_address)
    upstreams = [_cluster(API_UPSTREAM, [target(config.api_address)], names=_is_name(api))]
    upstreams.append(_cluster(NOBODY_UPSTREAM, [], names=False))
    if config.activator_address:
        upstreams.append(_cluster(ACTIVATOR_UPSTREAM, [target(config.activator_address)], names=False))
    if config.otlp_endpoint:
        collector = parse_collector(config.otlp_endpoint).authority
        upstreams.append(
            _cluster(
                COLLECTOR_UPSTREAM,
                [target(collector)],
                names=_is_name(parse_address(collector)),
                requests_max=EXPORTS_MAX,
            )
        )
    everything_else = {"name": EVERYTHING_ELSE, "domains": ["*"], "routes": _unmatched_routes()}
    return (
        *(resource(Kind.UPSTREAM, each) for each in upstreams),
        resource(Kind.LISTENER, listener(config, access_log=access_log)),
        resource(Kind.ROUTES, _scope(EVERYTHING_ELSE, {**everything_else, "retry_policy": _retry_policy()})),
    )


def routable(routes: EndpointRoutes) -> bool:
    """Whether its names are labels of a host name; nothing else is found by its host."""
    labels = (routes.workspace, routes.endpoint, routes.cluster or routes.endpoint)
    return all(_LABEL.fullmatch(label) for label in labels)


def route_key(routes: EndpointRoutes) -> str:
    """What finds an endpoint's routes: its host without the domain. Unique among what is served."""
    cluster = f".{routes.cluster}" if routes.cluster else ""
    return f"{routes.endpoint}.{routes.workspace}{cluster}".lower()


def preferred(candidates: Iterable[EndpointRoutes]) -> EndpointRoutes | None:
    """Which of several with one key is served: the first that has replicas, else the first by uid."""
    return min(candidates, key=lambda r: (not r.upstreams and not r.asleep, r.uid), default=None)


def upstream_name(routes: EndpointRoutes, revision: int, caller: str = ANYBODY, *, grpc: bool = False) -> str:
    """What Envoy calls a revision's replicas. The uid keeps it unique, the rest is for people."""
    suffix = ("-grpc" if grpc else "") + (f"/{caller}" if caller else "")
    return f"{routes.workspace}/{routes.endpoint}/{routes.uid}/r{revision}{suffix}"


# --- routes -----------------------------------------------------------------------------------------


def _scope(key: str, host: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": key,
        "key": {"fragments": [{"string_key": key}]},
        "route_configuration": {"name": key, "virtual_hosts": [host]},
    }


def _endpoint_host(
    routes: EndpointRoutes, by_revision: dict[int, tuple[Upstream, ...]], config: GatewayConfig
) -> dict[str, Any]:
    limits = _limits(routes) | _guard(routes, config)
    awake = bool(by_revision) and not routes.asleep
    ways = [
        _ways(routes, by_revision, caller, config) for caller in (_callers(routes) if awake else (ANYBODY,))
    ]
    host: dict[str, Any] = {
        "name": routes.uid,
        "domains": ["*"],
        "retry_policy": _retry_policy(retriable=routes.retriable),
        "routes": [
            _too_large(routes),
            *(route for way in ways for route in way),
        ],
    }
    return {**host, "typed_per_filter_config": limits} if limits else host


def _callers(routes: EndpointRoutes) -> tuple[str, ...]:
    """Whose requests are counted apart: the keys, in order, and last all others."""
    if routes.access is not Access.KEY or routes.concurrency_max_per_key is None:
        return (ANYBODY,)
    return (*routes.keys[:KEYS_IN_FLIGHT_MAX], OTHER_KEYS)


def _ways(
    routes: EndpointRoutes,
    by_revision: dict[int, tuple[Upstream, ...]],
    caller: str,
    config: GatewayConfig,
) -> list[dict[str, Any]]:
    """The routes of one caller's requests."""
    awake = bool(by_revision) and not routes.asleep
    ways = [
        *(_grpc_routes(routes, by_revision, caller) if awake else _grpc_asleep(routes, config)),
        *(_revision_routes(routes, by_revision, caller) if awake else ()),
        _main_route(routes, by_revision, caller, config),
    ]
    if caller in (ANYBODY, OTHER_KEYS):
        return ways
    # Known once the key has been verified; then the route is looked for again (`clear_route_cache`).
    return [{**each, "match": {**each["match"], "dynamic_metadata": [_sent_with(caller)]}} for each in ways]


def _sent_with(key_id: str) -> dict[str, Any]:
    return {"filter": JWT, "path": [{"key": KEY_CLAIMS}, {"key": "sub"}], "value": _is(key_id)}


def _main_route(
    routes: EndpointRoutes,
    by_revision: dict[int, tuple[Upstream, ...]],
    caller: str,
    config: GatewayConfig,
) -> dict[str, Any]:
    if routes.asleep and config.activator_address:
        route = _route(
            routes, {"prefix": "/"}, {"cluster": ACTIVATOR_UPSTREAM}, grace=WAKE_SECONDS_MAX, held=False
        )
        return {**route, "request_headers_to_add": [overwritten(ENDPOINT_HEADER, routes.uid)]}
    if routes.asleep or not by_revision:
        return _route(routes, {"prefix": "/"}, {"cluster": NOBODY_UPSTREAM})
    return _route(routes, {"prefix": "/"}, _shared_out(routes, by_revision, caller, grpc=False))


def _grpc_routes(
    routes: EndpointRoutes, by_revision: dict[int, tuple[Upstream, ...]], caller: str
) -> list[dict[str, Any]]:
    speaking = {
        revision: members
        for revision, members in by_revision.items()
        if any(each.grpc_address for each in members)
    }
    if not speaking:
        return []
    match: dict[str, Any] = {"prefix": GRPC_PREFIX, "grpc": {}}
    chosen = [
        _route(
            routes,
            {**match, "headers": [_revision_is(revision)]},
            {"cluster": upstream_name(routes, revision, caller, grpc=True)},
            held=False,
        )
        for revision in (speaking if len(speaking) > 1 else ())
    ]
    return [*chosen, _route(routes, match, _shared_out(routes, speaking, caller, grpc=True), held=False)]


def _grpc_asleep(routes: EndpointRoutes, config: GatewayConfig) -> list[dict[str, Any]]:
    """Held by the activator until a replica answers, which it tells by a redirect: Envoy then looks for the
    route anew with the request that it has kept. (An HTTP/1.1 server cannot forward gRPC by itself.)
    """
    if not (routes.asleep and config.activator_address):
        return []
    route = _route(
        routes,
        {"prefix": GRPC_PREFIX, "grpc": {}},
        {
            "cluster": ACTIVATOR_UPSTREAM,
            # Not a header: Envoy would keep a reference to its name beyond the life of this route.
            "prefix_rewrite": f"/{routes.uid}{GRPC_PREFIX}",
            "internal_redirect_policy": {
                "max_internal_redirects": WOKEN_AGAIN_MAX,
                "redirect_response_codes": [307],
                "allow_cross_scheme_redirect": True,
            },
        },
        grace=WAKE_SECONDS_MAX,
        held=False,
    )
    if _limits(routes):  # it comes this way several times, and is counted on its way to the replica
        route["typed_per_filter_config"][RATE_LIMIT] = typed(
            "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            stat_prefix="gateway",
            token_bucket=_bucket(RATE_MAX, None),  # which Envoy insists on; it is not enabled
        )
    return [route]


def _revision_routes(
    routes: EndpointRoutes, by_revision: dict[int, tuple[Upstream, ...]], caller: str
) -> list[dict[str, Any]]:
    """A request that names a revision gets that one, or hears that it is not served."""
    several = by_revision if len(by_revision) > 1 else ()
    named = [
        _route(
            routes,
            {"prefix": "/", "headers": [_revision_is(revision)]},
            {"cluster": upstream_name(routes, revision, caller)},
        )
        for revision in several
    ]
    # Where there is one revision only, the main route is its route.
    others = [{**_revision_is(revision), "invert_match": True} for revision in by_revision if not several]
    none = {
        "name": routes.uid,
        "match": {"prefix": "/", "headers": [{"name": REVISION_HEADER, "present_match": True}, *others]},
        "direct_response": {
            "status": 404,
            "body": {
                "inline_string": f"{_subject(routes)} serves no such revision; "
                f"it serves {', '.join(map(str, by_revision))}"
            },
        },
        "metadata": _metadata({"reason": "RevisionNotServed"}),
        "typed_per_filter_config": _holding(REFUSED_BODY_BYTES_MAX),
    }
    return [*named, none]


def _revision_is(revision: int) -> dict[str, Any]:
    return {"name": REVISION_HEADER, "string_match": {"exact": str(revision)}}


def _shared_out(
    routes: EndpointRoutes, by_revision: dict[int, tuple[Upstream, ...]], caller: str, *, grpc: bool
) -> dict[str, Any]:
    """To one revision, or to several by their shares; and some of it to a mirror as well."""
    weights = _weights(routes, by_revision)
    names = {revision: upstream_name(routes, revision, caller, grpc=grpc) for revision in by_revision}
    action: dict[str, Any]
    if len(weights) == 1:
        action = {"cluster": names[next(iter(weights))]}
    else:
        clusters: dict[str, Any] = {
            "clusters": [{"name": names[revision], "weight": weight} for revision, weight in weights.items()]
        }
        action = {"weighted_clusters": clusters}
        if routes.sticky_header:
            clusters["use_hash_policy"] = True
            action["hash_policy"] = [{"header": {"header_name": routes.sticky_header}}]
    if routes.mirror is not None and routes.mirror[0] in names and routes.mirror[1] > 0:
        revision, percent = routes.mirror
        action["request_mirror_policies"] = [
            {
                "cluster": names[revision],
                "runtime_fraction": {
                    "default_value": {"numerator": min(percent, 100), "denominator": "HUNDRED"}
                },
                "disable_shadow_host_suffix_append": True,
            }
        ]
    return action


def _weights(routes: EndpointRoutes, by_revision: dict[int, tuple[Upstream, ...]]) -> dict[int, int]:
    """Each revision's share of the requests: as told, or else by what its replicas weigh."""
    told = {
        revision: min(percent, WEIGHT_MAX)
        for revision, percent in routes.shares
        if percent > 0 and revision in by_revision
    }
    if told:
        return dict(sorted(told.items()))
    mirror = routes.mirror[0] if routes.mirror is not None else None
    weighing = {
        revision: min(sum(each.weight for each in members), WEIGHT_MAX)
        for revision, members in by_revision.items()
    }
    # A revision that is only watched answers nobody, unless there is no other.
    return {revision: weight for revision, weight in weighing.items() if revision != mirror} or weighing


def _route(
    routes: EndpointRoutes,
    match: dict[str, Any],
    action: dict[str, Any],
    *,
    grace: float = 0,
    held: bool = True,
) -> dict[str, Any]:
    """`grace` is time beyond the endpoint's own limit; `held`: replicas see the request once it is whole."""
    timeout = _timeout_seconds(routes) + grace
    action = {**action, "timeout": seconds(timeout)}
    if timeout + STREAM_IDLE_SLACK_SECONDS > STREAM_IDLE_SECONDS:
        action["idle_timeout"] = seconds(timeout + STREAM_IDLE_SLACK_SECONDS)
    return {
        # By its name, Lua tells that a route was found, and the log for which endpoint.
        "name": routes.uid,
        "match": match,
        "route": action,
        "metadata": _metadata(_words(routes)),
        "typed_per_filter_config": _holding(_body_bytes_max(routes)) if held else _unheld(),
    }


def _too_large(routes: EndpointRoutes) -> dict[str, Any]:
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
        "name": routes.uid,
        "match": {"prefix": "/", "headers": [content_length]},
        "direct_response": {"status": 413},
        "metadata": _metadata(
            {name: word for name, word in _words(routes).items() if name in TOO_LARGE_WORDS}
        ),
        "typed_per_filter_config": _holding(REFUSED_BODY_BYTES_MAX),
    }


def _holding(body_bytes_max: int) -> dict[str, Any]:
    """Hold the body until it is whole, up to so many bytes."""
    return {
        BUFFER: typed(
            "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
            buffer={"max_request_bytes": body_bytes_max},
        )
    }


def _unheld() -> dict[str, Any]:
    return {BUFFER: typed("envoy.extensions.filters.http.buffer.v3.BufferPerRoute", disabled=True)}


def _metadata(words: dict[str, Any]) -> dict[str, Any]:
    return {"filter_metadata": {METADATA: words}}


def _words(routes: EndpointRoutes) -> dict[str, str]:
    """What the gateway's own answers are made of."""
    rates = _rate_words(routes)
    return {
        "subject": _subject(routes),
        "reason": routes.unavailable_reason or ReasonCode.ROUTE_NOT_READY.value,
        "bytes_max": str(_body_bytes_max(routes)),
        "seconds_max": f"{_timeout_seconds(routes):.10g}",
        "concurrency_max": _concurrency_words(routes),
        **({"rate_max": rates} if rates else {}),
    }


def _subject(routes: EndpointRoutes) -> str:
    cluster = f" on cluster {routes.cluster}" if routes.cluster else ""
    return f"endpoint {routes.endpoint} in workspace {routes.workspace}{cluster}"


def _body_bytes_max(routes: EndpointRoutes) -> int:
    return min(max(routes.max_request_bytes, 1), BODY_BYTES_MAX)


def _timeout_seconds(routes: EndpointRoutes) -> float:
    return min(max(routes.timeout_seconds, TIMEOUT_SECONDS_MIN), TIMEOUT_SECONDS_MAX)


def _concurrency_max(routes: EndpointRoutes) -> int:
    """Of all requests; of one key's where these are limited."""
    wanted = IN_FLIGHT_MAX if routes.concurrency_max is None else routes.concurrency_max
    if _callers(routes) != (ANYBODY,):
        wanted = min(wanted, routes.concurrency_max_per_key or wanted)
    return min(max(wanted, 1), COUNT_MAX)


def _concurrency_words(routes: EndpointRoutes) -> str:
    of_whom = " of this key" if _callers(routes) != (ANYBODY,) else ""
    return f"{_concurrency_max(routes)} requests{of_whom}"


def _unmatched_routes() -> list[dict[str, Any]]:
    words = {
        "subject": "the API, which knows what this key may see,",
        "reason": "Unreachable",
        "bytes_max": str(REFUSED_BODY_BYTES_MAX),
        "seconds_max": str(UNMATCHED_TIMEOUT_SECONDS),
        "concurrency_max": f"{IN_FLIGHT_MAX} requests",
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
                overwritten("x-inferplane-original-host", "%REQ(:AUTHORITY)%"),
                overwritten("x-inferplane-original-path", "%REQ(:PATH)%"),
            ],
            "metadata": _metadata(words),
            "typed_per_filter_config": _holding(REFUSED_BODY_BYTES_MAX),
        },
        {
            "match": {"prefix": "/"},
            "direct_response": {
                "status": 404,
                "body": {"inline_string": "no endpoint is served at this host and path"},
            },
            "metadata": _metadata({**words, "subject": "a refusal", "reason": "NotFound"}),
            "typed_per_filter_config": _holding(REFUSED_BODY_BYTES_MAX),
        },
    ]


def _retry_policy(*, retriable: bool = False) -> dict[str, Any]:
    """Again, elsewhere, and only where no replica can have begun to process the request, unless it is
    `retriable`: then wherever none has begun to answer it.
    """
    return {
        "retry_on": "connect-failure,refused-stream,reset-before-request,retriable-headers"
        + (",reset" if retriable else ""),
        "retriable_headers": [{"name": NOT_PROCESSED_HEADER, "present_match": True}],
        "num_retries": RETRIES_MAX_WHEN_RETRIABLE if retriable else RETRIES_MAX,
        "retry_host_predicate": [
            extension(
                "envoy.retry_host_predicates.previous_hosts",
                "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            )
        ],
        "host_selection_retry_max_attempts": HOST_CHOICES_MAX,
        "retry_back_off": {
            "base_interval": seconds(RETRY_FIRST_SECONDS),
            "max_interval": seconds(RETRY_LAST_SECONDS),
        },
    }


# --- access and rates -------------------------------------------------------------------------------


def _guard(routes: EndpointRoutes, config: GatewayConfig) -> dict[str, Any]:
    """Only with a valid key that is for this endpoint and not revoked."""
    if routes.access is not Access.KEY:
        return {}
    good_for = [routes.uid, whole_workspace(routes.workspace), ALL_ENDPOINTS]
    principal = {
        "and_ids": {
            "ids": [
                {"or_ids": {"ids": [_claim("endpoints", _lists(each)) for each in good_for]}},
                *({"not_id": _claim("sub", _is(key))} for key in routes.revoked_keys),
            ]
        }
    }
    # Without a key set nobody can have a key: a rule without policies lets nobody in.
    policies = {"key": {"permissions": [{"any": True}], "principals": [principal]}}
    rules = {"action": "ALLOW", "policies": policies if config.key_set else {}}
    rbac = typed("envoy.extensions.filters.http.rbac.v3.RBACPerRoute", rbac={"rules": rules})
    if not config.key_set:
        return {RBAC: rbac}
    required = typed(
        "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig", requirement_name=KEY_REQUIREMENT
    )
    return {JWT: required, RBAC: rbac}


def _claim(name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"filter": JWT, "path": [{"key": KEY_CLAIMS}, {"key": name}], "value": value}}


def _is(text: str) -> dict[str, Any]:
    return {"string_match": {"exact": text}}


def _lists(text: str) -> dict[str, Any]:
    return {"list_match": {"one_of": _is(text)}}


def _limits(routes: EndpointRoutes) -> dict[str, Any]:
    per_endpoint, per_key = routes.requests_per_second, routes.requests_per_second_per_key
    own = dict(routes.key_rates)
    if routes.access is not Access.KEY:
        per_key, own = None, {}
    if per_endpoint is None and per_key is None and not own:
        return {}
    limit = typed(
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="gateway",
        filter_enabled=_always("enabled"),
        filter_enforced=_always("enforced"),
        # Envoy insists on a bucket; without a rate of the endpoint's own it never runs dry.
        token_bucket=_bucket(RATE_MAX if per_endpoint is None else per_endpoint, routes.burst),
    )
    if per_key is not None or own:
        by_key = {
            "metadata": {
                "descriptor_key": "key",
                "metadata_key": {"key": JWT, "path": [{"key": KEY_CLAIMS}, {"key": "sub"}]},
                "source": "DYNAMIC",
            }
        }
        limit["rate_limits"] = [{"actions": [by_key]}]
        limit["descriptors"] = [
            {"entries": [{"key": "key", "value": key_id}], "token_bucket": _bucket(rate, routes.burst)}
            for key_id, rate in sorted(own.items())
        ]
        if per_key is not None:
            limit["descriptors"].append(
                {"entries": [{"key": "key"}], "token_bucket": _bucket(per_key, routes.burst)}
            )
        limit["max_dynamic_descriptors"] = KEYS_COUNTED_MAX
        limit["always_consume_default_token_bucket"] = True
    return {RATE_LIMIT: limit}


def _bucket(rate: float, burst: int | None) -> dict[str, Any]:
    """`rate` tokens a second; full at first, and never fuller than `burst`."""
    rate = min(max(rate, RATE_MIN), RATE_MAX)
    tokens = max(1, round(rate * FILL_SECONDS_MIN))
    full = math.ceil(rate) if burst is None else burst
    return {
        "max_tokens": min(max(full, tokens, 1), COUNT_MAX),
        "tokens_per_fill": tokens,
        "fill_interval": seconds(tokens / rate),
    }


def _rate_words(routes: EndpointRoutes) -> str:
    rates = (
        ("for the endpoint", routes.requests_per_second),
        ("for each key", routes.requests_per_second_per_key if routes.access is Access.KEY else None),
    )
    words = [f"{rate:.10g} {what}" for what, rate in rates if rate is not None]
    if routes.key_rates and routes.access is Access.KEY:
        words.append("its own for a key that has one")
    return ", ".join(words)


def _always(what: str) -> dict[str, Any]:
    return {
        "runtime_key": f"inferplane.rate_limit.{what}",
        "default_value": {"numerator": 100, "denominator": "HUNDRED"},
    }


# --- upstreams --------------------------------------------------------------------------------------


def _upstream(
    routes: EndpointRoutes,
    revision: int,
    members: tuple[Upstream, ...],
    caller: str,
    *,
    http2: bool = False,
) -> dict[str, Any]:
    replicas = [
        {
            **target(each.address),
            "load_balancing_weight": each.weight,
            "metadata": _metadata({"replica": each.replica}),
        }
        for each in members
    ]
    upstream = _cluster(
        upstream_name(routes, revision, caller, grpc=http2),
        replicas,
        names=any(_is_name(parse_address(each.address)) for each in members),
        requests_max=_concurrency_max(routes),
        http2=http2,
        trailers=True,  # what a stream took
    )
    upstream["metadata"] = _metadata({"uid": routes.uid, "revision": str(revision)})
    if len(replicas) < 2:
        return upstream  # nothing to choose, and nothing that could be left out
    # All that was in flight at a replica comes again when it ends. A replica that is merely full says so in
    # a way for which nothing is sent again (`x-envoy-ratelimited`), so this is no way to storms of retries.
    (thresholds,) = upstream["circuit_breakers"]["thresholds"]
    thresholds["retry_budget"] = {
        "budget_percent": {"value": max(RETRY_BUDGET_PERCENT, math.ceil(100 / (len(replicas) - 1)))},
        "min_retry_concurrency": RETRY_CONCURRENCY_MIN_OF_SEVERAL,
    }
    upstream["load_balancing_policy"] = {
        "policies": [
            {
                "typed_extension_config": extension(
                    "envoy.load_balancing_policies.least_request",
                    "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest",
                    # The one with the fewest of so many that are drawn. To look at all would choose the
                    # same one again and again, also for a request that has just failed there.
                    choice_count=min(len(replicas), CHOICES_MAX),
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


def _cluster(
    name: str,
    members: list[dict[str, Any]],
    *,
    names: bool,
    requests_max: int = IN_FLIGHT_MAX,
    http2: bool = False,
    trailers: bool = False,
) -> dict[str, Any]:
    """`names`: some member is at a host name, which Envoy then resolves itself."""
    return {
        "name": name,
        **({"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED"} if names else {"type": "STATIC"}),
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": members}]},
        "connect_timeout": f"{UPSTREAM_CONNECT_SECONDS}s",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_connections": max(requests_max, IN_FLIGHT_MAX),
                    "max_pending_requests": max(requests_max, IN_FLIGHT_MAX),
                    "max_requests": requests_max,
                    "retry_budget": {
                        "budget_percent": {"value": RETRY_BUDGET_PERCENT},
                        "min_retry_concurrency": RETRY_CONCURRENCY_MIN,
                    },
                }
            ]
        },
        "typed_extension_protocol_options": upstream_protocol(
            UPSTREAM_IDLE_SECONDS, http2=http2, trailers=trailers
        ),
    }


def _by_revision(routes: EndpointRoutes) -> dict[int, tuple[Upstream, ...]]:
    """The replicas that get requests, by revision, in order of revision."""
    found: dict[int, tuple[Upstream, ...]] = {}
    for each in sorted(_sendable(routes), key=lambda each: each.revision):
        found[each.revision] = (*found.get(each.revision, ()), each)
    return found


def _sendable(routes: EndpointRoutes) -> tuple[Upstream, ...]:
    """The replicas that get requests: with a weight, and with an address that Envoy understands.

    Envoy resolves names and connects to sockets, but not both in one upstream: sockets go first.
    """
    weighed = [
        each for each in routes.upstreams if 0 < each.weight <= WEIGHT_MAX and _understood(each.address)
    ]
    if any(parse_address(each.address).path for each in weighed):
        weighed = [each for each in weighed if not _is_name(parse_address(each.address))]
    return tuple(replace(each, grpc_address=_grpc_address(each)) for each in weighed)


def _grpc_address(upstream: Upstream) -> str:
    """Where a replica speaks gRPC: what is said, else the socket that it has, else nowhere."""
    said = upstream.grpc_address
    if said:
        return said if _understood(said) and not _is_name(parse_address(said)) else ""
    return upstream.address if parse_address(upstream.address).path else ""


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
