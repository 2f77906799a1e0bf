"""Small pure parts: the configuration, the search for the model file, metrics' text, example rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from inferplane.modelserver.batcher import Batch
from inferplane.modelserver.config import ConfigError, host_port, parse_config, thread_environment, unix_path
from inferplane.modelserver.errors import LoadError, LoadReason, short
from inferplane.modelserver.files import find_model_file
from inferplane.modelserver.metrics import Histogram, Metrics

LEAST = {"name": "m", "format": "sklearn", "path": "/m", "address": "unix:/s"}


def test_defaults_are_complete_and_unknown_keys_ignored() -> None:
    config = parse_config(json.dumps({**LEAST, "future": [1]}))
    assert config.names == {"m"}
    assert (config.version, config.threads, config.max_batch_delay_ms) == ("1", 1, 0.0)
    assert unix_path(config) == "/s"
    assert config.drain_seconds > config.request_timeout_seconds


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"name": ""}, "name"),
        ({"threads": 0}, "threads"),
        ({"aliases": "a"}, "aliases"),
        ({"address": "localhost"}, "address"),
        ({"address": "localhost:99999"}, "address"),
        ({"max_batch_delay_ms": -1}, "max_batch_delay_ms"),
        ({"memory_bytes_max": "1Gi"}, "memory_bytes_max"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse_config(json.dumps(LEAST | change))


def test_addresses() -> None:
    assert host_port(parse_config(json.dumps(LEAST | {"address": "127.0.0.1:80"}))) == ("127.0.0.1", 80)
    assert host_port(parse_config(json.dumps(LEAST | {"address": "[::1]:80"}))) == ("::1", 80)
    assert thread_environment(3)["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("flag", ["--predict_proba", "--predict-proba=true"])
def test_probabilities_by_argument(flag: str) -> None:
    assert parse_config(json.dumps(LEAST | {"args": [flag]})).wants_probabilities
    assert not parse_config(json.dumps(LEAST)).wants_probabilities


def _write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")
    return folder


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["m.pkl"], "m.pkl"),
        (["M.PKL", "notes.txt"], "M.PKL"),
        (["inner/m.pkl"], "inner/m.pkl"),
        (["m.pkl", "inner/other.pkl"], "m.pkl"),
        ([".hidden.pkl", "__MACOSX/m.pkl", "m.pkl"], "m.pkl"),
    ],
)
def test_the_one_model_file_is_found(tmp_path: Path, names: list[str], found: str) -> None:
    assert find_model_file(_write(tmp_path, *names), (".pkl",)) == tmp_path / found


@pytest.mark.parametrize(
    ("names", "reason", "word"),
    [
        ([], LoadReason.MODEL_FILE_MISSING, "empty"),
        (["a.txt"], LoadReason.MODEL_FILE_MISSING, "a.txt"),
        (["a/b/m.pkl"], LoadReason.MODEL_FILE_MISSING, ".pkl"),
        (["a.pkl", "b.pkl"], LoadReason.MODEL_FILE_AMBIGUOUS, "a.pkl, b.pkl"),
        (["x/a.pkl", "y/b.pkl"], LoadReason.MODEL_FILE_AMBIGUOUS, "x/a.pkl, y/b.pkl"),
        ([f"{number:02}.pkl" for number in range(30)], LoadReason.MODEL_FILE_AMBIGUOUS, "and 22 more"),
    ],
)
def test_none_or_many_is_a_reason_with_names(
    tmp_path: Path, names: list[str], reason: LoadReason, word: str
) -> None:
    with pytest.raises(LoadError, match=word) as raised:
        find_model_file(_write(tmp_path, *names), (".pkl",))
    assert raised.value.reason is reason


def test_settings_beside_an_xgboost_model_are_not_the_model(tmp_path: Path) -> None:
    _write(tmp_path, "model.json", "model-settings.json")
    assert find_model_file(tmp_path, (".json",)).name == "model.json"


def test_reasons_are_the_platforms_own() -> None:
    from inferplane.domain.reasons import ReasonCode

    assert {reason.value for reason in LoadReason} <= {code.value for code in ReasonCode}


def test_a_foreign_error_is_cut_to_its_first_line() -> None:
    assert short(ValueError("first\nsecond")) == "first"
    assert short(ValueError()) == "ValueError"
    assert len(short(ValueError("x" * 1000))) == 300


def test_a_histogram_counts_into_rising_buckets() -> None:
    histogram = Histogram((1, 2))
    for value in (1, 1.5, 2, 3):
        histogram.observe(value)
    assert list(histogram.render("h", 'a="b"')) == [
        'h_bucket{a="b",le="1"} 1',
        'h_bucket{a="b",le="2"} 3',
        'h_bucket{a="b",le="+Inf"} 4',
        'h_sum{a="b"} 7.5',
        'h_count{a="b"} 4',
    ]


def test_metrics_are_text_that_prometheus_reads() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    metrics = Metrics()
    metrics.on_request("v1", 200, 0.002)
    metrics.on_request("v2", 400, 0.0001)
    metrics.on_batch(Batch(2, 7, 0.001, [0.0, 0.002]))
    metrics.on_late()
    text = metrics.render("m", ready=True, in_flight=1, queued_rows=0)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert {sample.labels["code"] for sample in families["inferplane_model_requests"].samples} == {
        "200",
        "400",
    }
    assert families["inferplane_model_batch_rows"].type == "histogram"
    assert families["inferplane_model_ready"].samples[0].value == 1
