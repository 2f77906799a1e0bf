"""Where everything is: paths, header names and fixed words of the HTTP interface."""

from __future__ import annotations

from typing import Final

API: Final = "/api/v1"
AUTH: Final = f"{API}/auth"
API_KEY: Final = f"{API}/api-key"
API_KEY_LIST: Final = f"{API_KEY}/list"
WORKSPACE: Final = f"{API}/slice-workspace"
WORKSPACE_LIST: Final = f"{WORKSPACE}/list"
WORKSPACE_KUBE_CONFIG: Final = f"{WORKSPACE}/kube-config"
CLUSTER_LIST: Final = f"{API}/cluster/list"
ENDPOINT: Final = f"{API}/inference-endpoint"
ENDPOINT_LIST: Final = f"{ENDPOINT}/list"
ENDPOINT_EVENTS: Final = f"{ENDPOINT}/events"
ENDPOINT_LOGS: Final = f"{ENDPOINT}/logs"
ENDPOINT_EXPLAIN: Final = f"{ENDPOINT}/explain"
ENDPOINT_WATCH: Final = f"{ENDPOINT}/watch"
ENDPOINT_STOP: Final = f"{ENDPOINT}/stop"
ENDPOINT_START: Final = f"{ENDPOINT}/start"
GATEWAY_UNMATCHED: Final = f"{API}/gateway/unmatched"
HEALTH: Final = "/healthz"
READY: Final = "/readyz"
METRICS: Final = "/metrics"
OPENAPI: Final = "/openapi.json"
DOCS: Final = "/docs"

REQUEST_ID_HEADER: Final = "X-Request-Id"
IDEMPOTENCY_KEY_HEADER: Final = "Idempotency-Key"

# Event names on the watch stream, and on the log stream.
ADDED: Final = "ADDED"
MODIFIED: Final = "MODIFIED"
DELETED: Final = "DELETED"
LOG_LINE: Final = "LINE"
STREAM_ERROR: Final = "ERROR"
