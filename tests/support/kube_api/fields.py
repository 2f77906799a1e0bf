"""Who owns which field: server-side apply.

A set of fields is a set of paths; a path is a tuple of elements as FieldsV1 writes them (`f:spec`,
`k:{"name":"x"}`, `v:"x"`). Lists are atomic unless a schema, or for the built-in kinds the table here, says that
their items have keys or are a set; maps are granular unless they are said to be atomic.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from copy import deepcopy
from typing import Any

from kube_api.schema import Schema

Raw = dict[str, Any]
Path = tuple[str, ...]

_KEYS_BY_FIELD: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ephemeralContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "volumeMounts": ("mountPath",),
    "imagePullSecrets": ("name",),
    "secrets": ("name",),
    "conditions": ("type",),
    "ownerReferences": ("uid",),
    "hostAliases": ("ip",),
}
"""Lists with keys of the built-in kinds."""

_ATOMIC_MAPS = frozenset({"selector", "nodeSelector", "roleRef", "matchLabels"})
_NOT_OWNED = frozenset(
    {
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
        "generateName",
    }
)
"""Of metadata: the server's own."""


def _below(schema: Schema | None, name: str) -> Schema | None:
    if schema is None:
        return None
    found = (schema.get("properties") or {}).get(name)
    if found is None:
        more = schema.get("additionalProperties")
        found = more if isinstance(more, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def _keys(field: str, schema: Schema | None, parent: Path) -> tuple[str, ...] | None:
    """The keys of a list's items; () for a set; None where it is atomic."""
    if parent == ("f:metadata",):
        return {"finalizers": (), "ownerReferences": ("uid",)}.get(field)
    if schema is None:
        if field == "ports":
            return ("port", "protocol") if parent == ("f:spec",) else ("containerPort", "protocol")
        return _KEYS_BY_FIELD.get(field)
    kind = schema.get("x-kubernetes-list-type")
    if kind == "map":
        return tuple(schema["x-kubernetes-list-map-keys"])
    return () if kind == "set" else None


def _atomic_map(field: str, schema: Schema | None) -> bool:
    if schema is None:
        return field in _ATOMIC_MAPS
    return schema.get("x-kubernetes-map-type") == "atomic"


def _defaults(schema: Schema | None) -> Mapping[str, Any]:
    properties = ((schema or {}).get("items") or {}).get("properties") or {}
    return {name: each["default"] for name, each in properties.items() if "default" in each}


def _element(item: Any, keys: tuple[str, ...], schema: Schema | None = None) -> str:
    if not keys:
        return "v:" + json.dumps(item, separators=(",", ":"))
    defaults = {"protocol": "TCP", **_defaults(schema)}
    key = {name: item.get(name, defaults.get(name)) for name in sorted(keys)}
    return "k:" + json.dumps(key, separators=(",", ":"))


def paths(object: Mapping[str, Any], schema: Schema | None) -> set[Path]:
    """The fields of an object: its leaves, and the items of lists with keys."""
    found: set[Path] = set()
    for name, value in object.items():
        if name in ("apiVersion", "kind"):
            continue
        if name == "metadata":
            for inner, each in value.items():
                if inner not in _NOT_OWNED:
                    _collect(each, None, inner, ("f:metadata", f"f:{inner}"), found)
        else:
            _collect(value, _below(schema, name), name, (f"f:{name}",), found)
    return found


def _collect(value: Any, schema: Schema | None, field: str, path: Path, found: set[Path]) -> None:
    if isinstance(value, dict) and value and not _atomic_map(field, schema):
        for name, each in value.items():
            _collect(each, _below(schema, name), name, (*path, f"f:{name}"), found)
    elif isinstance(value, list) and value and (keys := _keys(field, schema, path[:-1])) is not None:
        items = None if schema is None else schema.get("items") or {}
        for item in value:
            here = (*path, _element(item, keys, schema))
            found.add(here)
            if keys and isinstance(item, dict):
                for name, each in item.items():
                    _collect(each, _below(items, name), name, (*here, f"f:{name}"), found)
    else:
        found.add(path)


_MISSING = object()


def value_at(object: Mapping[str, Any], path: Path) -> Any:
    """What is at a path; a marker of its own where nothing is."""
    at: Any = object
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            if not isinstance(at, Mapping) or rest not in at:
                return _MISSING
            at = at[rest]
        else:
            index = _index(at, element)
            if index is None:
                return _MISSING
            at = at[index]
    return at


def there(object: Mapping[str, Any], path: Path) -> bool:
    """Whether there is something at a path."""
    return value_at(object, path) is not _MISSING


def _index(items: Any, element: str) -> int | None:
    if not isinstance(items, list):
        return None
    kind, _, rest = element.partition(":")
    wanted = json.loads(rest)
    for index, item in enumerate(items):
        if kind == "v":
            if item == wanted:
                return index
        elif isinstance(item, Mapping) and all(
            item.get(name, "TCP" if name == "protocol" else None) == each for name, each in wanted.items()
        ):
            return index
    return None


def remove(object: Raw, path: Path) -> None:
    """Takes what is at a path out, in place."""
    parent = value_at(object, path[:-1])
    kind, _, rest = path[-1].partition(":")
    if kind == "f":
        if isinstance(parent, dict):
            parent.pop(rest, None)
    elif isinstance(parent, list) and (index := _index(parent, path[-1])) is not None:
        del parent[index]


def merged(live: Mapping[str, Any], applied: Mapping[str, Any], schema: Schema | None) -> Raw:
    """What is there, with what is applied laid over it."""
    result = deepcopy(dict(live))
    for name, value in applied.items():
        if name == "metadata":
            metadata = result.setdefault("metadata", {})
            for inner, each in value.items():
                if inner not in _NOT_OWNED:
                    metadata[inner] = _merge(
                        metadata.get(inner, _MISSING), each, None, inner, ("f:metadata", f"f:{inner}")
                    )
        else:
            result[name] = _merge(
                result.get(name, _MISSING), value, _below(schema, name), name, (f"f:{name}",)
            )
    return result


def _merge(live: Any, applied: Any, schema: Schema | None, field: str, path: Path) -> Any:
    if isinstance(applied, dict) and isinstance(live, dict) and not _atomic_map(field, schema):
        for name, each in applied.items():
            live[name] = _merge(
                live.get(name, _MISSING), each, _below(schema, name), name, (*path, f"f:{name}")
            )
        return live
    if isinstance(applied, list) and isinstance(live, list):
        keys = _keys(field, schema, path[:-1])
        if keys is not None:
            items = None if schema is None else schema.get("items") or {}
            for item in applied:
                element = _element(item, keys, schema)
                index = _index(live, element)
                if index is None:
                    live.append(deepcopy(item))
                elif keys:
                    live[index] = _merge(live[index], item, items, "", (*path, element))
            return live
    return deepcopy(applied)


# -- managedFields as they are written in metadata ----------------------------------------------------


def to_fields(owned: Iterable[Path]) -> Raw:
    """FieldsV1 of a set of paths."""
    tree: Raw = {}
    for path in sorted(owned):
        at = tree
        for element in path:
            at = at.setdefault(element, {})
        if path[-1].startswith("k:"):
            at["."] = {}
    return tree


def from_fields(tree: Mapping[str, Any]) -> set[Path]:
    """The paths that FieldsV1 says."""
    found: set[Path] = set()

    def walk(at: Mapping[str, Any], path: Path) -> None:
        if not at:
            found.add(path)
        for element, below in at.items():
            if element == ".":
                found.add(path)
            else:
                walk(below, (*path, element))

    if tree:
        walk(tree, ())
    return found


def as_text(path: Path) -> str:
    """A path as conflicts name it: `.spec.containers[name="x"].image`."""
    text = ""
    for element in path:
        kind, _, rest = element.partition(":")
        if kind == "f":
            text += f".{rest}"
        elif kind == "k":
            key = json.loads(rest)
            text += "[" + ",".join(f"{name}={json.dumps(each)}" for name, each in key.items()) + "]"
        else:
            text += f"[={rest}]"
    return text


class Managers:
    """The owners of one object's fields, as metadata.managedFields has them."""

    def __init__(self, entries: Iterable[Mapping[str, Any]]) -> None:
        self._sets: dict[tuple[str, str, str], set[Path]] = {}
        self._meta: dict[tuple[str, str, str], tuple[str, str]] = {}
        for each in entries:
            key = (each["manager"], each["operation"], each.get("subresource", ""))
            self._sets[key] = from_fields(each.get("fieldsV1") or {})
            self._meta[key] = (each.get("apiVersion", ""), each.get("time", ""))

    def of(self, manager: str, operation: str, subresource: str) -> Set[Path]:
        """What one owns."""
        return self._sets.get((manager, operation, subresource), set())

    def others(self, manager: str, subresource: str) -> list[tuple[str, str, str, Set[Path]]]:
        """Everybody but this applier: manager, apiVersion, subresource, fields."""
        return [
            (key[0], self._meta[key][0], key[2], owned)
            for key, owned in self._sets.items()
            if key != (manager, "Apply", subresource)
        ]

    def set(
        self, manager: str, operation: str, subresource: str, owned: set[Path], api_version: str, now: str
    ) -> None:
        """What one owns from now on; the time moves only where that changes."""
        key = (manager, operation, subresource)
        if self._sets.get(key) != owned:
            self._meta[key] = (api_version, now)
        self._sets[key] = owned

    def take(self, gone: Set[Path], *, but: tuple[str, str, str] | None = None) -> None:
        """Nobody (but one) owns these any longer."""
        for key in self._sets:
            if key != but:
                self._sets[key] = self._sets[key] - gone

    def owned_by_others(self, path: Path, key: tuple[str, str, str]) -> bool:
        """Whether somebody else owns a field, or for an item of a list anything in it."""
        deep = not path[-1].startswith("f:")
        return any(
            path in owned or (deep and any(each[: len(path)] == path for each in owned))
            for other, owned in self._sets.items()
            if other != key
        )

    def entries(self) -> list[Raw]:
        """As metadata.managedFields."""
        found = []
        for key, owned in self._sets.items():
            if not owned:
                continue
            manager, operation, subresource = key
            api_version, time = self._meta[key]
            entry: Raw = {
                "manager": manager,
                "operation": operation,
                "apiVersion": api_version,
                "time": time,
                "fieldsType": "FieldsV1",
                "fieldsV1": to_fields(owned),
            }
            if subresource:
                entry["subresource"] = subresource
            found.append(entry)
        return sorted(found, key=lambda each: (each["operation"] != "Apply", each["time"], each["manager"]))
