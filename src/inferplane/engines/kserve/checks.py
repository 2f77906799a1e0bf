"""What a look at a cluster found, put into words. Pure: answers of the API server in, checks out.

Whoever asks the API server (`link.py`) hands over what it answered; an answer that did not come is None. What is
said names what is missing in Kubernetes' own words (verb, resource), and what to do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.engines.kserve.nodes import nodes_of
from inferplane.engines.kserve.permissions import Permission
from inferplane.engines.kserve.raw import Raw, items, mapping, whole

CONFIG_NAME = "inferenceservice-config"
CONFIG_NAMESPACES = ("kserve", "opendatahub", "redhat-ods-applications")
"""Where KServe keeps its settings, by who installed it."""
CONTROLLER = "kserve-controller-manager"
MISSING_SHOWN_MAX = 12
RUNTIMES_SHOWN_MAX = 30
STANDARD_MODES = {"RawDeployment": "Standard", "Serverless": "Knative"}
"""KServe's older words for its modes."""
_VERSION = re.compile(r":(v?\d+\.\d+[^@:]*)(@.*)?$")


@dataclass(frozen=True, slots=True)
class KServeSettings:
    """What the cluster's KServe is set to. Unknown is ""."""

    namespace: str = ""
    version: str = ""
    mode: str = ""
    ingress_domain: str = ""
    makes_ingresses: bool = True


def settings_of(config: Raw | None) -> KServeSettings:
    """KServe's ConfigMap, or nothing known."""
    if config is None:
        return KServeSettings()
    data, metadata = mapping(config, "data"), mapping(config, "metadata")
    deploy, ingress = _json(data, "deploy"), _json(data, "ingress")
    mode = str(deploy.get("defaultDeploymentMode") or "")
    images = [_json(data, part).get("image") for part in ("storageInitializer", "agent", "router")]
    versions = [found[1] for each in images if isinstance(each, str) and (found := _VERSION.search(each))]
    return KServeSettings(
        namespace=str(metadata.get("namespace") or ""),
        version=versions[0] if versions else "",
        mode=STANDARD_MODES.get(mode, mode),
        ingress_domain=str(ingress.get("ingressDomain") or ""),
        makes_ingresses=ingress.get("disableIngressCreation") is not True,
    )


def permissions_check(answers: Mapping[Permission, bool]) -> Check:
    """What may be done, as the API server answered for each."""
    missing = sorted(each for each, allowed in answers.items() if not allowed and not each.optional)
    optional = sorted(each for each, allowed in answers.items() if not allowed and each.optional)
    if missing:
        return Check(
            "permissions",
            ok=False,
            reason=ReasonCode.CLUSTER_FORBIDDEN,
            message=f"the credentials may not: {_listed(missing)}",
            next_action="Bind a ClusterRole with these rules to the user or service account of the kubeconfig.",
        )
    if optional:
        return Check(
            "permissions",
            ok=True,
            reason=None,
            message=f"everything that endpoints need; what is refused is only for more: {_listed(optional)}",
        )
    return Check("permissions", ok=True, reason=None, message="everything that the platform needs")


def kserve_check(resources: Raw | None, settings: KServeSettings, controller: Raw | None) -> Check:
    """Whether KServe is there and running: its API's list of resources, its settings, its controller."""
    names = {each.get("name") for each in items(resources, "resources")}
    if "inferenceservices" not in names:
        return _failed(
            "kserve",
            ReasonCode.KSERVE_NOT_READY,
            "the cluster has no inferenceservices.serving.kserve.io/v1beta1: KServe is not installed",
        )
    if controller is not None and not whole(controller, "status", "availableReplicas"):
        return _failed(
            "kserve",
            ReasonCode.KSERVE_NOT_READY,
            f"KServe's controller does not run: Deployment {settings.namespace}/{CONTROLLER} has no available pod",
        )
    version = f" {settings.version}" if settings.version else ""
    mode = f", mode {settings.mode}" if settings.mode else "; its settings were not found"
    return Check("kserve", ok=True, reason=None, message=f"KServe{version}{mode}")


def runtimes_of(runtimes: Iterable[Raw]) -> tuple[str, ...]:
    """The names of the cluster-wide runtimes that are in use, ascending."""
    usable = [
        str(mapping(each, "metadata").get("name", ""))
        for each in runtimes
        if mapping(each, "spec").get("disabled") is not True
    ]
    return tuple(sorted(name for name in usable if name))


def runtimes_check(names: tuple[str, ...]) -> Check:
    """Whether there is any runtime."""
    if not names:
        return _failed(
            "runtimes",
            ReasonCode.NO_RUNTIME,
            "the cluster has no ClusterServingRuntime in use, so only manifests that bring their own image run",
            "Install KServe's runtimes (`kserve-cluster-resources`), or your own.",
        )
    shown = ", ".join(names[:RUNTIMES_SHOWN_MAX])
    return Check("runtimes", ok=True, reason=None, message=f"{len(names)}: {shown}")


def ingress_check(settings: KServeSettings, ingress_address: str) -> Check:
    """Whether requests will get in."""
    if settings.mode and not settings.makes_ingresses:
        return _failed(
            "ingress",
            ReasonCode.ROUTE_NOT_READY,
            "KServe is set to make no Ingress (disableIngressCreation), so endpoints get no address of their own",
            f"Set disableIngressCreation to false in ConfigMap {settings.namespace}/{CONFIG_NAME}.",
        )
    domain = (
        f"names end in {settings.ingress_domain}" if settings.ingress_domain else "KServe makes the names"
    )
    where = f"requests go to {ingress_address}" if ingress_address else "where requests go, each Ingress says"
    return Check("ingress", ok=True, reason=None, message=f"{domain}; {where}")


def gpus_check(nodes: Iterable[Raw]) -> Check:
    """What there is of GPUs; having none is fine."""
    listed = list(nodes)
    found = nodes_of("", listed)
    gpus, usable = sum(each.gpu_count for each in found), sum(each.schedulable for each in found)
    counted = f"{len(listed)} node{'' if len(listed) == 1 else 's'}"
    if not found:
        return Check("gpus", ok=True, reason=None, message=f"none on {counted}")
    kinds = sorted({each.gpu_shape for each in found})
    rest = f", {len(found) - usable} of them not usable now" if usable < len(found) else ""
    return Check(
        "gpus",
        ok=True,
        reason=None,
        message=f"{gpus} on {len(found)} of {counted}{rest}: {', '.join(kinds[:RUNTIMES_SHOWN_MAX])}",
    )


def _listed(permissions: list[Permission]) -> str:
    """`create, patch inferenceservices.serving.kserve.io (endpoints)`, by resource."""
    by_resource: dict[tuple[str, str], list[Permission]] = {}
    for each in permissions:
        by_resource.setdefault((each.group, each.resource), []).append(each)
    parts = []
    for (group, resource), wanted in by_resource.items():
        verbs = ", ".join(dict.fromkeys(each.verb for each in wanted))
        parts.append(f"{verbs} {resource}{'.' if group else ''}{group} ({wanted[0].needed_for})")
    more = len(parts) - MISSING_SHOWN_MAX
    return "; ".join(parts[:MISSING_SHOWN_MAX]) + (f"; and {more} more" if more > 0 else "")


def _failed(check: str, reason: ReasonCode, message: str, next_action: str = "") -> Check:
    return Check(
        check,
        ok=False,
        reason=reason,
        message=message,
        next_action=next_action or reason_of(reason).next_action,
    )


def _json(data: Raw, key: str) -> Raw:
    """One of the ConfigMap's values, which are JSON as text."""
    try:
        value = json.loads(str(data.get(key, "{}")))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, Mapping) else {}
