"""Google Cloud Storage against an emulator, and its tokens against a service of our own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.store import ModelStore, Source
from range_server import RangeServer, sha256

Fetched = Callable[[ModelStore, str, Source], Coroutine[Any, Any, ArtifactState]]
OpenStore = Callable[..., Coroutine[Any, Any, ModelStore]]

MODEL = b"\x80\x04" + os.urandom(200_000)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    log = (tmp_path_factory.mktemp("gcs") / "log").open("w")
    process = subprocess.Popen(
        [
            Path(sys.executable).with_name("gcp-storage-emulator"),
            "start",
            f"--port={port}",
            "--host=127.0.0.1",
            "--in-memory",
            "--default-bucket=models",
        ],
        stdout=log,
        stderr=log,
    )
    host = f"127.0.0.1:{port}"
    transport = httpx.HTTPTransport(retries=8)  # pauses grow between tries, up to some seconds in all
    with httpx.Client(transport=transport, trust_env=False) as client:
        for name, body in (
            ("iris.joblib", MODEL),
            ("iris/model.joblib", MODEL[::-1]),
            ("iris/sub/notes ü.txt", b"x"),
        ):
            answer = client.post(
                f"http://{host}/upload/storage/v1/b/models/o",
                params={"uploadType": "media", "name": name},
                content=body,
            )
            assert answer.status_code == 200
    yield host
    process.terminate()
    process.wait(timeout=10)
    log.close()


async def test_an_object_arrives_anonymously_from_the_emulator(
    open_store: OpenStore, fetched: Fetched, emulator: str
) -> None:
    store = await open_store(environment={"STORAGE_EMULATOR_HOST": emulator})
    state = await fetched(store, "u1", Source("gs://models/iris.joblib"))
    assert state.phase is ArtifactPhase.PRESENT
    assert Path(state.path).read_bytes() == MODEL
    assert state.digest == sha256(MODEL)


async def test_everything_under_a_prefix_arrives(store: ModelStore, fetched: Fetched, emulator: str) -> None:
    secret = {"STORAGE_EMULATOR_HOST": f"http://{emulator}"}
    state = await fetched(store, "u1", Source("gs://models/iris/", secret=secret))
    assert state.phase is ArtifactPhase.PRESENT
    assert Path(state.path, "model.joblib").read_bytes() == MODEL[::-1]
    assert Path(state.path, "sub", "notes ü.txt").read_bytes() == b"x"
    same = await fetched(store, "u2", Source("gs://models/iris", secret=secret))
    assert same.phase is ArtifactPhase.PRESENT


@pytest.mark.parametrize("uri", ["gs://models/none.joblib", "gs://models/none/", "gs://no-such-bucket/x"])
async def test_what_is_not_there(store: ModelStore, fetched: Fetched, emulator: str, uri: str) -> None:
    state = await fetched(store, "u1", Source(uri, secret={"STORAGE_EMULATOR_HOST": emulator}))
    assert state.reason is ReasonCode.MODEL_NOT_FOUND
    assert uri in state.message


async def test_objects_that_cannot_lie_in_one_folder(
    store: ModelStore, server: RangeServer, fetched: Fetched
) -> None:
    names = ("iris/a", "iris/a/b")
    server.answers["/storage/v1/b/models/o"] = lambda: {
        "items": [{"name": name, "size": "1", "generation": "1"} for name in names]
    }
    state = await fetched(
        store, "u1", Source("gs://models/iris/", secret={"STORAGE_EMULATOR_HOST": server.url("")})
    )
    assert state.reason is ReasonCode.NOT_A_MODEL
    assert "“a” is both" in state.message


class TokenServer:
    """Answers like Google's token service and storage to who brings the right statement."""

    def __init__(self, server: RangeServer) -> None:
        self.server = server
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def account(self, **changes: str) -> str:
        pem = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        facts = {
            "type": "service_account",
            "client_email": "reader@project.example",
            "private_key": pem,
            "token_uri": self.server.url("/token"),
        }
        return json.dumps(facts | changes)

    def storage(self) -> None:
        """One private object, whose metadata and media want the token."""
        meta = {"name": "iris.joblib", "size": str(len(MODEL)), "generation": "7"}
        body = json.dumps(meta).encode()
        self.server.answers["/token"] = lambda: {"access_token": "granted", "expires_in": 3600}
        # The emulator's path serves metadata and media by a query that this server does not look at,
        # so the "model" here is its own metadata.
        meta["size"] = str(len(body))
        self.server.put(
            "/storage/v1/b/private/o/iris.joblib",
            json.dumps(meta).encode().ljust(len(body)),
            token="Bearer granted",
            etag="",
        )


async def test_a_service_account_is_exchanged_for_a_token(
    store: ModelStore, fetched: Fetched, server: RangeServer
) -> None:
    google = TokenServer(server)
    google.storage()
    host = {"STORAGE_EMULATOR_HOST": server.url("")}
    anonymous = await fetched(store, "u1", Source("gs://private/iris.joblib", secret=host))
    assert anonymous.phase is ArtifactPhase.FAILED
    assert anonymous.reason in {ReasonCode.STORAGE_UNAUTHORIZED, ReasonCode.MODEL_NOT_FOUND}
    secret = host | {"GOOGLE_SERVICE_ACCOUNT": google.account()}
    state = await fetched(store, "u2", Source("gs://private/iris.joblib", secret=secret))
    assert state.phase is ArtifactPhase.PRESENT
    assert len([request for request in server.seen if request.path == "/token"]) == 1


@pytest.mark.parametrize(
    "account", ["not json", "[]", '{"client_email": "a"}', '{"client_email": "a", "private_key": "no key"}']
)
async def test_a_broken_service_account_is_unauthorized(
    store: ModelStore, fetched: Fetched, account: str
) -> None:
    secret = {"GOOGLE_APPLICATION_CREDENTIALS_JSON": account, "STORAGE_EMULATOR_HOST": "127.0.0.1:1"}
    state = await fetched(store, "u1", Source("gs://models/x", secret=secret))
    assert state.reason is ReasonCode.STORAGE_UNAUTHORIZED


async def test_a_service_account_that_google_does_not_know_is_unauthorized(
    store: ModelStore, fetched: Fetched, server: RangeServer
) -> None:
    google = TokenServer(server)
    server.put("/token", b"", status=400)
    secret = {"GOOGLE_SERVICE_ACCOUNT": google.account(), "STORAGE_EMULATOR_HOST": server.url("")}
    state = await fetched(store, "u1", Source("gs://private/iris.joblib", secret=secret))
    assert state.reason is ReasonCode.STORAGE_UNAUTHORIZED
    assert "PRIVATE KEY" not in repr(state)
