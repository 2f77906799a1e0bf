"""What an endpoint may not ask for on a cluster of Kubernetes, because only our gateway could do it. Pure.

There requests come through the cluster's own ingress. To accept a limit that nobody keeps, or a key that nobody asks
for, would be a promise that is not kept; so it is refused, with what to do instead.
"""

from __future__ import annotations

from collections.abc import Iterable

from inferplane.domain.endpoint import EndpointSpec, Scaling
from inferplane.domain.endpoint_access import Access
from inferplane.domain.workspace import Cluster
from inferplane.services.findings import Findings

KSERVE = "kserve"
NOT_THERE = "NotOnKubernetes"
_LOCAL_ONLY = "local engine"
_THERE = "requests to cluster {} come through its own ingress"


def check_on_kubernetes(spec: EndpointSpec, cluster: Cluster) -> None:
    """Raise Invalid with everything that cannot be had there; of other clusters nothing is said."""
    if cluster.engine != KSERVE:
        return
    there = _THERE.format(cluster.name)
    findings = Findings()
    if spec.access is Access.KEY:
        findings.add(
            f"{there}, where nobody asks for endpoint keys",
            field="access",
            reason=NOT_THERE,
            next_action="Say access: open, and have the cluster's ingress authenticate who asks.",
        )
    if spec.scaling.sleeps:
        findings.add(
            f"{there}, where nobody would wake an endpoint that sleeps",
            field="autoscaling.minReplicas",
            reason=NOT_THERE,
            next_action="Ask for one replica at least, or stop the endpoint while nobody needs it.",
        )
    limits = spec.limits
    for name, limit in (
        ("requestsPerSecond", limits.requests_per_second),
        ("burst", limits.burst),
        ("requestsPerSecondPerKey", limits.requests_per_second_per_key),
        ("concurrencyMax", limits.concurrency_max),
        ("concurrencyMaxPerKey", limits.concurrency_max_per_key),
    ):
        if limit is not None:
            findings.add(
                f"{there}, where nobody keeps limits.{name}",
                field=f"limits.{name}",
                reason=NOT_THERE,
                next_action="Leave it out, and set limits at the cluster's ingress.",
            )
    rollout = spec.rollout
    if rollout is not None and (rollout.is_gradual or rollout.sticky_header):
        findings.add(
            f"{there}, which gives all requests to one revision: no share, no copies",
            field="canary",
            reason=NOT_THERE,
            next_action="Leave canary out: the new revision takes over pod by pod once it answers.",
        )
    findings.raise_any()


def warnings_on(cluster: Cluster, warnings: Iterable[str], scaling: Scaling | None = None) -> list[str]:
    """Those that are true there: what has no effect on the local engine has one in a cluster of Kubernetes.

    And the other way round: of `scaling` a cluster keeps the bounds, and no target of ours.
    """
    if cluster.engine != KSERVE:
        return list(warnings)
    said = [each for each in warnings if _LOCAL_ONLY not in each]
    targets = (
        ("targetConcurrency", None if scaling is None else scaling.target_concurrency),
        ("targetRate", None if scaling is None else scaling.target_rate),
    )
    said += [
        f"autoscaling.{name} has no effect on cluster {cluster.name}: "
        "it chooses the number between minReplicas and maxReplicas by its own measure, usually CPU"
        for name, target in targets
        if target is not None
    ]
    return said
