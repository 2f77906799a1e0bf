"""Transactions, compare-and-set, events: the one way to what must survive.

A `Tx` is one database transaction and belongs to one task. Whoever changes an endpoint or a GPU request
says which version it read; if the row has moved on, StaleVersion tells it to read again. Changes are
announced after the commit, never before: at once to subscribers in this process, and, for what other
processes did, when the store next looks at the events (`POLL_INTERVAL_SECONDS`); what another process
wrote without an event (bare progress in a status) is announced here on PostgreSQL only, by its NOTIFY, which
may be lost. An announcement is a hint that carries only the key. Never wait for the network inside a transaction: on SQLite everybody else waits too.

Errors are the domain's: NotFound, AlreadyExists, Conflict, StaleVersion, and Unavailable when the
database itself does not answer.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from itertools import islice

from sqlalchemy import ColumnElement, bindparam, delete, func, insert, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from inferplane.domain.access import ApiKey
from inferplane.domain.cluster import ClusterReport
from inferplane.domain.endpoint import EndpointStatus, InferenceEndpoint
from inferplane.domain.errors import AlreadyExists, Conflict, NotFound, StaleVersion, Unavailable
from inferplane.domain.events import Event
from inferplane.domain.lease import Fence
from inferplane.domain.workspace import Cluster, Workspace
from inferplane.observability import get_logger
from inferplane.store import codec
from inferplane.store.access_rows import AccessRows
from inferplane.store.dialect import Claim, Database, Hint, connect, translated
from inferplane.store.gpu_rows import GpuRows
from inferplane.store.lease_rows import LeaseRows
from inferplane.store.remembered import read_all
from inferplane.store.schema import (
    answers,
    api_keys,
    cluster_secrets,
    clusters,
    endpoint_secrets,
    endpoints,
    events,
    gpu_requests,
    installation_secrets,
    nodes,
    workspaces,
)
from inferplane.store.statements import STATEMENT_KEYS_MAX, Change, Memory, batched, no_workspace
from inferplane.store.upgrade import upgrade
from inferplane.store.values import from_json, to_json, to_micros

__all__ = ["STATEMENT_KEYS_MAX", "Change", "Store", "Tx", "even_share"]

POLL_INTERVAL_SECONDS = 0.5
HINT_CHANGES_MAX = 20  # named in one hint; what follows is seen in the events
POLL_EVENTS_MAX = 1000  # in one look; the rest follows at the next
EVENTS_KEPT_MAX = 200_000
ANSWERS_KEPT_MAX = 10_000
PRUNE_INTERVAL_SECONDS = 600.0
PRUNE_SLICE_EVENTS = 1_000
DOOMED_EVENTS_MAX = 50_000
EVENTS_PAGE_MAX = 1000
INSTALLATION_SECRET_BYTES = 32

_log = get_logger("store")


class Store:
    """The opened database. Open one per process and close it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._memory = Memory()
        self._subscribers: dict[object, Callable[[Change], None]] = {}
        self._seen_seq = 0  # every event up to here has been announced
        self._own_seqs: set[int] = set()  # announced at commit, to be skipped when the poll meets them
        self._poller: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._hint = asyncio.Event()  # another process may have written something
        self._hinted: dict[object, Callable[[Hint], None]] = {}

    @classmethod
    async def open(cls, url: str) -> Store:
        """Connect, bring the schema up to date, begin to look for other processes' changes.

        `url` is sqlite:///path or postgresql://…; `sqlite://` alone is a database that goes
        when it is closed, for tests.
        Raises Invalid for a URL that means nothing, Unavailable when the database does not answer.
        """
        store = cls(await connect(url))
        try:
            await upgrade(store._database)
            async with store.read() as tx:
                store._seen_seq = await tx.last_event_seq()
        except BaseException:
            await store._database.close()
            raise
        store._poller = asyncio.create_task(store._look_after(), name="store: changes by others")
        store._listener = asyncio.create_task(store._database.listen(store._on_hint), name="store: hints")
        return store

    async def close(self) -> None:
        """Stop looking and close every connection."""
        for task in (self._poller, self._listener):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._poller = self._listener = None
        await self._database.close()

    @property
    def may_be_shared(self) -> bool:
        """Whether several control planes can work on this database, under leases: it is PostgreSQL."""
        return not self._database.is_sqlite

    def claim(self, *, shared: bool = False) -> AbstractAsyncContextManager[Claim]:
        """Be the only control plane on this database while the block lasts, or, `shared`, one of several.

        Of those that keep a cluster on their own machine there is one: two would start every server twice and
        clear each other's away. The others act under leases. Raises Unavailable.
        It can be lost to another one (`Claim.broken`): then this one has to stop.
        """
        return self._database.claim(shared=shared)

    def transaction(
        self, *, durable: bool = True, fence: Fence | None = None
    ) -> AbstractAsyncContextManager[Tx]:
        """One transaction that may write: committed when the block ends, undone when it raises.

        Subscribers hear of it after the commit. With `durable=False` the commit does not wait for the
        disk: for facts that are observed again anyway. Only a power cut can tell the difference.
        With a `fence` it is made under that lease, which stays its holder's until the end, or raises StaleLease.
        """
        return self._transaction(durable, fence)

    @asynccontextmanager
    async def _transaction(self, durable: bool, fence: Fence | None) -> AsyncIterator[Tx]:
        # Only what the database does is translated: an OSError of the caller's own block stays his.
        async with self._database.write_turn(), AsyncExitStack() as stack:
            with translated():
                connection = await stack.enter_async_context(self._database.begin_write(durable=durable))
            tx = Tx(self._database, connection, self._memory)
            if fence is not None:
                await tx.hold_fence(fence)
            yield tx
            with translated():
                if tx.touched or tx.appended:
                    unseen = (each for each in tx.touched if each not in tx.with_events)
                    await self._database.notify(connection, Hint.CHANGES, _told(unseen))
                await stack.aclose()
        self._announce(tx)

    def read(self) -> AbstractAsyncContextManager[Tx]:
        """One transaction that only reads. On SQLite everything read in it is of one moment."""
        return self._read()

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[Tx]:
        async with AsyncExitStack() as stack:
            with translated():
                connection = await stack.enter_async_context(self._database.reader.connect())
            yield Tx(self._database, connection, self._memory)
            with translated():
                await stack.aclose()

    def subscribe(self, callback: Callable[[Change], None]) -> Callable[[], None]:
        """Call `callback` after each committed change of an endpoint or a GPU request; returns how to stop.

        It runs on the event loop, must return at once, and may hear of the same change twice.
        """
        token = object()
        self._subscribers[token] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(token, None)

        return unsubscribe

    def on_hint(self, callback: Callable[[Hint], None]) -> Callable[[], None]:
        """Call `callback` when another process has committed something of that kind; returns how to stop.

        A hint that may be lost, or come for nothing.
        """
        token = object()
        self._hinted[token] = callback

        def stop() -> None:
            self._hinted.pop(token, None)

        return stop

    def _on_hint(self, hint: Hint, about: str) -> None:
        if hint is Hint.CHANGES:
            self._hint.set()
            self._tell(_heard(about))
        for callback in tuple(self._hinted.values()):
            callback(hint)

    async def prune_events(
        self, *, events_max: int = EVENTS_KEPT_MAX, answers_max: int = ANSWERS_KEPT_MAX
    ) -> int:
        """Delete the oldest events and idempotent answers beyond these numbers; how many events went.

        GPU requests that ended long ago go too. The store does this by itself every
        `PRUNE_INTERVAL_SECONDS`.
        """
        async with self.transaction(durable=False) as tx:
            await tx.prune_gpu_requests()
            await tx.prune_answers(answers_max)
        gone, more = 0, True
        while more:
            async with self.read() as tx:
                doomed = await tx.doomed_events(events_max, DOOMED_EVENTS_MAX)
            # In slices: whoever wants to write meanwhile waits for one of them and not for all.
            for first in range(0, len(doomed), PRUNE_SLICE_EVENTS):
                async with self.transaction(durable=False) as tx:
                    gone += await tx.delete_events(doomed[first : first + PRUNE_SLICE_EVENTS])
            more = len(doomed) >= DOOMED_EVENTS_MAX
        return gone

    def _announce(self, tx: Tx) -> None:
        self._own_seqs.update(seq for seq in tx.appended if seq > self._seen_seq)
        self._tell(tx.touched)

    def _tell(self, changes: Mapping[Change, None]) -> None:
        for change in changes:
            for callback in tuple(self._subscribers.values()):
                try:
                    callback(change)
                except Exception:  # noqa: BLE001 - one subscriber's mistake must not undo a commit or silence the others
                    _log.exception("a subscriber failed", uid=change.endpoint_uid)

    async def _look_after(self) -> None:
        """Announce what other processes wrote, and keep the tables within their bounds."""
        loop = asyncio.get_running_loop()
        prune_at = loop.time() + PRUNE_INTERVAL_SECONDS
        answering = True
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_INTERVAL_SECONDS):
                    await self._hint.wait()
            self._hint.clear()
            try:
                while await self._look():
                    pass
                if loop.time() >= prune_at:
                    prune_at = loop.time() + PRUNE_INTERVAL_SECONDS
                    await self.prune_events()
                answering = True
            except Unavailable as error:
                if answering:
                    _log.warning("cannot look for changes by other processes", error=error.message)
                answering = False
            except Exception:  # noqa: BLE001 - a loop that dies silently would leave every watcher waiting
                _log.exception("cannot look for changes by other processes")

    async def _look(self) -> bool:
        """One look at the events; whether there may be more."""
        async with self.read() as tx:
            rows = await tx.changes_after(self._seen_seq, POLL_EVENTS_MAX)
        if not rows:
            return False
        self._seen_seq = rows[-1][0]
        others = {change: None for seq, change in rows if seq not in self._own_seqs}
        self._own_seqs = {seq for seq in self._own_seqs if seq > self._seen_seq}
        self._tell(others)
        return len(rows) == POLL_EVENTS_MAX


class Tx(GpuRows, AccessRows, LeaseRows):
    """What can be done within one transaction. Made by `Store.transaction` and `Store.read` only.

    Write rows before appending events: on PostgreSQL the first event makes other writers of events wait.
    """

    def __init__(self, database: Database, connection: AsyncConnection, memory: Memory) -> None:
        super().__init__(database, connection, memory)
        self.appended: list[int] = []
        self.with_events: set[Change] = set()  # which others find by looking at the events

    # Workspaces and clusters

    async def add_workspace(self, workspace: Workspace) -> None:
        """Raises AlreadyExists."""
        statement = self._database.insert(workspaces).values(codec.workspace_to_row(workspace))
        if not await self._count(statement.on_conflict_do_nothing(index_elements=["name"])):
            raise AlreadyExists(
                f"workspace {workspace.name} exists already", reason="WorkspaceExists", field="workspaceName"
            )
        await self.advance_generation()

    async def update_workspace(self, workspace: Workspace) -> None:
        """Replace everything but the name and the time of creation. Raises NotFound."""
        values = codec.workspace_to_row(workspace)
        del values["name"], values["created_at"]
        statement = update(workspaces).where(workspaces.c.name == workspace.name).values(values)
        if not await self._count(statement):
            raise no_workspace(workspace.name)
        await self.advance_generation()

    async def get_workspace(self, name: str) -> Workspace:
        """Raises NotFound."""
        row = await self._first(select(workspaces).where(workspaces.c.name == name))
        if row is None:
            raise no_workspace(name)
        return codec.workspace_from_row(row._mapping)

    async def hold_workspace(self, name: str) -> None:
        """Make others who hold this workspace wait until this transaction ends. Raises NotFound.

        For whoever counts what a workspace has before adding to it: what is read from here on stays true.
        Hold it before appending events. Only within a transaction that may write.
        """
        statement = select(workspaces.c.name).where(workspaces.c.name == name)
        if await self._first(self._database.holding(statement)) is None:
            raise no_workspace(name)

    async def list_workspaces(self) -> list[Workspace]:
        """All, by name."""
        rows = await self._all(select(workspaces).order_by(workspaces.c.name))
        return [codec.workspace_from_row(row._mapping) for row in rows]

    async def delete_workspace(self, name: str) -> None:
        """Deleting what is gone is harmless. Takes its policy, its binding and its ended GPU requests along.

        Raises Conflict while it still has endpoints, or GPU requests that have not ended; the transaction
        must then be given up.
        """
        live = await self._first(
            select(gpu_requests.c.id)
            .where(gpu_requests.c.workspace == name, gpu_requests.c.live == 1)
            .limit(1)
        )
        if live is not None:
            raise Conflict(
                f"workspace {name} still has GPU requests that have not ended",
                reason="WorkspaceNotEmpty",
                field="workspaceName",
                next_action="Delete those that wait and release the others first.",
            )
        await self.advance_generation()
        try:
            await self._run(
                delete(gpu_requests).where(gpu_requests.c.workspace == name, gpu_requests.c.live == 0)
            )
            await self._run(delete(workspaces).where(workspaces.c.name == name))
        except Conflict as error:
            # Or a GPU request that was inserted since the look above.
            raise Conflict(
                f"workspace {name} still has endpoints or GPU requests",
                reason="WorkspaceNotEmpty",
                field="workspaceName",
                next_action="Delete its endpoints and GPU requests first.",
            ) from error

    async def put_cluster(self, cluster: Cluster) -> None:
        """Register a cluster, or change what is known of it; its time of creation and its report stay."""
        values = codec.cluster_to_row(cluster)
        changes = {key: values[key] for key in ("engine", "domain", "ingress_address", "connection")}
        statement = self._database.insert(clusters).values(values)
        await self._run(statement.on_conflict_do_update(index_elements=["name"], set_=changes))

    async def get_cluster(self, name: str) -> Cluster:
        """Raises NotFound."""
        row = await self._first(select(clusters).where(clusters.c.name == name))
        if row is None:
            raise NotFound(f"cluster {name} is not registered", reason="ClusterNotFound", field="clusterName")
        return codec.cluster_from_row(row._mapping)

    async def list_clusters(self) -> list[Cluster]:
        """All, by name."""
        rows = await self._all(select(clusters).order_by(clusters.c.name))
        return [codec.cluster_from_row(row._mapping) for row in rows]

    async def save_cluster_report(self, name: str, report: ClusterReport) -> None:
        """Keep what was found when the cluster was looked at; harmless for one that is gone."""
        statement = update(clusters).where(clusters.c.name == name)
        await self._run(statement.values(report=codec.report_to_json(report)))

    async def put_cluster_kubeconfig(self, name: str, kubeconfig: str) -> None:
        """Keep the kubeconfig that was handed over for a registered cluster; "" forgets it."""
        await self._run(delete(cluster_secrets).where(cluster_secrets.c.cluster == name))
        if kubeconfig:
            await self._run(insert(cluster_secrets), {"cluster": name, "kubeconfig": kubeconfig})

    async def cluster_kubeconfig(self, name: str) -> str:
        """The kubeconfig that was handed over for this cluster, "" where none was."""
        row = await self._first(select(cluster_secrets.c.kubeconfig).where(cluster_secrets.c.cluster == name))
        return "" if row is None else str(row.kubeconfig)

    async def cluster_names(self) -> list[str]:
        """The names of all, in order."""
        rows = await self._all(select(clusters.c.name).order_by(clusters.c.name))
        return [row.name for row in rows]

    async def delete_cluster(self, name: str) -> None:
        """Deleting what is gone is harmless; takes what was known of its nodes, and its kubeconfig, along."""
        await self.advance_generation()
        await self._run(delete(nodes).where(nodes.c.cluster == name))
        await self._run(delete(clusters).where(clusters.c.name == name))

    # API keys

    async def add_api_key(self, key: ApiKey) -> None:
        """Raises AlreadyExists when the id or the digest is known."""
        statement = self._database.insert(api_keys).values(codec.api_key_to_row(key))
        if not await self._count(statement.on_conflict_do_nothing()):
            raise AlreadyExists("this API key exists already", reason="ApiKeyExists")

    async def find_api_key(self, digest: str) -> ApiKey | None:
        """The key with this digest, expired or not."""
        row = await self._first(_KEY_BY_DIGEST, {"digest": digest})
        return None if row is None else codec.api_key_from_row(row._mapping)

    async def get_api_key(self, key_id: str) -> ApiKey:
        """Raises NotFound."""
        row = await self._first(select(api_keys).where(api_keys.c.id == key_id))
        if row is None:
            raise NotFound("there is no such API key", reason="ApiKeyNotFound", field="apiKey")
        return codec.api_key_from_row(row._mapping)

    async def list_api_keys(self, workspace: str | None) -> list[ApiKey]:
        """Those of one workspace, or all with None; oldest first, then by id."""
        statement = select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id)
        if workspace is not None:
            statement = statement.where(api_keys.c.workspace == workspace)
        return [codec.api_key_from_row(row._mapping) for row in await self._all(statement)]

    async def delete_api_key(self, key_id: str) -> None:
        """Deleting what is gone is harmless."""
        await self._run(delete(api_keys).where(api_keys.c.id == key_id))

    async def touch_api_key(self, key_id: str, at: datetime) -> None:
        """Note that the key was used; an earlier moment changes nothing."""
        micros, used = to_micros(at), api_keys.c.last_used_at
        statement = update(api_keys).where(api_keys.c.id == key_id, or_(used.is_(None), used < micros))
        await self._run(statement.values(last_used_at=micros))

    # Endpoints

    async def insert_endpoint(self, endpoint: InferenceEndpoint, secret: Mapping[str, str]) -> None:
        """Raises AlreadyExists for (workspace, cluster, name), NotFound for an unknown workspace."""
        statement = self._database.insert(endpoints).values(codec.endpoint_to_row(endpoint))
        try:
            inserted = await self._count(
                statement.on_conflict_do_nothing(index_elements=["workspace", "name", "cluster"])
            )
        except Conflict as error:
            raise no_workspace(endpoint.workspace) from error
        if not inserted:
            raise AlreadyExists(
                f"endpoint {endpoint.name} exists already in workspace {endpoint.workspace}"
                f" on cluster {endpoint.cluster}",
                reason="EndpointExists",
                field="endpointName",
                next_action="Choose another name, or delete that endpoint first.",
            )
        if secret:
            await self._run(
                insert(endpoint_secrets),
                {"endpoint_uid": endpoint.uid, "secret": to_json(dict(secret))},
            )
        self._touch(endpoint)

    async def get_endpoint(self, workspace: str, name: str, cluster: str = "") -> InferenceEndpoint:
        """Raises NotFound; Conflict when no cluster is given and several have an endpoint of this name."""
        statement = (
            select(endpoints)
            .where(endpoints.c.workspace == workspace, endpoints.c.name == name)
            .order_by(endpoints.c.cluster)
        )
        if cluster:
            statement = statement.where(endpoints.c.cluster == cluster)
        rows = await self._all(statement)
        if not rows:
            where = f" on cluster {cluster}" if cluster else ""
            raise NotFound(
                f"endpoint {name} does not exist in workspace {workspace}{where}",
                reason="EndpointNotFound",
                field="endpoint",
                next_action=f"`inferplane list -w {workspace}` shows the endpoints that there are.",
            )
        if len(rows) > 1:
            names = ", ".join(row.cluster for row in rows)
            raise Conflict(
                f"endpoint {name} exists on several clusters: {names}",
                reason="ClusterAmbiguous",
                field="cluster",
                next_action="Name the cluster.",
            )
        return codec.endpoint_from_row(rows[0]._mapping)

    async def get_endpoint_by_uid(self, uid: str) -> InferenceEndpoint | None:
        """None when it is gone."""
        row = await self._first(_ENDPOINT_BY_UID, {"uid": uid})
        return None if row is None else codec.endpoint_from_row(row._mapping)

    async def endpoints_by_uid(self, uids: Iterable[str]) -> dict[str, InferenceEndpoint]:
        """Those of these that are there, by uid."""
        found: dict[str, InferenceEndpoint] = {}
        for batch in batched(uids, STATEMENT_KEYS_MAX):
            rows = await self._all(select(endpoints).where(endpoints.c.uid.in_(batch)))
            found |= {each.uid: each for each in await read_all(rows, codec.endpoint_from_row)}
        return found

    async def list_endpoints(
        self,
        workspace: str | None = None,
        *,
        cluster: str = "",
        model_format: str = "",
        after: tuple[str, str, str] | None = None,
        limit: int | None = None,
    ) -> list[InferenceEndpoint]:
        """By (workspace, name, cluster). `after` is such a key: only what comes behind it."""
        columns = endpoints.c
        statement = select(endpoints).order_by(columns.workspace, columns.name, columns.cluster)
        if workspace is not None:
            statement = statement.where(columns.workspace == workspace)
        if cluster:
            statement = statement.where(columns.cluster == cluster)
        if model_format:
            statement = statement.where(columns.model_format == model_format)
        if after is not None:
            statement = statement.where(tuple_(columns.workspace, columns.name, columns.cluster) > after)
        if limit is not None:
            statement = statement.limit(limit)
        return await read_all(await self._all(statement), codec.endpoint_from_row)

    async def endpoint_clusters(self) -> dict[str, str]:
        """The cluster of every endpoint, by uid, in the order of uids."""
        rows = await self._all(select(endpoints.c.uid, endpoints.c.cluster).order_by(endpoints.c.uid))
        return {row.uid: row.cluster for row in rows}

    async def endpoint_uids(self) -> list[str]:
        """Every uid, in order."""
        rows = await self._all(select(endpoints.c.uid).order_by(endpoints.c.uid))
        return [row.uid for row in rows]

    async def count_endpoints(self, workspace: str | None = None) -> int:
        """How many endpoints there are, in one workspace or in all; those being deleted count."""
        statement = select(func.count()).select_from(endpoints)
        if workspace is not None:
            statement = statement.where(endpoints.c.workspace == workspace)
        return int((await self._run(statement)).scalar_one())

    async def hold_endpoint_count(self) -> None:
        """Make others who hold it wait until this transaction ends; see `hold_workspace`."""
        with translated():
            await self._database.count_alone(self._connection)

    async def update_endpoint_spec(self, endpoint: InferenceEndpoint) -> int:
        """Write what services own: spec, generation, request of deletion. Returns the new version.

        `endpoint.version` must be the row's. Raises StaleVersion when it is not, or the row is gone.
        """
        row = codec.endpoint_to_row(endpoint)
        written = ("spec", "model_format", "generation", "deletion_requested_at", "deletion_requested_by")
        statement = (
            update(endpoints)
            .where(endpoints.c.uid == endpoint.uid, endpoints.c.version == endpoint.version)
            .values({key: row[key] for key in written})
            .values(version=endpoint.version + 1)
        )
        if not await self._count(statement):
            raise _stale(endpoint.uid, endpoint.version)
        self._touch(endpoint)
        return endpoint.version + 1

    async def save_endpoint_status(self, uid: str, version: int, status: EndpointStatus) -> int:
        """Write what controllers own. Returns the new version. Raises StaleVersion like the above."""
        statement = (
            update(endpoints)
            .where(endpoints.c.uid == uid, endpoints.c.version == version)
            .values(status=codec.status_to_json(status), version=version + 1)
            .returning(endpoints.c.workspace, endpoints.c.name)
        )
        row = (await self._run(statement)).first()
        if row is None:
            raise _stale(uid, version)
        self.touched[Change(row.workspace, row.name, uid)] = None
        return version + 1

    async def remove_endpoint(self, uid: str) -> None:
        """Delete the row and its secret; its events stay. Removing what is gone is harmless."""
        statement = (
            delete(endpoints).where(endpoints.c.uid == uid).returning(endpoints.c.workspace, endpoints.c.name)
        )
        row = (await self._run(statement)).first()
        if row is not None:
            self.touched[Change(row.workspace, row.name, uid)] = None

    async def endpoint_secret(self, uid: str) -> dict[str, str]:
        """The endpoint's credentials by variable name; empty when it has none."""
        row = await self._first(
            select(endpoint_secrets.c.secret).where(endpoint_secrets.c.endpoint_uid == uid)
        )
        value = {} if row is None else from_json(row.secret)
        return {str(key): str(item) for key, item in value.items()} if isinstance(value, dict) else {}

    async def replace_endpoint_secret(self, uid: str, secret: Mapping[str, str]) -> None:
        """Other credentials in place of all that it has; an empty mapping takes them away."""
        await self._run(delete(endpoint_secrets).where(endpoint_secrets.c.endpoint_uid == uid))
        if secret:
            await self._run(insert(endpoint_secrets), {"endpoint_uid": uid, "secret": to_json(dict(secret))})

    # Events

    async def append_event(self, event: Event) -> int:
        """Append, in the transaction of the change that it tells of. Returns its number."""
        if not self.appended:
            with translated():
                await self._database.order_events(self._connection)
        result = await self._run(insert(events), codec.event_to_row(event))
        key = result.inserted_primary_key
        assert key is not None
        seq = int(key[0])
        self.appended.append(seq)
        if event.endpoint_uid or event.gpu_request_id:
            change = Change(event.workspace, event.endpoint, event.endpoint_uid, event.gpu_request_id)
            self.touched[change] = None
            self.with_events.add(change)
        return seq

    async def list_events(
        self,
        workspace: str | None = None,
        endpoint: str | None = None,
        endpoint_uid: str | None = None,
        after_seq: int = 0,
        limit: int = EVENTS_PAGE_MAX,
        newest_first: bool = False,
        kinds: tuple[str, ...] = (),
    ) -> list[Event]:
        """By number, at most `EVENTS_PAGE_MAX`; None (or "", or no kinds) does not filter."""
        columns = events.c
        order = columns.seq.desc() if newest_first else columns.seq
        statement = select(events).where(columns.seq > after_seq).order_by(order)
        if workspace:
            statement = statement.where(columns.workspace == workspace)
        if endpoint:
            statement = statement.where(columns.endpoint == endpoint)
        if endpoint_uid:
            statement = statement.where(columns.endpoint_uid == endpoint_uid)
        if kinds:
            statement = statement.where(columns.kind.in_(kinds))
        rows = await self._all(statement.limit(max(0, min(limit, EVENTS_PAGE_MAX))))
        return [codec.event_from_row(row._mapping) for row in rows]

    async def list_audit(
        self,
        *,
        actor: str = "",
        workspace: str | None = None,
        kind: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        after_seq: int = 0,
        limit: int = EVENTS_PAGE_MAX,
        newest_first: bool = False,
    ) -> list[Event]:
        """By number, at most `EVENTS_PAGE_MAX`; what is None or "" does not filter.

        `since` is the first moment that counts, `until` the first that does not.
        """
        columns = events.c
        order = columns.seq.desc() if newest_first else columns.seq
        statement = select(events).where(columns.seq > after_seq).order_by(order)
        for column, wanted in ((columns.actor, actor), (columns.workspace, workspace), (columns.kind, kind)):
            if wanted:
                statement = statement.where(column == wanted)
        if since is not None:
            statement = statement.where(columns.at >= to_micros(since))
        if until is not None:
            statement = statement.where(columns.at < to_micros(until))
        rows = await self._all(statement.limit(max(0, min(limit, EVENTS_PAGE_MAX))))
        return [codec.event_from_row(row._mapping) for row in rows]

    async def last_event_seq(self) -> int:
        """The newest event's number; 0 when there is none."""
        row = await self._first(_LAST_SEQ)
        return 0 if row is None or row.seq is None else int(row.seq)

    async def changes_after(self, seq: int, limit: int) -> list[tuple[int, Change]]:
        """Numbers of the events after `seq` with what they are about, in order."""
        rows = await self._all(_CHANGES_AFTER, {"seq": seq, "limit": limit})
        return [
            (row.seq, Change(row.workspace, row.endpoint, row.endpoint_uid, row.gpu_request_id))
            for row in rows
        ]

    async def doomed_events(self, kept_max: int, limit: int) -> list[int]:
        """The numbers of events beyond `kept_max`, at most `limit` of them; nothing is written.

        Whoever has most loses first: all workspaces keep their newest ones up to the same number, and
        within a workspace all endpoints (and GPU requests of their own, and what is of neither) do. So
        one that makes a noise pushes out nobody else's history.
        """
        columns = events.c
        beyond = select(columns.seq).order_by(columns.seq.desc()).offset(max(0, kept_max)).limit(1)
        if await self._first(beyond) is None:
            return []
        rows = await self._all(
            select(
                columns.workspace,
                columns.endpoint_uid,
                columns.gpu_request_id,
                func.count().label("events"),
            ).group_by(columns.workspace, columns.endpoint_uid, columns.gpu_request_id)
        )
        found: dict[str, list[int]] = {}
        for row in rows:
            found.setdefault(row.workspace, []).append(row.events)
        each_may = even_share([sum(counts) for counts in found.values()], kept_max)
        if not each_may:  # more workspaces than events may be kept
            return await self._oldest_events(columns.seq > 0, kept_max, limit)
        doomed: list[int] = []
        for workspace, counts in sorted(found.items()):
            if sum(counts) > each_may and len(doomed) < limit:
                share = even_share(counts, each_may)
                doomed += await self._doomed_events_of(workspace, share, each_may, limit - len(doomed))
        return doomed

    async def delete_events(self, seqs: Sequence[int]) -> int:
        """Delete the events of these numbers; returns how many were still there."""
        return await self._count(delete(events).where(events.c.seq.in_(seqs)))

    async def _doomed_events_of(
        self, workspace: str, each_may: int | None, kept_max: int, limit: int
    ) -> list[int]:
        """All but `each_may` of each thing of the workspace; where there are too many things for that, all
        but `kept_max` in all."""
        columns = events.c
        if not each_may:
            return await self._oldest_events(columns.workspace == workspace, kept_max, limit)
        place = func.row_number().over(
            partition_by=(columns.endpoint_uid, columns.gpu_request_id), order_by=columns.seq.desc()
        )
        placed = select(columns.seq, place.label("place")).where(columns.workspace == workspace).subquery()
        rows = await self._all(select(placed.c.seq).where(placed.c.place > each_may).limit(limit))
        return [row.seq for row in rows]

    async def _oldest_events(self, which: ColumnElement[bool], kept_max: int, limit: int) -> list[int]:
        columns = events.c
        statement = select(columns.seq).where(which).order_by(columns.seq.desc())
        rows = await self._all(statement.offset(max(0, kept_max)).limit(limit))
        return [row.seq for row in rows]

    # Answers already given, and secrets of the installation

    async def remember_answer(
        self, key_id: str, idempotency_key: str, request_digest: str, answer: str, at: datetime
    ) -> None:
        """Keep the answer to a request that may be repeated. Raises AlreadyExists when there is one."""
        statement = self._database.insert(answers).values(
            key_id=key_id,
            idempotency_key=idempotency_key,
            request_digest=request_digest,
            answer=answer,
            at=to_micros(at),
        )
        if not await self._count(statement.on_conflict_do_nothing()):
            raise AlreadyExists(
                "a request with this idempotency key was answered a moment ago",
                reason="IdempotencyKeyUsed",
                field="Idempotency-Key",
                next_action="Repeat the request to get that answer.",
            )

    async def recall_answer(self, key_id: str, idempotency_key: str) -> tuple[str, str] | None:
        """(digest of the request, answer), or None."""
        row = await self._first(
            select(answers.c.request_digest, answers.c.answer).where(
                answers.c.key_id == key_id, answers.c.idempotency_key == idempotency_key
            )
        )
        return None if row is None else (row.request_digest, row.answer)

    async def prune_answers(self, kept_max: int = ANSWERS_KEPT_MAX) -> int:
        """Forget the oldest answers but about `kept_max`; returns how many went."""
        newest_doomed = (
            select(answers.c.at).order_by(answers.c.at.desc()).offset(max(0, kept_max)).limit(1)
        ).scalar_subquery()
        return await self._count(delete(answers).where(answers.c.at <= newest_doomed))

    async def installation_secret(self, name: str) -> bytes:
        """Random bytes, made once for the installation: of two that ask first, both get the same."""
        found = select(installation_secrets.c.value).where(installation_secrets.c.name == name)
        row = await self._first(found)
        if row is None:
            fresh = secrets.token_bytes(INSTALLATION_SECRET_BYTES)
            statement = self._database.insert(installation_secrets).values(name=name, value=fresh)
            await self._run(statement.on_conflict_do_nothing())
            row = await self._first(found)
        assert row is not None
        return bytes(row.value)

    # Leaves

    def _touch(self, endpoint: InferenceEndpoint) -> None:
        self.touched[Change(endpoint.workspace, endpoint.name, endpoint.uid)] = None


def _told(changes: Iterable[Change]) -> str:
    """What changed, for other processes."""
    return to_json(
        [
            [each.workspace, each.endpoint, each.endpoint_uid, each.gpu_request_id]
            for each in islice(changes, HINT_CHANGES_MAX)
        ]
    )


def _heard(about: str) -> dict[Change, None]:
    """What another process said; nothing where it cannot be read, as from another version."""
    listed = from_json(about)
    return {
        Change(*each): None
        for each in (listed if isinstance(listed, list) else ())
        if isinstance(each, list) and len(each) == 4 and all(isinstance(part, str) for part in each)
    }


def even_share(counts: Iterable[int], room: int) -> int | None:
    """The most that each may keep so that all together keep at most `room`; None where all may keep all."""
    ascending = sorted(counts)
    left = max(0, room)
    for number, count in enumerate(ascending):
        sharers = len(ascending) - number
        if count * sharers > left:
            return left // sharers
        left -= count
    return None


def _stale(uid: str, version: int) -> StaleVersion:
    return StaleVersion(f"endpoint {uid} is no longer at version {version}")


# Asked on hot paths, so built once.
_KEY_BY_DIGEST = select(api_keys).where(api_keys.c.digest == bindparam("digest"))
_ENDPOINT_BY_UID = select(endpoints).where(endpoints.c.uid == bindparam("uid"))
_LAST_SEQ = select(func.max(events.c.seq).label("seq"))
_CHANGES_AFTER = (
    select(
        events.c.seq, events.c.workspace, events.c.endpoint, events.c.endpoint_uid, events.c.gpu_request_id
    )
    .where(events.c.seq > bindparam("seq"))
    .order_by(events.c.seq)
    .limit(bindparam("limit"))
)
