"""What a workspace's own kubeconfig is made of: manifests in the cluster, and the file itself. Pure.

Where several installations share a cluster, each has its own. A workspace has a namespace of its own for this (`home_of`), in which its two service accounts live: one that may
only read, one that may change InferenceServices. A Role and a RoleBinding in each of the workspace's namespaces say
so, and nothing says anything about any other namespace. Deleting the home ends every token at once.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from inferplane.engines.kserve.permissions import RBAC, WORKSPACE_READS, WORKSPACE_WRITES, rules_of

Manifest = dict[str, Any]

MANAGED_BY = {"app.kubernetes.io/managed-by": "inferplane"}
WORKSPACE_LABEL = "inferplane.io/workspace"
ACCESS_LABEL = "inferplane.io/workspace-access"
"""On homes, Roles and RoleBindings of this page, so that they are found again."""

INSTALLATION_LABEL = "inferplane.io/installation"
HOME_PREFIX = "inferplane-ws-"
NAME_CHARACTERS_MAX = 63
TOKEN_SECONDS_MIN = 600
"""Kubernetes refuses shorter ones."""


def home_of(workspace: str, installation: str = "") -> str:
    """The namespace in which the workspace's service accounts live; a long name is cut and made unique again."""
    name = HOME_PREFIX + (f"{installation}-" if installation else "") + workspace
    if len(name) <= NAME_CHARACTERS_MAX:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
    return f"{name[: NAME_CHARACTERS_MAX - 9]}-{digest}"


def account_of(workspace: str, installation: str = "", *, may_write: bool) -> str:
    """The service account, and what its Roles and RoleBindings are called: several workspaces may share a namespace."""
    digest = hashlib.blake2b(f"{installation}/{workspace}".encode(), digest_size=4).hexdigest()
    return f"inferplane-{'writer' if may_write else 'reader'}-{digest}"


def home(workspace: str, installation: str = "") -> Manifest:
    """The workspace's own namespace."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": home_of(workspace, installation), "labels": _labels(workspace, installation)},
    }


def namespace(name: str, workspace: str) -> Manifest:
    """A namespace that the workspace names and that is not there yet."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {**MANAGED_BY, WORKSPACE_LABEL: workspace}},
    }


def account(workspace: str, installation: str = "", *, may_write: bool) -> Manifest:
    """The service account, which mounts no token into pods."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {
            "name": account_of(workspace, installation, may_write=may_write),
            "namespace": home_of(workspace, installation),
            "labels": _labels(workspace, installation),
        },
        "automountServiceAccountToken": False,
    }


def grants(workspace: str, namespace: str, installation: str = "", *, may_write: bool) -> list[Manifest]:
    """The Role and the RoleBinding in one namespace."""
    name = account_of(workspace, installation, may_write=may_write)
    metadata = {"name": name, "namespace": namespace, "labels": _labels(workspace, installation)}
    return [
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "Role",
            "metadata": dict(metadata),
            "rules": rules_of(WORKSPACE_WRITES if may_write else WORKSPACE_READS),
        },
        {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": dict(metadata),
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
            "subjects": [
                {"kind": "ServiceAccount", "name": name, "namespace": home_of(workspace, installation)}
            ],
        },
    ]


def token_request(seconds: int) -> Manifest:
    """A token that ends by itself."""
    return {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {"expirationSeconds": max(TOKEN_SECONDS_MIN, seconds)},
    }


def kubeconfig(
    cluster: str, workspace: str, *, server: str, authority: bytes, token: str, namespace: str
) -> Manifest:
    """A kubeconfig of one context. `authority` (PEM) is what the server is known by, b"" for the usual ones."""
    user = f"{workspace}@{cluster}"
    where: dict[str, str] = {"server": server}
    if authority:
        where["certificate-authority-data"] = b64encode(authority).decode()
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": where}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": user, "context": {"cluster": cluster, "user": user, "namespace": namespace}}],
        "current-context": user,
    }


def workspace_of(raw: Mapping[str, Any], installation: str = "") -> str:
    """The workspace of this installation that something of this page belongs to, "" for anything else."""
    metadata = raw.get("metadata")
    labels = metadata.get("labels") if isinstance(metadata, Mapping) else None
    if not isinstance(labels, Mapping) or labels.get(INSTALLATION_LABEL, "") != installation:
        return ""
    value = labels.get(ACCESS_LABEL)
    return value if isinstance(value, str) else ""


def _labels(workspace: str, installation: str) -> dict[str, str]:
    whose = {INSTALLATION_LABEL: installation} if installation else {}
    return {**MANAGED_BY, WORKSPACE_LABEL: workspace, ACCESS_LABEL: workspace, **whose}
