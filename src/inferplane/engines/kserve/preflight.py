"""What would happen to an endpoint on this cluster: permission, runtime, GPUs, as the cluster says now.

Asking is `preflight`'s; what the answers mean is decided by `runtime_check` and `gpu_check`, which are pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from inferplane.domain.endpoint import InferenceEndpoint
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.domain.runtime import CUSTOM_FORMAT
from inferplane.engines.kserve.client import INFERENCE_SERVICE, NAMESPACE, Kind, KubeClient
from inferplane.engines.kserve.http_api import ApiError
from inferplane.engines.kserve.manifests import service_name
from inferplane.engines.kserve.nodes import nodes_of
from inferplane.engines.kserve.raw import items, mapping, name, text

Raw = Mapping[str, Any]

RUNTIMES = "/apis/serving.kserve.io/v1alpha1/clusterservingruntimes"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
NODES = "/api/v1/nodes"
RUNTIMES_SHOWN_MAX = 8
_NEEDED = (
    (NAMESPACE, "create"),
    (NAMESPACE, "patch"),
    (INFERENCE_SERVICE, "create"),
    (INFERENCE_SERVICE, "patch"),
)


async def preflight(client: KubeClient, endpoint: InferenceEndpoint) -> tuple[Check, ...]:
    """The checks, in the order in which a start would run into them. Raises ApiError where nobody answers."""
    checks = [
        Check("cluster", ok=True, reason=None, message=f"the API server at {client.server} answers"),
        await _permissions(client),
    ]
    model = endpoint.spec.model
    if model.format != CUSTOM_FORMAT:
        runtimes = await _listed(client, RUNTIMES)
        if runtimes is not None:
            checks.append(
                runtime_check(runtimes, model.format, runtime=model.runtime, protocol=_protocol(endpoint))
            )
    if endpoint.spec.gpu is not None:
        nodes = await _listed(client, NODES)
        if nodes is not None:
            checks.append(gpu_check(nodes, endpoint.spec.gpu.selection.gpus_per_node))
    called = service_name(endpoint)
    if called != endpoint.name:
        message = (
            f"the InferenceService is called {called}, because KServe cannot make a host of {endpoint.name}"
        )
        checks.append(Check("name", ok=True, reason=None, message=message))
    return tuple(checks)


def runtime_check(
    runtimes: Iterable[Raw], model_format: str, *, runtime: str = "", protocol: str = ""
) -> Check:
    """Whether a runtime of the cluster serves the format; the named one, where one is named."""
    refusals, fitting, known = [], [], []
    for each in sorted(runtimes, key=name):
        spec = mapping(each, "spec")
        known.append(name(each))
        if runtime and name(each) != runtime:
            continue
        formats = items(spec, "supportedModelFormats")
        mine = [one for one in formats if text(one, "name") == model_format]
        protocols = spec.get("protocolVersions")
        if spec.get("disabled") is True:
            why = "is disabled"
        elif not mine:
            why = f"does not serve {model_format}"
        elif protocol and isinstance(protocols, list) and protocols and protocol not in protocols:
            why = f"speaks {', '.join(str(one) for one in protocols)}, not {protocol}"
        elif not runtime and not any(one.get("autoSelect") is True for one in mine):
            why = "is not chosen by itself (autoSelect); name it as the runtime"
        else:
            fitting.append(name(each))
            continue
        if mine or runtime:
            refusals.append(f"{name(each)} {why}")
    if fitting:
        return Check("runtime", ok=True, reason=None, message=f"{fitting[0]} serves {model_format}")
    if runtime and runtime not in known:
        said = f"the cluster has no ClusterServingRuntime {runtime}"
    elif refusals:
        said = "no runtime fits: " + "; ".join(refusals[:RUNTIMES_SHOWN_MAX])
    else:
        said = f"no ClusterServingRuntime of the cluster serves {model_format}"
    code = ReasonCode.NO_RUNTIME
    return Check("runtime", ok=False, reason=code, message=said, next_action=reason_of(code).next_action)


def gpu_check(nodes: Iterable[Raw], gpus_per_node: int) -> Check:
    """Whether any machine has so many GPUs at all; who uses them is the inventory's business."""
    usable = [each for each in nodes_of("", nodes) if each.schedulable]
    most = max((each.gpu_count for each in usable), default=0)
    if most >= gpus_per_node:
        return Check("capacity", ok=True, reason=None, message=f"a node has {most} GPUs")
    code = ReasonCode.AWAITING_GPU
    said = f"{gpus_per_node} GPUs are asked for on one node, and the cluster's largest usable one has {most}"
    return Check("capacity", ok=False, reason=code, message=said, next_action=reason_of(code).next_action)


def _protocol(endpoint: InferenceEndpoint) -> str:
    protocol = endpoint.spec.model.protocol_version
    return "" if protocol == "v1" else protocol  # v1 is what is meant where nothing is said


async def _permissions(client: KubeClient) -> Check:
    missing = [f"{verb} {kind.plural}" for kind, verb in _NEEDED if not await _may(client, kind, verb)]
    if not missing:
        return Check("permissions", ok=True, reason=None, message="endpoints may be created")
    code = ReasonCode.CLUSTER_FORBIDDEN
    said = f"the platform's credentials may not: {', '.join(missing)}"
    return Check("permissions", ok=False, reason=code, message=said, next_action=reason_of(code).next_action)


async def _may(client: KubeClient, kind: Kind, verb: str) -> bool:
    attributes = {"group": kind.group, "resource": kind.plural, "verb": verb}
    answer = await client.call(
        "POST",
        REVIEWS,
        {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        },
    )
    return mapping(answer, "status").get("allowed") is True


async def _listed(client: KubeClient, path: str) -> list[Raw] | None:
    """None where it may not be seen, or does not exist."""
    found: list[Raw] = []
    try:
        async for page, _ in client.pages(path):
            found += page
    except ApiError as error:
        if error.status in (403, 404):
            return None
        raise
    return found
