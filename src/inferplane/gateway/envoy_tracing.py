"""The part of Envoy's configuration that makes and sends spans (OpenTelemetry, OTLP over HTTP). Pure.

Without a collector nothing of this is in force, and Envoy passes on `traceparent` and `tracestate` as they
came. With one, each request gets one span: under the caller's, sampled as the caller said, or else the root
of a trace, sampled by the setting. What goes to the replica then names this span as its parent.
"""

from __future__ import annotations

from typing import Any

from inferplane.domain.traces import parse_collector
from inferplane.gateway.config import GatewayConfig
from inferplane.gateway.envoy_words import (
    COLLECTOR_UPSTREAM,
    JWT,
    KEY_CLAIMS,
    METADATA,
    extension,
    seconds,
    typed,
)

SERVICE = "inferplane-gateway"
EXPORT_SECONDS = 3.0
# Spans that wait in each worker, and those that no longer fit are dropped.
QUEUE_SPANS_MAX = 4096
# Sent at so many, or after so long; by itself Envoy would make an exchange of every five.
SEND_AT_SPANS = 256
SEND_AFTER_MS = 1000
# Exchanges at once with a collector that does not answer: more spans are dropped instead.
EXPORTS_MAX = 8
PATH_CHARACTERS_MAX = 256
MILLIONTHS_PER_PERCENT = 10_000
SAMPLERS = "envoy.extensions.tracers.opentelemetry.samplers.v3"

RUNTIME = {
    "tracing.opentelemetry.min_flush_spans": SEND_AT_SPANS,
    "tracing.opentelemetry.flush_interval_ms": SEND_AFTER_MS,
}


def tracing(config: GatewayConfig, route_header: str) -> dict[str, Any]:
    """What the connection manager is told about traces: nothing without a collector."""
    if not config.otlp_endpoint:
        return {}
    collector = parse_collector(config.otlp_endpoint)
    exporter = {
        "http_uri": {
            "uri": collector.url,
            "cluster": COLLECTOR_UPSTREAM,
            "timeout": seconds(EXPORT_SECONDS),
        }
    }
    provider = {
        "name": "envoy.tracers.opentelemetry",
        "typed_config": typed(
            "envoy.config.trace.v3.OpenTelemetryConfig",
            service_name=SERVICE,
            http_service=exporter,
            max_cache_size=QUEUE_SPANS_MAX,
            sampler=_sampler(config.trace_sample_percent),
        ),
    }
    return {
        "tracing": {
            "provider": provider,
            "max_path_tag_length": PATH_CHARACTERS_MAX,
            "custom_tags": [
                _tag("inferplane.endpoint", f"%REQ({route_header})%"),
                _tag("inferplane.uid", "%ROUTE_NAME%"),
                _tag("inferplane.revision", f"%METADATA(CLUSTER:{METADATA}:revision)%"),
                _tag("inferplane.replica", f"%UPSTREAM_METADATA({METADATA}:replica)%"),
                _tag("inferplane.key_id", f"%DYNAMIC_METADATA({JWT}:{KEY_CLAIMS}:sub)%"),
                _tag("inferplane.request_id", "%REQ(X-REQUEST-ID)%"),
                _tag("inferplane.attempts", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"),
            ],
        },
        # An id that a client gave stays as it is, and says nothing about whether to sample: the sampler does.
        "request_id_extension": {
            "typed_config": typed(
                "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
                pack_trace_reason=False,
                use_request_id_for_trace_sampling=False,
            )
        },
    }


def _sampler(percent: float) -> dict[str, Any]:
    """What the caller's traceparent says; a share of what comes without one."""
    share = {"numerator": round(percent * MILLIONTHS_PER_PERCENT), "denominator": "MILLION"}
    by_trace = extension(
        "envoy.tracers.opentelemetry.samplers.trace_id_ratio_based",
        f"{SAMPLERS}.TraceIdRatioBasedSamplerConfig",
        sampling_percentage=share,
    )
    return extension(
        "envoy.tracers.opentelemetry.samplers.parent_based",
        f"{SAMPLERS}.ParentBasedSamplerConfig",
        wrapped_sampler=by_trace,
    )


def _tag(name: str, value: str) -> dict[str, Any]:
    return {"tag": name, "value": value}
