"""A platform made of memory, for tests of the SDK and of the command line.

`FakePlatform.answer` is a function from a request to an answer: it speaks the envelope, hands out
tokens, keeps endpoints, and does exactly what a test told it to. It can be reached in three ways:
directly (simulated worlds), as an httpx transport, and as an ASGI app behind a real socket.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec

from inferplane.wire import paths
from inferplane.wire.access import ApiKeyItem
from inferplane.wire.endpoints import (
    CheckItem,
    DnsRecord,
    EndpointDescription,
    EndpointItem,
    EventItem,
    EvidenceItem,
    Explanation,
    LogLineItem,
    MilestoneItem,
    ModelItem,
    ReplicaCount,
    ReplicaItem,
)
from inferplane.wire.envelope import ErrorKey, failure, success
from inferplane.wire.workspaces import ClusterItem, ClusterRegistered, ClusterReportItem, WorkspaceItem

KEY = "ipk_fake"
AT = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Asked:
    """A request as the platform received it."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]
    raw: bytes = b""


@dataclass(frozen=True)
class Told:
    """An answer. `chunks` make it a stream; an exception among them breaks the connection there."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    chunks: tuple[bytes | Exception, ...] | None = None


def no(status: int, key: ErrorKey, message: str, **more: Any) -> Told:
    """A refusal in the envelope."""
    return Told(status, failure(status, key, message, **more))


def running(name: str, gateway: str = "http://gateway.test", **changes: Any) -> EndpointDescription:
    """A description of an endpoint that runs, with `changes`."""
    url = f"{gateway}/serving/default/{name}/v1/models/{name}:predict"
    values: dict[str, Any] = {
        "endpoint_name": name,
        "model_name": "sklearn",
        "status": "Running",
        "endpoint": f"http://{name}.default.localhost:7080/v1/models/{name}:predict",
        "cluster_name": "local",
        "namespace": f"default-{name}-abc123",
        "predict_status": "Ready",
        "ingress_status": "Ready",
        "auto_scaling_status": "",
        "try_command": ("curl -v \\", f'"{url}" \\', "-d '{\"instances\":[[1.0]]}'"),
        "dns_records": (DnsRecord(f"{name}.default.localhost", "A", "127.0.0.1"),),
        "gpu_requests": (),
        "workspace": "default",
        "uid": "0123456789ab",
        "path_endpoint": url,
        "replica_count": ReplicaCount(1, 1),
        "replicas": (ReplicaItem("r1-0", "Ready", pid=4711, ready_at=AT),),
        "model": ModelItem(format="sklearn", storage_uri="/m.joblib", example='{"instances":[[1.0]]}'),
        "observed_generation": 1,
        "created_at": AT,
        "created_by": "owner",
        "timeline": (MilestoneItem("accepted", AT), MilestoneItem("ready", AT, 340, 340)),
    }
    return EndpointDescription(**{**values, **changes})


def waiting(name: str, status: str, reason: str, message: str = "", **changes: Any) -> EndpointDescription:
    """A description of an endpoint that does not run yet, or no more."""
    more = {"reason": reason, "message": message, "endpoint": "", "next_action": f"Mend {reason}."}
    return running(
        name, status=status, **{**more, "replica_count": ReplicaCount(0, 1), "replicas": (), **changes}
    )


@dataclass
class FakePlatform:
    """One platform. Give `script` answers to be told first, in order, whatever is asked."""

    endpoints: dict[str, list[EndpointDescription | None]] = field(default_factory=dict)
    script: list[Told | Exception] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    lines: list[LogLineItem] = field(default_factory=list)
    events: list[EventItem] = field(default_factory=list)
    checks: list[CheckItem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    workspaces: list[str] = field(default_factory=lambda: ["default"])
    clusters: list[ClusterItem] = field(default_factory=list)
    cluster_report: ClusterReportItem = ClusterReportItem(
        True, AT, AT, checks=(CheckItem("api", True, "", "Kubernetes v1.36.2"),)
    )
    keys: list[ApiKeyItem] = field(default_factory=list)
    after_create: list[EndpointDescription | None] = field(default_factory=list)
    prediction: Told | None = None
    tokens: int = 0
    valid_tokens: set[str] = field(default_factory=set)
    gateway: str = "http://gateway.test"
    page_size: int = 1000

    # --- the three ways in --------------------------------------------------------------------------

    def transport(self) -> FakeTransport:
        """For `Client(transport=…)` and `AsyncClient(transport=…)`."""
        return FakeTransport(self)

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """As an ASGI app."""
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        query = dict(httpx.QueryParams(scope["query_string"].decode()).multi_items())
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        told = self.answer(_asked(scope["method"], scope["path"], query, body, headers))
        found = [(name.encode(), value.encode()) for name, value in told.headers.items()]
        await send({"type": "http.response.start", "status": told.status, "headers": found})
        for chunk in told.chunks or ():
            if isinstance(chunk, Exception):
                raise chunk
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": told.body, "more_body": False})

    # --- what it says -------------------------------------------------------------------------------

    def answer(self, asked: Asked) -> Told:
        """The answer to one request."""
        self.asked.append(asked)
        if self.script:
            told = self.script.pop(0)
            if isinstance(told, Exception):
                raise told
            return told
        if asked.path.startswith("/serving/"):
            return self._predict(asked)
        if asked.path == paths.READY:
            return Told(200, success({"status": "ready", "parts": {"store": "ready"}}))
        if asked.path == paths.AUTH:
            return self._token(asked)
        if asked.headers.get("authorization", "").removeprefix("Bearer ") not in self.valid_tokens:
            return no(401, ErrorKey.UNAUTHENTICATED, "Unauthenticated", reason="TokenExpired")
        return self._routes()[asked.method, asked.path](asked)

    def calls(self) -> list[tuple[str, str]]:
        """Method and path of each request, without the token exchanges."""
        return [(each.method, each.path) for each in self.asked if each.path != paths.AUTH]

    def _routes(self) -> Mapping[tuple[str, str], Callable[[Asked], Told]]:
        return {
            ("POST", paths.ENDPOINT): self._create,
            ("GET", paths.ENDPOINT): self._describe,
            ("DELETE", paths.ENDPOINT): self._delete,
            ("GET", paths.ENDPOINT_LIST): self._list,
            ("POST", paths.ENDPOINT_STOP): self._act,
            ("POST", paths.ENDPOINT_START): self._act,
            ("GET", paths.ENDPOINT_EXPLAIN): self._explain,
            ("GET", paths.ENDPOINT_EVENTS): self._events,
            ("GET", paths.ENDPOINT_LOGS): self._logs,
            ("GET", paths.ENDPOINT_WATCH): self._watch,
            ("POST", paths.API_KEY): lambda _: Told(200, success({"apiKey": "ipk_new"})),
            ("DELETE", paths.API_KEY): lambda _: Told(200, success({})),
            ("GET", paths.API_KEY_LIST): lambda _: Told(
                200, success({"data": self.keys, "items": self.keys})
            ),
            ("POST", paths.WORKSPACE): self._create_workspace,
            ("PUT", paths.WORKSPACE): lambda _: Told(200, success({})),
            ("DELETE", paths.WORKSPACE): lambda _: Told(200, success({})),
            ("GET", paths.WORKSPACE_LIST): lambda _: Told(
                200,
                success(
                    {"workspaces": [WorkspaceItem(name, clusters=("local",)) for name in self.workspaces]}
                ),
            ),
            ("GET", paths.CLUSTER_LIST): lambda _: Told(
                200, success({"items": [ClusterItem("local", "local"), *self.clusters]})
            ),
            ("POST", paths.CLUSTER): self._cluster,
            ("PUT", paths.CLUSTER): self._cluster,
            ("POST", paths.CLUSTER_CHECK): self._cluster,
            ("DELETE", paths.CLUSTER): lambda _: Told(200, success({})),
            ("POST", paths.WORKSPACE_KUBE_CONFIG): lambda _: Told(
                200, success({"kubeConfig": "kind: Config\n"})
            ),
        }

    def _cluster(self, asked: Asked) -> Told:
        of_kubernetes = asked.body.get("engine", "kserve") == "kserve"
        return Told(
            200,
            success(ClusterRegistered(asked.body["name"], self.cluster_report if of_kubernetes else None)),
        )

    def _token(self, asked: Asked) -> Told:
        if asked.body["apiKey"] != KEY:
            return no(401, ErrorKey.UNAUTHENTICATED, "Unauthenticated")
        self.tokens += 1
        token = f"token-{self.tokens}"
        self.valid_tokens.add(token)
        return Told(200, success({"token": token}))

    def _create(self, asked: Asked) -> Told:
        name = asked.body["endpointName"]
        if asked.query.get("dryRun") == "true":
            return Told(200, success({"endpointName": name, "preflight": self.checks}))
        if name in self.endpoints:
            return no(
                409,
                ErrorKey.ALREADY_EXISTS,
                f"endpoint {name} exists already",
                reason="EndpointExists",
                field="endpointName",
                next_action="Choose another name.",
                request_id="req-1",
            )
        self.endpoints[name] = list(self.after_create) or [running(name, self.gateway)]
        return Told(
            200, success({"endpointName": name} | ({"warnings": self.warnings} if self.warnings else {}))
        )

    def _current(self, name: str) -> EndpointDescription | None:
        """Each look moves on one step of the endpoint's life; the last one stays."""
        life = self.endpoints.get(name)
        if not life:
            return None
        return life.pop(0) if len(life) > 1 else life[0]

    def _missing(self, name: str) -> Told:
        return no(404, ErrorKey.NOT_FOUND, f"endpoint {name} does not exist", reason="EndpointNotFound")

    def _describe(self, asked: Asked) -> Told:
        found = self._current(asked.query["endpoint"])
        if found is None:
            return self._missing(asked.query["endpoint"])
        return Told(200, success({"endpoint": found}))

    def _delete(self, asked: Asked) -> Told:
        name = asked.body["endpoint"]
        if self._current(name) is None:
            return self._missing(name)
        self.endpoints[name] = [
            waiting(name, "Terminating", "Terminating", "being deleted; left: routes"),
            None,
        ]
        return Told(200, success({"endpoint": name}))

    def _act(self, asked: Asked) -> Told:
        name = asked.body["endpoint"]
        if name not in self.endpoints:
            return self._missing(name)
        if asked.path == paths.ENDPOINT_STOP:
            self.endpoints[name] = [
                running(name),
                waiting(name, "Stopped", "StoppedByUser", "stopped by owner"),
            ]
        else:
            self.endpoints[name] = [waiting(name, "Loading", "Loading", "loading"), running(name)]
        return Told(200, success({"endpoint": name}))

    def _list(self, asked: Asked) -> Told:
        items = [_item(life[0]) for _, life in sorted(self.endpoints.items()) if life and life[0] is not None]
        if status := asked.query.get("status"):
            items = [item for item in items if item.status == status]
        start = int(asked.query.get("continue", "0"))
        page = items[start : start + self.page_size]
        data: dict[str, Any] = {"endpoints": page}
        if start + self.page_size < len(items):
            data["continue"] = str(start + self.page_size)
        return Told(200, success(data))

    def _explain(self, asked: Asked) -> Told:
        found = self._current(asked.query["endpoint"])
        if found is None:
            return self._missing(asked.query["endpoint"])
        evidence = (
            EvidenceItem(exit_code=3, log_tail=("ValueError: no",))
            if found.status == "Failed"
            else EvidenceItem()
        )
        explanation = Explanation(
            found.endpoint_name,
            found.status,
            found.reason,
            "What it means.",
            found.message,
            evidence,
            found.next_action,
            timeline=found.timeline,
            scaling_decisions=tuple(each for each in self.events if each.kind.startswith("Scaled")),
        )
        return Told(200, success(explanation))

    def _events(self, asked: Asked) -> Told:
        name = asked.query.get("endpoint", "")
        if name and name not in self.endpoints:
            return self._missing(name)
        after = int(asked.query.get("after", "0"))
        return Told(200, success({"events": [event for event in self.events if event.seq > after]}))

    def _logs(self, asked: Asked) -> Told:
        if asked.query["endpoint"] not in self.endpoints:
            return self._missing(asked.query["endpoint"])
        if asked.query.get("follow") == "true":
            return stream(*(_event("LINE", line) for line in self.lines))
        return Told(200, success({"lines": self.lines}))

    def _watch(self, asked: Asked) -> Told:
        items = [_item(life[0]) for _, life in sorted(self.endpoints.items()) if life[0] is not None]
        return stream(*(_event("ADDED", item) for item in items), b": that was all\n\n")

    def _create_workspace(self, asked: Asked) -> Told:
        self.workspaces.append(asked.body["workspaceName"])
        return Told(200, success({"workspaceName": asked.body["workspaceName"]}))

    def _predict(self, asked: Asked) -> Told:
        if self.prediction is not None:
            return self.prediction
        if asked.path.endswith("/infer"):
            return Told(200, b'{"model_name":"iris","outputs":[]}')
        return Told(200, json.dumps({"predictions": [0] * len(asked.body["instances"])}).encode())


class FakeTransport(httpx.BaseTransport, httpx.AsyncBaseTransport):
    """The platform as both kinds of httpx transport."""

    def __init__(self, platform: FakePlatform) -> None:
        self._platform = platform

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._respond(request, request.read())

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return self._respond(request, await request.aread())

    def _respond(self, request: httpx.Request, body: bytes) -> httpx.Response:
        query = dict(request.url.params.multi_items())
        told = self._platform.answer(
            _asked(request.method, request.url.path, query, body, dict(request.headers))
        )
        if told.chunks is None:
            return httpx.Response(told.status, headers=told.headers, content=told.body, request=request)
        return httpx.Response(told.status, headers=told.headers, stream=Chunks(told.chunks), request=request)


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that arrives in pieces, and may break."""

    def __init__(self, chunks: tuple[bytes | Exception, ...]) -> None:
        self._chunks = chunks
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk

    def close(self) -> None:
        self.closed = True

    async def aclose(self) -> None:
        self.closed = True


def stream(*chunks: bytes | Exception) -> Told:
    """An event stream of these pieces."""
    return Told(200, headers={"content-type": "text/event-stream"}, chunks=chunks)


def _event(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


def _asked(method: str, path: str, query: dict[str, str], body: bytes, headers: dict[str, str]) -> Asked:
    try:
        value = json.loads(body) if body else None
    except ValueError:
        value = None
    return Asked(method, path, query, value, {name.lower(): text for name, text in headers.items()}, body)


def _item(found: EndpointDescription | None) -> EndpointItem:
    assert found is not None
    return EndpointItem(
        found.endpoint_name,
        found.model_name,
        found.status,
        found.endpoint,
        found.cluster_name,
        found.namespace,
        workspace=found.workspace,
        reason=found.reason,
        message=found.message,
        path_endpoint=found.path_endpoint,
        replica_count=found.replica_count,
        created_at=found.created_at,
    )
