"""The API as a client meets it: a real uvicorn server on loopback, a real SQLite file, a clock to set.

The server runs on an event loop in a thread of its own, so tests are plain functions that talk HTTP.
There are no controllers: a test says what they would have seen with `become`, and `finish_deletion`
does what they do last.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import socket
import string
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import jwt
import msgspec
import pytest
import uvicorn

from inferplane.api.app import Api, create_app
from inferplane.api.http import ApiProtocol
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointStatus,
    InferenceEndpoint,
    Milestone,
    ModelInfo,
    Replica,
    ReplicaState,
)
from inferplane.domain.endpoint_access import Access
from inferplane.domain.events import Event
from inferplane.domain.preflight import Check
from inferplane.domain.workspace import Cluster, Workspace
from inferplane.engines.clusters import ClusterLinks, NoLinks
from inferplane.engines.port import Action, EngineError, LogLine, Observation, Target
from inferplane.gateway.admin import AdminUnreachable
from inferplane.gateway.endpoint_keys import new_signing_key
from inferplane.gateway.history import TrafficHistory
from inferplane.gateway.series import Counters, Served
from inferplane.services.bootstrap import ensure_installation
from inferplane.services.context import GatewayAddress, Limits, Platform
from inferplane.store.sql import Store

T = TypeVar("T")
ENVELOPE_KEYS = {"statusCode", "status", "message", "data"}
FAILURE_KEYS = {*ENVELOPE_KEYS, "error"}
WAIT_SECONDS = 20.0
BODY_BYTES_MAX = 256 * 1024


def wait_for(probe: Callable[[], T | None], what: str, seconds: float = WAIT_SECONDS) -> T:
    """Ask until the answer is true; fail with `what` when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.005)


def new_id(length: int) -> str:
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(length))


@dataclass
class ScriptedEngine:
    """Has the logs and pre-flight answers that a test gives it; runs nothing."""

    lines: dict[str, list[LogLine]] = field(default_factory=dict)
    more: dict[str, asyncio.Queue[LogLine | None]] = field(default_factory=dict)
    checks: tuple[Check, ...] = (Check("storage", True, None, "reachable"),)
    failure: str = ""
    hangs: bool = False
    asked: list[Target] = field(default_factory=list)
    followers: int = 0

    async def start(self, wake: Callable[[str], None]) -> None:
        pass

    async def close(self, *, stop_servers: bool) -> None:
        pass

    async def observe(self, uid: str) -> Observation:
        return Observation()

    async def apply(self, target: Target, action: Action) -> None:
        pass

    async def owned(self) -> frozenset[str]:
        return frozenset()

    async def release_orphan(self, uid: str) -> None:
        pass

    async def logs(
        self,
        uid: str,
        *,
        replica: str = "",
        previous: bool = False,
        follow: bool = False,
        tail_lines: int = 200,
    ) -> AsyncIterator[LogLine]:
        if uid not in self.lines or (replica and replica not in {line.replica for line in self.lines[uid]}):
            raise EngineError("no replica of this endpoint has written a log")
        self.followers += 1
        try:
            for line in [line for line in self.lines[uid] if replica in {"", line.replica}][-tail_lines:]:
                yield replace(line, text=f"previous {line.text}") if previous else line
            while follow:
                next_line = await self.more[uid].get()
                if next_line is None:
                    raise EngineError("the log was taken away: s3://key:hunter2@bucket")
                yield next_line
        finally:
            self.followers -= 1

    async def preflight(self, target: Target) -> tuple[Check, ...]:
        self.asked.append(target)
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure:
            raise EngineError(self.failure)
        return self.checks


@dataclass(frozen=True)
class Reply:
    """An answer, checked to be an envelope in every respect that the contract calls strict."""

    status: int
    body: dict[str, Any]
    headers: httpx.Headers

    @property
    def data(self) -> Any:
        assert self.status == 200, self.body
        return self.body["data"]

    def ok(self) -> None:
        assert self.status == 200, self.body

    @property
    def error(self) -> dict[str, Any]:
        assert self.status != 200, self.body
        error: dict[str, Any] = self.body["error"]
        return error

    def is_error(self, status: int, key: str, reason: str = "") -> dict[str, Any]:
        assert (self.status, self.body["status"]) == (status, key), self.body
        if reason:
            assert self.error["reason"] == reason, self.body
        return self.error


def checked(response: httpx.Response) -> Reply:
    """Hold an answer against the strict part of the contract."""
    body = response.json()
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert isinstance(body, dict)
    assert body["statusCode"] == response.status_code
    if response.status_code == 200:
        assert set(body) == ENVELOPE_KEYS
        assert (body["status"], body["message"]) == ("OK", "Success")
        assert isinstance(body["data"], dict)
    else:
        assert response.status_code >= 400
        assert set(body) == FAILURE_KEYS
        error = body["error"]
        assert body["data"] is None
        assert body["status"] == error["errorKey"]
        assert body["message"] == error["message"]
        assert body["message"]
        assert error["requestId"] == response.headers["x-request-id"]
        assert isinstance(error["data"], str)
        old = msgspec.json.decode(error["data"])["error"]
        assert set(old) == {"Message", "Status", "DetailedError", "StatusCode", "ReferenceDocumentation"}
        assert set(old["DetailedError"]) == {"Errormessage", "Reason", "Details"}
        assert (old["Message"], old["StatusCode"]) == (body["message"], response.status_code)
        details = old["DetailedError"]["Details"]
        assert details == "" or all(set(each) == {"reason", "message", "field"} for each in details)
        assert "Traceback" not in response.text
    return Reply(response.status_code, body, response.headers)


class Client:
    """One key's bearer: exchanges it once, then calls."""

    def __init__(self, world: World, key: str) -> None:
        self.world, self.key = world, key
        self._token = ""

    def token(self) -> str:
        if not self._token:
            self._token = self.world.exchange(self.key)
        return self._token

    @property
    def key_id(self) -> str:
        subject: str = jwt.decode(self.token(), options={"verify_signature": False})["sub"]
        return subject

    def __call__(self, method: str, path: str, body: Any = None, **kwargs: Any) -> Reply:
        """`body` is sent as JSON unless it is bytes."""
        headers = {"Authorization": f"Bearer {self.token()}", **kwargs.pop("headers", {})}
        if body is not None:
            kwargs["content"] = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return checked(self.world.http.request(method, path, headers=headers, **kwargs))

    def stream(self, path: str, **params: str) -> contextlib.AbstractContextManager[Events]:
        return _stream(self, path, params)


class Events:
    """Server-sent events as they come. Comments are kept as ("", text)."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._parts = self._read()

    def _read(self) -> Iterator[tuple[str, Any]]:
        text = ""
        for chunk in self.response.iter_text():
            text += chunk
            while "\n\n" in text:
                block, _, text = text.partition("\n\n")
                if block.startswith(":"):
                    yield "", block[1:].strip()
                    continue
                fields = dict(line.split(": ", 1) for line in block.split("\n"))
                yield fields["event"], msgspec.json.decode(fields["data"])

    def next(self) -> tuple[str, Any]:
        return next(self._parts)

    def next_event(self) -> tuple[str, Any]:
        """The next one that is no comment."""
        while True:
            name, data = self.next()
            if name:
                return name, data

    def rest(self) -> list[tuple[str, Any]]:
        return list(self._parts)


@contextlib.contextmanager
def _stream(client: Client, path: str, params: Mapping[str, str]) -> Iterator[Events]:
    headers = {"Authorization": f"Bearer {client.token()}"}
    with client.world.http.stream("GET", path, params=params, headers=headers) as response:
        if response.status_code != 200:
            response.read()
            checked(response)
        assert response.headers["content-type"] == "text/event-stream", response.text
        yield Events(response)


class World:
    """A running API and everything a test needs around it."""

    def __init__(
        self,
        folder: Path,
        limits: Limits | None = None,
        database_url: str = "",
        default_access: Access = Access.OPEN,
    ) -> None:
        self.default_access = default_access
        self.signing_key = new_signing_key()
        self.folder = folder
        self.database_url = database_url or f"sqlite:///{folder / 'inferplane.db'}"
        self.engine = ScriptedEngine()
        self.links: ClusterLinks = NoLinks()
        self.unready: dict[str, str] = {"gateway": ""}
        self.later = timedelta(0)
        self.counters: dict[Served, Counters] | None = None
        self.grants_measured = False
        self.limits = limits or Limits(
            request_bytes_max=BODY_BYTES_MAX,
            request_seconds_max=2.0,
            heartbeat_seconds=0.2,
            force_delete_wait_seconds=0.3,
            preflight_seconds_max=0.3,
        )
        self.numbers = itertools.count(1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="api", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.do(self._open())
        self.http = httpx.Client(base_url=self.url, timeout=WAIT_SECONDS)
        self.owner = Client(self, (self.folder / "owner.key").read_text().strip())
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self._close())
        self.http.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_SECONDS)

    async def _open(self) -> None:
        self.store = await Store.open(self.database_url)
        await ensure_installation(self.store, self.folder / "owner.key", self.now, new_id, cluster="local")
        async with self.store.transaction() as tx:
            await tx.put_cluster(Cluster("edge", "local", self.now()))  # registered, but no engine runs
            await tx.put_cluster(Cluster("cloud", "kserve", self.now()))
        self.platform = Platform(
            store=self.store,
            engines={"local": self.engine},
            clock=self.now,
            gateway=GatewayAddress("http", 7080, "localhost", "127.0.0.1"),
            new_id=new_id,
            limits=self.limits,
            default_access=self.default_access,
            signing_key=self.signing_key,
            traffic=TrafficHistory(self.counted, self.now),
            grant_measured=lambda _grant: self.grants_measured,
            links=self.links,
        )
        self.app: Api = create_app(self.platform, readiness=lambda: self.unready, version="1.2.3")
        # Named as TCP, or asyncio would not switch Nagle's algorithm off and each answer took 40 ms more.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        self.port = int(listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self.app,
            log_level="error",
            lifespan="off",
            http=ApiProtocol,
            timeout_graceful_shutdown=5,
        )
        self.server = uvicorn.Server(config)
        self.server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self._serving = asyncio.create_task(self.server._serve(sockets=[listener]))
        while not self.server.started:  # noqa: ASYNC110 - uvicorn offers nothing to wait on
            await asyncio.sleep(0.005)

    async def _close(self) -> None:
        self.app.end_streams()
        self.server.should_exit = True
        await self._serving
        await self.store.close()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.later

    async def counted(self, uid: str) -> Mapping[Served, Counters]:
        """What the gateway would have counted, as a test says; it does not answer before one does."""
        if self.counters is None:
            raise AdminUnreachable("no gateway")
        return {served: one for served, one in self.counters.items() if uid in ("", served.uid)}

    # Callers

    def exchange(self, key: str) -> str:
        reply = checked(self.http.post("/api/v1/auth", json={"apiKey": key}))
        assert set(reply.data) == {"token"}
        token: str = reply.data["token"]
        return token

    def name(self, prefix: str = "n") -> str:
        return f"{prefix}{next(self.numbers)}-{new_id(4)}"

    def workspace(self, *clusters: str, prefix: str = "team") -> str:
        name = self.name(prefix)
        self.do(self._add_workspace(Workspace(name, clusters or ("local",), self.now())))
        return name

    async def _add_workspace(self, workspace: Workspace) -> None:
        async with self.store.transaction() as tx:
            await tx.add_workspace(workspace)

    def client(self, role: str, workspace: str = "", validity: str = "1d") -> Client:
        body = {"name": self.name("key"), "role": role, "validity": validity, "workspaceName": workspace}
        key: str = self.owner("POST", "/api/v1/api-key", body).data["apiKey"]
        return Client(self, key)

    # Endpoints

    def create(self, workspace: str, name: str = "", **more: Any) -> str:
        name = name or self.name("e")
        body = {
            "endpointName": name,
            "workspace": workspace,
            "modelSpec": {"modelName": "sklearn", "storageURI": "/models/iris.joblib"},
            **more,
        }
        assert self.owner("POST", "/api/v1/inference-endpoint", body).data == {"endpointName": name}
        return name

    def stored(self, workspace: str, name: str, cluster: str = "") -> InferenceEndpoint:
        async def get() -> InferenceEndpoint:
            async with self.store.read() as tx:
                return await tx.get_endpoint(workspace, name, cluster)

        return self.do(get())

    def become(self, endpoint: InferenceEndpoint, status: EndpointStatus, *news: Event) -> None:
        """What a controller would write, and tell."""

        async def save() -> None:
            async with self.store.transaction() as tx:
                present = await tx.get_endpoint_by_uid(endpoint.uid)
                assert present is not None
                await tx.save_endpoint_status(present.uid, present.version, status)
                for each in news:
                    await tx.append_event(each)

        self.do(save())

    def run(
        self,
        workspace: str,
        name: str,
        example: str = '{"instances": [[5.1, 3.5, 1.4, 0.2]]}',
        cluster: str = "",
    ) -> None:
        """Make an endpoint Running."""
        endpoint = self.stored(workspace, name, cluster)
        self.become(endpoint, self.running_status(endpoint, example))

    def running_status(self, endpoint: InferenceEndpoint, example: str = "") -> EndpointStatus:
        at = endpoint.created_at
        steps = (0, 0.2, 0.25, 0.4, 0.45)
        model = ModelInfo(example=example) if example else ModelInfo()
        return EndpointStatus(
            observed_generation=endpoint.generation,
            artifact=ArtifactState(
                ArtifactPhase.PRESENT,
                uri=endpoint.spec.model.storage_uri,
                received_bytes=1200,
                total_bytes=1200,
                started_at=at,
                finished_at=at + timedelta(seconds=0.2),
            ),
            replicas=tuple(
                Replica(each, ReplicaState.READY, address="unix:/s", pid=4711, started_at=at, ready_at=at)
                for each in endpoint.replica_ids()
            ),
            routed=tuple(each.name for each in endpoint.replica_ids()),
            milestones=tuple(
                (name, at + timedelta(seconds=step)) for name, step in zip(Milestone, steps, strict=True)
            ),
            model=model,
            since=at + timedelta(seconds=0.45),
        )

    def finish_deletion(self, workspace: str, name: str) -> None:
        """The last thing a controller does."""
        endpoint = self.stored(workspace, name)

        async def remove() -> None:
            async with self.store.transaction() as tx:
                await tx.remove_endpoint(endpoint.uid)

        self.do(remove())

    def raw(self, request: bytes) -> tuple[int, bytes]:
        """Bytes as they are, for what no client library would send. Status and body."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_SECONDS) as connection:
            connection.sendall(request)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), body
