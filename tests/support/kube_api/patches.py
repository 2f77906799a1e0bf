"""The three patches that say what to change (the fourth, apply, is in `fields`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from kube_api.refusals import bad_request

Raw = dict[str, Any]

MERGE = "application/merge-patch+json"
JSON = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"

_MERGE_KEYS: Mapping[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "secrets": "name",
    "conditions": "type",
    "ownerReferences": "uid",
    "ports": "containerPort",
}


def merge(live: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return deepcopy(patch)
    result = dict(live) if isinstance(live, dict) else {}
    for name, each in patch.items():
        if each is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), each)
    return result


def strategic(live: Any, patch: Any, field: str = "") -> Any:
    """Strategic merge patch of a built-in kind: as merge, but known lists are merged by their items' key."""
    if isinstance(patch, dict):
        if patch.get("$patch") == "replace":
            return {name: each for name, each in patch.items() if name != "$patch"}
        result = dict(live) if isinstance(live, dict) else {}
        for name, each in patch.items():
            if each is None or (isinstance(each, dict) and each.get("$patch") == "delete"):
                result.pop(name, None)
            elif not name.startswith("$"):
                result[name] = strategic(result.get(name), each, name)
        return result
    if isinstance(patch, list) and isinstance(live, list) and field in _MERGE_KEYS:
        key = _MERGE_KEYS[field]
        items = list(live)
        for each in patch:
            index = next((at for at, item in enumerate(items) if item.get(key) == each.get(key)), None)
            if each.get("$patch") == "delete":
                if index is not None:
                    del items[index]
            elif index is None:
                items.append(each)
            else:
                items[index] = strategic(items[index], each)
        return items
    if isinstance(patch, list) and isinstance(live, list) and field == "finalizers":
        return [*live, *(each for each in patch if each not in live)]
    return deepcopy(patch)


def json_patch(live: Raw, operations: Any) -> Any:
    """JSON patch (RFC 6902). Raises Refused (400, 422 for a test that fails)."""
    if not isinstance(operations, list):
        raise bad_request(
            "error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch"
        )
    result: Any = deepcopy(live)
    for operation in operations:
        result = _operate(result, operation)
    return result


def _operate(document: Any, operation: Mapping[str, Any]) -> Any:
    what, path = operation.get("op"), operation.get("path", "")
    if what in ("copy", "move"):
        value = deepcopy(_at(document, operation["from"]))
        if what == "move":
            document = _operate(document, {"op": "remove", "path": operation["from"]})
        return _operate(document, {"op": "add", "path": path, "value": value})
    if what == "test":
        if _at(document, path) != operation.get("value"):
            raise bad_request(f"testing path {path}: test failed")
        return document
    parent_path, _, last = path.rpartition("/")
    key = last.replace("~1", "/").replace("~0", "~")
    parent = _at(document, parent_path)
    if isinstance(parent, list):
        index = len(parent) if key == "-" else int(key)
        if what == "add":
            parent.insert(index, operation["value"])
        elif what == "replace":
            parent[index] = operation["value"]
        else:
            del parent[index]
    elif what in ("add", "replace"):
        parent[key] = operation["value"]
    elif what == "remove":
        if key not in parent:
            raise bad_request(f"remove operation does not apply: doc is missing path: {json.dumps(path)}")
        del parent[key]
    else:
        raise bad_request(f"Unexpected kind: {what}")
    return document


def _at(document: Any, path: str) -> Any:
    at = document
    for part in path.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        try:
            at = at[int(key)] if isinstance(at, list) else at[key]
        except (KeyError, IndexError, ValueError, TypeError):
            raise bad_request(f"the document is missing path: {json.dumps(path)}") from None
    return at
