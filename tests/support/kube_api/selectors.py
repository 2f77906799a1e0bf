"""Label and field selectors as lists and watches take them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from kube_api.kinds import Kind
from kube_api.refusals import bad_request

Matches = Callable[[Mapping[str, Any]], bool]

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "Pod": (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "status.phase",
    ),
    "Event": (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    "Secret": ("type",),
    "Namespace": ("status.phase",),
    "Node": ("spec.unschedulable",),
}


def label_selector(text: str) -> Matches:
    """`a=b,c!=d,e in (f,g),h,!i`. Raises Refused (400)."""
    terms = [each.strip() for each in re.split(r",(?![^()]*\))", text) if each.strip()]
    tests = [_label_term(each) for each in terms]

    def matches(object: Mapping[str, Any]) -> bool:
        labels = object["metadata"].get("labels") or {}
        return all(test(labels) for test in tests)

    return matches


def _label_term(term: str) -> Callable[[Mapping[str, str]], bool]:
    if found := re.fullmatch(r"([^\s!=(),]+)\s+(in|notin)\s+\(([^()]*)\)", term):
        key, operator, rest = found.groups()
        values = {each.strip() for each in rest.split(",")}
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := re.fullmatch(r"([^\s!=(),]+)\s*(==|=|!=)\s*([^\s!=(),]*)", term):
        key, operator, value = found.groups()
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := re.fullmatch(r"!\s*([^\s!=(),]+)", term):
        missing = found[1]
        return lambda labels: missing not in labels
    if re.fullmatch(r"[^\s!=(),]+", term):
        return lambda labels: term in labels
    raise bad_request(
        f"unable to parse requirement: found \"{term}\", expected: !, identifier, or 'end of string'"
    )


def field_selector(kind: Kind, text: str) -> Matches:
    """`metadata.name=a,status.phase!=Running`. Raises Refused (400) for fields that the kind cannot be asked by."""
    tests: list[Matches] = []
    for term in filter(None, (each.strip() for each in text.split(","))):
        found = re.fullmatch(r"([^=!]+)(==|=|!=)(.*)", term)
        if found is None:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{term}'")
        path, operator, value = found.groups()
        if path not in ("metadata.name", "metadata.namespace", *_FIELDS.get(kind.name, ())):
            raise bad_request(f"field label not supported: {path}")
        tests.append(_field_test(path, value, equal=operator != "!="))
    return lambda found: all(test(found) for test in tests)


def _field_test(path: str, value: str, *, equal: bool) -> Matches:
    def matches(object: Mapping[str, Any]) -> bool:
        at: Any = object
        for part in path.split("."):
            at = at.get(part) if isinstance(at, Mapping) else None
        text = "" if at is None else str(at).lower() if isinstance(at, bool) else str(at)
        return (text == value) is equal

    return matches


def name_asked_for(text: str) -> str:
    """The name, where a field selector picks one object by it: permissions by name cover such lists."""
    found = re.search(r"(?:^|,)metadata\.name==?([^,]+)", text)
    return found[1] if found else ""
