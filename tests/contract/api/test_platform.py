"""Health, metrics, documentation, and what the gateway could not match."""

from __future__ import annotations

import re
from typing import Any

from api_world import Client, World, checked
from inferplane.api.routes import ROUTES

UNMATCHED = "/api/v1/gateway/unmatched"


def test_alive(world: World) -> None:
    assert checked(world.http.get("/healthz")).data == {"status": "alive", "version": "1.2.3"}


def test_ready_names_what_is_not(world: World) -> None:
    assert checked(world.http.get("/readyz")).data == {
        "status": "ready",
        "parts": {"gateway": "ready", "store": "ready"},
    }
    world.unready = {
        "gateway": "Envoy has not taken its configuration yet",
        "store": "",
        "engine": "it sleeps",
    }
    reply = checked(world.http.get("/readyz"))
    error = reply.is_error(503, "UNAVAILABLE", "NotReady")
    assert "gateway: Envoy has not taken its configuration yet" in error["message"]
    assert [detail["field"] for detail in error["details"]] == ["engine", "gateway"]
    assert reply.headers["retry-after"]


def test_metrics_count_requests_and_endpoints(world: World, owner: Client, team: str) -> None:
    world.run(team, world.create(team))
    owner("GET", "/api/v1/inference-endpoint/nope-" + "x" * 20).is_error(404, "NOT_FOUND")
    response = world.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = response.text
    assert re.search(
        r'inferplane_api_requests_total\{method="POST",route="/api/v1/inference-endpoint",status="200"\} \d',
        text,
    )
    assert re.search(r'inferplane_api_requests_total\{method="GET",route="unmatched",status="404"\} \d', text)
    assert re.search(r'inferplane_endpoints\{status="Running"\} [1-9]', text)
    assert 'inferplane_endpoints{status="Queued"} 0.0' in text
    assert 'inferplane_build_info{version="1.2.3"} 1.0' in text
    assert "nope-" not in text


def test_openapi_describes_every_route(world: World) -> None:
    response = world.http.get("/openapi.json")
    assert response.headers["content-type"] == "application/json"
    document: dict[str, Any] = response.json()
    assert document["openapi"].startswith("3.1")
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(method, route.path) for route in ROUTES for method in route.methods}
    text = response.text
    for reference in set(re.findall(r'"\$ref":"#/components/schemas/([^"]+)"', text)):
        assert reference in document["components"]["schemas"]
    create = document["paths"]["/api/v1/inference-endpoint"]["post"]
    assert create["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("CreateEndpoint")
    assert create["security"] == [{"token": []}]
    assert "security" not in document["paths"]["/healthz"]["get"]
    ids = [each["operationId"] for methods in document["paths"].values() for each in methods.values()]
    assert len(ids) == len(set(ids))


def test_pages_need_no_other_host(world: World) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/docs", "text/html"),
        ("/docs.js", "text/javascript"),
        ("/style.css", "text/css"),
    ):
        response = world.http.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert not re.search(r"https?://", response.text)
        for link in re.findall(r'(?:href|src)="([^"]+)"', response.text):
            assert world.http.get(link).status_code == 200, link


def test_the_gateway_lists_what_the_caller_may_see(world: World, team: str) -> None:
    other = world.workspace()
    mine, theirs = world.create(team), world.create(other)
    world.run(team, mine)
    viewer = world.client("Viewer", team)
    headers = {
        "x-inferplane-original-host": "typo.team.localhost",
        "x-envoy-original-path": "/v1/models/m?key=s",
    }
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        error = viewer(method, UNMATCHED, headers=headers).is_error(404, "NOT_FOUND", "NoSuchRoute")
        assert "typo.team.localhost/v1/models/m" in error["message"]
        assert "key=s" not in error["message"]
        assert [detail["field"] for detail in error["details"]] == [f"/serving/{team}/{mine}"]
        assert error["details"][0]["reason"] == "Running"
        assert f"{mine}.{team}.localhost" in error["details"][0]["message"]
        assert theirs not in str(error)
    assert viewer("POST", UNMATCHED, b"\x00" * 500_000, headers=headers).status == 404


def test_the_gateway_tells_strangers_nothing(world: World, team: str) -> None:
    world.create(team)
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Basic eA=="}):
        error = checked(world.http.get(UNMATCHED, headers=headers)).is_error(404, "NOT_FOUND", "NoSuchRoute")
        assert error["details"] == []
        assert error["message"] == "no endpoint is served at this host and path"


def test_a_bug_is_500_without_its_inside(world: World, owner: Client, team: str) -> None:
    """A platform part that breaks its promise must not show its traceback to the caller."""
    world.unready = None  # type: ignore[assignment]  # readiness may return anything but this
    reply = owner("GET", "/readyz")
    error = reply.is_error(500, "INTERNAL", "Internal")
    assert error["requestId"] == reply.headers["x-request-id"]
    assert "NoneType" not in str(reply.body)
