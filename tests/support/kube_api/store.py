"""What the cluster holds, how it changes, and what follows from a change by itself.

One counter gives every change its resourceVersion, and the last `history` changes are kept for watches to go back to.
Everything here is synchronous and belongs to one event loop; what a cluster does later by itself (collecting what
an owner leaves, emptying a namespace, ending a pod) is put on that loop with `later`.

Objects in the store are never changed in place: a write replaces them, so readers on the inside may keep them.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kube_api import admission, fields, refusals, schema
from kube_api.kinds import BUILT_IN, OF_KSERVE, Kind, crd_of, kind_of_crd
from kube_api.refusals import Refused
from kube_api.schema import Schema

Raw = dict[str, Any]
Objects = list[Raw]
Texts = list[str]
Key = tuple[str, str, str]
"""resource, namespace, name."""

_SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_FOREGROUND = "foregroundDeletion"
_ORPHAN = "orphan"

__all__ = ["Change", "Refused", "Store", "Write"]


@dataclass(frozen=True, slots=True)
class Write:
    """How a write is made, beside what is written."""

    manager: str = "test"
    dry_run: bool = False
    validation: str = "Warn"
    """Of unknown fields: Strict, Warn, Ignore."""
    exact: bool = False
    """Generation and deletion are as given: somebody plays the server."""
    may_create: Callable[[], None] = lambda: None
    """Raises Refused where an apply may not create what is not there."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change of one object."""

    version: int
    type: str
    """ADDED, MODIFIED, DELETED."""
    kind: Kind
    namespace: str
    name: str
    object: Raw
    before: Raw | None


def now_text() -> str:
    """The time as metadata has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """The cluster from inside: no HTTP, no permissions, no log. Kinds are named by kind ("Pod")."""

    def __init__(
        self,
        *,
        history: int = 10_000,
        pod_grace_s: float | None = 0.0,
        kserve: bool = True,
        webhooks: bool = True,
    ) -> None:
        self.pod_grace_s = pod_grace_s
        self.webhooks = webhooks
        self.kinds: dict[str, Kind] = {each.resource: each for each in BUILT_IN}
        self._schemas: dict[str, Schema] = {}
        self._objects: dict[str, dict[tuple[str, str], Raw]] = {each: {} for each in self.kinds}
        self._version = 100
        self._history: deque[Change] = deque()
        self._history_max = history
        self._dropped = self._version
        self._dependents: dict[str, set[Key]] = {}
        self._by_uid: dict[str, Key] = {}
        self._pending: list[tuple[float, Callable[[], None]]] = []
        self.listeners: list[Callable[[Change], None]] = []
        for name in ("default", "kube-system"):
            self.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        if kserve:
            for kind in OF_KSERVE:
                self.put(crd_of(kind))

    # -- reading --------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The resourceVersion of the latest change."""
        return self._version

    def kind(self, name: str) -> Kind:
        """A kind by its name. Raises KeyError."""
        for each in self.kinds.values():
            if each.name == name:
                return each
        raise KeyError(name)

    def schema_of(self, kind: Kind) -> Schema | None:
        """The schema of a kind; None: everything goes."""
        found = self._schemas.get(kind.resource)
        return found if found is not None else schema.of_kind(kind)

    def peek(self, kind: Kind, namespace: str, name: str) -> Raw | None:
        """One object as it lies here: not to be changed."""
        return self._objects[kind.resource].get((namespace, name))

    def all_of(self, kind: Kind, namespace: str = "") -> Objects:
        """The objects of a kind as they lie here, in order of namespace and name."""
        found = self._objects[kind.resource]
        return [found[key] for key in sorted(found) if not namespace or key[0] == namespace]

    def get(self, kind: str, name: str, namespace: str = "") -> Raw | None:
        """One object, a copy; None where there is none."""
        found = self.peek(self.kind(kind), namespace, name)
        return None if found is None else deepcopy(found)

    def list(self, kind: str, namespace: str = "", labels: Mapping[str, str] | None = None) -> Objects:
        """Copies of the objects of a kind, of all namespaces where none is named."""
        return [
            deepcopy(each)
            for each in self.all_of(self.kind(kind), namespace)
            if (labels or {}).items() <= (each["metadata"].get("labels") or {}).items()
        ]

    def since(self, version: int) -> Iterable[Change]:
        """The changes after a version. Raises Refused (410) where they are no longer known."""
        if version < self._dropped:
            raise refusals.gone(f"too old resource version: {version} ({self._dropped})")
        return [each for each in self._history if each.version > version]

    @property
    def oldest(self) -> int:
        """The oldest version that a watch may start from."""
        return self._dropped

    def forget_history(self) -> None:
        """Whoever watches from an older version than now gets 410."""
        self._history.clear()
        self._dropped = self._version

    # -- writing from inside --------------------------------------------------------------------------

    def put(self, object: Mapping[str, Any], *, manager: str = "test", exact: bool = False) -> Raw:
        """Makes it, or replaces spec, status and metadata of what is there of that name. As somebody else would,
        with every right and past all checks. `exact`: its generation and deletion too are as given."""
        new = deepcopy(dict(object))
        kind = self._kind_of(new)
        metadata = new["metadata"] = dict(new["metadata"])
        namespace = metadata.get("namespace", "") if kind.namespaced else ""
        before = self.peek(kind, namespace, metadata["name"])
        if before is None:
            admission.normalise(kind, new)
            return deepcopy(self._add(kind, namespace, new, Write(manager, exact=exact), "Update"))
        kept = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds")
        for name in kept[:2] if exact else kept:
            if name in before["metadata"]:
                metadata[name] = before["metadata"][name]
        write = Write(manager, exact=exact)
        self._track(kind, before, new, write, "")
        return deepcopy(self._replace(kind, namespace, before, new, write))

    def edit(
        self, kind: str, name: str, namespace: str, change: Callable[[Raw], Any], *, manager: str = "test"
    ) -> Raw:
        """Changes one object: `change` gets a copy to change. Raises KeyError where it is not there."""
        found = self.get(kind, name, namespace)
        if found is None:
            raise KeyError(f"{kind} {namespace}/{name}")
        change(found)
        return self.put(found, manager=manager)

    def delete(self, kind: str, name: str, namespace: str = "") -> bool:
        """Deletes as a client would (finalizers, owners); whether there was something."""
        try:
            self.remove(self.kind(kind), namespace, name)
        except Refused:
            return False
        return True

    def vanish(self, kind: str, name: str, namespace: str = "") -> bool:
        """Removes it at once, finalizers or not."""
        found = self.kind(kind)
        if self.peek(found, namespace, name) is None:
            return False
        self._drop(found, namespace, name)
        return True

    # -- writing as the API does it -------------------------------------------------------------------

    def create(self, kind: Kind, namespace: str, object: Raw, write: Write) -> tuple[Raw, Texts]:
        """POST. The object as it is now, and warnings. Raises Refused."""
        new = deepcopy(object)
        self._check_envelope(kind, namespace, "", new)
        metadata = new["metadata"]
        if not metadata.get("name"):
            if not metadata.get("generateName"):
                cause = schema.Cause(
                    "metadata.name", "FieldValueRequired", "Required value: name or generateName is required"
                )
                raise refusals.invalid(kind, "", [cause])
            letters = "".join(random.choices(_SUFFIX_LETTERS, k=5))
            metadata["name"] = f"{metadata['generateName']}{letters}"
        if metadata.get("resourceVersion"):
            raise refusals.bad_request("resourceVersion should not be set on objects to be created")
        warnings = self._decode(kind, new, write)
        owned = deepcopy(new)
        self._admit(kind, namespace, new, None, create=True)
        if self.peek(kind, namespace, metadata["name"]) is not None:
            raise refusals.already_exists(kind, metadata["name"])
        return self._add(kind, namespace, new, write, "Update", owned), warnings

    def update(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        change: Callable[[Raw], Raw],
        write: Write,
        subresource: str = "",
    ) -> tuple[Raw, Texts]:
        """PUT and PATCH: `change` makes the wanted object of a copy of what is there. Raises Refused."""
        before = self.peek(kind, namespace, name)
        if before is None:
            raise refusals.not_found(kind, name)
        new = change(deepcopy(before))
        self._check_envelope(kind, namespace, name, new)
        wanted = new["metadata"].get("resourceVersion")
        if wanted not in (None, "", before["metadata"]["resourceVersion"]):
            raise refusals.conflict(kind, name)
        if new["metadata"].get("uid", before["metadata"]["uid"]) != before["metadata"]["uid"]:
            why = (
                f"Precondition failed: UID in precondition: {new['metadata']['uid']}, "
                f"UID in object meta: {before['metadata']['uid']}"
            )
            raise refusals.conflict(kind, name, why)
        warnings = self._decode(kind, new, write)
        new = self._confine(kind, before, new, subresource)
        admission.normalise(kind, new)
        self._track(kind, before, new, write, subresource)
        self._admit(kind, namespace, new, before, create=False, subresource=subresource)
        return self._replace(kind, namespace, before, new, write), warnings

    def apply(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        applied: Raw,
        write: Write,
        *,
        force: bool,
        subresource: str = "",
    ) -> tuple[Raw, bool]:
        """Server-side apply. The object, and whether it was made. Raises Refused."""
        applied = deepcopy(applied)
        self._check_envelope(kind, namespace, name, applied)
        if applied["metadata"].get("managedFields"):
            raise refusals.bad_request("metadata.managedFields must be nil")
        types = self.schema_of(kind)
        self._check_declared(kind, namespace, name, applied, types)
        before = self.peek(kind, namespace, name)
        if before is None:
            if subresource:
                raise refusals.not_found(kind, name)
            write.may_create()
            if applied["metadata"].get("uid") or applied["metadata"].get("resourceVersion"):
                raise refusals.conflict(kind, name, "the object does not exist")
            owned = deepcopy(applied)
            applied["metadata"]["name"] = name
            self._admit(kind, namespace, applied, None, create=True)
            return self._add(kind, namespace, applied, write, "Apply", owned), True
        if applied["metadata"].get("resourceVersion") not in (
            None,
            "",
            before["metadata"]["resourceVersion"],
        ):
            raise refusals.conflict(kind, name)
        if subresource == "status":
            applied.pop("spec", None)
        elif kind.has_status:
            applied.pop("status", None)
        managers = fields.Managers(before["metadata"].get("managedFields") or ())
        new_set = fields.paths(applied, types)
        found = [
            (manager, version, sub, path)
            for manager, version, sub, owned_there in managers.others(write.manager, subresource)
            for path in new_set & owned_there
            if path[-1].startswith("f:") and fields.value_at(applied, path) != fields.value_at(before, path)
        ]
        if found and not force:
            raise refusals.field_conflicts(
                (manager, version, sub, fields.as_text(path)) for manager, version, sub, path in found
            )
        new = fields.merged(before, applied, types)
        key = (write.manager, "Apply", subresource)
        managers.take({path for *_, path in found}, but=key)
        # What this applier said last time and does not say now goes, unless somebody else says it too.
        for path in sorted(managers.of(*key) - new_set, key=len):
            if not managers.owned_by_others(path, key) and not any(
                each[: len(path)] == path for each in new_set
            ):
                fields.remove(new, path)
        managers.set(*key, new_set, kind.api_version, now_text())
        new["metadata"]["managedFields"] = managers.entries()
        admission.normalise(kind, new)
        self._admit(kind, namespace, new, before, create=False, subresource=subresource)
        return self._replace(kind, namespace, before, new, write), False

    def remove(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        propagation: str = "Background",
        grace_s: int | None = None,
        uid: str | None = None,
        version: str | None = None,
        dry_run: bool = False,
    ) -> tuple[Raw, bool]:
        """DELETE. The object, and whether it is gone already. Raises Refused."""
        before = self.peek(kind, namespace, name)
        if before is None:
            raise refusals.not_found(kind, name)
        metadata = before["metadata"]
        _check_preconditions(kind, before, uid, version)
        if dry_run:
            return before, True
        finalizers = list(metadata.get("finalizers") or ())
        if (
            propagation == "Foreground"
            and self._dependents.get(metadata["uid"])
            and _FOREGROUND not in finalizers
        ):
            finalizers.append(_FOREGROUND)
        if propagation == "Orphan":
            self._orphan(metadata["uid"])
        if kind.name == "Namespace":
            return self._end_namespace(before), False
        grace = grace_s
        waits = kind.name == "Pod" and bool((before.get("spec") or {}).get("nodeName")) and grace != 0
        if not finalizers and not waits:
            return self._drop(kind, namespace, name), True
        if "deletionTimestamp" not in metadata:
            new = deepcopy(before)
            new["metadata"]["deletionTimestamp"] = now_text()
            seconds = (
                (before.get("spec") or {}).get("terminationGracePeriodSeconds", 30)
                if grace is None
                else grace
            )
            new["metadata"]["deletionGracePeriodSeconds"] = seconds if kind.name == "Pod" else 0
            if finalizers:
                new["metadata"]["finalizers"] = finalizers
            if "generation" in new["metadata"]:
                new["metadata"]["generation"] += 1
            before = self._store(kind, namespace, before, new, "MODIFIED")
            if waits and self.pod_grace_s is not None:
                self.later(self.pod_grace_s, lambda: self._end_pod(namespace, name, metadata["uid"]))
        if _FOREGROUND in finalizers:
            for key in sorted(self._dependents.get(metadata["uid"], ())):
                self._delete_quietly(key, "Foreground")
        return before, False

    # -- what follows by itself -----------------------------------------------------------------------

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """Does something on the loop, soon; without a loop, once `wake` is called on one."""
        try:
            asyncio.get_running_loop().call_later(seconds, do)
        except RuntimeError:
            self._pending.append((seconds, do))

    def wake(self) -> None:
        """Puts on the running loop what was to be done while there was none."""
        pending, self._pending = self._pending, []
        for seconds, do in pending:
            self.later(seconds, do)

    def _end_pod(self, namespace: str, name: str, uid: str) -> None:
        pods = self.kind("Pod")
        found = self.peek(pods, namespace, name)
        if found is not None and found["metadata"]["uid"] == uid and not found["metadata"].get("finalizers"):
            self._drop(pods, namespace, name)

    def _end_namespace(self, before: Raw) -> Raw:
        name = before["metadata"]["name"]
        if "deletionTimestamp" in before["metadata"]:
            return before
        new = deepcopy(before)
        new["metadata"]["deletionTimestamp"] = now_text()
        new.setdefault("status", {})["phase"] = "Terminating"
        result = self._store(self.kind("Namespace"), "", before, new, "MODIFIED")
        self.later(0.0, lambda: self._empty_namespace(name))
        return result

    def _empty_namespace(self, name: str) -> None:
        spaces = self.kind("Namespace")
        before = self.peek(spaces, "", name)
        if before is None or "deletionTimestamp" not in before["metadata"]:
            return
        for resource, objects in self._objects.items():
            for key in sorted(each for each in objects if each[0] == name):
                if "deletionTimestamp" not in objects[key]["metadata"]:
                    self._delete_quietly((resource, *key), "Background")
        left: dict[str, int] = {}
        for resource, objects in self._objects.items():
            count = sum(each[0] == name for each in objects)
            if count:
                left[resource] = count
        before = self.peek(spaces, "", name)
        if before is None:
            return
        if left:
            said = ", ".join(f"{resource} has {count} resource instances" for resource, count in left.items())
            remaining = {
                "type": "NamespaceContentRemaining",
                "status": "True",
                "lastTransitionTime": now_text(),
                "reason": "SomeResourcesRemain",
                "message": f"Some resources are remaining: {said}",
            }
            new = deepcopy(before)
            new["status"]["conditions"] = [remaining]
            if [_untimed(each) for each in before["status"].get("conditions") or ()] != [_untimed(remaining)]:
                self._store(spaces, "", before, new, "MODIFIED")
            return
        if not before["metadata"].get("finalizers"):
            self._drop(spaces, "", name)

    def _delete_quietly(self, key: Key, propagation: str) -> None:
        resource, namespace, name = key
        try:
            self.remove(self.kinds[resource], namespace, name, propagation=propagation)
        except Refused:
            return

    def _orphan(self, uid: str) -> None:
        for key in sorted(self._dependents.get(uid, ())):
            self._disown(key, uid)

    def _disown(self, key: Key, uid: str) -> None:
        kind = self.kinds[key[0]]
        before = self.peek(kind, key[1], key[2])
        if before is None:
            return
        new = deepcopy(before)
        new["metadata"]["ownerReferences"] = [
            each for each in before["metadata"].get("ownerReferences") or () if each["uid"] != uid
        ]
        self._store(kind, key[1], before, new, "MODIFIED")

    def _collect(self, uid: str) -> None:
        """Deletes what had only this owner, which is gone."""
        for key in sorted(self._dependents.get(uid, ())):
            kind = self.kinds[key[0]]
            found = self.peek(kind, key[1], key[2])
            if found is None:
                continue
            owners = [each["uid"] for each in found["metadata"].get("ownerReferences") or ()]
            if any(each in self._by_uid for each in owners):
                self._disown(key, uid)
            else:
                self._delete_quietly(key, "Background")

    def _after_removal(self, kind: Kind, namespace: str, object: Raw) -> None:
        uid = object["metadata"]["uid"]
        if self._dependents.get(uid):
            self.later(0.0, lambda: self._collect(uid))
        for owner in object["metadata"].get("ownerReferences") or ():
            self._release_foreground(owner["uid"])
        if namespace:
            space = self._objects["namespaces"].get(("", namespace))
            if space is not None and "deletionTimestamp" in space["metadata"]:
                self.later(0.0, lambda: self._empty_namespace(namespace))
        if kind.name == "CustomResourceDefinition":
            gone = kind_of_crd(object)
            for key in list(self._objects.get(gone.resource, ())):
                self._drop(gone, *key)
            self.kinds.pop(gone.resource, None)
            self._objects.pop(gone.resource, None)

    def _release_foreground(self, uid: str) -> None:
        key = self._by_uid.get(uid)
        if key is None or self._dependents.get(uid):
            return
        kind = self.kinds[key[0]]
        before = self.peek(kind, key[1], key[2])
        if before is None or _FOREGROUND not in (before["metadata"].get("finalizers") or ()):
            return
        new = deepcopy(before)
        new["metadata"]["finalizers"] = [
            each for each in before["metadata"]["finalizers"] if each != _FOREGROUND
        ]
        self._replace(kind, key[1], before, new, Write("kube-controller-manager"))

    # -- the steps of a write -------------------------------------------------------------------------

    def _kind_of(self, object: Mapping[str, Any]) -> Kind:
        for each in self.kinds.values():
            if each.name == object["kind"] and each.api_version == object["apiVersion"]:
                return each
        raise KeyError(f"{object['apiVersion']} {object['kind']}")

    def _check_envelope(self, kind: Kind, namespace: str, name: str, object: Raw) -> None:
        object.setdefault("apiVersion", kind.api_version)
        object.setdefault("kind", kind.name)
        if (object["apiVersion"], object["kind"]) != (kind.api_version, kind.name):
            raise refusals.bad_request(
                f'{object["kind"]} in version "{str(object["apiVersion"]).rpartition("/")[2]}" cannot be handled as a '
                f'{kind.name}: no kind "{object["kind"]}" is registered for version "{object["apiVersion"]}"'
            )
        if object.get("metadata") is None:
            object["metadata"] = {}
        admission.check_types(kind, object)
        metadata = object["metadata"]
        if kind.namespaced and metadata.setdefault("namespace", namespace) != namespace:
            raise refusals.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )
        if name and metadata.setdefault("name", name) != name:
            raise refusals.bad_request(
                f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
            )

    def _decode(self, kind: Kind, new: Raw, write: Write) -> Texts:
        types = self.schema_of(kind)
        if types is None:
            return []
        unknown = schema.unknown_fields(new, types)
        if unknown and write.validation == "Strict":
            said = ", ".join(f'unknown field "{each}"' for each in unknown)
            raise refusals.bad_request(
                f'{kind.name} in version "{kind.version}" cannot be handled as a {kind.name}: strict decoding error: '
                f"{said}"
            )
        return [f'unknown field "{each}"' for each in unknown] if write.validation == "Warn" else []

    def _check_declared(
        self, kind: Kind, namespace: str, name: str, applied: Raw, types: Schema | None
    ) -> None:
        """An apply is read by the schema: what is not in it is an error, and not one of the client's by its code."""
        if types is None:
            return
        path = ""
        unknown = schema.unknown_fields(deepcopy(applied), types)
        if unknown:
            path = f".{unknown[0]}: field not declared in schema"
        else:
            for each in schema.violations(applied, types):
                if each.reason == "FieldValueTypeInvalid":
                    got = each.message.rpartition(': "')[2].rstrip('"')
                    wanted = each.message.rpartition("must be of type ")[2].partition(":")[0]
                    wanted = {"integer": "numeric (int or float)", "object": "map", "array": "list"}.get(
                        wanted, wanted
                    )
                    path = f".{each.field}: expected {wanted}, got {got}"
                    break
        if path:
            place = f"{namespace}/{name}" if namespace else f"/{name}"
            raise Refused(
                500,
                "",
                f"failed to create typed patch object ({place}; {kind.api_version}, Kind={kind.name}): {path}",
            )

    def _confine(self, kind: Kind, before: Raw, new: Raw, subresource: str) -> Raw:
        """Only what this endpoint may write: everything but status, or status only."""
        if subresource == "status":
            confined = deepcopy(before)
            if "status" in new:
                confined["status"] = new["status"]
            else:
                confined.pop("status", None)
            return confined
        if kind.has_status:
            if "status" in before:
                new["status"] = deepcopy(before["status"])
            else:
                new.pop("status", None)
        metadata, was = new["metadata"], before["metadata"]
        for name in (
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "generateName",
        ):
            metadata.pop(name, None)
            if name in was:
                metadata[name] = was[name]
        if "managedFields" not in metadata or metadata["managedFields"] is None:
            metadata["managedFields"] = was.get("managedFields") or []
        return new

    def _admit(
        self, kind: Kind, namespace: str, new: Raw, before: Raw | None, *, create: bool, subresource: str = ""
    ) -> None:
        """Defaults, webhooks and validation, in the server's order. Raises Refused."""
        name = new["metadata"]["name"]
        types = self.schema_of(kind)
        if create and kind.namespaced:
            space = self._objects["namespaces"].get(("", namespace))
            if space is None:
                raise refusals.not_found(self.kinds["namespaces"], namespace)
            if "deletionTimestamp" in space["metadata"]:
                why = f"unable to create new content in namespace {namespace} because it is being terminated"
                refused = refusals.forbidden(kind, name, why)
                cause = {
                    "reason": "NamespaceTerminating",
                    "message": f"namespace {namespace} is being terminated",
                    "field": "metadata.namespace",
                }
                raise Refused(
                    403, "Forbidden", refused.message, {**(refused.details or {}), "causes": [cause]}
                )
        if create:
            if kind.has_status and kind.name not in ("Namespace", "Node", "CustomResourceDefinition"):
                new.pop("status", None)
            admission.normalise(kind, new)
        if types is not None and kind.custom:
            schema.fill_defaults(new, types)
        hooked = self.webhooks and kind.name == "InferenceService" and not subresource
        if hooked and "deletionTimestamp" not in new["metadata"]:
            admission.kserve_defaults(new, types)
        if create:
            admission.check_metadata(kind, new)
        else:
            admission.check_metadata(
                kind,
                {"metadata": {**new["metadata"], "name": before["metadata"]["name"] if before else name}},
            )
        if types is not None and kind.custom and (causes := schema.violations(new, types)):
            raise refusals.invalid(kind, name, causes)
        if hooked and "deletionTimestamp" not in new["metadata"]:
            admission.kserve_checks(new, before)
        if create and kind.name == "Pod":
            admission.check_quota(
                kind, new, self.all_of(self.kind("ResourceQuota"), namespace), self.all_of(kind, namespace)
            )

    def _track(self, kind: Kind, before: Raw, new: Raw, write: Write, subresource: str) -> None:
        """Writes down who changed which fields, in `new`."""
        types = self.schema_of(kind)
        was, now = fields.paths(before, types), fields.paths(new, types)
        if new["metadata"].get("managedFields") == []:
            # An empty list is how a client forgets all owners.
            managers = fields.Managers(())
        else:
            managers = fields.Managers(before["metadata"].get("managedFields") or ())
        changed = {
            path
            for path in now
            if path not in was
            or (path[-1].startswith("f:") and fields.value_at(before, path) != fields.value_at(new, path))
        }
        removed = was - now
        key = (write.manager, "Update", subresource)
        managers.take(changed | removed, but=key)
        managers.set(*key, (set(managers.of(*key)) - removed) | changed, kind.api_version, now_text())
        new["metadata"]["managedFields"] = managers.entries()

    def _add(
        self, kind: Kind, namespace: str, new: Raw, write: Write, operation: str, owned: Raw | None = None
    ) -> Raw:
        metadata = new["metadata"]
        managers = fields.Managers(())
        managers.set(
            write.manager,
            operation,
            "",
            fields.paths(owned or new, self.schema_of(kind)),
            kind.api_version,
            now_text(),
        )
        for name in ("deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "selfLink"):
            if not (write.exact and name.startswith("deletion")):
                metadata.pop(name, None)
        metadata["uid"] = metadata.get("uid") if owned is None and metadata.get("uid") else str(uuid.uuid4())
        metadata.setdefault("creationTimestamp", now_text())
        if owned is not None:
            metadata["creationTimestamp"] = now_text()
        metadata["managedFields"] = managers.entries()
        if write.exact and "generation" in metadata:
            pass
        elif kind.counted:
            metadata["generation"] = 1
        else:
            metadata.pop("generation", None)
        if kind.namespaced:
            metadata["namespace"] = namespace
        if write.dry_run:
            return new
        added = self._store(kind, namespace, None, new, "ADDED")
        if kind.name == "Namespace":
            self._furnish(metadata["name"])
        if kind.name == "CustomResourceDefinition":
            self._define(added)
        owners = [each["uid"] for each in metadata.get("ownerReferences") or ()]
        if owners and not any(each in self._by_uid for each in owners):
            self.later(0.0, lambda: self._collect(owners[0]))
        return added

    def _define(self, crd: Raw) -> None:
        known = next((each for each in OF_KSERVE if each.resource == crd["metadata"]["name"]), None)
        kind = known or kind_of_crd(crd)
        self.kinds[kind.resource] = kind
        self._objects.setdefault(kind.resource, {})
        if known is None:
            self._schemas[kind.resource] = schema.of_crd(crd)

    def _furnish(self, namespace: str) -> None:
        for each in (
            {"apiVersion": "v1", "kind": "ServiceAccount"},
            {"apiVersion": "v1", "kind": "ConfigMap", "data": {"ca.crt": ""}},
        ):
            name = "default" if each["kind"] == "ServiceAccount" else "kube-root-ca.crt"
            self.put(
                {**each, "metadata": {"name": name, "namespace": namespace}},
                manager="kube-controller-manager",
            )

    def _replace(self, kind: Kind, namespace: str, before: Raw, new: Raw, write: Write) -> Raw:
        metadata = new["metadata"]
        metadata["resourceVersion"] = before["metadata"]["resourceVersion"]
        if not metadata.get("finalizers"):
            metadata.pop("finalizers", None)
        if kind.counted and not (write.exact and "generation" in metadata):
            generation = before["metadata"].get("generation", 1)
            metadata["generation"] = generation + (_wish(before) != _wish(new))
        if _bare(new) == _bare(before):
            return before
        if write.dry_run:
            return new
        if "deletionTimestamp" in metadata and not metadata.get("finalizers") and not write.exact:
            over = kind.name not in ("Pod", "Namespace") or bool(before["metadata"].get("finalizers"))
            if over and kind.name != "Namespace":
                self._store(kind, namespace, before, new, "")
                return self._drop(kind, namespace, metadata["name"])
        result = self._store(kind, namespace, before, new, "MODIFIED")
        if kind.name == "Namespace" and "deletionTimestamp" in metadata:
            self.later(0.0, lambda: self._empty_namespace(metadata["name"]))
        return result

    def _store(self, kind: Kind, namespace: str, before: Raw | None, new: Raw, type_: str) -> Raw:
        name = new["metadata"]["name"]
        key = (kind.resource, namespace, name)
        if type_:
            self._version += 1
            new["metadata"]["resourceVersion"] = str(self._version)
        self._objects[kind.resource][namespace, name] = new
        uid = new["metadata"]["uid"]
        self._by_uid[uid] = key
        was = {each["uid"] for each in (before or {"metadata": {}})["metadata"].get("ownerReferences") or ()}
        now = {each["uid"] for each in new["metadata"].get("ownerReferences") or ()}
        for each in was - now:
            self._dependents.get(each, set()).discard(key)
        for each in now - was:
            self._dependents.setdefault(each, set()).add(key)
        if type_:
            self._tell(Change(self._version, type_, kind, namespace, name, new, before))
        return new

    def _drop(self, kind: Kind, namespace: str, name: str) -> Raw:
        before = self._objects[kind.resource].pop((namespace, name))
        self._version += 1
        gone = deepcopy(before)
        gone["metadata"]["resourceVersion"] = str(self._version)
        self._by_uid.pop(before["metadata"]["uid"], None)
        for each in before["metadata"].get("ownerReferences") or ():
            self._dependents.get(each["uid"], set()).discard((kind.resource, namespace, name))
        self._tell(Change(self._version, "DELETED", kind, namespace, name, gone, before))
        self._after_removal(kind, namespace, gone)
        return gone

    def _tell(self, change: Change) -> None:
        self._history.append(change)
        while len(self._history) > self._history_max:
            self._dropped = self._history.popleft().version
        for listener in tuple(self.listeners):
            listener(change)


def _wish(object: Mapping[str, Any]) -> Raw:
    return {name: each for name, each in object.items() if name not in ("metadata", "status")}


def _bare(object: Mapping[str, Any]) -> Raw:
    """Without the times of managedFields: what decides whether a write changes anything."""
    entries = [_untimed(each) for each in object["metadata"].get("managedFields") or ()]
    return {**object, "metadata": {**object["metadata"], "managedFields": entries}}


def _untimed(entry: Mapping[str, Any]) -> Raw:
    return {name: each for name, each in entry.items() if name not in ("time", "lastTransitionTime")}


def _check_preconditions(kind: Kind, before: Raw, uid: str | None, version: str | None) -> None:
    metadata = before["metadata"]
    for said, is_so, what in (
        (uid, metadata["uid"], "UID"),
        (version, metadata["resourceVersion"], "ResourceVersion"),
    ):
        if said not in (None, is_so):
            why = f"Precondition failed: {what} in precondition: {said}, {what} in object meta: {is_so}"
            raise refusals.conflict(kind, metadata["name"], why)
