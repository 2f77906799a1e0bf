"""What a caller wants changed of an endpoint → the spec that it shall have. No I/O.

What is given of a `modelSpec` is laid over what the endpoint has, and the whole is then read like the
wish for a new endpoint, so that both are held to the same rules. A `rawModelSpec` replaces. Where the
model is another one afterwards, it becomes a revision, and the rest says how that takes over.

Where nothing serves there is nothing to take over from. On GPUs there is no room for two revisions: the
new one starts in place of the one before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from inferplane.domain.endpoint import EndpointSpec, InferenceEndpoint, ModelSpec, ReplicaState
from inferplane.domain.errors import Conflict, Invalid
from inferplane.domain.revisions import changed, fate_of_candidate, regauged, serving_revision
from inferplane.domain.rollout import (
    PERCENT_ALL,
    STICKY_HEADER_CHARACTERS_MAX,
    Guard,
    Rollout,
    Strategy,
)
from inferplane.domain.runtime import known_formats
from inferplane.domain.storage_uri import redacted
from inferplane.services.access_drafts import TrafficDraft, without_effect
from inferplane.services.endpoint_drafts import EndpointDraft, ModelDraft, Wish, understand
from inferplane.services.findings import Findings

GUARD_LATENCY_FACTOR_MAX = 1000.0
GUARD_LATENCY_MS_MAX = 3_600_000.0
GUARD_REQUESTS_MAX = 1_000_000
GUARD_WINDOW_SECONDS_MAX = 3600.0

NO_ROOM_FOR_BOTH = "NoRoomForBoth"

_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_HEADERS_TAKEN = ("x-inferplane-", "x-envoy-")


@dataclass(frozen=True, slots=True)
class ModelChange:
    """Of a `modelSpec`, what was given. None means not given; "" and what is empty take something away."""

    format: str | None = None
    storage_uri: str | None = None
    format_version: str | None = None
    runtime: str | None = None
    protocol_version: str | None = None
    args: tuple[str, ...] | None = None
    env: Mapping[str, str] | None = None
    secret: Mapping[str, str] | None = field(default=None, repr=False)
    cpu: str | int | float | None = None
    memory: str | int | None = None
    digest: str | None = None
    start_timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class CanaryDraft:
    """How much the new revision is to get to begin with. None means not given."""

    percent: int | None = None
    mirror_percent: int | None = None
    sticky_header: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it was given."""
        return self == CanaryDraft()


@dataclass(frozen=True, slots=True)
class GuardDraft:
    """When the new revision is to count as worse. None means not given."""

    enabled: bool | None = None
    error_points: float | None = None
    latency_factor: float | None = None
    latency_least_ms: float | None = None
    requests_min: int | None = None
    window_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ChangeDraft:
    """A request to change an endpoint. Nothing that was not given is touched.

    `restart` makes a revision even where the model is the same by its description: its files are fetched
    anew, which matters where they were overwritten.
    """

    workspace: str
    endpoint: str
    cluster: str = ""
    model: ModelChange | None = None
    manifest_text: str | None = field(default=None, repr=False)
    min_replicas: int | None = None
    max_replicas: int | None = None
    autoscaling_provider: str | None = None
    target_concurrency: float | None = None
    target_rate: float | None = None
    scale_to_zero_after: str | None = None
    max_request_bytes: int | None = None
    timeout_seconds: float | None = None
    traffic: TrafficDraft = TrafficDraft()
    canary: CanaryDraft = CanaryDraft()
    strategy: str | None = None
    guard: GuardDraft = GuardDraft()
    names_gpus: bool = False
    restart: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing at all."""
        return self == ChangeDraft(self.workspace, self.endpoint, self.cluster)


@dataclass(frozen=True, slots=True)
class Change:
    """A request understood: the spec that the endpoint shall have, and what is to be said about it.

    `wish` is what it was read as, to be held against a cluster. `secret` is None where it stays. `message`
    says what happens, "" where nothing is different.
    """

    spec: EndpointSpec
    wish: Wish
    message: str
    secret: Mapping[str, str] | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def changes_nothing(self) -> bool:
        """Whether the endpoint has all of it already."""
        return not self.message


def understand_change(
    endpoint: InferenceEndpoint, draft: ChangeDraft, *, manifest_bytes_max: int, at: datetime, by: str
) -> Change:
    """What `draft` makes of `endpoint`.

    Raises Invalid with every problem found, Malformed for what is not YAML, Conflict where a share is given
    and no revision is on its way.
    """
    present = endpoint.spec
    _check_given(draft)
    findings = Findings()
    wish = findings.check(_wish, endpoint, draft, manifest_bytes_max)
    canary = draft.canary
    warnings: list[str] = []
    if wish is not None:
        known = draft.model is not None and draft.model.args is None  # they were told of when they were given
        warnings += [each for each in wish.warnings if not (known and each.startswith("modelSpec.args"))]
        if draft.manifest_text is not None and canary.is_empty:
            canary = _canary_of(wish, present)
            warnings = [each for each in warnings if "canaryTrafficPercent" not in each]
    findings.check(_check_canary, canary)
    guard = findings.check(_guard, draft.guard, present.rollout)
    strategy = findings.check(_strategy, draft, endpoint, canary)
    findings.raise_any()
    assert wish is not None and guard is not None and strategy is not None  # noqa: PT018 - or it had raised

    model = _model(present.model, draft, wish)
    spec, said = present, []
    if model != present.model or draft.restart:
        rollout = _rollout(endpoint, canary, strategy, guard, warnings)
        spec = changed(endpoint, model, rollout, at=at, by=by, again=draft.restart)
        said.append(_what_happens(endpoint, spec, draft))
        said += [fate] if (fate := fate_of_candidate(endpoint, spec)) else []
    else:
        spec = _regauged(endpoint, canary, draft, guard, warnings)
        if spec != present and spec.rollout is not None:
            said.append(f"{_share(spec.rollout)} for revision {spec.revision}")
        if draft.strategy is not None:
            warnings.append("strategy has no effect, because the model does not change")
    if wish.wants_gpus and present.gpu is None:
        warnings.append("the manifest asks for GPUs, which has no effect: the endpoint stays on CPU")
    spec = replace(spec, scaling=wish.spec.scaling, limits=wish.spec.limits, access=wish.spec.access)
    if draft.manifest_text is not None or model != present.model:
        spec = replace(spec, manifest=wish.spec.manifest)
    said += _besides(present, spec)
    warnings += without_effect(draft.traffic, spec.access, spec.limits)
    if draft.manifest_text is not None and wish.spec.stopped and not present.stopped:
        spec = replace(spec, stopped=True, stopped_by=by, stopped_at=at)
        said.append("stopped")
    elif present.stopped and said:
        warnings.append("the endpoint is stopped; what changed has effect when it is started")
    secret = draft.model.secret if draft.model is not None else None
    if secret is not None:
        said.append("other credentials")
    if not said:
        warnings.append("nothing of this is different from what the endpoint has")
        spec = present
    return Change(spec, wish, "; ".join(said), secret, tuple(warnings))


def _besides(present: EndpointSpec, spec: EndpointSpec) -> list[str]:
    """What is different besides the model, in words."""
    said = []
    if spec.scaling != present.scaling:
        said.append(f"{spec.scaling.min_replicas} to {spec.scaling.max_replicas} replicas")
    if spec.limits != present.limits:
        said.append("other limits")
    if spec.access is not present.access:
        said.append(f"access {spec.access}")
    return said


def serves(endpoint: InferenceEndpoint) -> bool:
    """Whether there is something that has to go on serving while another revision starts."""
    if endpoint.spec.stopped or endpoint.desired_replicas == 0:
        return False
    base = serving_revision(endpoint)
    return any(
        each.state is ReplicaState.READY and each.id.revision == base for each in endpoint.status.replicas
    )


# What was given, laid over what is there


def _check_given(draft: ChangeDraft) -> None:
    if draft.names_gpus:
        raise Invalid(
            "the GPUs of an endpoint cannot be changed",
            reason="CannotChange",
            field="gpuSpec",
            next_action="Leave gpuSpec out, or delete the endpoint and create it with other GPUs.",
        )
    if draft.is_empty:
        raise Invalid(
            "nothing is given that could be changed",
            reason="Missing",
            field="modelSpec",
            next_action="Give modelSpec, rawModelSpec, autoscaling, limits, canary or guard, or restart.",
        )


def _wish(endpoint: InferenceEndpoint, draft: ChangeDraft, manifest_bytes_max: int) -> Wish:
    present = endpoint.spec
    scaling = present.scaling
    if draft.target_concurrency == 0:
        scaling = replace(scaling, target_concurrency=None)
    if draft.target_rate == 0:
        scaling = replace(scaling, target_rate=None)
    whole = EndpointDraft(
        workspace=endpoint.workspace,
        name=endpoint.name,
        cluster=endpoint.cluster,
        model=None if draft.model is None else _merged(present.model, draft.model),
        manifest_text=draft.manifest_text,
        min_replicas=draft.min_replicas,
        max_replicas=draft.max_replicas,
        autoscaling_provider=draft.autoscaling_provider,
        target_concurrency=draft.target_concurrency or None,
        target_rate=draft.target_rate or None,
        scale_to_zero_after=draft.scale_to_zero_after,
        max_request_bytes=draft.max_request_bytes,
        timeout_seconds=draft.timeout_seconds,
        traffic=draft.traffic,
    )
    wish = understand(whole, manifest_bytes_max=manifest_bytes_max, present=replace(present, scaling=scaling))
    if present.gpu is not None and not present.stopped:
        most, now = wish.spec.scaling.max_replicas, scaling.max_replicas
        if most != now:
            raise Invalid(
                f"maxReplicas cannot become {most} while the endpoint runs: its GPUs are shared out among {now}",
                reason="CannotChange",
                field="autoscaling.maxReplicas" if draft.manifest_text is None else "rawModelSpec",
                next_action="Stop the endpoint, change it, and start it again.",
            )
    return wish


def _merged(present: ModelSpec, given: ModelChange) -> ModelDraft:
    """The whole model as if it had been given. Raises Invalid for one that only a manifest can describe."""
    if given.format is None and present.format not in known_formats():
        raise Invalid(
            "this model was described by a manifest, and modelSpec has no words for it",
            reason="NeedsManifest",
            field="modelSpec",
            next_action="Give the whole changed manifest as rawModelSpec.",
        )
    moved = given.storage_uri is not None and given.storage_uri != present.storage_uri
    cpu, memory = present.resources.cpu_millis, present.resources.memory_bytes
    return ModelDraft(
        format=_either(given.format, present.format),
        storage_uri=_either(given.storage_uri, present.storage_uri),
        format_version=_either(given.format_version, present.format_version),
        runtime=_either(given.runtime, present.runtime),
        protocol_version=_either(given.protocol_version, present.protocol_version),
        args=present.args if given.args is None else given.args,
        env=dict(present.env) if given.env is None else given.env,
        secret=given.secret or {},
        cpu=given.cpu if given.cpu is not None else None if cpu is None else f"{cpu}m",
        memory=given.memory if given.memory is not None else memory,
        digest=_either(given.digest, "" if moved else present.digest),
        start_timeout_seconds=given.start_timeout_seconds or present.start_timeout_seconds,
    )


def _model(present: ModelSpec, draft: ChangeDraft, wish: Wish) -> ModelSpec:
    """The model that it shall have: what `modelSpec` has no words for is kept."""
    wished = wish.spec.model
    if draft.model is None:
        return wished
    if present.format not in known_formats():
        return replace(wished, alias=present.alias)
    return replace(wished, alias=present.alias, command=present.command, ready_path=present.ready_path)


def _either(given: str | None, present: str) -> str:
    return present if given is None else given


def _canary_of(wish: Wish, present: EndpointSpec) -> CanaryDraft:
    """What KServe's canaryTrafficPercent of a manifest asks for.

    It stays in a manifest when all is done, so it counts only for a new revision or one on its way.
    """
    found: object = wish.spec.manifest
    for key in ("spec", "predictor", "canaryTrafficPercent"):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, int) or isinstance(found, bool):
        return CanaryDraft()
    if wish.spec.model != present.model or (
        present.rollout is not None and present.rollout.canary_percent is not None
    ):
        return CanaryDraft(percent=found)
    return CanaryDraft()


# How a revision takes over


def _check_canary(canary: CanaryDraft) -> None:
    for percent, name in ((canary.percent, "percent"), (canary.mirror_percent, "mirrorPercent")):
        if percent is not None and not 0 <= percent <= PERCENT_ALL:
            raise Invalid(
                f"canary.{name} is {percent}, but it is a percentage",
                reason="OutOfRange",
                field=f"canary.{name}",
                next_action=f"Give a whole number from 0 to {PERCENT_ALL}.",
            )
    header = canary.sticky_header
    if not header:
        return
    if len(header) > STICKY_HEADER_CHARACTERS_MAX or not _HEADER.fullmatch(header):
        raise Invalid(
            f"canary.stickyHeader is not the name of a header of at most {STICKY_HEADER_CHARACTERS_MAX} characters",
            reason="InvalidName",
            field="canary.stickyHeader",
            next_action="Give for instance x-user.",
        )
    if header.lower().startswith(_HEADERS_TAKEN):
        raise Invalid(
            f"the gateway writes the header {header} itself",
            reason="InvalidName",
            field="canary.stickyHeader",
            next_action="Name a header that clients send, for instance x-user.",
        )


def _guard(draft: GuardDraft, rollout: Rollout | None) -> Guard:
    """The guard in force, or else the usual one, with what was given."""
    guard = rollout.guard if rollout is not None else Guard()
    for value, name, least, most in (
        (draft.error_points, "errorPoints", 0.0, 1.0),
        (draft.latency_factor, "latencyFactor", 1.0, GUARD_LATENCY_FACTOR_MAX),
        (draft.latency_least_ms, "latencyLeastMs", 0.0, GUARD_LATENCY_MS_MAX),
        (draft.requests_min, "requestsMin", 1, GUARD_REQUESTS_MAX),
        (draft.window_seconds, "windowSeconds", 1.0, GUARD_WINDOW_SECONDS_MAX),
    ):
        if value is not None and not least <= value <= most:
            raise Invalid(
                f"guard.{name} must be from {least:g} to {most:g}", reason="OutOfRange", field=f"guard.{name}"
            )
    window = draft.window_seconds
    return Guard(
        enabled=guard.enabled if draft.enabled is None else draft.enabled,
        error_points=guard.error_points if draft.error_points is None else draft.error_points,
        latency_factor=guard.latency_factor if draft.latency_factor is None else draft.latency_factor,
        latency_least_ms=guard.latency_least_ms if draft.latency_least_ms is None else draft.latency_least_ms,
        requests_min=guard.requests_min if draft.requests_min is None else draft.requests_min,
        window=guard.window if window is None else timedelta(seconds=window),
    )


def _strategy(draft: ChangeDraft, endpoint: InferenceEndpoint, canary: CanaryDraft) -> Strategy:
    on_gpus = endpoint.spec.gpu is not None
    wished = Strategy.STOP_THEN_START if on_gpus else Strategy.START_THEN_STOP
    if draft.strategy:
        found = [each for each in Strategy if each.value.lower() == draft.strategy.strip().lower()]
        if not found:
            raise Invalid(
                f"“{draft.strategy[:40]}” is not a strategy",
                reason="UnknownStrategy",
                field="strategy",
                next_action=f"Use one of {', '.join(Strategy)}.",
            )
        wished = found[0]
    if on_gpus and wished is Strategy.START_THEN_STOP:
        raise Invalid(
            "on GPUs there is no room for two revisions: the new one needs those of the one before",
            reason=NO_ROOM_FOR_BOTH,
            field="strategy",
            next_action=f"Leave it out, or give {Strategy.STOP_THEN_START}.",
        )
    if wished is Strategy.STOP_THEN_START and not canary.is_empty:
        because = "on GPUs there is no room for two revisions" if on_gpus else f"the strategy is {wished}"
        raise Invalid(
            f"requests cannot be shared between two revisions, because {because}",
            reason=NO_ROOM_FOR_BOTH,
            field="canary",
            next_action="Leave canary out; the endpoint does not answer until the new revision does."
            if on_gpus
            else f"Leave canary out, or give strategy {Strategy.START_THEN_STOP}.",
        )
    return wished


def _rollout(
    endpoint: InferenceEndpoint, canary: CanaryDraft, strategy: Strategy, guard: Guard, warnings: list[str]
) -> Rollout | None:
    """How a new revision takes over from the one that serves; None where none does."""
    if not serves(endpoint):
        if not canary.is_empty:
            warnings.append("canary has no effect, because no revision serves that could keep the rest")
        return None
    header = canary.sticky_header or ""
    if header and canary.percent is None:
        warnings.append("canary.stickyHeader has no effect without canary.percent")
    if strategy is Strategy.STOP_THEN_START:
        why = (
            "on GPUs there is no room for two revisions" if endpoint.spec.gpu is not None else "as was asked"
        )
        warnings.append(
            f"the new revision starts in place of revision {serving_revision(endpoint)} ({why}):"
            " in between nothing answers"
        )
    return Rollout(
        base=serving_revision(endpoint),
        canary_percent=canary.percent,
        mirror_percent=canary.mirror_percent or 0,
        sticky_header=header.lower(),
        strategy=strategy,
        guard=guard,
    )


def _regauged(
    endpoint: InferenceEndpoint, canary: CanaryDraft, draft: ChangeDraft, guard: Guard, warnings: list[str]
) -> EndpointSpec:
    """The spec with another share, header or guard for the revision on its way."""
    spec = endpoint.spec
    if not canary.is_empty:
        spec = regauged(endpoint, percent=canary.percent, mirror_percent=canary.mirror_percent)
        if canary.sticky_header is not None and spec.rollout is not None:
            header = canary.sticky_header.lower()
            spec = replace(spec, rollout=replace(spec.rollout, sticky_header=header))
    if draft.guard != GuardDraft():
        try:
            regauged(replace(endpoint, spec=_side_by_side(spec)), percent=None, mirror_percent=None)
        except Conflict:
            warnings.append("guard has no effect, because no revision is on its way")
        else:
            assert spec.rollout is not None  # or there were none on its way
            spec = replace(spec, rollout=replace(spec.rollout, guard=guard))
    return spec


def _side_by_side(spec: EndpointSpec) -> EndpointSpec:
    """To ask whether a revision is on its way, in whatever way it comes."""
    rollout = spec.rollout
    return (
        spec
        if rollout is None
        else replace(spec, rollout=replace(rollout, strategy=Strategy.START_THEN_STOP))
    )


def _what_happens(before: InferenceEndpoint, spec: EndpointSpec, draft: ChangeDraft) -> str:
    model = spec.model
    source = redacted(model.storage_uri) or ("the manifest" if draft.manifest_text is not None else "nowhere")
    same = "the same " if model == before.spec.model else ""
    again = " again" if same else ""
    said = f"revision {spec.revision}, {same}{model.format} model from {source}{again}"
    rollout = spec.rollout
    if rollout is None:
        return said
    if rollout.is_in_place:
        why = ": on GPUs there is no room for both" if before.spec.gpu is not None else ""
        return f"{said}, starts in place of revision {rollout.base}{why}"
    if rollout.is_gradual:
        return f"{said}, starts beside revision {rollout.base} with {_share(rollout)}"
    return f"{said}, takes over from revision {rollout.base} once it answers"


def _share(rollout: Rollout) -> str:
    parts = []
    if rollout.canary_percent is not None:
        parts.append(f"{rollout.canary_percent} % of requests")
    if rollout.mirror_percent:
        parts.append(f"copies of {rollout.mirror_percent} % of requests")
    return " and ".join(parts) or "all requests"
