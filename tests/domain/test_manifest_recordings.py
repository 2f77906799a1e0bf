"""Manifests that a real KServe was given: each is read, or refused with a field and a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from inferplane.domain.errors import Invalid
from inferplane.domain.manifest import model_from_isvc

FOLDER = Path(__file__).parents[1] / "golden" / "kserve" / "inferenceservices"
ALL = sorted(path.stem for path in FOLDER.glob("*.yaml"))
PREDICTOR = "rawModelSpec.spec.predictor"

# What we refuse, with the field to blame. KServe refuses the `reject-` ones too; the others it takes
# and then fails later, often without saying why, so here they are refused at once.
REFUSED = {
    "reject-bad-quantity": f"{PREDICTOR}.model.resources.requests.memory",
    "reject-field-type": f"{PREDICTOR}.minReplicas",
    "reject-min-greater-than-max": f"{PREDICTOR}.minReplicas",
    "reject-min-negative": f"{PREDICTOR}.minReplicas",
    "reject-missing-predictor": f"{PREDICTOR}.model",
    "reject-no-predictor": f"{PREDICTOR}.model",
    "reject-name-digit": "rawModelSpec.metadata.name",
    "reject-name-dot": "rawModelSpec.metadata.name",
    "reject-name-uppercase": "rawModelSpec.metadata.name",
    "reject-scale-metric": f"{PREDICTOR}.scaleMetric",
    "reject-two-frameworks": f"{PREDICTOR}.xgboost",
    "reject-unknown-field-strict": f"{PREDICTOR}.model.storageURI",
    "accept-model-and-framework": f"{PREDICTOR}.sklearn",  # KServe drops the model and keeps sklearn
    "model-and-framework-both": f"{PREDICTOR}.sklearn",
    "accept-name-long": "rawModelSpec.metadata.name",  # fails with ReconcileFailed there
    "name-too-long": "rawModelSpec.metadata.name",
    "accept-no-model-format": f"{PREDICTOR}.model.modelFormat.name",
    "no-model-format": f"{PREDICTOR}.model.modelFormat.name",
    "accept-storage-uri-relative": f"{PREDICTOR}.model.storageUri",
    "bad-storage-uri-relative": f"{PREDICTOR}.model.storageUri",
    "accept-storage-uri-scheme": f"{PREDICTOR}.model.storageUri",  # ftp: stays Unknown there for ever
    "bad-storage-uri-scheme": f"{PREDICTOR}.model.storageUri",
    "deployment-mode-wrong": "rawModelSpec.metadata.annotations[serving.kserve.io/deploymentMode]",
    "requests-above-limits": f"{PREDICTOR}.model.resources.requests.memory",
    "warn-unknown-field": f"{PREDICTOR}.model.storageURI",  # two URIs that differ: which one is meant?
}


def _load(name: str) -> Any:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def test_the_list_speaks_of_files_that_exist() -> None:
    assert set(REFUSED) <= set(ALL)
    # This one is refused for what exists already, which no manifest shows.
    assert {name for name in ALL if name.startswith("reject-")} - set(REFUSED) == {"reject-already-exists"}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_is_refused_names_its_field(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        model_from_isvc(_load(name), endpoint_name="demo")
    assert caught.value.field == REFUSED[name]
    assert caught.value.message


@pytest.mark.parametrize("name", sorted(set(ALL) - set(REFUSED)))
def test_everything_else_is_read(name: str) -> None:
    manifest = _load(name)
    parsed = model_from_isvc(manifest, endpoint_name="demo")
    assert parsed.completed["spec"] == manifest["spec"]
    assert parsed.wants_gpus is ("gpu" in name)
    assert parsed.model.format in {"demofmt", "custom", "notaformat", "sklearn"}
