"""One API server over real HTTP: what is sent, and what becomes of every kind of failure."""

from __future__ import annotations

import asyncio
import json
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from inferplane.domain.cluster import ClusterConnection
from inferplane.domain.errors import Invalid
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.kserve.http_api import ApiError, Credentials, HttpApi, credentials_for, credentials_of

SECRET = "hunter2hunter2"


@dataclass
class Server:
    """Answers every request alike, and keeps what it was asked."""

    status: int = 200
    body: bytes = b"{}"
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
            content = await reader.readexactly(int(headers.get("content-length", "0")))
            self.asked.append((head[0], headers, content))
            writer.write(
                f"HTTP/1.1 {self.status} Whatever\r\nContent-Length: {len(self.body)}\r\n"
                "Connection: close\r\n\r\n".encode()
                + self.body
            )
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(server: Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.port}"
    finally:
        listener.close()
        await listener.wait_closed()


@asynccontextmanager
async def api_of(credentials: Credentials) -> AsyncIterator[HttpApi]:
    api = HttpApi(credentials)
    try:
        yield api
    finally:
        await api.close()


async def test_a_request_and_its_answer() -> None:
    server = Server(body=b'{"kind": "Namespace"}')
    async with serving(server) as url, api_of(Credentials(url, token=SECRET)) as api:
        assert await api.call("GET", "/api/v1/namespaces", limit="5") == {"kind": "Namespace"}
        await api.call("PATCH", "/api/v1/namespaces/n", {"a": 1}, fieldManager="inferplane")
    (first, headers, _), (second, applied, content) = server.asked
    assert first == "GET /api/v1/namespaces?limit=5 HTTP/1.1"
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert headers["user-agent"].startswith("inferplane/")
    assert second == "PATCH /api/v1/namespaces/n?fieldManager=inferplane HTTP/1.1"
    assert (applied["content-type"], json.loads(content)) == ("application/apply-patch+yaml", {"a": 1})


@pytest.mark.parametrize(
    ("status", "body", "said", "reason"),
    [
        (401, b'{"message": "Unauthorized"}', "Unauthorized (HTTP 401)", ReasonCode.CLUSTER_UNAUTHORIZED),
        (403, b'{"message": "no"}', "no (HTTP 403)", ReasonCode.CLUSTER_FORBIDDEN),
        (500, b"oops", "Whatever (HTTP 500)", ReasonCode.ENGINE_ERROR),
        (200, b"<html>", "no JSON object", ReasonCode.CLUSTER_UNREACHABLE),
        (200, b"[]", "no JSON object", ReasonCode.CLUSTER_UNREACHABLE),
    ],
)
async def test_refusals_are_errors_with_the_server_s_words(
    status: int, body: bytes, said: str, reason: ReasonCode
) -> None:
    async with serving(Server(status, body)) as url, api_of(Credentials(url, token=SECRET)) as api:
        with pytest.raises(ApiError) as caught:
            await api.call("GET", "/version")
    assert said in caught.value.message
    assert caught.value.reason == reason
    assert caught.value.status == (status if status >= 400 else 0)
    assert SECRET not in caught.value.message


async def test_nobody_there() -> None:
    async with serving(Server()) as url:
        pass
    async with api_of(Credentials(url)) as api:
        with pytest.raises(ApiError, match="does not answer") as caught:
            await api.call("GET", "/version")
    assert (caught.value.status, caught.value.reason) == (0, ReasonCode.CLUSTER_UNREACHABLE)


async def test_a_token_in_a_file(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    server = Server()
    async with serving(server) as url, api_of(Credentials(url, token_file=token)) as api:
        await api.call("GET", "/version")
    assert server.asked[0][1]["authorization"] == "Bearer first"
    async with api_of(Credentials(url, token_file=tmp_path / "gone")) as api:
        with pytest.raises(ApiError, match="cannot be read"):
            await api.call("GET", "/version")


@dataclass(frozen=True)
class Pair:
    certificate: bytes
    key: bytes


@pytest.fixture(scope="module")
def pair() -> Pair:
    """A certificate for 127.0.0.1 that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "east")])
    now = datetime.now(UTC)  # noqa: TID251 - what OpenSSL compares it with is the real time
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


def tls_of(pair: Pair, folder: Path, *, asks: bool = False) -> ssl.SSLContext:
    file = folder / "server.pem"
    file.write_bytes(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=pair.certificate.decode())
    return context


async def test_a_server_is_known_by_the_kubeconfig_s_certificate(pair: Pair, tmp_path: Path) -> None:
    server = Server()
    async with serving(server, tls_of(pair, tmp_path)) as url:
        async with api_of(Credentials(url, authority=pair.certificate)) as api:
            assert await api.call("GET", "/version") == {}
        async with api_of(Credentials(url, insecure=True)) as api:
            assert await api.call("GET", "/version") == {}
        async with api_of(Credentials(url)) as api:
            with pytest.raises(ApiError, match="certificate verify failed"):
                await api.call("GET", "/version")


async def test_a_client_certificate_is_shown_and_left_nowhere(pair: Pair, tmp_path: Path) -> None:
    server = Server()
    async with serving(server, tls_of(pair, tmp_path, asks=True)) as url:
        me = Credentials(url, authority=pair.certificate, certificate=pair.certificate, key=pair.key)
        async with api_of(me) as api:
            assert await api.call("GET", "/version") == {}
    assert pair.key.decode() not in repr(me)


def test_certificates_that_are_none() -> None:
    for odd in (
        Credentials("https://x", authority=b"nonsense"),
        Credentials("https://x", authority=b"\xff"),
        Credentials("https://x", certificate=b"nonsense", key=b"nonsense"),
    ):
        with pytest.raises(Invalid, match="not valid PEM"):
            HttpApi(odd)


def kubeconfig(server: str, **user: Any) -> dict[str, Any]:
    return {
        "current-context": "a",
        "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": "ca.pem"}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
    }


def test_credentials_from_a_file_with_its_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("authority")
    file = tmp_path / "east.yaml"
    file.write_text(yaml.safe_dump(kubeconfig("https://east:6443/", token=SECRET)))
    found = credentials_for(ClusterConnection(kubeconfig=str(file)), "", {})
    assert found == Credentials("https://east:6443", authority=b"authority", token=SECRET)
    assert SECRET not in repr(found)
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(Invalid, match=r"ca\.pem cannot be read on the platform's machine"):
        credentials_for(ClusterConnection(kubeconfig=str(file)), "", {})
    file.unlink()
    with pytest.raises(Invalid, match="cannot be read") as caught:
        credentials_for(ClusterConnection(kubeconfig=str(file)), "", {})
    assert caught.value.reason == "KubeconfigUnreadable"


def test_credentials_that_were_handed_over_name_no_file() -> None:
    text = yaml.safe_dump(kubeconfig("https://east:6443", token=SECRET))
    with pytest.raises(Invalid) as caught:
        credentials_for(ClusterConnection(), text, {})
    assert caught.value.reason == "KubeconfigNamesFile"
    for odd in (b"\xff\xfe\x00", b"a: [", b"", b"- 1"):
        with pytest.raises(Invalid, match="no kubeconfig"):
            credentials_of(odd, "", lambda _: b"")
    bad = kubeconfig("https://east:6443", **{"client-certificate-data": "*"})
    bad["clusters"][0]["cluster"] = {
        "server": "https://east:6443",
        "certificate-authority-data": b64encode(b"x").decode(),
    }
    with pytest.raises(Invalid, match="client-certificate-data of the kubeconfig is no Base64"):
        credentials_of(yaml.safe_dump(bad).encode(), "", lambda _: b"")


def test_outside_a_pod_there_is_no_service_account() -> None:
    with pytest.raises(Invalid) as caught:
        credentials_for(ClusterConnection(in_cluster=True), "", {})
    assert caught.value.reason == "NotInCluster"
