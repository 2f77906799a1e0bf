"""Addresses and commands as printed, for platforms that are not on loopback and port 7080."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from inferplane.api import views
from inferplane.api.ways import ingress_of, way_to
from inferplane.controllers.endpoint_routes import routes_of
from inferplane.domain.endpoint import (
    EndpointSpec,
    EndpointStatus,
    InferenceEndpoint,
    Ingress,
    Milestone,
    ModelInfo,
    ModelSpec,
    Replica,
    ReplicaId,
    ReplicaState,
)
from inferplane.services.context import GatewayAddress
from inferplane.services.names import NameFinding

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
    way = way_to(short, gateway)
    assert views.try_command(short, way, by_path=False)[-1] == "-d '[1]'"
    assert views.try_command(long, way, by_path=False)[-1] == "-d '{\"instances\": []}'"
    assert "placeholder" in views.endpoint_description(long, [], gateway).try_note


# --- on a cluster with an ingress of its own --------------------------------------------------------

HERE = GatewayAddress("http", 7080, "localhost", "127.0.0.1")
NAME = "iris-team-iris-abc123.models.example.com"


def behind(url: str, address: str = "", *, ready: bool = True) -> InferenceEndpoint:
    return replace(ENDPOINT, cluster="east", status=replace(SERVING, ingress=Ingress(url, address, ready)))


@pytest.mark.parametrize(
    ("url", "address", "registered", "lines", "record"),
    [
        (
            f"http://{NAME}",
            "192.0.2.10",
            "",
            (f'-H "Host: {NAME}" \\', '"http://192.0.2.10/v1/models/iris:predict" \\'),
            ("A", "192.0.2.10"),
        ),
        (
            f"http://{NAME}",
            "192.0.2.10",
            "198.51.100.7:8080",
            (f'-H "Host: {NAME}" \\', '"http://198.51.100.7:8080/v1/models/iris:predict" \\'),
            ("A", "198.51.100.7"),
        ),
        (
            f"http://{NAME}:8080",
            "2001:db8::1",
            "",
            (f'-H "Host: {NAME}" \\', '"http://[2001:db8::1]:8080/v1/models/iris:predict" \\'),
            ("AAAA", "2001:db8::1"),
        ),
        (
            f"https://{NAME}",
            "lb.example.net",
            "",
            (
                f'--connect-to "{NAME}:443:lb.example.net:443" \\',
                f'"https://{NAME}/v1/models/iris:predict" \\',
            ),
            ("CNAME", "lb.example.net"),
        ),
        (f"http://{NAME}", "", "", (f'"http://{NAME}/v1/models/iris:predict" \\',), None),
        (f"http://{NAME}", "$(reboot)", "", (f'"http://{NAME}/v1/models/iris:predict" \\',), None),
        ("", "192.0.2.10", "", (), None),
        ("http://x`reboot`", "192.0.2.10", "", (), None),
        ("ftp://x", "192.0.2.10", "", (), None),
        ("http://[::1", "192.0.2.10", "", (), None),
    ],
)
def test_the_way_through_a_cluster_s_ingress(
    url: str, address: str, registered: str, lines: tuple[str, ...], record: tuple[str, str] | None
) -> None:
    shown = views.endpoint_description(behind(url, address), [], HERE, ingress_address=registered)
    told = [each for each in shown.try_command if each.startswith(('-H "Host', "--connect-to", '"http'))]
    assert tuple(told) == lines
    assert [(each.type, each.value) for each in shown.dns_records] == ([record] if record else [])
    assert (shown.path_endpoint, shown.try_path_command) == ("", ())
    assert (shown.endpoint == "") is (lines == ())


def test_a_name_that_leads_elsewhere_is_said_and_stops_nothing() -> None:
    endpoint = behind(f"http://{NAME}", "192.0.2.10")
    assert ingress_of(endpoint) == (NAME, "192.0.2.10")
    assert ingress_of(endpoint, "[2001:db8::1]:80") == (NAME, "[2001:db8::1]")
    said = f"{NAME} does not resolve; it should lead to 192.0.2.10"
    shown = views.endpoint_description(endpoint, [], HERE, name=NameFinding(leads_there=False, message=said))
    assert (shown.status, shown.predict_status, shown.ingress_status) == ("Running", "Ready", "DnsNotReady")
    [condition] = [each for each in shown.conditions if each.type == "IngressReady"]
    assert (condition.status, condition.reason, condition.message) == ("False", "DnsNotReady", said)
    assert said in shown.try_note
    assert shown.endpoint
    for finding in (NameFinding(leads_there=True), NameFinding(None, "nobody knows")):
        assert views.endpoint_description(endpoint, [], HERE, name=finding).ingress_status == "Ready"


def test_nothing_is_promised_before_the_cluster_lets_requests_in() -> None:
    endpoint = replace(behind("", ready=False), status=EndpointStatus(ingress=Ingress()))
    shown = views.endpoint_description(endpoint, [], HERE)
    assert (shown.endpoint, shown.path_endpoint, shown.dns_records, shown.try_command) == ("", "", (), ())
    assert ingress_of(ENDPOINT) == ingress_of(endpoint) == ("", "")


def test_a_model_that_was_here_already_has_no_negative_durations() -> None:
    """Another endpoint had downloaded it before this one was asked for."""
    milestones = (
        (Milestone.DOWNLOADED, NOW - timedelta(hours=1)),
        (Milestone.STARTED, NOW + timedelta(seconds=1)),
    )
    endpoint = replace(ENDPOINT, status=EndpointStatus(milestones=milestones))
    shown = [(each.name, each.duration_ms, each.elapsed_ms) for each in views.timeline(endpoint)]
    assert shown == [("accepted", 0, 0), ("downloaded", 0, 0), ("started", 1000, 1000)]
