"""What the watches of one cluster have brought: by namespace, trimmed to what `observe` reads. No I/O.

Objects are kept as the API server sent them, without the parts that nobody reads (owners of fields, pod templates,
volumes, probes): with ten thousand endpoints that is most of the memory. A later object never gives way to an earlier
one, because answers to writes come in beside the watches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from sys import intern
from typing import Any

from inferplane.engines.kserve.client import (
    DEPLOYMENT,
    EVENT,
    INFERENCE_SERVICE,
    INGRESS,
    NAMESPACE,
    POD,
    REPLICA_SET,
    Kind,
)
from inferplane.engines.kserve.picture import Picture
from inferplane.engines.kserve.raw import items, label, mapping, name, text
from inferplane.engines.kserve.records import ENDPOINT_LABEL, INSTALLATION_LABEL, is_ours

Raw = Mapping[str, Any]

EVENTS_PER_NAMESPACE_MAX = 300
_METADATA = (
    "name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp",
    "deletionTimestamp", "labels", "ownerReferences", "finalizers",
)  # fmt: skip
_ANNOTATIONS = (
    "inferplane.io/",
    "serving.kserve.io/",
    "deployment.kubernetes.io/",
    "internal.serving.kserve.io/",
)
_CONTAINER = ("name", "image", "resources", "restartPolicy", "args")
_POD_STATUS = (
    "phase", "reason", "message", "conditions", "startTime", "podIP", "hostIP", "containerStatuses",
    "initContainerStatuses", "nominatedNodeName",
)  # fmt: skip
_CONTAINER_STATUS = ("name", "state", "lastState", "ready", "restartCount", "image", "started")


@dataclass(slots=True)
class Space:
    """One namespace: its own object, what is in it by kind and name, and log tails by `log_key`."""

    namespace: Raw | None = None
    objects: dict[str, dict[str, Raw]] = field(default_factory=dict)
    log_tails: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, kind: Kind) -> dict[str, Raw]:
        """The objects of a kind by name."""
        return self.objects.setdefault(kind.plural, {})

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of it any more."""
        return self.namespace is None and not any(self.objects.values())


class Cache:
    """All of one cluster."""

    def __init__(self) -> None:
        self._spaces: dict[str, Space] = {}
        self._namespace_of: dict[str, str] = {}

    def replace(self, kind: Kind, found: Iterable[Raw]) -> set[str]:
        """Exactly these are there now. The namespaces in which anything changed."""
        changed: set[str] = set()
        listed: dict[str, set[str]] = {}
        for each in found:
            place = _place(kind, each)
            listed.setdefault(place, set()).add(name(each))
            if self.put(kind, each):
                changed.add(place)
        for place, space in list(self._spaces.items()):
            here = listed.get(place, set())
            known = [place] if kind is NAMESPACE and space.namespace is not None else []
            for key in known if kind is NAMESPACE else list(space.objects.get(kind.plural, ())):
                if key not in here:
                    self._forget(kind, place, key)
                    changed.add(place)
        return changed

    def put(self, kind: Kind, raw: Raw) -> bool:
        """It is so now. Whether that is news."""
        place, key = _place(kind, raw), name(raw)
        if not place or not key:
            return False
        space = self._spaces.get(place)
        if kind is EVENT and (space is None or space.namespace is None):
            return False  # somebody else's namespace
        if space is None:
            space = self._spaces[intern(place)] = Space()
        before = space.namespace if kind is NAMESPACE else space.of(kind).get(key)
        if before is not None and _is_older(raw, before):
            return False
        kept = _trimmed(kind, raw)
        if kind is NAMESPACE:
            space.namespace = kept
            if uid := label(kept, ENDPOINT_LABEL):
                self._namespace_of[uid] = place
            return True
        objects = space.of(kind)
        objects[key] = kept
        if kind is EVENT and len(objects) > EVENTS_PER_NAMESPACE_MAX:
            del objects[next(iter(objects))]
        return True

    def remove(self, kind: Kind, raw: Raw) -> bool:
        """It is gone. Whether it was known."""
        return self._forget(kind, _place(kind, raw), name(raw))

    def endpoints(self, installation: str = "") -> frozenset[str]:
        """The uids of which there is a Namespace that belongs to this installation."""
        return frozenset(
            uid
            for uid, space in self.spaces()
            if space.namespace is not None and label(space.namespace, INSTALLATION_LABEL) == installation
        )

    def uid_of(self, namespace: str) -> str:
        """Whose namespace it is, "" for nobody's that we know."""
        space = self._spaces.get(namespace)
        if space is None or space.namespace is None or not is_ours(space.namespace):
            return ""
        return label(space.namespace, ENDPOINT_LABEL)

    def space_of(self, uid: str) -> Space | None:
        """An endpoint's namespace."""
        place = self._namespace_of.get(uid)
        return self._spaces.get(place) if place is not None else None

    def spaces(self) -> Iterator[tuple[str, Space]]:
        """Every namespace of ours, with its endpoint's uid."""
        for uid, place in list(self._namespace_of.items()):
            if (space := self._spaces.get(place)) is not None:
                yield uid, space

    def picture(self, uid: str) -> Picture | None:
        """What there is of an endpoint; None where there is nothing."""
        space = self.space_of(uid)
        if space is None or space.namespace is None:
            return None
        services = [
            each for each in space.of(INFERENCE_SERVICE).values() if label(each, ENDPOINT_LABEL) == uid
        ]
        return Picture(
            namespace=space.namespace,
            inference_service=min(services, key=name, default=None),
            deployments=tuple(space.of(DEPLOYMENT).values()),
            replica_sets=tuple(space.of(REPLICA_SET).values()),
            pods=tuple(space.of(POD).values()),
            events=tuple(space.of(EVENT).values()),
            ingresses=tuple(space.of(INGRESS).values()),
            log_tails=dict(space.log_tails),
        )

    def _forget(self, kind: Kind, place: str, key: str) -> bool:
        space = self._spaces.get(place)
        if space is None:
            return False
        if kind is NAMESPACE:
            known = space.namespace is not None
            uid = label(space.namespace or {}, ENDPOINT_LABEL)
            if self._namespace_of.get(uid) == place:
                del self._namespace_of[uid]
            space.namespace = None
            space.objects.pop(EVENT.plural, None)
        else:
            known = space.of(kind).pop(key, None) is not None
        if space.is_empty:
            del self._spaces[place]
        return known


def version_of(raw: Raw) -> int:
    """The object's resource version as a number; 0 where it is none."""
    written = text(raw, "metadata", "resourceVersion")
    return int(written) if written.isascii() and written.isdigit() else 0


def _is_older(raw: Raw, before: Raw) -> bool:
    return 0 < version_of(raw) < version_of(before)


def _place(kind: Kind, raw: Raw) -> str:
    return name(raw) if kind is NAMESPACE else text(raw, "metadata", "namespace")


def _trimmed(kind: Kind, raw: Raw) -> Raw:
    metadata = {key: value for key, value in mapping(raw, "metadata").items() if key in _METADATA}
    annotations = mapping(raw, "metadata", "annotations")
    kept = {key: value for key, value in annotations.items() if key.startswith(_ANNOTATIONS)}
    if kept:
        metadata["annotations"] = kept
    if kind is EVENT:
        return {key: value for key, value in raw.items() if key not in ("metadata", "apiVersion", "kind")} | {
            "metadata": metadata
        }
    if kind is INFERENCE_SERVICE:
        metadata["managedFields"] = [
            {key: each[key] for key in ("manager", "operation", "time", "subresource") if key in each}
            for each in items(raw, "metadata", "managedFields")
        ]
        return {"metadata": metadata, "spec": raw.get("spec") or {}, "status": raw.get("status") or {}}
    spec, status = mapping(raw, "spec"), mapping(raw, "status")
    if kind is POD:
        return {
            "metadata": metadata,
            "spec": {
                key: spec[key]
                for key in ("nodeName", "readinessGates", "schedulingGates", "terminationGracePeriodSeconds")
                if key in spec
            }
            | {
                part: [_chosen(each, _CONTAINER) for each in items(spec, part)]
                for part in ("containers", "initContainers")
                if part in spec
            },
            "status": _chosen(status, _POD_STATUS)
            | {
                part: [_chosen(each, _CONTAINER_STATUS) for each in items(status, part)]
                for part in ("containerStatuses", "initContainerStatuses")
                if part in status
            },
        }
    if kind in (DEPLOYMENT, REPLICA_SET):
        return {
            "metadata": metadata,
            "spec": _chosen(spec, ("replicas", "paused", "progressDeadlineSeconds")),
            "status": dict(status),
        }
    return {"metadata": metadata, "spec": dict(spec), "status": dict(status)}


def _chosen(raw: Raw, keys: Iterable[str]) -> dict[str, Any]:
    return {key: raw[key] for key in keys if key in raw}
