"""One pod → what its model server is doing, or why it is not there. Pure.

A pod says what is wrong in many places: its phase and reason, its conditions, the waiting reason of a container, how the
container's last run ended, and events, which are often first (a failed pull is an event seconds before it is a
container's state). They are read in the order in which a pod comes to life, and the first that is stuck is the cause;
what comes after it only follows.

What is on its way is never a failure: a pull, a download, a model that loads, the pause before the scheduler has looked.
One that restarts stays failed until it answers, or has run for SETTLED_SECONDS without ending again, so that a
crash loop is not told as a row of starts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from signal import Signals

from inferplane.domain.endpoint import Exit, ReplicaState, Waiting
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.kserve import words
from inferplane.engines.kserve.kube_events import KubeEvent, latest
from inferplane.engines.kserve.picture import LOG_TAIL_LINES, log_key
from inferplane.engines.kserve.raw import Raw, first, is_going, items, mapping, moment, name, text, whole

MAIN_CONTAINER = "kserve-container"
STORAGE_INITIALIZER = "storage-initializer"
SETTLED_SECONDS = 20.0
SETTLED_SECONDS_MAX = 600.0
LOOPING_RESTARTS = 2
STEADY_SECONDS = 600.0
MISSING_SECONDS = 5.0
PROBE_TOLD_AFTER_SECONDS = 10.0
STUCK_AFTER_SECONDS = 60.0
KILL_SECONDS = 90.0  # from the kubelet's decision to the end of a container: its grace, and some

IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
        "ErrRegistryUnavailable",
    }
)
START_REASONS = frozenset(
    {
        "CreateContainerError",
        "RunContainerError",
        "PreCreateHookError",
        "PreStartHookError",
        "PostStartHookError",
        "StartError",
        "ContainerCannotRun",
    }
)
_EVICTED = frozenset({"Evicted", "Preempting", "NodeShutdown", "Terminated", "Shutdown"})
_CONFIG_SIGNS = (
    " not found",
    "couldn't find key",
    "non-existent config key",
    "runAsNonRoot",
    "references non-existent",
)
_MEANINGS = {126: " (its command cannot be run)", 127: " (a command was not found)"}
_BACK_OFF = re.compile(r"back-off (?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PodFacts:
    """`look_again_at` is when this would read differently by time alone."""

    state: ReplicaState
    started_at: datetime | None = None
    ready_at: datetime | None = None
    exit: Exit | None = None
    waiting: Waiting | None = None
    look_again_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _View:
    """A pod with everything beside it."""

    pod: Raw
    events: tuple[KubeEvent, ...]
    tails: Mapping[str, tuple[str, ...]]
    deadline_seconds: float
    now: datetime

    @property
    def node(self) -> str:
        return text(self.pod, "spec", "nodeName") or "its node"

    def condition(self, kind: str) -> Raw:
        return first(each for each in items(self.pod, "status", "conditions") if each.get("type") == kind)

    def of_container(self, container: str) -> tuple[KubeEvent, ...]:
        return tuple(event for event in self.events if event.container == container)

    def tail(self, container: str, run: int) -> tuple[str, ...]:
        return self.tails.get(log_key(name(self.pod), container, run), ())

    def spec_of(self, container: str) -> Raw:
        known = (*items(self.pod, "spec", "initContainers"), *items(self.pod, "spec", "containers"))
        return first(each for each in known if each.get("name") == container)


def read_pod(
    pod: Raw,
    events: Sequence[KubeEvent],
    log_tails: Mapping[str, tuple[str, ...]],
    deadline_seconds: float,
    now: datetime,
) -> PodFacts:
    """What `pod` tells; `events` are those about it. It should be ready `deadline_seconds` after its start."""
    view = _View(pod, tuple(events), log_tails, deadline_seconds, now)
    started = moment(pod, "status", "startTime")
    if is_going(pod):
        return PodFacts(ReplicaState.STOPPING, started)
    if text(pod, "status", "phase") in ("Failed", "Succeeded"):
        return _ended(view)
    if (unplaced := _unplaced(view)) is not None:
        return PodFacts(ReplicaState.STARTING, waiting=unplaced)
    inits = [_container(view, each, is_init=True) for each in items(pod, "status", "initContainerStatuses")]
    mains = [
        _container(view, each, is_init=False)
        for each in sorted(items(pod, "status", "containerStatuses"), key=_is_beside)
    ]
    known = inits + mains
    if (stuck := _stuck_first(known)) is not None:
        return replace(stuck, started_at=stuck.started_at or started)
    if view.condition("Ready").get("status") == "True":
        return _ready(view, started)
    if (lost := _node_lost(view)) is not None:
        return PodFacts(ReplicaState.UNRESPONSIVE, started, waiting=lost)
    coming = next((each for each in known if each.state is not ReplicaState.READY), None)
    if coming is None and mains:
        message = "the model server answers its own probe; what else the pod has to wait for is not there yet"
        return PodFacts(ReplicaState.LOADING, started, waiting=Waiting(ReasonCode.LOADING, message, started))
    if coming is None or (coming.state is ReplicaState.STARTING and coming.waiting is None):
        is_past_inits = bool(inits) and all(each.state is ReplicaState.READY for each in inits)
        waiting = _preparing(view, is_past_inits=is_past_inits)
        again = None
        if waiting.reason is ReasonCode.VOLUME_NOT_READY and not waiting.fails and waiting.since is not None:
            steps = (MISSING_SECONDS, STUCK_AFTER_SECONDS)
            moments = [waiting.since + timedelta(seconds=each) for each in steps]
            again = next((each for each in moments if each > view.now), None)
        return PodFacts(ReplicaState.STARTING, started, waiting=waiting, look_again_at=again)
    return replace(coming, started_at=coming.started_at or started)


def _is_beside(status: Raw) -> bool:
    """Kubernetes lists containers by name; the model server comes first here, what runs beside it after that."""
    return text(status, "name") != MAIN_CONTAINER


def _stuck_first(known: Sequence[PodFacts]) -> PodFacts | None:
    """The first that is stuck, with what else is."""
    stuck = [(each, each.waiting) for each in known if each.waiting is not None and each.waiting.fails]
    if not stuck:
        return None
    (found, waiting), *others = stuck
    if not others or others[0][1].message == waiting.message:
        return found
    return replace(
        found, waiting=replace(waiting, message=f"{waiting.message}; also: {others[0][1].message}")
    )


# --- before there is a container ------------------------------------------------------------------


def _unplaced(view: _View) -> Waiting | None:
    """The pod is on no node yet."""
    placed = view.condition("PodScheduled")
    since = moment(view.pod, "metadata", "creationTimestamp")
    if placed.get("status") == "True" or text(view.pod, "spec", "nodeName"):
        return None
    said = text(placed, "message")
    if not said:
        event = latest(view.events, "FailedScheduling")
        said = event.message if event is not None else ""
    if text(placed, "reason") == "SchedulingGated":
        message = "the pod is held back by its scheduling gates, which somebody else has to lift"
        return Waiting(ReasonCode.UNSCHEDULABLE, message, since)
    if not said:
        return Waiting(ReasonCode.STARTING, "the cluster looks for a node", since)
    found = words.scheduling(said)
    return Waiting(found.reason, found.message, since, found.fails)


def _preparing(view: _View, *, is_past_inits: bool) -> Waiting:
    """On a node, no container started; pods' volumes and network come first."""
    since = moment(view.pod, "status", "startTime")
    mount = latest(view.events, "FailedMount", "FailedAttachVolume", "FailedMapVolume")
    moved = latest(view.events, "Pulling", "Pulled", "Created", "Started")
    if mount is not None and (moved is None or moved.last < mount.last):
        lasts = (view.now - mount.first).total_seconds()
        message = words.sentence(mount.message)
        is_missing = "not found" in message or "does not exist" in message
        fails = lasts >= (MISSING_SECONDS if is_missing else STUCK_AFTER_SECONDS)
        return Waiting(ReasonCode.VOLUME_NOT_READY, message, mount.first, fails)
    sandbox = latest(view.events, "FailedCreatePodSandBox", "FailedPodSandBoxStatus", "NetworkNotReady")
    if sandbox is not None:
        is_stuck = (sandbox.last - sandbox.first).total_seconds() >= STUCK_AFTER_SECONDS
        message = words.sentence(sandbox.message)
        return Waiting(ReasonCode.CONTAINER_START_FAILED, message, sandbox.first, is_stuck)
    if is_past_inits:
        return Waiting(
            ReasonCode.LOADING, f"the model is here; node {view.node} starts the model server", since
        )
    return Waiting(ReasonCode.STARTING, f"node {view.node} prepares the pod", since)


def _ready(view: _View, started: datetime | None) -> PodFacts:
    """It answers. One that keeps ending and coming back is told so in between, too."""
    since = moment(view.condition("Ready"), "lastTransitionTime") or started
    facts = PodFacts(ReplicaState.READY, started, ready_at=since)
    for status in items(view.pod, "status", "containerStatuses"):
        runs, before = whole(status, "restartCount") or 0, mapping(status, "lastState", "terminated")
        if runs < LOOPING_RESTARTS or not before:
            continue
        ended = _exit(view, text(status, "name"), before, runs - 1, is_init=False)
        steady_at = ended.at + timedelta(seconds=STEADY_SECONDS)
        if view.now < steady_at:
            message = f"it was restarted {runs} times; the last time: {ended.message}"
            told = Waiting(ended.reason, message, ended.at)
            return replace(facts, exit=ended, waiting=told, look_again_at=steady_at)
    return facts


def disruption(pod: Raw, events: Sequence[KubeEvent]) -> str:
    """What befell a pod that is being deleted, where it was not asked for: its node is lost, or it had to yield."""
    view = _View(pod, tuple(events), {}, 0.0, datetime.max.replace(tzinfo=UTC))
    if (lost := _node_lost(view)) is not None:
        return lost.message
    disrupted = view.condition("DisruptionTarget")
    if disrupted.get("status") != "True":
        return ""
    return words.sentence(text(disrupted, "message") or text(disrupted, "reason"))


def _node_lost(view: _View) -> Waiting | None:
    """A node that no longer reports has its pods' Ready taken away by the cluster; the containers' own stays.

    Of a pod that was not ready yet, only an event tells, as long as nothing newer comes from its node.
    """
    ready, containers = view.condition("Ready"), view.condition("ContainersReady")
    if items(view.pod, "spec", "readinessGates") or ready.get("status") == "True":
        return None
    since = moment(ready, "lastTransitionTime")
    told = bool(view.events) and view.events[-1].reason == "NodeNotReady"
    if ready.get("status") != "False" or (containers.get("status") != "True" and not told):
        return None
    was_ready_at = moment(containers, "lastTransitionTime")
    if not told and since is not None and was_ready_at is not None and since < was_ready_at:
        return None
    return Waiting(ReasonCode.NODE_NOT_READY, f"node {view.node} does not answer", since, fails=True)


def _ended(view: _View) -> PodFacts:
    """The pod as a whole is over; what owns it makes another."""
    status = mapping(view.pod, "status")
    why, said = text(status, "reason"), words.sentence(text(status, "message"))
    ends = [
        (mapping(each, "state", "terminated"), each)
        for each in (*items(status, "initContainerStatuses"), *items(status, "containerStatuses"))
    ]
    known = [moment(ended, "finishedAt") for ended, _ in ends]
    transitions = [moment(each, "lastTransitionTime") for each in items(status, "conditions")]
    at = max((m for m in (*known, *transitions) if m is not None), default=None)
    at = at or moment(view.pod, "metadata", "creationTimestamp") or view.now
    if not why:
        failed = next(
            (
                (t, c)
                for t, c in ends
                if t and whole(t, "exitCode") and text(t, "reason") != "ContainerStatusUnknown"
            ),
            None,
        )
        if failed is not None:
            is_init = text(failed[1], "name") == STORAGE_INITIALIZER
            ended = _exit(
                view,
                text(failed[1], "name"),
                failed[0],
                whole(failed[1], "restartCount") or 0,
                is_init=is_init,
            )
            return PodFacts(
                ReplicaState.EXITED,
                exit=ended,
                waiting=Waiting(ended.reason, ended.message, ended.at, fails=True),
            )
    disrupted = text(view.condition("DisruptionTarget"), "message")
    if why in _EVICTED or disrupted:
        reason = ReasonCode.POD_EVICTED
        message = said or words.sentence(disrupted) or "the cluster ended the pod"
    elif why == "NodeLost":
        reason, message = ReasonCode.NODE_NOT_READY, said or f"node {view.node} does not answer"
    elif why.startswith("OutOf") or why in (
        "UnexpectedAdmissionError",
        "NodeAffinity",
        "NodeName",
        "NodePorts",
    ):
        reason, message = ReasonCode.UNSCHEDULABLE, f"node {view.node} refused the pod: {said or why}"
    else:
        reason = ReasonCode.SERVER_EXITED
        message = f"the pod ended{f' ({why})' if why else ''}{f': {said}' if said else ''}"
    ended = Exit(at, reason=reason, message=message)
    return PodFacts(ReplicaState.EXITED, exit=ended, waiting=Waiting(reason, message, at, fails=True))


# --- one container --------------------------------------------------------------------------------


def _container(view: _View, status: Raw, *, is_init: bool) -> PodFacts:
    container, runs = text(status, "name"), whole(status, "restartCount") or 0
    state, before = mapping(status, "state"), mapping(status, "lastState", "terminated")
    if ended := mapping(state, "terminated"):
        if is_init and whole(ended, "exitCode") == 0:
            return PodFacts(ReplicaState.READY)
        return _crashed(view, container, ended, runs, is_init=is_init, looping=runs >= 1)
    if running := mapping(state, "running"):
        return _running(view, status, running, is_init=is_init)
    waiting = mapping(state, "waiting")
    why, said = text(waiting, "reason"), text(waiting, "message")
    image = text(view.spec_of(container), "image") or text(status, "image")
    since = moment(view.pod, "status", "startTime")
    if why in IMAGE_REASONS:
        return _stuck(_image(view, container, image, said), since)
    if why == "CreateContainerConfigError":
        return _stuck(_config(view, container, said), since)
    if why == "CrashLoopBackOff":
        facts = _crashed(view, container, before, runs, is_init=is_init, looping=True)
        return _with_next_try(facts, said)
    if why in START_REASONS:
        if before:
            return _crashed(view, container, before, runs, is_init=is_init, why=said)
        return _stuck(_start_failure(view, container, said), since)
    if why in ("", "PodInitializing", "ContainerCreating"):
        return _told_by_events(view, container, image)
    if why.endswith("Error") or why.startswith("Err"):
        message = f"container {container}: {why}{f': {words.sentence(said)}' if said else ''}"
        return _stuck(words.Finding(ReasonCode.CONTAINER_START_FAILED, message, fails=True), since)
    message = f"container {container}: {why}{f': {words.sentence(said)}' if said else ''}"
    return PodFacts(ReplicaState.STARTING, waiting=Waiting(ReasonCode.STARTING, message, since))


def _stuck(found: words.Finding, since: datetime | None) -> PodFacts:
    return PodFacts(ReplicaState.STARTING, waiting=Waiting(found.reason, found.message, since, found.fails))


def _told_by_events(view: _View, container: str, image: str) -> PodFacts:
    """The container waits and does not say for what. The kubelet's events are ahead of its status."""
    events = view.of_container(container)
    since = moment(view.pod, "status", "startTime")
    bad = [e for e in events if e.reason in ("Failed", "InspectFailed", "ErrImageNeverPull")]
    pulls = [e for e in bad if e.reason != "Failed" or _is_about_image(e.message)]
    others = [e for e in bad if e not in pulls]
    pulled, made = latest(events, "Pulled"), latest(events, "Created", "Started")
    if pulls and (pulled is None or pulled.last < pulls[-1].last):
        return _stuck(_image(view, container, image, ""), since)
    if others and (made is None or made.last < others[-1].last):
        said = others[-1].message.removeprefix("Error: ")
        if any(sign in said for sign in _CONFIG_SIGNS):
            return _stuck(_config(view, container, said), since)
        return _stuck(_start_failure(view, container, said), since)
    pulling = latest(events, "Pulling")
    if pulling is not None and pulled is None:
        message = f"node {view.node} pulls image {image}"
        return PodFacts(ReplicaState.STARTING, waiting=Waiting(ReasonCode.STARTING, message, pulling.first))
    return PodFacts(ReplicaState.STARTING)


def _is_about_image(message: str) -> bool:
    return "pull image" in message.lower() or message.removeprefix("Error: ") in IMAGE_REASONS


def _image(view: _View, container: str, image: str, said: str) -> words.Finding:
    """The registry's own answer is in the event of the failed pull; the container may only say that it backs off."""
    events = view.of_container(container)
    pull = latest(events, "Failed", containing="failed to pull image")
    inspect = latest(events, "InspectFailed", "ErrImageNeverPull")
    told = pull or inspect
    if told is not None and (not said or said.lower().startswith("back-off") or "ErrImage" not in said):
        return words.image(image, told.message)
    return words.image(image, said)


def _config(view: _View, container: str, said: str) -> words.Finding:
    event = latest(view.of_container(container), "Failed")
    plain = words.sentence(said or (event.message.removeprefix("Error: ") if event is not None else ""))
    who = "" if container == MAIN_CONTAINER else f"container {container}: "
    return words.Finding(
        ReasonCode.CONTAINER_CONFIG_ERROR, f"{who}{plain or 'its configuration is not there'}", fails=True
    )


def _start_failure(view: _View, container: str, said: str) -> words.Finding:
    event = latest(view.of_container(container), "Failed")
    plain = words.start(said or (event.message if event is not None else ""))
    return words.Finding(
        ReasonCode.CONTAINER_START_FAILED,
        f"{_who(container)} could not be started: {plain or 'no reason given'}",
        fails=True,
    )


def _running(view: _View, status: Raw, running: Raw, *, is_init: bool) -> PodFacts:
    container, runs = text(status, "name"), whole(status, "restartCount") or 0
    started = moment(running, "startedAt")
    before = mapping(status, "lastState", "terminated")
    lasted = (view.now - started).total_seconds() if started is not None else 0.0
    if status.get("ready") is True:
        return PodFacts(ReplicaState.READY, started)
    is_sidecar = is_init and text(view.spec_of(container), "restartPolicy") == "Always"
    if before and (whole(before, "exitCode") != 0 or not is_init) and not is_sidecar:
        is_loop = runs >= LOOPING_RESTARTS
        crashed = _crashed(view, container, before, max(runs - 1, 0), is_init=is_init, looping=is_loop)
        settled = _settled_seconds(before) if is_loop else SETTLED_SECONDS
        if lasted < settled and started is not None:
            again = started + timedelta(seconds=settled)
            return replace(crashed, state=ReplicaState.LOADING, started_at=started, look_again_at=again)
    if is_sidecar and status.get("started") is True:
        return PodFacts(ReplicaState.READY, started)
    if is_init:
        return PodFacts(ReplicaState.STARTING, waiting=_fetching(view, container, started))
    unready = _unready(view, container, started)
    if unready is not None:
        return unready
    return _loading(view, container, started, lasted)


def _settled_seconds(before: Raw) -> float:
    """How long a run has to last to be told from the one before it, in a loop of them."""
    started, ended = moment(before, "startedAt"), moment(before, "finishedAt")
    lasted = (ended - started).total_seconds() if started is not None and ended is not None else 0.0
    return min(max(SETTLED_SECONDS, 1.5 * lasted), SETTLED_SECONDS_MAX)


def _fetching(view: _View, container: str, started: datetime | None) -> Waiting:
    if container != STORAGE_INITIALIZER:
        return Waiting(ReasonCode.STARTING, f"init container {container} runs", started)
    args = view.spec_of(container).get("args")
    uri = args[0] if isinstance(args, list) and args and isinstance(args[0], str) else "the model"
    return Waiting(ReasonCode.DOWNLOADING, f"the storage initializer fetches {uri}", started)


def _unready(view: _View, container: str, started: datetime | None) -> PodFacts | None:
    """Whether it was ready in this run and no longer is: the pod's Ready was taken away after the container started."""
    ready = view.condition("Ready")
    since = moment(ready, "lastTransitionTime")
    if ready.get("status") != "False" or since is None or started is None or since <= started:
        return None
    if view.condition("ContainersReady").get("status") == "True":
        return None
    said = _probe_answer(view, container, "Readiness", since - timedelta(seconds=KILL_SECONDS))
    message = f"{_who(container)} runs and stopped answering its readiness probe{f': {said}' if said else ''}"
    return PodFacts(
        ReplicaState.UNRESPONSIVE,
        started,
        waiting=Waiting(ReasonCode.UNRESPONSIVE, message, since, fails=True),
    )


def _loading(view: _View, container: str, started: datetime | None, lasted: float) -> PodFacts:
    said = ""
    if lasted >= PROBE_TOLD_AFTER_SECONDS and started is not None:
        said = _probe_answer(view, container, "Startup", started) or _probe_answer(
            view, container, "Readiness", started
        )
    if lasted >= view.deadline_seconds:
        end = f"; its probe says: {said}" if said else ""
        message = (
            f"{_who(container)} has run for more than {view.deadline_seconds:.0f} s and is not ready{end}"
        )
        return PodFacts(
            ReplicaState.LOADING,
            started,
            waiting=Waiting(ReasonCode.START_TIMEOUT, message, started, fails=True),
        )
    end = f"; its probe says: {said}" if said else ""
    again = None
    if started is not None:
        steps = (PROBE_TOLD_AFTER_SECONDS, view.deadline_seconds)
        again = started + timedelta(seconds=min(each for each in steps if each > lasted))
    message = f"{_who(container)} runs and is not ready yet{end}"
    return PodFacts(
        ReplicaState.LOADING,
        started,
        waiting=Waiting(ReasonCode.LOADING, message, started),
        look_again_at=again,
    )


def _probe_answer(view: _View, container: str, kind: str, since: datetime) -> str:
    event = latest(view.of_container(container), "Unhealthy", containing=f"{kind} probe failed")
    if event is None or event.last < since:
        return ""
    return words.probe(event.message.partition("probe failed:")[2])


# --- how a container ended ------------------------------------------------------------------------


def _crashed(
    view: _View,
    container: str,
    ended: Raw,
    run: int,
    *,
    is_init: bool,
    looping: bool = False,
    why: str = "",
) -> PodFacts:
    found = _exit(view, container, ended, run, is_init=is_init, why=why)
    if looping and found.reason is ReasonCode.SERVER_EXITED:
        found = replace(found, reason=ReasonCode.CRASH_LOOP)
    waiting = Waiting(found.reason, found.message, found.at, fails=True)
    return PodFacts(ReplicaState.EXITED, moment(ended, "startedAt"), exit=found, waiting=waiting)


def _exit(view: _View, container: str, ended: Raw, run: int, *, is_init: bool, why: str = "") -> Exit:
    """`run` counts the container's runs from 0; its log tail may not be here yet."""
    at = moment(ended, "finishedAt") or view.now
    code, called = whole(ended, "exitCode"), text(ended, "reason")
    said = [line for line in text(ended, "message").splitlines() if line.strip()]
    log = view.tail(container, run)
    tail = (log or tuple(said))[-LOG_TAIL_LINES:]
    evidence = [*log, *said]
    signal = _signal(code)
    reason = ReasonCode.SERVER_EXITED
    message = ""
    if called == "OOMKilled":
        limit = text(view.spec_of(container), "resources", "limits", "memory")
        reason = ReasonCode.OUT_OF_MEMORY
        message = f"{_who(container)} used more memory than its limit{f' of {limit}' if limit else ''} and was ended"
    elif called in START_REASONS:
        reason = ReasonCode.CONTAINER_START_FAILED
        told = words.start(why or " ".join(said)) or f"exit code {code}"
        message = f"{_who(container)} could not be started: {told}"
    elif (killed := _killed_by_probe(view, container, at)) is not None:
        reason, message = killed
    else:
        known = words.storage_reason(evidence) if is_init else words.server_reason(evidence)
        reason = known or reason
        how = (
            f"was ended by {signal}"
            if signal
            else f"ended with exit code {code}{_MEANINGS.get(code or 0, '')}"
        )
        if called == "ContainerStatusUnknown":
            how = "was lost by its node"
        last = words.last_line(said) or words.last_line(log)
        message = f"{_who(container)} {how}{f': {last}' if last else ''}"
    return Exit(at, code, signal, reason, message, tail)


def _killed_by_probe(view: _View, container: str, at: datetime) -> tuple[ReasonCode, str] | None:
    """A container that its kubelet ended because of a probe only shows the signal; an event tells why."""
    grace = whole(view.pod, "spec", "terminationGracePeriodSeconds") or 0
    longest = max(KILL_SECONDS, 2.0 * grace)
    for kind, reason in (("liveness", ReasonCode.UNRESPONSIVE), ("startup", ReasonCode.START_TIMEOUT)):
        event = latest(view.of_container(container), "Killing", containing=f"failed {kind} probe")
        if event is None or at < event.first - timedelta(seconds=2):
            continue  # an event of the next end has the same first moment, and a later last one
        if at - event.last > timedelta(seconds=longest):
            continue
        said = _probe_answer(view, container, kind.capitalize(), at - timedelta(seconds=2 * longest))
        return (
            reason,
            f"{_who(container)} was restarted because its {kind} probe failed{f': {said}' if said else ''}",
        )
    return None


def _with_next_try(facts: PodFacts, said: str) -> PodFacts:
    """`back-off 1m20s restarting failed container` counts from the container's end."""
    found = _BACK_OFF.search(said)
    if found is None or facts.exit is None or facts.waiting is None or not any(found.groups()):
        return facts
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    pause = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    return replace(facts, waiting=replace(facts.waiting, next_try_at=facts.exit.at + pause))


def _signal(code: int | None) -> str:
    """A shell's way to tell a signal: 128 and its number."""
    if code is None or not 128 < code < 128 + 65:
        return ""
    try:
        return Signals(code - 128).name
    except ValueError:
        return ""


def _who(container: str) -> str:
    if container == MAIN_CONTAINER:
        return "the model server"
    if container == STORAGE_INITIALIZER:
        return "the storage initializer"
    return f"container {container}"
