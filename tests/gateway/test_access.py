"""Who may send requests, and how many: endpoint keys, rates and concurrency, enforced by a real Envoy."""

from __future__ import annotations

import asyncio
import json
import stat
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest

from gateway_world import Replica, Request, World, client, eventually, publish, response, routes
from inferplane.domain.errors import Unavailable
from inferplane.gateway.endpoint_keys import (
    ALL_ENDPOINTS,
    AUDIENCE,
    ISSUER,
    KeyClaims,
    key_set,
    mint,
    new_signing_key,
    signing_key,
    whole_workspace,
)
from inferplane.gateway.route_table import Access
from inferplane.gateway.usage_log import count

URL = "/serving/default/iris/v2"
# Envoy knows the real time.
NOW = datetime.fromtimestamp(Path("/proc/self").stat().st_ctime, UTC)
SIGNING = new_signing_key()


def key(
    key_id: str = "k1", *endpoints: str, signed_by: str = SIGNING, days: float | None = 1
) -> dict[str, str]:
    """The header of a key for these endpoints, `uid-iris` if none are named."""
    until = None if days is None else NOW + timedelta(days=days)
    issued = NOW - timedelta(days=10)
    value = mint(KeyClaims(key_id, endpoints or ("uid-iris",), issued, until), signed_by)
    return {"authorization": f"Bearer {value}"}


async def test_only_a_valid_key_for_this_endpoint_lets_in(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway(key_set=key_set(SIGNING))
    await publish(
        gateway,
        routes(replica.upstream, access=Access.KEY, revoked_keys=("gone",)),
        routes(replica.upstream, endpoint="open"),
    )
    unsigned = jwt.encode(
        {"iss": ISSUER, "aud": AUDIENCE, "sub": "k", "endpoints": ["*"]}, "", algorithm="none"
    )
    async with client(gateway) as http:
        for good in (
            key(),
            key("k2", "uid-other", "uid-iris"),
            key("k3", whole_workspace("default")),
            key("k4", ALL_ENDPOINTS),
            key("k5", days=None),
        ):
            assert (await http.post(URL, content=b"{}", headers=good)).status_code == 200
        for bad in (
            {},
            {"authorization": "Bearer nonsense"},
            {"authorization": "Basic eDp5"},
            {"authorization": f"Bearer {unsigned}"},
            key(signed_by=new_signing_key()),
            key(days=-1),
        ):
            answer = await http.post(URL, content=b"{}", headers=bad)
            assert (answer.status_code, answer.json()) == (
                401,
                {
                    "error": "endpoint iris in workspace default wants an endpoint key that is valid: "
                    "send it as 'Authorization: Bearer <key>'",
                    "reason": "KeyRequired",
                    "nextAction": "An Editor makes one with 'inferplane endpoint-key create'.",
                },
            )
        for refused in (key("gone"), key("k", "uid-other"), key("k", whole_workspace("team"))):
            answer = await http.post(URL, content=b"{}", headers=refused)
            assert (answer.status_code, answer.json()) == (
                403,
                {
                    "error": "this key is not, or no longer, for endpoint iris in workspace default",
                    "reason": "KeyRefused",
                },
            )
        assert len(replica.requests) == 5
        assert not [r for r in replica.requests if "authorization" in r.headers], "a key goes no further"
        assert (await http.get("/serving/default/open/v2")).status_code == 200

        # A key is refused as soon as it is revoked.
        await publish(gateway, routes(replica.upstream, access=Access.KEY, revoked_keys=("gone", "k1")))

        async with asyncio.timeout(20):
            while (await http.get(URL, headers=key())).status_code != 403:
                pass
        assert (await http.get(URL, headers=key("k2", "uid-iris"))).status_code == 200
    configured = (world.folder / "gateway" / "bootstrap.json").read_text()
    assert "PRIVATE" not in configured


async def test_without_a_key_set_access_by_key_lets_nobody_in(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream, access=Access.KEY))
    async with client(gateway) as http:
        assert (await http.get(URL, headers=key())).status_code == 403
        assert (await http.get(URL)).status_code == 403


async def test_a_rate_of_the_endpoint_is_kept_and_said(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream, requests_per_second=0.01, burst=3))
    async with client(gateway) as http:
        answers = [await http.post(URL, content=b"{}") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert answers[-1].json() == {
        "error": "endpoint iris in workspace default takes no more requests for the moment; "
        "its limit a second is 0.01 for the endpoint",
        "reason": "RateLimited",
    }


async def test_each_key_has_a_rate_of_its_own(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway(key_set=key_set(SIGNING))
    await publish(
        gateway,
        routes(replica.upstream, access=Access.KEY, requests_per_second_per_key=0.01, burst=2),
    )
    async with client(gateway) as http:
        for key_id in ("a", "b", "c"):
            statuses = [(await http.get(URL, headers=key(key_id))).status_code for _ in range(4)]
            assert statuses == [200, 200, 429, 429], key_id


async def test_a_key_with_a_rate_of_its_own_has_that_one(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway(key_set=key_set(SIGNING))
    own: dict[str, Any] = {"access": Access.KEY, "key_rates": (("slow", 0.01),), "burst": 1}
    await publish(gateway, routes(replica.upstream, **own))
    async with client(gateway) as http:
        statuses = [(await http.get(URL, headers=key("slow"))).status_code for _ in range(2)]
        assert statuses == [200, 429]
        assert "its own for a key that has one" in (await http.get(URL, headers=key("slow"))).json()["error"]
        assert [(await http.get(URL, headers=key("free"))).status_code for _ in range(4)] == [200] * 4
    # Beside a rate for every key, its own counts.
    both = {**own, "requests_per_second_per_key": 0.01, "burst": 3, "key_rates": (("quick", 1000.0),)}
    await publish(gateway, routes(replica.upstream, **both))

    async def usual() -> list[int]:
        return [(await http.get(URL, headers=key("usual"))).status_code for _ in range(5)]

    async with client(gateway) as http:
        async with asyncio.timeout(20):
            while 429 not in await usual():
                pass
        quick = [(await http.get(URL, headers=key("quick"))).status_code for _ in range(3)]
        assert quick == [200, 200, 200]


async def test_a_key_ends_when_it_says(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway(key_set=key_set(SIGNING))
    await publish(gateway, routes(replica.upstream, access=Access.KEY))
    async with client(gateway) as http, asyncio.timeout(20):
        now = parsedate_to_datetime((await http.get(URL)).headers["date"])
        value = mint(KeyClaims("short", ("uid-iris",), now, now + timedelta(seconds=3)), SIGNING)
        headers = {"authorization": f"Bearer {value}"}
        assert (await http.get(URL, headers=headers)).status_code == 200
        while (await http.get(URL, headers=headers)).status_code != 401:
            pass


async def test_more_than_the_endpoints_concurrency_is_429(world: World) -> None:
    release = asyncio.Event()

    async def slow(request: Request) -> AsyncIterator[bytes]:
        await release.wait()
        yield response(200, b"{}")

    replica = await world.replica("r1-0", slow)
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream, concurrency_max=2))
    async with client(gateway) as http:
        taken = [asyncio.create_task(http.post(URL, content=b"{}")) for _ in range(2)]
        await eventually(lambda: len(replica.requests) == 2, "two requests to be in flight")
        answer = await http.post(URL, content=b"{}")
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.json() == {
            "error": "endpoint iris in workspace default has 2 requests in flight, its limit",
            "reason": "Overloaded",
        }
        release.set()
        assert Counter([(await each).status_code for each in taken]) == {200: 2}
        assert (await http.post(URL, content=b"{}")).status_code == 200


async def test_each_key_has_so_many_in_flight_and_those_unknown_together(world: World) -> None:
    replica = await world.replica()
    release = asyncio.Event()

    async def answer(_: Request) -> AsyncIterator[bytes]:
        await release.wait()
        yield response(200, b"{}")

    replica.answer = answer
    gateway = await world.gateway(key_set=key_set(SIGNING))
    limited = routes(
        replica.upstream, access=Access.KEY, concurrency_max_per_key=2, keys=("a", "b"), burst=None
    )
    await publish(gateway, limited)
    async with client(gateway) as http:
        held: list[asyncio.Task[Any]] = []

        def send(key_id: str) -> None:
            held.append(asyncio.create_task(http.post(URL, content=b"{}", headers=key(key_id))))

        for number, key_id in enumerate(("a", "b", "a", "b", "new", "newer"), start=1):
            send(key_id)
            await eventually(partial(_arrived, replica, number), "it to be in flight")
        for key_id in ("a", "b", "newest"):
            refused = await http.post(URL, content=b"{}", headers=key(key_id))
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1"), key_id
            assert refused.json() == {
                "error": "endpoint iris in workspace default has 2 requests of this key in flight, its limit",
                "reason": "Overloaded",
            }
        assert (await http.post(URL, content=b"{}")).status_code == 401
        release.set()
        assert {(await each).status_code for each in held} == {200}
        again = [(await http.post(URL, content=b"{}", headers=key(each))).status_code for each in ("a", "x")]
        assert again == [200, 200]


async def test_keys_are_counted_together_where_there_is_no_room_to_count_them_apart(world: World) -> None:
    release = asyncio.Event()

    async def answer(_: Request) -> AsyncIterator[bytes]:
        await release.wait()
        yield response(200, b"{}")

    apart, together = await world.replica("r1-0", answer), await world.replica("r1-1", answer)
    gateway = await world.gateway(key_set=key_set(SIGNING), key_upstreams_max=6)
    each: dict[str, Any] = {"access": Access.KEY, "concurrency_max_per_key": 1, "keys": ("a", "b")}
    await publish(gateway, routes(apart.upstream, endpoint="first", **each))
    await publish(gateway, routes(together.upstream, **each))
    async with client(gateway) as http:

        def send(endpoint: str, key_id: str) -> asyncio.Task[Any]:
            url = f"/serving/default/{endpoint}/v2"
            return asyncio.create_task(http.post(url, content=b"{}", headers=key(key_id, f"uid-{endpoint}")))

        held = [send("first", "a"), send("first", "b"), send("iris", "a")]
        await eventually(lambda: _arrived(apart, 2) and _arrived(together, 1), "them to be in flight")
        assert (await send("iris", "b")).status_code == 429
        release.set()
        assert {(await one).status_code for one in held} == {200}


def _arrived(replica: Replica, number: int) -> bool:
    return len(replica.requests) == number


async def test_the_log_names_the_key_and_never_shows_it(world: World) -> None:
    replica = await world.replica()
    gateway = await world.gateway(key_set=key_set(SIGNING))
    await publish(gateway, routes(replica.upstream, access=Access.KEY))
    headers = {**key("k9"), "x-request-id": "mine", "traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
    async with client(gateway) as http:
        answer = await http.post(f"{URL}?secret=1", content=b"{}", headers=headers)
        assert answer.headers["x-request-id"] == "mine"
    await eventually(lambda: gateway.access_log.read_text().endswith("\n"), "the log to be written")
    text = gateway.access_log.read_text()
    (line,) = map(json.loads, text.splitlines())
    assert (line["requestId"], line["keyId"], line["status"]) == ("mine", "k9", 200)
    assert (line["endpoint"], line["uid"]) == ("iris.default", "uid-iris")
    assert (line["revision"], line["replica"], line["path"]) == ("1", "r1-0", "/v2")
    assert line["trace"] == headers["traceparent"] == replica.requests[0].headers["traceparent"]
    assert headers["authorization"].removeprefix("Bearer ") not in text
    assert "secret" not in text


async def test_what_a_stream_took_is_in_the_log_and_nothing_for_the_caller(world: World) -> None:
    async def streamed(_: Request) -> AsyncIterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        yield b"6\r\ndata: \r\n"
        yield b"0\r\nx-inferplane-tokens: 42\r\n\r\n"

    replica = await world.replica()
    replica.answer = streamed
    gateway = await world.gateway()
    await publish(gateway, routes(replica.upstream))
    async with client(gateway) as http:
        for _ in range(2):  # the connection to the replica is good for another one
            answer = await http.post(URL, content=b"{}")
            assert (answer.text, answer.headers.get("x-inferplane-tokens")) == ("data: ", None)
    await eventually(lambda: gateway.access_log.read_text().count("\n") == 2, "the log to be written")
    lines = [json.loads(text) for text in gateway.access_log.read_text().splitlines()]
    assert [(line["streamTokens"], "tokens" in line) for line in lines] == [("42", False)] * 2
    (used,) = count(gateway.access_log.read_bytes().splitlines())
    assert (used.used.requests, used.used.tokens) == (2, 84)


def test_the_signing_key_is_made_once_and_is_private(tmp_path: Path) -> None:
    first = signing_key(tmp_path)
    assert signing_key(tmp_path) == first
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    public = json.loads(key_set(first))["keys"][0]
    assert (public["kty"], public["crv"], public["alg"]) == ("EC", "P-256", "ES256")
    assert "d" not in public, "only the public half"
    file.write_text("nonsense")
    with pytest.raises(Unavailable, match="cannot be used"):
        signing_key(tmp_path)


def test_a_key_says_who_where_and_until_when() -> None:
    value = key("k1", "uid-iris")["authorization"].removeprefix("Bearer ")
    public = jwt.PyJWKSet.from_json(key_set(SIGNING)).keys[0]
    claims = jwt.decode(value, public, algorithms=["ES256"], audience=AUDIENCE)
    assert (claims["sub"], claims["endpoints"], claims["iss"]) == ("k1", ["uid-iris"], ISSUER)
    assert claims["exp"] > claims["iat"]
