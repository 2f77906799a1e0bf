"""The HTTP side: who asks for what, and the answer in Kubernetes' words.

Everything runs on the loop that `start` is called on. What changes the store is synchronous, so a request is either
done or not; only waiting (watches, logs that are followed, faults) lets others in.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import yaml

from kube_api import patches, refusals, wire
from kube_api.certificates import Authority
from kube_api.faults import Fault, Faults, Planned
from kube_api.kinds import Kind, plain_node
from kube_api.logs import PodLogs
from kube_api.questions import answer_question
from kube_api.rbac import ADMIN, Asked, Authorizer, Identity, User
from kube_api.recordings import SHARED, recorded_nodes
from kube_api.refusals import Refused
from kube_api.schema import Cause
from kube_api.selectors import Matches, field_selector, label_selector, name_asked_for
from kube_api.store import Change, Store, Write
from kube_api.wire import Answer, Incoming

Raw = dict[str, Any]
_T = TypeVar("_T")

TOKEN_SECONDS_MIN = 600
_OPEN = ("/version", "/healthz", "/livez", "/readyz")
"""Paths that need no rights."""


@dataclass(slots=True)
class Logged:
    """One request that arrived."""

    verb: str
    """As RBAC names it: get, list, watch, create, update, patch, delete, deletecollection; "apply" for a
    server-side apply; "" for what is no resource (/version)."""
    method: str
    path: str
    query: dict[str, str]
    resource: str
    """The plural, with a subresource: "pods/log"."""
    namespace: str
    name: str
    user: str
    user_agent: str
    body: Any
    """As parsed; None without one."""
    at: float
    """Of the loop's clock."""
    status: int = 0
    """What was answered; 0: nothing (yet)."""


class RequestLog:
    """The requests in order of arrival."""

    def __init__(self) -> None:
        self.all: list[Logged] = []

    def __iter__(self) -> Iterator[Logged]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def of(
        self,
        *,
        verb: str | None = None,
        resource: str | None = None,
        name: str | None = None,
        status: int | None = None,
    ) -> list[Logged]:
        """Those that match all that is named."""
        return [
            each
            for each in self.all
            if (verb is None or each.verb == verb)
            and (resource is None or each.resource == resource)
            and (name is None or each.name == name)
            and (status is None or each.status == status)
        ]

    def count(
        self,
        *,
        verb: str | None = None,
        resource: str | None = None,
        name: str | None = None,
        status: int | None = None,
    ) -> int:
        """How many match."""
        return len(self.of(verb=verb, resource=resource, name=name, status=status))

    def clear(self) -> None:
        """Forgets them, to count from here on."""
        self.all.clear()


@dataclass(slots=True)
class _Place:
    """What a path names."""

    kind: Kind
    namespace: str
    name: str
    subresource: str

    @property
    def resource(self) -> str:
        return f"{self.kind.plural}/{self.subresource}" if self.subresource else self.kind.plural


@dataclass(slots=True, eq=False)
class _Watch:
    """One watch that is open."""

    place: _Place
    matches: Matches
    writer: asyncio.StreamWriter
    events: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    cut: bool | None = None
    """Set when it is to be cut; True: in the middle of a line."""

    def offer(self, change: Change) -> None:
        """Queues a change, as those who select by labels or fields see it."""
        if change.kind is not self.place.kind and change.kind.resource != self.place.kind.resource:
            return
        if self.place.namespace and change.namespace != self.place.namespace:
            return
        is_in = change.type != "DELETED" and self.matches(change.object)
        was_in = change.before is not None and self.matches(change.before)
        if change.type == "DELETED":
            if was_in:
                self.events.put_nowait(_event("DELETED", change.object))
        elif is_in:
            self.events.put_nowait(_event("MODIFIED" if was_in else "ADDED", change.object))
        elif was_in and change.before is not None:
            # It no longer matches: gone for this watch, as it was, with the version of the change.
            gone = deepcopy(change.before)
            gone["metadata"]["resourceVersion"] = str(change.version)
            self.events.put_nowait(_event("DELETED", gone))


def _event(type_: str, value: Raw) -> bytes:
    return json.dumps({"type": type_, "object": value}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class _Line:
    """A connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class _Streamed(Exception):
    """The answer was written already; `whole`: to its end, so that the connection can take another request."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.whole = whole


class KubeApi:
    """One emulated API server. `history`: how many changes a watch can go back; `kserve`: whether its CRDs are
    there, `webhooks` whether its webhooks are; `pod_grace_s`: after how long a pod being deleted is gone
    (None: whoever plays the kubelet says); `tls`: it speaks TLS, and users may show certificates."""

    def __init__(
        self,
        *,
        users: Iterable[User] = (ADMIN,),
        history: int = 10_000,
        bookmark_s: float = 1.0,
        pod_grace_s: float | None = 0.0,
        kserve: bool = True,
        webhooks: bool = True,
        version: str = "v1.36.2",
        tls: bool = False,
    ) -> None:
        self.authority = Authority() if tls else None
        """Who signs its certificates, where it speaks TLS."""
        self._tls = self.authority.server() if self.authority else None
        self.store = Store(history=history, pod_grace_s=pod_grace_s, kserve=kserve, webhooks=webhooks)
        self.requests = RequestLog()
        self.faults = Faults(self._refuse, self._listen_again, self._cut_watches)
        self.authorizer = Authorizer(self.store)
        self.logs = PodLogs()
        self.errors: list[Exception] = []
        """What went wrong in here, not in the client."""
        for user in users:
            self.add_user(user)
        self._version = version
        self._bookmark_s = bookmark_s
        self._server: asyncio.Server | None = None
        self._kept: socket.socket | None = None
        self._port = 0
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._watches: set[_Watch] = set()
        self._pages: dict[str, tuple[int, list[Raw]]] = {}
        self.store.listeners.append(self._tell_watches)

    # -- life -----------------------------------------------------------------------------------------

    async def start(self) -> KubeApi:
        """Listens on a free port of 127.0.0.1."""
        for kind in self.store.kinds.values():
            # Read now, not within somebody's first request, whose timeout may be short.
            self.store.schema_of(kind)
        self._kept = _bound(0)
        self._port = self._kept.getsockname()[1]
        await self._listen_again()
        self.store.wake()
        return self

    async def stop(self) -> None:
        """Closes everything. Twice is fine."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        await self._close_connections()
        if self.errors:
            raise self.errors.pop()

    async def __aenter__(self) -> KubeApi:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _listen_again(self) -> None:
        if self._server is None and self._kept is not None:
            kept, self._kept = self._kept, None
            self._server = await asyncio.start_server(
                self._serve, sock=kept, limit=wire.HEAD_BYTES_MAX, ssl=self._tls
            )

    def _refuse(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self._server = None
        # Bound but not listening: connections are refused and nobody else gets the port.
        self._kept = _bound(self._port)
        for task, writer in list(self._connections.items()):
            writer.transport.abort()
            task.cancel()

    async def _close_connections(self) -> None:
        tasks = list(self._connections.items())
        for task, writer in tasks:
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)

    def _cut_watches(self, mid_line: bool) -> int:
        cut = list(self._watches)
        for watch in cut:
            watch.cut = mid_line
            watch.events.put_nowait(None)
        return len(cut)

    # -- what tests call ------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`, with TLS `https://…`."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}"

    def kubeconfig(
        self,
        path: Path,
        user: str = "admin",
        *,
        context: str = "emulated",
        namespace: str = "",
        by_certificate: bool = False,
    ) -> Path:
        """Writes a kubeconfig with that user's token, or with a certificate (TLS only); the path. Raises KeyError for
        a user it does not know."""
        there: Raw = {"cluster": context, "user": user}
        if namespace:
            there["namespace"] = namespace
        cluster: Raw = {"server": self.url}
        secret: Raw = {"token": self.authorizer.token_of(user)}
        if self.authority is not None:
            cluster["certificate-authority-data"] = base64.b64encode(self.authority.pem).decode()
            if by_certificate:
                certificate, key = self.authority.of_user(user)
                secret = {
                    "client-certificate-data": base64.b64encode(certificate).decode(),
                    "client-key-data": base64.b64encode(key).decode(),
                }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": context, "cluster": cluster}],
            "users": [{"name": user, "user": secret}],
            "contexts": [{"name": context, "context": there}],
            "current-context": context,
        }
        path.write_text(yaml.safe_dump(config))
        path.chmod(0o600)
        return path

    def add_user(self, user: User) -> None:
        """One more token, or other rules for a name there is."""
        self.authorizer.add(user)

    def set_log(self, namespace: str, pod: str, container: str, text: str, *, previous: bool = False) -> None:
        """What `pods/log` answers."""
        self.logs.set(namespace, pod, container, text, previous=previous)

    def add_nodes(self, recorded: str = "nodes-gpu", *, copies: int = 1) -> list[str]:
        """The Nodes of a recorded list, `copies` times under names of their own; the names. Without the recordings,
        a node made by hand that looks like the one in "nodes-gpu"."""
        names = []
        for number in range(1, copies + 1):
            for node in deepcopy(
                recorded_nodes(recorded) if SHARED is not None else [plain_node("node1", 4)]
            ):
                metadata = node["metadata"]
                if copies > 1:
                    metadata["name"] = f"{metadata['name']}-{number}"
                    metadata["labels"]["kubernetes.io/hostname"] = metadata["name"]
                    metadata["uid"] = str(uuid.uuid4())
                self.store.put(node, manager="kubelet")
                names.append(metadata["name"])
        return names

    @property
    def watches(self) -> int:
        """How many watches are open."""
        return len(self._watches)

    # -- connections ----------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            while await self._one(reader, writer):
                pass
        except (wire.Closed, ConnectionError):
            pass
        except asyncio.CancelledError:
            # stop() and away() end connections so; there is nobody above who waits for this task.
            writer.transport.abort()
        finally:
            self._connections.pop(task, None)
            with suppress(ConnectionError, RuntimeError):
                writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        incoming = await wire.read(reader)
        logged = Logged(
            verb="",
            method=incoming.method,
            path=incoming.path,
            query=incoming.query,
            resource="",
            namespace="",
            name="",
            user="",
            user_agent=incoming.headers.get("user-agent", ""),
            body=None,
            at=asyncio.get_running_loop().time(),
        )
        self.requests.all.append(logged)
        try:
            place = self._place(incoming.path)
            self._describe(logged, incoming, place)
            planned = self.faults.pick(logged)
            if planned is not None:
                await self._suffer(planned, reader)
            answer = await self._answer(logged, incoming, place, _Line(reader, writer))
            if planned is not None and planned.fault is Fault.LOST_ANSWER:
                writer.transport.abort()
                return False
        except Refused as refused:
            retry = 1 if refused.code == 429 else None
            if refused.details and "retryAfterSeconds" in refused.details:
                retry = refused.details["retryAfterSeconds"]
            answer = Answer(refused.code, refused.status, retry_after_s=retry)
        except _Streamed as streamed:
            return streamed.whole and incoming.keeps_alive
        except (wire.Closed, ConnectionError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a fault of this emulator
            # A fault of this emulator: the client gets an answer, and `stop` raises it for the test to fail.
            self.errors.append(error)
            answer = Answer(500, Refused(500, "InternalError", f"the emulator failed: {error!r}").status)
        logged.status = answer.status
        writer.write(answer.encoded(keep=incoming.keeps_alive))
        await writer.drain()
        return incoming.keeps_alive

    async def _suffer(self, planned: Planned, reader: asyncio.StreamReader) -> None:
        match planned.fault:
            case Fault.ANSWER:
                raise _failure(planned)
            case Fault.SLOW:
                await asyncio.sleep(planned.seconds)
            case Fault.HANG:
                # Until the client has had enough: nothing else comes on this connection.
                await reader.read(1)
                raise wire.Closed
            case Fault.LOST_ANSWER:
                pass

    def _place(self, path: str) -> _Place | None:
        parts = [each for each in path.split("/") if each]
        if parts[:1] == ["api"] and len(parts) > 2 and parts[1] == "v1":
            group, version, rest = "", "v1", parts[2:]
        elif parts[:1] == ["apis"] and len(parts) > 3:
            group, version, rest = parts[1], parts[2], parts[3:]
        else:
            return None
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2 and rest[2] not in ("status", "finalize"):
            namespace, rest = rest[1], rest[2:]
        kind = self.store.kinds.get(f"{rest[0]}.{group}" if group else rest[0])
        if kind is None or kind.version != version or len(rest) > 3 or (namespace and not kind.namespaced):
            return None
        name, subresource = [*rest[1:], "", ""][:2]
        if subresource and subresource not in kind.subresources:
            return None
        return _Place(kind, namespace, name, subresource)

    def _describe(self, logged: Logged, incoming: Incoming, place: _Place | None) -> None:
        content = incoming.headers.get("content-type", "")
        if incoming.body:
            with suppress(ValueError, yaml.YAMLError):
                logged.body = _parse(incoming.body, content)
        if place is None:
            return
        logged.resource, logged.namespace, logged.name = place.resource, place.namespace, place.name
        if place.kind.name == "Namespace":
            logged.namespace = place.name
        watching = incoming.query.get("watch", "") in ("1", "true")
        match incoming.method:
            case "GET" | "HEAD":
                logged.verb = ("watch" if watching else "list") if not place.name or watching else "get"
            case "POST":
                logged.verb = "create"
                if not place.name and isinstance(logged.body, dict):
                    logged.name = str((logged.body.get("metadata") or {}).get("name", ""))
            case "PUT":
                logged.verb = "update"
            case "PATCH":
                logged.verb = "apply" if content.startswith(patches.APPLY) else "patch"
            case "DELETE":
                logged.verb = "delete" if place.name else "deletecollection"

    # -- answers --------------------------------------------------------------------------------------

    async def _answer(self, logged: Logged, incoming: Incoming, place: _Place | None, line: _Line) -> Answer:
        header = incoming.headers.get("authorization", "")
        shown = _common_name(line.writer)
        if incoming.path in _OPEN and not header and not shown:
            return self._unplaced(incoming)
        who = self.authorizer.known_as(shown) if shown and not header else self.authorizer.identify(header)
        logged.user = who.name
        if place is None:
            return self._unplaced(incoming)
        if len(incoming.body) > wire.BODY_BYTES_MAX:
            raise Refused(
                413, "RequestEntityTooLarge", f"Request entity too large: limit is {wire.BODY_BYTES_MAX}"
            )
        if place.kind.only_create:
            body = self._body(incoming, place.kind)
            return Answer(201, answer_question(self.authorizer, who, place.kind, body))
        self._authorize(logged, incoming, place, who)
        match logged.verb:
            case "get":
                return await self._get(incoming, place, line, logged)
            case "list":
                return self._list(incoming, place)
            case "watch":
                logged.status = 200
                raise _Streamed(whole=await self._watch(incoming, place, line))
            case "create":
                return self._create(incoming, place, who)
            case "update":
                return self._update(incoming, place, who)
            case "patch":
                return self._patch(incoming, place, who)
            case "apply":
                return self._apply(incoming, place, who)
            case "delete":
                return self._delete(incoming, place)
            case "deletecollection":
                return self._delete_all(incoming, place)
        raise Refused(
            405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
        )

    def _authorize(self, logged: Logged, incoming: Incoming, place: _Place, who: Identity) -> None:
        verb = "patch" if logged.verb == "apply" else logged.verb
        # A create is authorized without a name: it is not in the path.
        name = place.name or name_asked_for(incoming.query.get("fieldSelector", ""))
        namespace = place.namespace or (place.name if place.kind.name == "Namespace" else "")
        self.authorizer.check(who, place.kind, Asked(verb, place.kind.group, place.resource, namespace, name))
        if place.kind.namespaced and not place.namespace and verb not in ("list", "watch"):
            raise refusals.bad_request("an empty namespace may not be set during creation")

    def _unplaced(self, incoming: Incoming) -> Answer:
        parts = [each for each in incoming.path.split("/") if each]
        groups: dict[str, set[str]] = {}
        for kind in self.store.kinds.values():
            groups.setdefault(kind.group, set()).add(kind.version)
        match parts:
            case ["version"]:
                major, minor = self._version.lstrip("v").split(".")[:2]
                return Answer(
                    200,
                    {
                        "major": major,
                        "minor": minor,
                        "gitVersion": self._version,
                        "gitCommit": "0" * 40,
                        "gitTreeState": "clean",
                        "buildDate": "2026-05-01T00:00:00Z",
                        "goVersion": "go1.26.0",
                        "compiler": "gc",
                        "platform": "linux/amd64",
                    },
                )
            case ["healthz" | "livez" | "readyz"]:
                return Answer(200, b"ok", content_type="text/plain; charset=utf-8")
            case ["api"]:
                return Answer(200, {"kind": "APIVersions", "versions": ["v1"]})
            case ["api", "v1"]:
                return Answer(200, self._resources("", "v1"))
            case ["apis"]:
                found = [_group(name, versions) for name, versions in sorted(groups.items()) if name]
                return Answer(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": found})
            case ["apis", group] if group in groups:
                return Answer(200, {"apiVersion": "v1", **_group(group, groups[group])})
            case ["apis", group, version] if version in groups.get(group, ()):
                return Answer(200, self._resources(group, version))
        return Answer(404, b"404 page not found\n", content_type="text/plain; charset=utf-8")

    def _resources(self, group: str, version: str) -> Raw:
        found = []
        for kind in self.store.kinds.values():
            if (kind.group, kind.version) != (group, version):
                continue
            every = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            found.append(
                {
                    "name": kind.plural,
                    "singularName": kind.name.lower(),
                    "namespaced": kind.namespaced,
                    "kind": kind.name,
                    "verbs": ["create"] if kind.only_create else every,
                    **({"shortNames": list(kind.short)} if kind.short else {}),
                }
            )
            verbs = {"token": ["create"], "log": ["get"], "eviction": ["create"]}
            found += [
                {
                    "name": f"{kind.plural}/{each}",
                    "singularName": "",
                    "namespaced": kind.namespaced,
                    "kind": kind.name,
                    "verbs": verbs.get(each, ["get", "patch", "update"]),
                }
                for each in kind.subresources
            ]
        wanted = f"{group}/{version}" if group else version
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": wanted, "resources": found}

    # -- reading --------------------------------------------------------------------------------------

    async def _get(self, incoming: Incoming, place: _Place, line: _Line, logged: Logged) -> Answer:
        found = self.store.peek(place.kind, place.namespace, place.name)
        if found is None:
            raise refusals.not_found(place.kind, place.name)
        if place.subresource == "log":
            follow = incoming.query.get("follow", "") in ("1", "true")
            text = self.logs.answer(found, incoming.query)
            if not follow:
                return Answer(200, text.encode(), content_type="text/plain")
            logged.status = 200
            raise _Streamed(whole=await self._follow(found, incoming, line))
        if place.subresource == "scale":
            return Answer(200, _scale(found))
        return Answer(200, found)

    async def _follow(self, pod: Raw, incoming: Incoming, line: _Line) -> bool:
        writer = line.writer
        writer.write(wire.stream_head("text/plain"))
        async for text in self.logs.follow(pod, incoming.query, self.store):
            if line.reader.at_eof():
                return False
            if text:
                writer.write(wire.chunk(text.encode()))
                await writer.drain()
        writer.write(wire.chunk(b""))
        await writer.drain()
        return True

    def _selected(self, incoming: Incoming, kind: Kind) -> Matches:
        labels = label_selector(incoming.query.get("labelSelector", ""))
        fields = field_selector(kind, incoming.query.get("fieldSelector", ""))
        return lambda found: labels(found) and fields(found)

    def _list(self, incoming: Incoming, place: _Place) -> Answer:
        query, kind = incoming.query, place.kind
        limit = _number(query.get("limit", "0"), "limit")
        said = query.get("resourceVersion", "")
        if said not in ("", "0"):
            wanted = _number(said, "resourceVersion")
            if wanted > self.store.version:
                raise Refused(
                    504,
                    "Timeout",
                    f"Timeout: Too large resource version: {wanted}, current: {self.store.version}",
                    {
                        "causes": [
                            {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
                        ],
                        "retryAfterSeconds": 1,
                    },
                )
            if query.get("resourceVersionMatch") == "Exact" and wanted < self.store.oldest:
                raise refusals.gone(f"The resourceVersion for the provided list is too old: {wanted}.")
        token = query.get("continue", "")
        if token:
            key = _decoded(token)
            version, found = self._pages.get(key, (-1, []))
            if version < self.store.oldest:
                raise refusals.gone(
                    "The provided continue parameter is too old to display a consistent list result. You can start a "
                    "new list without the continue parameter."
                )
        else:
            matches = self._selected(incoming, kind)
            version = self.store.version
            found = [each for each in self.store.all_of(kind, place.namespace) if matches(each)]
        metadata: Raw = {"resourceVersion": str(version)}
        if limit and len(found) > limit:
            key = uuid.uuid4().hex
            self._pages[key] = (version, found[limit:])
            metadata["continue"] = base64.b64encode(key.encode()).decode()
            if not query.get("labelSelector") and not query.get("fieldSelector"):
                metadata["remainingItemCount"] = len(found) - limit
            found = found[:limit]
        body = {
            "kind": f"{kind.name}List",
            "apiVersion": kind.api_version,
            "metadata": metadata,
            "items": found if kind.custom else [_untyped(each) for each in found],
        }
        return Answer(200, body)

    def _tell_watches(self, change: Change) -> None:
        for watch in self._watches:
            watch.offer(change)

    async def _watch(self, incoming: Incoming, place: _Place, line: _Line) -> bool:
        """Streams until the watch ends; whether it ended as it should."""
        writer = line.writer
        query = incoming.query
        matches = self._selected(incoming, place.kind)
        if place.name:
            by_name, others = place.name, matches
            matches = lambda found: found["metadata"]["name"] == by_name and others(found)  # noqa: E731
        watch = _Watch(place, matches, writer)
        bookmarks = query.get("allowWatchBookmarks", "") in ("1", "true")
        timeout = query.get("timeoutSeconds", "")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (_number(timeout, "timeoutSeconds") if timeout else 3600.0)
        said = query.get("resourceVersion", "")
        start = _number(said or "0", "resourceVersion")
        initial = query.get("sendInitialEvents", "") in ("1", "true")
        if initial and query.get("resourceVersionMatch") != "NotOlderThan":
            raise refusals.bad_request(
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless resourceVersionMatch is "
                "NotOlderThan"
            )
        writer.write(wire.stream_head())
        if start == 0 or initial:
            for each in self.store.all_of(place.kind, place.namespace):
                if matches(each):
                    watch.events.put_nowait(_event("ADDED", each))
            if initial and bookmarks:
                watch.events.put_nowait(self._bookmark(place.kind, initial=True))
        else:
            try:
                for change in self.store.since(start):
                    watch.offer(change)
            except Refused as refused:
                writer.write(wire.chunk(_event("ERROR", refused.status)) + wire.chunk(b""))
                await writer.drain()
                return True
        self._watches.add(watch)
        # Nothing more is asked on this connection: what can still be read is its end.
        closed = asyncio.ensure_future(line.reader.read(1))
        closed.add_done_callback(lambda _: watch.events.put_nowait(None))
        try:
            return await self._pump(watch, deadline, closed, bookmarks=bookmarks)
        finally:
            self._watches.discard(watch)
            closed.cancel()
            # The reader is free for the next request only once this has ended.
            await asyncio.gather(closed, return_exceptions=True)

    async def _pump(
        self, watch: _Watch, deadline: float, closed: asyncio.Future[bytes], *, bookmarks: bool
    ) -> bool:
        loop = asyncio.get_running_loop()
        writer = watch.writer
        while not closed.done():
            left = deadline - loop.time()
            if left <= 0:
                writer.write(wire.chunk(b""))
                await writer.drain()
                return True
            try:
                async with asyncio.timeout(min(left, self._bookmark_s) if bookmarks else left):
                    line = await watch.events.get()
            except TimeoutError:
                if bookmarks and watch.cut is None:
                    writer.write(wire.chunk(self._bookmark(watch.place.kind)))
                    await writer.drain()
                continue
            if watch.cut is not None:
                if watch.cut:
                    half = _event("MODIFIED", {"kind": watch.place.kind.name, "apiVersion": "v1"})[:20]
                    writer.write(b"%x\r\n" % (len(half) * 3) + half)
                    with suppress(ConnectionError):
                        await writer.drain()
                    writer.close()
                else:
                    writer.transport.abort()
                return False
            if line is not None:
                writer.write(wire.chunk(line))
                await writer.drain()
        return False

    def _bookmark(self, kind: Kind, *, initial: bool = False) -> bytes:
        metadata: Raw = {"resourceVersion": str(self.store.version), "creationTimestamp": None}
        if initial:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        return _event("BOOKMARK", {"kind": kind.name, "apiVersion": kind.api_version, "metadata": metadata})

    # -- writing --------------------------------------------------------------------------------------

    def _write(self, incoming: Incoming, who: Identity, place: _Place, *, apply: bool = False) -> Write:
        query = incoming.query
        agent = incoming.headers.get("user-agent", "unknown").partition("/")[0]
        dry_run = query.get("dryRun", "")
        if dry_run not in ("", "All"):
            cause = f'dryRun: Unsupported value: "{dry_run}": supported values: "All"'
            raise Refused(422, "Invalid", f'PatchOptions.meta.k8s.io "" is invalid: {cause}')
        validation = query.get("fieldValidation", "Warn")
        if validation not in ("Strict", "Warn", "Ignore"):
            cause = f'fieldValidation: Unsupported value: "{validation}": supported values: "Ignore", "Strict", "Warn"'
            raise Refused(422, "Invalid", f'CreateOptions.meta.k8s.io "" is invalid: {cause}')
        manager = query.get("fieldManager", "")
        if apply and not manager:
            raise Refused(
                422,
                "Invalid",
                'PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch',
            )

        def may_create() -> None:
            asked = Asked("create", place.kind.group, place.resource, place.namespace, place.name)
            self.authorizer.check(who, place.kind, asked)

        return Write(manager or agent, bool(dry_run), validation, may_create=may_create)

    def _body(self, incoming: Incoming, kind: Kind) -> Raw:
        try:
            found = _parse(incoming.body, incoming.headers.get("content-type", ""))
        except (ValueError, yaml.YAMLError) as error:
            text = incoming.body.decode("utf-8", "replace")
            shown = text if len(text) <= 30 else f"{text[:30]} ..."
            at_end = isinstance(error, json.JSONDecodeError) and error.pos >= len(text.rstrip()) - 1
            why = "unexpected end of JSON input" if at_end or not text.strip() else f"invalid JSON ({error})"
            raise refusals.bad_request(
                f"the object provided is unrecognized (must be of type {kind.name}): couldn't get version/kind; json "
                f"parse error: {why} ({shown})"
            ) from None
        if not isinstance(found, dict):
            raise refusals.bad_request(
                f"the object provided is unrecognized (must be of type {kind.name}): couldn't get version/kind; json "
                f"parse error: json: cannot unmarshal {type(found).__name__} into Go value of type struct"
            )
        return found

    def _typed(self, incoming: Incoming, kind: Kind) -> Raw:
        body = self._body(incoming, kind)
        if not body.get("kind") or not body.get("apiVersion"):
            # Built-in kinds are known by their path; a custom resource has to say what it is.
            if kind.custom:
                raise refusals.bad_request("Object 'Kind' is missing in '" + json.dumps(body)[:100] + "'")
            body.setdefault("kind", kind.name)
            body.setdefault("apiVersion", kind.api_version)
        return body

    def _create(self, incoming: Incoming, place: _Place, who: Identity) -> Answer:
        if place.subresource == "token":
            return self._token(incoming, place)
        if place.subresource == "eviction":
            self.store.remove(place.kind, place.namespace, place.name)
            return Answer(
                201, {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}
            )
        if place.name:
            raise Refused(
                405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
            )
        body = self._typed(incoming, place.kind)
        write = self._write(incoming, who, place)
        self.authorizer.check_escalation(who, place.kind, {"metadata": {}, **body}, place.namespace)
        made, warnings = self.store.create(place.kind, place.namespace, body, write)
        return Answer(201, made, tuple(map(wire.warning, warnings)))

    def _update(self, incoming: Incoming, place: _Place, who: Identity) -> Answer:
        body = self._typed(incoming, place.kind)
        write = self._write(incoming, who, place)
        if place.subresource == "scale":
            wanted = (body.get("spec") or {}).get("replicas", 0)
            return self._set_scale(place, write, wanted)
        if place.subresource == "finalize":
            finalizers = (body.get("spec") or {}).get("finalizers") or []
            return Answer(
                200,
                self.store.edit(
                    "Namespace", place.name, "", lambda each: each["spec"].update(finalizers=finalizers)
                ),
            )
        self.authorizer.check_escalation(who, place.kind, body, place.namespace)
        if place.kind.custom and not (body.get("metadata") or {}).get("resourceVersion"):
            here = self.store.peek(place.kind, place.namespace, place.name)
            if here is None:
                raise refusals.not_found(place.kind, place.name)
            text = "Invalid value: 0: must be specified for an update"
            cause = Cause("metadata.resourceVersion", "FieldValueInvalid", text)
            raise refusals.invalid(place.kind, place.name, [cause])
        result, warnings = self.store.update(
            place.kind, place.namespace, place.name, lambda _: body, write, place.subresource
        )
        return Answer(200, result, tuple(map(wire.warning, warnings)))

    def _patch(self, incoming: Incoming, place: _Place, who: Identity) -> Answer:
        content = incoming.headers.get("content-type", "").partition(";")[0].strip()
        accepted = [patches.JSON, patches.MERGE, patches.APPLY]
        if not place.kind.custom:
            accepted.insert(2, patches.STRATEGIC)
        if content not in accepted:
            raise refusals.unsupported_media(accepted)
        if incoming.query.get("force"):
            raise Refused(
                422,
                "Invalid",
                'PatchOptions.meta.k8s.io "" is invalid: force: Forbidden: may not be specified for non-apply patch',
            )
        try:
            patch = json.loads(incoming.body)
        except ValueError as error:
            raise refusals.bad_request(f"error decoding patch: {error}") from None
        write = self._write(incoming, who, place)

        def change(live: Raw) -> Raw:
            if content == patches.JSON:
                result = patches.json_patch(live, patch)
            elif content == patches.MERGE:
                result = patches.merge(live, patch)
            else:
                result = patches.strategic(live, patch)
            if not isinstance(result, dict):
                raise refusals.bad_request("the patch leaves no object")
            self.authorizer.check_escalation(who, place.kind, result, place.namespace)
            return result

        if place.subresource == "scale":
            live = self.store.peek(place.kind, place.namespace, place.name)
            if live is None:
                raise refusals.not_found(place.kind, place.name)
            return self._set_scale(place, write, change(_scale(live))["spec"]["replicas"])
        result, warnings = self.store.update(
            place.kind, place.namespace, place.name, change, write, place.subresource
        )
        return Answer(200, result, tuple(map(wire.warning, warnings)))

    def _set_scale(self, place: _Place, write: Write, replicas: int) -> Answer:
        def change(live: Raw) -> Raw:
            live.setdefault("spec", {})["replicas"] = replicas
            return live

        result, _ = self.store.update(place.kind, place.namespace, place.name, change, write)
        return Answer(200, _scale(result))

    def _apply(self, incoming: Incoming, place: _Place, who: Identity) -> Answer:
        body = self._body(incoming, place.kind)
        write = self._write(incoming, who, place, apply=True)
        if not body.get("kind") or not body.get("apiVersion"):
            raise refusals.bad_request("apply patch must have apiVersion and kind set")
        self.authorizer.check_escalation(who, place.kind, {"metadata": {}, **body}, place.namespace)
        force = incoming.query.get("force", "") in ("1", "true")
        result, made = self.store.apply(
            place.kind,
            place.namespace,
            place.name,
            body,
            write,
            force=force,
            subresource=place.subresource,
        )
        return Answer(201 if made else 200, result)

    def _delete_options(self, incoming: Incoming) -> Raw:
        options: Raw = {}
        if incoming.body:
            with suppress(ValueError):
                found = json.loads(incoming.body)
                options = found if isinstance(found, dict) else {}
        query = incoming.query
        if "propagationPolicy" in query:
            options["propagationPolicy"] = query["propagationPolicy"]
        if "gracePeriodSeconds" in query:
            options["gracePeriodSeconds"] = _number(query["gracePeriodSeconds"], "gracePeriodSeconds")
        if "dryRun" in query:
            options["dryRun"] = [query["dryRun"]]
        return options

    def _delete(self, incoming: Incoming, place: _Place) -> Answer:
        options = self._delete_options(incoming)
        conditions = options.get("preconditions") or {}
        result, gone = self.store.remove(
            place.kind,
            place.namespace,
            place.name,
            propagation=options.get("propagationPolicy") or "Background",
            grace_s=options.get("gracePeriodSeconds"),
            uid=conditions.get("uid"),
            version=conditions.get("resourceVersion"),
            dry_run=bool(options.get("dryRun")),
        )
        if not gone:
            return Answer(200, result)
        details: Raw = {"name": place.name, "kind": place.kind.plural, "uid": result["metadata"]["uid"]}
        if place.kind.group:
            details["group"] = place.kind.group
        body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        return Answer(200, body)

    def _delete_all(self, incoming: Incoming, place: _Place) -> Answer:
        options = self._delete_options(incoming)
        matches = self._selected(incoming, place.kind)
        found = [each for each in self.store.all_of(place.kind, place.namespace) if matches(each)]
        for each in found:
            self.store.remove(
                place.kind,
                each["metadata"].get("namespace", ""),
                each["metadata"]["name"],
                propagation=options.get("propagationPolicy") or "Background",
                grace_s=options.get("gracePeriodSeconds"),
            )
        body = {
            "kind": f"{place.kind.name}List",
            "apiVersion": place.kind.api_version,
            "metadata": {"resourceVersion": str(self.store.version)},
            "items": found,
        }
        return Answer(200, body)

    def _token(self, incoming: Incoming, place: _Place) -> Answer:
        body = self._body(incoming, place.kind) if incoming.body else {}
        account = self.store.peek(place.kind, place.namespace, place.name)
        if account is None:
            raise refusals.not_found(place.kind, place.name)
        spec = body.get("spec") or {}
        seconds = spec.get("expirationSeconds", 3600)
        if not isinstance(seconds, int) or seconds < TOKEN_SECONDS_MIN:
            text = f"spec.expirationSeconds: Invalid value: {json.dumps(seconds)}: may not specify a duration less than 10 minutes"
            raise Refused(
                422, "Invalid", f'TokenRequest.authentication.k8s.io "{place.name}" is invalid: {text}'
            )
        token, ends = self.authorizer.issue(account, seconds)
        ends_text = datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        answer = {
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {"name": place.name, "namespace": place.namespace},
            "spec": {**spec, "expirationSeconds": seconds},
            "status": {"token": token, "expirationTimestamp": ends_text},
        }
        return Answer(201, answer)


def _common_name(writer: asyncio.StreamWriter) -> str:
    """Who a connection's certificate says it is."""
    shown = writer.get_extra_info("peercert") or {}
    names = [value for part in shown.get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if names else ""


def _bound(port: int) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", port))
    found.setblocking(False)
    return found


def _failure(planned: Planned) -> Refused:
    if planned.status == 429:
        return Refused(
            429,
            "TooManyRequests",
            "The server is currently unable to handle the request due to too many requests. Please try again later.",
            {"retryAfterSeconds": planned.retry_after_s or 1},
        )
    reasons = {500: "InternalError", 503: "ServiceUnavailable", 504: "Timeout"}
    texts = {
        500: "Internal error occurred: etcdserver: request timed out",
        503: "the server is currently unable to handle the request",
        504: "the server was unable to return a response in the time allotted, but may still be processing the request",
    }
    text = texts.get(planned.status, "a fault was asked for")
    return Refused(planned.status, reasons.get(planned.status, ""), text)


def _parse(body: bytes, content_type: str) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        if "yaml" in content_type:
            return yaml.safe_load(body)
        raise


def _number(text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise refusals.bad_request(
            f"{what}: Invalid value: {json.dumps(text)}: strconv.ParseUint: invalid syntax"
        ) from None


def _decoded(token: str) -> str:
    try:
        return base64.b64decode(token, validate=True).decode()
    except ValueError:
        raise refusals.bad_request("continue key is not valid: illegal base64 data at input byte 0") from None


def _untyped(found: Raw) -> Raw:
    """Items of lists of built-in kinds say neither kind nor apiVersion."""
    return {name: each for name, each in found.items() if name not in ("kind", "apiVersion")}


def _group(name: str, versions: set[str]) -> Raw:
    found = [{"groupVersion": f"{name}/{each}", "version": each} for each in sorted(versions, reverse=True)]
    return {"kind": "APIGroup", "name": name, "versions": found, "preferredVersion": found[0]}


def _scale(found: Mapping[str, Any]) -> Raw:
    metadata = found["metadata"]
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            name: metadata[name]
            for name in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
            if name in metadata
        },
        "spec": {"replicas": (found.get("spec") or {}).get("replicas", 1)},
        "status": {"replicas": (found.get("status") or {}).get("replicas", 0)},
    }


class ApiInThread:
    """A KubeApi on a loop and thread of its own, for tests that are not asynchronous:

    with ApiInThread() as there:
        kubeconfig = there.api.kubeconfig(path)
        there.call(lambda: there.api.store.list("Pod"))
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kube-api", daemon=True)

    def __enter__(self) -> ApiInThread:
        self._thread.start()
        self.api = self.call(lambda: KubeApi(**self._settings))
        self.run(self.api.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run(self.api.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine on the server's loop and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def call(self, work: Callable[[], _T]) -> _T:
        """Calls something on the server's loop: the store belongs to it."""

        async def on_loop() -> _T:
            return work()

        return self.run(on_loop())
