"""How an endpoint should be reached, by its status alone. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from inferplane.controllers.endpoint_gpus import startable
from inferplane.domain.endpoint import InferenceEndpoint, Replica, ReplicaState, public_state
from inferplane.domain.endpoint_access import EndpointKey
from inferplane.domain.rollout import RolloutPhase, phase_of, shares
from inferplane.domain.runtime import is_pure
from inferplane.gateway.route_table import EndpointRoutes, Upstream


def with_keys(routes: EndpointRoutes, keys: Iterable[EndpointKey]) -> EndpointRoutes:
    """The routes, told of the keys that the gateway cannot judge by themselves: revoked, with own rates.

    And of all that may come, oldest first, where the requests of each key are counted.
    """
    known = sorted(keys, key=lambda key: key.id)
    oldest = sorted(known, key=lambda key: (key.created_at, key.id))
    return replace(
        routes,
        keys=()
        if routes.concurrency_max_per_key is None
        else tuple(key.id for key in oldest if key.revoked_at is None),
        revoked_keys=tuple(key.id for key in known if key.revoked_at is not None),
        key_rates=tuple(
            (key.id, key.requests_per_second)
            for key in known
            if key.revoked_at is None and key.requests_per_second is not None
        ),
    )


def routes_of(endpoint: InferenceEndpoint) -> EndpointRoutes:
    """The routes `endpoint` should have by its status.

    Replicas of the wished revision that answer, or of both while one takes over from another; while there
    is none, those of older revisions. None while `endpoint.status` says that it has no GPUs and needs some.
    """
    serving, percents, mirror = _serving(endpoint)
    rollout = endpoint.spec.rollout
    state = public_state(endpoint)
    models = [endpoint.spec.model_of(replica.id.revision) for replica in serving] or [endpoint.spec.model]
    names = [endpoint.name]
    if endpoint.spec.model.alias and endpoint.spec.model.alias != endpoint.name:
        names.append(endpoint.spec.model.alias)
    return EndpointRoutes(
        uid=endpoint.uid,
        workspace=endpoint.workspace,
        endpoint=endpoint.name,
        upstreams=tuple(Upstream(r.id.name, r.address) for r in sorted(serving, key=lambda r: r.id)),
        models=tuple(names),
        max_request_bytes=endpoint.spec.limits.max_request_bytes,
        timeout_seconds=endpoint.spec.limits.timeout_seconds,
        access=endpoint.spec.access,
        requests_per_second=endpoint.spec.limits.requests_per_second,
        burst=endpoint.spec.limits.burst,
        requests_per_second_per_key=endpoint.spec.limits.requests_per_second_per_key,
        concurrency_max=endpoint.spec.limits.concurrency_max,
        concurrency_max_per_key=endpoint.spec.limits.concurrency_max_per_key,
        unavailable_reason=(state.reason or state.status).value,
        asleep=endpoint.spec.scaling.sleeps and not endpoint.spec.stopped and not serving,
        cluster=endpoint.host_cluster,
        retriable=all(model is not None and is_pure(model) for model in models),
        shares=percents,
        mirror=mirror,
        sticky_header=rollout.sticky_header if rollout is not None and len(percents) > 1 else "",
    )


def _serving(
    endpoint: InferenceEndpoint,
) -> tuple[list[Replica], tuple[tuple[int, int], ...], tuple[int, int] | None]:
    """Replicas that get requests, the revisions' shares where there is more than one, and who gets copies."""
    spec, note = endpoint.spec, endpoint.status.rollout
    wanted = startable(endpoint, endpoint.status.gpu)
    if not wanted:
        return [], (), None
    names, revisions = {each.name for each in wanted}, {each.revision for each in wanted}
    answering = [
        r
        for r in endpoint.status.replicas
        if r.state is ReplicaState.READY
        and r.address
        and (r.id.name in names or r.id.revision not in revisions)
    ]
    there = frozenset(r.id.revision for r in answering)
    percents = shares(spec.revision, spec.rollout, note, there)
    mirror = None
    if (
        spec.rollout is not None
        and spec.rollout.mirror_percent
        and phase_of(spec.revision, spec.rollout, note) is RolloutPhase.SHIFTED
        and spec.revision in there
    ):
        mirror = (spec.revision, spec.rollout.mirror_percent)
    serving = {revision for revision, _ in percents} | ({mirror[0]} if mirror is not None else set())
    return (
        [r for r in answering if r.id.revision in serving],
        percents if len(serving) > 1 else (),
        mirror,
    )
