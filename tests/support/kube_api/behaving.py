"""A KServe with Deployment controller, scheduler and kubelet that does, by rules, what the real ones were recorded to do.

Level-triggered, like the real ones: each round looks at the store, and moves each InferenceService, Deployment,
ReplicaSet and pod one step. The rounds stop when a round changes nothing, and begin again when somebody changes
something. The life of a pod is a generator: one `yield` a step.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kube_api.admission import quantity, used
from kube_api.kinds import plain_node
from kube_api.player import NOT_PROPAGATED
from kube_api.refusals import Refused
from kube_api.store import Change, Write

if TYPE_CHECKING:
    from kube_api.server import KubeApi

Raw = dict[str, Any]

STOP = "serving.kserve.io/stop"
_FINALIZER = "inferenceservice.finalizers"
_KSERVE = "kserve-controller-manager"
_CONTROLLERS = "kube-controller-manager"
_KUBELET = "kubelet"
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
QUIET_ROUNDS = 3
"""Some steps of a pod write nothing: only after so many such rounds is there nothing to do."""

RESTARTS_MAX = 5
"""After so many a crashing container stays in its back-off: tests need no more."""

CRASH_MESSAGE = "ValueError: model file is for version 3, this server reads 1 and 2\n"
DOWNLOAD_MESSAGE = "RuntimeError: Failed to fetch model. No model found in {uri}.\n"


class Failure(Enum):
    """What happens to an InferenceService's pods instead of becoming ready, shaped as recorded."""

    IMAGE_PULL = "image-not-found"
    CRASH_LOOP = "crashloop"
    OOM_KILLED = "oomkilled"
    UNSCHEDULABLE = "unschedulable-gpu-none"
    QUOTA = "quota-exceeded"
    NEVER_READY = "readiness-never"
    DOWNLOAD = "storage-initializer-fails"
    PENDING = "pending"
    """Nothing more happens once the pod is there: for tests that stop half-way."""


RUNTIMES: Mapping[str, str] = {
    "kserve-sklearnserver": "sklearn",
    "kserve-xgbserver": "xgboost",
    "kserve-lgbserver": "lightgbm",
    "kserve-huggingfaceserver": "huggingface",
    "kserve-tritonserver": "onnx",
}
"""The runtimes that are there where a test puts none: name to model format."""


class Behaving:
    """A KServe that does what it should, a round every `pace_s`. `async with Behaving(api) as kserve:`.

    Where the cluster has no Nodes it gets one ("node1", 8 GPUs); where it has no runtimes, `RUNTIMES`.
    `ingress`: whether KServe makes Ingresses (and so is not ready before the first pod is).
    """

    def __init__(
        self, api: KubeApi, *, pace_s: float = 0.005, domain: str = "example.com", ingress: bool = False
    ) -> None:
        self._api = api
        self._store = api.store
        self._pace_s = pace_s
        self._domain = domain
        self._ingress = ingress
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._failures: dict[str, tuple[Failure, str | None]] = {}
        self._lives: dict[str, Iterator[None]] = {}
        self._crashes: dict[str, tuple[int, str]] = {}
        self._errors: list[BaseException] = []

    # -- what tests call ------------------------------------------------------------------------------

    def fail(self, namespace: str, failure: Failure, *, image: str | None = None) -> None:
        """From now on pods of that namespace (with that image only, where named) fail so."""
        self._failures[namespace] = (failure, image)
        self._changed.set()

    def mend(self, namespace: str) -> None:
        """No longer: the pods there are recover."""
        self._failures.pop(namespace, None)
        self._changed.set()

    def crash(self, namespace: str, pod: str, *, exit_code: int = 1, reason: str = "Error") -> None:
        """The pod's server, which runs, ends once; it is started again."""
        self._crashes[f"{namespace}/{pod}"] = (exit_code, reason)
        self._changed.set()

    async def start(self) -> Behaving:
        """Begins to act."""
        if not self._store.list("Node"):
            self._store.put(plain_node("node1", 8), manager=_KUBELET)
        if not self._store.list("ClusterServingRuntime") and not self._store.list("ServingRuntime"):
            for name, format_ in RUNTIMES.items():
                self._store.put(_runtime(name, format_), manager=_KSERVE)
        self._store.listeners.append(self._hear)
        self._changed.set()
        self._task = asyncio.create_task(self._run())
        return self

    async def stop(self) -> None:
        """Acts no more: the cluster stays as it is. Raises what went wrong in here, if anything did."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            self._store.listeners.remove(self._hear)
        if self._errors:
            raise self._errors[0]

    async def __aenter__(self) -> Behaving:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _hear(self, _: Change) -> None:
        self._changed.set()

    async def _run(self) -> None:
        quiet = 0
        while True:
            if quiet > QUIET_ROUNDS:
                await self._changed.wait()
                quiet = 0
            self._changed.clear()
            try:
                quiet = 0 if self.round() else quiet + 1
            except Exception as error:  # noqa: BLE001 - a fault of this emulator must fail the test, in stop()
                self._errors.append(error)
                return
            await asyncio.sleep(self._pace_s)

    def round(self) -> bool:
        """One round; whether it changed anything."""
        before = self._store.version
        for isvc in self._store.list("InferenceService"):
            self._service(isvc)
        for deployment in self._store.list("Deployment"):
            if "deletionTimestamp" not in deployment["metadata"]:
                self._deployment(deployment)
        for replica_set in self._store.list("ReplicaSet"):
            if "deletionTimestamp" not in replica_set["metadata"]:
                self._replica_set(replica_set)
        for pod in self._store.list("Pod"):
            self._live(pod)
        for deployment in self._store.list("Deployment"):
            self._deployment_status(deployment)
        for quota in self._store.list("ResourceQuota"):
            pods = self._store.list("Pod", quota["metadata"]["namespace"])
            status = {"hard": quota["spec"].get("hard") or {}, "used": used(quota, pods)}
            if quota.get("status") != status:
                self._store.put({**quota, "status": status}, manager=_CONTROLLERS)
        for isvc in self._store.list("InferenceService"):
            self._service_status(isvc)
        return self._store.version != before

    # -- KServe ---------------------------------------------------------------------------------------

    def _service(self, isvc: Raw) -> None:
        metadata = isvc["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        if "deletionTimestamp" in metadata:
            if _FINALIZER in metadata.get("finalizers", ()):
                finalizers = [each for each in metadata["finalizers"] if each != _FINALIZER]
                isvc["metadata"]["finalizers"] = finalizers
                self._store.put(isvc, manager=_KSERVE)
            return
        if _FINALIZER not in metadata.get("finalizers", ()):
            metadata.setdefault("finalizers", []).append(_FINALIZER)
            self._store.put(isvc, manager=_KSERVE)
            return
        child = f"{name}-predictor"
        if (metadata.get("annotations") or {}).get(STOP) == "true":
            for kind in ("Deployment", "Service", "HorizontalPodAutoscaler"):
                self._store.delete(kind, child, namespace)
            self._store.delete("Ingress", name, namespace)
            return
        wanted = self._wanted(isvc)
        if wanted is None:
            return
        template, least, most = wanted
        marks = {
            "labels": deepcopy(template["metadata"]["labels"]),
            "annotations": deepcopy(template["metadata"]["annotations"]),
        }
        place = {"name": child, "namespace": namespace, "ownerReferences": [_owner(isvc)]}
        there = self._store.get("Deployment", child, namespace)
        if there is None:
            spec = {
                "replicas": least,
                "selector": {"matchLabels": {"app": f"isvc.{child}"}},
                "template": template,
                "strategy": {
                    "type": "RollingUpdate",
                    "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"},
                },
                "revisionHistoryLimit": 10,
                "progressDeadlineSeconds": 600,
            }
            self._put("apps/v1", "Deployment", {**place, **marks}, _KSERVE, spec=spec, status={})
        else:
            changed = deepcopy(there)
            changed["spec"]["template"] = template
            changed["metadata"].update(marks)
            replicas = there["spec"].get("replicas", 1)
            # Zero by hand stays zero: the autoscaler leaves it alone, and so does KServe.
            if replicas:
                changed["spec"]["replicas"] = min(max(replicas, least), most)
            if changed != there:
                self._store.put(changed, manager=_KSERVE)
        port = {"name": child, "protocol": "TCP", "port": 80, "targetPort": 8080}
        service = {"ports": [port], "selector": {"app": f"isvc.{child}"}, "type": "ClusterIP"}
        self._ensure("v1", "Service", {**place, **marks}, spec=service, status={"loadBalancer": {}})
        scaler = {
            "scaleTargetRef": {"kind": "Deployment", "name": child, "apiVersion": "apps/v1"},
            "minReplicas": least,
            "maxReplicas": most,
        }
        self._ensure("autoscaling/v2", "HorizontalPodAutoscaler", {**place, **marks}, spec=scaler)

    def _wanted(self, isvc: Raw) -> tuple[Raw, int, int] | None:
        """The pod template, and the bounds of replicas; None where nothing can be run."""
        predictor = isvc["spec"]["predictor"]
        metadata = isvc["metadata"]
        child = f"{metadata['name']}-predictor"
        model = predictor.get("model")
        kept = (
            "affinity",
            "hostNetwork",
            "imagePullSecrets",
            "nodeSelector",
            "serviceAccountName",
            "tolerations",
            "volumes",
            "terminationGracePeriodSeconds",
        )
        spec: Raw = {name: deepcopy(predictor[name]) for name in kept if name in predictor}
        annotations = {
            key: each
            for key, each in (metadata.get("annotations") or {}).items()
            if key not in NOT_PROPAGATED
        }
        if model is not None:
            found = self._runtime_of(isvc)
            if found is None:
                return None
            container = deepcopy(found["spec"]["containers"][0])
            container["name"] = "kserve-container"
            container["args"] = [*container.get("args", ()), *model.get("args", ())]
            if "command" in model:
                container["command"] = model["command"]
            if "image" in model:
                container["image"] = model["image"]
            merged = container.setdefault("resources", {})
            for key, each in (model.get("resources") or {}).items():
                merged[key] = {**(merged.get(key) or {}), **each}
            container["env"] = [
                *container.get("env", ()),
                *model.get("env", ()),
                {"name": "INFERENCE_SERVICE_NAME", "value": metadata["name"]},
            ]
            if uri := model.get("storageUri"):
                annotations["internal.serving.kserve.io/storage-initializer-sourceuri"] = uri
        else:
            container = deepcopy(predictor["containers"][0])
            container.setdefault("name", "kserve-container")
        spec["containers"] = [container]
        labels = {
            **(metadata.get("labels") or {}),
            "app": f"isvc.{child}",
            "component": "predictor",
            "serving.kserve.io/inferenceservice": metadata["name"],
        }
        template = {
            "metadata": {
                "name": child,
                "namespace": metadata["namespace"],
                "labels": labels,
                "annotations": annotations,
            },
            "spec": {"restartPolicy": "Always", "terminationGracePeriodSeconds": 30, **spec},
        }
        least = max(1, predictor.get("minReplicas", 1))
        return template, least, max(least, predictor.get("maxReplicas", 0) or least)

    def _runtime_of(self, isvc: Raw) -> Raw | None:
        model = isvc["spec"]["predictor"].get("model") or {}
        namespace = isvc["metadata"]["namespace"]
        if named := model.get("runtime"):
            return self._store.get("ServingRuntime", named, namespace) or self._store.get(
                "ClusterServingRuntime", named
            )
        format_ = (model.get("modelFormat") or {}).get("name")
        for found in [
            *self._store.list("ServingRuntime", namespace),
            *self._store.list("ClusterServingRuntime"),
        ]:
            formats = found["spec"].get("supportedModelFormats") or ()
            if any(each["name"] == format_ and each.get("autoSelect") for each in formats):
                return found
        return None

    def _service_status(self, isvc: Raw) -> None:
        metadata = isvc["metadata"]
        if "deletionTimestamp" in metadata or _FINALIZER not in metadata.get("finalizers", ()):
            return
        before = isvc.get("status") or {}
        if (metadata.get("annotations") or {}).get(STOP) == "true":
            status: Raw = {
                "conditions": [
                    {"reason": "Stopped", "status": "False", "type": "PredictorReady"},
                    {"reason": "Stopped", "status": "False", "type": "Ready"},
                    {"severity": "Info", "status": "True", "type": "Stopped"},
                ],
                "deploymentMode": "Standard",
                "modelStatus": {"transitionStatus": ""},
            }
        elif isvc["spec"]["predictor"].get("model") is not None and self._runtime_of(isvc) is None:
            status = self._no_runtime(isvc)
        else:
            status = self._running_status(isvc, before)
        times = {
            (each["type"], each["status"]): each.get("lastTransitionTime")
            for each in before.get("conditions", ())
        }
        for each in status["conditions"]:
            each["lastTransitionTime"] = times.get((each["type"], each["status"])) or _now()
        if status != before:
            was_ready = _condition(before, "Ready")
            isvc["status"] = status
            self._store.put(isvc, manager=_KSERVE)
            now_ready = _condition(status, "Ready")
            if now_ready == "True" and was_ready != "True":
                text = f"InferenceService [{metadata['name']}] is Ready"
                self._event(isvc, "Normal", "InferenceServiceReady", text, "v1beta1Controllers")
            elif was_ready == "True":
                text = f"InferenceService [{metadata['name']}] is no longer Ready"
                self._event(isvc, "Warning", "InferenceServiceNotReady", text, "v1beta1Controllers")

    def _no_runtime(self, isvc: Raw) -> Raw:
        named = isvc["spec"]["predictor"]["model"].get("runtime")
        if named:
            info = {"reason": "RuntimeNotRecognized", "message": "Waiting for runtime to become available"}
        else:
            info = {
                "reason": "NoSupportingRuntime",
                "message": "No runtime found to support predictor with model type: "
                f"{{{isvc['spec']['predictor']['model']['modelFormat'].get('name', '')} <nil>}}",
            }
        return {
            "components": {"predictor": {}},
            "conditions": [
                {"status": "Unknown", "type": "PredictorReady"},
                {"status": "Unknown", "type": "Ready"},
                {"severity": "Info", "status": "False", "type": "Stopped"},
            ],
            "deploymentMode": "Standard",
            "modelStatus": {
                "lastFailureInfo": info,
                "states": {"activeModelState": "", "targetModelState": "FailedToLoad"},
                "transitionStatus": "InvalidSpec",
            },
        }

    def _running_status(self, isvc: Raw, before: Raw) -> Raw:
        namespace, name = isvc["metadata"]["namespace"], isvc["metadata"]["name"]
        child = f"{name}-predictor"
        deployment = self._store.get("Deployment", child, namespace) or {}
        said = deployment.get("status") or {}
        conditions = {each["type"]: each for each in said.get("conditions") or ()}
        progress, available = conditions.get("Progressing", {}), conditions.get("Available", {})
        failed = conditions.get("ReplicaFailure")
        ready = available.get("status") == "True"
        shown = failed or available or progress
        if ready and progress.get("reason") == "NewReplicaSetAvailable":
            shown = progress
        predictor: Raw = {"status": "True" if ready else "False", "type": "PredictorReady"}
        predictor |= {key: shown[key] for key in ("reason", "message") if key in shown}
        top: Raw = {"status": predictor["status"], "type": "Ready"}
        if not ready:
            top |= {key: shown[key] for key in ("reason", "message") if key in shown}
        ingress: Raw = {"status": "True", "type": "IngressReady"}
        if self._ingress and self._store.get("Ingress", name, namespace) is None:
            if ready:
                self._make_ingress(isvc)
            else:
                ingress = {
                    "reason": "Predictor ingress not created",
                    "status": "False",
                    "type": "IngressReady",
                }
                top = {"reason": "Predictor ingress not created", "status": "False", "type": "Ready"}
        status: Raw = {
            "components": {"predictor": {}},
            "conditions": [
                ingress,
                predictor,
                top,
                {"severity": "Info", "status": "False", "type": "Stopped"},
            ],
            "deploymentMode": "Standard",
            "modelStatus": self._model_status(isvc, before, said, ready=ready),
        }
        if ready or not self._ingress:
            status["address"] = {"url": f"http://{child}.{namespace}.svc.cluster.local"}
            status["url"] = f"http://{name}-{namespace}.{self._domain}"
        if ready:
            status["components"]["predictor"]["url"] = f"http://{child}-{namespace}.{self._domain}"
        if "observedGeneration" in said:
            status["observedGeneration"] = said["observedGeneration"]
        runtime = self._runtime_of(isvc)
        if runtime is not None:
            key = "servingRuntimeName" if runtime["kind"] == "ServingRuntime" else "clusterServingRuntimeName"
            status[key] = runtime["metadata"]["name"]
        return status

    def _model_status(self, isvc: Raw, before: Raw, said: Raw, *, ready: bool) -> Raw:
        namespace = isvc["metadata"]["namespace"]
        was = before.get("modelStatus") or {}
        active = "Loaded" if ready or (was.get("states") or {}).get("activeModelState") == "Loaded" else ""
        copies: Raw = {"failedCopies": 0}
        if said.get("readyReplicas"):
            copies["totalCopies"] = said["readyReplicas"]
        result: Raw = {"copies": copies}
        # Only what happens in INIT containers is seen here: surprise 1 of the recordings.
        for pod in self._store.list(
            "Pod", namespace, {"serving.kserve.io/inferenceservice": isvc["metadata"]["name"]}
        ):
            for each in (pod.get("status") or {}).get("initContainerStatuses") or ():
                ended = each["state"].get("terminated") or each["lastState"].get("terminated")
                if ended and ended["exitCode"]:
                    result["lastFailureInfo"] = {
                        "exitCode": ended["exitCode"],
                        "message": ended.get("message", ""),
                        "reason": "ModelLoadFailed",
                    }
                    result["states"] = {"activeModelState": active, "targetModelState": "FailedToLoad"}
                    result["transitionStatus"] = "BlockedByFailedLoad"
                    return result
        result["states"] = {"activeModelState": active, "targetModelState": "Loaded" if ready else "Pending"}
        result["transitionStatus"] = "UpToDate" if ready else "InProgress"
        return result

    def _make_ingress(self, isvc: Raw) -> None:
        namespace, name = isvc["metadata"]["namespace"], isvc["metadata"]["name"]
        backend = {"service": {"name": f"{name}-predictor", "port": {"number": 80}}}
        paths = [{"path": "/", "pathType": "Prefix", "backend": backend}]
        hosts = (f"{name}-{namespace}.{self._domain}", f"{name}-predictor-{namespace}.{self._domain}")
        spec = {
            "ingressClassName": "istio",
            "rules": [{"host": each, "http": {"paths": paths}} for each in hosts],
        }
        place = {"name": name, "namespace": namespace, "ownerReferences": [_owner(isvc)]}
        self._put("networking.k8s.io/v1", "Ingress", place, _KSERVE, spec=spec, status={"loadBalancer": {}})

    # -- Deployments and ReplicaSets ------------------------------------------------------------------

    def _sets_of(self, deployment: Raw) -> list[Raw]:
        uid = deployment["metadata"]["uid"]
        found = [
            each
            for each in self._store.list("ReplicaSet", deployment["metadata"]["namespace"])
            if _owned_by(each, uid) and "deletionTimestamp" not in each["metadata"]
        ]
        return sorted(found, key=lambda each: int(each["metadata"]["annotations"][_REVISION]))

    def _pods_of(self, replica_set: Raw) -> list[Raw]:
        uid = replica_set["metadata"]["uid"]
        return [
            each
            for each in self._store.list("Pod", replica_set["metadata"]["namespace"])
            if _owned_by(each, uid)
        ]

    def _deployment(self, deployment: Raw) -> None:
        spec = deployment["spec"]
        hash_ = _hash(spec["template"])
        wanted = spec.get("replicas", 1)
        sets = self._sets_of(deployment)
        current = next(
            (each for each in sets if each["metadata"]["labels"]["pod-template-hash"] == hash_), None
        )
        if current is None:
            self._new_set(deployment, hash_, len(sets))
            return
        self._newest(current, sets)
        old = [each for each in sets if each is not current]
        # maxSurge 25 % rounds up, maxUnavailable 25 % rounds down.
        surge, missing = max(1, -(-wanted // 4)), wanted // 4
        have = current["spec"]["replicas"]
        total = have + sum(each["spec"]["replicas"] for each in old)
        goal = wanted if have >= wanted else have + max(0, min(wanted + surge - total, wanted - have))
        total += goal - have
        self._scale(deployment, current, goal)
        ready_now = self._ready_count(current)
        spare = total - (wanted - missing) - (goal - ready_now)
        ready_spare = ready_now + sum(map(self._ready_count, old)) - (wanted - missing)
        for each in old:
            replicas, ready = each["spec"]["replicas"], self._ready_count(each)
            # Those that are not ready go first: nobody misses them.
            broken = max(0, min(spare, replicas - ready))
            healthy = max(0, min(ready_spare, spare - broken, replicas - broken))
            spare -= broken + healthy
            ready_spare -= healthy
            self._scale(deployment, each, replicas - broken - healthy)

    def _ready_count(self, replica_set: Raw) -> int:
        return sum(_ready(each) for each in self._pods_of(replica_set) if _stays(each))

    def _new_set(self, deployment: Raw, hash_: str, number: int) -> None:
        metadata, spec = deployment["metadata"], deployment["spec"]
        template = deepcopy(spec["template"])
        template["metadata"]["labels"]["pod-template-hash"] = hash_
        latest = max(
            (int(each["metadata"]["annotations"][_REVISION]) for each in self._sets_of(deployment)), default=0
        )
        place = {
            "name": f"{metadata['name']}-{hash_}",
            "namespace": metadata["namespace"],
            "labels": deepcopy(template["metadata"]["labels"]),
            "annotations": {
                **(metadata.get("annotations") or {}),
                _REVISION: str(latest + 1),
                "deployment.kubernetes.io/desired-replicas": str(spec.get("replicas", 1)),
            },
            "ownerReferences": [_owner(deployment)],
        }
        selector = {"matchLabels": {**spec["selector"]["matchLabels"], "pod-template-hash": hash_}}
        first = spec.get("replicas", 1) if number == 0 else 0
        body = {"replicas": first, "selector": selector, "template": template}
        self._put("apps/v1", "ReplicaSet", place, _CONTROLLERS, spec=body, status={"replicas": 0})
        if first:
            text = f"Scaled up replica set {place['name']} from 0 to {first}"
            self._event(deployment, "Normal", "ScalingReplicaSet", text, "deployment-controller")

    def _newest(self, current: Raw, sets: list[Raw]) -> None:
        """A template that comes back is the newest revision again."""
        latest = max(int(each["metadata"]["annotations"][_REVISION]) for each in sets)
        mine = int(current["metadata"]["annotations"][_REVISION])
        if mine < latest:
            current["metadata"]["annotations"][_REVISION] = str(latest + 1)
            self._store.put(current, manager=_CONTROLLERS)

    def _scale(self, deployment: Raw, replica_set: Raw, replicas: int) -> None:
        was = replica_set["spec"]["replicas"]
        if was == replicas:
            return
        replica_set["spec"]["replicas"] = replicas
        self._store.put(replica_set, manager=_CONTROLLERS)
        way = "up" if replicas > was else "down"
        text = f"Scaled {way} replica set {replica_set['metadata']['name']} from {was} to {replicas}"
        self._event(deployment, "Normal", "ScalingReplicaSet", text, "deployment-controller")

    def _replica_set(self, replica_set: Raw) -> None:
        metadata = replica_set["metadata"]
        namespace = metadata["namespace"]
        pods = self._pods_of(replica_set)
        staying = [each for each in pods if _stays(each)]
        wanted = replica_set["spec"]["replicas"]
        failure: Raw | None = None
        for _ in range(wanted - len(staying)):
            failure = self._make_pod(replica_set)
            if failure is not None:
                break
        if len(staying) > wanted:
            # Those not ready go first, then the youngest.
            order = sorted(staying, key=lambda each: (_ready(each), each["metadata"]["creationTimestamp"]))
            unready = [each for each in order if not _ready(each)]
            ready = [each for each in reversed(order) if _ready(each)]
            for pod in [*unready, *ready][: len(staying) - wanted]:
                self._store.delete("Pod", pod["metadata"]["name"], namespace)
                text = f"Deleted pod: {pod['metadata']['name']}"
                self._event(replica_set, "Normal", "SuccessfulDelete", text, "replicaset-controller")
        pods = [each for each in self._pods_of(replica_set) if _stays(each)]
        now = self._store.get("ReplicaSet", metadata["name"], namespace)
        if now is None:
            return
        ready_count = sum(_ready(each) for each in pods)
        status: Raw = {
            "replicas": len(pods),
            "terminatingReplicas": len(self._pods_of(replica_set)) - len(pods),
            "observedGeneration": now["metadata"]["generation"],
        }
        if pods:
            status["fullyLabeledReplicas"] = len(pods)
        if ready_count:
            status |= {"readyReplicas": ready_count, "availableReplicas": ready_count}
        if failure is not None:
            kept = ((now.get("status") or {}).get("conditions") or [failure])[0]
            status["conditions"] = [kept]
        if status != now.get("status"):
            now["status"] = status
            self._store.put(now, manager=_CONTROLLERS)

    def _make_pod(self, replica_set: Raw) -> Raw | None:
        """One more pod; the condition that says why not."""
        metadata = replica_set["metadata"]
        template = replica_set["spec"]["template"]
        namespace = metadata["namespace"]
        name = f"{metadata['name']}-{''.join(random.choices(_LETTERS, k=5))}"
        spec = deepcopy(template["spec"])
        annotations = deepcopy(template["metadata"].get("annotations") or {})
        uri = annotations.get("internal.serving.kserve.io/storage-initializer-sourceuri")
        if uri:
            spec["initContainers"] = [
                {
                    "name": "storage-initializer",
                    "image": "kserve/storage-initializer:latest",
                    "args": [uri, "/mnt/models"],
                }
            ]
        spec.setdefault("serviceAccountName", "default")
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "generateName": f"{metadata['name']}-",
                "namespace": namespace,
                "labels": deepcopy(template["metadata"]["labels"]),
                "annotations": annotations,
                "ownerReferences": [_owner(replica_set)],
            },
            "spec": spec,
        }
        try:
            if self._failure(pod) is Failure.QUOTA:
                _over_quota(name)
            self._store.create(self._store.kind("Pod"), namespace, pod, Write(_CONTROLLERS))
        except Refused as refused:
            had = (
                (self._store.get("ReplicaSet", metadata["name"], namespace) or {}).get("status") or {}
            ).get("conditions")
            if not had:
                text = f"Error creating: {refused.message}"
                self._event(replica_set, "Warning", "FailedCreate", text, "replicaset-controller")
            return {
                "type": "ReplicaFailure",
                "status": "True",
                "lastTransitionTime": _now(),
                "reason": "FailedCreate",
                "message": refused.message,
            }
        self._event(
            replica_set, "Normal", "SuccessfulCreate", f"Created pod: {name}", "replicaset-controller"
        )
        return None

    def _deployment_status(self, deployment: Raw) -> None:
        if "deletionTimestamp" in deployment["metadata"]:
            return
        sets = self._sets_of(deployment)
        if not sets:
            return
        hash_ = _hash(deployment["spec"]["template"])
        current = next(
            (each for each in sets if each["metadata"]["labels"]["pod-template-hash"] == hash_), None
        )
        if current is None:
            return
        wanted = deployment["spec"].get("replicas", 1)
        everybody = [pod for each in sets for pod in self._pods_of(each)]
        pods = [each for each in everybody if _stays(each)]
        fresh = [each for each in self._pods_of(current) if _stays(each)]
        ready = sum(_ready(each) for each in pods)
        status: Raw = {
            "observedGeneration": deployment["metadata"]["generation"],
            "terminatingReplicas": len(everybody) - len(pods),
        }
        counts = {
            "replicas": len(pods),
            "updatedReplicas": len(fresh),
            "readyReplicas": ready,
            "availableReplicas": ready,
            "unavailableReplicas": max(0, max(wanted, len(pods)) - ready),
        }
        status |= {name: count for name, count in counts.items() if count}
        name = current["metadata"]["name"]
        enough = ready >= wanted - wanted // 4
        available = {
            "type": "Available",
            "status": "True" if enough else "False",
            "reason": f"MinimumReplicas{'Available' if enough else 'Unavailable'}",
            "message": f"Deployment {'has' if enough else 'does not have'} minimum availability.",
        }
        if sum(map(_ready, fresh)) >= wanted and len(pods) == len(fresh):
            reason, text = "NewReplicaSetAvailable", f'ReplicaSet "{name}" has successfully progressed.'
        elif fresh:
            reason, text = "ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.'
        else:
            reason, text = "NewReplicaSetCreated", f'Created new replica set "{name}"'
        progress = {"type": "Progressing", "status": "True", "reason": reason, "message": text}
        conditions = [available, progress]
        failed = next(
            (
                each
                for each in (current.get("status") or {}).get("conditions") or ()
                if each["type"] == "ReplicaFailure"
            ),
            None,
        )
        if failed is not None:
            conditions.append({key: failed[key] for key in ("type", "status", "reason", "message")})
        before = deployment.get("status") or {}
        was = {each["type"]: each for each in before.get("conditions") or ()}
        for each in conditions:
            old = was.get(each["type"], {})
            same = all(old.get(key) == each[key] for key in ("status", "reason", "message"))
            each["lastUpdateTime"] = old["lastUpdateTime"] if same else _now()
            moved = old.get("status") != each["status"]
            each["lastTransitionTime"] = _now() if moved else old["lastTransitionTime"]
        status["conditions"] = conditions
        if status != before:
            deployment["status"] = status
            self._store.put(deployment, manager=_CONTROLLERS)

    # -- scheduler and kubelet ------------------------------------------------------------------------

    def _failure(self, pod: Mapping[str, Any]) -> Failure | None:
        failure, image = self._failures.get(pod["metadata"]["namespace"], (None, None))
        images = [each.get("image", "") for each in pod["spec"]["containers"]]
        return failure if image is None or image in images else None

    def _live(self, pod: Raw) -> None:
        uid = pod["metadata"]["uid"]
        if "deletionTimestamp" in pod["metadata"]:
            self._lives.pop(uid, None)
            return
        if uid not in self._lives:
            self._lives[uid] = self._life(pod["metadata"]["namespace"], pod["metadata"]["name"], uid)
        next(self._lives[uid], None)

    def _life(self, namespace: str, name: str, uid: str) -> Iterator[None]:
        """A pod's steps. It ends with the pod; whoever runs it looks first whether the pod is still there."""
        yield
        pod = _Pod(self, namespace, name)
        if not pod.raw["spec"].get("nodeName"):
            while not self._schedule(pod):
                yield
            yield
        if pod.raw["spec"].get("initContainers"):
            yield from self._download(pod)
        pod.initialised()
        yield
        while True:
            yield from self._pull(pod)
            yield from self._serve(pod)

    def _schedule(self, pod: _Pod) -> bool:
        failure = self._failure(pod.raw)
        nodes = self._store.list("Node")
        reasons: dict[str, int] = {}
        if failure is Failure.PENDING:
            return False
        for node in nodes:
            why = (
                "Insufficient nvidia.com/gpu"
                if failure is Failure.UNSCHEDULABLE
                else self._unfit(pod.raw, node)
            )
            if why is None:
                pod.scheduled(node["metadata"]["name"])
                return True
            reasons[why] = reasons.get(why, 0) + 1
        count = len(nodes)
        said = ", ".join(f"{number} {why}" for why, number in sorted(reasons.items())) or "no nodes available"
        text = (
            f"0/{count} nodes are available: {said}. no new claims to deallocate, preemption: 0/{count} nodes are "
            f"available: {count} Preemption is not helpful for scheduling."
        )
        pod.unschedulable(text)
        return False

    def _unfit(self, pod: Mapping[str, Any], node: Mapping[str, Any]) -> str | None:
        spec = pod["spec"]
        labels = node["metadata"].get("labels") or {}
        required = (
            ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
                "requiredDuringSchedulingIgnoredDuringExecution"
            )
            or {}
        ).get("nodeSelectorTerms")
        chosen = (spec.get("nodeSelector") or {}).items() <= labels.items()
        if not chosen or (required is not None and not any(_term(each, node) for each in required)):
            return "node(s) didn't match Pod's node affinity/selector"
        if (node.get("spec") or {}).get("unschedulable"):
            return "node(s) were unschedulable"
        for taint in (node.get("spec") or {}).get("taints") or ():
            if taint["effect"] != "PreferNoSchedule" and not any(
                _tolerates(each, taint) for each in spec.get("tolerations") or ()
            ):
                return "node(s) had untolerated taint(s)"
        for resource in ("nvidia.com/gpu", "cpu", "memory"):
            asked = _asks(pod, resource)
            if not asked:
                continue
            there = quantity((node.get("status") or {}).get("allocatable", {}).get(resource, "0"))
            taken = sum(
                _asks(each, resource)
                for each in self._store.all_of(self._store.kind("Pod"))
                if each["spec"].get("nodeName") == node["metadata"]["name"]
            )
            if taken + asked > there:
                return f"Insufficient {resource}"
        return None

    def _download(self, pod: _Pod) -> Iterator[None]:
        container = "storage-initializer"
        uri = pod.raw["spec"]["initContainers"][0]["args"][0]
        pod.waits(container, "PodInitializing")
        yield
        while True:
            pod.runs(container)
            yield
            if self._failure(pod.raw) is not Failure.DOWNLOAD:
                pod.ends(container, 0, "Completed", "")
                return
            text = DOWNLOAD_MESSAGE.format(uri=uri)
            self._api.set_log(pod.namespace, pod.name, container, text)
            pod.ends(container, 1, "Error", text)
            yield
            yield from self._back_off(pod, container, Failure.DOWNLOAD)

    def _pull(self, pod: _Pod) -> Iterator[None]:
        container = pod.server
        image = pod.raw["spec"]["containers"][0].get("image", "")
        if self._failure(pod.raw) is not Failure.IMAGE_PULL:
            return
        why = f'failed to pull and unpack image "{image}": failed to resolve image: {image}: not found'
        pod.event("Normal", "Pulling", f'Pulling image "{image}"', container)
        while self._failure(pod.raw) is Failure.IMAGE_PULL:
            pod.waits(container, "ErrImagePull", why)
            pod.event("Warning", "Failed", f'Failed to pull image "{image}": {why}', container)
            pod.event("Warning", "Failed", "Error: ErrImagePull", container)
            yield
            pod.waits(container, "ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {why}')
            pod.event("Normal", "BackOff", f'Back-off pulling image "{image}"', container)
            pod.event("Warning", "Failed", "Error: ImagePullBackOff", container)
            while self._failure(pod.raw) is Failure.IMAGE_PULL:
                yield

    def _serve(self, pod: _Pod) -> Iterator[None]:
        container = pod.server
        image = pod.raw["spec"]["containers"][0].get("image", "")
        pod.event("Normal", "Pulled", f'Container image "{image}" already present on machine', container)
        pod.runs(container)
        pod.event("Normal", "Started", "Container started", container)
        yield
        failure = self._failure(pod.raw)
        if failure in (Failure.CRASH_LOOP, Failure.OOM_KILLED):
            crashed = failure is Failure.CRASH_LOOP
            self._api.set_log(
                pod.namespace, pod.name, container, f"loading the model\n{CRASH_MESSAGE}" if crashed else ""
            )
            if crashed:
                pod.ends(container, 1, "Error", CRASH_MESSAGE)
            else:
                pod.ends(container, 137, "OOMKilled", "")
            yield
            yield from self._back_off(pod, container, failure)
            return
        while self._failure(pod.raw) is Failure.NEVER_READY:
            pod.event(
                "Warning",
                "Unhealthy",
                "Readiness probe failed: HTTP probe failed with statuscode: 404",
                container,
            )
            yield
        self._api.set_log(pod.namespace, pod.name, container, "the model is loaded\n")
        pod.ready()
        key = f"{pod.namespace}/{pod.name}"
        while key not in self._crashes:
            yield
        exit_code, reason = self._crashes.pop(key)
        pod.ends(container, exit_code, reason, "")
        yield

    def _back_off(self, pod: _Pod, container: str, failure: Failure) -> Iterator[None]:
        """Waits before the next run: not at all the first time, and for good after RESTARTS_MAX."""
        restarts = pod.restarts(container)
        if restarts:
            why = f"back-off 10s restarting failed container={container} pod={pod.name}_{pod.namespace}({pod.uid})"
            pod.waits(container, "CrashLoopBackOff", why)
            pod.event(
                "Warning",
                "BackOff",
                f"Back-off restarting failed container {container} in pod {pod.name}_{pod.namespace}({pod.uid})",
                container,
            )
            yield
        while restarts >= RESTARTS_MAX and self._failure(pod.raw) is failure:
            yield
        logs = self._api.logs
        logs.restart(pod.namespace, pod.name, container)

    # -- writing --------------------------------------------------------------------------------------

    def _put(self, version: str, kind: str, metadata: Raw, manager: str, **rest: Any) -> Raw:
        return self._store.put(
            {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}, manager=manager
        )

    def _ensure(self, version: str, kind: str, metadata: Raw, **rest: Any) -> None:
        there = self._store.get(kind, metadata["name"], metadata["namespace"])
        if there is None:
            self._put(version, kind, metadata, _KSERVE, **rest)
            return
        if "deletionTimestamp" in there["metadata"]:
            return
        changed = {**there, "spec": {**there.get("spec", {}), **rest["spec"]}}
        if changed != there:
            self._store.put(changed, manager=_KSERVE)

    def _event(
        self, about: Mapping[str, Any], type_: str, reason: str, text: str, component: str, field: str = ""
    ) -> None:
        metadata = about["metadata"]
        namespace = metadata.get("namespace", "default")
        for each in self._store.list("Event", namespace):
            same = (each["involvedObject"]["uid"], each["reason"], each["message"]) == (
                metadata["uid"],
                reason,
                text,
            )
            if same:
                each["count"] = (each.get("count") or 1) + 1
                each["lastTimestamp"] = _now()
                if reason != "Unhealthy" or each["count"] <= 3:
                    self._store.put(each, manager=component)
                return
        involved: Raw = {
            "kind": about["kind"],
            "namespace": namespace,
            "name": metadata["name"],
            "uid": metadata["uid"],
            "apiVersion": about["apiVersion"],
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
        if field:
            involved["fieldPath"] = field
        event: Raw = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "involvedObject": involved,
            "reason": reason,
            "message": text,
            "type": type_,
            "reportingComponent": component,
            "reportingInstance": "",
        }
        if component == "default-scheduler":
            # The scheduler's events carry no count and no timestamps but this one.
            event |= {
                "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "firstTimestamp": None,
                "lastTimestamp": None,
                "source": {},
                "action": "Binding" if reason == "Scheduled" else "Scheduling",
            }
        else:
            event |= {
                "eventTime": None,
                "firstTimestamp": _now(),
                "lastTimestamp": _now(),
                "count": 1,
                "source": {"component": component},
            }
        self._store.put(event, manager=component)

    def write_pod(self, namespace: str, name: str, change: Callable[[Raw], None]) -> None:
        """Changes a pod that is there, as its kubelet."""
        found = self._store.get("Pod", name, namespace)
        if found is not None:
            change(found)
            self._store.put(found, manager=_KUBELET)

    def tell(
        self, about: Mapping[str, Any], type_: str, reason: str, text: str, component: str, field: str
    ) -> None:
        """Writes an event."""
        self._event(about, type_, reason, text, component, field)

    def read_pod(self, namespace: str, name: str) -> Raw | None:
        """The pod as it is."""
        return self._store.get("Pod", name, namespace)


class _Pod:
    """One pod as its kubelet writes about it."""

    def __init__(self, cluster: Behaving, namespace: str, name: str) -> None:
        self._cluster = cluster
        self.namespace, self.name = namespace, name
        found = cluster.read_pod(namespace, name)
        assert found is not None
        self._last = found
        self.uid = found["metadata"]["uid"]
        self.server = found["spec"]["containers"][0]["name"]
        self._finished = datetime.now(UTC)

    @property
    def raw(self) -> Raw:
        """As it is now; as it was last, once it is gone."""
        found = self._cluster.read_pod(self.namespace, self.name)
        if found is not None:
            self._last = found
        return self._last

    def event(self, type_: str, reason: str, text: str, container: str = "") -> None:
        """Says something about it, or about one of its containers."""
        if container:
            initial = [each["name"] for each in self.raw["spec"].get("initContainers") or ()]
            field = f"spec.{'initContainers' if container in initial else 'containers'}{{{container}}}"
        else:
            field = ""
        component = "default-scheduler" if reason in ("Scheduled", "FailedScheduling") else "kubelet"
        self._cluster.tell(self.raw, type_, reason, text, component, field)

    def scheduled(self, node: str) -> None:
        """It is on a node; its containers are about to be made."""
        initial = [each["name"] for each in self.raw["spec"].get("initContainers") or ()]

        def change(pod: Raw) -> None:
            pod["spec"]["nodeName"] = node
            status = pod["status"]
            status.update(phase="Pending", hostIP="192.0.2.2", podIP="192.0.2.2", startTime=_now())
            waiting = f"containers with incomplete status: [{' '.join(initial)}]"
            _set(status, "PodScheduled", "True")
            _set(status, "PodReadyToStartContainers", "False")
            if initial:
                _set(status, "Initialized", "False", "ContainersNotInitialized", waiting)
            _not_ready(status, self.server)
            reason = "PodInitializing" if initial else "ContainerCreating"
            if initial:
                status["initContainerStatuses"] = [_fresh(pod["spec"]["initContainers"][0], reason)]
            status["containerStatuses"] = [_fresh(each, reason) for each in pod["spec"]["containers"]]

        self._cluster.write_pod(self.namespace, self.name, change)
        self.event("Normal", "Scheduled", f"Successfully assigned {self.namespace}/{self.name} to {node}")

    def unschedulable(self, text: str) -> None:
        """No node has room."""
        conditions = (self.raw.get("status") or {}).get("conditions") or ()
        if any(each.get("message") == text for each in conditions):
            return
        self._cluster.write_pod(
            self.namespace,
            self.name,
            lambda pod: _set(pod["status"], "PodScheduled", "False", "Unschedulable", text),
        )
        self.event("Warning", "FailedScheduling", text)

    def initialised(self) -> None:
        """Its init containers are done."""

        def change(pod: Raw) -> None:
            _set(pod["status"], "Initialized", "True")
            _set(pod["status"], "PodReadyToStartContainers", "True")

        self._cluster.write_pod(self.namespace, self.name, change)

    def waits(self, container: str, reason: str, text: str = "") -> None:
        """A container waits."""
        state = {"waiting": {"reason": reason, **({"message": text} if text else {})}}
        self._state(container, state, ready=False)

    def runs(self, container: str) -> None:
        """A container runs; where it had ended, for one more time."""
        started = self._moment()

        def change(status: Raw) -> None:
            ended = status["state"].get("terminated")
            if ended or status["lastState"]:
                status["restartCount"] += 1
            if ended:
                status["lastState"] = {"terminated": ended}
            status["state"] = {"running": {"startedAt": started}}
            status.update(started=True, containerID=f"containerd://{uuid.uuid4().hex}")

        self._container(container, change, phase="Running" if container == self.server else "Pending")

    def ends(self, container: str, exit_code: int, reason: str, text: str) -> None:
        """A container ends."""
        finished = self._moment()

        def change(status: Raw) -> None:
            started = (status["state"].get("running") or {}).get("startedAt", finished)
            ended = {"exitCode": exit_code, "reason": reason, "startedAt": started, "finishedAt": finished}
            ended["containerID"] = status.get("containerID", "")
            if text:
                ended["message"] = text
            status["state"] = {"terminated": ended}
            status["ready"] = exit_code == 0
            status["started"] = False

        self._container(container, change)

    def ready(self) -> None:
        """It takes requests."""

        def change(pod: Raw) -> None:
            for each in pod["status"]["containerStatuses"]:
                each["ready"] = True
            _set(pod["status"], "Ready", "True")
            _set(pod["status"], "ContainersReady", "True")

        self._cluster.write_pod(self.namespace, self.name, change)

    def restarts(self, container: str) -> int:
        """How often a container was started again."""
        status = self.raw["status"]
        seen = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
        return next((each["restartCount"] for each in seen if each["name"] == container), 0)

    def _moment(self) -> str:
        """Now, but never the same second twice: restarts are told apart by their times."""
        self._finished = max(datetime.now(UTC), self._finished + timedelta(seconds=1))
        return self._finished.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _state(self, container: str, state: Raw, *, ready: bool) -> None:
        def change(status: Raw) -> None:
            ended = status["state"].get("terminated")
            if ended:
                status["lastState"] = {"terminated": ended}
            status.update(state=state, ready=ready, started=False)

        self._container(container, change)

    def _container(self, container: str, change: Callable[[Raw], None], phase: str = "") -> None:
        def on_pod(pod: Raw) -> None:
            status = pod["status"]
            seen = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
            for each in seen:
                if each["name"] == container:
                    change(each)
            if phase:
                status["phase"] = phase
            if not all(each["ready"] for each in status["containerStatuses"]):
                _not_ready(status, self.server)

        self._cluster.write_pod(self.namespace, self.name, on_pod)


_REVISION = "deployment.kubernetes.io/revision"


def _over_quota(pod: str) -> None:
    said = "requested: requests.memory=100Mi, used: requests.memory=0, limited: requests.memory=16Mi"
    raise Refused(403, "Forbidden", f'pods "{pod}" is forbidden: exceeded quota: team-quota, {said}')


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _owner(found: Mapping[str, Any]) -> Raw:
    return {
        "apiVersion": found["apiVersion"],
        "kind": found["kind"],
        "name": found["metadata"]["name"],
        "uid": found["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _owned_by(found: Mapping[str, Any], uid: str) -> bool:
    return any(each["uid"] == uid for each in found["metadata"].get("ownerReferences") or ())


def _stays(pod: Mapping[str, Any]) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and (pod.get("status") or {}).get("phase") not in (
        "Failed",
        "Succeeded",
    )


def _ready(pod: Mapping[str, Any]) -> bool:
    return _condition(pod.get("status") or {}, "Ready") == "True"


def _condition(status: Mapping[str, Any], type_: str) -> str:
    found = (each["status"] for each in status.get("conditions") or () if each["type"] == type_)
    return next(found, "")


def _set(status: Raw, type_: str, value: str, reason: str = "", text: str = "") -> None:
    conditions = status.setdefault("conditions", [])
    new: Raw = {"type": type_, "status": value, "lastProbeTime": None, "lastTransitionTime": _now()}
    if reason:
        new |= {"reason": reason, "message": text}
    for index, each in enumerate(conditions):
        if each["type"] == type_:
            if each["status"] == value:
                new["lastTransitionTime"] = each["lastTransitionTime"]
            conditions[index] = new
            return
    conditions.append(new)


def _not_ready(status: Raw, container: str) -> None:
    text = f"containers with unready status: [{container}]"
    _set(status, "Ready", "False", "ContainersNotReady", text)
    _set(status, "ContainersReady", "False", "ContainersNotReady", text)


def _fresh(container: Mapping[str, Any], reason: str) -> Raw:
    return {
        "name": container["name"],
        "state": {"waiting": {"reason": reason}},
        "lastState": {},
        "ready": False,
        "restartCount": 0,
        "image": container.get("image", ""),
        "imageID": "",
        "started": False,
    }


def _hash(template: Mapping[str, Any]) -> str:
    text = json.dumps(template, sort_keys=True)
    number = int(hashlib.sha256(text.encode()).hexdigest(), 16)
    letters = []
    for _ in range(10):
        number, rest = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[rest])
    return "".join(letters)


def _term(term: Mapping[str, Any], node: Mapping[str, Any]) -> bool:
    labels = node["metadata"].get("labels") or {}
    fields = {"metadata.name": node["metadata"]["name"]}
    return all(_expression(each, labels) for each in term.get("matchExpressions") or ()) and all(
        _expression(each, fields) for each in term.get("matchFields") or ()
    )


def _expression(each: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(each["key"])
    match each["operator"]:
        case "In":
            return value in each["values"]
        case "NotIn":
            return value not in each["values"]
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and int(value) > int(each["values"][0])
        case _:
            return value is not None and int(value) < int(each["values"][0])


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return bool(
        toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", "")
    )


def _asks(pod: Mapping[str, Any], resource: str) -> float:
    total = 0.0
    for each in pod["spec"]["containers"]:
        resources = each.get("resources") or {}
        found = (resources.get("requests") or {}).get(resource, (resources.get("limits") or {}).get(resource))
        total += quantity(found) if found is not None else 0.0
    return total


def _runtime(name: str, format_: str) -> Raw:
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ClusterServingRuntime",
        "metadata": {"name": name},
        "spec": {
            "supportedModelFormats": [{"name": format_, "autoSelect": True}],
            "protocolVersions": ["v1", "v2"],
            "containers": [
                {
                    "name": "kserve-container",
                    "image": f"kserve/{format_}server:latest",
                    "args": ["--model_name={{.Name}}", "--model_dir=/mnt/models", "--http_port=8080"],
                    "resources": {
                        "requests": {"cpu": "1", "memory": "2Gi"},
                        "limits": {"cpu": "1", "memory": "2Gi"},
                    },
                }
            ],
        },
    }
