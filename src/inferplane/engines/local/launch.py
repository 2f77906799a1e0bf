"""What a model server on this machine is given: values in, values out, nothing is touched.

    endpoint + artifact path + machine  →  intent, server configuration, launch request

The *intent* is the engine's own note of what it was about to start and with which limits. It is
written before the process exists, so that whoever finds the folder later (after a `kill -9` of the
control plane, say) knows what the process was meant to be. The *configuration* is the model
server's file; its keys are the contract with `inferplane.modelserver`.

CPU limits are set by thread count and by CPU affinity. Affinity says on which cores a server may
run; it is not a quota: half a core becomes one core, and servers that share a core share its time.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from inferplane.domain.endpoint import InferenceEndpoint, ModelSpec, ReplicaId, Resources
from inferplane.domain.runtime import VLLM_FORMAT
from inferplane.private_folders import fits_sockets

# `<uid>-r<revision>-<index>.sock` with room for long revisions; `notify.sock` is shorter.
SOCKET_NAME_BYTES_MAX = 40
NOTIFY_SOCKET_NAME = "notify.sock"

# Without a CPU limit a server gets this many threads at most: more hardly helps one small model,
# and many servers on one machine would only push each other aside.
UNLIMITED_THREADS_MAX = 4

# Formats whose models hold the interpreter's lock while they compute, for much of the time: more cores than one
# only help them as more processes. Others (XGBoost, LightGBM, ONNX, torch) let go of it and use threads.
ONE_CORE_FORMATS = frozenset({"sklearn"})
WORKERS_BY_CPU_MAX = 8

# The kernel's limit on private memory is a backstop for a server that grows faster than it is
# sampled. It counts what is reserved, not what is used, so it lies well above the limit itself.
DATA_LIMIT_FACTOR = 2
DATA_LIMIT_EXTRA_BYTES = 1024**3

VLLM_PROGRAM = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve")

# What of the control plane's environment a model server may see. Everything else stays here: the
# platform's settings, its database URL, cloud credentials, whatever a user's shell had exported.
ENVIRONMENT_ALLOWED = frozenset(
    {
        "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR",
        "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV",
    }
)  # fmt: skip
LOCALE_PREFIX = "LC_"
PLATFORM_PREFIX = "INFERPLANE_"
# Read by the interpreter, the loader or a library when it starts: too late for a forked server.
READ_AT_START_PREFIXES = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "KMP_", "GOMP_", "OMP_", "OPENBLAS_", "MKL_")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS")
# How long a thread of OpenBLAS spins before it sleeps, as a power of two of clock ticks. Its default, 26, is
# some 30 ms of a whole core for each thread of each pool, which every start and every busy neighbour pays.
SPIN_VARIABLES = {"OPENBLAS_THREAD_TIMEOUT": "20"}
# A server sees the GPUs it was granted and no others. The driver numbers them as we do only by bus.
CUDA_DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"
NVIDIA_DEVICES_VARIABLE = "NVIDIA_VISIBLE_DEVICES"
CUDA_ORDER_VARIABLE = "CUDA_DEVICE_ORDER"
CUDA_ORDER = "PCI_BUS_ID"
NVIDIA_NO_DEVICES = "void"
# KServe's sklearn server is told by this variable to answer with probabilities.
PROBABILITY_VARIABLE = "PREDICT_PROBA"


@dataclass(frozen=True, slots=True)
class ReplicaPaths:
    """Where everything of one replica lies: a folder of its own, and a socket in a short folder."""

    directory: Path
    socket: Path

    @property
    def intent(self) -> Path:
        """What was about to be started; see `Intent`."""
        return self.directory / "intent.json"

    @property
    def config(self) -> Path:
        """The model server's configuration."""
        return self.directory / "config.json"

    @property
    def status(self) -> Path:
        """What the model server says about itself."""
        return self.directory / "status.json"

    @property
    def lock(self) -> Path:
        """Locked for as long as a process of this replica lives."""
        return self.directory / "lock"

    @property
    def pid(self) -> Path:
        """The process and its start time, written right after it was started."""
        return self.directory / "pid"

    @property
    def stop(self) -> Path:
        """That the process was asked to end, until when, and why."""
        return self.directory / "stop.json"

    @property
    def exit(self) -> Path:
        """The exit code, left by a fork server for its children."""
        return self.directory / "exit.json"

    @property
    def ended(self) -> Path:
        """How the last run ended: the engine's verdict, made once."""
        return self.directory / "ended.json"

    @property
    def log(self) -> Path:
        """What the server prints; its older part is in `server.log.1`."""
        return self.directory / "server.log"

    @property
    def previous_log(self) -> Path:
        """What the run before the present one printed; its older part is in `previous.log.1`."""
        return self.directory / "previous.log"


def older_part(log: Path) -> Path:
    """Where the part of a log goes that was rotated away."""
    return log.with_name(log.name + ".1")


@dataclass(frozen=True, slots=True)
class Intent:
    """What the engine was about to start.

    `cores` is empty when the server may run on all; `gpus` are those it may use, as (node, indexes).
    """

    replica: ReplicaId
    started_at: datetime
    start_timeout_seconds: float
    address: str
    memory_bytes: int | None = None
    cores: tuple[int, ...] = ()
    gpus: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A mapping that `from_json` understands."""
        return {
            "endpointUid": self.replica.endpoint_uid,
            "revision": self.replica.revision,
            "index": self.replica.index,
            "startedAt": self.started_at.isoformat(),
            "startTimeoutSeconds": self.start_timeout_seconds,
            "address": self.address,
            "memoryBytes": self.memory_bytes,
            "cores": list(self.cores),
            "gpus": [[node, list(indexes)] for node, indexes in self.gpus],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Intent:
        """Read what `to_json` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        memory = content.get("memoryBytes")
        return cls(
            replica=ReplicaId(str(content["endpointUid"]), int(content["revision"]), int(content["index"])),
            started_at=datetime.fromisoformat(content["startedAt"]),
            start_timeout_seconds=float(content["startTimeoutSeconds"]),
            address=str(content["address"]),
            memory_bytes=None if memory is None else int(memory),
            cores=tuple(int(core) for core in content.get("cores", ())),
            gpus=tuple(
                (str(node), tuple(int(index) for index in indexes))
                for node, indexes in content.get("gpus", ())
            ),
        )


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """One process to start: as a new interpreter or as a fork, it must come out the same.

    Standard output and error go to `log_path`, opened for appending. `data_bytes_max` and
    `core_bytes_max` are kernel limits of the process (None: as inherited). `format` is the model's.
    """

    config_path: Path
    log_path: Path
    directory: Path
    environment: Mapping[str, str]
    cores: tuple[int, ...] = ()
    data_bytes_max: int | None = None
    core_bytes_max: int | None = 0
    format: str = ""


def replica_paths(home: Path, sockets: Path, replica: ReplicaId) -> ReplicaPaths:
    """Where everything of `replica` lies."""
    return ReplicaPaths(
        directory=home / "replicas" / replica.endpoint_uid / replica.name,
        socket=sockets / f"{replica.endpoint_uid}-{replica.name}.sock",
    )


def parse_replica_name(uid: str, name: str) -> ReplicaId | None:
    """The id of a folder's name, or None for a folder that no replica is named after."""
    revision, separator, index = name.removeprefix("r").partition("-")
    if not name.startswith("r") or not separator or not revision.isdecimal() or not index.isdecimal():
        return None
    return ReplicaId(uid, int(revision), int(index))


def fits_socket(directory: Path) -> bool:
    """Whether every socket we make in `directory` has a path that the kernel accepts."""
    return fits_sockets(directory, SOCKET_NAME_BYTES_MAX)


def thread_count(resources: Resources, cores: int) -> int:
    """Threads of one server: its CPU limit rounded up, or a modest share of the machine."""
    if resources.cpu_millis is None:
        return max(1, min(cores, UNLIMITED_THREADS_MAX))
    return max(1, min(cores, math.ceil(resources.cpu_millis / 1000)))


def worker_count(model: ModelSpec, cores: int) -> int:
    """Processes of one server, unless its arguments say how many: one for each whole core of its CPU limit,
    where one process could not use them.
    """
    if model.command or model.format not in ONE_CORE_FORMATS or model.resources.cpu_millis is None:
        return 1
    return max(1, min(model.resources.cpu_millis // 1000, cores, WORKERS_BY_CPU_MAX))


def choose_cores(resources: Resources, cores: Sequence[int], load: Mapping[int, int]) -> tuple[int, ...]:
    """The cores a server is kept on: those with the fewest servers on them, lowest number first.

    Empty when it may run on all: no CPU limit, or one that the whole machine does not reach.
    `load` counts the servers that are kept on each core already.
    """
    if resources.cpu_millis is None:
        return ()
    wanted = max(1, math.ceil(resources.cpu_millis / 1000))
    if wanted >= len(cores):
        return ()
    by_load = sorted(cores, key=lambda core: (load.get(core, 0), core))
    return tuple(sorted(by_load[:wanted]))


def data_limit(resources: Resources) -> int | None:
    """The kernel's backstop for a memory limit, in bytes; None without a limit."""
    if resources.memory_bytes is None:
        return None
    return resources.memory_bytes * DATA_LIMIT_FACTOR + DATA_LIMIT_EXTRA_BYTES


def visible_gpus(gpus: Sequence[tuple[str, Sequence[int]]]) -> tuple[int, ...]:
    """Indexes of the granted GPUs, each once.

    Nodes of this machine share its numbering; nodes that are only declared may repeat an index, and
    then stand for the same device, if there is any.
    """
    return tuple(sorted({index for _, indexes in gpus for index in indexes}))


def server_environment(
    control_plane: Mapping[str, str],
    model: Sequence[tuple[str, str]],
    threads: int,
    gpus: Sequence[int] = (),
) -> dict[str, str]:
    """A model server's environment: the allowed part of ours, the thread limits, the model's own, GPUs.

    The model's variables win over ours, except for those that say which GPUs it sees: nobody may take
    a GPU by naming it. Names that no environment can hold, and the platform's own, are left out.
    """
    allowed = {
        name: value
        for name, value in control_plane.items()
        if name in ENVIRONMENT_ALLOWED or name.startswith(LOCALE_PREFIX)
    }
    own = {
        name: value
        for name, value in model
        if name and not name.startswith(PLATFORM_PREFIX) and not set(name) & {"=", "\0"} and "\0" not in value
    }
    limits = dict.fromkeys(THREAD_VARIABLES, str(threads))
    devices = ",".join(str(index) for index in gpus)
    granted = {
        CUDA_ORDER_VARIABLE: CUDA_ORDER,
        CUDA_DEVICES_VARIABLE: devices,
        NVIDIA_DEVICES_VARIABLE: devices or NVIDIA_NO_DEVICES,
    }
    interpreter = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
    return {**allowed, **limits, **SPIN_VARIABLES, **interpreter, **own, **granted}


def needs_new_interpreter(wanted: Mapping[str, str], warm_parent: Mapping[str, str]) -> bool:
    """Whether a server asks for variables that a fork of a warm parent could no longer heed.

    Thread limits are the exception: they are set in the fork by other means.
    """
    return any(
        name.startswith(READ_AT_START_PREFIXES)
        and name not in THREAD_VARIABLES
        and warm_parent.get(name) != value
        for name, value in wanted.items()
    )


def server_config(
    endpoint: InferenceEndpoint,
    model_path: str,
    paths: ReplicaPaths,
    *,
    threads: int,
    notify_socket: Path,
    workers: int = 1,
    otlp_endpoint: str = "",
) -> dict[str, Any]:
    """The model server's configuration file, as a mapping."""
    model, limits = endpoint.spec.model, endpoint.spec.limits
    command, args = server_command(endpoint, model_path)
    environment = dict(model.env)
    aliases = [model.alias] if model.alias and model.alias != endpoint.name else []
    return {
        "name": endpoint.name,
        "aliases": aliases,
        "format": model.format,
        "path": model_path,
        "address": f"unix:{paths.socket}",
        "status_file": str(paths.status),
        "notify_socket": str(notify_socket),
        "notify_key": endpoint.uid,
        "version": "1",
        "threads": threads,
        "workers": workers,
        "max_request_bytes": limits.max_request_bytes,
        "request_timeout_seconds": limits.timeout_seconds,
        "predict_proba": environment.get(PROBABILITY_VARIABLE, "").lower() in {"1", "true", "yes"},
        "memory_bytes_max": model.resources.memory_bytes,
        "args": list(args),
        "command": list(command),
        "ready_path": model.ready_path,
        "otlp_endpoint": otlp_endpoint,
    }


def server_command(endpoint: InferenceEndpoint, model_path: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The program that is the server in place of ours, () for ours, and the arguments of either."""
    model = endpoint.spec.model
    if model.command:
        return model.command, model.args
    if model.format != VLLM_FORMAT:
        return (), model.args
    names = [endpoint.name, *([model.alias] if model.alias and model.alias != endpoint.name else [])]
    given = tuple(arg for arg in model.args if not arg.startswith(("--model_id", "--model-id")))
    return (
        (*VLLM_PROGRAM, model_path, "--host", "$(HOST)", "--port", "$(PORT)", "--served-model-name", *names),
        given,
    )
