"""An endpoint's revisions as callers see them: what each is, what it gets, how one takes over from another."""

from __future__ import annotations

from enum import StrEnum

from inferplane.domain.endpoint import InferenceEndpoint, ReplicaState, Revision
from inferplane.domain.rollout import PERCENT_ALL, RolloutPhase, phase_of, shares
from inferplane.domain.storage_uri import redacted
from inferplane.wire.endpoints import RevisionItem, RolloutItem, TrafficItem


class RevisionState(StrEnum):
    """What a revision is at the moment, in one word."""

    SERVING = "serving"
    CANDIDATE = "candidate"  # it shall take over
    ROLLED_BACK = "rolledBack"  # it was worse, or somebody went back from it
    PREVIOUS = "previous"


def revisions(endpoint: InferenceEndpoint) -> tuple[RevisionItem, ...]:
    """Those that are kept, and those that have servers; newest first."""
    spec = endpoint.spec
    known = {each.number: each for each in spec.revisions}
    if not known:
        first = Revision(spec.revision, spec.model, endpoint.created_at, endpoint.created_by)
        known = {spec.revision: first}
    with_servers = {each.id.revision for each in endpoint.status.replicas}
    answering = _answering(endpoint)
    percents = dict(_shares(endpoint))
    items = []
    for number in sorted({*known, *with_servers, spec.revision}, reverse=True):
        revision = known.get(number)
        model = spec.model_of(number)
        items.append(
            RevisionItem(
                revision=number,
                state=_state(endpoint, number).value,
                model_name=model.format if model is not None else "",
                storage_uri=redacted(model.storage_uri) if model is not None else "",
                created_at=revision.created_at if revision is not None else None,
                created_by=revision.created_by if revision is not None else "",
                traffic_percent=percents.get(number, 0),
                ready=answering.count(number),
                wanted=number == spec.revision,
                ready_replicas=answering.count(number),
                note=_note(endpoint, number),
            )
        )
    return tuple(items)


def traffic(endpoint: InferenceEndpoint) -> tuple[TrafficItem, ...]:
    """What each revision gets of the requests, and of copies; newest first, without those that get nothing."""
    percents = dict(_shares(endpoint))
    mirrors = _mirror(endpoint)
    return tuple(
        TrafficItem(number, percents.get(number, 0), mirrors.get(number, 0))
        for number in sorted({*percents, *mirrors}, reverse=True)
    )


def rollout(endpoint: InferenceEndpoint) -> RolloutItem | None:
    """How far the last one has come; None where no revision had another one to take over from."""
    spec, note = endpoint.spec, endpoint.status.rollout
    wish = spec.rollout
    if wish is None:
        return None
    told = note if note is not None and (note.base, note.candidate) == (wish.base, spec.revision) else None
    made_at = next((each.created_at for each in spec.revisions if each.number == spec.revision), None)
    return RolloutItem(
        phase=phase_of(spec.revision, wish, note).value,
        base=wish.base,
        candidate=spec.revision,
        since=made_at if told is None else told.since,
        message=redacted(told.message) if told is not None else "",
        canary_percent=wish.canary_percent,
        mirror_percent=wish.mirror_percent,
        sticky_header=wish.sticky_header,
        strategy=wish.strategy.value,
    )


def _state(endpoint: InferenceEndpoint, number: int) -> RevisionState:
    spec = endpoint.spec
    if number > spec.revision:
        return RevisionState.ROLLED_BACK
    wish = spec.rollout
    phase = RolloutPhase.COMPLETE if wish is None else phase_of(spec.revision, wish, endpoint.status.rollout)
    earlier = next((each for each in spec.revisions if each.number == number), None)
    is_back = earlier is not None and earlier.rolled_back
    past = RevisionState.ROLLED_BACK if is_back else RevisionState.PREVIOUS
    if wish is None or phase is RolloutPhase.COMPLETE or _is_watched(endpoint):
        return RevisionState.SERVING if number == spec.revision else past
    if number == spec.revision:
        is_back = phase is RolloutPhase.ROLLED_BACK
        return RevisionState.ROLLED_BACK if is_back else RevisionState.CANDIDATE
    return RevisionState.SERVING if number == wish.base else past


def _is_watched(endpoint: InferenceEndpoint) -> bool:
    """Whether an update has brought the newest revision all requests, and the one before is still at hand."""
    spec, note = endpoint.spec, endpoint.status.rollout
    wish = spec.rollout
    return (
        wish is not None
        and not wish.is_gradual
        and phase_of(spec.revision, wish, note) is RolloutPhase.SHIFTED
        and dict(_shares(endpoint)).get(spec.revision) == PERCENT_ALL
    )


def _note(endpoint: InferenceEndpoint, number: int) -> str:
    """What is to be known of a revision besides its word; "" where nothing is."""
    spec, note = endpoint.spec, endpoint.status.rollout
    wish = spec.rollout
    if wish is None or note is None or number not in (spec.revision, wish.base):
        return ""
    if _is_watched(endpoint):
        until = f"until {note.since + wish.observe:%H:%M:%SZ}"
        if number == wish.base:
            return f"kept {until}, to go back to"
        return f"watched {until}" if wish.guard.enabled else f"may be gone back from {until}"
    if number == wish.base:
        return ""
    phase = phase_of(spec.revision, wish, note)
    if phase is RolloutPhase.ROLLED_BACK:
        return redacted(note.message)
    if phase is RolloutPhase.SHIFTED and wish.is_gradual:
        return "until it is promoted or rolled back"
    return "once it answers" if phase in (RolloutPhase.STARTING, RolloutPhase.PREPARING) else ""


def _answering(endpoint: InferenceEndpoint) -> list[int]:
    """The revision of each server that answers and that the gateway knows."""
    status = endpoint.status
    return [
        each.id.revision
        for each in status.replicas
        if each.state is ReplicaState.READY and each.id.name in status.routed
    ]


def _shares(endpoint: InferenceEndpoint) -> tuple[tuple[int, int], ...]:
    spec = endpoint.spec
    there = frozenset(_answering(endpoint))
    return shares(spec.revision, spec.rollout, endpoint.status.rollout, there)


def _mirror(endpoint: InferenceEndpoint) -> dict[int, int]:
    spec = endpoint.spec
    wish = spec.rollout
    if wish is None or not wish.mirror_percent or spec.revision not in _answering(endpoint):
        return {}
    shifted = phase_of(spec.revision, wish, endpoint.status.rollout) is RolloutPhase.SHIFTED
    return {spec.revision: wish.mirror_percent} if shifted else {}
