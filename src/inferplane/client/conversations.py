"""What is said in which order: tokens, retries, waiting, following. Written once for both clients.

Each conversation is a generator. It yields an *effect* (send this, wait so long, what time is it),
is resumed with the outcome, and returns the value that the caller asked for. It never sends, sleeps
or looks at a clock itself; `client` performs the effects, blocking in one class and awaiting in the
other. A conversation that brings many values yields each as `Emit`.

Connection failures come back into the conversation as `ConnectionFailedError`, raised at the `yield`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

from inferplane.client import errors, requests
from inferplane.client.gpu_wish import GpuWish
from inferplane.client.requests import Answer, Request, Resend
from inferplane.client.sse import EventParser, EventTooLongError, ServerEvent
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.wire.access import ApiKeyItem, CreateApiKey
from inferplane.wire.endpoints import (
    AutoscalingBody,
    CheckItem,
    CreateEndpoint,
    EndpointDescription,
    EndpointItem,
    EventItem,
    Explanation,
    LimitsBody,
    LogLineItem,
    ModelResources,
    ModelSpecBody,
)
from inferplane.wire.gpus import GprItem
from inferplane.wire.platform import Readiness
from inferplane.wire.workspaces import (
    ClusterItem,
    ClusterRegistered,
    ClusterReportItem,
    UpdateCluster,
    UpdateWorkspace,
    WorkspaceItem,
    WriteCluster,
    WriteWorkspace,
)

WAIT_SECONDS = 300.0
POLL_SECONDS_FIRST = 0.05
POLL_SECONDS_MAX = 1.0
POLL_GROWTH = 1.3
FAILED_PATIENCE_SECONDS = 20.0
"""How long a failure that retries may mend is watched before waiting is given up."""
EVENTS_POLL_SECONDS = 1.0
QUEUED = "Queued"
"""What waits for GPUs is called so, an endpoint as well as a request."""
KSERVE = "kserve"
"""The engine of clusters of Kubernetes."""
PAGES_MAX = 10_000
MANIFEST_CHARACTERS_MAX = 1024 * 1024

UNREACHABLE = "Unreachable"
"""Reason of an error: nothing was sent, because there was nobody to send it to."""
START_IT = "Start it with `inferplane up`, or set INFERPLANE_API_URL to where it runs."
CONNECTION_LOST = "ConnectionLost"
"""Reason of an error: it was sent, and whether it was acted on is not known."""

T = TypeVar("T")


# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Send:
    """Send it; the outcome is an `Answer`. A stream that begins is then read with `Read`."""

    request: Request[Any]


@dataclass(frozen=True, slots=True)
class Read:
    """The next bytes of the stream that was opened; empty at its end."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Let so many seconds pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Now:
    """The seconds of a clock that only goes forward."""


@dataclass(frozen=True, slots=True)
class Emit(Generic[T]):
    """One of the values that the caller iterates over."""

    item: T


Effect: TypeAlias = Send | Read | Pause | Now
Flow: TypeAlias = Generator[Effect, Any, T]
Stream: TypeAlias = Generator[Effect | Emit[T], Any, None]


class ConnectionFailedError(Exception):
    """An exchange broke. `unsent` is True when the request surely never left."""

    def __init__(self, message: str, *, unsent: bool) -> None:
        super().__init__(message)
        self.message = message
        self.unsent = unsent


@dataclass(slots=True)
class Session:
    """What one client knows: its key, the token it has now, and where endpoints answer.

    `endpoint_key` is sent with predictions where none is given. `new_key` makes idempotency keys; chance, like time, is brought from outside. `why_no_key` is the
    sentence to say when `api_key` is "" and a call needs one, and `why_unreachable` the one to say instead
    when the platform that is meant does not run.
    """

    base_url: str
    api_key: str
    new_key: Callable[[], str]
    why_no_key: str = "no API key is known"
    why_unreachable: str = ""
    token: str = ""
    endpoint_key: str = ""
    addresses: dict[tuple[str, str, str], str] = field(default_factory=dict)


# --- one exchange ---------------------------------------------------------------------------------


def ask(session: Session, request: Request[T]) -> Flow[T]:
    """Send with a token, and with a fresh one if that turns out to be stale."""
    renewed = False
    while True:
        token = session.token
        if request.authenticated and not token:
            token = yield from _fresh_token(session)
            renewed = True
        signed = request.with_header("Authorization", f"Bearer {token}") if request.authenticated else request
        answer = yield from _persist(session, signed)
        if answer.status != 401 or not request.authenticated or renewed:
            return request.read(answer)
        if session.token == token:  # somebody else may have renewed it meanwhile
            session.token = ""


def _fresh_token(session: Session) -> Flow[str]:
    if not session.api_key and session.why_unreachable:
        raise errors.UnreachableError(session.why_unreachable, reason=UNREACHABLE, next_action=START_IT)
    if not session.api_key:
        raise errors.ConfigurationError(
            session.why_no_key,
            reason="NoApiKey",
            next_action="Set INFERPLANE_API_KEY to a key, or start a platform here with `inferplane up`.",
        )
    request = requests.exchange_key(session.api_key)
    answer = yield from _persist(session, request)
    session.token = request.read(answer).token
    return session.token


def _persist(session: Session, request: Request[Any]) -> Flow[Answer]:
    """Send, and again where that is safe and may help; bounded. Raises UnreachableError."""
    attempt = 1
    while True:
        try:
            answer: Answer = yield Send(request)
        except ConnectionFailedError as failure:
            may = failure.unsent or request.resend is Resend.SAFE
            if attempt >= requests.ATTEMPTS_MAX or not may:
                raise _unreachable(session, request, failure) from failure
            pause = requests.RETRY_PAUSE_SECONDS[attempt - 1]
        else:
            asked = requests.retry_pause(request, answer, attempt)
            if asked is None:
                return answer
            pause = asked
        attempt += 1
        yield Pause(pause)


def _unreachable(
    session: Session, request: Request[Any], failure: ConnectionFailedError
) -> errors.UnreachableError:
    reason = UNREACHABLE if failure.unsent else CONNECTION_LOST
    if request.target.startswith("/"):
        return errors.UnreachableError(
            f"the platform does not answer at {session.base_url}: {failure.message}",
            reason=reason,
            next_action=START_IT,
        )
    return errors.UnreachableError(
        f"the gateway does not answer at {requests.origin_of(request.target)}: {failure.message}",
        reason=reason,
        next_action="Check that the platform is up; its /readyz says which part is not ready.",
    )


# --- endpoints: write -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Deployment:
    """What became of a create. `checks` are the findings of a dry run, else empty; `warnings` say what of
    the request has no effect, when it was accepted."""

    name: str
    workspace: str
    dry_run: bool = False
    checks: tuple[CheckItem, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it was accepted; of a dry run, whether every check passed."""
        return all(check.ok for check in self.checks)


def deploy(
    session: Session,
    name: str,
    *,
    format: str,  # noqa: A002 - the word that users know
    uri: str = "",
    workspace: str = "default",
    cluster: str = "",
    secret: Mapping[str, str] | None = None,
    digest: str = "",
    env: Mapping[str, str] | None = None,
    args: Sequence[str] = (),
    cpu: str | float | None = None,
    memory: str | int | None = None,
    replicas: int | None = None,
    min_replicas: int | None = None,
    max_replicas: int | None = None,
    target_concurrency: float | None = None,
    target_rate: float | None = None,
    scale_to_zero_after: str = "",
    protocol: str = "",
    runtime: str = "",
    request_seconds_max: float | None = None,
    request_bytes_max: int | None = None,
    access: str = "",
    requests_per_second: float | None = None,
    burst: int | None = None,
    requests_per_second_per_key: float | None = None,
    concurrency_max: int | None = None,
    concurrency_max_per_key: int | None = None,
    start_seconds_max: float | None = None,
    gpu: GpuWish | None = None,
    auto_cluster: bool = False,
    cluster_precedence: Sequence[str] = (),
    auto_renew: bool | None = None,
    dry_run: bool = False,
    idempotency_key: str = "",
) -> Flow[Deployment]:
    """Create an endpoint from a model's format (sklearn, xgboost, lightgbm, onnx, …) and storage URI.

    Returns as soon as it is accepted; `wait_until_running` waits for the rest. `secret` holds
    credentials for the storage and is never shown again. `replicas` is a fixed number; between
    `min_replicas` and `max_replicas` their number follows the traffic, so that each has about
    `target_concurrency` requests at once or `target_rate` a second. With `min_replicas=0` it sleeps when no
    request came for `scale_to_zero_after` (such as `5m`), and the next request wakes it. With `access="key"`
    only requests with an endpoint key are answered, with `"open"` all; without, as the platform is set.
    `requests_per_second` (of which `burst` may come at once), the same for each key, and `concurrency_max`
    requests in flight, or `concurrency_max_per_key` of each key, are what it takes at most. With `gpu` it waits for GPUs first: on `cluster`,
    on the one of `cluster_precedence` where they come soonest, or with `auto_cluster` on any; unless
    `auto_renew` is False it asks for new ones when their time is over. With `dry_run` nothing is stored and
    `checks` says what a create would run into. Raises InvalidError, AlreadyExistsError, NotFoundError
    (no such workspace), QuotaExceededError and the rest of the tree in `errors`.
    """
    resources = ModelResources(cpu, memory) if cpu is not None or memory is not None else None
    body = CreateEndpoint(
        endpoint_name=name,
        workspace=workspace,
        cluster_name=cluster or None,
        model_spec=ModelSpecBody(
            model_name=format,
            storage_uri=uri or None,
            runtime=runtime or None,
            protocol_version=protocol or None,
            args=list(args) or None,
            env=dict(env) if env else None,
            secret=dict(secret) if secret else None,
            resources=resources,
            digest=digest or None,
            start_timeout_seconds=start_seconds_max,
        ),
        gpu_spec=None if gpu is None else gpu.for_endpoint(auto_cluster=auto_cluster, auto_renew=auto_renew),
        cluster_precedence=list(cluster_precedence) or None,
        autoscaling=_autoscaling(
            replicas if min_replicas is None else min_replicas,
            max_replicas if max_replicas is not None or min_replicas is not None else replicas,
            target_concurrency,
            target_rate,
            scale_to_zero_after,
        ),
        limits=_limits(
            LimitsBody(
                request_bytes_max,
                request_seconds_max,
                requests_per_second,
                burst,
                requests_per_second_per_key,
                concurrency_max,
                concurrency_max_per_key,
            )
        ),
        access=access or None,
    )
    return (yield from _create(session, body, dry_run=dry_run, idempotency_key=idempotency_key))


def apply(
    session: Session,
    manifest: str | Mapping[str, Any],
    *,
    name: str = "",
    workspace: str = "default",
    cluster: str = "",
    gpu: GpuWish | None = None,
    auto_cluster: bool = False,
    cluster_precedence: Sequence[str] = (),
    auto_renew: bool | None = None,
    access: str = "",
    dry_run: bool = False,
    idempotency_key: str = "",
) -> Flow[Deployment]:
    """Create an endpoint from a KServe InferenceService: whole, or only its `spec`; YAML text or a dict.

    The endpoint is called `name`, or what `metadata.name` says. Raises InvalidError when neither does.
    GPUs and access are asked for as in `deploy`.
    """
    text = manifest if isinstance(manifest, str) else requests.encode_body(manifest).decode()
    body = CreateEndpoint(
        endpoint_name=name or manifest_name(manifest),
        workspace=workspace,
        cluster_name=cluster or None,
        raw_model_spec=text,
        access=access or None,
        gpu_spec=None if gpu is None else gpu.for_endpoint(auto_cluster=auto_cluster, auto_renew=auto_renew),
        cluster_precedence=list(cluster_precedence) or None,
    )
    return (yield from _create(session, body, dry_run=dry_run, idempotency_key=idempotency_key))


def manifest_name(manifest: str | Mapping[str, Any]) -> str:
    """What `metadata.name` of a manifest says. Raises InvalidError when it says nothing."""
    value: Any = manifest
    if isinstance(manifest, str):
        if len(manifest) > MANIFEST_CHARACTERS_MAX:
            raise errors.InvalidError(
                f"the manifest is longer than {MANIFEST_CHARACTERS_MAX} characters", field="rawModelSpec"
            )
        import yaml  # here, because only manifests need it

        try:
            value = yaml.safe_load(manifest)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise errors.InvalidError(
                f"the manifest is not YAML: {error}", reason="MalformedYaml", field="rawModelSpec"
            ) from error
    metadata = value.get("metadata") if isinstance(value, Mapping) else None
    found = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not found or not isinstance(found, str):
        raise errors.InvalidError(
            "the manifest has no metadata.name, so the endpoint needs a name of its own",
            reason="Missing",
            field="endpointName",
            next_action="Give a name (on the command line: --name), or write metadata.name.",
        )
    return found


def delete(session: Session, name: str, *, workspace: str = "default", cluster: str = "") -> Flow[str]:
    """Ask for an endpoint to be undone; returns its name. `wait_until_deleted` waits for the end."""
    session.addresses.pop((workspace, name, cluster), None)
    answer = yield from ask(session, requests.delete_endpoint(name, workspace, cluster))
    return answer.endpoint


def stop(session: Session, name: str, *, workspace: str = "default", cluster: str = "") -> Flow[str]:
    """Stop an endpoint's servers until it is started again; returns its name."""
    answer = yield from ask(session, requests.stop_endpoint(name, workspace, cluster))
    return answer.endpoint


def start(session: Session, name: str, *, workspace: str = "default", cluster: str = "") -> Flow[str]:
    """Start a stopped endpoint again; returns its name."""
    answer = yield from ask(session, requests.start_endpoint(name, workspace, cluster))
    return answer.endpoint


def _create(
    session: Session, body: CreateEndpoint, *, dry_run: bool, idempotency_key: str
) -> Flow[Deployment]:
    if dry_run:
        found = yield from ask(session, requests.try_endpoint(body))
        return Deployment(found.endpoint_name, body.workspace, dry_run=True, checks=found.preflight)
    key = idempotency_key or session.new_key()
    answer = yield from ask(session, requests.create_endpoint(body, key))
    return Deployment(answer.endpoint_name, body.workspace, warnings=answer.warnings)


def _autoscaling(
    least: int | None, most: int | None, concurrency: float | None, rate: float | None, rest_after: str
) -> AutoscalingBody | None:
    body = AutoscalingBody(
        min_replicas=least,
        max_replicas=most,
        target_concurrency=concurrency,
        target_rate=rate,
        scale_to_zero_after=rest_after or None,
    )
    return None if body == AutoscalingBody() else body


def _limits(body: LimitsBody) -> LimitsBody | None:
    return None if body == LimitsBody() else body


# --- endpoints: read ------------------------------------------------------------------------------


def list_endpoints(
    session: Session,
    *,
    workspace: str = "default",
    status: str = "",
    cluster: str = "",
    format: str = "",  # noqa: A002 - the word that users know
) -> Flow[list[EndpointItem]]:
    """All endpoints of a workspace, or with `workspace=""` all that this key may see, in order."""
    found: list[EndpointItem] = []
    position = ""
    for _ in range(PAGES_MAX):
        page = yield from ask(
            session,
            requests.list_endpoints(
                workspace=workspace,
                status=status,
                cluster=cluster,
                model_format=format,
                continue_from=position,
            ),
        )
        found += page.endpoints
        position = page.continue_
        if not position:
            break
    return found


def describe(
    session: Session, name: str, *, workspace: str = "default", cluster: str = ""
) -> Flow[EndpointDescription]:
    """One endpoint in full: status, reason, next action, address, replicas, timeline. Raises NotFoundError."""
    answer = yield from ask(session, requests.describe(name, workspace, cluster))
    return answer.endpoint


def explain(
    session: Session, name: str, *, workspace: str = "default", cluster: str = ""
) -> Flow[Explanation]:
    """What an endpoint waits for, or why it failed: evidence, next action, timeline."""
    return (yield from ask(session, requests.explain(name, workspace, cluster)))


def events(
    session: Session,
    name: str = "",
    *,
    workspace: str = "default",
    cluster: str = "",
    after: int | None = None,
    limit: int | None = None,
) -> Flow[tuple[EventItem, ...]]:
    """What happened to an endpoint (or in a workspace), oldest first.

    Without `after` the newest `limit` events, with it the first `limit` behind that `seq`.
    """
    answer = yield from ask(session, requests.list_events(name, workspace, cluster, after=after, limit=limit))
    return answer.events


def logs(
    session: Session,
    name: str,
    *,
    workspace: str = "default",
    cluster: str = "",
    replica: str = "",
    previous: bool = False,
    tail: int | None = None,
) -> Flow[tuple[LogLineItem, ...]]:
    """The last `tail` lines that an endpoint's servers printed; `previous`: those before the last restart."""
    request = requests.read_logs(name, workspace, cluster, replica=replica, previous=previous, tail=tail)
    answer = yield from ask(session, request)
    return answer.lines


def follow_logs(
    session: Session,
    name: str,
    *,
    workspace: str = "default",
    cluster: str = "",
    replica: str = "",
    previous: bool = False,
    tail: int | None = None,
) -> Stream[LogLineItem]:
    """The same lines, and then each new one as it is printed, until the endpoint is gone."""
    request = requests.follow_logs(name, workspace, cluster, replica=replica, previous=previous, tail=tail)
    yield from _stream(session, request, requests.log_line)


def follow_events(
    session: Session,
    name: str = "",
    *,
    workspace: str = "default",
    cluster: str = "",
    after: int | None = None,
) -> Stream[EventItem]:
    """Events as they happen, until the endpoint is gone."""
    last = after
    while True:
        try:
            found = yield from ask(session, requests.list_events(name, workspace, cluster, after=last))
        except errors.NotFoundError:
            if last is None:
                raise
            return
        for event in found.events:
            last = event.seq
            yield Emit(event)
        if last is None:
            last = 0
        if not found.continue_:
            yield Pause(EVENTS_POLL_SECONDS)


def watch(session: Session, *, workspace: str = "default") -> Stream[tuple[str, EndpointItem]]:
    """`("ADDED" | "MODIFIED" | "DELETED", endpoint)`: first each endpoint there is, then each change."""
    yield from _stream(session, requests.watch(workspace), requests.change)


def _stream(session: Session, request: Request[None], read: Callable[[ServerEvent], T | None]) -> Stream[T]:
    yield from ask(session, request)
    parser = EventParser()
    while True:
        try:
            chunk: bytes = yield Read()
        except ConnectionFailedError as failure:
            raise errors.UnreachableError(
                f"the connection to {session.base_url} broke: {failure.message}",
                reason=CONNECTION_LOST,
                next_action="Start following again; nothing is lost on the platform's side.",
            ) from failure
        if not chunk:
            return
        try:
            arrived = parser.feed(chunk)
        except EventTooLongError as error:
            raise errors.ProtocolError(str(error)) from error
        for event in arrived:
            item = read(event)
            if item is not None:
                yield Emit(item)


# --- waiting --------------------------------------------------------------------------------------

Progress: TypeAlias = Callable[[EndpointDescription], None]
Seen = TypeVar("Seen", EndpointDescription, EndpointDescription | None, GprItem)


def wait_until_running(
    session: Session,
    name: str,
    timeout: float = WAIT_SECONDS,
    *,
    workspace: str = "default",
    cluster: str = "",
    queue_timeout: float | None = None,
    progress: Progress | None = None,
) -> Flow[EndpointDescription]:
    """Wait until the endpoint answers; returns its description.

    The time for which it is Queued for GPUs does not count against `timeout` seconds: it has a limit of its
    own, `queue_timeout`, or none. `progress` is called with each description seen on the way. Raises
    EndpointFailedError as soon as waiting will not help (a failure that is retried gets a little patience
    first), WaitTimeoutError, NotFoundError when the endpoint goes away.
    """
    failing_since: float | None = None

    def look(endpoint: EndpointDescription, now: float, late: str) -> bool:
        nonlocal failing_since
        if endpoint.status in {"Running", "Idle"}:
            return True
        failing_since = _failing_since(endpoint, failing_since, now)
        if failing_since is not None and (
            not _mends_itself(endpoint) or now - failing_since >= FAILED_PATIENCE_SECONDS or late
        ):
            raise _failed(endpoint)
        if late:
            raise errors.WaitTimeoutError(
                f"{name} is still {endpoint.status} {late}"
                + (f": {endpoint.message}" if endpoint.message else ""),
                reason=endpoint.reason,
                next_action=endpoint.next_action,
            )
        return False

    def queued(endpoint: EndpointDescription) -> bool:
        return endpoint.status == QUEUED

    see = partial(describe, session, name, workspace=workspace, cluster=cluster)
    return (yield from look_until(see, look, timeout, progress, queued=queued, queue_timeout=queue_timeout))


def wait_until_deleted(
    session: Session,
    name: str,
    timeout: float = WAIT_SECONDS,
    *,
    workspace: str = "default",
    cluster: str = "",
    progress: Progress | None = None,
) -> Flow[None]:
    """Wait until nothing of the endpoint is left. Raises WaitTimeoutError, naming what is."""

    def see() -> Flow[EndpointDescription | None]:
        try:
            return (yield from describe(session, name, workspace=workspace, cluster=cluster))
        except errors.NotFoundError:
            return None

    def look(endpoint: EndpointDescription | None, _now: float, late: str) -> bool:
        if endpoint is None:
            return True
        if late:
            raise errors.WaitTimeoutError(
                f"{name} is still there {late}: {endpoint.message or endpoint.status}",
                reason=endpoint.reason,
                next_action=endpoint.next_action,
            )
        return False

    yield from look_until(see, look, timeout, progress)


def wait_until_stopped(
    session: Session,
    name: str,
    timeout: float = WAIT_SECONDS,
    *,
    workspace: str = "default",
    cluster: str = "",
    progress: Progress | None = None,
) -> Flow[EndpointDescription]:
    """Wait until a stopped endpoint has no server left. Raises WaitTimeoutError."""

    def look(endpoint: EndpointDescription, _now: float, late: str) -> bool:
        if endpoint.status == "Stopped":
            return True
        if late:
            raise errors.WaitTimeoutError(f"{name} is still {endpoint.status} {late}", reason=endpoint.reason)
        return False

    see = partial(describe, session, name, workspace=workspace, cluster=cluster)
    return (yield from look_until(see, look, timeout, progress))


def look_until(
    see: Callable[[], Flow[Seen]],
    look: Callable[[Seen, float, str], bool],
    timeout: float,
    progress: Callable[[Any], None] | None,
    *,
    queued: Callable[[Seen], bool] = lambda _: False,
    queue_timeout: float | None = None,
) -> Flow[Seen]:
    """See how it is again and again, ever more seldom, until `look` is satisfied; returns the last.

    `look(seen, now, late)` is told how long it has taken once that is too long ("" before), and raises what
    is to be said then. Time spent `queued` counts against `queue_timeout` and not against `timeout`.
    """
    before: float = yield Now()
    worked, waited = 0.0, 0.0
    pause = POLL_SECONDS_FIRST
    while True:
        seen = yield from see()
        if progress is not None and seen is not None:
            progress(seen)
        now: float = yield Now()
        in_line = queued(seen)
        if in_line:
            waited += now - before
        else:
            worked += now - before
        before = now
        late = f"after {timeout:g} s" if worked >= timeout else ""
        if in_line and queue_timeout is not None and waited >= queue_timeout:
            late = f"after {queue_timeout:g} s in line"
        if look(seen, now, late):
            return seen
        left = timeout - worked
        if in_line:
            left = POLL_SECONDS_MAX if queue_timeout is None else queue_timeout - waited
        yield Pause(min(pause, max(left, 0.0)))
        pause = min(pause * POLL_GROWTH, POLL_SECONDS_MAX)


def _failing_since(endpoint: EndpointDescription, since: float | None, now: float) -> float | None:
    """Since when it has been somewhere that is not on the way to Running; None while it is on the way.

    What is said about an earlier spec (before a start, an update) does not count.
    """
    if endpoint.status == "Terminating":
        return since if since is not None else now
    stale = endpoint.observed_generation < endpoint.generation
    if stale or endpoint.status not in {"Failed", "Stopped"}:
        return None
    return since if since is not None else now


def _mends_itself(endpoint: EndpointDescription) -> bool:
    if endpoint.status != "Failed":
        return False
    try:
        return reason_of(ReasonCode(endpoint.reason)).retry_helps
    except ValueError:  # a newer platform's reason; waiting a little cannot hurt
        return True


def _failed(endpoint: EndpointDescription) -> errors.EndpointFailedError:
    said = f"{endpoint.reason}: {endpoint.message}" if endpoint.message else endpoint.reason
    return errors.EndpointFailedError(
        f"{endpoint.endpoint_name} is {endpoint.status}" + (f" — {said}" if said else ""),
        reason=endpoint.reason,
        next_action=endpoint.next_action,
    )


# --- predictions ----------------------------------------------------------------------------------


def predict(
    session: Session,
    name: str,
    body: Any = None,
    *,
    instances: Any = None,
    workspace: str = "default",
    cluster: str = "",
    key: str = "",
) -> Flow[dict[str, Any]]:
    """A V1 prediction through the gateway: `instances` alone, or a whole `body` (dict, JSON text, bytes).

    `key` is an endpoint key, for endpoints that want one; without, the client's own is sent.
    The endpoint's address is looked up once and remembered. Raises InvalidError for what the model
    does not accept, EndpointNotReadyError before the endpoint has an address, UnavailableError.
    """
    if (body is None) == (instances is None):
        raise errors.InvalidError(
            "give exactly one of body and instances", reason="Missing", field="instances"
        )
    content = requests.encode_body({"instances": instances} if body is None else body)
    ask_there = partial(requests.predict, body=content, key=key or session.endpoint_key)
    return (yield from _through_gateway(session, (workspace, name, cluster), ask_there))


def infer(
    session: Session,
    name: str,
    body: Any = None,
    *,
    inputs: Sequence[Mapping[str, Any]] | None = None,
    workspace: str = "default",
    cluster: str = "",
    key: str = "",
) -> Flow[dict[str, Any]]:
    """A V2 (Open Inference) prediction through the gateway: `inputs` alone, or a whole `body`."""
    if (body is None) == (inputs is None):
        raise errors.InvalidError("give exactly one of body and inputs", reason="Missing", field="inputs")
    content = requests.encode_body({"inputs": inputs} if body is None else body)
    ask_there = partial(requests.infer, name=name, body=content, key=key or session.endpoint_key)
    return (yield from _through_gateway(session, (workspace, name, cluster), ask_there))


def _through_gateway(
    session: Session, place: tuple[str, str, str], ask_at: Callable[[str], Request[dict[str, Any]]]
) -> Flow[dict[str, Any]]:
    known = session.addresses.get(place)
    address = known or (yield from _look_up(session, place))
    try:
        return (yield from ask(session, ask_at(address)))
    except (errors.NotFoundError, errors.UnreachableError) as error:
        # The endpoint, or the gateway, may have moved since the address was looked up. A request that
        # may have been answered is not sent again, wherever.
        session.addresses.pop(place, None)
        if known is None or error.reason == CONNECTION_LOST:
            raise
    address = yield from _look_up(session, place)
    return (yield from ask(session, ask_at(address)))


def _look_up(session: Session, place: tuple[str, str, str]) -> Flow[str]:
    workspace, name, cluster = place
    endpoint = yield from describe(session, name, workspace=workspace, cluster=cluster)
    if not endpoint.path_endpoint:
        said = f": {endpoint.message}" if endpoint.message else ""
        raise errors.EndpointNotReadyError(
            f"{name} is {endpoint.status} and has no address yet{said}",
            reason=endpoint.reason,
            next_action=endpoint.next_action,
        )
    session.addresses[place] = endpoint.path_endpoint
    return endpoint.path_endpoint


# --- keys, workspaces, clusters, the platform itself ------------------------------------------------


def create_api_key(
    session: Session,
    name: str,
    *,
    role: str,
    validity: str,
    workspace: str = "",
    user_name: str = "",
    description: str = "",
    idempotency_key: str = "",
) -> Flow[str]:
    """Make an API key (`Owner`, `Editor` or `Viewer`) and return its value, which is shown this once.

    `validity` is a date `YYYY-MM-DD` or a duration such as `30d`.
    """
    body = CreateApiKey(
        name=name,
        role=role,
        validity=validity,
        user_name=user_name or None,
        description=description or None,
        workspace_name=workspace or None,
    )
    answer = yield from ask(session, requests.create_api_key(body, idempotency_key or session.new_key()))
    return answer.api_key


def list_api_keys(session: Session, *, workspace: str = "") -> Flow[tuple[ApiKeyItem, ...]]:
    """All API keys, or one workspace's; their values are masked."""
    answer = yield from ask(session, requests.list_api_keys(workspace))
    return answer.items


def delete_api_key(session: Session, key_or_id: str) -> Flow[None]:
    """Delete an API key by its value or id; its tokens end at once."""
    yield from ask(session, requests.delete_api_key(key_or_id))


def create_workspace(
    session: Session,
    name: str,
    *,
    clusters: Sequence[str] = ("local",),
    namespaces: Sequence[str] = (),
    username: str = "",
    email: str = "",
    idempotency_key: str = "",
) -> Flow[str]:
    """Make a workspace on some clusters; returns its name."""
    body = WriteWorkspace(name, list(clusters), list(namespaces), username, email)
    answer = yield from ask(session, requests.create_workspace(body, idempotency_key or session.new_key()))
    return answer.workspace_name


def update_workspace(
    session: Session,
    name: str,
    *,
    clusters: Sequence[str] | None = None,
    namespaces: Sequence[str] | None = None,
) -> Flow[None]:
    """Replace a workspace's clusters or namespaces; what is not given stays."""
    body = UpdateWorkspace(
        name,
        clusters=None if clusters is None else list(clusters),
        namespaces=None if namespaces is None else list(namespaces),
    )
    yield from ask(session, requests.update_workspace(body))


def delete_workspace(session: Session, name: str, *, force: bool = False) -> Flow[None]:
    """Delete a workspace. With endpoints in it ConflictError, unless `force` deletes them first."""
    yield from ask(session, requests.delete_workspace(name, force=force))


def list_workspaces(session: Session) -> Flow[tuple[WorkspaceItem, ...]]:
    """The workspaces that this key may see."""
    answer = yield from ask(session, requests.list_workspaces())
    return answer.workspaces


def list_clusters(session: Session) -> Flow[tuple[ClusterItem, ...]]:
    """The registered clusters."""
    answer = yield from ask(session, requests.list_clusters())
    return answer.items


def register_cluster(session: Session, name: str, *, engine: str, domain: str = "") -> Flow[str]:
    """Make a cluster known, with engine `local` or `simulated`; returns its name.

    It can be given to workspaces from then on, and works once the platform is started with it in its
    configuration file. Raises AlreadyExistsError, InvalidError.
    """
    body = WriteCluster(name, engine, domain=domain or None)
    answer = yield from ask(session, requests.register_cluster(body))
    return answer.name


def connect_cluster(
    session: Session,
    name: str,
    *,
    kubeconfig: str = "",
    kubeconfig_ref: str = "",
    context: str = "",
    in_cluster: bool = False,
    domain: str = "",
    ingress_address: str = "",
    drift: str = "",
    force: bool = False,
    dry_run: bool = False,
) -> Flow[ClusterReportItem]:
    """Register a cluster of Kubernetes with KServe, which works at once; returns what was found there.

    It is reached by the text of a `kubeconfig` that stands alone, by the path of one on the platform's machine,
    or `in_cluster` by the platform's own service account. It is refused while it does not answer, unless
    `force`. With `dry_run` it is only looked at. Raises AlreadyExistsError, InvalidError.
    """
    body = WriteCluster(
        name,
        KSERVE,
        domain=domain or None,
        ingress_address=ingress_address or None,
        kubeconfig=kubeconfig or None,
        kubeconfig_ref=kubeconfig_ref or None,
        context=context or None,
        in_cluster=in_cluster or None,
        drift=drift or None,
        force=force or None,
    )
    answer = yield from ask(session, requests.register_cluster(body, dry_run=dry_run))
    return _found(answer)


def change_cluster(
    session: Session,
    name: str,
    *,
    domain: str | None = None,
    ingress_address: str | None = None,
    kubeconfig: str = "",
    kubeconfig_ref: str = "",
    context: str = "",
    in_cluster: bool = False,
    drift: str = "",
    force: bool = False,
) -> Flow[ClusterReportItem]:
    """Change a registered cluster of Kubernetes; what is not given stays. Returns what was found there.

    Raises NotFoundError, InvalidError, ConflictError for one that the configuration file declares.
    """
    body = UpdateCluster(
        name,
        domain=domain,
        ingress_address=ingress_address,
        kubeconfig=kubeconfig or None,
        kubeconfig_ref=kubeconfig_ref or None,
        context=context or None,
        in_cluster=in_cluster or None,
        drift=drift or None,
        force=force or None,
    )
    answer = yield from ask(session, requests.change_cluster(body))
    return _found(answer)


def check_cluster(session: Session, name: str) -> Flow[ClusterReportItem]:
    """Look at a registered cluster of Kubernetes now. Raises NotFoundError, InvalidError."""
    answer = yield from ask(session, requests.check_cluster(name))
    return _found(answer)


def _found(answer: ClusterRegistered) -> ClusterReportItem:
    """Of a cluster of Kubernetes something is always found."""
    assert answer.report is not None, "the platform looks at every cluster of Kubernetes"
    return answer.report


def kube_config(session: Session, *, workspace: str = "default", cluster: str = "") -> Flow[str]:
    """A kubeconfig (YAML) for the workspace's namespaces on a cluster of Kubernetes; it expires by itself.

    Raises InvalidError for a cluster that is no Kubernetes, ForbiddenError, UnavailableError.
    """
    answer = yield from ask(session, requests.kube_config(workspace, cluster))
    return answer.kube_config


def delete_cluster(session: Session, name: str) -> Flow[None]:
    """Forget a cluster; what runs on it runs on.

    Raises ConflictError while the configuration file declares it, or a workspace has it.
    """
    yield from ask(session, requests.delete_cluster(name))


def readiness(session: Session) -> Flow[Readiness]:
    """Which parts of the platform are ready. Needs no key."""
    return (yield from ask(session, requests.readiness()))
