"""Configuration: who wins, where a value came from, and what is said about one that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inferplane.domain.cluster import ClusterConnection, Drift
from inferplane.domain.errors import Invalid
from inferplane.settings import (
    EMBEDDED_CLUSTER,
    PLAIN_SETTINGS,
    ClusterSettings,
    EngineKind,
    LoadedSettings,
    NodeSettings,
    Settings,
    is_loopback,
    load_client_settings,
    load_settings,
)

HOME = Path("/home/somebody")


def load(flags: dict[str, Any] | None = None, environment: dict[str, str] | None = None) -> LoadedSettings:
    return load_settings(flags or {}, environment or {}, user_home=HOME)


def source_of(loaded: LoadedSettings, name: str) -> str:
    return next(each.source for each in loaded.sources if each.name == name)


def test_defaults_need_nothing() -> None:
    loaded = load()
    assert loaded.settings == Settings(home=HOME / ".inferplane")
    assert {each.source for each in loaded.sources} == {"default"}
    assert [each.name for each in loaded.sources] == [field.name for field in PLAIN_SETTINGS]
    assert loaded.settings.owner_key_path == HOME / ".inferplane" / "owner.key"
    assert loaded.settings.effective_database_url == f"sqlite:///{HOME}/.inferplane/inferplane.db"


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "inferplane.toml"
    file.write_text('api_port = 1\ngateway_port = 1\ndomain = "file.test"\nhome = "/from/file"\n')
    loaded = load(
        {"config": str(file), "api_port": 3, "gateway_port": None},
        {"INFERPLANE_API_PORT": "2", "INFERPLANE_GATEWAY_PORT": "2", "INFERPLANE_LOG_LEVEL": ""},
    )
    settings = loaded.settings
    assert (settings.api_port, settings.gateway_port, settings.domain) == (3, 2, "file.test")
    assert settings.home == Path("/from/file")
    assert source_of(loaded, "api_port") == "flag --api-port"
    assert source_of(loaded, "gateway_port") == "environment INFERPLANE_GATEWAY_PORT"
    assert source_of(loaded, "domain") == f"file {file}"
    assert source_of(loaded, "log_level") == "default"


def test_the_environment_can_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("fork_servers = false\nmodel_cache_bytes_max = 5")
    settings = load(environment={"INFERPLANE_CONFIG": str(file)}).settings
    assert (settings.fork_servers, settings.model_cache_bytes_max) == (False, 5)


def test_a_given_database_is_used() -> None:
    url = "postgresql://me@host/db"
    assert load(environment={"INFERPLANE_DATABASE_URL": url}).settings.effective_database_url == url


def test_an_empty_home_is_refused_rather_than_taken_for_this_folder() -> None:
    with pytest.raises(Invalid, match="must name a folder"):
        load({"home": ""})


def test_zero_is_a_port_that_the_system_chooses() -> None:
    assert load({"api_port": 0}).settings.api_port == 0


@pytest.mark.parametrize(
    ("word", "value"), [("true", True), ("1", True), ("YES", True), ("false", False), ("no", False)]
)
def test_words_for_yes_and_no(word: str, value: bool) -> None:
    assert load(environment={"INFERPLANE_FORK_SERVERS": word}).settings.fork_servers is value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("api_port", "eighty"),
        ("api_port", "65536"),
        ("api_port", "-1"),
        ("gateway_port", "7080.5"),
        ("log_level", "loud"),
        ("database_url", "mysql://host/db"),
        ("model_cache_bytes_max", "0"),
        ("fork_servers", "maybe"),
        ("domain", "bad domain"),
        ("domain", "a..b"),
        ("domain", "*"),
        ("otlp_endpoint", "localhost:4318"),
        ("otlp_endpoint", "https://collector:4318"),
        ("otlp_endpoint", "http://me:secret@collector:4318"),
        ("otlp_endpoint", "http://collector:99999"),
        ("trace_sample_percent", "-1"),
        ("trace_sample_percent", "100.5"),
        ("trace_sample_percent", "nan"),
        ("trace_sample_percent", "some"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_name_and_source(name: str, value: str) -> None:
    variable = f"INFERPLANE_{name.upper()}"
    with pytest.raises(Invalid) as caught:
        load(environment={variable: value})
    assert caught.value.field == name
    assert variable in caught.value.message
    # A URL may hold a password, so it is never repeated.
    assert (value in caught.value.message) is (name not in {"database_url", "otlp_endpoint"})


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:4318", "http://[::1]:4318/otlp", "http://collector"])
def test_where_traces_go(endpoint: str) -> None:
    settings = load(
        environment={"INFERPLANE_OTLP_ENDPOINT": endpoint, "INFERPLANE_TRACE_SAMPLE_PERCENT": "0.5"}
    ).settings
    assert (settings.otlp_endpoint, settings.trace_sample_percent) == (endpoint, 0.5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"api_port = ", "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
        (b"api_prot = 7070\n", "unknown settings: api_prot"),
        (b"api_port = [1]\n", "api_port from file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_bytes(content)
    with pytest.raises(Invalid, match=said) as caught:
        load({"config": str(file)})
    assert str(file) in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot read the configuration file"):
        load({"config": str(tmp_path / "nope.toml")})


# --- clusters -----------------------------------------------------------------------------------------

CLUSTERS = """
[[cluster]]
name = "worker-1"
engine = "simulated"
[[cluster.node]]
name = "gpu"
count = 4
instance_type = "a2-ultragpu-1g"
gpu_shape = "NVIDIA-A100"
gpus = 1
memory_gb = 80
[[cluster.node]]
name = "big"
instance_type = "a3"
gpu_shape = "NVIDIA-H100"
gpus = 8
memory_gb = 80
region = "here"
[[cluster]]
name = "worker-2"
engine = "local"
"""


def load_text(text: str, tmp_path: Path) -> LoadedSettings:
    file = tmp_path / "inferplane.toml"
    file.write_text(text)
    return load({"config": str(file)})


def test_clusters_and_their_nodes_come_from_the_file(tmp_path: Path) -> None:
    loaded = load_text(CLUSTERS, tmp_path)
    first, second = loaded.settings.clusters
    assert first == ClusterSettings(
        "worker-1",
        EngineKind.SIMULATED,
        (
            NodeSettings("gpu", "a2-ultragpu-1g", "NVIDIA-A100", 1, 80, count=4),
            NodeSettings("big", "a3", "NVIDIA-H100", 8, 80, region="here"),
        ),
    )
    assert second == ClusterSettings("worker-2", EngineKind.LOCAL)
    assert [each.source for each in loaded.sources if each.name == "cluster"] == [
        f"file {tmp_path / 'inferplane.toml'}"
    ] * 2


def test_declared_nodes_are_marked_and_numbered(tmp_path: Path) -> None:
    nodes = load_text(CLUSTERS, tmp_path).settings.clusters[0].nodes()
    assert [each.name for each in nodes] == ["gpu-0", "gpu-1", "gpu-2", "gpu-3", "big"]
    assert all(each.simulated and each.cluster == "worker-1" for each in nodes)
    assert nodes[-1].indexes == tuple(range(8))


def test_the_embedded_cluster_is_always_there_once(tmp_path: Path) -> None:
    assert load().settings.every_cluster == (EMBEDDED_CLUSTER,)
    assert [each.name for each in load_text(CLUSTERS, tmp_path).settings.every_cluster] == [
        "local",
        "worker-1",
        "worker-2",
    ]
    node = CLUSTERS[CLUSTERS.index("[[cluster.node]]") : CLUSTERS.rindex("[[cluster.node]]")]
    declared = load_text(f'[[cluster]]\nname = "local"\n{node}', tmp_path).settings
    assert [each.name for each in declared.every_cluster] == ["local"]
    assert declared.every_cluster[0].engine is EngineKind.LOCAL
    assert len(declared.every_cluster[0].nodes()) == 4


@pytest.mark.parametrize(
    ("before", "after", "field", "said"),
    [
        ("gpus = 1", "gpus = 0", "cluster[0].node[0].gpus", "a whole number from 1 to 100; it is 0"),
        ("gpus = 8", "gpus = 101", "cluster[0].node[1].gpus", "from 1 to 100"),
        ("count = 4", "count = true", "cluster[0].node[0].count", "a whole number"),
        ("count = 4", "count = 10000", "cluster", "more than 10000 nodes"),
        ("memory_gb = 80", 'memory_gb = "80"', "cluster[0].node[0].memory_gb", "a whole number"),
        ("memory_gb = 80", "memory = 80", "cluster[0].node[0].memory", "is not known"),
        ('gpu_shape = "NVIDIA-H100"', "", "cluster[0].node[1].gpu_shape", "must be a text"),
        ('instance_type = "a3"', 'instance_type = " "', "cluster[0].node[1].instance_type", "must be a text"),
        ('region = "here"', "region = 1", "cluster[0].node[1].region", "must be a text"),
        ('name = "big"', 'name = "Big"', "cluster[0].node[1].name", "cannot be a name"),
        ('name = "big"', 'name = "gpu-3"', "cluster[0].node", "two nodes named gpu-3"),
        ('name = "gpu"', f'name = "{"g" * 62}"', "cluster[0].node[0].name", "64 characters"),
        ('name = "worker-2"', 'name = "worker-1"', "cluster[1].name", "two clusters named worker-1"),
        ('name = "worker-2"', "", "cluster[1].name", "is needed"),
        ('engine = "local"', 'engine = "kserve"', "cluster[1].kubeconfig", "needs either a kubeconfig"),
        ('engine = "local"', 'engine = "local"\ndomain = "x.y"', "cluster[1].domain", "only for clusters"),
        ('engine = "local"', 'engine = "slurm"', "cluster[1].engine", "must be one of"),
        ('engine = "local"', "", "cluster[1].engine", "must be one of"),
        ('engine = "local"', "engine = []", "cluster[1].engine", "must be one of"),
        ('name = "worker-1"', 'name = "local"', "cluster[0].engine", "is this machine"),
        ("[[cluster.node]]", "[cluster.node]", "cluster[0].node", "headed [[cluster.node]]"),
    ],
)
def test_a_cluster_that_cannot_be_meant_is_refused_with_its_path(
    before: str, after: str, field: str, said: str, tmp_path: Path
) -> None:
    assert before in CLUSTERS
    text = CLUSTERS.replace(before, after, 1)
    if before == "[[cluster.node]]":
        text = CLUSTERS[: CLUSTERS.rindex("[[cluster.node]]")].replace(before, after)
    with pytest.raises(Invalid) as caught:
        load_text(text, tmp_path)
    assert (caught.value.field, said in caught.value.message) == (field, True), caught.value.message


def test_a_kubernetes_cluster_says_how_it_is_reached(tmp_path: Path) -> None:
    inside, outside = load_text(
        """
        [[cluster]]
        name = "inside"
        engine = "kserve"
        in_cluster = true
        [[cluster]]
        name = "outside"
        engine = "kserve"
        kubeconfig = "~/east.yaml"
        context = "admin@east"
        domain = "models.example.com"
        ingress = "192.0.2.10:8080"
        drift = "leave"
        """,
        tmp_path,
    ).settings.clusters
    assert inside.connection == ClusterConnection(in_cluster=True, declared=True)
    assert outside.connection == ClusterConnection(
        str(Path.home() / "east.yaml"), "admin@east", drift=Drift.LEAVE, declared=True
    )
    assert (outside.domain, outside.ingress) == ("models.example.com", "192.0.2.10:8080")


@pytest.mark.parametrize(
    ("line", "field", "said"),
    [
        ("in_cluster = true", "cluster[0].kubeconfig", "needs either"),
        ('in_cluster = "yes"', "cluster[0].in_cluster", "true or false"),
        ('drift = "ignore"', "cluster[0].drift", "restore, leave"),
        ('domain = "not a name"', "cluster[0].domain", "DNS name"),
        ('ingress = "http://192.0.2.10"', "cluster[0].ingress", "address or name"),
        ('ingress = "192.0.2.10:99999"', "cluster[0].ingress", "address or name"),
        ("context = 1", "cluster[0].context", "must be a text"),
        (
            '[[cluster.node]]\nname="n"\ninstance_type="i"\ngpu_shape="s"\ngpus=1\nmemory_gb=1',
            "cluster[0].node",
            "are seen, not declared",
        ),
    ],
)
def test_a_kubernetes_cluster_that_cannot_be_meant(line: str, field: str, said: str, tmp_path: Path) -> None:
    text = f'[[cluster]]\nname = "east"\nengine = "kserve"\nkubeconfig = "/k"\n{line}\n'
    with pytest.raises(Invalid) as caught:
        load_text(text, tmp_path)
    assert (caught.value.field, said in caught.value.message) == (field, True), caught.value.message


def test_a_cluster_that_is_no_table_is_refused(tmp_path: Path) -> None:
    for text in ("cluster = 1", "cluster = [1]", '[cluster]\nname = "x"'):
        with pytest.raises(Invalid, match=r"headed \[\[cluster\]\]"):
            load_text(text, tmp_path)


# --- what a client finds ------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "owner.key").write_text("ipk_owner\n")
    return tmp_path


def at_8081(_: Settings) -> str:
    return "http://127.0.0.1:8081"


def test_a_client_finds_the_platform_of_this_machine_and_its_owner_key(home: Path) -> None:
    found = load_client_settings({"INFERPLANE_HOME": str(home)}, user_home=HOME, running_at=at_8081)
    assert (found.api_url, found.api_key, found.workspace) == (
        "http://127.0.0.1:8081",
        "ipk_owner",
        "default",
    )


def test_the_environment_names_another_platform(home: Path) -> None:
    environment = {
        "INFERPLANE_HOME": str(home),
        "INFERPLANE_API_URL": "https://inferplane.example/",
        "INFERPLANE_API_KEY": " ipk_other\n",
        "INFERPLANE_WORKSPACE": "team",
    }
    found = load_client_settings(environment, user_home=HOME)
    assert (found.api_url, found.api_key, found.workspace) == (
        "https://inferplane.example",
        "ipk_other",
        "team",
    )


@pytest.mark.parametrize(
    "url",
    [
        *("https://inferplane.example", "http://192.168.1.5:7070", "http://localhost.example"),
        *("http://127.0.0.1:7070", "http://localhost:8081", "https://127.0.0.1:8081"),
    ],
)
def test_the_owner_key_of_this_machine_is_only_for_the_platform_of_its_home(home: Path, url: str) -> None:
    environment = {"INFERPLANE_HOME": str(home)}
    found = load_client_settings(environment, user_home=HOME, api_url=url, running_at=at_8081)
    assert (found.api_key, found.why_unreachable) == ("", "")
    assert f"home folder {home}; its address is http://127.0.0.1:8081" in found.why_no_key
    same = load_client_settings(
        environment, user_home=HOME, api_url="http://127.0.0.1:8081/", running_at=at_8081
    )
    assert (same.api_key, same.why_no_key) == ("ipk_owner", "")


def test_where_no_platform_runs_no_key_is_offered_to_anybody(home: Path) -> None:
    environment = {"INFERPLANE_HOME": str(home)}
    found = load_client_settings(environment, user_home=HOME)
    nobody = f"no platform runs with the home folder {home}"
    assert (found.api_url, found.api_key, found.why_unreachable) == ("http://127.0.0.1:7070", "", nobody)
    found = load_client_settings(environment, user_home=HOME, api_url="http://127.0.0.1:7070")
    assert (found.api_key, found.why_unreachable) == ("", "")
    assert nobody in found.why_no_key
    found = load_client_settings(environment, user_home=HOME, api_url="http://elsewhere")
    assert found.why_no_key == "no API key was given"


def test_what_is_given_beats_the_environment(home: Path) -> None:
    environment = {"INFERPLANE_HOME": str(home), "INFERPLANE_API_URL": "http://a", "INFERPLANE_API_KEY": "b"}
    found = load_client_settings(environment, user_home=HOME, api_url="http://c", api_key="d")
    assert (found.api_url, found.api_key) == ("http://c", "d")
    assert load_client_settings(environment, user_home=HOME, api_key="").api_key == ""


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({"INFERPLANE_API_PORT": "8081"}, "http://127.0.0.1:8081"),
        ({"INFERPLANE_API_PORT": "0"}, "http://127.0.0.1:7070"),
        ({"INFERPLANE_API_HOST": "0.0.0.0"}, "http://127.0.0.1:7070"),
        ({"INFERPLANE_API_HOST": "::1"}, "http://[::1]:7070"),
        ({"INFERPLANE_API_HOST": "192.168.1.5"}, "http://192.168.1.5:7070"),
    ],
)
def test_the_address_follows_the_settings_of_up(environment: dict[str, str], url: str) -> None:
    assert load_client_settings(environment, user_home=HOME).api_url == url


def test_a_missing_key_is_explained(tmp_path: Path) -> None:
    def why() -> str:
        environment = {"INFERPLANE_HOME": str(tmp_path)}
        return load_client_settings(environment, user_home=HOME, running_at=at_8081).why_no_key

    assert why() == f"no API key was given, and there is no Owner key at {tmp_path}/owner.key"
    (tmp_path / "owner.key").mkdir()
    assert "cannot be read" in why()
    (tmp_path / "owner.key").rmdir()
    (tmp_path / "owner.key").write_text("\n")
    assert "is empty" in why()


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.0.0.1:7070", True),
        ("http://127.9.9.9", True),
        ("http://localhost:1", True),
        ("http://[::1]:7070", True),
        ("http://example.com", False),
        ("http://127.0.0.1.evil.example", False),
        ("http://localhost@evil.example", False),
    ],
)
def test_what_is_this_machine(url: str, here: bool) -> None:
    assert is_loopback(url) is here


@pytest.mark.parametrize("host", ["héy", "http://models.example", "models.example:80", "-x", "a b"])
def test_an_advertised_host_that_no_url_takes_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="advertised_host"):
        load_settings({"advertised_host": host}, {}, user_home=tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "models.example", "xn--hy-bja.example"])
def test_addresses_and_names_can_be_advertised(host: str, tmp_path: Path) -> None:
    assert load_settings({"advertised_host": host}, {}, user_home=tmp_path).settings.advertised_host == host
