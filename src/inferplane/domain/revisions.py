"""What a change of model, a promotion and a way back make of an endpoint's spec. Pure: spec in, spec out.

changed      a new revision, which takes over as the rollout says
regauged     another share of requests for the revision on its way
promoted     the revision on its way gets everything, and the one before goes
went_back    an earlier revision serves again
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from inferplane.domain.endpoint import (
    REVISIONS_KEPT_MAX,
    EndpointSpec,
    InferenceEndpoint,
    ModelSpec,
    ReplicaState,
    Revision,
)
from inferplane.domain.errors import Conflict, Invalid
from inferplane.domain.rollout import PERCENT_ALL, Guard, Rollout, RolloutPhase, Strategy, phase_of


def changed(
    endpoint: InferenceEndpoint,
    model: ModelSpec,
    rollout: Rollout | None,
    *,
    at: datetime,
    by: str,
    again: bool = False,
) -> EndpointSpec:
    """Its spec with a new revision made of `model`; as it is when that is what it has, unless `again`.

    `rollout` says how it takes over; its `base` is set here. None where nothing serves that would have to
    go on.
    """
    spec = endpoint.spec
    if model == spec.model and not again:
        return spec
    number = spec.next_revision
    known = spec.revisions or (Revision(spec.revision, spec.model, endpoint.created_at, endpoint.created_by),)
    known = tuple(replace(each, rolled_back=_was_rolled_back(endpoint, each)) for each in known)
    kept = (*known, Revision(number, model, at, by))
    base = serving_revision(endpoint)
    return replace(
        spec,
        model=model,
        revision=number,
        revisions=_bounded(kept, {number, base}),
        rollout=None if rollout is None else replace(rollout, base=base),
    )


def serving_revision(endpoint: InferenceEndpoint) -> int:
    """Which revision goes on serving when another one is made: the one that gets the requests.

    While one takes over, that is the one before; a candidate that has all of them already counts, whether
    or not it was watched to the end, unless only the one before answers.
    """
    spec, rollout, phase = endpoint.spec, endpoint.spec.rollout, _phase(endpoint)
    if rollout is None or phase is RolloutPhase.COMPLETE:
        return spec.revision
    if phase is RolloutPhase.SHIFTED and rollout.candidate_percent == PERCENT_ALL:
        answering = _answering(endpoint)
        return rollout.base if answering and spec.revision not in answering else spec.revision
    return rollout.base


def fate_of_candidate(before: InferenceEndpoint, spec: EndpointSpec) -> str:
    """What a change to `spec` made of the revision that was on its way, in words; "" where none was."""
    earlier, phase = before.spec.revision, _phase(before)
    if spec.revision == earlier or spec.rollout is None or phase in (None, *_DECIDED):
        return ""
    if spec.rollout.base == earlier:
        return f"revision {earlier}, which got all requests already, is accepted"
    return f"revision {earlier}, which was on its way, is withdrawn"


def regauged(endpoint: InferenceEndpoint, *, percent: int | None, mirror_percent: int | None) -> EndpointSpec:
    """Another share, or another part of copied requests, for the revision on its way. None leaves it.

    Raises Conflict where none is on its way, Invalid for a share out of range.
    """
    spec, rollout = endpoint.spec, _under_way(endpoint)
    _check_percent(percent, "canary.percent")
    _check_percent(mirror_percent, "canary.mirrorPercent")
    if rollout.strategy is Strategy.STOP_THEN_START:
        raise Conflict(
            "this revision starts in place of the one before, so requests cannot be shared between them",
            reason="NoRoomForBoth",
            field="canary",
            next_action="Wait for it to serve, or roll back.",
        )
    return replace(
        spec,
        rollout=replace(
            rollout,
            canary_percent=rollout.canary_percent if percent is None else percent,
            mirror_percent=rollout.mirror_percent if mirror_percent is None else mirror_percent,
        ),
    )


def promoted(endpoint: InferenceEndpoint) -> EndpointSpec:
    """The revision on its way gets everything once it can take it. Raises Conflict where none is."""
    rollout = _under_way(endpoint)
    return replace(endpoint.spec, rollout=replace(rollout, canary_percent=None, mirror_percent=0))


def went_back(endpoint: InferenceEndpoint, to: int | None) -> EndpointSpec:
    """An earlier revision serves again: `to`, or the one before.

    Where its servers still answer it has everything at once; else it takes over like a new revision, and
    what serves goes on until then, or on GPUs, where there is no room for both, until its model is here. Raises Conflict where there is none, Invalid for one that is not kept.
    """
    spec = endpoint.spec
    target = to if to is not None else _previous(endpoint)
    model = spec.model_of(target)
    if model is None or target < 1:
        kept = ", ".join(str(each.number) for each in spec.revisions) or str(spec.revision)
        raise Invalid(
            f"revision {target} is not kept",
            reason="NoSuchRevision",
            field="revision",
            next_action=f"Kept are the last {REVISIONS_KEPT_MAX}: {kept}.",
        )
    if target == spec.revision:
        raise Conflict(
            f"revision {target} is the one that shall serve already",
            reason="NothingToRollBack",
            field="revision",
            next_action="Name another revision, or promote this one if it is on its way.",
        )
    answering = _answering(endpoint)
    rollout = None
    if answering and target not in answering:
        strategy = Strategy.START_THEN_STOP if spec.rollout is None else spec.rollout.strategy
        if spec.gpu is not None:
            strategy = Strategy.STOP_THEN_START
        # A person asked for this one: it is not measured against what he goes away from.
        rollout = Rollout(base=max(answering), strategy=strategy, guard=Guard(enabled=False))
    return replace(spec, revision=target, model=model, rollout=rollout)


# Leaves


_DECIDED = frozenset({RolloutPhase.COMPLETE, RolloutPhase.ROLLED_BACK})


def _was_rolled_back(endpoint: InferenceEndpoint, revision: Revision) -> bool:
    """Whether requests went back from it, as far as is known now: the next change forgets how that came."""
    newest = endpoint.spec.revision
    if revision.number == newest:
        return _phase(endpoint) is RolloutPhase.ROLLED_BACK
    return revision.number > newest or revision.rolled_back


def _answering(endpoint: InferenceEndpoint) -> set[int]:
    return {each.id.revision for each in endpoint.status.replicas if each.state is ReplicaState.READY}


def _phase(endpoint: InferenceEndpoint) -> RolloutPhase | None:
    rollout = endpoint.spec.rollout
    return None if rollout is None else phase_of(endpoint.spec.revision, rollout, endpoint.status.rollout)


def _under_way(endpoint: InferenceEndpoint) -> Rollout:
    rollout, phase = endpoint.spec.rollout, _phase(endpoint)
    if rollout is None or phase is RolloutPhase.COMPLETE:
        raise Conflict(
            "no revision is on its way",
            reason="NoRollout",
            next_action="Change the model first, with a canary to begin with a part of the requests.",
        )
    if phase is RolloutPhase.ROLLED_BACK:
        raise Conflict(
            f"revision {endpoint.spec.revision} was rolled back",
            reason="RolledBack",
            next_action="Mend the model and change it again, or roll back to accept the revision before.",
        )
    return rollout


def _previous(endpoint: InferenceEndpoint) -> int:
    spec = endpoint.spec
    if spec.rollout is not None and _phase(endpoint) is not RolloutPhase.COMPLETE:
        return spec.rollout.base
    older = [each.number for each in spec.revisions if each.number < spec.revision]
    if not older:
        raise Conflict(
            f"there is no revision before revision {spec.revision}",
            reason="NothingToRollBack",
            next_action="Change the model instead.",
        )
    return max(older)


def _check_percent(percent: int | None, field: str) -> None:
    if percent is not None and not 0 <= percent <= PERCENT_ALL:
        raise Invalid(
            f"{field} is {percent}, but it is a percentage",
            reason="OutOfRange",
            field=field,
            next_action=f"Give a whole number from 0 to {PERCENT_ALL}.",
        )


def _bounded(revisions: tuple[Revision, ...], needed: set[int]) -> tuple[Revision, ...]:
    """The newest ones, and those that are needed whatever their age."""
    spare = [each for each in revisions if each.number not in needed]
    kept = {each.number for each in spare[-max(0, REVISIONS_KEPT_MAX - len(needed)) :]} | needed
    return tuple(each for each in revisions if each.number in kept)
