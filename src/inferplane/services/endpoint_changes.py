"""Changing an endpoint while it serves: another model, shares, promotion, the way back.

A change is decided outside of any transaction, from the row as it was read, and written only if the row
is still that one; whoever was too late (a controller writes how things are all the time) reads again.
What a change does to the endpoint is for controllers to say: here only the wish is written.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from inferplane.domain.access import Caller, Verb
from inferplane.domain.endpoint import EndpointSpec, InferenceEndpoint
from inferplane.domain.errors import Conflict, StaleVersion, Unavailable
from inferplane.domain.revisions import promoted, went_back
from inferplane.services.context import Platform
from inferplane.services.endpoint_change_drafts import (
    Change,
    ChangeDraft,
    understand_change,
)
from inferplane.services.endpoint_on_kubernetes import check_on_kubernetes, warnings_on
from inferplane.services.endpoints import (
    UPDATE_ATTEMPTS_MAX,
    Finding,
    check_servable,
    engine_findings,
    find,
    gateway_findings,
    merged_findings,
    refuse_going,
    servable_findings,
    told,
)
from inferplane.services.idempotency import Ticket, once, recall, remember
from inferplane.services.trail import difference, entry
from inferplane.store.sql import Tx

UPDATED, PROMOTED, ROLLED_BACK = "EndpointUpdated", "RevisionPromoted", "RevisionRolledBack"

Place = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Changed:
    """An endpoint that was changed, the revision that shall serve, and what is to be known besides.

    `without_revision` is what changed in words ("": nothing) where no other revision shall serve, else None.
    """

    endpoint: str
    revision: int
    warnings: tuple[str, ...] = ()
    without_revision: str | None = None


@dataclass(frozen=True, slots=True)
class _Step:
    """What is to be written: the spec, what happened in words ("": nothing), other credentials or None."""

    spec: EndpointSpec
    message: str
    secret: Mapping[str, str] | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()


async def update(
    platform: Platform, caller: Caller, draft: ChangeDraft, ticket: Ticket | None = None
) -> Changed:
    """Change what was given. A change of the model makes a revision, everything else none.

    Raises Invalid with all details, NotFound, Conflict for an endpoint that is being deleted, for a share
    when no revision is on its way and for a reused idempotency key, Unavailable when it lost every race.
    """
    caller.require(Verb.WRITE_ENDPOINT, draft.workspace)

    async def decide(tx: Tx, endpoint: InferenceEndpoint, now: datetime) -> _Step:
        change = _understood(platform, caller, endpoint, draft, now)
        cluster = await tx.get_cluster(endpoint.cluster)
        check_servable(change.wish, cluster)
        check_on_kubernetes(change.spec, cluster)
        warnings = tuple(warnings_on(cluster, change.warnings, change.spec.scaling))
        return _Step(change.spec, change.message, change.secret, warnings)

    place = (draft.workspace, draft.endpoint, draft.cluster)
    return await _write(platform, caller, place, decide, UPDATED, ticket)


async def preflight(platform: Platform, caller: Caller, draft: ChangeDraft) -> tuple[str, list[Finding]]:
    """The endpoint's name, and what `update` would do and run into, and the engine: nothing is stored.

    Raises what cannot even be asked, as `update` does.
    """
    caller.require(Verb.WRITE_ENDPOINT, draft.workspace)
    async with platform.store.read() as tx:
        endpoint = await find(tx, draft.workspace, draft.endpoint, draft.cluster)
        refuse_going(endpoint)
        secret = await tx.endpoint_secret(endpoint.uid)
        cluster = await tx.get_cluster(endpoint.cluster)
    try:
        change = _understood(platform, caller, endpoint, draft, platform.clock())
    except Conflict as error:
        return endpoint.name, [Finding("rollout", False, error.reason, error.message, error.next_action)]
    findings = [Finding("change", True, "", change.message or "nothing changes", "")]
    findings += gateway_findings(change.spec, cluster)
    if change.spec.revision != endpoint.spec.revision or change.secret is not None:
        findings += servable_findings(change.wish, cluster)
        if all(finding.ok for finding in findings):
            wished = replace(endpoint, spec=change.spec)
            known = secret if change.secret is None else change.secret
            findings = merged_findings(findings, await engine_findings(platform, wished, known))
    findings += [Finding("warning", True, "", warning, "") for warning in change.warnings]
    return endpoint.name, findings


async def promote(platform: Platform, caller: Caller, place: Place, ticket: Ticket | None = None) -> Changed:
    """Give the revision on its way all requests. `place` is (workspace, endpoint, cluster).

    Raises NotFound, Conflict where no revision is on its way or it was rolled back.
    """
    caller.require(Verb.WRITE_ENDPOINT, place[0])

    async def decide(_tx: Tx, endpoint: InferenceEndpoint, _now: datetime) -> _Step:
        spec = promoted(endpoint)
        if spec == endpoint.spec:
            return _Step(spec, "", warnings=(f"revision {spec.revision} gets all requests already",))
        return _Step(spec, f"revision {spec.revision} gets all requests")

    return await _write(platform, caller, place, decide, PROMOTED, ticket)


async def roll_back(
    platform: Platform, caller: Caller, place: Place, to: int | None = None, ticket: Ticket | None = None
) -> Changed:
    """Have an earlier revision serve again: `to`, or the one before. `place` as in `promote`.

    Raises NotFound, Invalid for a revision that is not kept, Conflict where there is none to go back to.
    """
    caller.require(Verb.WRITE_ENDPOINT, place[0])

    async def decide(_tx: Tx, endpoint: InferenceEndpoint, _now: datetime) -> _Step:
        spec = went_back(endpoint, to)
        return _Step(spec, f"revision {spec.revision} serves again in place of {endpoint.spec.revision}")

    return await _write(platform, caller, place, decide, ROLLED_BACK, ticket)


def _understood(
    platform: Platform, caller: Caller, endpoint: InferenceEndpoint, draft: ChangeDraft, now: datetime
) -> Change:
    return understand_change(
        endpoint, draft, manifest_bytes_max=platform.limits.manifest_bytes_max, at=now, by=caller.key_name
    )


# Compare and set


Decide = Callable[[Tx, InferenceEndpoint, datetime], Awaitable[_Step]]


async def _write(
    platform: Platform, caller: Caller, place: Place, decide: Decide, kind: str, ticket: Ticket | None
) -> Changed:
    """Write what `decide` makes of the newest row, with its event and the answer that is remembered."""

    async def attempt() -> str:
        for _ in range(UPDATE_ATTEMPTS_MAX):
            try:
                return await _attempt(platform, caller, place, decide, kind, ticket)
            except StaleVersion:
                continue
        raise Unavailable(
            "the endpoint is changing too fast to be written",
            reason="TooBusy",
            next_action="Try again in a moment.",
        )

    answer = json.loads(await once(ticket, attempt))
    return Changed(
        answer["endpoint"], answer["revision"], tuple(answer["warnings"]), answer.get("without_revision")
    )


async def _attempt(
    platform: Platform, caller: Caller, place: Place, decide: Decide, kind: str, ticket: Ticket | None
) -> str:
    now = platform.clock()
    async with platform.store.read() as tx:
        known = await recall(tx, caller, ticket)
        if known is not None:
            return known
        present = await find(tx, *place)
        refuse_going(present)
        step = await decide(tx, present, now)
    changed = replace(present, spec=step.spec, generation=present.generation + 1)
    is_new = step.spec.revision != present.spec.revision
    answer = json.dumps(
        {
            "endpoint": present.name,
            "revision": step.spec.revision,
            "warnings": list(step.warnings),
            "without_revision": None if is_new else step.message,
        }
    )
    async with platform.store.transaction() as tx:
        known = await recall(tx, caller, ticket)
        if known is not None:
            return known  # a twin of this request was faster
        if step.message:
            await tx.update_endpoint_spec(changed)
            if step.secret is not None:
                await tx.replace_endpoint_secret(present.uid, step.secret)
            before, after = difference(told(present), told(changed))
            data: dict[str, Any] = {"revision": step.spec.revision}
            if step.warnings:
                data["warnings"] = list(step.warnings)
            await tx.append_event(
                entry(
                    now,
                    caller,
                    kind,
                    step.message,
                    workspace=present.workspace,
                    endpoint=present.name,
                    endpoint_uid=present.uid,
                    before=before,
                    after=after,
                    data=data,
                )
            )
        await remember(tx, caller, ticket, answer, now)
    return answer
