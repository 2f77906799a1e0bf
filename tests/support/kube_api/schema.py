"""Structural schemas: unknown fields out, defaults in, and what is wrong with the rest, in the API server's words.

A schema is OpenAPI v3 as CustomResourceDefinitions carry it. For the built-in kinds that a client of KServe writes
there are small ones here, by hand: enough to notice a field that does not exist.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from kube_api.kinds import Kind
from kube_api.recordings import SHARED, kserve_data

Schema = Mapping[str, Any]
Raw = dict[str, Any]

_INT32 = 2**31
_INT64 = 2**63
_CACHE = Path(tempfile.gettempdir()) / f"inferplane-tests-{os.getuid()}-kserve-schemas"


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that is wrong: `field` by its path, `reason` as Status causes say it."""

    field: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


_ANY: Schema = {"x-kubernetes-preserve-unknown-fields": True}
_STRING: Schema = {"type": "string"}
_STRINGS: Schema = {"type": "array", "items": _STRING}
_MAP: Schema = {"type": "object", "additionalProperties": _STRING}
_REFERENCE: Schema = {
    "type": "object",
    "properties": dict.fromkeys(
        ("apiVersion", "fieldPath", "kind", "name", "namespace", "resourceVersion", "uid"), _STRING
    ),
}
_NAMED = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


_RULES = _list(
    _object(
        apiGroups=_STRINGS,
        resources=_STRINGS,
        verbs=_STRINGS,
        resourceNames=_STRINGS,
        nonResourceURLs=_STRINGS,
    )
)
_BINDING = _object(
    subjects=_list(_object(apiGroup=_STRING, kind=_STRING, name=_STRING, namespace=_STRING)),
    roleRef={
        "type": "object",
        "properties": dict.fromkeys(("apiGroup", "kind", "name"), _STRING),
        "x-kubernetes-map-type": "atomic",
    },
)
_BOOLEAN: Schema = {"type": "boolean"}
_INTEGER: Schema = {"type": "integer"}
_HARD: Schema = {"type": "object", "additionalProperties": {"x-kubernetes-int-or-string": True}}

_BY_HAND: Mapping[str, Schema] = {
    "Namespace": _object(
        spec=_object(finalizers=_list(_STRING)),
        status=_object(
            phase=_STRING, conditions=_list(_ANY, **(_NAMED | {"x-kubernetes-list-map-keys": ["type"]}))
        ),
    ),
    "Secret": _object(type=_STRING, data=_MAP, stringData=_MAP, immutable=_BOOLEAN),
    "ConfigMap": _object(data=_MAP, binaryData=_MAP, immutable=_BOOLEAN),
    "ServiceAccount": _object(
        secrets=_list(_REFERENCE, **_NAMED),
        imagePullSecrets=_list(_object(name=_STRING), **_NAMED),
        automountServiceAccountToken=_BOOLEAN,
    ),
    "ResourceQuota": _object(
        spec=_object(hard=_HARD, scopes=_STRINGS, scopeSelector=_ANY), status=_object(hard=_HARD, used=_HARD)
    ),
    "Role": _object(rules=_RULES),
    "ClusterRole": _object(rules=_RULES, aggregationRule=_ANY),
    "RoleBinding": _BINDING,
    "ClusterRoleBinding": _BINDING,
    "Lease": _object(
        spec=_object(
            holderIdentity=_STRING,
            leaseDurationSeconds=_INTEGER,
            acquireTime=_STRING,
            renewTime=_STRING,
            leaseTransitions=_INTEGER,
            strategy=_STRING,
            preferredHolder=_STRING,
        )
    ),
}


@cache
def of_crd_file(plural: str) -> Schema | None:
    """The schema of one of KServe's kinds, read from its real definition; None where the data is missing."""
    if SHARED is None:
        return None
    path = kserve_data() / f"serving.kserve.io_{plural}.yaml"
    if not path.exists():
        return None
    # The definition of InferenceService is two megabytes of YAML, seconds to read on a busy machine. So what was
    # read is kept as JSON beside the other temporary files, by the definition's size and time.
    about = path.stat()
    kept = _CACHE / f"{plural}-{about.st_size}-{about.st_mtime_ns}.json"
    if kept.exists():
        found: Schema = json.loads(kept.read_text())
        return found
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    read = of_crd(yaml.load(path.read_text(), Loader=loader))
    _CACHE.mkdir(mode=0o700, exist_ok=True)
    unfinished = kept.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(read))
    unfinished.replace(kept)
    return read


def of_crd(crd: Mapping[str, Any]) -> Schema:
    """The storage version's schema of a CustomResourceDefinition."""
    versions = crd["spec"]["versions"]
    version = next((each for each in versions if each.get("storage")), versions[0])
    schema: Schema = (version.get("schema") or {}).get("openAPIV3Schema") or _ANY
    return schema


def of_kind(kind: Kind) -> Schema | None:
    """The schema of a kind; None: everything goes."""
    if kind.custom:
        return of_crd_file(kind.plural)
    return _BY_HAND.get(kind.name)


def unknown_fields(value: Any, schema: Schema, path: str = "") -> list[str]:
    """Takes fields that the schema does not know out of `value`, in place; their paths."""
    found: list[str] = []
    if isinstance(value, dict):
        properties = schema.get("properties") or {}
        more = schema.get("additionalProperties")
        for key in list(value):
            here = f"{path}.{key}" if path else key
            if not path and key in ("apiVersion", "kind", "metadata"):
                continue
            if key in properties:
                found += unknown_fields(value[key], properties[key], here)
            elif isinstance(more, Mapping):
                found += unknown_fields(value[key], more, here)
            elif (
                not more
                and not schema.get("x-kubernetes-preserve-unknown-fields")
                and (schema.get("type") == "object" or properties)
            ):
                del value[key]
                found.append(here)
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for index, each in enumerate(value):
            found += unknown_fields(each, schema["items"], f"{path}[{index}]")
    return found


def fill_defaults(value: Any, schema: Schema) -> None:
    """Puts in what the schema says for fields that are not there, in place."""
    if isinstance(value, dict):
        for key, below in (schema.get("properties") or {}).items():
            if "default" in below and (
                key not in value or (value[key] is None and not below.get("nullable"))
            ):
                value[key] = json.loads(json.dumps(below["default"]))
            if key in value:
                fill_defaults(value[key], below)
        more = schema.get("additionalProperties")
        if isinstance(more, Mapping):
            for each in value.values():
                fill_defaults(each, more)
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for each in value:
            fill_defaults(each, schema["items"])


def _name_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _is(value: Any, type_: str) -> bool:
    name = _name_of(value)
    if type_ == "number":
        return name in ("number", "integer")
    if type_ == "integer" and name == "number":
        return bool(float(value).is_integer())
    return name == type_


def show(value: Any) -> str:
    """A value as the server's messages show it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def violations(value: Any, schema: Schema, path: str = "") -> list[Cause]:
    """What is wrong with a value, in the words of the API server's structural validation."""
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, int | str) or isinstance(value, bool):
            got = _name_of(value)
            return [
                Cause(
                    path,
                    "FieldValueTypeInvalid",
                    f'Invalid value: "{got}": {path} in body must be of type integer,string: "{got}"',
                )
            ]
        return _of_string(value, schema, path) if isinstance(value, str) else []
    wanted = schema.get("type")
    if value is None and schema.get("nullable"):
        return []
    if wanted and not _is(value, wanted):
        got = _name_of(value)
        return [
            Cause(
                path,
                "FieldValueTypeInvalid",
                f'Invalid value: "{got}": {path} in body must be of type {wanted}: "{got}"',
            )
        ]
    if "enum" in schema and value not in schema["enum"]:
        values = ", ".join(show(each) for each in schema["enum"])
        return [
            Cause(
                path,
                "FieldValueNotSupported",
                f"Unsupported value: {show(value)}: supported values: {values}",
            )
        ]
    match value:
        case dict():
            return _of_object(value, schema, path)
        case list():
            return _of_array(value, schema, path)
        case str():
            return _of_string(value, schema, path)
        case bool():
            return []
        case int() | float():
            return _of_number(value, schema, path)
    return []


def _of_object(value: Raw, schema: Schema, path: str) -> list[Cause]:
    found = [
        Cause(f"{path}.{name}" if path else name, "FieldValueRequired", "Required value")
        for name in schema.get("required") or ()
        if name not in value and (path or name not in ("apiVersion", "kind", "metadata"))
    ]
    properties = schema.get("properties") or {}
    more = schema.get("additionalProperties")
    for key, each in value.items():
        if not path and key == "metadata":
            continue
        below = properties.get(key, more if isinstance(more, Mapping) else None)
        if below is not None:
            found += violations(each, below, f"{path}.{key}" if path else key)
    return found


def _of_array(value: list[Any], schema: Schema, path: str) -> list[Cause]:
    found = []
    items = schema.get("items") or {}
    if len(value) < schema.get("minItems", 0):
        found.append(
            Cause(
                path,
                "FieldValueInvalid",
                f"Invalid value: {len(value)}: {path} in body should have at least {schema['minItems']} items",
            )
        )
    for index, each in enumerate(value):
        found += violations(each, items, f"{path}[{index}]")
    keys = schema.get("x-kubernetes-list-map-keys")
    if keys:
        seen: list[Any] = []
        for index, each in enumerate(value):
            key = {name: each.get(name) for name in keys} if isinstance(each, dict) else each
            if key in seen:
                found.append(
                    Cause(f"{path}[{index}]", "FieldValueDuplicate", f"Duplicate value: {show(key)}")
                )
            seen.append(key)
    return found


def _of_string(value: str, schema: Schema, path: str) -> list[Cause]:
    pattern = schema.get("pattern")
    if pattern and not re.search(pattern, value):
        return [
            Cause(
                path,
                "FieldValueInvalid",
                f"Invalid value: {show(value)}: {path} in body should match '{pattern}'",
            )
        ]
    if len(value) > schema.get("maxLength", len(value)):
        return [
            Cause(path, "FieldValueTooLong", f"Too long: may not be more than {schema['maxLength']} bytes")
        ]
    if len(value) < schema.get("minLength", 0):
        return [
            Cause(
                path,
                "FieldValueInvalid",
                f"Invalid value: {show(value)}: {path} in body should be at least {schema['minLength']} chars long",
            )
        ]
    return []


def _of_number(value: float, schema: Schema, path: str) -> list[Cause]:
    limit = {"int32": _INT32, "int64": _INT64}.get(schema.get("format", ""))
    if limit is not None and not -limit <= value < limit:
        text = (
            f"Invalid value: {show(value)}: {path} in body must be of type {schema['format']}: {show(value)}"
        )
        return [Cause(path, "FieldValueInvalid", text)]
    if value < schema.get("minimum", value):
        text = f"Invalid value: {show(value)}: {path} in body should be greater than or equal to {schema['minimum']}"
        return [Cause(path, "FieldValueInvalid", text)]
    if value > schema.get("maximum", value):
        text = f"Invalid value: {show(value)}: {path} in body should be less than or equal to {schema['maximum']}"
        return [Cause(path, "FieldValueInvalid", text)]
    return []
