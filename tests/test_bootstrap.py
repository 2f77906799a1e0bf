"""What the composition root says of itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from inferplane.bootstrap import (
    HOLDER_FILE,
    RunningPlatform,
    connect_to_cluster,
    holder_name,
    register_clusters,
)
from inferplane.domain.cluster import ClusterConnection, Drift
from inferplane.domain.errors import Invalid
from inferplane.domain.workspace import Cluster
from inferplane.settings import ClusterSettings, EngineKind, Settings, load_settings
from inferplane.store.dialect import Claim
from inferplane.store.sql import Store


@pytest.mark.parametrize(
    ("api_host", "advertised", "api", "gateway"),
    [
        ("127.0.0.1", "127.0.0.1", "http://127.0.0.1:7070", "http://127.0.0.1:7080"),
        ("127.0.0.1", "192.168.1.7", "http://127.0.0.1:7070", "http://192.168.1.7:7080"),
        ("0.0.0.0", "192.168.1.7", "http://192.168.1.7:7070", "http://192.168.1.7:7080"),
        ("::", "2001:db8::7", "http://[2001:db8::7]:7070", "http://[2001:db8::7]:7080"),
        ("::1", "2001:db8::7", "http://[::1]:7070", "http://[2001:db8::7]:7080"),
    ],
)
async def test_the_line_of_readiness_names_addresses_that_can_be_opened(
    store: Store, tmp_path: Path, api_host: str, advertised: str, api: str, gateway: str
) -> None:
    settings: Settings = replace(
        load_settings({}, {}, user_home=tmp_path).settings, api_host=api_host, advertised_host=advertised
    )
    running = RunningPlatform(settings, 7070, 7080, store, {}, Claim())
    assert running.ready_line == f"inferplane is ready: api {api} gateway {gateway} home {settings.home}"


# --- clusters of Kubernetes ---------------------------------------------------------------------------

T0 = datetime(2026, 1, 1, tzinfo=UTC)
EAST = ClusterSettings(
    "east", EngineKind.KSERVE, domain="example.com", ingress="192.0.2.10", kubeconfig="/k", drift=Drift.LEAVE
)


async def test_what_the_file_declares_is_registered_as_it_says_and_stays_without_connection(
    store: Store,
) -> None:
    async def known() -> dict[str, Cluster]:
        async with store.read() as tx:
            return {each.name: each for each in await tx.list_clusters()}

    mine = Cluster("mine", "kserve", T0, connection=ClusterConnection())
    async with store.transaction() as tx:
        await tx.put_cluster(mine)
        await tx.put_cluster_kubeconfig("mine", "k")
    declared = Cluster(
        "east", "kserve", T0, "example.com", "192.0.2.10",
        ClusterConnection("/k", drift=Drift.LEAVE, declared=True),
    )  # fmt: skip
    for _ in range(2):
        await register_clusters(store, (EAST, ClusterSettings("west", EngineKind.SIMULATED)), lambda: T0)
        assert await known() == {"east": declared, "mine": mine, "west": Cluster("west", "simulated", T0)}
    await register_clusters(store, (), lambda: T0)
    found = await known()
    assert found["east"] == replace(declared, connection=None)
    assert found["mine"] == mine, "what a person registered is theirs"
    await register_clusters(store, (replace(EAST, name="mine"),), lambda: T0)
    assert (await known())["mine"].connection == declared.connection
    async with store.read() as tx:
        assert await tx.cluster_kubeconfig("mine") == ""


def test_a_cluster_whose_kubeconfig_cannot_be_read_is_not_connected(tmp_path: Path) -> None:
    connection = ClusterConnection(str(tmp_path / "gone"))
    with pytest.raises(Invalid, match="cannot be read on the platform's machine"):
        connect_to_cluster(
            Cluster("east", "kserve", T0, connection=connection), "", clock=lambda: T0, environment={}
        )


@pytest.mark.parametrize("left", ["", "\n"])
def test_an_empty_name_of_the_holder_is_made_anew_and_then_stays(tmp_path: Path, left: str) -> None:
    (tmp_path / HOLDER_FILE).write_text(left, encoding="ascii")
    name = holder_name(tmp_path)
    assert name
    assert holder_name(tmp_path) == name
