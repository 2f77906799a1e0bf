"""The translation into Envoy's language: golden files, and what must hold for every route table.

A golden case is `tests/golden/envoy/<case>.in.json` beside `<case>.out.yaml`. After a change that is
meant, run with `REGENERATE_GOLDEN=1` and review the difference.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from inferplane.gateway import envoy
from inferplane.gateway.config import GatewayConfig
from inferplane.gateway.route_table import EndpointRoutes, RouteTable, Upstream

GOLDEN = Path(__file__).parents[1] / "golden" / "envoy"
CASES = sorted(path.name.removesuffix(".in.json") for path in GOLDEN.glob("*.in.json"))
CONFIG = GatewayConfig(Path("/home/gateway"), api_address="127.0.0.1:7070")


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    given_case = json.loads((GOLDEN / f"{case}.in.json").read_text())
    config = GatewayConfig(Path("/home/gateway"), **given_case["config"])
    table = RouteTable({facts["uid"]: _routes_from(facts) for facts in given_case["endpoints"]})
    found: dict[str, Any] = {
        name: json.loads(resource.text)["resources"]
        for name, resource in envoy.Renderer(config, files="/files").resources(table).items()
        if name in given_case["shows"]
    }
    if "bootstrap.json" in given_case["shows"]:
        found["bootstrap.json"] = envoy.bootstrap_config(config, files="/files", admin_socket="/admin.sock")
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
UPSTREAMS = st.builds(Upstream, st.sampled_from(["r1-0", "r1-1", "r2-0"]), ADDRESSES, st.integers(-1, 5))
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
)
TABLES = st.lists(ROUTES, max_size=6).map(lambda found: RouteTable({routes.uid: routes for routes in found}))


def _render(table: RouteTable) -> dict[str, envoy.Resource]:
    return envoy.Renderer(CONFIG, files="/files").resources(table)


def _hosts(found: dict[str, envoy.Resource]) -> list[dict[str, Any]]:
    content = json.loads(found[envoy.ROUTES_FILE].text)["resources"]
    hosts: list[dict[str, Any]] = content[0]["virtual_hosts"]
    return hosts


def _targets(hosts: list[dict[str, Any]]) -> set[str]:
    return {route["route"]["cluster"] for host in hosts for route in host["routes"] if "route" in route}


@given(TABLES)
@settings(max_examples=150, deadline=None)
def test_names_are_used_once_and_every_upstream_exists(table: RouteTable) -> None:
    found = _render(table)
    hosts = _hosts(found)
    domains = [domain.lower() for host in hosts for domain in host["domains"]]
    assert len(domains) == len(set(domains))
    names = [upstream["name"] for upstream in json.loads(found[envoy.UPSTREAMS_FILE].text)["resources"]]
    assert len(names) == len(set(names))
    assert _targets(hosts) <= set(names)
    matches = [json.dumps(route["match"], sort_keys=True) for route in hosts[-1]["routes"]]
    assert len(matches) == len(set(matches))


@given(TABLES)
@settings(max_examples=150, deadline=None)
def test_what_is_written_can_be_read_back_and_comes_out_the_same(table: RouteTable) -> None:
    found = _render(table)
    read = {name: envoy.resource_from_text(name, resource.text) for name, resource in found.items()}
    known = {name: resource for name, resource in read.items() if resource is not None}
    assert known == found
    assert {name: resource.text for name, resource in _render(envoy.table_from_files(known)).items()} == {
        name: resource.text for name, resource in found.items()
    }


@given(TABLES)
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_table_does_not_matter(table: RouteTable) -> None:
    backwards = RouteTable(dict(reversed(list(table.endpoints.items()))))
    assert _render(backwards) == _render(table)


@given(TABLES, TABLES)
@settings(max_examples=150, deadline=None)
def test_on_the_way_from_one_table_to_another_no_route_leads_nowhere(
    before: RouteTable, after: RouteTable
) -> None:
    written, wanted = _render(before), _render(after)
    state = dict(written)
    for step in envoy.stages(written, wanted):
        # Within a step Envoy may take up the files in either order.
        for first in step:
            partly = {**state, first: step[first]}
            names = set(partly[envoy.UPSTREAMS_FILE].parts)
            assert _targets(_hosts(partly)) <= names
        state |= step
    assert state == wanted
    assert envoy.stages(state, wanted) == ()


def test_a_change_of_replicas_touches_one_file() -> None:
    one = EndpointRoutes("u", "default", "iris", (Upstream("r1-0", "unix:/a.sock"),))
    two = replace(one, upstreams=(Upstream("r2-0", "unix:/b.sock"),))
    steps = envoy.stages(_render(RouteTable({"u": one})), _render(RouteTable({"u": two})))
    assert [set(step) for step in steps] == [{envoy.UPSTREAMS_FILE}]


def test_the_same_table_gives_the_same_version() -> None:
    table = RouteTable({"u": EndpointRoutes("u", "default", "iris")})
    assert _render(table) == _render(table)


def _routes_from(facts: dict[str, Any]) -> EndpointRoutes:
    facts = {**facts, "models": tuple(facts.get("models", ()))}
    facts["upstreams"] = tuple(Upstream(**upstream) for upstream in facts.get("upstreams", ()))
    return EndpointRoutes(**facts)
