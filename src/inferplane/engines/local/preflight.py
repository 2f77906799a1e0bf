"""What would stop an endpoint from running on this machine, found before anything is started."""

from __future__ import annotations

from collections.abc import Callable

from inferplane.domain.endpoint import ModelSpec, Resources
from inferplane.domain.errors import Invalid
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.domain.runtime import FORMATS, LOCAL_ENGINE, canonical_format, select_runtime
from inferplane.domain.storage_uri import parse_storage_uri, require_local
from inferplane.engines.local.records import reason_code

# The package that is imported to serve a format; what its extra installs.
PACKAGES = {"sklearn": "sklearn", "xgboost": "xgboost", "lightgbm": "lightgbm", "onnx": "onnxruntime"}


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


def check_resources(resources: Resources, *, cores: int, memory_bytes: int) -> Check:
    """Whether one replica fits into this machine at all."""
    wishes = []
    if resources.cpu_millis is not None and resources.cpu_millis > cores * 1000:
        wishes.append(f"{resources.cpu_millis / 1000:g} CPUs, and this machine has {cores}")
    if resources.memory_bytes is not None and resources.memory_bytes > memory_bytes:
        asked, has = resources.memory_bytes / 1024**3, memory_bytes / 1024**3
        wishes.append(f"{asked:.1f} GiB of memory, and this machine has {has:.1f} GiB")
    if wishes:
        return Check(
            "resources",
            False,
            ReasonCode.UNSCHEDULABLE,
            f"one replica asks for {'; and for '.join(wishes)}",
            reason_of(ReasonCode.UNSCHEDULABLE).next_action,
        )
    return Check("resources", True, None, "one replica fits into this machine")


def check_scheme(uri: str) -> Check | None:
    """A refusal when this kind of storage cannot be fetched from here; None when it can."""
    try:
        require_local(parse_storage_uri(uri))
    except Invalid as error:
        return _refusal("storage", error, ReasonCode.SCHEME_NOT_SUPPORTED)
    return None


def _refusal(check: str, error: Invalid, otherwise: ReasonCode) -> Check:
    return Check(check, False, reason_code(error.reason) or otherwise, error.message, error.next_action)
