"""The cluster's words → a reason code and a sentence for a person. Pure.

Kubernetes and KServe say the same thing with changing names in it (a pod's random suffix, a back-off's seconds),
wrap it in several layers, or add what only a scheduler's author wants to know. A sentence here is what is left after
that: it stays the same for as long as the cause does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inferplane.domain.errors import Invalid
from inferplane.domain.quantity import parse_cpu, parse_memory
from inferplane.domain.reasons import ReasonCode

SENTENCE_CHARACTERS_MAX = 400

_SCHEDULER_NOISE = re.compile(
    r"[.,\s]*(?:no new claims to deallocate\b|preemption: |Preemption is not helpful).*$", re.DOTALL
)
_POD_FORBIDDEN = re.compile(r'^(?:Error creating: )?pods "[^"]*" is forbidden: ')
_ERROR_CREATING = re.compile(r"^Error creating: ")
_PULL_NOISE = re.compile(
    r'^(?:Back-off pulling image "[^"]*"(?:: )?|ErrImagePull: |Failed to pull image "[^"]*": |'
    r'(?:rpc error: )?(?:code = \w+ )?desc = |failed to pull and unpack image "[^"]*": |'
    r"failed to resolve (?:image|reference [^:]*\S*): |initializing source [^:]*\S*: )"
)
_START_NOISE = re.compile(
    r"^(?:Error: )?(?:failed to create containerd task: |failed to create shim task: |"
    r"failed to create task for container: |OCI runtime create failed: |runc create failed: |"
    r"runc did not terminate successfully: exit status \d+: |crun: |unable to start container process: |"
    r"container create failed: |failed to start container [^:]*: |failed to generate (?:container )?[^:]*: )"
)
_QUOTA = re.compile(r"exceeded quota: ([^,]+), requested: (.+), used: (.+), limited: (.+)$", re.DOTALL)
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and whether waiting alone will not mend it."""

    reason: ReasonCode
    message: str
    fails: bool


def sentence(words: str) -> str:
    """On one line, without a full stop at the end, and not too long."""
    plain = _SPACE.sub(" ", words).strip().rstrip(".")
    return plain if len(plain) <= SENTENCE_CHARACTERS_MAX else plain[: SENTENCE_CHARACTERS_MAX - 1] + "…"


def last_line(lines: Sequence[str]) -> str:
    """The last line that says something, as a sentence."""
    return next((sentence(line) for line in reversed(lines) if line.strip()), "")


# What a scheduler says


def scheduling(words: str) -> Finding:
    """Why no node takes the pod."""
    cannot_ever = "preemption is not helpful" in words.lower()
    plain = sentence(_SCHEDULER_NOISE.sub("", words))
    plain = plain.replace("node(s) were unschedulable", "node(s) were unschedulable (cordoned)")
    lowered = plain.lower()
    if "persistentvolumeclaim" in lowered or "volume node affinity" in lowered:
        missing = "not found" in lowered
        return Finding(ReasonCode.VOLUME_NOT_READY, plain, fails=missing)
    if cannot_ever and "insufficient" in lowered:
        plain += "; to end what runs there would not make enough room"
    return Finding(ReasonCode.UNSCHEDULABLE, plain, fails=False)


# What the API server says when a pod is to be created


def creation(words: str) -> Finding:
    """Why the API server does not let the pod be made."""
    plain = sentence(_ERROR_CREATING.sub("", _POD_FORBIDDEN.sub("", words)))
    quota = _QUOTA.search(plain)
    if quota is not None:
        name, requested, _, limited = quota.groups()
        never = _is_beyond(requested, limited)
        end = f"; that is more than quota {name} allows in all" if never else ""
        return Finding(ReasonCode.QUOTA_EXCEEDED, plain + end, fails=never)
    if "because it is being terminated" in plain:
        return Finding(ReasonCode.CHANGED_OUTSIDE, f"somebody deletes the namespace: {plain}", fails=True)
    if "failed calling webhook" in plain:
        return Finding(ReasonCode.POD_REFUSED, plain, fails=False)
    return Finding(ReasonCode.POD_REFUSED, plain, fails=True)


def _is_beyond(requested: str, limited: str) -> bool:
    """Whether more is asked for than the quota has when nobody else uses it."""
    limits = dict(_amounts(limited))
    return any(amount > limits[what] for what, amount in _amounts(requested) if what in limits)


def _amounts(words: str) -> Iterable[tuple[str, int]]:
    for part in words.split(","):
        what, _, amount = part.strip().partition("=")
        try:
            yield what, parse_cpu(amount, what) if "cpu" in what else parse_memory(amount, what)
        except Invalid:
            continue


# What a kubelet says


def image(image_name: str, words: str) -> Finding:
    """Why an image is not there."""
    plain = sentence(_unwrapped(_PULL_NOISE, words))
    if plain == sentence(f"Back-off pulling image {image_name}"):
        plain = ""
    return Finding(
        ReasonCode.IMAGE_PULL_BACK_OFF, f"image {image_name}: {plain or 'cannot be pulled'}", fails=True
    )


def start(words: str) -> str:
    """The container runtime's error without the chain of who passed it on."""
    return sentence(_unwrapped(_START_NOISE, words))


def probe(words: str) -> str:
    """What a probe was answered: `Readiness probe failed: HTTP probe failed with statuscode: 404` → that."""
    return sentence(words)


def _unwrapped(noise: re.Pattern[str], words: str) -> str:
    plain = words.strip()
    while (found := noise.match(plain)) is not None and found.end() < len(plain):
        plain = plain[found.end() :].strip()
    return plain


# What KServe says

_URI_REFUSED = re.compile(r"StorageUri \[(.*?)\] is not supported")
NO_RUNTIME_REASONS = frozenset({"NoSupportingRuntime", "RuntimeNotRecognized", "RuntimeDisabled"})
HARMLESS = ("object has been modified", "not found, retrying")
_KSERVE_NOISE = re.compile(
    r"^(?:fails? to reconcile \w+: |failed to reconcile \w+: |fails to create NewRawKubeReconciler for \w+: )"
)


def kserve(words: str) -> Finding | None:
    """What is wrong with an InferenceService by KServe's own error; None where it only tries again."""
    if not words or any(each in words for each in HARMLESS):
        return None
    plain = _SPACE.sub(" ", _unwrapped(_KSERVE_NOISE, words)).strip()
    lowered = plain.lower()
    refused = _URI_REFUSED.search(plain)
    if refused is not None:
        rest = plain[: refused.start()].partition("must be ")[2].strip(" .")
        more = f"; it must be {rest}" if rest else ""
        message = sentence(f"KServe does not fetch from {refused.group(1)}{more}")
        return Finding(ReasonCode.SCHEME_NOT_SUPPORTED, message, fails=True)
    plain = sentence(plain)
    if "storageuri not supported" in lowered or ("storage uri" in lowered and "not supported" in lowered):
        return Finding(ReasonCode.SCHEME_NOT_SUPPORTED, plain, fails=True)
    if "runtime" in lowered and any(
        each in lowered
        for each in (
            "no runtime found",
            "does not support",
            "is disabled",
            "servingruntimes with the name",
            "not recognized",
        )
    ):
        return Finding(ReasonCode.NO_RUNTIME, plain, fails=True)
    if "knative" in lowered and ("not available" in lowered or "not installed" in lowered):
        return Finding(ReasonCode.KSERVE_NOT_READY, plain, fails=True)
    if "exceeded quota" in lowered:
        return creation(plain)
    if any(
        each in lowered
        for each in ("invalid", "denied the request", "is forbidden", "unsupported", "must ", "unmarshal")
    ):
        return Finding(ReasonCode.SPEC_REFUSED, plain, fails=True)
    return Finding(ReasonCode.ENGINE_ERROR, f"KServe tries again: {plain}", fails=False)


# What a container printed before it ended

_STORAGE: tuple[tuple[ReasonCode, tuple[str, ...]], ...] = (
    (
        ReasonCode.STORAGE_UNAUTHORIZED,
        (
            "unable to locate credentials", "nocredentials", "invalidaccesskeyid", "signaturedoesnotmatch",
            "401 client error", "status code 401", "http error 401", "unauthorized", "defaultcredentialserror", "expiredtoken",
            "invalid username or password", "authentication failed", "authenticationfailed", "invalidtoken",
        ),
    ),
    (
        ReasonCode.STORAGE_FORBIDDEN,
        (
            "403 client error", "status code 403", "forbidden", "accessdenied", "access denied", "permission denied",
            "gatedrepoerror", "does not have storage.objects", "authorizationpermissionmismatch", "(403)",
        ),
    ),
    (
        ReasonCode.HOST_NOT_FOUND,
        (
            "name or service not known", "temporary failure in name resolution", "nameresolutionerror", "no such host",
            "nodename nor servname", "could not resolve host", "failed to resolve", "getaddrinfo failed", "unknownhost",
        ),
    ),
    (
        ReasonCode.STORAGE_UNREACHABLE,
        (
            "connection refused", "connection reset", "timed out", "timeout", "max retries exceeded",
            "network is unreachable", "no route to host", "could not connect to the endpoint", "endpointconnectionerror",
            "certificate verify failed", "sslerror", "503 server error", "500 server error", "502 server error",
            "status code 503", "status code 500", "connectionerror",
        ),
    ),
    (ReasonCode.DISK_FULL, ("no space left on device", "disk quota exceeded")),
    (
        ReasonCode.MODEL_NOT_FOUND,
        (
            "no model found", "nosuchkey", "nosuchbucket", "404 client error", "status code 404", "not found",
            "does not exist", "failed to fetch model", "repositorynotfounderror", "revisionnotfounderror", "blobnotfound", "no such file",
            "entrynotfounderror",
        ),
    ),
    (ReasonCode.UNSAFE_ARCHIVE, ("attempted path traversal", "outside of the", "unsafe")),
    (ReasonCode.SCHEME_NOT_SUPPORTED, ("cannot recognize storage type", "invalid storage uri", "unsupported storage")),
    (ReasonCode.NOT_A_MODEL, ("not a gzip file", "badzipfile", "file is not a zip", "unsupported content type", "invalid uri")),
)  # fmt: skip

_SERVER: tuple[tuple[ReasonCode, tuple[str, ...]], ...] = (
    (ReasonCode.OUT_OF_GPU_MEMORY, ("cuda out of memory", "outofmemoryerror: cuda", "cuda error: out of memory", "cublas_status_alloc_failed", "no available memory for the cache blocks", "hip out of memory")),
    (ReasonCode.OUT_OF_MEMORY, ("memoryerror", "std::bad_alloc", "cannot allocate memory", "defaultcpuallocator: can't allocate memory")),
    (ReasonCode.PORT_UNAVAILABLE, ("address already in use",)),
    (ReasonCode.DISK_FULL, ("no space left on device",)),
    (ReasonCode.MODEL_FILE_MISSING, ("modelmissingerror", "missing model", "no model file found", "no such file or directory: '/mnt/models", "no such file: /mnt/models", "model path does not exist")),
    (ReasonCode.MODEL_LOAD_FAILED, ("failed to load model", "unable to load model", "could not load model", "error loading model", "model failed to load", "unpicklingerror", "error while deserializing", "failed to start model", "inconsistentversion", "invalid load key", "can't get attribute", "incompatible", "safetensor")),
)  # fmt: skip


def storage_reason(lines: Iterable[str]) -> ReasonCode | None:
    """Why the storage initializer could not bring the model, where its words are clear."""
    return _said(_STORAGE, lines)


def server_reason(lines: Iterable[str]) -> ReasonCode | None:
    """Why a model server ended, where its words are clear."""
    return _said(_SERVER, lines)


def _said(known: tuple[tuple[ReasonCode, tuple[str, ...]], ...], lines: Iterable[str]) -> ReasonCode | None:
    """The last line that is clear decides: what comes before it are tries and warnings."""
    for line in reversed(list(lines)):
        lowered = line.lower()
        for reason, signs in known:
            if any(sign in lowered for sign in signs):
                return reason
    return None
