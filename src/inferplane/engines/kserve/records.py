"""What the engine writes down in the cluster about what it has said there, and reads back. Pure.

It stands in annotations of the endpoint's Namespace, never on the InferenceService: KServe copies an
InferenceService's annotations into its pods' template, so that a note there would restart the pods.

* `PREPARED`: the revisions whose model was asked for (`FetchModel`).
* `MARK`: the mark of the last StartReplica that is wholly said. It is taken away before the InferenceService is
  changed and written after, so that a control plane that dies in between says it again.
* `ADMITTED`: a digest of the InferenceService as the API server had it after that, defaults and the work
  of webhooks included. Any other digest later means that somebody else changed it.
* `FENCE`: the epoch of the lease under which all this was written; a lower one may write no more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.engines.kserve.picture import Picture, Raw
from inferplane.engines.kserve.raw import annotation, is_going, items, label, mapping, name, text
from inferplane.engines.port import Observation

MANAGER = "inferplane"
"""As which fields are owned in server-side apply."""
MANAGED_LABEL = "app.kubernetes.io/managed-by"
ENDPOINT_LABEL = "inferplane.io/endpoint"
WORKSPACE_LABEL = "inferplane.io/workspace"
REVISION_LABEL = "inferplane.io/revision"
INSTALLATION_LABEL = "inferplane.io/installation"
"""On Namespaces: whose they are, where several installations work on one cluster."""

PREPARED = "inferplane.io/prepared-revisions"
MARK = "inferplane.io/mark"
ADMITTED = "inferplane.io/admitted"
FENCE = "inferplane.io/fence"

STOP = "serving.kserve.io/stop"
_WATCHED_LABELS = (MANAGED_LABEL, ENDPOINT_LABEL, REVISION_LABEL)


@dataclass(frozen=True, slots=True)
class Record:
    """What is written down. `mark` and `admitted` are "" where nothing is wholly said; `fence` 0 for none."""

    prepared: frozenset[int] = frozenset()
    mark: str = ""
    admitted: str = ""
    fence: int = 0


def record_of(namespace: Raw | None) -> Record:
    """The record on an endpoint's Namespace; what is not understood counts as not written."""
    if namespace is None:
        return Record()
    prepared = annotation(namespace, PREPARED).split(",")
    fence = annotation(namespace, FENCE)
    return Record(
        prepared=frozenset(int(each) for each in prepared if _is_whole(each)),
        mark=annotation(namespace, MARK),
        admitted=annotation(namespace, ADMITTED),
        fence=int(fence) if _is_whole(fence) else 0,
    )


def annotations_of(record: Record) -> dict[str, str | None]:
    """The record as a merge patch of annotations: None takes one away."""
    return {
        PREPARED: ",".join(str(each) for each in sorted(record.prepared)) or None,
        MARK: record.mark or None,
        ADMITTED: record.admitted or None,
        FENCE: str(record.fence) if record.fence else None,
    }


def digest(inference_service: Raw) -> str:
    """Names what an InferenceService asks for: equal digests, nobody changed it."""
    asked = {
        "spec": _without_nothing(inference_service.get("spec")),
        "stopped": annotation(inference_service, STOP).lower() == "true",
        "labels": {key: label(inference_service, key) for key in _WATCHED_LABELS},
    }
    text_of = json.dumps(asked, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text_of.encode()).hexdigest()[:16]


def _without_nothing(value: object) -> object:
    """Without the empty values that webhooks write where nobody gave any."""
    if isinstance(value, Mapping):
        kept = {str(key): _without_nothing(each) for key, each in value.items()}
        return {key: each for key, each in kept.items() if each not in ({}, [], "", None)}
    if isinstance(value, list | tuple):
        return [_without_nothing(each) for each in value]
    return value


def drift_of(picture: Picture) -> str:
    """What somebody else did to what was wholly said, in a sentence; "" where nobody did anything."""
    record = record_of(picture.namespace)
    if not record.mark or is_going(picture.namespace):
        return ""
    service = picture.inference_service
    if service is None or is_going(service):
        return "somebody deleted the InferenceService"
    if digest(service) == record.admitted:
        return ""
    who = _last_editor(service)
    return f"the InferenceService {name(service)} was changed{f' by {who}' if who else ' by somebody else'}"


def with_record(observation: Observation, picture: Picture, *, leave: bool) -> Observation:
    """The observation with what is written down. With `leave`, what others changed counts as said."""
    record = record_of(picture.namespace)
    if picture.namespace is None or is_going(picture.namespace):
        return observation
    drift = drift_of(picture)
    artifacts: Mapping[int, ArtifactState] = {
        revision: observation.artifacts.get(revision, ArtifactState(ArtifactPhase.PRESENT))
        for revision in sorted(record.prepared)
    }
    mark = record.mark if leave or not drift else ""
    # What others did to what KServe made of it cannot be put right by saying it again.
    return replace(observation, artifacts=artifacts, mark=mark, drift=drift or observation.drift)


def _last_editor(service: Raw) -> str:
    """The last of others who wrote anything but the status, as the API server knows it."""
    others = [
        (text(each, "time"), text(each, "manager"))
        for each in items(service, "metadata", "managedFields")
        if text(each, "manager") != MANAGER
        and text(each, "subresource") == ""
        and "kserve" not in text(each, "manager")
        and text(each, "manager") != "manager"  # KServe's controller, by the name of its program
    ]
    return max(others, default=("", ""))[1][:60]


def is_ours(raw: Raw) -> bool:
    """Whether it carries our label."""
    return label(raw, MANAGED_LABEL) == MANAGER and bool(mapping(raw, "metadata"))


def _is_whole(written: str) -> bool:
    return written.isascii() and written.isdigit() and len(written) < 16
