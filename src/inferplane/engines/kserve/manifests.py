"""What an endpoint is made of on a cluster: Kubernetes objects as plain dicts. Pure.

One Namespace per endpoint, in it a ServiceAccount, Secrets with credentials of storage in KServe's own conventions,
a ResourceQuota where one is asked for, and one InferenceService. Names are derived from the endpoint, so that
making one twice is noticing it once. Every object carries `labels_of`, by which it is found again.

The InferenceService of a `modelSpec` is written from it. One that was given as a manifest is taken as it is given, and
completed: names, labels, the number of replicas, the service account, the place of its GPUs. Where the endpoint is
as of a revision that is not the manifest's, what that revision says of the model is laid over it.

Nothing that changes by itself stands on the InferenceService: KServe copies its labels and annotations into the pods'
template, so the labels are equal for as long as the revision is. What the engine has to remember stands on the
Namespace (`records.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from base64 import b64encode
from collections.abc import Mapping
from copy import deepcopy
from typing import Any
from urllib.parse import urlsplit

from inferplane.domain.endpoint import InferenceEndpoint, ModelSpec, Resources
from inferplane.domain.errors import Invalid
from inferplane.domain.manifest import model_from_isvc
from inferplane.domain.runtime import CUSTOM_FORMAT
from inferplane.engines.kserve.nodes import place_of
from inferplane.engines.kserve.records import (
    ENDPOINT_LABEL,
    INSTALLATION_LABEL,
    MANAGED_LABEL,
    MANAGER,
    REVISION_LABEL,
    STOP,
    WORKSPACE_LABEL,
)

Manifest = dict[str, Any]
Gpus = tuple[tuple[str, tuple[int, ...]], ...]

SERVICE_ACCOUNT_NAME = "inferplane-model"
SECRET_PREFIX = "inferplane-storage-"  # noqa: S105 - the beginning of a name
QUOTA_NAME = "inferplane-quota"
MODE = "serving.kserve.io/deploymentMode"
LABEL_CHARACTERS_MAX = 63
HOST_SUFFIX = "-predictor-"
"""KServe names a host `<name>-predictor-<namespace>`, which has to be a label of DNS."""
NAME_CHARACTERS_MIN = 12
DIGEST_CHARACTERS = 6

_FRAMEWORKS = ("sklearn", "xgboost", "lightgbm", "onnx", "tensorflow", "pytorch", "triton", "huggingface", "pmml", "paddle")  # fmt: skip
_NO_LABEL = re.compile(r"[^A-Za-z0-9_.-]+")
_GPU_WORDS = ("nvidia.com/", "amd.com/gpu", "gpu.intel.com/", "intel.com/gpu", "habana.ai/")
_OLD_KSERVE = re.compile(r"v?0\.(\d+)")
_STANDARD_SINCE = 16
"""KServe 0.16 calls Standard what was RawDeployment before."""


def labels_of(endpoint: InferenceEndpoint) -> dict[str, str]:
    """By which what is ours is known."""
    return {
        MANAGED_LABEL: MANAGER,
        ENDPOINT_LABEL: endpoint.uid,
        WORKSPACE_LABEL: _label(endpoint.workspace),
    }


def service_name(endpoint: InferenceEndpoint) -> str:
    """What the InferenceService is called: as the endpoint, unless KServe could not make hosts of that.

    KServe wants a letter at the beginning, and makes a host of name and namespace that has to be a label of DNS; a
    name that is too long is cut and made unique again.
    """
    name = endpoint.name if endpoint.name[:1].isalpha() else f"e-{endpoint.name}"
    room = LABEL_CHARACTERS_MAX - len(HOST_SUFFIX) - len(endpoint.namespace)
    longest = max(room, NAME_CHARACTERS_MIN)
    if len(name) <= longest:
        return name
    digest = hashlib.sha256(endpoint.uid.encode()).hexdigest()[:DIGEST_CHARACTERS]
    return f"{name[: longest - DIGEST_CHARACTERS - 1].rstrip('-')}-{digest}"


def namespace(endpoint: InferenceEndpoint, installation: str = "") -> Manifest:
    """The endpoint's own Namespace, which says to which installation it belongs."""
    whose = {INSTALLATION_LABEL: installation} if installation else {}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": endpoint.namespace, "labels": labels_of(endpoint) | whose},
    }


def service_account(endpoint: InferenceEndpoint, secrets: list[Manifest]) -> Manifest:
    """As whom the model's pods run: KServe's storage initializer takes the credentials of its Secrets."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(endpoint, SERVICE_ACCOUNT_NAME),
        "automountServiceAccountToken": False,
        "secrets": [{"name": each["metadata"]["name"]} for each in secrets],
    }


def secrets(endpoint: InferenceEndpoint, secret: Mapping[str, str]) -> list[Manifest]:
    """One Secret for each kind of storage that `secret` has credentials of, in KServe's conventions.

    Of a Secret KServe takes the first kind that it finds, hence several. What no kind of storage knows goes nowhere:
    a model server is not to see it.
    """
    env = {name: value for name, value in secret.items() if value}
    made = []
    if "AWS_ACCESS_KEY_ID" in env or "AWS_SECRET_ACCESS_KEY" in env or _is_anonymous(env):
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        # KServe knows such a Secret by its keys, also where they are empty because none is needed.
        data = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
        data |= {name: env[name] for name in names if name in env}
        made.append(_secret(endpoint, "s3", data, _s3_annotations(env)))
    google = (
        "gcloud-application-credentials.json",
        "GOOGLE_APPLICATION_CREDENTIALS_JSON",
        "GOOGLE_SERVICE_ACCOUNT",
    )
    if text := next((env[name] for name in google if name in env), ""):
        made.append(_secret(endpoint, "gs", {google[0]: text}))
    azure = {name: value for name, value in env.items() if name.startswith(("AZ_", "AZURE_"))}
    if azure:
        made.append(_secret(endpoint, "azure", azure))
    if "HF_TOKEN" in env:
        made.append(
            _secret(endpoint, "hf", {name: env[name] for name in ("HF_TOKEN", "HF_ENDPOINT") if name in env})
        )
    if header := _authorization(env):
        host = urlsplit(endpoint.spec.model.storage_uri).hostname or ""
        data = {"https-host": host, "headers": json.dumps({"authorization": header})}
        made.append(_secret(endpoint, "https", data))
    return made


def quota(endpoint: InferenceEndpoint, hard: Mapping[str, str]) -> Manifest:
    """What the endpoint's pods may take together, in Kubernetes' own words (`requests.cpu`, `pods`, …)."""
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": _metadata(endpoint, QUOTA_NAME),
        "spec": {"hard": dict(sorted(hard.items()))},
    }


def inference_service(endpoint: InferenceEndpoint, gpus: Gpus = (), *, mode: str = "") -> Manifest:
    """The InferenceService of the endpoint as of its revision, running. `mode` "" is the cluster's own choice.

    Raises Invalid for a manifest that cannot be meant (none that was accepted is so).
    """
    spec, given = endpoint.spec, endpoint.spec.manifest
    labels = labels_of(endpoint) | {REVISION_LABEL: str(spec.revision)}
    annotations = {STOP: "false"} | ({MODE: mode} if mode else {})
    if given is None:
        whole: Manifest = {"predictor": _predictor(spec.model)}
    else:
        whole, theirs = _completed(endpoint, given)
        labels = theirs["labels"] | labels
        annotations = annotations | theirs["annotations"] | {STOP: "false"}
    predictor = whole["predictor"]
    predictor["minReplicas"] = max(spec.scaling.min_replicas, 1)
    predictor["maxReplicas"] = max(spec.scaling.max_replicas, predictor["minReplicas"])
    if given is None or predictor.get("timeout") is not None:
        predictor["timeout"] = math.ceil(spec.limits.timeout_seconds)
    predictor.setdefault("serviceAccountName", SERVICE_ACCOUNT_NAME)
    predictor.pop("canaryTrafficPercent", None)
    if gpus:
        _place(predictor, gpus, parts=predictor["maxReplicas"])
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": service_name(endpoint),
            "namespace": endpoint.namespace,
            "labels": dict(sorted(labels.items())),
            "annotations": dict(sorted(annotations.items())),
        },
        "spec": whole,
    }


def standard_mode(kserve_version: str) -> str:
    """What that KServe calls the mode of plain Deployments."""
    found = _OLD_KSERVE.match(kserve_version)
    return "RawDeployment" if found is not None and int(found[1]) < _STANDARD_SINCE else "Standard"


# --- from a modelSpec ---------------------------------------------------------------------------------


def _predictor(model: ModelSpec) -> Manifest:
    if model.format == CUSTOM_FORMAT:
        return {"containers": [_container(model)]}
    return {"model": _model(model)}


def _model(model: ModelSpec) -> Manifest:
    model_format = {"name": model.format} | (
        {"version": model.format_version} if model.format_version else {}
    )
    return _without_nothing(
        {
            "modelFormat": model_format,
            "storageUri": model.storage_uri,
            "runtime": model.runtime,
            # v1 is what is meant where nothing is said; KServe then takes what the runtime speaks.
            "protocolVersion": model.protocol_version if model.protocol_version != "v1" else "",
            "args": list(model.args),
            "env": _env(model),
            "resources": _resources(model.resources),
        }
    )


def _container(model: ModelSpec) -> Manifest:
    return _without_nothing(
        {
            "name": "kserve-container",
            "command": list(model.command),
            "args": list(model.args),
            "env": _env(model),
            "resources": _resources(model.resources),
        }
    )


def _env(model: ModelSpec) -> list[Manifest]:
    return [{"name": name, "value": value} for name, value in model.env]


def _resources(resources: Resources) -> Manifest:
    """Limits, and the same as requests: KServe would request more than a small limit allows."""
    amounts = _amounts(resources)
    return {"limits": amounts, "requests": dict(amounts)} if amounts else {}


def _amounts(resources: Resources) -> dict[str, str]:
    amounts = {}
    if resources.cpu_millis is not None:
        whole, rest = divmod(resources.cpu_millis, 1000)
        amounts["cpu"] = f"{resources.cpu_millis}m" if rest else str(whole)
    if resources.memory_bytes is not None:
        amounts["memory"] = _bytes(resources.memory_bytes)
    return amounts


def _bytes(count: int) -> str:
    for unit, size in (("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if count % size == 0 and count:
            return f"{count // size}{unit}"
    return str(count)


# --- from a manifest ----------------------------------------------------------------------------------


def _completed(
    endpoint: InferenceEndpoint, given: Mapping[str, Any]
) -> tuple[Manifest, dict[str, dict[str, str]]]:
    """The spec of a manifest with the revision's model in it, and the labels and annotations it brings."""
    whole: Manifest = deepcopy(_plain(given.get("spec") or {}))
    predictor = whole.setdefault("predictor", {})
    for framework in _FRAMEWORKS:  # an older spelling, which KServe's webhook would turn into the newer one
        if framework in predictor and "model" not in predictor:
            body = predictor.pop(framework) or {}
            predictor["model"] = {"modelFormat": {"name": framework}} | body
    body = predictor.get("model")
    if isinstance(body, dict):
        if "storageURI" in body:
            body.setdefault("storageUri", body.pop("storageURI"))
        if isinstance(body.get("modelFormat"), str):
            body["modelFormat"] = {"name": body["modelFormat"]}
        version = (body.get("modelFormat") or {}).get("version")
        if isinstance(version, int | float):
            body["modelFormat"]["version"] = str(version)
    model = endpoint.spec.model
    try:
        said = model_from_isvc(given, endpoint_name=endpoint.name, anywhere=True).model
    except Invalid:
        said = model  # its words are not ours: nothing can be laid over it
    if said != model:
        _lay_over(predictor, model)
    metadata = given.get("metadata") or {}
    return whole, {
        "labels": _texts(metadata.get("labels")),
        "annotations": {
            key: value
            for key, value in _texts(metadata.get("annotations")).items()
            if not key.startswith("kubectl.")
        },
    }


def _lay_over(predictor: Manifest, model: ModelSpec) -> None:
    """What another revision says of the model. What it has no words for stays as the manifest has it."""
    if model.format == CUSTOM_FORMAT:
        predictor.pop("model", None)
        containers = predictor.get("containers") or [{"name": "kserve-container"}]
        main = next((each for each in containers if each.get("name") == "kserve-container"), containers[0])
        news = _container(model)
        predictor["containers"] = containers
    else:
        predictor.pop("containers", None)
        main = predictor.setdefault("model", {})
        news = _model(model)
    kept_env = [each for each in main.get("env") or [] if each.get("valueFrom") is not None]
    resources = deepcopy(main.get("resources") or {})
    for key in ("storageUri", "runtime", "protocolVersion", "args", "command", "env"):
        main.pop(key, None)
    main.update({key: value for key, value in news.items() if key != "resources"})
    if kept_env:
        main["env"] = [*news.get("env", []), *kept_env]
    for part, amounts in (news.get("resources") or {}).items():
        resources[part] = (resources.get(part) or {}) | amounts
    if resources:
        main["resources"] = resources


# --- GPUs ---------------------------------------------------------------------------------------------


def _place(predictor: Manifest, gpus: Gpus, *, parts: int) -> None:
    """Ask for the granted GPUs on the granted machines, each of `parts` pods for as many as fit beside the others."""
    places = {name: place_of(name) for name, _ in gpus}
    resource = places[gpus[0][0]].resource
    usable = [(places[name], len(indexes)) for name, indexes in gpus if places[name].resource == resource]
    main = _main_container(predictor)
    resources = main.setdefault("resources", {})
    asked = [name for part in ("limits", "requests") for name in resources.get(part) or {} if _is_gpu(name)]
    if not asked:
        count = str(_each(tuple(number for _, number in usable), parts))
        for part in ("limits", "requests"):
            resources[part] = (resources.get(part) or {}) | {resource: count}
    _bind(predictor, sorted({place.machine for place, _ in usable}))
    tolerations = predictor.setdefault("tolerations", [])
    for key in dict.fromkeys((_taint_of(resource), resource)):
        toleration = {"key": key, "operator": "Exists"}
        if toleration not in tolerations:
            tolerations.append(toleration)


def _each(counts: tuple[int, ...], parts: int) -> int:
    """How many GPUs each of `parts` pods gets when none may be spread over machines: as many as fit, at least 1."""
    for count in range(max(sum(counts) // max(parts, 1), 1), 1, -1):
        if sum(number // count for number in counts) >= parts:
            return count
    return 1


def _taint_of(resource: str) -> str:
    """The taint that keeps machines with such devices for pods that ask for them."""
    return "nvidia.com/gpu" if resource.startswith("nvidia.com/") else resource


def _bind(predictor: Manifest, machines: list[str]) -> None:
    """Only these machines, by the name of the Node (the host's own may differ), beside what a manifest requires."""
    fields = [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [machine]}]}
        for machine in machines
    ]
    node_affinity = predictor.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = node_affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    theirs = required.get("nodeSelectorTerms") or [{}]
    required["nodeSelectorTerms"] = [
        term | {"matchFields": [*(term.get("matchFields") or []), *field["matchFields"]]}
        for term in theirs
        for field in fields
    ]


def _main_container(predictor: Manifest) -> Manifest:
    if isinstance(predictor.get("model"), dict):
        found: Manifest = predictor["model"]
        return found
    containers = predictor.setdefault("containers", [{"name": "kserve-container"}])
    return next((each for each in containers if each.get("name") == "kserve-container"), containers[0])


def _is_gpu(name: str) -> bool:
    return any(name.startswith(word) for word in _GPU_WORDS)


# --- parts --------------------------------------------------------------------------------------------


def _secret(
    endpoint: InferenceEndpoint,
    kind: str,
    data: Mapping[str, str],
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    metadata = _metadata(endpoint, SECRET_PREFIX + kind)
    if annotations:
        metadata["annotations"] = dict(sorted(annotations.items()))
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "data": {name: b64encode(value.encode()).decode() for name, value in sorted(data.items())},
    }


def _s3_annotations(env: Mapping[str, str]) -> dict[str, str]:
    found = {}
    endpoint = env.get("AWS_ENDPOINT_URL") or env.get("S3_ENDPOINT") or ""
    if endpoint:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        found["serving.kserve.io/s3-endpoint"] = parts.netloc + parts.path.rstrip("/")
        found["serving.kserve.io/s3-usehttps"] = "0" if parts.scheme == "http" else "1"
    if region := env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION"):
        found["serving.kserve.io/s3-region"] = region
    if _is_anonymous(env):
        found["serving.kserve.io/s3-useanoncredential"] = "true"
    return found


def _is_anonymous(env: Mapping[str, str]) -> bool:
    return env.get("awsAnonymousCredential", "").lower() in {"1", "true", "yes"}


def _authorization(env: Mapping[str, str]) -> str:
    if token := env.get("HTTP_BEARER_TOKEN"):
        return f"Bearer {token}"
    if "HTTP_USERNAME" in env:
        pair = f"{env['HTTP_USERNAME']}:{env.get('HTTP_PASSWORD', '')}"
        return f"Basic {b64encode(pair.encode()).decode()}"
    return ""


def _metadata(endpoint: InferenceEndpoint, name: str) -> Manifest:
    return {"name": name, "namespace": endpoint.namespace, "labels": labels_of(endpoint)}


def _label(value: str) -> str:
    """A label's value: at most 63 of a few characters, beginning and ending with a letter or digit."""
    return _NO_LABEL.sub("-", value)[:LABEL_CHARACTERS_MAX].strip("-_.")


def _texts(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        return {}
    return {
        str(key): each if isinstance(each, str) else json.dumps(each)
        for key, each in value.items()
        if each is not None
    }


def _plain(value: Any) -> Any:
    """A copy in dicts and lists that may be changed."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _without_nothing(manifest: Manifest) -> Manifest:
    return {key: value for key, value in manifest.items() if value not in ("", [], {}, None)}
