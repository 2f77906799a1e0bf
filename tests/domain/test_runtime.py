"""Which runtime serves which model, and the sentence when none does."""

from __future__ import annotations

import pytest

from inferplane.domain.endpoint import ModelSpec
from inferplane.domain.errors import Invalid
from inferplane.domain.runtime import (
    ARGS_WITH_EFFECT,
    CUSTOM_FORMAT,
    FORMATS,
    FORMATS_ELSEWHERE,
    LOCAL_RUNTIMES,
    WORKERS_ARG,
    canonical_format,
    known_formats,
    select_runtime,
    warn_of_args,
)
from inferplane.modelserver.config import PROBABILITY_FLAGS, WORKERS_FLAG


def _model(format: str = "sklearn", **rest: str) -> ModelSpec:
    return ModelSpec(format=format, storage_uri="/m", **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("protocol", ["v1", "v2"])
def test_every_local_format_is_served_over_both_protocols(name: str, protocol: str) -> None:
    runtime = select_runtime(_model(name, protocol_version=protocol), "local")
    assert name in runtime.formats
    assert runtime.engine == "local"


@pytest.mark.parametrize("name", list(FORMATS_ELSEWHERE))
def test_a_format_that_only_clusters_serve_has_no_runtime_here(name: str) -> None:
    with pytest.raises(Invalid, match="on clusters with engine kserve") as caught:
        select_runtime(_model(name), "local")
    assert caught.value.reason == "NoRuntime"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("scikit-learn", "sklearn"),
        ("sklern", "sklearn"),
        ("xgb", "xgboost"),
        ("LightGBN", "lightgbm"),
        ("onx", "onnx"),
        ("torch", "pytorch"),
        ("hf", "huggingface"),
    ],
)
def test_an_unknown_format_is_answered_with_the_nearest_match(name: str, near: str) -> None:
    with pytest.raises(Invalid, match=f"did you mean {near}\\?") as caught:
        select_runtime(_model(name), "local", field="f")
    assert (caught.value.reason, caught.value.field) == ("UnsupportedFormat", "f")
    assert "sklearn" in caught.value.next_action


def test_a_format_like_no_other_is_answered_without_a_guess() -> None:
    with pytest.raises(Invalid) as caught:
        canonical_format("qqqqq")
    assert "did you mean" not in caught.value.message
    with pytest.raises(Invalid, match="empty"):
        canonical_format("  ")


def test_spelling_in_capitals_does_not_matter() -> None:
    assert canonical_format(" SKLearn ") == "sklearn"
    assert canonical_format("vLLM") == "vllm"
    assert select_runtime(_model("ONNX"), "local").formats == ("onnx",)


def test_a_manifest_that_names_kserves_runtime_runs_here_unchanged() -> None:
    assert select_runtime(_model(runtime="kserve-sklearnserver"), "local").name == "inferplane-sklearn"
    assert (
        select_runtime(_model("lightgbm", runtime="kserve-mlserver"), "local").name == "inferplane-lightgbm"
    )
    assert select_runtime(_model("onnx", runtime="inferplane-onnx"), "local").name == "inferplane-onnx"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (_model(runtime="demo-rt"), "“demo-rt” that was asked for"),
        (_model(runtime="kserve-xgbserver"), "inferplane-xgboost does not serve sklearn"),
        (_model(protocol_version="grpc-v2"), "speaks v1 and v2, not grpc-v2"),
        (_model(format_version="7"), "serves sklearn 0, 1, not 7"),
        (_model(CUSTOM_FORMAT), "a container of one's own"),
    ],
)
def test_a_wish_that_no_runtime_fits_names_what_does_not_fit(model: ModelSpec, words: str) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        select_runtime(model, "local")
    assert caught.value.reason == "NoRuntime"
    assert caught.value.next_action


def test_a_command_of_ones_own_has_a_runtime() -> None:
    model = ModelSpec(CUSTOM_FORMAT, "", command=("/bin/serve",))
    assert select_runtime(model, "local").name == "inferplane-command"


def test_only_the_major_version_counts() -> None:
    assert select_runtime(_model(format_version="1.5.2"), "local").formats == ("sklearn",)


def test_other_engines_choose_for_themselves() -> None:
    runtime = select_runtime(_model("huggingface", runtime="kserve-huggingfaceserver"), "kserve")
    assert (runtime.name, runtime.engine) == ("kserve-huggingfaceserver", "kserve")


def test_the_tables_agree_with_each_other() -> None:
    assert {name for runtime in LOCAL_RUNTIMES for name in runtime.formats} == set(FORMATS)
    assert len(set(known_formats())) == len(known_formats())
    for name, known in FORMATS.items():
        assert known.name == name
        assert bool(known.file_suffixes) == (name not in {"huggingface", "mlflow", "vllm"})
        assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in known.file_suffixes)


def test_the_arguments_with_an_effect_are_the_model_servers() -> None:
    assert ARGS_WITH_EFFECT == PROBABILITY_FLAGS
    assert WORKERS_ARG == WORKERS_FLAG


def test_what_a_format_knows_is_not_called_idle() -> None:
    assert warn_of_args(["--task", "ner", "--dtype=float32"], "args", "huggingface") == ()
    (warning,) = warn_of_args(["--task=ner", "--backend", "vllm"], "args", "huggingface")
    assert "--backend has no effect" in warning
    assert "--task" in warning
    (warning,) = warn_of_args(["--task=ner"], "args", "sklearn")
    assert "knows --predict_proba, --workers" in warning
    assert warn_of_args(["--workers=2"], "args", "sklearn") == ()
    assert warn_of_args(["--workers", "2"], "args", "sklearn") == ()
    (warning,) = warn_of_args(["--workers", "2", "extra"], "args", "sklearn")
    assert "extra has no effect" in warning
    assert warn_of_args(["--anything"], "args", "vllm") == ()
