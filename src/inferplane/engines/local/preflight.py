"""What would stop an endpoint from running on this machine, found before anything is started."""

from __future__ import annotations

from collections.abc import Callable

from inferplane.domain.endpoint import ModelSpec, Resources, human_bytes
from inferplane.domain.errors import Invalid
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.domain.runtime import FORMATS, LOCAL_ENGINE, VLLM_FORMAT, canonical_format, select_runtime
from inferplane.domain.storage_uri import parse_storage_uri, require_local
from inferplane.engines.local.records import reason_code

# The package that is imported to serve a format; what its extra installs.
PACKAGES = {
    "sklearn": "sklearn",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "onnx": "onnxruntime",
    "huggingface": "transformers",
}
# Formats whose servers are forked from a warm parent of their own: what they import is large, and none of
# the others' business.
HEAVY_FORMATS = ("huggingface",)


def check_format(model: ModelSpec) -> Check:
    """Whether some runtime here serves this format as asked."""
    try:
        runtime = select_runtime(model, LOCAL_ENGINE)
    except Invalid as error:
        return _refusal("format", error, ReasonCode.NO_RUNTIME)
    return Check("format", True, None, f"{runtime.name} serves {model.format}")


def check_runtime(model: ModelSpec, is_installed: Callable[[str], bool]) -> Check | None:
    """Whether the format's package is installed; None when there is no such format."""
    try:
        name = canonical_format(model.format)
    except Invalid:
        return None
    package = PACKAGES.get(name)
    if package is None:
        return None
    if is_installed(package):
        return Check("runtime", True, None, f"{package} is installed")
    extra = FORMATS[name].extra
    return Check(
        "runtime",
        False,
        ReasonCode.MISSING_EXTRA,
        f"serving {name} needs the Python package {package}, which is not installed",
        f"Install it with `pip install 'inferplane[{extra}]'`.",
    )


def check_program(
    model: ModelSpec, is_installed: Callable[[str], bool], *, gpus: int, custom_servers: bool
) -> Check | None:
    """Whether the program that this model brings, or needs, may and can run here; None when it has none."""
    if model.command:
        if custom_servers:
            return Check("runtime", True, None, f"runs {model.command[0][:80]}")
        return Check(
            "runtime",
            False,
            ReasonCode.NO_RUNTIME,
            "servers of one's own are not allowed here: their command would run on this machine",
            "Ask whoever runs this installation to set custom_servers to yes, or use a format that is served.",
        )
    if model.format != VLLM_FORMAT:
        return None
    lacking = [
        *(["the Python package vllm"] if not is_installed("vllm") else []),
        *(["a GPU"] if not gpus else []),
    ]
    if not lacking:
        return Check("runtime", True, None, "vllm is installed, and there are GPUs")
    return Check(
        "runtime",
        False,
        ReasonCode.NO_RUNTIME,
        f"serving with vllm needs {' and '.join(lacking)} on this machine",
        "Use format huggingface, which runs on CPUs too, or a cluster with GPUs and vllm.",
    )


def suffixes_of(model: ModelSpec) -> tuple[str, ...]:
    """The endings of which the model server will want exactly one; () for formats not served here."""
    try:
        return FORMATS[canonical_format(model.format)].file_suffixes
    except (Invalid, KeyError):
        return ()


def check_resources(resources: Resources, *, replicas: int, cores: int, memory_bytes: int) -> Check:
    """Whether the replicas asked for fit into this machine at all.

    Only memory can be too much: CPUs are shared, and a limit on them sets the number of threads.
    """
    if resources.memory_bytes is not None and resources.memory_bytes * replicas > memory_bytes:
        what = "one replica asks" if replicas == 1 else f"{replicas} replicas ask"
        return Check(
            "resources",
            False,
            ReasonCode.UNSCHEDULABLE,
            f"{what} for {human_bytes(resources.memory_bytes * replicas)} of memory,"
            f" and this machine has {human_bytes(memory_bytes)}",
            reason_of(ReasonCode.UNSCHEDULABLE).next_action,
        )
    fits = "one replica fits" if replicas == 1 else f"{replicas} replicas fit"
    if resources.cpu_millis is not None and resources.cpu_millis > cores * 1000:
        fits += (
            f" into this machine; it has {cores} CPUs, so a replica uses at most those"
            f" and not {resources.cpu_millis / 1000:g}"
        )
        return Check("resources", True, None, fits)
    return Check("resources", True, None, f"{fits} into this machine")


def check_scheme(uri: str) -> Check | None:
    """A refusal when this kind of storage cannot be fetched from here; None when it can."""
    try:
        require_local(parse_storage_uri(uri))
    except Invalid as error:
        return _refusal("storage", error, ReasonCode.SCHEME_NOT_SUPPORTED)
    return None


def _refusal(check: str, error: Invalid, otherwise: ReasonCode) -> Check:
    return Check(check, False, reason_code(error.reason) or otherwise, error.message, error.next_action)
