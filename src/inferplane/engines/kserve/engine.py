"""Endpoints as InferenceServices of one Kubernetes cluster.

What is there is known from watches (`watcher.py`) of the few kinds of objects that tell it, kept in a `Cache`, and
read by `observe.py`, which decides what it means; so `observe` costs no request. What is to be there is said by
server-side apply of the objects that `manifests.py` writes; what was said is noted on the endpoint's Namespace
(`records.py`), so that saying it twice is noticing it once, also after a restart.

**Away.** Where the API server does not answer, every observation says so (`unreachable`) beside what was seen last.
Nothing that is not seen is taken for gone. Before everything was listed once nothing is known at all, which is
said in the same way.

**Fencing.** With a `fence`, each step first reads the Namespace anew and refuses where a higher epoch stands in it;
the note that follows only succeeds if nobody else has written since.

**Log tails.** How a container ended is often only in its last lines. They are asked for once for each run that ended, in
the background, and kept as long as the pod.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from weakref import WeakValueDictionary

from inferplane.domain.endpoint import InferenceEndpoint
from inferplane.domain.errors import Invalid
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.kserve import manifests
from inferplane.engines.kserve.cache import Cache
from inferplane.engines.kserve.client import (
    DEPLOYMENT,
    EVENT,
    INFERENCE_SERVICE,
    INGRESS,
    NAMESPACE,
    POD,
    QUOTA,
    REPLICA_SET,
    SECRET,
    SERVICE_ACCOUNT,
    Kind,
    KubeClient,
    is_refused_by_webhook,
)
from inferplane.engines.kserve.http_api import ApiError
from inferplane.engines.kserve.observe import observe, pods_of
from inferplane.engines.kserve.picture import LOG_TAIL_LINES, log_key
from inferplane.engines.kserve.pods import MAIN_CONTAINER
from inferplane.engines.kserve.raw import Raw, is_going, items, label, mapping, name, text, whole
from inferplane.engines.kserve.records import (
    ENDPOINT_LABEL,
    MANAGED_LABEL,
    MANAGER,
    STOP,
    Record,
    annotations_of,
    digest,
    is_ours,
    record_of,
    with_record,
)
from inferplane.engines.kserve.watcher import Watched, Watcher
from inferplane.engines.port import (
    Action,
    Clock,
    DropModel,
    EngineAway,
    EngineError,
    FetchModel,
    LogLine,
    Observation,
    Release,
    StartReplica,
    StopReplica,
    Target,
    Unreachable,
    mark,
)
from inferplane.observability import get_logger

OURS = f"{MANAGED_LABEL}={MANAGER},{ENDPOINT_LABEL}"
OF_KSERVE = "serving.kserve.io/inferenceservice"
WATCHED = (
    Watched(NAMESPACE, OURS),
    Watched(INFERENCE_SERVICE, ENDPOINT_LABEL),
    Watched(DEPLOYMENT, OF_KSERVE),
    Watched(REPLICA_SET, OF_KSERVE),
    Watched(POD, OF_KSERVE),
    Watched(EVENT),
    Watched(INGRESS, optional=True),
)
"""The first is listed before the others, which are told apart by it."""
START_SECONDS = 5.0
TAILS_AT_ONCE_MAX = 4
TAILS_WAITING_MAX = 10_000
ERROR_CHARACTERS_MAX = 600
LOG_LINE_CHARACTERS_MAX = 2000
STEP_TRIES = 3

log = get_logger("engines.kserve")


@dataclass(frozen=True, slots=True)
class Options:
    """How a cluster is treated. `leave_drift` leaves what others changed as it is, and only says it.

    `deployment_mode` is KServe's, "" for the cluster's own choice. `quota` is what one endpoint's pods may take
    together, in the words of a ResourceQuota; none where it is empty. `installation` tells what is ours from what
    another installation has on the same cluster. A cluster that has not answered for
    `unreachable_after` is called unreachable.
    """

    leave_drift: bool = False
    deployment_mode: str = ""
    quota: Mapping[str, str] = field(default_factory=dict)
    unreachable_after: timedelta = timedelta(seconds=10)
    installation: str = ""


@dataclass(frozen=True, slots=True)
class _Ended:
    """A run of a container whose last lines are wanted."""

    uid: str
    namespace: str
    pod: str
    container: str
    run: int
    previous: bool

    @property
    def key(self) -> str:
        return log_key(self.pod, self.container, self.run)


class KServeEngine:
    """An `Engine`. `fence` gives the epoch of the lease under which this control plane acts, 0 for none."""

    def __init__(
        self,
        client: KubeClient,
        clock: Clock,
        *,
        options: Options | None = None,
        fence: Callable[[], int] = lambda: 0,
        chance: random.Random | None = None,
    ) -> None:
        self._client = client
        self._clock = clock
        self._options = options or Options()
        self._fence = fence
        self._cache = Cache()
        self._wake: Callable[[str], None] = lambda _: None
        self._tasks: list[asyncio.Task[None]] = []
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._failing: dict[str, tuple[datetime, str]] = {}
        self._was_away = False
        self._started_at = clock()
        self._tails: deque[_Ended] = deque()
        self._asked: dict[str, set[str]] = {}
        self._uids: dict[str, str] = {}
        self._tail_wanted = asyncio.Event()
        chance = chance or random.Random()  # noqa: S311 - spreads tries over time, guards nothing
        self._watchers = {
            each.kind.plural: Watcher(
                each, client, self._cache, changed=self._changed, reached=self._reached, chance=chance
            )
            for each in WATCHED
        }

    # --- the port -------------------------------------------------------------------------------------

    async def start(self, wake: Callable[[str], None]) -> None:
        """Begin to watch, and wait a moment for what is there."""
        self._wake = wake
        self._started_at = self._clock()
        self._tasks = [asyncio.create_task(self._watch_all(), name="kserve-watches")]
        self._tasks += [
            asyncio.create_task(self._fetch_tails(), name="kserve-tails") for _ in range(TAILS_AT_ONCE_MAX)
        ]
        try:
            async with asyncio.timeout(START_SECONDS):
                for watcher in self._watchers.values():
                    await watcher.synced()
        except TimeoutError:
            log.warning("kserve.away", message="the cluster does not answer yet; it is tried again by itself")

    async def close(self, *, stop_servers: bool) -> None:  # noqa: ARG002 - what runs there is not ours to end
        """Stop watching. What runs in the cluster runs on, whatever becomes of this process."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self._client.close()

    async def observe(self, uid: str) -> Observation:
        """From what the watches brought; no request."""
        now = self._clock()
        unreachable = self._unreachable(now)
        picture = self._cache.picture(uid)
        if picture is None:
            return Observation(unreachable=unreachable)
        seen = with_record(observe(uid, picture, now), picture, leave=self._options.leave_drift)
        return replace(seen, unreachable=unreachable) if unreachable is not None else seen

    async def apply(self, target: Target, action: Action) -> None:
        """A few requests. Raises EngineError, EngineAway where the API server did not answer."""
        async with self._lock(target.endpoint.uid):
            for attempt in range(1, STEP_TRIES + 1):
                try:
                    await self._take(target, action)
                except ApiError as error:
                    # Somebody wrote between our reading and our writing: read again, decide again.
                    if error.status != 409 or attempt == STEP_TRIES:
                        raise _translated(error) from error
                except Invalid as error:
                    raise EngineError(error.message, reason=error.reason) from error
                else:
                    return

    async def owned(self) -> frozenset[str]:
        """By the labels of Namespaces; nobody's before they were listed, and never another installation's."""
        if not self._watchers[NAMESPACE.plural].is_synced:
            return frozenset()
        return self._cache.endpoints(self._options.installation)

    async def release_orphan(self, uid: str) -> None:
        """Delete whatever carries the uid."""
        try:
            async with self._lock(uid):
                async for page, _ in self._client.pages(
                    NAMESPACE.path(), f"{MANAGED_LABEL}={MANAGER},{ENDPOINT_LABEL}={uid}"
                ):
                    for each in page:
                        await self._release(uid, name(each))
        except ApiError as error:
            raise _translated(error) from error

    async def logs(
        self,
        uid: str,
        *,
        replica: str = "",
        previous: bool = False,
        follow: bool = False,
        tail_lines: int = 200,
    ) -> AsyncIterator[LogLine]:
        """Of one replica's pod; without `replica`, of all that there are, or the newest to follow."""
        chosen = self._pods_of(uid, replica)
        if not chosen:
            which = f"replica {replica}" if replica else "this endpoint"
            raise EngineError(f"there is no pod of {which} in the cluster")
        if follow:
            chosen = chosen[-1:]
        found = 0
        problem: ApiError | None = None
        for replica_name, pod in chosen:
            container, is_previous = _container_to_read(pod, previous=previous)
            try:
                async for line in self._client.log(
                    text(pod, "metadata", "namespace"),
                    name(pod),
                    container,
                    tail_lines=tail_lines,
                    previous=is_previous,
                    follow=follow,
                ):
                    found += 1
                    yield LogLine(replica_name, line)
            except ApiError as error:
                problem = error
        if problem is not None and not found:
            raise _translated(problem) from problem

    async def preflight(self, target: Target) -> tuple[Check, ...]:
        """A runtime for the format, the permission to create, GPUs that would be enough."""
        from inferplane.engines.kserve.preflight import preflight

        try:
            return await preflight(self._client, target.endpoint)
        except ApiError as error:
            raise _translated(error) from error

    # --- steps ----------------------------------------------------------------------------------------

    async def _take(self, target: Target, action: Action) -> None:
        endpoint = target.endpoint
        match action:
            case FetchModel():
                await self._prepare(endpoint, target.secret, action.revision)
            case StartReplica():
                await self._say(endpoint, action)
            case StopReplica():
                await self._rest(endpoint)
            case DropModel():
                await self._forget(endpoint, action.revision)
            case Release():
                await self._release(endpoint.uid, endpoint.namespace)

    async def _prepare(self, endpoint: InferenceEndpoint, secret: Mapping[str, str], revision: int) -> None:
        """Namespace, credentials, account, quota; then the note that it is so."""
        place = endpoint.namespace
        found: Raw | None = await self._client.find(NAMESPACE.path(name=place))
        if found is None:
            wanted = manifests.namespace(endpoint, self._options.installation)
            found = await self._client.apply(NAMESPACE.path(name=place), wanted)
        self._check_owner(found, endpoint.uid)
        record = self._fenced(found)
        credentials = manifests.secrets(endpoint, secret)
        for each in credentials:
            await self._client.apply(SECRET.path(place, name(each)), each)
        account = manifests.service_account(endpoint, credentials)
        await self._client.apply(SERVICE_ACCOUNT.path(place, name(account)), account)
        if self._options.quota:
            quota = manifests.quota(endpoint, self._options.quota)
            await self._client.apply(QUOTA.path(place, name(quota)), quota)
        await self._note(found, replace(record, prepared=record.prepared | {revision}))

    async def _say(self, endpoint: InferenceEndpoint, step: StartReplica) -> None:
        """What there should be, unless that was said and nobody changed it."""
        endpoint = endpoint.at_revision(step.id.revision)
        found = await self._namespace(endpoint)
        record = self._fenced(found)
        if step.id.revision not in record.prepared:
            raise EngineError(
                f"revision {step.id.revision} was not prepared: its namespace has no note of it"
            )
        wanted = mark(endpoint, step)
        path = INFERENCE_SERVICE.path(endpoint.namespace, manifests.service_name(endpoint))
        present = await self._client.find(path)
        if present is not None and record.mark == wanted and record.admitted == digest(present):
            self._keep(NAMESPACE, found)
            self._keep(INFERENCE_SERVICE, present)
            return
        if present is not None and is_going(present):
            raise EngineError("the InferenceService is still being deleted")
        if record.mark or record.fence != self._fence():
            found = await self._note(found, replace(record, mark="", admitted=""))
        manifest = manifests.inference_service(endpoint, step.gpus, mode=self._options.deployment_mode)
        admitted = await self._client.apply(path, manifest)
        self._keep(INFERENCE_SERVICE, admitted)
        await self._note(found, replace(record, mark=wanted, admitted=digest(admitted)))

    async def _rest(self, endpoint: InferenceEndpoint) -> None:
        """No pod, by KServe's own word for it; what there should be stays written."""
        found: Raw | None = await self._client.find(NAMESPACE.path(name=endpoint.namespace))
        if found is None:
            return
        self._check_owner(found, endpoint.uid, going=True)
        record = self._fenced(found)
        if record.mark:
            found = await self._note(found, replace(record, mark="", admitted=""))
        path = INFERENCE_SERVICE.path(endpoint.namespace, manifests.service_name(endpoint))
        present = await self._client.find(path)
        if present is None or is_going(present):
            return
        if text(present, "metadata", "annotations", STOP).lower() != "true":
            stopped = await self._client.merge(path, {"metadata": {"annotations": {STOP: "true"}}})
            self._keep(INFERENCE_SERVICE, stopped)

    async def _forget(self, endpoint: InferenceEndpoint, revision: int) -> None:
        found = await self._client.find(NAMESPACE.path(name=endpoint.namespace))
        if found is None or is_going(found) or not _belongs(found, endpoint.uid):
            return
        record = self._fenced(found)
        if revision in record.prepared:
            await self._note(found, replace(record, prepared=record.prepared - {revision}))

    async def _release(self, uid: str, place: str) -> None:
        """The InferenceService and the Namespace with all that is in it; never one that is not ours."""
        found = await self._client.find(NAMESPACE.path(name=place))
        if found is None:
            return
        if not _belongs(found, uid):
            raise EngineError(f"namespace {place} is not this endpoint's, so it is left as it is")
        self._fenced(found)
        async for page, _ in self._client.pages(INFERENCE_SERVICE.path(place), f"{ENDPOINT_LABEL}={uid}"):
            for each in page:
                if not is_going(each):
                    await self._client.delete(INFERENCE_SERVICE.path(place, name(each)))
        if not is_going(found):
            await self._client.delete(NAMESPACE.path(name=place), uid=text(found, "metadata", "uid"))

    async def _namespace(self, endpoint: InferenceEndpoint) -> Raw:
        found = await self._client.find(NAMESPACE.path(name=endpoint.namespace))
        if found is None:
            raise EngineError(f"namespace {endpoint.namespace} is not there yet")
        self._check_owner(found, endpoint.uid)
        return found

    def _check_owner(self, found: Raw, uid: str, *, going: bool = False) -> None:
        if not _belongs(found, uid):
            raise EngineError(
                f"namespace {name(found)} is there and is not this endpoint's, so nothing is created in it"
            )
        if is_going(found) and not going:
            raise EngineError(f"namespace {name(found)} is still being deleted")

    def _fenced(self, found: Raw) -> Record:
        """The record, if this control plane may still write. Raises EngineError."""
        record = record_of(found)
        if record.fence > self._fence() > 0:
            raise EngineError("another control plane has taken over this cluster")
        return record

    async def _note(self, found: Raw, record: Record) -> Raw:
        """Write the record on the Namespace, if it is as it was found. The Namespace as it is then."""
        fenced = replace(record, fence=self._fence() or record.fence)
        if fenced == record_of(found):
            self._keep(NAMESPACE, found)
            return found
        patch = {
            "metadata": {
                "annotations": annotations_of(fenced),
                "resourceVersion": text(found, "metadata", "resourceVersion"),
            }
        }
        noted = await self._client.merge(NAMESPACE.path(name=name(found)), patch)
        self._keep(NAMESPACE, noted)
        return noted

    # --- what is seen ---------------------------------------------------------------------------------

    async def _watch_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            first, *others = self._watchers.values()
            group.create_task(first.run())
            await first.synced()
            for watcher in others:
                group.create_task(watcher.run())

    def _changed(self, namespaces: set[str]) -> None:
        for place in namespaces:
            if uid := self._cache.uid_of(place):
                self._uids[place] = uid
                self._want_tails(uid)
                self._wake(uid)
            elif uid := self._uids.pop(place, ""):
                self._asked.pop(uid, None)
                self._wake(uid)

    def _reached(self, kind: Kind, error: ApiError | None) -> None:
        """A watch was opened, or could not be."""
        if error is None:
            self._failing.pop(kind.plural, None)
        else:
            since, _ = self._failing.get(kind.plural, (self._clock(), ""))
            self._failing[kind.plural] = (since, error.message)
        is_away = self._unreachable(self._clock()) is not None
        if is_away != self._was_away:
            self._was_away = is_away
            for uid in self._cache.endpoints(self._options.installation):
                self._wake(uid)

    def _unreachable(self, now: datetime) -> Unreachable | None:
        if self._failing:
            since, message = min(self._failing.values())
            if now - since >= self._options.unreachable_after or not self._is_synced:
                return Unreachable(since, message)
        if not self._is_synced:
            return Unreachable(self._started_at, "it has not told yet what is there")
        return None

    @property
    def _is_synced(self) -> bool:
        return all(watcher.is_synced for watcher in self._watchers.values())

    def _keep(self, kind: Kind, raw: Raw) -> None:
        """An answer to a write, so that the next observation knows it."""
        self._watchers[kind.plural].put(raw)

    def _lock(self, uid: str) -> asyncio.Lock:
        """One step at a time for each endpoint."""
        lock = self._locks.get(uid)
        if lock is None:
            lock = self._locks[uid] = asyncio.Lock()
        return lock

    # --- logs -----------------------------------------------------------------------------------------

    def _pods_of(self, uid: str, replica: str) -> list[tuple[str, Raw]]:
        """The pods by the name of their replica, the newest last."""
        picture = self._cache.picture(uid)
        if picture is None:
            return []
        named = [(each.name, pod) for each, pod in pods_of(uid, picture, self._clock())]
        return [(each, pod) for each, pod in named if replica in ("", each)]

    def _want_tails(self, uid: str) -> None:
        """Ask for the last lines of runs that ended and were not asked for; forget those of pods that are gone."""
        space = self._cache.space_of(uid)
        if space is None:
            return
        pods = space.names(POD)
        asked = self._asked.setdefault(uid, set())
        wanted = {each.key: each for pod in space.read(POD) for each in _ended_runs(uid, pod)}
        for key in asked - set(wanted):
            asked.discard(key)
        for key in [key for key in space.log_tails if key.partition("/")[0] not in pods]:
            del space.log_tails[key]
        for key, each in wanted.items():
            if key not in asked and len(self._tails) < TAILS_WAITING_MAX:
                asked.add(key)
                self._tails.append(each)
                self._tail_wanted.set()

    async def _fetch_tails(self) -> None:
        """One of a few that work at it for ever."""
        while True:
            while not self._tails:
                self._tail_wanted.clear()
                await self._tail_wanted.wait()
            ended = self._tails.popleft()
            lines: deque[str] = deque(maxlen=LOG_TAIL_LINES)
            try:
                async for line in self._client.log(
                    ended.namespace,
                    ended.pod,
                    ended.container,
                    tail_lines=LOG_TAIL_LINES,
                    previous=ended.previous,
                ):
                    lines.append(line[:LOG_LINE_CHARACTERS_MAX])
            except ApiError as error:
                if error.status == 0 or error.status == 429 or error.status >= 500:
                    self._asked.get(ended.uid, set()).discard(ended.key)  # at the pod's next change again
                continue
            space = self._cache.space_of(ended.uid)
            if space is not None and ended.pod in space.names(POD) and lines:
                space.log_tails[ended.key] = tuple(lines)
                self._wake(ended.uid)


def _ended_runs(uid: str, pod: Raw) -> list[_Ended]:
    """The runs of a pod's containers that ended otherwise than well, and whose lines may still be had."""
    found = []
    for part in ("initContainerStatuses", "containerStatuses"):
        for status in items(pod, "status", part):
            runs = whole(status, "restartCount") or 0
            # Between two runs the count is still that of the one that ended.
            before = runs if mapping(status, "state", "waiting") else runs - 1
            for state, run, previous in (("state", runs, False), ("lastState", before, True)):
                ended = mapping(status, state, "terminated")
                if ended and run >= 0 and whole(ended, "exitCode") != 0:
                    found.append(
                        _Ended(
                            uid,
                            text(pod, "metadata", "namespace"),
                            name(pod),
                            text(status, "name"),
                            run,
                            previous,
                        )
                    )
    return found


def _container_to_read(pod: Raw, *, previous: bool) -> tuple[str, bool]:
    """The container whose lines tell most, and whether those of the run before: an init container that holds the
    others up, else the model server; the run before where the present one has not begun.
    """
    statuses = [(True, each) for each in items(pod, "status", "initContainerStatuses")]
    statuses += [(False, each) for each in items(pod, "status", "containerStatuses")]
    names = [text(each, "name") for each in items(pod, "spec", "containers")]
    main = MAIN_CONTAINER if MAIN_CONTAINER in names or not names else names[0]
    chosen = main
    for is_init, status in statuses:
        done = mapping(status, "state", "terminated")
        if is_init and not (done and whole(done, "exitCode") == 0) and status.get("ready") is not True:
            chosen = text(status, "name")
            break
    status = next((each for _, each in statuses if text(each, "name") == chosen), {})
    is_between = bool(mapping(status, "state", "waiting")) and bool(
        mapping(status, "lastState", "terminated")
    )
    return chosen, previous or is_between


def _belongs(found: Raw, uid: str) -> bool:
    return is_ours(found) and label(found, ENDPOINT_LABEL) == uid


def _translated(error: ApiError) -> EngineError:
    """Where nobody answered, or all could be well in a moment, that says nothing about the endpoint."""
    message = error.message[:ERROR_CHARACTERS_MAX]
    if error.status in (0, 429) or (error.status >= 500 and not is_refused_by_webhook(error)):
        return EngineAway(f"the cluster's API server: {message}", reason=ReasonCode.CLUSTER_UNREACHABLE.value)
    return EngineError(message, reason=error.reason)
