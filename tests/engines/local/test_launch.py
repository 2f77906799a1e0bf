"""Decisions about one server, as values."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine_world import endpoint
from inferplane.domain.endpoint import ReplicaId, Resources
from inferplane.engines.local.launch import (
    DATA_LIMIT_EXTRA_BYTES,
    Intent,
    choose_cores,
    data_limit,
    fits_socket,
    needs_new_interpreter,
    parse_replica_name,
    replica_paths,
    server_config,
    server_environment,
    thread_count,
    visible_gpus,
    worker_count,
)

REPLICA = ReplicaId("0123456789ab", 12, 3)
MEMORY = 100 * 1024**2


def test_only_the_allowed_part_of_our_environment_is_passed_on() -> None:
    ours = {
        "PATH": "/bin",
        "LC_ALL": "C.UTF-8",
        "INFERPLANE_DATABASE_URL": "postgresql://u:p@h/db",
        "AWS_SECRET_ACCESS_KEY": "s",
        "HF_TOKEN": "t",
        "DATABASE_URL": "d",
    }
    environment = server_environment(ours, [("A", "1"), ("INFERPLANE_X", "2"), ("B=C", "3"), ("D", "\0")], 2)
    assert {
        "PATH": "/bin",
        "LC_ALL": "C.UTF-8",
        "A": "1",
        "OMP_NUM_THREADS": "2",
    }.items() <= environment.items()
    assert not environment.keys() & {
        "INFERPLANE_DATABASE_URL",
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "DATABASE_URL",
    }
    assert not environment.keys() & {"INFERPLANE_X", "B=C", "D"}


def test_a_server_sees_the_gpus_it_was_granted_and_no_others() -> None:
    ours = {"CUDA_VISIBLE_DEVICES": "5", "NVIDIA_VISIBLE_DEVICES": "all"}
    greedy = [("CUDA_VISIBLE_DEVICES", "0,1,2,3"), ("NVIDIA_VISIBLE_DEVICES", "all")]
    granted = server_environment(ours, greedy, 1, (1, 3))
    assert (granted["CUDA_VISIBLE_DEVICES"], granted["NVIDIA_VISIBLE_DEVICES"]) == ("1,3", "1,3")
    assert granted["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    none = server_environment(ours, greedy, 1)
    assert (none["CUDA_VISIBLE_DEVICES"], none["NVIDIA_VISIBLE_DEVICES"]) == ("", "void")


def test_declared_nodes_of_one_machine_share_its_numbering() -> None:
    assert visible_gpus(()) == ()
    assert visible_gpus((("gpu-0", (0, 1)), ("gpu-1", (0, 2)))) == (0, 1, 2)


def test_a_models_own_variable_wins_over_ours() -> None:
    assert server_environment({"LANG": "C"}, [("LANG", "de_DE.UTF-8")], 1)["LANG"] == "de_DE.UTF-8"


@pytest.mark.parametrize(
    ("cpu_millis", "cores", "threads"),
    [(None, 1, 1), (None, 64, 4), (100, 8, 1), (1000, 8, 1), (1001, 8, 2), (64000, 8, 8)],
)
def test_threads_are_the_cpu_limit_rounded_up(cpu_millis: int | None, cores: int, threads: int) -> None:
    assert thread_count(Resources(cpu_millis=cpu_millis), cores) == threads


def test_cores_are_the_least_loaded_and_only_for_a_limit_below_the_machine() -> None:
    cores = (0, 1, 2, 3)
    assert choose_cores(Resources(), cores, {}) == ()
    assert choose_cores(Resources(cpu_millis=4000), cores, {}) == ()
    assert choose_cores(Resources(cpu_millis=1500), cores, {}) == (0, 1)
    assert choose_cores(Resources(cpu_millis=1500), cores, {0: 2, 1: 1, 2: 1, 3: 0}) == (1, 3)


def test_the_kernels_backstop_lies_well_above_the_limit() -> None:
    assert data_limit(Resources()) is None
    assert data_limit(Resources(memory_bytes=MEMORY)) == 2 * MEMORY + DATA_LIMIT_EXTRA_BYTES


def test_only_variables_read_at_start_need_a_new_interpreter() -> None:
    warm = {"PATH": "/bin", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    assert not needs_new_interpreter({**warm, "GREETING": "hello", "OMP_NUM_THREADS": "4"}, warm)
    assert needs_new_interpreter({**warm, "LD_PRELOAD": "/lib/x.so"}, warm)
    assert needs_new_interpreter({**warm, "PYTHONHASHSEED": "0"}, warm)


def test_an_intent_survives_its_file() -> None:
    intent = Intent(REPLICA, datetime(2026, 1, 2, tzinfo=UTC), 30.0, "unix:/s/x.sock", MEMORY, (1, 3))
    with_gpus = replace(intent, gpus=(("gpu-0", (0, 1)), ("gpu-1", (0,))))
    assert Intent.from_json(with_gpus.to_json()) == with_gpus
    older = {name: value for name, value in intent.to_json().items() if name != "gpus"}
    assert Intent.from_json(older) == intent
    assert Intent.from_json(intent.to_json()) == intent


@pytest.mark.parametrize(
    ("cpu_millis", "model_format", "workers"),
    [
        (None, "sklearn", 1),
        (1999, "sklearn", 1),
        (2000, "sklearn", 2),
        (3500, "sklearn", 3),
        (64_000, "sklearn", 4),  # as many as there are cores
        (4000, "xgboost", 1),
        (4000, "onnx", 1),
    ],
)
def test_a_server_whose_model_uses_one_core_gets_a_process_for_each_core_of_its_limit(
    cpu_millis: int | None, model_format: str, workers: int
) -> None:
    model = endpoint(model={"format": model_format}, resources=Resources(cpu_millis=cpu_millis)).spec.model
    assert worker_count(model, 4) == workers
    assert worker_count(replace(model, command=("serve",)), 4) == 1


def test_names_of_folders_are_names_of_replicas_or_nothing() -> None:
    assert parse_replica_name(REPLICA.endpoint_uid, REPLICA.name) == REPLICA
    for name in ("", "r1", "1-0", "r-0", "r1-", "r1-0-2x", "rx-0", ".r1-0", "server.log"):
        assert parse_replica_name("a1", name) is None


def test_socket_paths_fit_the_kernel() -> None:
    assert fits_socket(Path("/" + "h" * 65))
    assert not fits_socket(Path("/" + "h" * 66))


def test_the_servers_configuration_is_the_contract() -> None:
    paths = replica_paths(Path("/home"), Path("/home/s"), REPLICA)
    one = endpoint(
        "0123456789ab",
        "--flag",
        model={"alias": "iris"},
        env=(("PREDICT_PROBA", "true"),),
        resources=Resources(memory_bytes=MEMORY),
    )
    config = server_config(
        one,
        "/m/model.joblib",
        paths,
        threads=2,
        notify_socket=Path("/home/s/notify.sock"),
        otlp_endpoint="http://127.0.0.1:4318",
    )
    assert config == {
        "name": "e-0123456789ab",
        "aliases": ["iris"],
        "format": "sklearn",
        "path": "/m/model.joblib",
        "address": "unix:/home/s/0123456789ab-r12-3.sock",
        "status_file": "/home/replicas/0123456789ab/r12-3/status.json",
        "notify_socket": "/home/s/notify.sock",
        "notify_key": "0123456789ab",
        "version": "1",
        "threads": 2,
        "workers": 1,
        "max_request_bytes": 16 * 1024 * 1024,
        "request_timeout_seconds": 60.0,
        "predict_proba": True,
        "memory_bytes_max": MEMORY,
        "args": ["--flag"],
        "command": [],
        "ready_path": "",
        "otlp_endpoint": "http://127.0.0.1:4318",
    }
