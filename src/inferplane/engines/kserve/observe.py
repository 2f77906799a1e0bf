"""A cluster's objects → what the platform knows of one endpoint. Pure.

KServe's own status is believed last. In Standard mode it copies the Deployment's availability, so a crash at start is
"in progress" for ten minutes, a broken update looks perfect, and a serving endpoint looks failed once a deadline has
passed. What pods say is the truth of what runs (`pods.py`). The InferenceService is asked for what no pod can tell:
where requests come in, that it was stopped, and why there is no pod at all. Even then `status.observedGeneration` is
compared first, and with care: KServe copies it from the Deployment, so that it is absent while there is none, and
may stay behind for good. A complaint that could be of an earlier generation counts only where its event is newer
than what has been made since.

Replicas are pods, named `r<revision>-<index>`: by the label `inferplane.io/revision` where they carry it, else by
the revision of their ReplicaSet, and within it by age. Where a revision should have pods and has none, a first replica
that waits says why: a quota, an account, a webhook, no runtime, or somebody's hand on the Deployment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from inferplane.domain.endpoint import Ingress, Replica, ReplicaId, ReplicaState, Waiting
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.kserve import words
from inferplane.engines.kserve.kube_events import KubeEvent, events_of, latest
from inferplane.engines.kserve.picture import Picture
from inferplane.engines.kserve.pods import PodFacts, disruption, read_pod
from inferplane.engines.kserve.raw import (
    Raw,
    annotation,
    condition,
    first,
    is_going,
    items,
    label,
    mapping,
    moment,
    name,
    owner_uid,
    text,
    whole,
)
from inferplane.engines.port import Observation

REVISION_LABEL = "inferplane.io/revision"
SERVICE_LABEL = "serving.kserve.io/inferenceservice"
STOP_ANNOTATION = "serving.kserve.io/stop"
DEPLOYMENT_REVISION = "deployment.kubernetes.io/revision"
KNATIVE_GENERATION = "serving.knative.dev/configurationGeneration"
KNATIVE_MODES = frozenset({"Knative", "Serverless"})
PREDICTOR = "predictor"

DEADLINE_SECONDS = 600.0
"""KServe's own deadline for a Deployment, where the Deployment does not say."""
KSERVE_SILENT_SECONDS = 30.0
"""After so long without any trace of the controller, that is worth saying."""
NO_PODS_SECONDS = 30.0
RECENT_FAILURE_SECONDS = 120.0


def observe(endpoint_uid: str, picture: Picture, now: datetime) -> Observation:
    """What `picture` says of the endpoint at `now`.

    `artifacts`, `mark` and `unreachable` are not in a picture; whoever knows them adds them.
    """
    scene = _scene(picture, now)
    placed, look_again_at = _replicas_of_pods(endpoint_uid, scene)
    missing = _missing(endpoint_uid, scene, placed)
    replicas = sorted((*placed, *missing), key=lambda each: each.id)
    return Observation(
        replicas=tuple(replicas),
        left=_left(picture, replicas),
        ingress=_ingress(scene, picture),
        drift=_drift(scene),
        look_again_seconds=_seconds_until(look_again_at, scene),
    )


@dataclass(frozen=True, slots=True)
class _Scene:
    """The objects that count, told from the rest of the namespace. `service` is empty where there is none."""

    service: Raw
    deployment: Raw
    replica_sets: tuple[Raw, ...]
    pods: tuple[Raw, ...]
    events: tuple[KubeEvent, ...]
    picture: Picture
    now: datetime

    @property
    def is_knative(self) -> bool:
        mode = text(self.service, "status", "deploymentMode")
        asked = annotation(self.service, "serving.kserve.io/deploymentMode")
        return (mode or asked) in KNATIVE_MODES

    @property
    def may_sleep(self) -> bool:
        """Whether something in the cluster may scale it to zero by itself."""
        scaler = annotation(self.service, "serving.kserve.io/autoscalerClass").lower()
        least = whole(self.service, "spec", "predictor", "minReplicas")
        return self.is_knative or (scaler in ("keda", "external") and least == 0)

    @property
    def is_stopped(self) -> bool:
        return annotation(self.service, STOP_ANNOTATION).lower() == "true"

    @property
    def should_run(self) -> bool:
        return bool(self.service) and not self.is_stopped and not is_going(self.service)

    @property
    def deadline_seconds(self) -> float:
        said = whole(self.deployment, "spec", "progressDeadlineSeconds")
        return float(said) if said else DEADLINE_SECONDS

    def about(self, uid: str, kind: str, called: str) -> tuple[KubeEvent, ...]:
        """Events of one object: by its uid where both have one, since names come again."""
        return tuple(
            e
            for e in self.events
            if e.kind == kind and (e.object_uid == uid if e.object_uid and uid else e.object_name == called)
        )


def _scene(picture: Picture, now: datetime) -> _Scene:
    service = picture.inference_service or {}
    called = name(service)
    deployments = [each for each in picture.deployments if _is_predictor_of(each, called)]
    return _Scene(
        service=service,
        deployment=max(deployments, key=_age_key, default={}),
        replica_sets=tuple(each for each in picture.replica_sets if _is_predictor_of(each, called)),
        pods=tuple(each for each in picture.pods if _is_predictor_of(each, called)),
        events=events_of(picture.events),
        picture=picture,
        now=now,
    )


def _is_predictor_of(raw: Raw, called: str) -> bool:
    """Whether it serves the model; a transformer or an explainer beside it is not a replica."""
    service, component = label(raw, SERVICE_LABEL), label(raw, "component")
    return (not service or not called or service == called) and component in ("", PREDICTOR)


def _age_key(raw: Raw) -> tuple[str, str]:
    return text(raw, "metadata", "creationTimestamp"), name(raw)


# --- pods -----------------------------------------------------------------------------------------


def pods_of(endpoint_uid: str, picture: Picture, now: datetime) -> tuple[tuple[ReplicaId, Raw], ...]:
    """The pod behind each replica that `observe` tells of."""
    return tuple((each, pod) for each, pod, _ in _named(endpoint_uid, _scene(picture, now)))


def _replicas_of_pods(uid: str, scene: _Scene) -> tuple[list[Replica], datetime | None]:
    named = _named(uid, scene)
    before = _disruptions(scene)
    replicas = [
        Replica(
            each,
            facts.state,
            started_at=facts.started_at,
            ready_at=facts.ready_at,
            exit=facts.exit,
            waiting=_with_history(facts.waiting, before),
        )
        for each, _, facts in named
    ]
    again = [facts.look_again_at for _, _, facts in named if facts.look_again_at is not None]
    return replicas, min(again, default=None)


def _named(uid: str, scene: _Scene) -> list[tuple[ReplicaId, Raw, PodFacts]]:
    """Every pod that is worth telling, as which replica, and what it tells."""
    sets = {text(each, "metadata", "uid"): each for each in scene.replica_sets}
    read: list[tuple[int, tuple[bool, str, str], Raw, PodFacts]] = []
    for owner, pods in _by_owner(scene.pods).items():
        for pod, facts in _worth_telling(scene, pods):
            revision = _revision(scene, pod, sets.get(owner, {}))
            is_late = facts.state in (ReplicaState.STOPPING, ReplicaState.EXITED) and is_going(pod)
            read.append((revision, (is_late, *_age_key(pod)), pod, facts))
    named: list[tuple[ReplicaId, Raw, PodFacts]] = []
    counts: dict[int, int] = {}
    for revision, _, pod, facts in sorted(read, key=lambda each: each[:2]):
        index = counts.get(revision, 0)
        counts[revision] = index + 1
        named.append((ReplicaId(uid, revision, index), pod, facts))
    return named


def _disruptions(scene: _Scene) -> str:
    """What befell the newest pod that is going, "" where nothing did: the reason why there is a new one."""
    told = [
        disruption(pod, scene.about(text(pod, "metadata", "uid"), "Pod", name(pod)))
        for pod in sorted(scene.pods, key=_age_key)
        if is_going(pod)
    ]
    return next((each for each in reversed(told) if each), "")


def _with_history(waiting: Waiting | None, before: str) -> Waiting | None:
    if waiting is None or not before or waiting.reason is not ReasonCode.UNSCHEDULABLE:
        return waiting
    return replace(waiting, message=f"{waiting.message}; the pod before it: {before}")


def _by_owner(pods: Iterable[Raw]) -> dict[str, list[Raw]]:
    found: dict[str, list[Raw]] = {}
    for pod in sorted(pods, key=_age_key):
        found.setdefault(owner_uid(pod), []).append(pod)
    return found


def _worth_telling(scene: _Scene, pods: list[Raw]) -> list[tuple[Raw, PodFacts]]:
    """The pods of one ReplicaSet, without those that are over and were replaced.

    Kubernetes keeps evicted and refused pods by the thousand. What the newest of them said is kept for as long as
    its replacement has come no further, because it says why there is one replacement after another.
    """
    read = [
        (
            pod,
            read_pod(
                pod,
                scene.about(text(pod, "metadata", "uid"), "Pod", name(pod)),
                scene.picture.log_tails,
                scene.deadline_seconds,
                scene.now,
            ),
        )
        for pod in pods
    ]
    over = [(pod, facts) for pod, facts in read if _is_over(pod)]
    alive = [(pod, facts) for pod, facts in read if not _is_over(pod)]
    present = [each for each in alive if not is_going(each[0])]
    if not over:
        return alive
    last_pod, last = over[-1]
    if not present:
        return [*alive, (last_pod, last)]
    newest, facts = present[-1]
    ended_at = last.exit.at if last.exit is not None else None
    is_recent = ended_at is not None and scene.now - ended_at < timedelta(seconds=RECENT_FAILURE_SECONDS)
    is_young = facts.state is ReplicaState.STARTING and (facts.waiting is None or not facts.waiting.fails)
    if is_recent and is_young and facts.waiting is not None and last.exit is not None:
        if facts.waiting.reason is ReasonCode.STARTING:
            told = replace(last.waiting or facts.waiting, fails=len(over) > 1)
        else:
            message = f"{facts.waiting.message}; the one before: {last.exit.message}"
            told = replace(facts.waiting, message=message)
        again = ended_at + timedelta(seconds=RECENT_FAILURE_SECONDS) if ended_at is not None else None
        alive[-1] = (newest, replace(facts, waiting=told, look_again_at=again))
    return alive


def _is_over(pod: Raw) -> bool:
    return text(pod, "status", "phase") in ("Failed", "Succeeded") and not is_going(pod)


def _revision(scene: _Scene, pod: Raw, replica_set: Raw) -> int:
    """The platform's number of the revision that the pod is of."""
    if said := _number(label(pod, REVISION_LABEL)):
        return said
    counted = _number(_set_revision(scene, replica_set) or label(pod, KNATIVE_GENERATION)) or 1
    # A cluster makes ReplicaSets also of what is no revision of ours, as when a runtime was changed.
    wished = _number(label(scene.service, REVISION_LABEL))
    return min(counted, wished) if wished else counted


def _set_revision(scene: _Scene, replica_set: Raw) -> str:
    """The Deployment's number of what the ReplicaSet is of."""
    said = annotation(replica_set, DEPLOYMENT_REVISION)
    is_newest = _template(replica_set) is not None and replica_set is _newest_set(scene)
    whole_set = annotation(scene.deployment, DEPLOYMENT_REVISION)
    return whole_set if is_newest and _number(whole_set) > _number(said) else said


# --- where there should be pods and are none -------------------------------------------------------


def _missing(uid: str, scene: _Scene, placed: list[Replica]) -> list[Replica]:
    """A replica that waits, for what the newest revision should have and has not."""
    if not scene.should_run:
        return []
    newest = _newest_set(scene)
    revision = _wished_revision(scene, newest)
    there = [r for r in placed if r.id.revision == revision and r.state is not ReplicaState.STOPPING]
    waiting = _namespace_goes(scene) or _complaint(scene, newest) or _refused_pods(scene, newest)
    if waiting is None:
        if there or (placed and not scene.deployment):
            return []
        waiting = _no_pods_yet(scene)
        if waiting is None:
            return []
    taken = {r.id.index for r in placed if r.id.revision == revision}
    index = next(i for i in range(len(taken) + 1) if i not in taken)
    return [Replica(ReplicaId(uid, revision, index), ReplicaState.STARTING, waiting=waiting)]


def _namespace_goes(scene: _Scene) -> Waiting | None:
    namespace = scene.picture.namespace
    if namespace is None or not is_going(namespace):
        return None
    message = f"somebody deletes namespace {name(namespace)}, and all that is in it"
    since = moment(namespace, "metadata", "deletionTimestamp")
    return Waiting(ReasonCode.CHANGED_OUTSIDE, message, since, fails=True)


def _newest_set(scene: _Scene) -> Raw:
    """The ReplicaSet that the Deployment is bringing up; empty where there is none.

    It is the one with the Deployment's own template. One of an earlier revision is used again when that comes
    back, and its number is then written only after the Deployment's.
    """
    owner = text(scene.deployment, "metadata", "uid")
    own = [each for each in scene.replica_sets if not owner or owner_uid(each) in ("", owner)]
    template = _template(scene.deployment)
    same = [each for each in own if template is not None and _template(each) == template]
    return max(
        same or own,
        key=lambda each: (_number(annotation(each, DEPLOYMENT_REVISION)), *_age_key(each)),
        default={},
    )


def _template(raw: Raw) -> tuple[Raw, Raw, Raw] | None:
    """The pods' template, without the hash that tells ReplicaSets apart; None where the picture leaves it out."""
    template = mapping(raw, "spec", "template")
    if not template:
        return None
    labels = mapping(template, "metadata", "labels")
    return (
        {key: value for key, value in labels.items() if key != "pod-template-hash"},
        mapping(template, "metadata", "annotations"),
        mapping(template, "spec"),
    )


def _number(said: str) -> int:
    return int(said) if said.isdigit() else 0


def _wished_revision(scene: _Scene, newest: Raw) -> int:
    """What the InferenceService is labelled with; without labels, the newest ReplicaSet's, or the one to come."""
    said = _number(label(scene.service, REVISION_LABEL))
    if said:
        return said
    return _number(label(newest, REVISION_LABEL)) or _number(_set_revision(scene, newest)) or 1


def _complaint(scene: _Scene, newest: Raw) -> Waiting | None:
    """What KServe has against the InferenceService, where that is about its present generation."""
    status = mapping(scene.service, "status")
    about = scene.about(text(scene.service, "metadata", "uid"), "InferenceService", name(scene.service))
    errors = [e for e in about if e.warns and e.reason in ("InternalError", "ServerlessModeRejected")]
    real = [e for e in errors if words.kserve(e.message) is not None]
    newest_event = real[-1] if real else None
    seen, generation = (
        whole(status, "observedGeneration"),
        whole(scene.service, "metadata", "generation") or 1,
    )
    is_current = seen is None or seen >= generation
    failure = mapping(status, "modelStatus", "lastFailureInfo")
    if text(status, "modelStatus", "transitionStatus") == "InvalidSpec" and (
        is_current or _is_outstanding(scene, newest_event, newest)
    ):
        return _invalid_spec(failure, newest_event)
    predictor = condition(scene.service, "PredictorReady")
    if text(predictor, "reason") == "ReconcileFailed" and (
        is_current or _is_outstanding(scene, newest_event, newest)
    ):
        found = words.kserve(text(predictor, "message"))
        if found is not None:
            since = moment(predictor, "lastTransitionTime")
            return Waiting(found.reason, found.message, since, found.fails or not scene.deployment)
    if scene.is_knative and (failed := _knative(predictor, is_current=is_current)) is not None:
        return failed
    if newest_event is None or (scene.deployment and not _is_outstanding(scene, newest_event, newest)):
        return None
    found_event = words.kserve(newest_event.message)
    if found_event is None or (scene.deployment and not found_event.fails):
        return None  # what it made earlier goes on, and it tries again
    return Waiting(found_event.reason, found_event.message, newest_event.first, found_event.fails)


def _is_outstanding(scene: _Scene, event: KubeEvent | None, newest: Raw) -> bool:
    """Whether a complaint beside a Deployment is about what is wished now, and not yet mended.

    By our label that is certain: once there is a ReplicaSet of the wished revision, KServe has accepted it.
    """
    wished, made = label(scene.service, REVISION_LABEL), label(newest, REVISION_LABEL)
    if wished and made:
        return event is not None and wished != made
    return _is_newer(scene, event, newest)


def _is_newer(scene: _Scene, event: KubeEvent | None, newest: Raw) -> bool:
    """Whether the event came after the last change of the InferenceService, as far as one can tell."""
    if event is None:
        return False
    writes = [
        moment(each, "time")
        for each in items(scene.service, "metadata", "managedFields")
        if text(each, "subresource") != "status"
    ]
    written = max((at for at in writes if at is not None), default=None)
    made = moment(newest, "metadata", "creationTimestamp")
    after = max((at for at in (written, made) if at is not None), default=None)
    return after is None or event.last > after or (written is not None and event.last == written == after)


def _invalid_spec(failure: Raw, event: KubeEvent | None) -> Waiting:
    """KServe's short word and, where an event has it, the whole sentence."""
    reason, said = text(failure, "reason"), words.sentence(text(failure, "message"))
    since = moment(failure, "time")
    more = words.kserve(event.message) if event is not None else None
    if reason in words.NO_RUNTIME_REASONS or (more is not None and more.reason is ReasonCode.NO_RUNTIME):
        message = more.message if more is not None else said or reason
        if reason == "RuntimeNotRecognized" and more is None:
            message = f"the runtime that is named does not exist ({said})"
        return Waiting(ReasonCode.NO_RUNTIME, message, since, fails=True)
    if more is not None:
        return Waiting(more.reason, more.message, since, fails=True)
    found = words.kserve(said) if said else None
    code = found.reason if found is not None else ReasonCode.SPEC_REFUSED
    return Waiting(code, said or reason or "KServe calls it invalid and does not say why", since, fails=True)


def _knative(predictor: Raw, *, is_current: bool) -> Waiting | None:
    """With Knative a revision can fail before it has any pod, and says so in the condition."""
    said, why = text(predictor, "message"), text(predictor, "reason")
    if not is_current or predictor.get("status") != "False" or not said:
        return None
    since, lowered = moment(predictor, "lastTransitionTime"), said.lower()
    plain = words.sentence(said.partition("failed with message:")[2] or said)
    if "unable to fetch image" in lowered or "imagepull" in lowered.replace(" ", ""):
        return Waiting(ReasonCode.IMAGE_PULL_BACK_OFF, plain, since, fails=True)
    if "exceeded quota" in lowered:
        found = words.creation(plain)
        return Waiting(found.reason, found.message, since, found.fails)
    if why in ("ProgressDeadlineExceeded", "RevisionFailed", "RevisionMissing", "ConfigurationFailed"):
        reason = (
            ReasonCode.START_TIMEOUT
            if "deadline" in lowered or "timed out" in lowered
            else ReasonCode.SPEC_REFUSED
        )
        return Waiting(reason, plain, since, fails=True)
    return None


def _refused_pods(scene: _Scene, newest: Raw) -> Waiting | None:
    """The API server does not let pods be made; the ReplicaSet says so for as long as that is so."""
    for raw in (newest, scene.deployment):
        failed = condition(raw, "ReplicaFailure")
        if failed.get("status") != "True":
            continue
        found = words.creation(text(failed, "message"))
        return Waiting(found.reason, found.message, moment(failed, "lastTransitionTime"), found.fails)
    wished, made = whole(newest, "spec", "replicas"), whole(newest, "status", "replicas") or 0
    about = scene.about(text(newest, "metadata", "uid"), "ReplicaSet", name(newest))
    event = latest(about, "FailedCreate")
    done = latest(about, "SuccessfulCreate")
    if (
        not newest
        or event is None
        or wished is None
        or made >= wished
        or (done is not None and done.last > event.last)
    ):
        return None
    found = words.creation(event.message)
    return Waiting(found.reason, found.message, event.first, found.fails)


def _no_pods_yet(scene: _Scene) -> Waiting | None:
    since = moment(scene.service, "metadata", "creationTimestamp")
    if scene.deployment:
        wished = whole(scene.deployment, "spec", "replicas")
        if wished == 0 and scene.may_sleep:
            return Waiting(
                ReasonCode.SCALED_TO_ZERO, "the cluster has scaled it to zero; the next request wakes it"
            )
        if wished == 0:
            return Waiting(ReasonCode.CHANGED_OUTSIDE, _scaled_by_hand(scene), fails=True)
        if mapping(scene.deployment, "spec").get("paused") is True:
            message = (
                f"somebody paused Deployment {name(scene.deployment)}; nothing new is made until it goes on"
            )
            return Waiting(ReasonCode.CHANGED_OUTSIDE, message, fails=True)
        begun = _without_pods_since(scene)
        is_alone = all(is_going(pod) for pod in scene.pods)
        if is_alone and begun is not None and (scene.now - begun).total_seconds() >= NO_PODS_SECONDS:
            message = f"the cluster has made no pod in more than {NO_PODS_SECONDS:.0f} s and does not say why"
            return Waiting(ReasonCode.STARTING, message, begun)
        return Waiting(ReasonCode.STARTING, "the cluster makes the pod", begun)
    if scene.is_knative and condition(scene.service, "Ready").get("status") == "True":
        return Waiting(
            ReasonCode.SCALED_TO_ZERO, "the cluster has scaled it to zero; the next request wakes it"
        )
    waits = (scene.now - since).total_seconds() if since is not None else 0.0
    is_silent = not items(scene.service, "status", "conditions") and waits >= KSERVE_SILENT_SECONDS
    if is_silent:
        message = "KServe's controller has not acted on the InferenceService; it may not be running"
        return Waiting(ReasonCode.KSERVE_NOT_READY, message, since)
    return Waiting(ReasonCode.STARTING, "KServe sets up the model server", since)


def _without_pods_since(scene: _Scene) -> datetime | None:
    created = moment(scene.deployment, "metadata", "creationTimestamp")
    changed = moment(condition(scene.deployment, "Available"), "lastTransitionTime")
    made = moment(_newest_set(scene), "metadata", "creationTimestamp")
    known = [created, changed, made, *(_deleted_at(pod) for pod in scene.pods)]
    return max((at for at in known if at is not None), default=None)


def _deleted_at(pod: Raw) -> datetime | None:
    """When somebody deleted it: what the object says is when its grace is over."""
    until = moment(pod, "metadata", "deletionTimestamp")
    said = whole(pod, "metadata", "deletionGracePeriodSeconds")
    grace = said if said is not None else whole(pod, "spec", "terminationGracePeriodSeconds")
    return until - timedelta(seconds=grace or 0) if until is not None else None


def _scaled_by_hand(scene: _Scene) -> str:
    return f"somebody set Deployment {name(scene.deployment)} to 0 replicas; no pod runs, and KServe leaves it so"


# --- the rest -------------------------------------------------------------------------------------


def _ingress(scene: _Scene, picture: Picture) -> Ingress:
    """Where requests come in. "Not created" before the predictor is ready says nothing of the ingress."""
    url = text(scene.service, "status", "url")
    entries = [
        entry
        for ingress in sorted(picture.ingresses, key=name)
        for entry in items(ingress, "status", "loadBalancer", "ingress")
    ]
    entry = first(entries)
    address = text(entry, "ip") or text(entry, "hostname")
    said = condition(scene.service, "IngressReady")
    top = condition(scene.service, "Ready")
    if not scene.service:
        return Ingress(message="its InferenceService is not there")
    if is_going(scene.service):
        return Ingress(url, address, message="its InferenceService is being deleted")
    if scene.is_stopped:
        return Ingress(url, address, message="its InferenceService is stopped")
    if said.get("status") == "True":
        return Ingress(url, address, ready=bool(url), message="" if url else "its URL is not known yet")
    waits_for_pods = condition(scene.service, "PredictorReady").get("status") != "True"
    why = text(said, "message") or text(said, "reason") or text(top, "reason")
    if url and waits_for_pods and "not created" in why:
        return Ingress(url, address, ready=True)
    message = f"the cluster's ingress is not ready{f': {words.sentence(why)}' if why and ' ' in why else ''}"
    return Ingress(url, address, message=message)


def _drift(scene: _Scene) -> str:
    """What somebody did to what KServe made, as far as that is to be seen here."""
    if is_going(scene.service):
        return f"somebody deletes InferenceService {name(scene.service)}"
    if not scene.should_run or scene.may_sleep or not scene.deployment or is_going(scene.deployment):
        return ""
    return _scaled_by_hand(scene) if whole(scene.deployment, "spec", "replicas") == 0 else ""


def _left(picture: Picture, replicas: Iterable[Replica]) -> tuple[str, ...]:
    """What a delete has still to undo; model servers that have not ended are counted by whoever reads this."""
    found = []
    if picture.inference_service is not None:
        found.append("InferenceService")
    if picture.deployments:
        found.append("Deployment")
    ended = sum(each.state is ReplicaState.EXITED for each in replicas)
    others = sum(not _is_predictor_of(each, name(picture.inference_service)) for each in picture.pods)
    if ended + others:
        found.append(f"{ended + others} pod{'s' if ended + others > 1 else ''}")
    if picture.namespace is not None:
        found.append("namespace")
    return tuple(found)


def _seconds_until(at: datetime | None, scene: _Scene) -> float | None:
    moments = [at] if at is not None else []
    since = moment(scene.service, "metadata", "creationTimestamp")
    if since is not None and scene.should_run and not scene.deployment:
        moments.append(since + timedelta(seconds=KSERVE_SILENT_SECONDS))
    begun = _without_pods_since(scene)
    if begun is not None and scene.should_run and all(is_going(pod) for pod in scene.pods):
        moments.append(begun + timedelta(seconds=NO_PODS_SECONDS))
    ahead = [(each - scene.now).total_seconds() for each in moments if each > scene.now]
    return min(ahead, default=None)
