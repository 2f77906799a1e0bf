"""What stands before the store: the checks of metadata that every object passes, and KServe's two webhooks.

The webhooks say what the real ones were recorded to say, wrong places included: a missing predictor makes the
defaulter panic (500), wrong types never reach the structural validation (400).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from kube_api import schema
from kube_api.kinds import Kind
from kube_api.refusals import Refused, bad_request, forbidden, invalid
from kube_api.schema import Cause

Raw = dict[str, Any]

_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_VALUE = r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?"

LABEL_CHARS_MAX = 63
NAME_CHARS_MAX = 253
ANNOTATIONS_BYTES_MAX = 256 * 1024


def _subdomain_text(name: str) -> str:
    return (
        f"Invalid value: {schema.show(name)}: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric "
        "characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex "
        f"used for validation is '{_SUBDOMAIN}')"
    )


def _label_text(name: str) -> str:
    return (
        f"Invalid value: {schema.show(name)}: a lowercase RFC 1123 label must consist of lower case alphanumeric "
        "characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', "
        f"regex used for validation is '{_LABEL}')"
    )


def check_types(kind: Kind, object: Mapping[str, Any]) -> None:
    """What decoding refuses: metadata and, for built-in kinds, fields of the wrong type. Raises Refused (400)."""
    metadata = object.get("metadata", {})

    def cannot(value: Any, field: str, type_: str) -> Refused:
        got = schema.show(value) if isinstance(value, bool) else type(value).__name__
        got = {"int": "number", "float": "number", "str": "string", "dict": "object", "list": "array"}.get(
            got, got
        )
        return bad_request(
            f'{kind.name} in version "{kind.version}" cannot be handled as a {kind.name}: json: cannot unmarshal '
            f"{got} into Go struct field {field} of type {type_}"
        )

    if not isinstance(metadata, dict):
        raise cannot(metadata, f"{kind.name}.metadata", "v1.ObjectMeta")
    for name in ("name", "namespace", "generateName", "uid", "resourceVersion"):
        if not isinstance(metadata.get(name, ""), str):
            raise cannot(metadata[name], f"ObjectMeta.metadata.{name}", "string")
    for name in ("labels", "annotations"):
        found = metadata.get(name)
        if found is None:
            continue
        if not isinstance(found, dict):
            raise cannot(found, f"ObjectMeta.metadata.{name}", "map[string]string")
        for each in found.values():
            if not isinstance(each, str):
                raise cannot(each, f"ObjectMeta.metadata.{name}", "string")
    by_hand = None if kind.custom else schema.of_kind(kind)
    if by_hand is not None:
        for cause in schema.violations(object, by_hand):
            wanted = cause.message.rpartition("must be of type ")[2].partition(":")[0]
            got = cause.message.rpartition(': "')[2].rstrip('"')
            raise bad_request(
                f'{kind.name} in version "{kind.version}" cannot be handled as a {kind.name}: json: cannot '
                f"unmarshal {got} into Go struct field {kind.name}.{cause.field} of type {wanted}"
            )
    if kind.name == "Secret":
        _check_base64(kind, object)


def _check_base64(kind: Kind, object: Mapping[str, Any]) -> None:
    for value in (object.get("data") or {}).values():
        try:
            base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise bad_request(
                f'{kind.name} in version "{kind.version}" cannot be handled as a {kind.name}: illegal base64 data at '
                "input byte 0"
            ) from None


def normalise(kind: Kind, object: Raw) -> None:
    """What the server itself fills in for a built-in kind, in place."""
    if kind.name == "Secret":
        for key, value in (object.pop("stringData", None) or {}).items():
            object.setdefault("data", {})[key] = base64.b64encode(value.encode()).decode()
        object.setdefault("type", "Opaque")
    elif kind.name == "Namespace":
        object["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = object["metadata"][
            "name"
        ]
        object.setdefault("spec", {}).setdefault("finalizers", ["kubernetes"])
        object.setdefault("status", {}).setdefault("phase", "Active")
    elif kind.name == "Pod":
        object.setdefault("status", {}).setdefault("phase", "Pending")
    elif kind.name == "Service":
        object.setdefault("spec", {}).setdefault("type", "ClusterIP")


def check_metadata(kind: Kind, object: Mapping[str, Any]) -> None:
    """Names, labels and annotations. Raises Refused (422)."""
    metadata = object["metadata"]
    name = metadata.get("name", "")
    causes: list[Cause] = []
    if kind.dns_label:
        if not re.fullmatch(_LABEL, name):
            causes.append(Cause("metadata.name", "FieldValueInvalid", _label_text(name)))
        elif len(name) > LABEL_CHARS_MAX:
            text = f"Invalid value: {schema.show(name)}: must be no more than {LABEL_CHARS_MAX} characters"
            causes.append(Cause("metadata.name", "FieldValueInvalid", text))
    elif kind.group == "rbac.authorization.k8s.io":
        if "/" in name or "%" in name or name in (".", ".."):
            causes.append(Cause("metadata.name", "FieldValueInvalid", f"Invalid value: {schema.show(name)}"))
    elif not re.fullmatch(_SUBDOMAIN, name):
        causes.append(Cause("metadata.name", "FieldValueInvalid", _subdomain_text(name)))
    elif len(name) > NAME_CHARS_MAX:
        text = f"Invalid value: {schema.show(name)}: must be no more than {NAME_CHARS_MAX} characters"
        causes.append(Cause("metadata.name", "FieldValueInvalid", text))
    for where in ("labels", "annotations"):
        for key, value in (metadata.get(where) or {}).items():
            causes += _of_key(f"metadata.{where}", key)
            if where == "labels":
                causes += _of_value("metadata.labels", value)
    size = sum(len(key) + len(each) for key, each in (metadata.get("annotations") or {}).items())
    if size > ANNOTATIONS_BYTES_MAX:
        text = f"Too long: may not be more than {ANNOTATIONS_BYTES_MAX} bytes"
        causes.append(Cause("metadata.annotations", "FieldValueTooLong", text))
    if causes:
        raise invalid(kind, name, causes)


def _of_key(where: str, key: str) -> list[Cause]:
    prefix, slash, name = key.rpartition("/")
    good = bool(re.fullmatch(_QUALIFIED, name)) and len(name) <= LABEL_CHARS_MAX
    if slash:
        good = good and bool(re.fullmatch(_SUBDOMAIN, prefix))
    if good:
        return []
    text = (
        f"Invalid value: {schema.show(key)}: name part must consist of alphanumeric characters, '-', '_' or '.', and "
        "must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used "
        f"for validation is '{_QUALIFIED}')"
    )
    return [Cause(where, "FieldValueInvalid", text)]


def _of_value(where: str, value: str) -> list[Cause]:
    if len(value) > LABEL_CHARS_MAX:
        text = f"Invalid value: {schema.show(value)}: must be no more than {LABEL_CHARS_MAX} characters"
        return [Cause(where, "FieldValueInvalid", text)]
    if re.fullmatch(_VALUE, value):
        return []
    text = (
        f"Invalid value: {schema.show(value)}: a valid label must be an empty string or consist of alphanumeric "
        "characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or "
        f"'my_value',  or '12345', regex used for validation is '{_VALUE}')"
    )
    return [Cause(where, "FieldValueInvalid", text)]


# -- KServe's webhooks --------------------------------------------------------------------------------

FRAMEWORKS = (
    "sklearn",
    "xgboost",
    "tensorflow",
    "pytorch",
    "triton",
    "onnx",
    "huggingface",
    "pmml",
    "lightgbm",
    "paddle",
)
_MODE = "serving.kserve.io/deploymentMode"
_ISVC_NAME = "[a-z]([-a-z0-9]*[a-z0-9])?"
_QUANTITY = r"^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"


def _defaulter(code: int, text: str) -> Refused:
    return Refused(
        code,
        "",
        f'admission webhook "inferenceservice.kserve-webhook-server.defaulter" denied the request: {text}',
    )


def _validator(text: str) -> Refused:
    return Refused(
        403,
        "Forbidden",
        f'admission webhook "inferenceservice.kserve-webhook-server.validator" denied the request: {text}',
    )


def kserve_defaults(object: Raw, types: schema.Schema | None) -> None:
    """The mutating webhook of InferenceService, in place. Raises Refused."""
    _check_go_types(object, types)
    predictor = (object.get("spec") or {}).get("predictor") or {}
    named = [each for each in FRAMEWORKS if each in predictor]
    if not named and "model" not in predictor and not predictor.get("containers"):
        raise _defaulter(500, "panic: runtime error: index out of range [0] with length 0 [recovered]")
    if len(named) == 1:
        # With both `model` and a framework, the framework wins and what the user wrote as `model` is gone.
        framework = predictor.pop(named[0]) or {}
        predictor["model"] = {"modelFormat": {"name": named[0]}, **framework}
    annotations = object["metadata"].setdefault("annotations", {})
    annotations.setdefault(_MODE, "Standard")
    model = predictor.get("model")
    if model is not None:
        format_ = model.setdefault("modelFormat", {})
        format_.setdefault("name", "")
        model.setdefault("name", "")
        model.setdefault("resources", {})
        if format_["name"]:
            annotations["modelFormat"] = format_["name"]


def _check_go_types(object: Raw, types: schema.Schema | None) -> None:
    if types is None:
        return
    for cause in schema.violations(object, types):
        if cause.reason == "FieldValueTypeInvalid":
            name = cause.field.rpartition(".")[2]
            got = cause.message.rpartition(': "')[2].rstrip('"')
            wanted = cause.message.rpartition("must be of type ")[2].partition(":")[0]
            wanted = {"integer": "int32", "boolean": "bool", "object": "map[string]json.RawMessage"}.get(
                wanted, wanted
            )
            field = f"InferenceService.{cause.field}"
            if cause.field in ("spec.predictor.minReplicas", "spec.predictor.maxReplicas"):
                field = f"PredictorSpec.spec.predictor.ComponentExtensionSpec.{name}"
            raise _defaulter(
                400, f"json: cannot unmarshal {got} into Go struct field {field} of type {wanted}"
            )
        if ".resources." in cause.field:
            raise _defaulter(400, f"quantities must match the regular expression '{_QUANTITY}'")


def kserve_checks(object: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
    """The validating webhook of InferenceService. Raises Refused (403)."""
    name = object["metadata"]["name"]
    if not re.fullmatch(_ISVC_NAME, name):
        raise _validator(
            f'the InferenceService "{name}" is invalid: a InferenceService name must consist of lower case alphanumeric '
            'characters or \'-\', and must start with alphabetical character. (e.g. "my-name" or "abc-123", regex '
            f"used for validation is '{_ISVC_NAME}')"
        )
    predictor = object["spec"]["predictor"]
    if before is not None:
        was = (before["metadata"].get("annotations") or {}).get(_MODE, "Standard")
        now = (object["metadata"].get("annotations") or {}).get(_MODE, "Standard")
        if was != now:
            raise _validator(f"update rejected: deploymentMode cannot be changed from '{was}' to '{now}'")
    for component in ("predictor", "transformer", "explainer"):
        spec = object["spec"].get(component) or {}
        least, most = spec.get("minReplicas"), spec.get("maxReplicas")
        if least is not None and least < 0:
            raise _validator("'MinReplicas' cannot be less than 0")
        if most is not None and most < 0:
            raise _validator("'MaxReplicas' cannot be less than 0")
        if least is not None and most and least > most:
            raise _validator("'MinReplicas' cannot be greater than MaxReplicas")
    if sum(each in predictor for each in (*FRAMEWORKS, "model")) > 1:
        raise _validator(
            "exactly one of [Name, SKLearn, XGBoost, Tensorflow, PyTorch, Triton, ONNX, HuggingFace, PMML, LightGBM, "
            "Paddle, Model, StorageUris, StorageContainerName, WorkerSpec, PodSpec] must be specified in PredictorSpec"
        )


def check_quota(kind: Kind, object: Mapping[str, Any], quotas: list[Raw], pods: list[Raw]) -> None:
    """Whether a pod fits the namespace's ResourceQuotas (requests and limits of cpu, memory, GPUs; pods).

    Raises Refused (403) in the words of the quota admission.
    """
    name = object["metadata"]["name"]
    for quota in quotas:
        hard = (quota.get("spec") or {}).get("hard") or {}
        lacking = [
            (key, each["name"])
            for key in hard
            for each in (object.get("spec") or {}).get("containers") or ()
            if key.partition(".")[2] in ("cpu", "memory") and not _said(each, key)
        ]
        if lacking:
            by_key: dict[str, list[str]] = {}
            for key, container in lacking:
                by_key.setdefault(key, []).append(container)
            said_of = "; ".join(f"{key} for: {','.join(names)}" for key, names in sorted(by_key.items()))
            raise forbidden(kind, name, f"failed quota: {quota['metadata']['name']}: must specify {said_of}")
        over = []
        for key, most in hard.items():
            asked = _asked(object, key)
            if asked is None:
                continue
            used = sum(_asked(each, key) or 0.0 for each in pods)
            if used + asked > quantity(most):
                over.append((key, asked, used, most))
        if over:
            said = (
                ",".join(f"{key}={plain(asked)}" for key, asked, _, _ in over),
                ",".join(f"{key}={plain(used)}" for key, _, used, _ in over),
                ",".join(f"{key}={most}" for key, _, _, most in over),
            )
            raise forbidden(
                kind,
                name,
                f"exceeded quota: {quota['metadata']['name']}, requested: {said[0]}, used: {said[1]}, limited: {said[2]}",
            )


def _said(container: Mapping[str, Any], key: str) -> bool:
    what, _, resource = key.partition(".")
    resources = container.get("resources") or {}
    # Limits stand for requests that are not there.
    return resource in (resources.get(what) or {}) or (
        what == "requests" and resource in (resources.get("limits") or {})
    )


def used(quota: Mapping[str, Any], pods: list[Raw]) -> dict[str, str]:
    """What of a quota is in use."""
    hard = (quota.get("spec") or {}).get("hard") or {}
    return {key: plain(sum(_asked(each, key) or 0.0 for each in pods)) for key in hard}


def _asked(pod: Mapping[str, Any], key: str) -> float | None:
    if key in ("pods", "count/pods"):
        return 1.0
    what, _, resource = key.partition(".")
    if what not in ("requests", "limits"):
        what, resource = "requests", key
    found = []
    for each in (pod.get("spec") or {}).get("containers") or ():
        resources = each.get("resources") or {}
        asked = (resources.get(what) or {}).get(resource)
        if asked is None and what == "requests":
            asked = (resources.get("limits") or {}).get(resource)
        if asked is not None:
            found.append(quantity(asked))
    return sum(found) if found else None


_SUFFIXES = {
    "m": 1e-3,
    "": 1.0,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}


def quantity(text: str | int | float) -> float:
    """A resource quantity as a number."""
    match = re.fullmatch(r"([+-]?[0-9.]+)([A-Za-z]*)", str(text))
    return float(match[1]) * _SUFFIXES.get(match[2], 1.0) if match else 0.0


def plain(value: float) -> str:
    """A number as a quantity: 2, 500m."""
    return f"{value:g}" if value == int(value) else f"{round(value * 1000)}m"
