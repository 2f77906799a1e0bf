"""Whatever JSON is sent to whichever route: an envelope, and never a 500."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api_world import World, checked
from inferplane.api.routes import ROUTES
from inferplane.domain.errors import Invalid, Malformed
from inferplane.wire import paths
from inferplane.wire.decode import read
from inferplane.wire.endpoints import CreateEndpoint

BODY_ROUTES = [(method, route) for route in ROUTES if route.body is not None for method in route.methods]
WORDS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["default", "local", "sklearn", "None", "/m.joblib", "s3://b/k", "Owner", "Editor", "30d", "2020-01-01",
         "spec: {predictor: {sklearn: {storageUri: /m}}}", "a: &a [*a]", "%YAML", "x" * 300, "\x00", "ü", "0"]
    ),
)  # fmt: skip
NUMBERS = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.just(10**400))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=12,
)


def names_of(shape: type[msgspec.Struct]) -> list[str]:
    """Field names of a body and of the structs in it, so that the fuzz gets past the front door."""
    names = []
    for field in msgspec.structs.fields(shape):
        names.append(field.encode_name)
        for inner in (field.type, *getattr(field.type, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                names += names_of(inner)
    return names


def bodies(shape: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    keys = st.sampled_from(names_of(shape))
    near = st.dictionaries(
        keys, st.one_of(JSON, st.dictionaries(keys, JSON, max_size=6)), min_size=1, max_size=12
    )
    return st.one_of(near, near, JSON)


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(("method", "route"), BODY_ROUTES, ids=[f"{m} {r.path}" for m, r in BODY_ROUTES])
def test_any_json_gets_an_envelope(running_world: World, method: str, route: Any) -> None:
    world = running_world
    token = world.owner.token()

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(body=bodies(route.body), dry=st.booleans())
    def fuzz(body: Any, dry: bool) -> None:
        path = f"{route.path}?dryRun=true" if dry and route.path == paths.ENDPOINT else route.path
        response = world.http.request(
            method, path, content=encode(body), headers={"Authorization": f"Bearer {token}"}
        )
        assert checked(response).status != 500, (body, response.text)

    fuzz()


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(body=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with suppress(Invalid, Malformed):
        read(body, CreateEndpoint)


def test_any_query_gets_an_envelope(running_world: World) -> None:
    world = running_world
    token = world.owner.token()
    routes = [route for route in ROUTES if "GET" in route.methods and route.query]

    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        route=st.sampled_from(routes),
        query=st.dictionaries(
            st.sampled_from(
                ["workspace", "endpoint", "cluster", "limit", "continue", "after", "status", "tail", "x"]
            ),
            WORDS,
            max_size=5,
        ),
    )
    def fuzz(route: Any, query: dict[str, str]) -> None:
        if route.path == paths.ENDPOINT_WATCH:
            query = {**query, "status": "none"}  # or it would stream
        response = world.http.get(route.path, params=query, headers={"Authorization": f"Bearer {token}"})
        assert checked(response).status != 500, (route.path, query, response.text)

    fuzz()
