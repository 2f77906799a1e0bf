"""What is said about changing an endpoint while it serves. See `conversations`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from inferplane.client import requests
from inferplane.client.conversations import (
    FAILED_PATIENCE_SECONDS,
    WAIT_SECONDS,
    Flow,
    Progress,
    Session,
    ask,
    describe,
    look_until,
)
from inferplane.client.errors import WaitTimeoutError
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.wire.endpoints import (
    AutoscalingBody,
    CanaryBody,
    CheckItem,
    EndpointChanged,
    EndpointDescription,
    GuardBody,
    LimitsBody,
    ModelChangeBody,
    ModelResources,
    RevisionItem,
    UpdateEndpoint,
)
from inferplane.wire.traffic import EndpointMetrics

SETTLED_PHASES = frozenset({"Shifted", "Complete", "RolledBack"})


def update(
    session: Session,
    name: str,
    *,
    workspace: str = "default",
    cluster: str = "",
    uri: str | None = None,
    model_format: str | None = None,
    digest: str | None = None,
    args: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    secret: Mapping[str, str] | None = None,
    cpu: str | None = None,
    memory: str | None = None,
    manifest: str | None = None,
    min_replicas: int | None = None,
    max_replicas: int | None = None,
    target_concurrency: float | None = None,
    target_rate: float | None = None,
    scale_to_zero_after: str | None = None,
    canary_percent: int | None = None,
    mirror_percent: int | None = None,
    sticky_header: str | None = None,
    strategy: str | None = None,
    guard: GuardBody | None = None,
    limits: LimitsBody | None = None,
    access: str | None = None,
    restart: bool = False,
    idempotency_key: str = "",
) -> Flow[EndpointChanged]:
    """Change what is given of an endpoint; whatever is None stays.

    Another model becomes a revision, which takes over once it answers; with `canary_percent` it gets so
    much of the requests until it is promoted, with `mirror_percent` copies whose answers are dropped.
    Without another model they change the shares of the revision on its way. `manifest` (YAML text)
    replaces the model. `restart` makes a revision also where the model is described as before, and fetches its
    files anew. A target or limit of 0 takes it away. Raises InvalidError, NotFoundError, ConflictError.
    """
    body = UpdateEndpoint(
        workspace=workspace,
        endpoint=name,
        cluster=cluster or None,
        model_spec=_model(uri, model_format, digest, args, env, secret, cpu, memory),
        raw_model_spec=manifest,
        autoscaling=_scaling(
            min_replicas, max_replicas, target_concurrency, target_rate, scale_to_zero_after
        ),
        limits=limits,
        access=access,
        canary=_canary(canary_percent, mirror_percent, sticky_header),
        strategy=strategy,
        guard=guard,
        restart=restart or None,
    )
    return (yield from ask(session, requests.update_endpoint(body, idempotency_key or session.new_key())))


def try_update(
    session: Session,
    name: str,
    *,
    workspace: str = "default",
    cluster: str = "",
    uri: str | None = None,
    model_format: str | None = None,
    digest: str | None = None,
    args: Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    secret: Mapping[str, str] | None = None,
    cpu: str | None = None,
    memory: str | None = None,
    manifest: str | None = None,
    min_replicas: int | None = None,
    max_replicas: int | None = None,
    target_concurrency: float | None = None,
    target_rate: float | None = None,
    scale_to_zero_after: str | None = None,
    canary_percent: int | None = None,
    mirror_percent: int | None = None,
    sticky_header: str | None = None,
    strategy: str | None = None,
    guard: GuardBody | None = None,
    limits: LimitsBody | None = None,
    access: str | None = None,
    restart: bool = False,
) -> Flow[tuple[CheckItem, ...]]:
    """What `update` would do and run into; nothing is stored."""
    body = UpdateEndpoint(
        workspace=workspace,
        endpoint=name,
        cluster=cluster or None,
        model_spec=_model(uri, model_format, digest, args, env, secret, cpu, memory),
        raw_model_spec=manifest,
        autoscaling=_scaling(
            min_replicas, max_replicas, target_concurrency, target_rate, scale_to_zero_after
        ),
        limits=limits,
        access=access,
        canary=_canary(canary_percent, mirror_percent, sticky_header),
        strategy=strategy,
        guard=guard,
        restart=restart or None,
    )
    answer = yield from ask(session, requests.try_update(body))
    return answer.preflight


def restart(
    session: Session,
    name: str,
    *,
    workspace: str = "default",
    cluster: str = "",
    idempotency_key: str = "",
) -> Flow[EndpointChanged]:
    """Fetch the model anew and start servers of it, which take over as a new revision's do: without a gap.

    For a model that was overwritten where it lies. Raises NotFoundError, ConflictError.
    """
    return (
        yield from update(
            session,
            name,
            workspace=workspace,
            cluster=cluster,
            restart=True,
            idempotency_key=idempotency_key,
        )
    )


def promote(
    session: Session, name: str, *, workspace: str = "default", cluster: str = ""
) -> Flow[EndpointChanged]:
    """Give the revision on its way all requests. Raises ConflictError where none is."""
    return (yield from ask(session, requests.promote_endpoint(name, workspace, cluster)))


def rollback(
    session: Session, name: str, *, to: int | None = None, workspace: str = "default", cluster: str = ""
) -> Flow[EndpointChanged]:
    """Have the revision before serve again, or revision `to`. Raises ConflictError, InvalidError."""
    return (yield from ask(session, requests.roll_back_endpoint(name, to, workspace, cluster)))


def wait_until_updated(
    session: Session,
    name: str,
    timeout: float = WAIT_SECONDS,
    *,
    workspace: str = "default",
    cluster: str = "",
    progress: Progress | None = None,
) -> Flow[EndpointDescription]:
    """Wait until the newest revision gets what it shall get. Raises WaitTimeoutError.

    An endpoint that was rolled back, is stopped, or has failed for good is returned as well: look at its
    status. A failure that retries may mend gets a little patience first.
    """
    failing_since: float | None = None

    def look(endpoint: EndpointDescription, now: float, late: str) -> bool:
        nonlocal failing_since
        rollout = endpoint.rollout
        if endpoint.observed_generation >= endpoint.generation:
            if endpoint.status == "Stopped" or (rollout is not None and rollout.phase in SETTLED_PHASES):
                return True
            if rollout is None and endpoint.status in {"Running", "Idle"}:
                return True
        failing = endpoint.status in {"Failed", "Degraded"}
        if not failing or endpoint.observed_generation < endpoint.generation:
            failing_since = None
        elif failing_since is None:
            failing_since = now
        if failing_since is not None and (
            not _may_mend_itself(endpoint.reason) or now - failing_since >= FAILED_PATIENCE_SECONDS or late
        ):
            return True
        if late:
            raise WaitTimeoutError(
                f"{name} is still {endpoint.status} {late}",
                reason=endpoint.reason,
                next_action=endpoint.next_action,
            )
        return False

    see = partial(describe, session, name, workspace=workspace, cluster=cluster)
    return (yield from look_until(see, look, timeout, progress))


def revisions(
    session: Session, name: str, *, workspace: str = "default", cluster: str = ""
) -> Flow[tuple[RevisionItem, ...]]:
    """The revisions of an endpoint that are kept, newest first."""
    found = yield from describe(session, name, workspace=workspace, cluster=cluster)
    return found.revisions


def metrics(
    session: Session, name: str, *, minutes: int = 60, workspace: str = "default", cluster: str = ""
) -> Flow[EndpointMetrics]:
    """What the gateway saw of an endpoint in the last `minutes`, by revision."""
    return (yield from ask(session, requests.endpoint_metrics(name, minutes, workspace, cluster)))


def _may_mend_itself(reason: str) -> bool:
    try:
        return reason_of(ReasonCode(reason)).retry_helps
    except ValueError:  # a newer platform's reason; waiting a little cannot hurt
        return True


def _scaling(
    least: int | None,
    most: int | None,
    target_concurrency: float | None,
    target_rate: float | None,
    rest_after: str | None,
) -> AutoscalingBody | None:
    body = AutoscalingBody(
        min_replicas=least,
        max_replicas=most,
        target_concurrency=target_concurrency,
        target_rate=target_rate,
        scale_to_zero_after=rest_after,
    )
    return None if body == AutoscalingBody() else body


def _model(
    uri: str | None,
    model_format: str | None,
    digest: str | None,
    args: Sequence[str] | None,
    env: Mapping[str, str] | None,
    secret: Mapping[str, str] | None,
    cpu: str | None,
    memory: str | None,
) -> ModelChangeBody | None:
    body = ModelChangeBody(
        model_name=model_format,
        storage_uri=uri,
        digest=digest,
        args=None if args is None else list(args),
        env=None if env is None else dict(env),
        secret=None if secret is None else dict(secret),
        resources=None if cpu is None and memory is None else ModelResources(cpu, memory),
    )
    return None if body == ModelChangeBody() else body


def _canary(percent: int | None, mirror: int | None, header: str | None) -> CanaryBody | None:
    body = CanaryBody(percent, mirror, header)
    return None if body == CanaryBody() else body
