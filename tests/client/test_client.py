"""Both clients, held to the same outcomes: each test runs once blocking and once awaiting."""

from __future__ import annotations

import asyncio
import inspect
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
import uvicorn

from fake_platform import KEY, FakePlatform, Told, running, stream, waiting
from inferplane import AsyncClient, Client, NotFoundError, ProtocolError, UnreachableError
from inferplane.client import ClientError, ConfigurationError, Deployment
from inferplane.wire import paths
from inferplane.wire.endpoints import LogLineItem
from platform_stack import wait_for

URL = "http://api.test"


class Caller(Protocol):
    """A client of either kind, called as if it were blocking."""

    platform: FakePlatform

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any: ...

    def collect(self, method: str, *args: Any, **kwargs: Any) -> list[Any]: ...


class Blocking:
    def __init__(self, platform: FakePlatform) -> None:
        self.platform = platform
        self._client = Client(URL, KEY, transport=platform.transport())

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._client, method)(*args, **kwargs)

    def collect(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        return list(getattr(self._client, method)(*args, **kwargs))

    def close(self) -> None:
        self._client.close()


class Awaiting:
    def __init__(self, platform: FakePlatform) -> None:
        self.platform = platform
        self._runner = asyncio.Runner()
        self._client = AsyncClient(URL, KEY, transport=platform.transport())

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._runner.run(getattr(self._client, method)(*args, **kwargs))

    def collect(self, method: str, *args: Any, **kwargs: Any) -> list[Any]:
        async def collect() -> list[Any]:
            return [item async for item in getattr(self._client, method)(*args, **kwargs)]

        return self._runner.run(collect())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=[Blocking, Awaiting])
def caller(request: pytest.FixtureRequest) -> Iterator[Blocking | Awaiting]:
    made: Blocking | Awaiting = request.param(FakePlatform())
    yield made
    made.close()


def test_from_deploy_to_prediction_to_nothing(caller: Caller) -> None:
    caller.platform.after_create = [waiting("iris", "Loading", "Loading"), running("iris")]
    made = caller.call("deploy", "iris", format="sklearn", uri="/m.joblib", workspace="default")
    assert made == Deployment("iris", "default")
    seen: list[str] = []
    found = caller.call("wait_until_running", "iris", progress=lambda each: seen.append(each.status))
    assert (found.status, seen) == ("Running", ["Loading", "Running"])
    assert caller.call("predict", "iris", instances=[[1.0], [2.0]]) == {"predictions": [0, 0]}
    assert [item.endpoint_name for item in caller.call("list")] == ["iris"]
    assert caller.call("explain", "iris").meaning == "What it means."
    assert caller.call("delete", "iris") == "iris"
    assert caller.call("wait_until_deleted", "iris") is None
    assert caller.platform.tokens == 1


def test_a_refusal_is_an_exception_with_everything_in_it(caller: Caller) -> None:
    caller.call("deploy", "iris", format="sklearn", uri="/m")
    with pytest.raises(ClientError) as caught:
        caller.call("deploy", "iris", format="sklearn", uri="/m")
    error = caught.value
    assert (error.status, error.reason, error.field) == (409, "EndpointExists", "endpointName")
    assert (error.next_action, error.request_id) == ("Choose another name.", "req-1")


async def test_a_client_that_was_closed_says_so() -> None:
    platform = FakePlatform()
    blocking = Client(URL, KEY, transport=platform.transport())
    blocking.list_clusters()
    blocking.close()
    with pytest.raises(ConfigurationError, match="this client was closed") as caught:
        blocking.list_clusters()
    assert caught.value.reason == "ClientClosed"
    with pytest.raises(ConfigurationError, match="this client was closed"):
        list(blocking.watch())
    async with AsyncClient(URL, KEY, transport=platform.transport()) as awaiting:
        pass
    with pytest.raises(ConfigurationError, match="this client was closed"):
        await awaiting.list_clusters()


def test_an_expired_token_is_not_noticed_by_the_caller(caller: Caller) -> None:
    caller.call("list_clusters")
    caller.platform.valid_tokens.clear()
    assert [each.name for each in caller.call("list_clusters")] == ["local"]
    assert caller.platform.tokens == 2


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (httpx.ConnectError("[Errno 111] Connection refused"), "Connection refused"),
        (httpx.ConnectTimeout("timed out"), "no connection within 5 s"),
    ],
)
def test_a_platform_that_is_not_there(caller: Caller, failure: Exception, said: str) -> None:
    caller.platform.script = [failure] * 4
    with pytest.raises(UnreachableError, match=said):
        caller.call("list_clusters")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (httpx.ReadTimeout("timed out"), "no answer in time"),
        (httpx.RemoteProtocolError("peer closed"), "the connection ended in the middle of the answer"),
        (httpx.ReadError(""), "ReadError"),
        (httpx.PoolTimeout(""), "all connections are busy"),
    ],
)
def test_a_prediction_that_broke_is_not_repeated_blindly(
    caller: Caller, failure: Exception, said: str
) -> None:
    caller.platform.endpoints["iris"] = [running("iris")]
    caller.call("predict", "iris", instances=[[1]])
    before = len(caller.platform.asked)
    caller.platform.script = [failure] * (4 if isinstance(failure, httpx.PoolTimeout) else 1)
    unsent = isinstance(failure, httpx.PoolTimeout)
    if unsent:  # tried as often as is reasonable, then the address is looked up anew
        assert caller.call("predict", "iris", instances=[[1]]) == {"predictions": [0]}
    else:
        with pytest.raises(UnreachableError, match=said) as caught:
            caller.call("predict", "iris", instances=[[1]])
        assert caught.value.reason == "ConnectionLost"
    sent = [each.path for each in caller.platform.asked[before:]]
    assert sent.count("/serving/default/iris/v1/models/iris:predict") == (5 if unsent else 1)


def test_logs_are_followed_to_their_end(caller: Caller) -> None:
    caller.platform.endpoints["iris"] = [running("iris")]
    caller.platform.lines = [LogLineItem("r1-0", "one"), LogLineItem("r1-1", "two")]
    assert caller.collect("follow_logs", "iris", tail=10) == caller.platform.lines
    assert caller.platform.asked[-1].query == {
        "follow": "true",
        "workspace": "default",
        "endpoint": "iris",
        "tail": "10",
    }
    assert list(caller.call("logs", "iris")) == caller.platform.lines


def test_a_stream_that_is_refused_says_why(caller: Caller) -> None:
    with pytest.raises(NotFoundError, match="endpoint nope does not exist"):
        caller.collect("follow_logs", "nope")


def test_a_stream_that_breaks_says_so(caller: Caller) -> None:
    caller.call("list_clusters")
    caller.platform.script = [stream(b": hello\n\n", httpx.ReadError("[Errno 104] Connection reset by peer"))]
    with pytest.raises(UnreachableError, match="Connection reset by peer"):
        caller.collect("watch")


def test_a_watch_begins_with_what_is_there(caller: Caller) -> None:
    caller.platform.endpoints = {"a": [running("a")], "b": [waiting("b", "Failed", "ModelNotFound")]}
    seen = [(kind, item.endpoint_name, item.status) for kind, item in caller.collect("watch")]
    assert seen == [("ADDED", "a", "Running"), ("ADDED", "b", "Failed")]


def test_a_stream_that_is_left_is_closed() -> None:
    platform = FakePlatform(endpoints={"a": [running("a")], "b": [running("b")]})
    with Client(URL, KEY, transport=platform.transport()) as client:
        first = client.watch()
        assert next(first)[1].endpoint_name == "a"
        first.close()  # type: ignore[attr-defined]
        assert [item.endpoint_name for _, item in client.watch()] == ["a", "b"]


def test_keys_and_workspaces(caller: Caller) -> None:
    assert (
        caller.call("create_api_key", "ci", role="Viewer", validity="30d", workspace="default") == "ipk_new"
    )
    assert caller.call("list_api_keys", workspace="default") == ()
    caller.call("delete_api_key", "ipk_new")
    assert caller.call("create_workspace", "team", username="u", email="u@x") == "team"
    assert [each.name for each in caller.call("list_workspaces")] == ["default", "team"]
    caller.call("update_workspace", "team", namespaces=["x"])
    caller.call("delete_workspace", "team", force=True)
    assert caller.platform.asked[-1].body == {"workspaceName": "team", "force": True}


def test_stop_start_and_events(caller: Caller) -> None:
    caller.platform.endpoints["iris"] = [running("iris")]
    assert caller.call("stop", "iris") == "iris"
    assert caller.call("wait_until_stopped", "iris").status == "Stopped"
    assert caller.call("start", "iris") == "iris"
    assert caller.call("wait_until_running", "iris", 30).status == "Running"
    assert caller.call("events", "iris", limit=5) == ()
    assert caller.call("readiness").parts == {"store": "ready"}
    assert caller.call("describe", "iris").model.storage_uri == "/m.joblib"


def test_what_is_no_platform_is_told_apart(caller: Caller) -> None:
    caller.platform.script = [Told(200, b"<html>It works!</html>")]
    with pytest.raises(ProtocolError, match="not an Inferplane API"):
        caller.call("list_clusters")


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def public(kind: type) -> dict[str, str]:
        return {
            name: str(inspect.signature(value).replace(return_annotation=inspect.Signature.empty))
            for name, value in inspect.getmembers(kind, callable)
            if not name.startswith("_")
        }

    assert public(Client) == public(AsyncClient)
    assert "wait_until_running" in public(Client)


def test_help_shows_what_the_caller_sees() -> None:
    assert str(inspect.signature(Client.describe)) == (
        "(self, name: 'str', *, workspace: 'str' = 'default', cluster: 'str' = '') -> 'EndpointDescription'"
    )
    assert str(inspect.signature(Client.watch)).endswith("-> 'Iterator[tuple[str, EndpointItem]]'")
    undocumented = [
        name for name, value in inspect.getmembers(Client, callable) if name[0] != "_" and not value.__doc__
    ]
    assert undocumented == []


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("address", ["ftp://x", "nonsense", "http://", "http://x:99999", "http://[::1"])
def test_an_address_that_is_none_is_refused_before_anything_is_sent(
    kind: Callable[..., Any], address: str
) -> None:
    with pytest.raises(ConfigurationError, match="not the address of a platform"):
        kind(address, KEY)


def test_threads_share_a_client(tmp_path: Path) -> None:
    platform = FakePlatform(endpoints={"iris": [running("iris")]})
    answers: list[Any] = []
    with Client(URL, KEY, transport=platform.transport()) as client:
        threads = [
            threading.Thread(target=lambda: answers.append(client.predict("iris", instances=[[1]])))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [{"predictions": [0]}] * 8


async def test_tasks_share_a_client() -> None:
    platform = FakePlatform(endpoints={"iris": [running("iris")]})
    async with AsyncClient(URL, KEY, transport=platform.transport()) as client:
        calls: list[Coroutine[Any, Any, Any]] = [client.predict("iris", instances=[[1]]) for _ in range(8)]
        assert await asyncio.gather(*calls) == [{"predictions": [0]}] * 8
        lines: AsyncIterator[LogLineItem] = client.follow_logs("iris")
        assert [line async for line in lines] == []


def test_base_url_is_what_was_given() -> None:
    assert Client("http://api.test:7070/", KEY).base_url == "http://api.test:7070"
    assert paths.ENDPOINT.startswith("/api/v1")


# --- TLS ----------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An HTTPS server with a certificate of its own making, and that certificate."""
    certificate = _self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    config = uvicorn.Config(FakePlatform(), port=0, log_level="critical", lifespan="off", ws="none")
    config.load()
    config.ssl = context
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_for(lambda: server.started, "the server to listen")
    yield f"https://localhost:{server.servers[0].sockets[0].getsockname()[1]}", certificate
    server.should_exit = True
    thread.join(timeout=10)


def _self_signed(folder: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    start = datetime(2020, 1, 1, tzinfo=UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=36500))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "localhost.pem"
    file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_certificate_that_nobody_vouches_for_is_refused(
    kind: type[Client | AsyncClient], trusted: bool, tls: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, certificate = tls
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))

    async def ask() -> Any:
        if kind is Client:
            with Client(url, KEY) as client:
                return client.list_clusters()
        async with AsyncClient(url, KEY) as client:
            return await client.list_clusters()

    if trusted:
        assert [each.name for each in asyncio.run(ask())] == ["local"]
    else:
        with pytest.raises(UnreachableError, match="certificate verify failed"):
            asyncio.run(ask())
