"""InferenceServices: what is read from them, what is refused with which field, and that nothing else happens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferplane.domain.endpoint import ModelSpec, Resources, Scaling, TrafficLimits
from inferplane.domain.errors import Invalid
from inferplane.domain.manifest import (
    MANIFEST_VALUES_MAX,
    ParsedManifest,
    model_from_isvc,
    resources_from,
)

_URI = "gs://kfserving-examples/models/sklearn/1.0/model"


def _isvc(predictor: Any = None, **metadata: Any) -> dict[str, Any]:
    if predictor is None:
        predictor = {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": _URI}}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "sklearn-iris", **metadata},
        "spec": {"predictor": predictor},
    }


def _model(**fields: Any) -> dict[str, Any]:
    return {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": _URI, **fields}}


def _read(manifest: Mapping[str, Any]) -> ParsedManifest:
    return model_from_isvc(manifest, endpoint_name="sklearn-iris")


def _refusal(manifest: Any) -> Invalid:
    with pytest.raises(Invalid) as caught:
        model_from_isvc(manifest, endpoint_name="sklearn-iris")
    return caught.value


def test_the_smallest_manifest() -> None:
    parsed = _read(_isvc())
    assert parsed.model == ModelSpec(format="sklearn", storage_uri=_URI)
    assert parsed.scaling == Scaling(1, 1)
    assert parsed.limits == TrafficLimits()
    assert parsed.metadata_name == "sklearn-iris"
    assert parsed.completed == _isvc()
    assert not parsed.wants_gpus
    assert not parsed.stopped
    assert parsed.warnings == ()


def test_everything_a_manifest_can_say() -> None:
    predictor = {
        "minReplicas": 2,
        "maxReplicas": 5,
        "timeout": 30,
        "scaleMetric": "rps",
        "scaleTarget": 50,
        "nodeSelector": {"disk": "ssd"},
        "model": {
            "modelFormat": {"name": "XGBoost", "version": 3},
            "storageUri": "s3://bucket/model.ubj",
            "runtime": "kserve-xgbserver",
            "protocolVersion": "v2",
            "args": ["--nthread", "2"],
            "env": [{"name": "PREDICT_PROBA", "value": "true"}, {"name": "EMPTY"}],
            "resources": {"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": 0.25}},
        },
    }
    parsed = model_from_isvc(
        _isvc(predictor, annotations={"serving.kserve.io/stop": "true"}), endpoint_name="fraud"
    )
    assert parsed.model == ModelSpec(
        format="xgboost",
        format_version="3",
        storage_uri="s3://bucket/model.ubj",
        runtime="kserve-xgbserver",
        protocol_version="v2",
        args=("--nthread", "2"),
        env=(("PREDICT_PROBA", "true"), ("EMPTY", "")),
        resources=Resources(cpu_millis=500, memory_bytes=1024**3),
        alias="sklearn-iris",
    )
    assert parsed.scaling == Scaling(2, 5, target_rate=50.0)
    assert parsed.limits.timeout_seconds == 30
    assert parsed.stopped
    (args,) = parsed.warnings
    assert "args: --nthread has no effect" in args


@pytest.mark.parametrize(
    ("predictor", "scaling"),
    [
        ({"minReplicas": 0}, Scaling(0, 1)),
        ({"minReplicas": 0, "maxReplicas": 3}, Scaling(0, 3)),
        ({"maxReplicas": 0}, Scaling(1, 1)),
        ({"maxReplicas": 3, "scaleTarget": 4}, Scaling(1, 3, target_concurrency=4.0)),
        ({"maxReplicas": 3, "scaleMetric": "concurrency", "scaleTarget": 0}, Scaling(1, 3)),
        ({"maxReplicas": 3, "scaleMetric": "cpu", "scaleTarget": 80}, Scaling(1, 3)),
    ],
)
def test_scaling_is_read_as_kserve_means_it(predictor: dict[str, Any], scaling: Scaling) -> None:
    parsed = _read(_isvc({**_model(), **predictor}))
    assert parsed.scaling == scaling
    assert [("cpu" in warning) for warning in parsed.warnings] == [True] * (
        predictor.get("scaleMetric") == "cpu"
    )


def test_only_the_spec_is_enough() -> None:
    whole = _read(_isvc())
    for manifest in ({"spec": _isvc()["spec"]}, _isvc()["spec"]):
        parsed = _read(manifest)
        assert parsed.model == whole.model
        assert parsed.metadata_name == ""
        assert parsed.completed == whole.completed


@pytest.mark.parametrize("framework", ["sklearn", "xgboost", "lightgbm", "onnx", "pmml", "tensorflow"])
def test_the_older_keys_name_the_format(framework: str) -> None:
    parsed = _read(_isvc({framework: {"storageUri": _URI, "protocolVersion": "v2"}}))
    assert (parsed.model.format, parsed.model.storage_uri) == (framework, _URI)
    assert parsed.model.protocol_version == "v2"


def test_a_container_of_ones_own_is_read_for_clusters() -> None:
    parsed = _read(
        _isvc(
            {
                "containers": [
                    {"name": "sidecar", "image": "x"},
                    {
                        "name": "kserve-container",
                        "image": "me/server",
                        "args": ["--port", "8080"],
                        "env": [{"name": "STORAGE_URI", "value": "pvc://claim/m"}],
                        "resources": {"limits": {"memory": "1Gi", "nvidia.com/gpu": "1"}},
                    },
                ]
            }
        )
    )
    assert parsed.model.format == "custom"
    assert parsed.model.storage_uri == "pvc://claim/m"
    assert parsed.model.args == ("--port", "8080")
    assert parsed.wants_gpus


def test_a_format_without_a_local_runtime_needs_no_storage_uri() -> None:
    parsed = _read(_isvc({"model": {"modelFormat": {"name": "triton"}, "args": ["--strict"]}}))
    assert (parsed.model.format, parsed.model.storage_uri) == ("triton", "")


@pytest.mark.parametrize("args", [["--model_id=o/r:v1"], ["--task", "ner", "--model-id", "o/r:v1"]])
def test_a_hub_repository_may_be_an_argument(args: list[str]) -> None:
    parsed = _read(_isvc({"model": {"modelFormat": {"name": "huggingface"}, "args": args}}))
    assert parsed.model.storage_uri == "hf://o/r:v1"
    assert parsed.warnings == ()
    with pytest.raises(Invalid, match="storage URI is needed"):
        _read(_isvc({"model": {"modelFormat": {"name": "huggingface"}, "args": ["--model_id"]}}))


@pytest.mark.parametrize(
    "name", ["nvidia.com/gpu", "nvidia.com/mig-1g.5gb", "amd.com/gpu", "habana.ai/gaudi"]
)
@pytest.mark.parametrize("where", ["limits", "requests"])
def test_accelerators_are_noticed(name: str, where: str) -> None:
    assert _read(_isvc(_model(resources={where: {name: 1}}))).wants_gpus
    assert not _read(_isvc(_model(resources={where: {name: "0"}}))).wants_gpus


def test_resources_may_be_flat_as_in_a_model_spec() -> None:
    assert resources_from({"cpu": 2, "memory": "512Mi"}, "f") == (Resources(2000, 512 * 1024**2), False)
    assert resources_from(None, "f") == (Resources(), False)
    assert resources_from({"requests": {"cpu": 1}}, "f") == (Resources(), False)


def test_what_has_no_effect_is_said() -> None:
    parsed = _read(
        _isvc(
            {
                "minReplicas": 0,
                "maxReplicas": 2,
                "scaleMetric": "memory",
                "canaryTrafficPercent": 10,
                "colour": "red",
                "model": {
                    "args": ["--threads=2", "--predict_proba"],
                    "modelFormat": "sklearn",
                    "storageURI": _URI,
                    "image": "mine",
                    "env": [{"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                },
            }
        )
    )
    text = "\n".join(parsed.warnings)
    for words in (
        "colour is not a field",
        "storageURI is read as storageUri",
        "image has no effect",
        "scaleMetric memory has no effect",
        "canaryTrafficPercent has no effect",
        "args: --threads has no effect",
        "T comes from the cluster",
    ):
        assert words in text
    assert parsed.scaling == Scaling(0, 2)
    assert parsed.model.storage_uri == _URI
    assert parsed.model.env == ()


@pytest.mark.parametrize(
    ("manifest", "field", "words"),
    [
        ("text", "rawModelSpec", "must be an object"),
        ([], "rawModelSpec", "must be an object"),
        ({}, "rawModelSpec.spec.predictor.model", "no model"),
        ({"predictor": None}, "rawModelSpec.predictor.model", "no model"),
        ({"spec": "x"}, "rawModelSpec.spec", "must be an object"),
        ({"spec": {"predictor": []}}, "rawModelSpec.spec.predictor.model", "no model"),
        ({"spec": {"predictor": [1]}}, "rawModelSpec.spec.predictor", "must be an object"),
        ({**_isvc(), "kind": "ServingRuntime"}, "rawModelSpec.kind", "only InferenceService"),
        ({**_isvc(), "kind": ["a"]}, "rawModelSpec.kind", "only InferenceService"),
        ({**_isvc(), "apiVersion": "v1"}, "rawModelSpec.apiVersion", "only serving.kserve.io/v1beta1"),
        (_isvc(name="Demo"), "rawModelSpec.metadata.name", "cannot be"),
        (_isvc(name=7), "rawModelSpec.metadata.name", "cannot be"),
        (
            {"predictor": {"model": {"storageUri": _URI}}},
            "rawModelSpec.predictor.model.modelFormat.name",
            "format is needed",
        ),
        (
            _isvc({"model": {"modelFormat": {"name": 5}, "storageUri": _URI}}),
            "rawModelSpec.spec.predictor.model.modelFormat.name",
            "not text",
        ),
        (
            _isvc({"model": {"modelFormat": {"name": "sklearn"}}}),
            "rawModelSpec.spec.predictor.model.storageUri",
            "needed",
        ),
        (_isvc(_model(storageUri=7)), "rawModelSpec.spec.predictor.model.storageUri", "is text"),
        (_isvc(_model(storageUri="x/y")), "rawModelSpec.spec.predictor.model.storageUri", "neither"),
        (_isvc(_model(storageURI="s3://b/other")), "rawModelSpec.spec.predictor.model.storageURI", "differ"),
        (_isvc(_model(name="x")), "rawModelSpec.spec.predictor.model.name", "must stay empty"),
        (
            _isvc(_model(storage={"key": "k"})),
            "rawModelSpec.spec.predictor.model.storage",
            "Secret of the cluster",
        ),
        (
            _isvc(_model(protocolVersion="v9")),
            "rawModelSpec.spec.predictor.model.protocolVersion",
            "not a protocol",
        ),
        (
            _isvc(_model(protocolVersion=["v1"])),
            "rawModelSpec.spec.predictor.model.protocolVersion",
            "protocol",
        ),
        (_isvc(_model(args="--x")), "rawModelSpec.spec.predictor.model.args", "must be a list"),
        (_isvc(_model(args=["a", 4])), "rawModelSpec.spec.predictor.model.args[1]", "not text"),
        (_isvc(_model(args=["a"] * 201)), "rawModelSpec.spec.predictor.model.args", "at most 200"),
        (_isvc(_model(env={"A": "b"})), "rawModelSpec.spec.predictor.model.env", "must be a list"),
        (_isvc(_model(env=["A=b"])), "rawModelSpec.spec.predictor.model.env[0]", "must be an object"),
        (
            _isvc(_model(env=[{"name": "A B"}])),
            "rawModelSpec.spec.predictor.model.env[0].name",
            "name of a variable",
        ),
        (
            _isvc(_model(env=[{"name": "PASSWORD", "value": 4711}])),
            "rawModelSpec.spec.predictor.model.env[0].value",
            "the value of PASSWORD is not text",
        ),
        (
            _isvc(_model(resources={"limits": {"memory": "lots"}})),
            "rawModelSpec.spec.predictor.model.resources.limits.memory",
            "not a quantity",
        ),
        (
            _isvc(_model(resources={"limits": {"cpu": 1}, "requests": {"cpu": 2}})),
            "rawModelSpec.spec.predictor.model.resources.requests.cpu",
            "above its limit",
        ),
        (
            _isvc({"sklearn": {"storageUri": _URI}, "xgboost": {"storageUri": _URI}}),
            "rawModelSpec.spec.predictor.xgboost",
            "exactly one model",
        ),
        (
            _isvc({**_model(), "minReplicas": "one"}),
            "rawModelSpec.spec.predictor.minReplicas",
            "whole number",
        ),
        (_isvc({**_model(), "minReplicas": True}), "rawModelSpec.spec.predictor.minReplicas", "whole number"),
        (_isvc({**_model(), "maxReplicas": 1000}), "rawModelSpec.spec.predictor.maxReplicas", "to 100"),
        (
            _isvc({**_model(), "minReplicas": 3, "maxReplicas": 2}),
            "rawModelSpec.spec.predictor.minReplicas",
            "greater than",
        ),
        (_isvc({**_model(), "timeout": 0}), "rawModelSpec.spec.predictor.timeout", "whole number of seconds"),
        (_isvc({**_model(), "timeout": 4000}), "rawModelSpec.spec.predictor.timeout", "3600"),
        (_isvc({**_model(), "scaleMetric": "gpu"}), "rawModelSpec.spec.predictor.scaleMetric", "scale by"),
        (
            _isvc({**_model(), "workerSpec": {"size": 2}}),
            "rawModelSpec.spec.predictor.workerSpec",
            "engine kserve",
        ),
        (_isvc({"containers": "x"}), "rawModelSpec.spec.predictor.containers", "must be a list"),
        (_isvc({"containers": ["x"]}), "rawModelSpec.spec.predictor.containers[0]", "must be an object"),
        (
            {"spec": {"predictor": _model(), "transformer": {"containers": []}}},
            "rawModelSpec.spec.transformer",
            "transformer runs on clusters",
        ),
        (
            _isvc(annotations={"serving.kserve.io/deploymentMode": "Wrong"}),
            "rawModelSpec.metadata.annotations[serving.kserve.io/deploymentMode]",
            "not a deployment mode",
        ),
        (_isvc(annotations=["a"]), "rawModelSpec.metadata.annotations", "must be an object"),
        (_isvc(created=date(2026, 1, 1)), "rawModelSpec.metadata.created", "no place in a manifest"),
        (_isvc(x=float("nan")), "rawModelSpec.metadata.x", "not a number"),
        (_isvc(x=2**70), "rawModelSpec.metadata.x", "too large"),
        (_isvc(x="\ud800"), "rawModelSpec.metadata.x", "characters that are none"),
        (_isvc(labels={1: "a"}), "rawModelSpec.metadata.labels", "name of a field"),
        (_isvc(x={"a"}), "rawModelSpec.metadata.x", "no place"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_field(manifest: Any, field: str, words: str) -> None:
    refusal = _refusal(manifest)
    assert refusal.field == field
    assert words in refusal.message


def test_a_cycle_ends_in_a_sentence() -> None:
    cycle: dict[str, Any] = _isvc()
    cycle["spec"]["predictor"]["labels"] = cycle
    assert "nested more than" in _refusal(cycle).message


def test_aliases_that_unfold_without_end_are_stopped() -> None:
    layer: Any = "x"
    for _ in range(12):
        layer = [layer] * 12
    assert f"more than {MANIFEST_VALUES_MAX}" in _refusal(_isvc(x=layer)).message


# --- Whatever is given, only Invalid is raised, and what is accepted can be stored --------------

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.sampled_from(["sklearn", "v2", "1Gi", "s3://b/k", "hf://o/r", "true", "kserve-container"]),
)
_WORDS = """
apiVersion kind metadata name annotations spec predictor model modelFormat version storageUri storageURI
runtime protocolVersion args env value valueFrom resources limits requests cpu memory nvidia.com/gpu
minReplicas maxReplicas timeout scaleMetric sklearn xgboost containers transformer serving.kserve.io/stop
"""
_KEYS = st.sampled_from(_WORDS.split())
_ANY_VALUE = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(_KEYS, st.integers(), st.text()), inner, max_size=6),
    ),
    max_leaves=25,
)
_NEARLY_RIGHT = st.fixed_dictionaries(
    {},
    optional={
        "metadata": st.fixed_dictionaries({}, optional={"name": _SCALARS, "annotations": _ANY_VALUE}),
        "spec": st.fixed_dictionaries(
            {
                "predictor": st.fixed_dictionaries(
                    {},
                    optional={
                        "model": st.fixed_dictionaries(
                            {"modelFormat": st.one_of(st.just({"name": "sklearn"}), _ANY_VALUE)},
                            optional={
                                "storageUri": st.one_of(st.just("/m"), _ANY_VALUE),
                                "args": _ANY_VALUE,
                                "env": _ANY_VALUE,
                                "resources": _ANY_VALUE,
                                "protocolVersion": _ANY_VALUE,
                                "runtime": _ANY_VALUE,
                            },
                        ),
                        "minReplicas": _ANY_VALUE,
                        "maxReplicas": _ANY_VALUE,
                        "timeout": _ANY_VALUE,
                        "containers": _ANY_VALUE,
                    },
                )
            }
        ),
    },
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(_NEARLY_RIGHT, _ANY_VALUE, st.dictionaries(_KEYS, _ANY_VALUE)))
def test_any_mapping_is_read_or_refused(manifest: Any) -> None:
    try:
        parsed = model_from_isvc(manifest, endpoint_name="e", field="rawModelSpec")
    except Invalid as refusal:
        assert refusal.field.startswith("rawModelSpec")  # noqa: PT017 — either outcome is right
        return
    assert 0 <= parsed.scaling.min_replicas <= parsed.scaling.max_replicas
    assert parsed.scaling.max_replicas >= 1
    again = model_from_isvc(json.loads(json.dumps(parsed.completed)), endpoint_name="e")
    assert again.model.storage_uri == parsed.model.storage_uri
    assert again.completed == parsed.completed


@given(
    least=st.integers(0, 50),
    more=st.integers(1, 50),
    timeout=st.integers(1, 3600),
    cpu=st.integers(1, 10**6),
    memory=st.integers(1, 2**40),
    args=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=10), max_size=5),
)
def test_what_is_written_is_read_back(
    least: int, more: int, timeout: int, cpu: int, memory: int, args: list[str]
) -> None:
    parsed = _read(
        _isvc(
            {
                "minReplicas": least,
                "maxReplicas": least + more,
                "timeout": timeout,
                **_model(args=args, resources={"limits": {"cpu": f"{cpu}m", "memory": memory}}),
            }
        )
    )
    assert parsed.scaling == Scaling(least, least + more)
    assert parsed.limits == TrafficLimits(timeout_seconds=timeout)
    assert parsed.model.resources == Resources(cpu, memory)
    assert parsed.model.args == tuple(args)


def test_a_container_with_a_command_is_a_server_of_ones_own() -> None:
    container = {
        "name": "kserve-container",
        "image": "registry/mine",
        "command": ["/bin/serve"],
        "args": ["--port", "$(PORT)"],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
    }
    parsed = _read(_isvc({"containers": [container]}))
    assert (parsed.model.command, parsed.model.args) == (("/bin/serve",), ("--port", "$(PORT)"))
    assert parsed.model.ready_path == "/ready"
    assert "image has no effect" in " ".join(parsed.warnings)
    container["readinessProbe"] = {"exec": {"command": ["true"]}}
    assert "httpGet is the only kind" in " ".join(_read(_isvc({"containers": [container]})).warnings)
    container["readinessProbe"] = {"httpGet": {"path": "/a b"}}
    with pytest.raises(Invalid, match="not the path of a URL"):
        _read(_isvc({"containers": [container]}))


def test_annotations_that_look_like_ours_and_are_none_are_warned_of() -> None:
    annotations = {"inferplane.io/acess": "key", "inferplane.io/access": "open", "team": "x"}
    (warning,) = _read(_isvc(annotations=annotations)).warnings
    assert "inferplane.io/acess] is not known and has no effect" in warning
