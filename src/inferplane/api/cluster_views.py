"""Clusters as callers see them. Pure; how one is reached is told to Owners only."""

from __future__ import annotations

from inferplane.domain.cluster import ClusterReport
from inferplane.domain.workspace import Cluster
from inferplane.services.clusters import ClusterSeen
from inferplane.services.context import GatewayAddress
from inferplane.wire.endpoints import CheckItem
from inferplane.wire.workspaces import ClusterCapacity, ClusterItem, ClusterReportItem


def cluster_item(seen: ClusterSeen, gateway: GatewayAddress, version: str) -> ClusterItem:
    """A cluster as listed. What is no Kubernetes has the platform's gateway, and engines of our version."""
    cluster, capacity = seen.cluster, seen.capacity
    connection, told = cluster.connection, seen.in_detail
    on_kubernetes = connection is not None
    return ClusterItem(
        name=cluster.name,
        engine=cluster.engine,
        domain=cluster.domain or ("" if on_kubernetes else gateway.domain),
        ingress_address=cluster.ingress_address or ("" if on_kubernetes else gateway.advertised_host),
        reachable=seen.reachable,
        message=seen.problem if told or not on_kubernetes or not seen.reachable else "",
        engine_version=_version(cluster) if on_kubernetes else (version if seen.reachable else ""),
        capacity=ClusterCapacity(capacity.nodes, capacity.gpus, capacity.free),
        created_at=cluster.created_at,
        connection=connection.source if connection is not None and told else "",
        drift=connection.drift.value if connection is not None and told else "",
        report=report_item(cluster.report) if told else None,
    )


def report_item(report: ClusterReport | None) -> ClusterReportItem | None:
    """What was found, or None."""
    if report is None:
        return None
    return ClusterReportItem(
        reachable=report.reachable,
        checked_at=report.at,
        since=report.since,
        message=report.message,
        server=report.server,
        version=report.version,
        kserve_version=report.kserve_version,
        kserve_mode=report.kserve_mode,
        runtimes=report.runtimes,
        checks=tuple(
            CheckItem(
                each.check,
                each.ok,
                each.reason.value if each.reason is not None else "",
                each.message,
                each.next_action,
            )
            for each in report.checks
        ),
    )


def _version(cluster: Cluster) -> str:
    """`Kubernetes v1.36.2, KServe v0.20.0 (Standard)`, as far as it is known."""
    report = cluster.report
    if report is None:
        return ""
    kserve = " ".join(part for part in ("KServe", report.kserve_version) if part)
    mode = f" ({report.kserve_mode})" if report.kserve_mode else ""
    known = bool(report.kserve_version or report.kserve_mode)
    return ", ".join(
        part
        for part in (
            f"Kubernetes {report.version}" if report.version else "",
            f"{kserve}{mode}" if known else "",
        )
        if part
    )
