"""Clusters: where model servers run, and what they have of GPUs.

Those of the configuration file are registered at every start, with an engine behind them. One of Kubernetes
can be registered here at any time and works at once: who runs the controllers connects to it. A local or
simulated one that is registered here is known and can be given to workspaces; it works once the configuration
file declares it.

A kubeconfig is a secret. It comes in here and goes into the store's table of secrets; nothing else here ever
holds it, and no answer, event or error repeats any of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePath

from inferplane.domain.access import Caller, Role, Verb
from inferplane.domain.cluster import (
    KUBECONFIG_BYTES_MAX,
    ClusterConnection,
    ClusterReport,
    Drift,
    check_ingress,
)
from inferplane.domain.errors import (
    AlreadyExists,
    Conflict,
    InferplaneError,
    Invalid,
    NotFound,
    Problem,
    Unavailable,
)
from inferplane.domain.inventory import node_uses
from inferplane.domain.kubeconfig import check_alone
from inferplane.domain.names import check_name
from inferplane.domain.preflight import Check
from inferplane.domain.workspace import Cluster
from inferplane.engines.clusters import LOOK_SECONDS_MAX
from inferplane.services.context import Platform
from inferplane.services.endpoint_drafts import parse_yaml
from inferplane.services.findings import Findings, check_optional_text
from inferplane.services.trail import difference, entry, facts
from inferplane.store.sql import Tx

KSERVE = "kserve"
NOT_KUBERNETES = ("local", "simulated")
ENGINES = (*NOT_KUBERNETES, KSERVE)
IN_THE_FILE = "Declare it as [[cluster]] in the configuration file and start again."
SHOWN_MAX = 50
CLUSTERS_MAX = 200
LOOK_GRACE_SECONDS = 5.0
"""A link keeps its own limit; this much longer, and it is given up here."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Nodes and GPUs of a cluster; `free` are the GPUs that a new request could have."""

    nodes: int = 0
    gpus: int = 0
    free: int = 0


@dataclass(frozen=True, slots=True)
class ClusterSeen:
    """A cluster, what it has, whether it answers, and what keeps it from being used ("" for nothing).

    `in_detail` says whether the caller may see how it is reached.
    """

    cluster: Cluster
    capacity: Capacity
    reachable: bool
    problem: str
    in_detail: bool = True


@dataclass(frozen=True, slots=True)
class ClusterDraft:
    """What is asked of a cluster; in a change, None leaves a field as it is.

    `kubeconfig` is the text of one, `kubeconfig_ref` a path on the platform's machine. `force` registers a
    cluster of Kubernetes that does not answer.
    """

    name: str
    engine: str = ""
    domain: str | None = None
    ingress_address: str | None = None
    kubeconfig: str | None = None
    kubeconfig_ref: str | None = None
    context: str | None = None
    in_cluster: bool | None = None
    drift: str | None = None
    force: bool = False

    @property
    def speaks_of_kubernetes(self) -> str:
        """The first field that only a cluster of Kubernetes has, or ""."""
        given = {
            "kubeconfig": self.kubeconfig,
            "kubeconfigRef": self.kubeconfig_ref,
            "context": self.context,
            "inCluster": self.in_cluster,
            "drift": self.drift,
            "ingressAddress": self.ingress_address,
        }
        return next((name for name, value in given.items() if value), "")


async def list_clusters(platform: Platform, caller: Caller) -> list[ClusterSeen]:
    """All for an Owner, those of one's workspace otherwise; by name."""
    caller.require(Verb.READ_CLUSTERS)
    async with platform.store.read() as tx:
        clusters = await tx.list_clusters()
        if caller.role is not Role.OWNER:
            mine = (await tx.get_workspace(caller.workspace)).clusters
            clusters = [each for each in clusters if each.name in mine]
        uses = node_uses(await tx.list_nodes(), await tx.list_gpu_requests(live_only=True))
    capacities: dict[str, Capacity] = {}
    for use in uses:
        so_far = capacities.get(use.node.cluster, Capacity())
        capacities[use.node.cluster] = Capacity(
            so_far.nodes + 1, so_far.gpus + use.node.gpu_count, so_far.free + len(use.free)
        )
    return [
        ClusterSeen(
            each,
            capacities.get(each.name, Capacity()),
            is_reachable(platform, each),
            problem_of(platform, each),
            in_detail=caller.role is Role.OWNER,
        )
        for each in clusters
    ]


async def register(
    platform: Platform, caller: Caller, draft: ClusterDraft, *, dry_run: bool = False
) -> ClusterReport | None:
    """Make a cluster known; returns what was found there, None for what is no Kubernetes.

    One of Kubernetes is looked at first, and refused while it does not answer, unless forced. A dry run only
    looks. Raises Invalid with all details, AlreadyExists.
    """
    caller.require(Verb.MANAGE_CLUSTERS)
    if draft.engine != KSERVE:
        cluster = _without_connection(draft, platform)
    else:
        cluster = _with_connection(Cluster(draft.name, KSERVE, platform.clock()), draft, platform)
    kubeconfig = draft.kubeconfig or ""
    async with platform.store.read() as tx:
        await _check_free(tx, draft.name)
    report = None
    if cluster.connection is not None:
        report = await _look(platform, cluster, kubeconfig)
        if not (dry_run or draft.force):
            _check_reached(report)
    if dry_run:
        return report
    async with platform.store.transaction() as tx:
        await _check_free(tx, draft.name)
        await tx.put_cluster(cluster)
        await _keep(tx, cluster, kubeconfig, report)
        await tx.append_event(
            entry(
                cluster.created_at,
                caller,
                "ClusterRegistered",
                f"cluster {draft.name} was registered",
                after=facts(cluster),
            )
        )
    platform.links.changed(draft.name)
    return report


async def change(platform: Platform, caller: Caller, draft: ClusterDraft) -> ClusterReport:
    """Other credentials, domain, ingress or drift for a cluster of Kubernetes; what is not given stays.

    Raises NotFound, Invalid, Conflict for one that the configuration file declares.
    """
    caller.require(Verb.MANAGE_CLUSTERS)
    async with platform.store.read() as tx:
        present = await find(tx, draft.name)
        kubeconfig = kept = await tx.cluster_kubeconfig(draft.name)
    if present.engine != KSERVE or present.connection is None:
        raise Invalid(
            f"cluster {draft.name} is no cluster of Kubernetes that was registered here",
            reason="NotKubernetes",
            field="name",
        )
    if present.connection.declared:
        raise _declared(draft.name)
    wanted = _with_connection(present, draft, platform)
    assert wanted.connection is not None
    if not wanted.connection.is_handed_over:
        kubeconfig = ""
    elif draft.kubeconfig:
        kubeconfig = draft.kubeconfig
    elif draft.context:
        _check_kubeconfig(kubeconfig, draft.context)
    report = await _look(platform, wanted, kubeconfig)
    if not draft.force:
        _check_reached(report)
    async with platform.store.transaction() as tx:
        now_there = await find(tx, draft.name)
        as_before = replace(now_there, report=None) == replace(present, report=None)
        if not as_before or await tx.cluster_kubeconfig(draft.name) != kept:
            # The look took seconds. Written over it, another's new credentials would be the old ones again.
            raise Conflict(
                f"cluster {draft.name} was changed meanwhile by somebody else",
                reason="ChangedMeanwhile",
                field="name",
                next_action="Look at it, and change it again.",
            )
        await tx.put_cluster(wanted)
        await _keep(tx, wanted, kubeconfig, report)
        before, after = difference(replace(present, report=None), replace(wanted, report=None))
        await tx.append_event(
            entry(
                platform.clock(),
                caller,
                "ClusterChanged",
                f"cluster {draft.name} was changed{', with another kubeconfig' if draft.kubeconfig else ''}",
                before=before,
                after=after,
            )
        )
    platform.links.changed(draft.name)
    return report


async def check(platform: Platform, caller: Caller, name: str) -> ClusterReport:
    """Look at a registered cluster of Kubernetes now; what is found is kept. Raises NotFound, Invalid."""
    caller.require(Verb.MANAGE_CLUSTERS)
    async with platform.store.read() as tx:
        cluster = await find(tx, name)
        kubeconfig = await tx.cluster_kubeconfig(name)
    if cluster.connection is None:
        raise Invalid(
            f"cluster {name} is no Kubernetes cluster (its engine is {cluster.engine}), so there is nothing to check",
            reason="NotKubernetes",
            field="name",
            next_action="Whether it can be used, the list of clusters says.",
        )
    report = (await _look(platform, cluster, kubeconfig)).after(cluster.report)
    async with platform.store.transaction(durable=False) as tx:
        await tx.save_cluster_report(name, report)
    platform.links.changed(name)
    return report


async def unregister(platform: Platform, caller: Caller, name: str) -> None:
    """Forget a cluster that nobody uses. What runs on it runs on. Raises NotFound, Conflict."""
    caller.require(Verb.MANAGE_CLUSTERS)
    async with platform.store.transaction() as tx:
        present = await find(tx, name)
        registered_here = present.connection is not None and not present.connection.declared
        if name in platform.engines and not registered_here:
            raise _declared(name)
        using = [each.name for each in await tx.list_workspaces() if name in each.clusters]
        if using:
            raise Conflict(
                f"cluster {name} is used by workspaces: {', '.join(using[:SHOWN_MAX])}",
                reason="ClusterInUse",
                field="name",
                next_action="Take it from them first.",
                details=tuple(
                    Problem("workspaceName", "UsesCluster", f"workspace {each} uses it")
                    for each in using[:SHOWN_MAX]
                ),
            )
        await tx.delete_cluster(name)
        await tx.append_event(
            entry(
                platform.clock(),
                caller,
                "ClusterDeleted",
                f"cluster {name} was forgotten",
                before=facts(replace(present, report=None)),
            )
        )
    platform.links.changed(name)


async def find(tx: Tx, name: str) -> Cluster:
    """A registered cluster. Raises NotFound."""
    for each in await tx.list_clusters():
        if each.name == name:
            return each
    raise NotFound(f"cluster {name[:80]} is not registered", reason="ClusterNotFound", field="name")


def problem_of(platform: Platform, cluster: Cluster) -> str:
    """What keeps the cluster from being used, or ""."""
    if cluster.connection is not None:
        report = cluster.report
        if report is None:
            return f"cluster {cluster.name} has not been looked at yet"
        if not report.reachable:
            return f"not reachable since {report.since:%Y-%m-%d %H:%M:%SZ}: {report.message}"
        return "; ".join(each.message for each in report.problems)
    if cluster.name in platform.engines:
        return ""
    return f"no engine is running for cluster {cluster.name}. {IN_THE_FILE}"


def is_reachable(platform: Platform, cluster: Cluster) -> bool:
    """Whether the cluster answers, as of the last look; for what is no Kubernetes, whether it has an engine."""
    if cluster.connection is not None:
        return cluster.report is not None and cluster.report.reachable
    return cluster.name in platform.engines


# --- what is asked for --------------------------------------------------------------------------------


def _without_connection(draft: ClusterDraft, platform: Platform) -> Cluster:
    """Raises Invalid."""
    findings = Findings()
    _check_plain(findings, draft, platform)
    if draft.engine not in ENGINES:
        findings.add(
            f"“{draft.engine[:40]}” is no engine",
            field="engine",
            reason="UnknownEngine",
            next_action=f"Use one of {', '.join(ENGINES)}.",
        )
    elif stray := draft.speaks_of_kubernetes:
        findings.add(
            f"{stray} is only for clusters of Kubernetes",
            field=stray,
            reason="NotKubernetes",
            next_action=f"Leave it out, or register the cluster with engine {KSERVE}.",
        )
    findings.raise_any()
    return Cluster(draft.name, draft.engine, platform.clock(), (draft.domain or "").strip())


def _with_connection(present: Cluster, draft: ClusterDraft, platform: Platform) -> Cluster:
    """`present` as the draft wants it. Raises Invalid."""
    findings = Findings()
    _check_plain(findings, draft, platform)
    before = present.connection
    sources = [
        name
        for name, given in (
            ("kubeconfig", draft.kubeconfig),
            ("kubeconfigRef", draft.kubeconfig_ref),
            ("inCluster", draft.in_cluster),
        )
        if given
    ]
    if len(sources) > 1 or (not sources and before is None):
        findings.add(
            f"{' and '.join(sources)} are given; one of them is needed"
            if sources
            else "a cluster of Kubernetes needs a kubeconfig",
            field=sources[1] if sources else "kubeconfig",
            reason="ConnectionAmbiguous" if sources else "Missing",
            next_action="Give kubeconfig (its text), kubeconfigRef (a path on the platform's machine) or inCluster: true.",
        )
    context = (draft.context or "").strip()
    if draft.kubeconfig:
        context = findings.check(_check_kubeconfig, draft.kubeconfig, context) or ""
    reference = (draft.kubeconfig_ref or "").strip()
    if reference and not PurePath(reference).is_absolute():
        findings.add(
            "kubeconfigRef must be an absolute path on the platform's machine",
            field="kubeconfigRef",
            reason="InvalidPath",
        )
    ingress = findings.check(check_ingress, draft.ingress_address or "", "ingressAddress") or ""
    if draft.drift and draft.drift not in tuple(Drift):
        findings.add(
            f"“{draft.drift[:40]}” says nothing of drift",
            field="drift",
            reason="UnknownDrift",
            next_action=f"Use one of {', '.join(Drift)}.",
        )
    findings.raise_any()
    drift = Drift(draft.drift) if draft.drift else (before.drift if before is not None else Drift.RESTORE)
    if sources:
        connection = ClusterConnection(reference, context, bool(draft.in_cluster), drift)
    else:
        assert before is not None
        connection = replace(before, drift=drift, context=context or before.context)
    return replace(
        present,
        domain=present.domain if draft.domain is None else draft.domain.strip(),
        ingress_address=present.ingress_address if draft.ingress_address is None else ingress,
        connection=connection,
    )


def _check_plain(findings: Findings, draft: ClusterDraft, platform: Platform) -> None:
    characters_max = platform.limits.text_characters_max
    findings.check(check_name, draft.name, "name")
    for text, field in (
        (draft.domain, "domain"),
        (draft.context, "context"),
        (draft.kubeconfig_ref, "kubeconfigRef"),
    ):
        findings.check(check_optional_text, text or "", field, characters_max)


def _check_kubeconfig(text: str, context: str) -> str:
    """The name of the context that is meant. Raises Invalid, which repeats nothing of the text."""
    if len(text.encode("utf-8", "replace")) > KUBECONFIG_BYTES_MAX:
        raise Invalid(
            f"the kubeconfig is larger than {KUBECONFIG_BYTES_MAX} bytes",
            reason="TooLong",
            field="kubeconfig",
        )
    try:
        config = parse_yaml(text, "kubeconfig", KUBECONFIG_BYTES_MAX)
    except InferplaneError:
        config = None  # an error of the parser would quote the text
    return check_alone(config, context)


async def _check_free(tx: Tx, name: str) -> None:
    known = {each.name for each in await tx.list_clusters()}
    if name in known:
        raise AlreadyExists(
            f"cluster {name} is registered already",
            reason="ClusterExists",
            field="name",
            next_action="Change it, or give the new one another name.",
        )
    if len(known) >= CLUSTERS_MAX:
        raise Conflict(f"there are {CLUSTERS_MAX} clusters already", reason="TooManyClusters", field="name")


def _declared(name: str) -> Conflict:
    return Conflict(
        f"an engine is running for cluster {name}, which the configuration file declares",
        reason="ClusterDeclared",
        field="name",
        next_action="Take it out of the configuration file, start again, then delete it.",
    )


# --- what is found ------------------------------------------------------------------------------------


async def _look(platform: Platform, cluster: Cluster, kubeconfig: str) -> ClusterReport:
    """Raises Invalid for credentials that cannot be meant, Unavailable when nobody can look."""
    try:
        async with asyncio.timeout(LOOK_SECONDS_MAX + LOOK_GRACE_SECONDS):
            return await platform.links.try_out(cluster, kubeconfig)
    except TimeoutError as error:
        raise Unavailable(
            f"cluster {cluster.name} could not be looked at within {LOOK_SECONDS_MAX:g} seconds",
            reason="ClusterUnreachable",
        ) from error


def _check_reached(report: ClusterReport) -> None:
    """Raises Invalid for a cluster that does not answer, or does not know the credentials."""
    if report.reachable:
        return
    first = next(iter(report.problems), None)
    raise Invalid(
        f"the cluster cannot be used: {report.message}",
        reason=(
            first.reason.value if first is not None and first.reason is not None else "ClusterUnreachable"
        ),
        field="kubeconfig",
        next_action=(first.next_action if first is not None else "")
        or "Mend it, or register it as it is with force: true.",
        details=_details(report.problems),
    )


def _details(problems: Iterable[Check]) -> tuple[Problem, ...]:
    return tuple(
        Problem(each.check, each.reason.value if each.reason else "", each.message) for each in problems
    )


async def _keep(tx: Tx, cluster: Cluster, kubeconfig: str, report: ClusterReport | None) -> None:
    if cluster.connection is not None:
        await tx.put_cluster_kubeconfig(cluster.name, kubeconfig if cluster.connection.is_handed_over else "")
    if report is not None:
        await tx.save_cluster_report(cluster.name, report)
