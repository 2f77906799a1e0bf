"""Whose predictions may be computed twice without harm."""

from __future__ import annotations

import pytest

from inferplane.domain.endpoint import ModelSpec
from inferplane.domain.runtime import is_pure


@pytest.mark.parametrize("name", ["sklearn", "xgboost", "lightgbm", "onnx", "scikit-learn"])
def test_predictions_of_numeric_models_may_be_repeated(name: str) -> None:
    assert is_pure(ModelSpec(name, "/model"))


@pytest.mark.parametrize("name", ["huggingface", "vllm", "mlflow", "custom", "triton", "unheard-of"])
def test_long_generations_and_programs_that_may_do_anything_are_never_repeated(name: str) -> None:
    assert not is_pure(ModelSpec(name, "/model"))


def test_nor_is_anything_that_brings_its_own_program() -> None:
    assert not is_pure(ModelSpec("sklearn", "/model", command=("serve",)))
