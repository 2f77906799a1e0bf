"""What the watches of one cluster have brought: by namespace, trimmed to what `observe` reads. No I/O.

Objects are kept without the parts that nobody reads (owners of fields, pod templates, volumes, probes), and packed as
JSON until somebody asks for a picture: of ten thousand endpoints few are looked at in any one second, and
as dicts they would take six times the memory. A later object never gives way to an earlier one, because answers to
writes come in beside the watches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from sys import intern
from typing import Any

import msgspec

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


@dataclass(frozen=True, slots=True)
class Packed:
    """One object as it was at a version."""

    version: int
    body: bytes

    def read(self) -> Raw:
        """As a dict of one's own."""
        found: Raw = msgspec.json.decode(self.body)
        return found


@dataclass(slots=True)
class Space:
    """One namespace: its own object and whose it is, what is in it by kind and name, and log tails by `log_key`."""

    uid: str = ""
    installation: str = ""
    namespace: Packed | None = None
    objects: dict[str, dict[str, Packed]] = field(default_factory=dict)
    log_tails: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def read(self, kind: Kind) -> list[Raw]:
        """The objects of a kind."""
        return [each.read() for each in self.objects.get(kind.plural, {}).values()]

    def names(self, kind: Kind) -> frozenset[str]:
        """The names of the objects of a kind."""
        return frozenset(self.objects.get(kind.plural, ()))

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
        objects = space.objects.setdefault(kind.plural, {}) if kind is not NAMESPACE else {}
        before = space.namespace if kind is NAMESPACE else objects.get(key)
        version = version_of(raw)
        if before is not None and 0 < version < before.version:
            return False
        kept = Packed(version, msgspec.json.encode(_trimmed(kind, raw)))
        if kind is NAMESPACE:
            space.namespace = kept
            space.uid = label(raw, ENDPOINT_LABEL) if is_ours(raw) else ""
            space.installation = label(raw, INSTALLATION_LABEL)
            if space.uid:
                self._namespace_of[space.uid] = place
            return True
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
            for uid, place in self._namespace_of.items()
            if self._spaces[place].installation == installation
        )

    def uid_of(self, namespace: str) -> str:
        """Whose namespace it is, "" for nobody's that we know."""
        space = self._spaces.get(namespace)
        return space.uid if space is not None else ""

    def space_of(self, uid: str) -> Space | None:
        """An endpoint's namespace."""
        place = self._namespace_of.get(uid)
        return self._spaces.get(place) if place is not None else None

    def picture(self, uid: str) -> Picture | None:
        """What there is of an endpoint; None where there is nothing."""
        space = self.space_of(uid)
        if space is None or space.namespace is None:
            return None
        services = [each for each in space.read(INFERENCE_SERVICE) if label(each, ENDPOINT_LABEL) == uid]
        return Picture(
            namespace=space.namespace.read(),
            inference_service=min(services, key=name, default=None),
            deployments=tuple(space.read(DEPLOYMENT)),
            replica_sets=tuple(space.read(REPLICA_SET)),
            pods=tuple(space.read(POD)),
            events=tuple(space.read(EVENT)),
            ingresses=tuple(space.read(INGRESS)),
            log_tails=dict(space.log_tails),
        )

    def _forget(self, kind: Kind, place: str, key: str) -> bool:
        space = self._spaces.get(place)
        if space is None:
            return False
        if kind is NAMESPACE:
            known = space.namespace is not None
            if self._namespace_of.get(space.uid) == place:
                del self._namespace_of[space.uid]
            space.namespace, space.uid = None, ""
            space.objects.pop(EVENT.plural, None)
        else:
            known = space.objects.get(kind.plural, {}).pop(key, None) is not None
        if space.is_empty:
            del self._spaces[place]
        return known


def version_of(raw: Raw) -> int:
    """The object's resource version as a number; 0 where it is none."""
    written = text(raw, "metadata", "resourceVersion")
    return int(written) if written.isascii() and written.isdigit() else 0


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
