"""Addresses and commands as printed, for platforms that are not on loopback and port 7080."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from inferplane.api import views
from inferplane.controllers.endpoint_routes import routes_of
from inferplane.domain.endpoint import (
    EndpointSpec,
    EndpointStatus,
    InferenceEndpoint,
    Milestone,
    ModelInfo,
    ModelSpec,
    Replica,
    ReplicaId,
    ReplicaState,
)
from inferplane.services.context import GatewayAddress

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ENDPOINT = InferenceEndpoint(
    uid="0123456789ab",
    workspace="team",
    cluster="local",
    name="iris",
    namespace="team-iris-abc123",
    spec=EndpointSpec(ModelSpec("sklearn", "/m.joblib")),
    generation=1,
    created_at=NOW,
    created_by="owner",
)
SERVING = EndpointStatus(
    observed_generation=1,
    replicas=(Replica(ReplicaId(ENDPOINT.uid, 1, 0), ReplicaState.READY, "unix:/run/a.sock"),),
    routed=("r1-0",),
)


def with_example(example: str) -> InferenceEndpoint:
    return replace(ENDPOINT, status=EndpointStatus(model=ModelInfo(example=example)))


@pytest.mark.parametrize(
    ("gateway", "url", "record"),
    [
        (GatewayAddress("http", 80, "example.com", "192.168.1.130"), "http://192.168.1.130", "A"),
        (GatewayAddress("https", 443, "example.com", "192.168.1.130"), "https://192.168.1.130", "A"),
        (GatewayAddress("http", 443, "example.com", "10.0.0.1"), "http://10.0.0.1:443", "A"),
        (GatewayAddress("http", 7080, "example.com", "::1"), "http://[::1]:7080", "AAAA"),
        (GatewayAddress("http", 7080, "example.com", "gateway.lan"), "http://gateway.lan:7080", "CNAME"),
    ],
)
def test_addresses(gateway: GatewayAddress, url: str, record: str) -> None:
    shown = views.endpoint_description(ENDPOINT, [], gateway)
    assert shown.try_command[1] == '-H "Host: iris.team.example.com" \\'
    assert shown.try_command[3] == f'"{url}/v1/models/iris:predict" \\'
    assert shown.path_endpoint == f"{url}/serving/team/iris/v1/models/iris:predict"
    assert [(each.dns, each.type, each.value) for each in shown.dns_records] == [
        ("iris.team.example.com", record, gateway.advertised_host)
    ]


def test_an_address_with_its_cluster_in_it_is_shown_as_such_everywhere() -> None:
    gateway = GatewayAddress("http", 7080, "example.com", "127.0.0.1")
    there = replace(
        ENDPOINT, cluster="worker-1", spec=replace(ENDPOINT.spec, qualified_host=True), status=SERVING
    )
    shown = views.endpoint_description(there, [], gateway)
    host = "iris.team.worker-1.example.com"
    path = "http://127.0.0.1:7080/serving/team/iris.worker-1/v1/models/iris:predict"
    assert shown.endpoint == f"http://{host}:7080/v1/models/iris:predict"
    assert shown.try_command[1] == f'-H "Host: {host}" \\'
    assert [each.dns for each in shown.dns_records] == [host]
    assert shown.path_endpoint == path
    assert shown.try_path_command[2] == f'"{path}" \\'
    assert routes_of(there).host("example.com") == host, "and the gateway serves it there"
    assert path.endswith(f"{routes_of(there).path_prefix}/v1/models/iris:predict")


def test_an_example_too_long_for_a_command_line_is_left_out() -> None:
    gateway = GatewayAddress("http", 80, "localhost", "127.0.0.1")
    short, long = with_example("[1]"), with_example("[" + "1," * 40_000 + "1]")
    assert views.try_command(short, gateway, by_path=False)[-1] == "-d '[1]'"
    assert views.try_command(long, gateway, by_path=False)[-1] == "-d '{\"instances\": []}'"
    assert "placeholder" in views.endpoint_description(long, [], gateway).try_note


def test_a_model_that_was_here_already_has_no_negative_durations() -> None:
    """Another endpoint had downloaded it before this one was asked for."""
    milestones = (
        (Milestone.DOWNLOADED, NOW - timedelta(hours=1)),
        (Milestone.STARTED, NOW + timedelta(seconds=1)),
    )
    endpoint = replace(ENDPOINT, status=EndpointStatus(milestones=milestones))
    shown = [(each.name, each.duration_ms, each.elapsed_ms) for each in views.timeline(endpoint)]
    assert shown == [("accepted", 0, 0), ("downloaded", 0, 0), ("started", 1000, 1000)]
