"""What a caller wrote → what it means: the spec of an endpoint and its secret. No I/O.

Both forms end here: a `modelSpec` field by field, and a `rawModelSpec`, which is YAML text from a
stranger. YAML can hold far more than a manifest needs, and some of it (tags, merge keys, aliases
that unfold without end) only serves to hurt; that is refused before anything is built.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import yaml

from inferplane.domain.endpoint import (
    DEFAULT_START_TIMEOUT_SECONDS,
    REPLICAS_MAX,
    EndpointSpec,
    ModelSpec,
    Resources,
    Scaling,
    TrafficLimits,
)
from inferplane.domain.endpoint_access import Access
from inferplane.domain.errors import Invalid, Malformed
from inferplane.domain.manifest import (
    ARGS_MAX,
    ENV_MAX,
    MANIFEST_DEPTH_MAX,
    REQUEST_TIMEOUT_SECONDS_MAX,
    ParsedManifest,
    model_from_isvc,
)
from inferplane.domain.names import check_name
from inferplane.domain.quantity import parse_cpu, parse_duration, parse_memory
from inferplane.domain.runtime import FORMATS, PROTOCOLS, canonical_format, warn_of_args
from inferplane.domain.storage_uri import parse_storage_uri
from inferplane.services.access_drafts import TrafficDraft, access_of, limited, with_rates_of, without_effect
from inferplane.services.findings import Findings
from inferplane.services.gpu_drafts import GpuDraft

SECRETS_MAX = 50
SECRET_CHARACTERS_MAX = 64 * 1024
TEXT_CHARACTERS_MAX = 32 * 1024
MANIFEST_ALIASES_MAX = 20
MANIFEST_EVENTS_MAX = 60_000
START_TIMEOUT_SECONDS_MAX = 24 * 3600
REQUEST_BYTES_MAX = 1024**3
PROVIDER_SHOWN_CHARACTERS_MAX = 40
TARGET_MIN = 0.01
TARGET_MAX = 1_000_000.0
KEY_BY_DEFAULT = (
    "access is key, the default here: only requests with an endpoint key are answered, and POST /endpoint-key"
    " makes one; access open lets in whoever reaches the gateway"
)
SCALE_TO_ZERO_AFTER_MIN = timedelta(seconds=1)
SCALE_TO_ZERO_AFTER_MAX = timedelta(days=365)

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,254}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelDraft:
    """A `modelSpec`. None means not given."""

    format: str
    storage_uri: str | None = None
    format_version: str | None = None
    runtime: str | None = None
    protocol_version: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)
    cpu: str | int | float | None = None
    memory: str | int | None = None
    digest: str | None = None
    start_timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class EndpointDraft:
    """A create request. Exactly one of `model` and `manifest_text` must be given."""

    workspace: str
    name: str
    cluster: str = ""
    cluster_precedence: tuple[str, ...] = ()
    model: ModelDraft | None = None
    manifest_text: str | None = field(default=None, repr=False)
    gpu: GpuDraft | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    autoscaling_provider: str | None = None
    target_concurrency: float | None = None
    target_rate: float | None = None
    scale_to_zero_after: str | None = None
    max_request_bytes: int | None = None
    timeout_seconds: float | None = None
    traffic: TrafficDraft = TrafficDraft()


@dataclass(frozen=True, slots=True)
class Wish:
    """A draft understood. `warnings` are sentences on what has no effect here.

    `access` is None where nothing was said of it; `spec` then has what there was, or open.
    `only_on_kubernetes` refuses it on any cluster that is none of Kubernetes.
    """

    spec: EndpointSpec
    secret: Mapping[str, str] = field(repr=False)
    wants_gpus: bool = False
    gpu_field: str = "gpuSpec"
    format_field: str = "modelSpec.modelName"
    uri_field: str = "modelSpec.storageURI"
    warnings: tuple[str, ...] = ()
    access: Access | None = None
    only_on_kubernetes: tuple[Invalid, ...] = ()


def understand(draft: EndpointDraft, *, manifest_bytes_max: int, present: EndpointSpec | None = None) -> Wish:
    """Turn `draft` into a wish. Raises Invalid with every problem found, Malformed for what is not YAML.

    `present` is what there is, for a change of it: without a manifest, what is not given stays as it is.
    """
    findings = Findings()
    wish = _NOTHING
    findings.check(check_name, draft.name, "endpointName")
    if not draft.workspace:
        findings.add("workspace is needed", field="workspace", reason="Missing")
    if draft.model is not None and draft.manifest_text is not None:
        findings.add(
            "modelSpec and rawModelSpec are both given",
            field="rawModelSpec",
            reason="Contradiction",
            next_action="Give exactly one of them.",
        )
    elif draft.model is not None:
        wish = _from_model(draft.model, findings)
    elif draft.manifest_text is not None:
        parsed = findings.check(_manifest, draft.manifest_text, draft.name, manifest_bytes_max)
        wish = _from_manifest(parsed) if parsed is not None else _NOTHING
    elif present is not None:
        wish = Wish(present, {})
    else:
        findings.add(
            "neither modelSpec nor rawModelSpec is given",
            field="modelSpec",
            reason="Missing",
            next_action="Give exactly one of them.",
        )
    base = wish.spec if present is None or draft.manifest_text is not None else present
    scaling = findings.check(_scaling, draft, base.scaling)
    limits_before = base.limits if present is None else with_rates_of(present.limits, base.limits)
    limits = findings.check(_limits, draft, limits_before)
    access = findings.check(access_of, draft.traffic) or wish.access
    findings.raise_any()
    assert scaling is not None and limits is not None  # noqa: PT018 - or raise_any had raised
    if draft.gpu is not None:
        wish = replace(
            wish, wants_gpus=True, gpu_field="gpuSpec.gpuShape" if draft.gpu.gpu_shape else "gpuSpec"
        )
    warnings = _unused(draft, scaling)
    if warnings:
        wish = replace(wish, warnings=(*wish.warnings, *warnings))
    in_force = access or (wish.spec if present is None else present).access
    return replace(
        wish, access=access, spec=replace(wish.spec, scaling=scaling, limits=limits, access=in_force)
    )


def settled(wish: Wish, draft: EndpointDraft, default_access: Access) -> Wish:
    """The wish of a new endpoint, with the platform's access where none was asked for."""
    access = wish.access or default_access
    warnings = list(wish.warnings)
    if wish.access is None and access is Access.KEY:
        warnings.append(KEY_BY_DEFAULT)
    warnings += without_effect(draft.traffic, access, wish.spec.limits)
    return replace(wish, spec=replace(wish.spec, access=access), warnings=tuple(warnings))


_NOTHING = Wish(EndpointSpec(ModelSpec("", "")), {})


# modelSpec


def _from_model(draft: ModelDraft, findings: Findings) -> Wish:
    path = "modelSpec"
    name = findings.check(canonical_format, draft.format, field=f"{path}.modelName") or ""
    uri = ""
    if draft.storage_uri:
        parsed = findings.check(parse_storage_uri, draft.storage_uri, field=f"{path}.storageURI")
        uri = parsed.text if parsed is not None else ""
    elif name in FORMATS:
        findings.add(
            "the storage URI is needed",
            field=f"{path}.storageURI",
            reason="Missing",
            next_action="Say where the model lies.",
        )
    digest = (draft.digest or "").strip().lower()
    if digest and not _DIGEST.fullmatch(digest):
        findings.add(
            "a digest is sha256: and 64 hexadecimal digits",
            field=f"{path}.digest",
            reason="InvalidDigest",
            next_action="Write the output of sha256sum behind sha256:, or leave it out.",
        )
    protocol = draft.protocol_version or "v1"
    if protocol not in PROTOCOLS:
        findings.add(
            f"“{protocol[:40]}” is not a protocol",
            field=f"{path}.protocolVersion",
            reason="InvalidProtocol",
            next_action=f"Use one of {', '.join(PROTOCOLS)}.",
        )
    findings.check(_check_texts, draft.args, f"{path}.args", ARGS_MAX)
    findings.check(_check_variables, draft.env, f"{path}.env", ENV_MAX, TEXT_CHARACTERS_MAX)
    findings.check(_check_variables, draft.secret, f"{path}.secret", SECRETS_MAX, SECRET_CHARACTERS_MAX)
    timeout = findings.check(
        _seconds,
        draft.start_timeout_seconds,
        f"{path}.startTimeoutSeconds",
        DEFAULT_START_TIMEOUT_SECONDS,
        START_TIMEOUT_SECONDS_MAX,
    )
    model = ModelSpec(
        format=name,
        storage_uri=uri,
        format_version=(draft.format_version or "")[:TEXT_CHARACTERS_MAX],
        runtime=(draft.runtime or "")[:TEXT_CHARACTERS_MAX],
        protocol_version=protocol,
        args=draft.args,
        env=tuple(draft.env.items()),
        resources=_resources(draft, path, findings),
        digest=digest,
        start_timeout_seconds=timeout or DEFAULT_START_TIMEOUT_SECONDS,
    )
    return Wish(
        EndpointSpec(model), dict(draft.secret), warnings=warn_of_args(model.args, f"{path}.args", name)
    )


def _resources(draft: ModelDraft, path: str, findings: Findings) -> Resources:
    cpu = memory = None
    if draft.cpu is not None:
        cpu = findings.check(parse_cpu, draft.cpu, f"{path}.resources.cpu")
    if draft.memory is not None:
        memory = findings.check(parse_memory, draft.memory, f"{path}.resources.memory")
    return Resources(cpu, memory)


def _check_texts(texts: tuple[str, ...], path: str, items_max: int) -> None:
    if len(texts) > items_max:
        raise Invalid(f"{path} has more than {items_max} items", reason="TooMany", field=path)
    for index, text in enumerate(texts):
        if len(text) > TEXT_CHARACTERS_MAX:
            raise Invalid(
                f"{path}[{index}] is longer than {TEXT_CHARACTERS_MAX} characters",
                reason="TooLong",
                field=f"{path}[{index}]",
            )


def _check_variables(values: Mapping[str, str], path: str, items_max: int, characters_max: int) -> None:
    """Never quotes a value: it may be a secret."""
    if len(values) > items_max:
        raise Invalid(f"{path} has more than {items_max} entries", reason="TooMany", field=path)
    for name, value in values.items():
        if not _VARIABLE.fullmatch(name):
            raise Invalid(
                f"“{name[:40]}” is not the name of a variable",
                reason="InvalidName",
                field=path,
                next_action="Use letters, digits and underscores, not beginning with a digit.",
            )
        if len(value) > characters_max:
            raise Invalid(
                f"{path}.{name} is longer than {characters_max} characters", reason="TooLong", field=path
            )


def _seconds(value: float | None, path: str, default: float, largest: float) -> float:
    if value is None:
        return default
    if not math.isfinite(value) or not 0 < value <= largest:
        raise Invalid(
            f"{path} must be more than 0 and at most {largest:g} seconds", reason="OutOfRange", field=path
        )
    return float(value)


# rawModelSpec


def _from_manifest(parsed: ParsedManifest) -> Wish:
    spec = EndpointSpec(
        parsed.model,
        scaling=parsed.scaling,
        limits=parsed.limits,
        stopped=parsed.stopped,
        manifest=parsed.completed,
    )
    return Wish(
        spec,
        {},
        wants_gpus=parsed.wants_gpus,
        gpu_field="rawModelSpec",
        format_field="rawModelSpec",
        uri_field="rawModelSpec",
        warnings=parsed.warnings,
        access=parsed.access,
        only_on_kubernetes=parsed.only_on_kubernetes,
    )


def _manifest(text: str, endpoint_name: str, bytes_max: int) -> ParsedManifest:
    value = parse_yaml(text, "rawModelSpec", bytes_max)
    if not isinstance(value, Mapping):
        raise Invalid(
            "rawModelSpec holds no YAML mapping",
            reason="InvalidManifest",
            field="rawModelSpec",
            next_action="Give an InferenceService, or its spec, as YAML text.",
        )
    return model_from_isvc(value, endpoint_name=endpoint_name, anywhere=True)


def parse_yaml(text: str, path: str, bytes_max: int) -> Any:
    """One YAML document as plain values. Raises Malformed for what is not YAML, Invalid for what is too much."""
    if len(text.encode("utf-8", "replace")) > bytes_max:
        raise Invalid(f"{path} is larger than {bytes_max} bytes", reason="TooLong", field=path)
    try:
        _refuse_harm(text, path)
        return yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe loader, in C where available
    except yaml.YAMLError as error:
        raise Malformed(
            f"{path} is not YAML: {_yaml_sentence(error)}",
            reason="MalformedYaml",
            field=path,
            next_action="Give one YAML document.",
        ) from error
    except (ValueError, OverflowError, RecursionError) as error:
        # The loader lets impossible dates and numbers through to Python's own constructors.
        raise Malformed(
            f"{path} holds a value that cannot be read", reason="MalformedYaml", field=path
        ) from error


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _refuse_harm(text: str, path: str) -> None:
    """Walk over the text's events, building nothing, and refuse what no manifest needs."""
    depth = aliases = 0
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        if isinstance(event, yaml.AliasEvent):
            aliases += 1
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None) not in {None, "!"}:
            raise Invalid(f"{path} uses a YAML tag", reason="InvalidManifest", field=path)
        if isinstance(event, yaml.ScalarEvent) and event.value == "<<":
            raise Invalid(f"{path} uses a YAML merge key", reason="InvalidManifest", field=path)
        if depth > MANIFEST_DEPTH_MAX or aliases > MANIFEST_ALIASES_MAX or count > MANIFEST_EVENTS_MAX:
            raise Invalid(
                f"{path} is nested too deeply or has too many parts", reason="InvalidManifest", field=path
            )


def _yaml_sentence(error: yaml.YAMLError) -> str:
    """The first line of what is wrong, with its place, without quoting the text (which may hold secrets)."""
    problem = getattr(error, "problem", None) or "it cannot be read"
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
    return f"{problem}{where}"[:TEXT_CHARACTERS_MAX]


# Both


def _scaling(draft: EndpointDraft, from_manifest: Scaling) -> Scaling:
    for value, name, lowest in (
        (draft.min_replicas, "minReplicas", 0),
        (draft.max_replicas, "maxReplicas", 1),
    ):
        if value is not None and not lowest <= value <= REPLICAS_MAX:
            raise Invalid(
                f"{name} must be from {lowest} to {REPLICAS_MAX}",
                reason="OutOfRange",
                field=f"autoscaling.{name}",
                next_action="Stop the endpoint to have none at all." if value == 0 else "",
            )
    least = from_manifest.min_replicas if draft.min_replicas is None else draft.min_replicas
    most = draft.max_replicas or max(from_manifest.max_replicas, least)
    if draft.min_replicas is None and most < least:
        least = most  # only the ceiling was given, below the default or the manifest's floor
    if most < least:
        raise Invalid(
            f"minReplicas {least} is greater than maxReplicas {most}",
            reason="OutOfRange",
            field="autoscaling.minReplicas",
            next_action="Lower minReplicas or raise maxReplicas.",
        )
    return Scaling(
        least,
        most,
        _target(draft.target_concurrency, "targetConcurrency", from_manifest.target_concurrency),
        _target(draft.target_rate, "targetRate", from_manifest.target_rate),
        _rest_after(draft.scale_to_zero_after, from_manifest.scale_to_zero_after),
    )


def _unused(draft: EndpointDraft, scaling: Scaling) -> list[str]:
    """What was asked of scaling and has no effect."""
    said = []
    if draft.scale_to_zero_after is not None and not scaling.sleeps:
        said.append("autoscaling.scaleToZeroAfter has no effect, because minReplicas is not 0")
    if scaling.max_replicas <= max(scaling.min_replicas, 1):
        for value, name in (
            (draft.target_concurrency, "targetConcurrency"),
            (draft.target_rate, "targetRate"),
        ):
            if value is not None:
                said.append(f"autoscaling.{name} has no effect, because there is one number of replicas only")
    if draft.autoscaling_provider:
        provider = draft.autoscaling_provider[:PROVIDER_SHOWN_CHARACTERS_MAX]
        said.append(
            f"autoscaling.autoscalingProvider {provider} has no effect: the platform scales by itself"
        )
    return said


def _target(value: float | None, name: str, otherwise: float | None) -> float | None:
    if value is None:
        return otherwise
    if not TARGET_MIN <= value <= TARGET_MAX:
        raise Invalid(
            f"{name} must be from {TARGET_MIN:g} to {TARGET_MAX:g}",
            reason="OutOfRange",
            field=f"autoscaling.{name}",
        )
    return value


def _rest_after(text: str | None, otherwise: timedelta) -> timedelta:
    if text is None:
        return otherwise
    field = "autoscaling.scaleToZeroAfter"
    after = parse_duration(text, field)
    if not SCALE_TO_ZERO_AFTER_MIN <= after <= SCALE_TO_ZERO_AFTER_MAX:
        limits = f"{SCALE_TO_ZERO_AFTER_MIN.seconds}s to {SCALE_TO_ZERO_AFTER_MAX.days}d"
        raise Invalid(f"scaleToZeroAfter must be from {limits}", reason="OutOfRange", field=field)
    return after


def _limits(draft: EndpointDraft, from_manifest: TrafficLimits) -> TrafficLimits:
    size = draft.max_request_bytes
    if size is not None and not 1 <= size <= REQUEST_BYTES_MAX:
        raise Invalid(
            f"maxRequestBytes must be from 1 to {REQUEST_BYTES_MAX}",
            reason="OutOfRange",
            field="limits.maxRequestBytes",
        )
    timeout = _seconds(
        draft.timeout_seconds,
        "limits.timeoutSeconds",
        from_manifest.timeout_seconds,
        REQUEST_TIMEOUT_SECONDS_MAX,
    )
    wanted = replace(
        from_manifest, max_request_bytes=size or from_manifest.max_request_bytes, timeout_seconds=timeout
    )
    return limited(draft.traffic, wanted)
