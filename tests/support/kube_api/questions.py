"""Questions that are put as objects: who am I, what may I."""

from __future__ import annotations

from typing import Any

from kube_api import refusals
from kube_api.kinds import Kind
from kube_api.rbac import Asked, Authorizer, Identity

Raw = dict[str, Any]


def answer_question(authorizer: Authorizer, who: Identity, kind: Kind, body: Raw) -> Raw:
    """The object back, with a status. Raises Refused."""
    spec = body.get("spec") or {}
    match kind.name:
        case "SelfSubjectAccessReview" | "SubjectAccessReview":
            status = _access(authorizer, who, kind, spec)
        case "SelfSubjectRulesReview":
            status = _rules(authorizer, who, spec.get("namespace", ""))
        case "SelfSubjectReview":
            status = {"userInfo": {"username": who.name, "uid": who.uid, "groups": list(who.groups)}}
        case _:
            try:
                found = authorizer.identify(f"Bearer {spec.get('token', '')}")
            except refusals.Refused:
                status = {"authenticated": False, "user": {}, "error": "invalid bearer token"}
            else:
                user = {"username": found.name, "uid": found.uid, "groups": list(found.groups)}
                status = {"authenticated": True, "user": user, "audiences": []}
    return {
        "kind": kind.name,
        "apiVersion": kind.api_version,
        "metadata": {"creationTimestamp": None},
        "spec": spec,
        "status": status,
    }


def _access(authorizer: Authorizer, who: Identity, kind: Kind, spec: Raw) -> Raw:
    if kind.name == "SubjectAccessReview":
        who = Identity(spec.get("user", ""), tuple(spec.get("groups") or ()))
    if "nonResourceAttributes" in spec:
        return {"allowed": True, "reason": 'RBAC: allowed by ClusterRoleBinding "system:discovery"'}
    asked = spec.get("resourceAttributes")
    if asked is None:
        raise refusals.Refused(
            422,
            "Invalid",
            f'{kind.name}.{kind.group} "" is invalid: spec.resourceAttributes: Invalid value: null: exactly one of '
            "nonResourceAttributes or resourceAttributes must be specified",
        )
    resource = asked.get("resource", "")
    if asked.get("subresource"):
        resource = f"{resource}/{asked['subresource']}"
    wish = Asked(
        asked.get("verb", ""),
        asked.get("group", ""),
        resource,
        asked.get("namespace", ""),
        asked.get("name", ""),
    )
    return (
        {"allowed": True, "reason": "RBAC: allowed"} if authorizer.allowed(who, wish) else {"allowed": False}
    )


def _rules(authorizer: Authorizer, who: Identity, namespace: str) -> Raw:
    if not namespace:
        raise refusals.bad_request("no namespace on request")
    found = []
    for rule in authorizer.rules(who, namespace):
        if rule.namespaces and namespace not in rule.namespaces:
            continue
        each: Raw = {
            "verbs": list(rule.verbs),
            "apiGroups": list(rule.groups),
            "resources": list(rule.resources),
        }
        if rule.names:
            each["resourceNames"] = list(rule.names)
        found.append(each)
    urls = ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/readyz", "/version"]
    return {
        "resourceRules": found,
        "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": urls}],
        "incomplete": False,
    }
