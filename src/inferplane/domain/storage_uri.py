"""Storage URIs: where a model lies, which of them are understood, and what is refused and why.

A URI is text from a stranger. Parsing it here, once, gives every later part (model store, engines,
pre-flight) the same reading, and gives the user one sentence when it cannot be meant. Credentials
are no part of a URI: a user name or password inside one is refused, because a URI is shown in lists,
events and logs. Signed links are let through, since the signature is often all a person has, and
`redacted` hides the signature wherever the URI is shown.

    file:///models/iris.joblib, /models/iris.joblib     http(s)://host/model.joblib
    s3://bucket/key        gs://bucket/key              hf://owner/repo[:revision][/path]
    models:/name/version   models:/name@alias           models:/m-<id>  (MLflow's registry)
    pvc://claim/path       oci://registry/image:tag     (clusters with engine kserve)
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from urllib.parse import SplitResult, unquote, urlsplit

from inferplane.domain.errors import Invalid
from inferplane.domain.reasons import ReasonCode

STORAGE_URI_CHARACTERS_MAX = 4096


class Scheme(StrEnum):
    """Kinds of storage that are understood. Not every engine can fetch from every one."""

    FILE = "file"
    HTTP = "http"
    HTTPS = "https"
    S3 = "s3"
    GS = "gs"
    HF = "hf"
    MODELS = "models"
    PVC = "pvc"
    OCI = "oci"


LOCAL_SCHEMES: frozenset[Scheme] = frozenset(
    {Scheme.FILE, Scheme.HTTP, Scheme.HTTPS, Scheme.S3, Scheme.GS, Scheme.HF, Scheme.MODELS}
)

# Spellings that KServe has for the same kind of storage.
_SYNONYMS = {"oci+native": Scheme.OCI, "oci+fetch": Scheme.OCI}

# Known elsewhere, not here: named so that the refusal is not "unknown".
_KNOWN_ELSEWHERE = {
    "hdfs": "HDFS",
    "webhdfs": "WebHDFS",
    "azure": "Azure Blob Storage",
    "az": "Azure Blob Storage",
    "abfs": "Azure Data Lake",
    "abfss": "Azure Data Lake",
    "wasb": "Azure Blob Storage",
    "wasbs": "Azure Blob Storage",
    "modelscope": "ModelScope",
    "git": "git",
    "ssh": "SSH",
    "ftp": "FTP",
    "sftp": "SFTP",
}

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,254}", re.ASCII)
_HF_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,95}", re.ASCII)
_HF_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,254}", re.ASCII)
_REGISTERED = re.compile(r"[^/:@?#%]{1,250}")
_VERSION = re.compile(r"[0-9]{1,18}|[A-Za-z][A-Za-z0-9_\-]{0,99}", re.ASCII)
_ALIAS = re.compile(r"[A-Za-z0-9_\-]{1,250}", re.ASCII)
_LOGGED_MODEL = re.compile(r"m-[A-Za-z0-9]{1,100}", re.ASCII)
_CLAIM = re.compile(r"[a-z0-9]([a-z0-9.\-]{0,251}[a-z0-9])?", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.\-]{0,252})", re.ASCII)
_CONTROL_OR_SPACE = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class StorageUri:
    """A storage URI taken apart.

    `text` is the URI as given, without surrounding blanks. `host` is the bucket (s3, gs), the
    repository `owner/name` (hf), the registered model (models), the claim (pvc), the registry (oci) or the host
    name (http, https), and "" for files. `path` is the key or path within it without a leading slash; for files it is
    the absolute path, decoded. `port` is None unless written. `revision` is for hf, and for models:
    a version's number, `latest`, a stage, or `@alias`; "" for a model that is named by its id.
    """

    scheme: Scheme
    text: str
    host: str = ""
    path: str = ""
    revision: str = ""
    port: int | None = None
    query: str = ""

    @property
    def bucket(self) -> str:
        """The bucket of an s3 or gs URI; the same as `host`."""
        return self.host

    @property
    def repo(self) -> str:
        """The `owner/name` of an hf URI; the same as `host`."""
        return self.host

    @property
    def file_name(self) -> str:
        """The last segment of the path, decoded; "" when the path is empty or ends with a slash."""
        return unquote(self.path.rpartition("/")[2])

    @property
    def shown(self) -> str:
        """The URI with anything secret taken out, for answers, events and logs."""
        return redacted(self.text)


def parse_storage_uri(text: str, *, field: str = "modelSpec.storageURI") -> StorageUri:
    """Read a storage URI; a plain absolute path is a file.

    Raises Invalid naming `field`: SchemeNotSupported for a scheme that cannot be fetched anywhere
    here, InvalidStorageUri for one that cannot be read.
    """
    if not isinstance(text, str):
        raise _invalid("a storage URI is text", field)
    text = text.strip()
    if not text:
        raise _invalid("the storage URI is empty", field, "Say where the model lies.")
    if len(text) > STORAGE_URI_CHARACTERS_MAX:
        raise _invalid(f"the storage URI is longer than {STORAGE_URI_CHARACTERS_MAX} characters", field)
    if _CONTROL.search(text):
        raise _invalid("the storage URI holds a line break or a control character", field)
    if text.startswith("/"):
        return StorageUri(Scheme.FILE, text, path=_plain_path(text))
    if text[:8].lower() == "models:/":
        return _registered(text, field)
    match = _SCHEME.match(text)
    if match is None:
        raise _invalid(
            f"{_quoted(text)} is neither a URI nor an absolute path",
            field,
            "Write an absolute path (/models/iris.joblib) or a URI with its scheme (s3://bucket/key).",
        )
    scheme = _scheme(match.group(1), field)
    if scheme is Scheme.FILE:
        return _file(text, field)
    if _CONTROL_OR_SPACE.search(text):
        raise _invalid("the storage URI holds a blank", field, "Write a blank in a URI as %20.")
    parts = _split(text, field)
    if scheme in {Scheme.HTTP, Scheme.HTTPS}:
        return _http(scheme, text, parts, field)
    return _place(scheme, text, field)


_LOCAL_ONLY = frozenset({Scheme.FILE, Scheme.MODELS})


def where_supported(scheme: Scheme) -> str:
    """One sentence on where URIs of this scheme can be fetched."""
    if scheme in _LOCAL_ONLY:
        return f"{_list([scheme])} works on clusters with engine local"
    if scheme in LOCAL_SCHEMES:
        return f"{scheme}:// works on every cluster"
    return f"{scheme}:// works on clusters with engine kserve"


def require_local(uri: StorageUri, *, field: str = "modelSpec.storageURI") -> None:
    """Raise Invalid (SchemeNotSupported) unless the local engine can fetch `uri`."""
    if uri.scheme in LOCAL_SCHEMES:
        return
    raise Invalid(
        f"the local engine cannot fetch {uri.shown}; {where_supported(uri.scheme)}",
        reason=ReasonCode.SCHEME_NOT_SUPPORTED.value,
        field=field,
        next_action=f"Use a cluster with engine kserve, or one of {_list(sorted(LOCAL_SCHEMES))}.",
    )


def require_in_cluster(uri: StorageUri, *, field: str = "modelSpec.storageURI") -> None:
    """Raise Invalid (SchemeNotSupported) if only our own machine knows what lies at `uri`, no pod of a cluster."""
    if uri.scheme not in _LOCAL_ONLY:
        return
    raise Invalid(
        f"a cluster of Kubernetes cannot fetch {uri.shown}; {where_supported(uri.scheme)}",
        reason=ReasonCode.SCHEME_NOT_SUPPORTED.value,
        field=field,
        next_action="Put the model where its pods can fetch it from (s3://, gs://, hf://, https://, pvc://).",
    )


def _scheme(word: str, field: str) -> Scheme:
    name = word.lower()
    if name in _SYNONYMS:
        return _SYNONYMS[name]
    known = [scheme.value for scheme in Scheme]
    if name in known:
        return Scheme(name)
    if name in _KNOWN_ELSEWHERE:
        message = f"{name}:// ({_KNOWN_ELSEWHERE[name]}) is not supported"
    else:
        near = get_close_matches(name, known, n=1)
        message = f"{name}:// is not a known kind of storage" + (
            f"; did you mean {near[0]}://?" if near else ""
        )
    raise Invalid(
        message,
        reason=ReasonCode.SCHEME_NOT_SUPPORTED.value,
        field=field,
        next_action=f"Use one of {_list(known)}, or an absolute path.",
    )


def _file(text: str, field: str) -> StorageUri:
    rest = text[len("file://") :]
    host, slash, tail = rest.partition("/")
    if host.lower() not in {"", "localhost"}:
        raise _invalid(
            f"a file URI names no host, but this one names {_quoted(host)}",
            field,
            "Write file:///absolute/path, with three slashes.",
        )
    if not slash or not tail:
        raise _invalid("the file URI names no path", field, "Write file:///absolute/path.")
    path = unquote("/" + tail)
    if _CONTROL.search(path):
        raise _invalid("the file URI holds a control character", field)
    return StorageUri(Scheme.FILE, text, path=_plain_path(path))


def _plain_path(path: str) -> str:
    """Collapse doubled slashes in front, which POSIX leaves to the system to interpret."""
    return "/" + path.lstrip("/")


def _split(text: str, field: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise _invalid(f"the storage URI cannot be read: {_reason(error)}", field) from error
    if "@" in parts.netloc:
        raise Invalid(
            "the storage URI carries a user name or password",
            reason="CredentialsInUri",
            field=field,
            next_action="Take them out of the URI and give them in modelSpec.secret, where they are never shown"
            " (HTTP_USERNAME and HTTP_PASSWORD for http and https).",
        )
    return parts


def _http(scheme: Scheme, text: str, parts: SplitResult, field: str) -> StorageUri:
    host = parts.hostname or ""
    if not host or (":" not in host and not _HOST.fullmatch(host)):
        raise _invalid(f"{_quoted(host)} is not a host name", field)
    if not parts.path.strip("/"):
        raise _invalid(
            f"{scheme}://{host} names no file",
            field,
            "Give the address of the model file or archive itself.",
        )
    return StorageUri(scheme, text, host, parts.path[1:], port=parts.port, query=parts.query)


def _place(scheme: Scheme, text: str, field: str) -> StorageUri:
    """Read `scheme://place/path`, where no URL syntax applies: keys may hold ?, # and %."""
    rest = text.partition("://")[2]
    if scheme is Scheme.HF:
        return _hugging_face(text, rest, field)
    host, _, path = rest.partition("/")
    if scheme is Scheme.OCI:
        if not host or not path:
            raise _invalid("an oci URI is oci://registry/image:tag", field)
        return StorageUri(scheme, text, host, path)
    what, pattern = ("claim", _CLAIM) if scheme is Scheme.PVC else ("bucket", _BUCKET)
    if not pattern.fullmatch(host):
        raise _invalid(
            f"{_quoted(host)} is not the name of a {what}", field, f"Write {scheme}://{what}/path/to/model."
        )
    _refuse_dots(path, field)
    return StorageUri(scheme, text, host, path)


def _hugging_face(text: str, rest: str, field: str) -> StorageUri:
    owner, _, tail = rest.partition("/")
    name, mark, after = _cut_at_first(tail, ":@/")
    if not _HF_PART.fullmatch(owner) or not _HF_PART.fullmatch(name):
        raise _invalid(
            f"{_quoted(rest)} is not a repository on the hub",
            field,
            "Write hf://owner/repository, with :revision behind it if it must be a certain one.",
        )
    revision, path = "", after
    if mark in {":", "@"}:
        segments = after.split("/")
        width = 3 if segments[0] == "refs" else 1  # refs/pr/1 and refs/convert/parquet are one revision
        revision, path = "/".join(segments[:width]), "/".join(segments[width:])
        if not all(_HF_REVISION.fullmatch(part) for part in revision.split("/")):
            raise _invalid(f"{_quoted(revision)} is not a revision of a repository", field)
    _refuse_dots(path, field)
    return StorageUri(Scheme.HF, text, f"{owner}/{name}", path, revision=revision)


def _registered(text: str, field: str) -> StorageUri:
    """`models:/name/version` and the like, with one slash: the registry is not part of it."""
    rest = text[8:]
    name, mark, which = _cut_at_first(rest, "/@")
    if not mark and _LOGGED_MODEL.fullmatch(name):
        return StorageUri(Scheme.MODELS, text, name)
    understood = _ALIAS.fullmatch(which) if mark == "@" else mark and _VERSION.fullmatch(which)
    if not _REGISTERED.fullmatch(name) or not understood:
        raise _invalid(
            f"{_quoted(text)} names no version of a registered model",
            field,
            "Write models:/name/version, models:/name/latest or models:/name@alias; the registry's address is"
            " MLFLOW_TRACKING_URI in the model's secret.",
        )
    return StorageUri(Scheme.MODELS, text, name, revision=f"@{which}" if mark == "@" else which)


def _cut_at_first(text: str, marks: str) -> tuple[str, str, str]:
    for position, character in enumerate(text):
        if character in marks:
            return text[:position], character, text[position + 1 :]
    return text, "", ""


def _refuse_dots(path: str, field: str) -> None:
    if any(segment in {".", ".."} for segment in path.split("/")):
        raise _invalid("the path of the storage URI holds . or ..", field, "Write the path in full.")


def _invalid(message: str, field: str, next_action: str = "") -> Invalid:
    return Invalid(message, reason="InvalidStorageUri", field=field, next_action=next_action)


def _reason(error: ValueError) -> str:
    """The library's sentence, unless it repeats the text (which may hold a password)."""
    sentence = str(error)
    return "the host or port is malformed" if "://" in sentence or "'" in sentence else sentence


def _quoted(text: str) -> str:
    """A short, redacted quotation for a message."""
    shown = redacted(text)
    return f"“{shown[:80]}…”" if len(shown) > 80 else f"“{shown}”"


def _list(schemes: list[str] | list[Scheme]) -> str:
    return ", ".join("models:/" if scheme == Scheme.MODELS else f"{scheme}://" for scheme in schemes)


# What hides in URLs: `name:password@`, also when the password holds characters that should have been
# encoded; values of parameters with a telling name; JSON web tokens anywhere. Texts come from
# strangers, so nothing here may take longer than in proportion to their length.
_WITHOUT_BLANKS = re.compile(r"\S+")
_END_OF_AUTHORITY = re.compile(r"[/?#]|$")
_PARAMETER = re.compile(r"(?<=[?&#;])([^=&#;?\s]{1,200})=([^&#;\s]*(?:;[^=&#;\s]*(?=[;&#\s]|$))*)")
_TELLING = re.compile(
    r"token|secret|passw|passphrase|signature|credential|api[-_.]?key|access[-_.]?key|private[-_.]?key"
    r"|account[-_.]?key|auth|jwt|session|cookie|hdnea|hdnts|bearer",
    re.IGNORECASE,
)
_TELLING_WHOLE = frozenset(
    {"sig", "key", "sas", "pwd", "pw", "code", "policy", "key-pair-id", "googleaccessid", "ticket", "hmac"}
)
_JSON_WEB_TOKEN = re.compile(r"(?<![A-Za-z0-9_\-])eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]*)?")
HIDDEN = "***"


def redacted(text: str) -> str:
    """`text` (a URI, or a sentence with URIs in it) without user names, passwords, signatures, tokens.

    Total: any text goes in, and redacting twice changes nothing more. Parameter names stay, so that
    a person still sees what kind of link it was.
    """
    text = _WITHOUT_BLANKS.sub(lambda match: _without_user_info(match.group()), text)
    text = _PARAMETER.sub(_hide_value, text)
    return _JSON_WEB_TOKEN.sub(HIDDEN, text)


def _without_user_info(word: str) -> str:
    """Hide what stands between each `://` in a word without blanks and its `@`."""
    last_at = word.rfind("@")
    parts, position = [], 0
    while (found := word.find("://", position)) >= 0:
        start = found + len("://")
        parts.append(word[position:start])
        position = _user_info_end(word, start, last_at)
        if position > start:
            parts.append(f"{HIDDEN}@")
    return "".join([*parts, word[position:]])


def _user_info_end(word: str, start: int, last_at: int) -> int:
    """Where the host begins that stands behind user information; `start` when there is none.

    `user:pa/ss@host` is malformed, and yet what a person meant is plain: behind the colon is no port.
    """
    if last_at < start:
        return start
    match = _END_OF_AUTHORITY.search(word, start)
    authority = len(word) if match is None else match.start()
    at = word.rfind("@", start, authority)
    if at < 0:
        colon = word.find(":", start, authority)
        behind = word[colon + 1 : authority]
        if colon > 0 and behind and not behind.isdecimal() and not word.startswith("[", start):
            at = last_at
    return start if at < 0 else at + 1


def _hide_value(match: re.Match[str]) -> str:
    name = unquote(match.group(1))
    if _TELLING.search(name) or name.lower() in _TELLING_WHOLE:
        return f"{match.group(1)}={HIDDEN}"
    return match.group(0)
