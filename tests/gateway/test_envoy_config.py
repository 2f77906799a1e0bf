"""The translation into Envoy's language: golden files, and what must hold for every route table.

A golden case is `tests/golden/envoy/<case>.in.json` beside `<case>.out.yaml`. After a change that is
meant, run with `REGENERATE_GOLDEN=1` and review the difference.
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from inferplane.gateway import envoy
from inferplane.gateway.config import GatewayConfig
from inferplane.gateway.envoy_listener import bootstrap_config
from inferplane.gateway.envoy_words import Kind
from inferplane.gateway.route_table import Access, EndpointRoutes, Upstream
from inferplane.gateway.xds import DECLARED

GOLDEN = Path(__file__).parents[1] / "golden" / "envoy"
CASES = sorted(path.name.removesuffix(".in.json") for path in GOLDEN.glob("*.in.json"))
CONFIG = GatewayConfig(
    Path("/home/gateway"),
    api_address="127.0.0.1:7070",
    activator_address="unix:/activator.sock",
    key_set='{"keys":[]}',
    otlp_endpoint="http://collector:4318",
)
TYPES = {
    Kind.UPSTREAM: importlib.import_module("envoy.config.cluster.v3.cluster_pb2").Cluster,
    Kind.LISTENER: importlib.import_module("envoy.config.listener.v3.listener_pb2").Listener,
    Kind.ROUTES: importlib.import_module("envoy.config.route.v3.scoped_route_pb2").ScopedRouteConfiguration,
}
SHARED = {each.name for each in envoy.shared_resources(CONFIG, access_log="/access.log")}
for name in DECLARED:
    importlib.import_module(name)


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    given_case = json.loads((GOLDEN / f"{case}.in.json").read_text())
    config = GatewayConfig(Path("/home/gateway"), **given_case["config"])
    found: dict[str, Any] = {}
    if "shared" in given_case["shows"]:
        found["bootstrap"] = bootstrap_config(config, admin_socket="/admin.sock", xds_socket="/xds.sock")
        shared = envoy.shared_resources(config, access_log="/access.log")
        found["shared"] = [{each.kind.name: each.content} for each in shared]
    for facts in given_case["endpoints"]:
        pieces = envoy.pieces_of(_routes_from(facts), config)
        if "routes" in given_case["shows"]:
            found.setdefault("routes", []).append(pieces.routes.content)
        if "upstreams" in given_case["shows"]:
            found.setdefault("upstreams", []).extend(each.content for each in pieces.upstreams)
    text = yaml.safe_dump(found, sort_keys=True, width=120)
    expected = GOLDEN / f"{case}.out.yaml"
    if os.environ.get("REGENERATE_GOLDEN"):
        expected.write_text(text)
    assert text == expected.read_text()


def test_there_are_golden_cases() -> None:
    assert len(CASES) >= 4


LABELS = st.sampled_from(["a", "iris", "iris2", "a-b", "x0", "default"])
ADDRESSES = st.sampled_from(
    [
        "unix:/run/a.sock",
        "unix:/run/" + "x" * 200,
        "127.0.0.1:80",
        "[::1]:81",
        "[fe80::1%eth0]:80",
        "replica.example.com:80",
        "nonsense",
        "host:0",
        "bad host:80",
        "",
    ]
)
UPSTREAMS = st.builds(
    Upstream, st.sampled_from(["r1-0", "r1-1", "r2-0", "odd"]), ADDRESSES, st.integers(-1, 5), ADDRESSES
)
ROUTES = st.builds(
    EndpointRoutes,
    uid=st.sampled_from([f"uid{number}" for number in range(8)]),
    workspace=LABELS,
    endpoint=LABELS,
    upstreams=st.lists(UPSTREAMS, max_size=3).map(tuple),
    models=st.lists(LABELS, max_size=2).map(tuple),
    max_request_bytes=st.integers(-5, 2**40),
    timeout_seconds=st.floats(-1, 1e9),
    unavailable_reason=st.sampled_from(["", "Pending", "CrashLoop"]),
    cluster=st.sampled_from(["", "", "worker-1", "no label"]),
    shares=st.lists(st.tuples(st.integers(1, 3), st.integers(-5, 150)), max_size=3).map(tuple),
    mirror=st.none() | st.tuples(st.integers(1, 3), st.integers(-5, 150)),
    sticky_header=st.sampled_from(["", "x-user"]),
    asleep=st.booleans(),
    access=st.sampled_from(Access),
    revoked_keys=st.lists(st.sampled_from(["k1", "k2"]), max_size=2).map(tuple),
    requests_per_second=st.none() | st.floats(-1, 1e9),
    burst=st.none() | st.integers(-5, 2**40),
    requests_per_second_per_key=st.none() | st.floats(-1, 1e9),
    concurrency_max=st.none() | st.integers(-5, 2**40),
)


def _targets(pieces: envoy.Pieces) -> set[str]:
    """Every upstream that the routes lead to."""
    found: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                look(item)
        elif isinstance(value, dict):
            action = value.get("route", {})
            weighted = action.get("weighted_clusters", {}).get("clusters", [])
            mirrors = action.get("request_mirror_policies", [])
            found.update(each["name"] for each in weighted)
            found.update(each["cluster"] for each in (action, *mirrors) if "cluster" in each)
            for item in value.values():
                look(item)

    look(pieces.routes.content)
    return found


@given(ROUTES)
@settings(max_examples=150, deadline=None)
def test_every_upstream_exists_and_is_named_once(routes: EndpointRoutes) -> None:
    pieces = envoy.pieces_of(routes, CONFIG)
    names = [each.name for each in pieces.upstreams]
    assert len(names) == len(set(names))
    assert _targets(pieces) <= set(names) | SHARED
    assert all(each.startswith(f"{routes.workspace}/{routes.endpoint}/{routes.uid}/r") for each in names)


@given(ROUTES)
@settings(max_examples=100, deadline=None)
def test_envoys_own_types_take_what_is_made(routes: EndpointRoutes) -> None:
    """Names and types of fields; what Envoy thinks of the values is for the tests with a real one."""
    pieces = envoy.pieces_of(routes, CONFIG)
    for each in (pieces.routes, *pieces.upstreams):
        json_format.ParseDict(each.content, TYPES[each.kind]())


@given(st.lists(ROUTES, max_size=4))
@settings(max_examples=100, deadline=None)
def test_who_is_preferred_does_not_depend_on_the_order(candidates: list[EndpointRoutes]) -> None:
    found = envoy.preferred(candidates)
    assert (found is None) == (not candidates)
    if found is not None:
        backwards = envoy.preferred(reversed(candidates))
        assert backwards is not None
        assert backwards.uid == found.uid


def test_a_change_of_replicas_touches_one_upstream_and_no_route() -> None:
    one = EndpointRoutes("u", "default", "iris", (Upstream("r1-0", "unix:/a.sock"),))
    two = replace(one, upstreams=(Upstream("r1-0", "unix:/b.sock"), Upstream("r1-1", "unix:/c.sock")))
    before, after = envoy.pieces_of(one, CONFIG), envoy.pieces_of(two, CONFIG)
    assert before.routes == after.routes
    assert [each.name for each in before.upstreams] == [each.name for each in after.upstreams]
    assert before.upstreams[0].version != after.upstreams[0].version


def test_the_same_routes_have_the_same_versions() -> None:
    routes = EndpointRoutes("u", "default", "iris", (Upstream("r1-0", "unix:/a.sock"),))
    assert envoy.pieces_of(routes, CONFIG) == envoy.pieces_of(replace(routes), CONFIG)


@pytest.mark.parametrize(
    ("shares", "mirror", "weights"),
    [
        ((), None, {1: 2, 2: 1}),
        (((1, 90), (2, 10)), None, {1: 90, 2: 10}),
        (((1, 100), (2, 0)), None, {1: 100}),
        (((2, 30), (3, 70)), None, {2: 30}),
        (((3, 100),), None, {1: 2, 2: 1}),
        ((), (2, 50), {1: 2}),
        (((1, 100),), (2, 50), {1: 100}),
    ],
)
def test_shares(shares: Any, mirror: Any, weights: dict[int, int]) -> None:
    members = ("r1-0", "r1-1", "r2-0")
    routes = EndpointRoutes(
        "u",
        "default",
        "iris",
        tuple(Upstream(name, f"unix:/{name}.sock") for name in members),
        shares=shares,
        mirror=mirror,
    )
    (host,) = envoy.pieces_of(routes, CONFIG).routes.content["route_configuration"]["virtual_hosts"]
    action = host["routes"][-1]["route"]
    clusters = action.get("weighted_clusters", {}).get("clusters") or [
        {"name": action["cluster"], "weight": 0}
    ]
    found = {int(each["name"].rpartition("/r")[2]): each["weight"] for each in clusters}
    assert found == (weights if len(weights) > 1 else dict.fromkeys(weights, 0))
    assert [each["cluster"][-2:] for each in action.get("request_mirror_policies", ())] == (
        ["r2"] if mirror else []
    )


def _routes_from(facts: dict[str, Any]) -> EndpointRoutes:
    upstreams = tuple(Upstream(**upstream) for upstream in facts.get("upstreams", ()))
    return msgspec.convert({**facts, "upstreams": upstreams}, EndpointRoutes)
