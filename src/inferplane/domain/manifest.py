"""KServe's InferenceService (v1beta1), read into our own words.

A manifest arrives as plain values (the YAML text is read elsewhere), whole or only its `spec`, and
leaves as a `ParsedManifest`: which model, how many replicas, which limits. What cannot be meant is
refused with the field in the caller's own spelling (`rawModelSpec.spec.predictor.model.storageUri`).
What is understood but has no effect here, or is not understood at all, is kept in `completed` and
named in `warnings`; nothing is dropped in silence.

Manifests come from strangers: YAML can hold cycles, dates, sets and aliases that unfold without
end, so the first step is a bounded copy into plain JSON values. After it, nothing can surprise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from inferplane.domain.endpoint import REPLICAS_MAX, ModelSpec, Resources, Scaling, TrafficLimits
from inferplane.domain.endpoint_access import Access
from inferplane.domain.errors import Invalid
from inferplane.domain.names import NAME_CHARACTERS_MAX
from inferplane.domain.quantity import parse_cpu, parse_memory
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.runtime import (
    CUSTOM_FORMAT,
    FORMATS,
    HUB_FORMATS,
    PROTOCOLS,
    known_formats,
    warn_of_args,
)
from inferplane.domain.storage_uri import parse_storage_uri

API_VERSION = "serving.kserve.io/v1beta1"
KIND = "InferenceService"
STOP_ANNOTATION = "serving.kserve.io/stop"
DEPLOYMENT_MODE_ANNOTATION = "serving.kserve.io/deploymentMode"
ACCESS_ANNOTATION = "inferplane.io/access"
OUR_ANNOTATIONS = "inferplane.io/"
ANNOTATIONS_WARNED_OF_MAX = 5

MANIFEST_DEPTH_MAX = 40
MANIFEST_VALUES_MAX = 20_000
TEXT_CHARACTERS_MAX = 64 * 1024
KEY_CHARACTERS_MAX = 512
ARGS_MAX = 200
ENV_MAX = 200
REQUEST_TIMEOUT_SECONDS_MAX = 3600

# Kinds of accelerator a container can ask for (a trailing dash is a prefix).
_GPU_RESOURCES = ("nvidia.com/gpu", "nvidia.com/mig-", "amd.com/gpu", "intel.com/gpu", "habana.ai/gaudi")
_DEPLOYMENT_MODES = ("Standard", "Knative", "ModelMesh", "RawDeployment", "Serverless")
_LEGACY_FRAMEWORKS = (
    "sklearn", "xgboost", "lightgbm", "onnx",
    "tensorflow", "pytorch", "triton", "huggingface", "pmml", "paddle",
)  # fmt: skip

# Fields of a predictor and of a model that KServe knows. Those read below are among them; the others
# describe pods and matter on clusters only. Anything else is a slip of the pen and is warned about.
_PREDICTOR_WORDS = """
activeDeadlineSeconds affinity annotations autoScaling automountServiceAccountToken batcher
canaryTrafficPercent containerConcurrency containers deploymentStrategy dnsConfig dnsPolicy
enableServiceLinks ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers hostname
hostnameOverride imagePullSecrets initContainers labels logger maxReplicas minReplicas model name
nodeName nodeSelector os overhead preemptionPolicy priority priorityClassName readinessGates
resourceClaims resources restartPolicy runtimeClassName scaleMetric scaleMetricType scaleTarget
schedulerName schedulingGates securityContext serviceAccount serviceAccountName setHostnameAsFQDN
shareProcessNamespace storageContainerName storageUris subdomain terminationGracePeriodSeconds
timeout tolerations topologySpreadConstraints volumes workerSpec
"""
_PREDICTOR_FIELDS = frozenset(_PREDICTOR_WORDS.split()) | frozenset(_LEGACY_FRAMEWORKS)
_MODEL_WORDS = """
args command confidential env envFrom image imagePullPolicy lifecycle livenessProbe modelFormat
name ports protocolVersion readinessProbe resizePolicy resources restartPolicy restartPolicyRules
runtime runtimeVersion securityContext startupProbe stdin stdinOnce storage storageUri storageURI
terminationMessagePath terminationMessagePolicy tty volumeDevices volumeMounts workingDir
"""
_MODEL_FIELDS = frozenset(_MODEL_WORDS.split())
SCALE_TARGET_MAX = 1_000_000
_SCALE_METRICS = ("cpu", "memory", "concurrency", "rps")

_KSERVE_NAME = re.compile(r"[a-z]([a-z0-9\-]*[a-z0-9])?", re.ASCII)
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")  # neither JSON in UTF-8 nor a database takes these
_PROBE_PATH = re.compile(r"/[!-~]{0,1023}", re.ASCII)
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,254}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ParsedManifest:
    """What an InferenceService asks for.

    `metadata_name` is the manifest's own name, or "". `wants_gpus` is True when any container asks
    for an accelerator. `completed` is the whole InferenceService as plain JSON values, with
    apiVersion, kind and name filled in. `stopped` carries KServe's stop annotation, `access` our own
    annotation of that name, None without it. `warnings` are sentences on what has no effect here.
    `only_on_kubernetes` are the refusals of an engine that is not KServe: what it asks for, only a cluster has.
    """

    model: ModelSpec
    scaling: Scaling
    limits: TrafficLimits
    wants_gpus: bool
    metadata_name: str
    completed: Mapping[str, Any]
    stopped: bool = False
    warnings: tuple[str, ...] = ()
    access: Access | None = None
    only_on_kubernetes: tuple[Invalid, ...] = ()


def model_from_isvc(
    manifest: Mapping[str, Any], *, endpoint_name: str, field: str = "rawModelSpec", anywhere: bool = False
) -> ParsedManifest:
    """Read a whole InferenceService, a mapping with `spec`, or a bare `predictor`.

    Raises Invalid (and nothing else, whatever is given) naming the field that cannot be meant; unless `anywhere`
    also for what only a cluster of Kubernetes can serve.
    """
    whole = _mapping(_plain(manifest, field, _Budget()), field)
    _check_kind(whole, field)
    metadata = _mapping(whole.get("metadata") or {}, f"{field}.metadata")
    name = _metadata_name(metadata, f"{field}.metadata.name")
    if "spec" in whole or "predictor" not in whole:
        spec, path = _mapping(whole.get("spec") or {}, f"{field}.spec"), f"{field}.spec"
    else:
        spec, path = {"predictor": whole["predictor"]}, field
    only: list[Invalid] = []
    _refuse_other_components(spec, path, only)
    predictor = _mapping(spec.get("predictor") or {}, f"{path}.predictor")
    path = f"{path}.predictor"

    warnings: list[str] = []
    _warn_of_annotations(metadata, f"{field}.metadata.annotations", warnings)
    _warn_of_unknown(predictor, _PREDICTOR_FIELDS, path, warnings)
    if predictor.get("canaryTrafficPercent") is not None:
        warnings.append(
            f"{path}.canaryTrafficPercent has no effect here: a new endpoint gets all of its own traffic"
        )
    model, wants_gpus = _model(predictor, path, warnings, only)
    if only and not anywhere:
        raise only[0]
    if name and name != endpoint_name:
        model = replace(model, alias=name)
    completed = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {**metadata, "name": name or endpoint_name},
        "spec": spec,
    }
    return ParsedManifest(
        model=model,
        scaling=_scaling(predictor, path, warnings),
        limits=_limits(predictor, path),
        wants_gpus=wants_gpus,
        metadata_name=name,
        completed=completed,
        stopped=_stopped(metadata, f"{field}.metadata.annotations"),
        warnings=tuple(warnings),
        access=_access(metadata, f"{field}.metadata.annotations"),
        only_on_kubernetes=tuple(only),
    )


def resources_from(value: Any, field: str) -> tuple[Resources, bool]:
    """Limits of one replica, and whether an accelerator is asked for.

    Takes Kubernetes' `{limits: {…}, requests: {…}}` and the flat `{cpu, memory}` of a modelSpec. A
    limit is a limit; a request alone reserves, which means nothing on one machine, and limits
    nothing. Raises Invalid for a quantity that is none, and for a request above its limit.
    """
    resources = _mapping(value or {}, field)
    nested = "limits" in resources or "requests" in resources
    limits = _mapping(resources.get("limits") or {}, f"{field}.limits") if nested else resources
    requests = _mapping(resources.get("requests") or {}, f"{field}.requests") if nested else {}
    limits_path, requests_path = (f"{field}.limits" if nested else field), f"{field}.requests"
    parsed = {}
    for name, parse in (("cpu", parse_cpu), ("memory", parse_memory)):
        limit = _amount(parse, limits.get(name), f"{limits_path}.{name}")
        request = _amount(parse, requests.get(name), f"{requests_path}.{name}")
        if limit is not None and request is not None and request > limit:
            raise _invalid(
                f"the {name} request {_shown(requests[name])} is above its limit {_shown(limits[name])}",
                f"{requests_path}.{name}",
            )
        parsed[name] = limit
    wants_gpus = any(
        _is_gpu(name) and str(amount) not in {"0", "None"}
        for amounts in (limits, requests)
        for name, amount in amounts.items()
    )
    return Resources(cpu_millis=parsed["cpu"], memory_bytes=parsed["memory"]), wants_gpus


def _check_kind(whole: Mapping[str, Any], field: str) -> None:
    for key, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        if whole.get(key) not in (None, expected):
            raise _invalid(
                f"{key} is {_shown(whole[key])}, but only {expected} is read here",
                f"{field}.{key}",
                f"Give an {KIND} of {API_VERSION}, or only its spec.",
            )


def _metadata_name(metadata: Mapping[str, Any], field: str) -> str:
    name = metadata.get("name")
    if name is None:
        return ""
    if not isinstance(name, str) or not _KSERVE_NAME.fullmatch(name):
        raise _invalid(
            f"{_shown(name)} cannot be an InferenceService's name",
            field,
            "It has lower-case letters, digits and hyphens, begins with a letter and ends with a letter or digit.",
            reason="InvalidName",
        )
    if len(name) > NAME_CHARACTERS_MAX:
        raise _invalid(
            f"the name is {len(name)} characters long; at most {NAME_CHARACTERS_MAX} are allowed",
            field,
            "Choose a shorter name.",
            reason="InvalidName",
        )
    return name


def _refuse_other_components(spec: Mapping[str, Any], path: str, only: list[Invalid]) -> None:
    """A transformer or explainer changes what is answered: leaving it out in silence would be wrong."""
    only.extend(
        _invalid(
            f"an InferenceService with a {component} runs on clusters with engine kserve only",
            f"{path}.{component}",
            f"Leave {component} out, or use a cluster with engine kserve.",
            reason=ReasonCode.NO_RUNTIME.value,
        )
        for component in ("transformer", "explainer", "canary")
        if spec.get(component)
    )


def _model(
    predictor: Mapping[str, Any], path: str, warnings: list[str], only: list[Invalid]
) -> tuple[ModelSpec, bool]:
    """The one implementation in a predictor: `model`, an older framework key, or `containers`."""
    given = [name for name in ("model", *_LEGACY_FRAMEWORKS) if predictor.get(name) is not None]
    if len(given) > 1:
        raise _invalid(
            f"a predictor has exactly one model, but this one has {' and '.join(given)}",
            f"{path}.{given[1]}",
            f"Keep one of {', '.join(given)}.",
        )
    only.extend(
        _invalid(
            f"{what} ({key}) can be served on clusters with engine kserve only",
            f"{path}.{key}",
            "Use a cluster with engine kserve.",
            reason=ReasonCode.NO_RUNTIME.value,
        )
        for key, what in (
            ("workerSpec", "a model over several nodes"),
            ("storageUris", "several storage URIs"),
        )
        if predictor.get(key)
    )
    is_elsewhere = bool(predictor.get("storageUris"))
    if given:
        body = _mapping(predictor[given[0]], f"{path}.{given[0]}")
        _warn_of_unknown(body, _MODEL_FIELDS, f"{path}.{given[0]}", warnings)
        framework = "" if given[0] == "model" else given[0]
        return _model_body(body, f"{path}.{given[0]}", framework, warnings, only, is_elsewhere=is_elsewhere)
    if predictor.get("containers"):
        return _containers(predictor["containers"], f"{path}.containers", warnings)
    raise _invalid(
        "the predictor has no model",
        f"{path}.model",
        "Give predictor.model with modelFormat and storageUri.",
    )


def _model_body(
    body: Mapping[str, Any],
    path: str,
    framework: str,
    warnings: list[str],
    only: list[Invalid],
    *,
    is_elsewhere: bool,
) -> tuple[ModelSpec, bool]:
    """`is_elsewhere`: the predictor itself says where the model lies."""
    if body.get("name"):
        raise _invalid("the model's own name must stay empty; the endpoint's name is used", f"{path}.name")
    if body.get("storage") is not None:
        only.append(
            _invalid(
                "storage with a key reads a Secret of the cluster and works on clusters with engine kserve only",
                f"{path}.storage",
                "Give storageUri, and credentials in modelSpec.secret.",
                reason=ReasonCode.SCHEME_NOT_SUPPORTED.value,
            )
        )
        is_elsewhere = True
    warnings.extend(
        f"{path}.{key} has no effect on the local engine, which brings its own model server"
        for key in ("image", "command", "envFrom")
        if body.get(key)
    )
    name, version = (framework, "") if framework else _model_format(body, path)
    resources, wants_gpus = resources_from(body.get("resources"), f"{path}.resources")
    args = _args(body.get("args"), f"{path}.args")
    warnings.extend(warn_of_args(args, f"{path}.args", name))
    model = ModelSpec(
        format=name,
        storage_uri=_storage_uri(body, path, "" if is_elsewhere else name, warnings),
        format_version=version,
        runtime=_text(body.get("runtime"), f"{path}.runtime"),
        protocol_version=_protocol(body, path),
        args=args,
        env=_env(body.get("env"), f"{path}.env", warnings),
        resources=resources,
    )
    return model, wants_gpus


def _model_format(body: Mapping[str, Any], path: str) -> tuple[str, str]:
    path = f"{path}.modelFormat"
    model_format = body.get("modelFormat")
    if isinstance(model_format, str):  # a common slip, and it can mean only one thing
        model_format = {"name": model_format}
    model_format = _mapping(model_format or {}, path)
    name = _text(model_format.get("name"), f"{path}.name").strip()
    if not name:
        raise _invalid(
            "the model's format is needed",
            f"{path}.name",
            f"Give one of {', '.join(FORMATS)}.",
            reason=ReasonCode.UNSUPPORTED_FORMAT.value,
        )
    version = model_format.get("version")
    if isinstance(version, int | float) and not isinstance(version, bool):
        version = str(version)
    lowered = name.lower()
    return lowered if lowered in known_formats() else name, _text(version, f"{path}.version")


def _storage_uri(body: Mapping[str, Any], path: str, name: str, warnings: list[str]) -> str:
    uri, other = body.get("storageUri"), body.get("storageURI")
    key = "storageUri"
    if uri is not None and other is not None and uri != other:
        raise _invalid(
            "storageUri and storageURI differ, so it is not clear which is meant",
            f"{path}.storageURI",
            "Keep storageUri.",
        )
    if uri is None and other is not None:
        uri, key = other, "storageURI"
        warnings.append(f"{path}.storageURI is read as storageUri, which is KServe's spelling")
    if uri in (None, ""):
        if repository := _model_id(body.get("args"), name):
            return parse_storage_uri(f"hf://{repository}", field=f"{path}.args").text
        if name in FORMATS:
            raise _invalid(
                "the storage URI is needed",
                f"{path}.storageUri",
                "Say where the model lies.",
                reason="InvalidStorageUri",
            )
        return ""
    return parse_storage_uri(uri, field=f"{path}.{key}").text


def _model_id(args: Any, name: str) -> str:
    """The hub's repository that KServe's Hugging Face server is told by an argument instead of a URI, or ""."""
    if name not in HUB_FORMATS or not isinstance(args, list):
        return ""
    words = [str(arg) for arg in args]
    for index, word in enumerate(words):
        flag, found, value = word.replace("_", "-").partition("=")
        if flag == "--model-id":
            return word.partition("=")[2] if found else next(iter(words[index + 1 : index + 2]), value)
    return ""


def _protocol(body: Mapping[str, Any], path: str) -> str:
    protocol = body.get("protocolVersion") or "v1"
    if protocol not in PROTOCOLS:
        raise _invalid(
            f"{_shown(protocol)} is not a protocol",
            f"{path}.protocolVersion",
            f"Use one of {', '.join(PROTOCOLS)}.",
        )
    return str(protocol)


def _containers(value: Any, path: str, warnings: list[str]) -> tuple[ModelSpec, bool]:
    """A server of the user's own: a command to run here, or an image, which only clusters run."""
    if not isinstance(value, list):
        raise _invalid("containers must be a list", path)
    containers = [_mapping(each, f"{path}[{index}]") for index, each in enumerate(value)]
    main = next((i for i, each in enumerate(containers) if each.get("name") == "kserve-container"), 0)
    body, path = containers[main], f"{path}[{main}]"
    resources, wants_gpus = resources_from(body.get("resources"), f"{path}.resources")
    for index, each in enumerate(containers):
        if index != main:
            wants_gpus |= resources_from(each.get("resources"), f"{path}.resources")[1]
    env = _env(body.get("env"), f"{path}.env", warnings)
    uri = dict(env).get("STORAGE_URI", "")
    model = ModelSpec(
        format=CUSTOM_FORMAT,
        storage_uri=parse_storage_uri(uri, field=f"{path}.env").text if uri else "",
        args=_args(body.get("args"), f"{path}.args"),
        env=env,
        resources=resources,
        command=_args(body.get("command"), f"{path}.command"),
        ready_path=_ready_path(body, path, warnings),
    )
    if model.command and body.get("image"):
        warnings.append(f"{path}.image has no effect on the local engine, which runs the command itself")
    return model, wants_gpus


def _ready_path(body: Mapping[str, Any], path: str, warnings: list[str]) -> str:
    """Where the container says that it is ready, or "" for the usual places."""
    probe = _mapping(body.get("readinessProbe") or {}, f"{path}.readinessProbe")
    if not probe:
        return ""
    path = f"{path}.readinessProbe.httpGet"
    if probe.get("httpGet") is None:
        warnings.append(f"{path} is the only kind of readiness probe that the local engine knows")
        return ""
    found = _text(_mapping(probe["httpGet"], path).get("path"), f"{path}.path") or "/"
    if not _PROBE_PATH.fullmatch(found):
        raise _invalid(f"{_shown(found)} is not the path of a URL", f"{path}.path")
    return found


def _args(value: Any, path: str) -> tuple[str, ...]:
    items = _list(value, path, ARGS_MAX)
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise _invalid(f"{_shown(item)} is not text", f"{path}[{index}]", "Put it in quotes.")
    return tuple(items)


def _env(value: Any, path: str, warnings: list[str]) -> tuple[tuple[str, str], ...]:
    env: dict[str, str] = {}
    for index, item in enumerate(_list(value, path, ENV_MAX)):
        entry = _mapping(item, f"{path}[{index}]")
        name = entry.get("name")
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            raise _invalid(f"{_shown(name)} is not the name of a variable", f"{path}[{index}].name")
        if entry.get("valueFrom") is not None:
            warnings.append(
                f"{path}[{index}]: {name} comes from the cluster (valueFrom), which the local engine does not have"
            )
            continue
        text = entry.get("value")
        if text is not None and not isinstance(text, str):
            # The variable is named and its value is not: it may be a password.
            raise _invalid(f"the value of {name} is not text", f"{path}[{index}].value", "Put it in quotes.")
        env[name] = text or ""  # the last of two of one name wins, as in a container
    return tuple(env.items())


def _scaling(predictor: Mapping[str, Any], path: str, warnings: list[str]) -> Scaling:
    given = _whole(predictor.get("minReplicas"), f"{path}.minReplicas")
    least = 1 if given is None else given
    most = _whole(predictor.get("maxReplicas"), f"{path}.maxReplicas") or max(least, 1)
    if most < least:
        raise _invalid(
            f"minReplicas {least} is greater than maxReplicas {most}",
            f"{path}.minReplicas",
            "Lower minReplicas or raise maxReplicas.",
        )
    metric = predictor.get("scaleMetric")
    if metric is not None and metric not in _SCALE_METRICS:
        raise _invalid(
            f"{_shown(metric)} is not something to scale by",
            f"{path}.scaleMetric",
            f"Use one of {', '.join(_SCALE_METRICS)}.",
        )
    if metric in ("cpu", "memory"):
        warnings.append(f"{path}.scaleMetric {metric} has no effect: it is scaled by requests at once")
    target = _scale_target(predictor.get("scaleTarget"), f"{path}.scaleTarget")
    if target is not None and metric in ("cpu", "memory"):
        target = None  # percent of something that is not measured here
    if metric == "rps":
        return Scaling(least, most, target_rate=target)
    return Scaling(least, most, target_concurrency=target)


def _scale_target(value: Any, path: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= SCALE_TARGET_MAX:
        raise _invalid(f"{_shown(value)} is not a whole number from 0 to {SCALE_TARGET_MAX}", path)
    return float(value) or None


def _whole(value: Any, path: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= REPLICAS_MAX:
        raise _invalid(f"{_shown(value)} is not a whole number from 0 to {REPLICAS_MAX}", path)
    return value


def _limits(predictor: Mapping[str, Any], path: str) -> TrafficLimits:
    timeout = predictor.get("timeout")
    if timeout is None:
        return TrafficLimits()
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, int)
        or not 1 <= timeout <= REQUEST_TIMEOUT_SECONDS_MAX
    ):
        raise _invalid(
            f"{_shown(timeout)} is not a whole number of seconds from 1 to {REQUEST_TIMEOUT_SECONDS_MAX}",
            f"{path}.timeout",
        )
    return TrafficLimits(timeout_seconds=float(timeout))


def _stopped(metadata: Mapping[str, Any], path: str) -> bool:
    annotations = _mapping(metadata.get("annotations") or {}, path)
    mode = annotations.get(DEPLOYMENT_MODE_ANNOTATION)
    if mode is not None and mode not in _DEPLOYMENT_MODES:
        raise _invalid(
            f"{_shown(mode)} is not a deployment mode",
            f"{path}[{DEPLOYMENT_MODE_ANNOTATION}]",
            f"Use one of {', '.join(_DEPLOYMENT_MODES)}.",
        )
    stop = annotations.get(STOP_ANNOTATION)
    return stop is True or (isinstance(stop, str) and stop.lower() == "true")


def _warn_of_annotations(metadata: Mapping[str, Any], path: str, warnings: list[str]) -> None:
    """Say which annotations look like ours and are none: a misspelt one would change nothing, in silence."""
    annotations = _mapping(metadata.get("annotations") or {}, path)
    unknown = sorted(
        name for name in annotations if name.startswith(OUR_ANNOTATIONS) and name != ACCESS_ANNOTATION
    )
    warnings += [
        f"{path}[{name[:80]}] is not known and has no effect; known is {ACCESS_ANNOTATION}"
        for name in unknown[:ANNOTATIONS_WARNED_OF_MAX]
    ]


def _access(metadata: Mapping[str, Any], path: str) -> Access | None:
    """Who may send requests, by our own annotation; None where nothing is said."""
    value = _mapping(metadata.get("annotations") or {}, path).get(ACCESS_ANNOTATION)
    if value is None:
        return None
    if value not in tuple(Access):
        raise _invalid(
            f"{_shown(value)} is not a kind of access",
            f"{path}[{ACCESS_ANNOTATION}]",
            f"Use one of {', '.join(Access)}.",
            reason="InvalidAccess",
        )
    return Access(value)


def _warn_of_unknown(body: Mapping[str, Any], known: frozenset[str], path: str, warnings: list[str]) -> None:
    warnings.extend(f"{path}.{key} is not a field of an InferenceService" for key in body if key not in known)


@dataclass(slots=True)
class _Budget:
    """How many values may still be copied; aliases in YAML can unfold to more than fits anywhere."""

    left: int = MANIFEST_VALUES_MAX


def _plain(value: Any, path: str, budget: _Budget, depth: int = 0) -> Any:
    """A copy in JSON's own values, or Invalid: bounded in depth, number of values and length of texts."""
    budget.left -= 1
    if budget.left < 0:
        raise _invalid(f"the manifest holds more than {MANIFEST_VALUES_MAX} values", path)
    if depth > MANIFEST_DEPTH_MAX:
        raise _invalid(f"the manifest is nested more than {MANIFEST_DEPTH_MAX} deep", path)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        if len(value) > TEXT_CHARACTERS_MAX or _UNSTORABLE.search(value):
            raise _invalid("a text in the manifest is too long, or holds characters that are none", path)
        return str(value)
    if isinstance(value, int):
        if value.bit_length() > 64:
            raise _invalid("a number in the manifest is too large", path)
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _invalid(f"{value} is not a number that a manifest can hold", path)
        return float(value)
    if isinstance(value, Mapping):
        return {
            _key(key, path): _plain(each, f"{path}.{key}", budget, depth + 1) for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(each, f"{path}[{index}]", budget, depth + 1) for index, each in enumerate(value)]
    raise _invalid(
        f"a value of the kind {type(value).__name__} has no place in a manifest",
        path,
        "If it is meant as text, put it in quotes.",
    )


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str) or len(key) > KEY_CHARACTERS_MAX or _UNSTORABLE.search(key):
        raise _invalid(f"{_shown(key)} cannot be the name of a field", path, "Put it in quotes.")
    return str(key)


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _invalid(f"{path} must be an object with fields", path)
    return value


def _list(value: Any, path: str, longest: int) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise _invalid(f"{path} must be a list", path)
    if len(value) > longest:
        raise _invalid(f"{path} has {len(value)} entries; at most {longest} are allowed", path)
    return value


def _text(value: Any, path: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _invalid(f"{_shown(value)} is not text", path, "Put it in quotes.")
    return value


def _amount(parse: Any, value: Any, path: str) -> int | None:
    return None if value is None else parse(value, path)


def _is_gpu(name: str) -> bool:
    return any(name == gpu or (gpu.endswith("-") and name.startswith(gpu)) for gpu in _GPU_RESOURCES)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f"“{value[:80]}”"
    if value is None or isinstance(value, bool | int | float):
        return f"“{value}”"
    return "an object" if isinstance(value, Mapping) else "a list"


def _invalid(message: str, field: str, next_action: str = "", *, reason: str = "InvalidManifest") -> Invalid:
    return Invalid(message, reason=reason, field=field, next_action=next_action)
