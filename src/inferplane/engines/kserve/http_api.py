"""One API server over HTTP: credentials in, JSON objects out. What is asked for is `link.py`'s business.

Credentials come from a kubeconfig that stands alone, from one on this machine with its files beside it, or from
the service account of the pod we run in, whose token Kubernetes renews in its file: it is read anew when it has
become old. A program that a kubeconfig names is never run.

Every failure is an `ApiError`: with the status and the words of the API server where it answered, with status 0
where it did not. No credential is in any of them.
"""

from __future__ import annotations

import os
import ssl
import tempfile
import time
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from inferplane.domain.cluster import KUBECONFIG_BYTES_MAX, ClusterConnection
from inferplane.domain.errors import Invalid
from inferplane.domain.kubeconfig import alone
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.port import EngineError
from inferplane.version import VERSION

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0
CONNECTIONS_MAX = 16
TOKEN_FILE_SECONDS = 60.0
MESSAGE_CHARACTERS_MAX = 500
APPLY = "application/apply-patch+yaml"


class ApiError(EngineError):
    """The API server refused (`status`), or did not answer (0)."""

    def __init__(self, message: str, status: int = 0) -> None:
        reason = {
            0: ReasonCode.CLUSTER_UNREACHABLE,
            401: ReasonCode.CLUSTER_UNAUTHORIZED,
            403: ReasonCode.CLUSTER_FORBIDDEN,
        }.get(status, ReasonCode.ENGINE_ERROR)
        super().__init__(message, reason=reason.value)
        self.status = status


@dataclass(frozen=True, slots=True)
class Credentials:
    """How an API server is reached. `authority`, `certificate` and `key` are PEM; b"" where there is none."""

    server: str
    authority: bytes = b""
    certificate: bytes = field(default=b"", repr=False)
    key: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    insecure: bool = False
    server_name: str = ""


def credentials_for(
    connection: ClusterConnection, kubeconfig: str, environment: Mapping[str, str]
) -> Credentials:
    """The credentials that the connection speaks of. Raises Invalid where they cannot be had or meant."""
    if connection.in_cluster:
        return _in_cluster(environment)
    if connection.kubeconfig:
        path = Path(connection.kubeconfig)
        text = _read(path, "the kubeconfig")
        return credentials_of(text, connection.context, lambda name: _read(path.parent / name, "the file"))
    return credentials_of(kubeconfig.encode(), connection.context, _no_file)


def credentials_of(text: bytes, context: str, read_file: Callable[[str], bytes]) -> Credentials:
    """The credentials of one context. Raises Invalid, which repeats nothing of the text."""
    try:
        config = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        config = None
    chosen = alone(config, context, read_file)
    cluster, user = chosen["clusters"][0]["cluster"], chosen["users"][0]["user"]
    return Credentials(
        server=str(cluster["server"]).rstrip("/"),
        authority=_decoded(cluster, "certificate-authority-data"),
        certificate=_decoded(user, "client-certificate-data"),
        key=_decoded(user, "client-key-data"),
        token=str(user.get("token") or ""),
        insecure=cluster.get("insecure-skip-tls-verify") is True,
        server_name=str(cluster.get("tls-server-name") or ""),
    )


class HttpApi:
    """An API server. Connections are made when they are needed, and kept."""

    def __init__(
        self, credentials: Credentials, *, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        """Raises Invalid for certificates that are none."""
        self._credentials = credentials
        self._token = credentials.token
        self._token_read_at = float("-inf")
        self._client = httpx.AsyncClient(
            base_url=credentials.server,
            transport=transport,
            verify=_tls(credentials) if transport is None else False,
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX),
            headers={"User-Agent": f"inferplane/{VERSION}", "Accept": "application/json"},
            trust_env=False,
        )

    @property
    def server(self) -> str:
        """Its address."""
        return self._credentials.server

    @property
    def authority(self) -> bytes:
        """The certificates (PEM) by which it is known."""
        return self._credentials.authority

    async def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, **query: str
    ) -> dict[str, Any]:
        """One request; PATCH is server-side apply. Raises ApiError."""
        headers = {}
        if token := self._current_token():
            headers["Authorization"] = f"Bearer {token}"
        if method == "PATCH":
            headers["Content-Type"] = APPLY
        extensions = {"sni_hostname": self._credentials.server_name} if self._credentials.server_name else {}
        try:
            response = await self._client.request(
                method, path, json=body, params=query, headers=headers, extensions=extensions
            )
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise ApiError(f"it does not answer: {what[:MESSAGE_CHARACTERS_MAX]}") from error
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if response.is_success and isinstance(answer, dict):
            return answer
        if response.is_success:
            raise ApiError("its answer is no JSON object: is this the API server of Kubernetes?")
        said = answer.get("message") if isinstance(answer, dict) else None
        words = said if isinstance(said, str) and said else response.reason_phrase or "no reason given"
        raise ApiError(
            f"{words[:MESSAGE_CHARACTERS_MAX]} (HTTP {response.status_code})", response.status_code
        )

    async def close(self) -> None:
        """Give back connections."""
        await self._client.aclose()

    def _current_token(self) -> str:
        """The token; from its file, which Kubernetes renews, where there is one."""
        file = self._credentials.token_file
        if file is not None and time.monotonic() - self._token_read_at > TOKEN_FILE_SECONDS:
            try:
                self._token = file.read_text(encoding="utf-8").strip()
                self._token_read_at = time.monotonic()
            except (OSError, UnicodeDecodeError) as error:
                raise ApiError(f"the token in {file} cannot be read") from error
        return self._token


def _in_cluster(environment: Mapping[str, str]) -> Credentials:
    host, port = (
        environment.get("KUBERNETES_SERVICE_HOST", ""),
        environment.get("KUBERNETES_SERVICE_PORT", ""),
    )
    token = SERVICE_ACCOUNT / "token"
    if not host or not port or not token.exists():
        raise Invalid(
            "the platform does not run in a pod of Kubernetes with a service account",
            reason="NotInCluster",
            field="inCluster",
            next_action="Give a kubeconfig.",
        )
    name = f"[{host}]" if ":" in host else host
    return Credentials(
        f"https://{name}:{port}",
        authority=_read(SERVICE_ACCOUNT / "ca.crt", "the file"),
        token_file=token,
    )


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(KUBECONFIG_BYTES_MAX)
    except OSError as error:
        raise Invalid(
            f"{what} {path} cannot be read on the platform's machine: {error.strerror}",
            reason="KubeconfigUnreadable",
            field="kubeconfigRef",
        ) from error


def _no_file(_: str) -> bytes:
    raise Invalid(
        "the kubeconfig names a file, which is not on the platform's machine",
        reason="KubeconfigNamesFile",
        field="kubeconfig",
    )


def _decoded(part: Mapping[str, Any], key: str) -> bytes:
    try:
        return b64decode(str(part.get(key) or ""), validate=True)
    except ValueError as error:
        raise Invalid(
            f"{key} of the kubeconfig is no Base64", reason="InvalidKubeconfig", field="kubeconfig"
        ) from error


def _tls(credentials: Credentials) -> ssl.SSLContext:
    """Raises Invalid."""
    try:
        context = ssl.create_default_context(
            cadata=credentials.authority.decode("ascii") if credentials.authority else None
        )
        if credentials.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if credentials.certificate:
            _load(context, credentials)
    except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
        raise Invalid(
            "a certificate or key of the kubeconfig is not valid PEM",
            reason="InvalidKubeconfig",
            field="kubeconfig",
            next_action="Check that it works with kubectl.",
        ) from error
    return context


def _load(context: ssl.SSLContext, credentials: Credentials) -> None:
    """OpenSSL takes a key from a file only: one that nobody else may read, and that is gone at once."""
    descriptor, name = tempfile.mkstemp(prefix="inferplane-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(credentials.certificate + b"\n" + credentials.key)
        context.load_cert_chain(name)
    finally:
        Path(name).unlink(missing_ok=True)
