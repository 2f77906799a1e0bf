"""Which program serves which model: formats, runtimes, and the choice between them.

A *format* is how a model was saved (sklearn, onnx); a *runtime* is a program that can serve some
formats over some protocols. The choice is made before anything is started, so that a model nobody
can serve is refused with a sentence instead of crashing later. On a cluster with engine kserve the
cluster itself chooses among its own runtimes; here only the local engine's are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from inferplane.domain.endpoint import ModelSpec
from inferplane.domain.errors import Invalid
from inferplane.domain.reasons import ReasonCode

LOCAL_ENGINE = "local"

# The format of an endpoint whose manifest brings its own container instead of a model.
CUSTOM_FORMAT = "custom"

ARG_CHARACTERS_SHOWN_MAX = 40

# The only arguments that change what the local model server does whatever the format (they ask V1 for
# probabilities).
ARGS_WITH_EFFECT = frozenset(
    {"--predict_proba", "--predict-proba", "--predict_proba=true", "--predict-proba=true"}
)

# How many processes serve one replica; the model server takes it for every format of its own.
WORKERS_ARG = "--workers"

# Those that models of a format know beyond that; `frameworks.huggingface` of the model server reads them.
ARGS_OF_FORMAT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "huggingface": (
            "--model_id",
            "--model-id",
            "--task",
            "--dtype",
            "--max_length",
            "--max-length",
            "--max-model-len",
            "--max_model_len",
            "--return_probabilities",
            "--return-probabilities",
        ),
    }
)
# Its arguments are another program's, which judges them itself.
VLLM_FORMAT = "vllm"

# Formats whose KServe servers take `--model_id=owner/repo` in place of a storage URI.
HUB_FORMATS = ("huggingface", VLLM_FORMAT)

PROTOCOLS = ("v1", "v2", "grpc-v1", "grpc-v2")


@dataclass(frozen=True, slots=True)
class ModelFormat:
    """A model format that the local engine can serve.

    `file_suffixes` are the endings a model file of this format has, in lower case with the dot; () for a
    format that is a whole folder. `extra` is the optional dependency to install
    (`pip install 'inferplane[<extra>]'`), "" when there is none of ours. `versions` are the major
    versions a manifest may ask for. `pure`: its predictions are functions of the request and cheap, so that
    computing one twice does no harm. Generating text takes too long for that, and MLflow models may be
    programs that do anything.
    """

    name: str
    file_suffixes: tuple[str, ...]
    extra: str
    protocols: tuple[str, ...] = ("v1", "v2")
    versions: tuple[str, ...] = ()
    pure: bool = False


def _by_name(*formats: ModelFormat) -> Mapping[str, ModelFormat]:
    return MappingProxyType({each.name: each for each in formats})


FORMATS: Mapping[str, ModelFormat] = _by_name(
    ModelFormat("sklearn", (".joblib", ".pkl", ".pickle"), "sklearn", versions=("0", "1"), pure=True),
    ModelFormat("xgboost", (".json", ".ubj", ".bst"), "xgboost", versions=("1", "2", "3"), pure=True),
    ModelFormat("lightgbm", (".txt", ".bst"), "lightgbm", versions=("2", "3", "4"), pure=True),
    ModelFormat("onnx", (".onnx",), "onnx", versions=("1",), pure=True),
    ModelFormat("huggingface", (), "huggingface", ("v1", "v2", "openai"), versions=("1",)),
    ModelFormat("mlflow", (), "", versions=("1", "2", "3")),
    ModelFormat(VLLM_FORMAT, (), "", ("openai",), versions=("1",)),
)  # fmt: skip

# Formats with a runtime on clusters with engine kserve only, and what serves them there.
FORMATS_ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "autogluon": "kserve-autogluonserver",
        "openvino": "kserve-openvino",
        "paddle": "kserve-paddleserver",
        "pmml": "kserve-pmmlserver",
        "pytorch": "kserve-torchserve",
        "tensorflow": "kserve-tensorflow-serving",
        "tensorrt": "kserve-tritonserver",
        "triton": "kserve-tritonserver",
    }
)

# What people write for the names above.
_SPELLINGS: Mapping[str, str] = MappingProxyType(
    {
        "scikit-learn": "sklearn",
        "scikit_learn": "sklearn",
        "scikitlearn": "sklearn",
        "xgb": "xgboost",
        "lgbm": "lightgbm",
        "lgb": "lightgbm",
        "hf": "huggingface",
        "torch": "pytorch",
        "tf": "tensorflow",
    }
)


def warn_of_args(args: Iterable[str], path: str, model_format: str = "") -> tuple[str, ...]:
    """A sentence when some of `args` have no effect on the local engine, else nothing."""
    if model_format in (VLLM_FORMAT, CUSTOM_FORMAT):
        return ()
    known = (WORKERS_ARG, *ARGS_OF_FORMAT.get(model_format, ()))
    given = list(args)
    idle = [
        arg
        for before, arg in zip(["", *given], given, strict=False)
        if arg not in ARGS_WITH_EFFECT
        and arg.partition("=")[0] not in known
        and (arg.startswith("-") or before not in known)  # the value of one that is known
    ]
    if not idle:
        return ()
    flags = [arg for arg in idle if arg.startswith("-")] or idle
    shown = flags[0].partition("=")[0][:ARG_CHARACTERS_SHOWN_MAX]  # not its value, which may be a secret
    said = f"{shown} has" if len(flags) == 1 else f"{shown} and {len(flags) - 1} more have"
    return (f"{path}: {said} no effect on the local engine, which knows {_listed_args(known)}",)


def _listed_args(known: tuple[str, ...]) -> str:
    own = [arg for arg in known if "_" in arg or "-" not in arg.lstrip("-")]
    return ", ".join(["--predict_proba", *own])


@dataclass(frozen=True, slots=True)
class ServingRuntime:
    """A program that serves models. `equivalents` are KServe's runtimes for the same formats: a
    manifest that names one of them runs here unchanged.
    """

    name: str
    engine: str
    formats: tuple[str, ...]
    protocols: tuple[str, ...]
    equivalents: tuple[str, ...] = ()


LOCAL_RUNTIMES: tuple[ServingRuntime, ...] = (
    ServingRuntime("inferplane-sklearn", LOCAL_ENGINE, ("sklearn",), ("v1", "v2"),
                   ("kserve-sklearnserver", "kserve-predictiveserver", "kserve-mlserver")),
    ServingRuntime("inferplane-xgboost", LOCAL_ENGINE, ("xgboost",), ("v1", "v2"),
                   ("kserve-xgbserver", "kserve-predictiveserver", "kserve-mlserver")),
    ServingRuntime("inferplane-lightgbm", LOCAL_ENGINE, ("lightgbm",), ("v1", "v2"),
                   ("kserve-lgbserver", "kserve-predictiveserver", "kserve-mlserver")),
    ServingRuntime("inferplane-onnx", LOCAL_ENGINE, ("onnx",), ("v1", "v2"), ("kserve-tritonserver",)),
    ServingRuntime("inferplane-huggingface", LOCAL_ENGINE, ("huggingface",), ("v1", "v2"),
                   ("kserve-huggingfaceserver",)),
    ServingRuntime("inferplane-mlflow", LOCAL_ENGINE, ("mlflow",), ("v1", "v2"), ("kserve-mlserver",)),
    ServingRuntime("inferplane-vllm", LOCAL_ENGINE, (VLLM_FORMAT,), ("v1", "v2"), ("kserve-vllmserver",)),
)  # fmt: skip

# A server of one's own, started by its command.
COMMAND_RUNTIME = ServingRuntime("inferplane-command", LOCAL_ENGINE, (CUSTOM_FORMAT,), PROTOCOLS)


def known_formats() -> tuple[str, ...]:
    """Every format name that is known, the local engine's first."""
    return (*FORMATS, *FORMATS_ELSEWHERE)


def canonical_format(name: str, *, field: str = "modelSpec.modelName") -> str:
    """The format's one spelling. Raises Invalid (UnsupportedFormat) that names the nearest match."""
    word = name.strip().lower() if isinstance(name, str) else ""
    known = known_formats()
    if word in known:
        return word
    near = _SPELLINGS.get(word) or next(iter(get_close_matches(word, known, n=1)), "")
    hint = f"; did you mean {near}?" if near else ""
    raise Invalid(
        f"“{word[:80]}” is not a model format that is known{hint}" if word else "the model format is empty",
        reason=ReasonCode.UNSUPPORTED_FORMAT.value,
        field=field,
        next_action=f"Use one of {', '.join(FORMATS)}"
        f" (on clusters with engine kserve also {', '.join(FORMATS_ELSEWHERE)}).",
    )


def is_pure(model: ModelSpec) -> bool:
    """Whether a prediction of this model may be computed twice without harm. Never for a program of one's own."""
    known = FORMATS.get(_SPELLINGS.get(model.format, model.format))
    return known is not None and known.pure and not model.command


def select_runtime(model: ModelSpec, engine: str, *, field: str = "modelSpec.modelName") -> ServingRuntime:
    """The runtime that will serve `model` on a cluster with this engine.

    Raises Invalid: UnsupportedFormat when nobody knows the format, NoRuntime when the format is
    known but no runtime of this engine fits, with each runtime's reason.
    """
    if engine != LOCAL_ENGINE:
        return ServingRuntime(model.runtime, engine, (model.format,), (model.protocol_version,))
    if model.format == CUSTOM_FORMAT:
        if model.command:
            return COMMAND_RUNTIME
        raise _no_runtime(
            "a container of one's own runs on clusters with engine kserve only, unless it has a command,"
            " which the local engine runs as a process",
            field,
        )
    name = canonical_format(model.format, field=field)
    if name in FORMATS_ELSEWHERE:
        raise _no_runtime(
            f"the local engine has no runtime for {name};"
            f" on clusters with engine kserve {FORMATS_ELSEWHERE[name]} serves it",
            field,
        )
    refusals = []
    for runtime in LOCAL_RUNTIMES:
        refusal = _why_not(runtime, model, name)
        if not refusal:
            return runtime
        if name in runtime.formats or model.runtime in {runtime.name, *runtime.equivalents}:
            refusals.append(f"{runtime.name} {refusal}")
    raise _no_runtime("no runtime fits: " + "; ".join(refusals), field)


def _why_not(runtime: ServingRuntime, model: ModelSpec, name: str) -> str:
    """Empty when the runtime can serve the model, else the words after its name."""
    if name not in runtime.formats:
        return f"does not serve {name}"
    if model.runtime and model.runtime not in {runtime.name, *runtime.equivalents}:
        return f"is not the runtime “{model.runtime[:80]}” that was asked for, which the local engine does not have"
    if model.protocol_version not in runtime.protocols:
        return f"speaks {' and '.join(runtime.protocols)}, not {model.protocol_version[:80]}"
    major = model.format_version.partition(".")[0]
    if major and major not in FORMATS[name].versions:
        return f"serves {name} {', '.join(FORMATS[name].versions)}, not {model.format_version[:80]}"
    return ""


def _no_runtime(message: str, field: str) -> Invalid:
    return Invalid(
        message,
        reason=ReasonCode.NO_RUNTIME.value,
        field=field,
        next_action="Change the manifest so that a runtime fits, or use a cluster that has one that does.",
    )
