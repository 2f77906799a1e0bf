"""Workspaces, and the clusters they may use. *Workspace* = *slice workspace* = `sliceName`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Workspace:
    """A tenant: who shares endpoints, and on which clusters. `namespaces` are Kubernetes' own."""

    name: str
    clusters: tuple[str, ...]
    created_at: datetime
    namespaces: tuple[str, ...] = ()
    username: str = ""
    email: str = ""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where model servers run. `engine` is `local`, `kserve` or `simulated`."""

    name: str
    engine: str
    created_at: datetime
    domain: str = ""
