"""All configuration, read once into a frozen object, with where each value came from.

Precedence, strongest first: command-line flag, environment (`INFERPLANE_…`), configuration file
(TOML, `--config` or `INFERPLANE_CONFIG`), default. Nothing else in the platform reads the
environment for its own configuration.

Clusters are tables and therefore come from the file only. Nodes that are declared there have no
hardware behind them, on whichever cluster: they are for trying and teaching.

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

    [[cluster]]
    name = "worker-2"
    engine = "kserve"
    kubeconfig = "/etc/inferplane/worker-2.yaml"  # or: in_cluster = true
    context = "admin"                             # else the file's current one
    domain = "models.example.com"                 # what names end in, else as KServe is set
    ingress = "192.0.2.10"                        # where requests go, else as the cluster says
    drift = "restore"                             # or "leave" what others changed
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inferplane.domain.cluster import ClusterConnection, Drift, check_ingress
from inferplane.domain.endpoint_access import Access
from inferplane.domain.errors import Invalid
from inferplane.domain.gpu_request import GPUS_PER_NODE_MAX, MEMORY_GB_MAX
from inferplane.domain.inventory import Node
from inferplane.domain.names import check_name
from inferplane.domain.traces import parse_collector

ENVIRONMENT_PREFIX = "INFERPLANE_"
DEFAULT_API_PORT = 7070
LOCAL_CLUSTER = "local"
CLUSTERS_MAX = 100
NODES_MAX = 10_000  # declared ones, of all clusters together
DECLARED_TEXT_CHARACTERS_MAX = 100


class EngineKind(StrEnum):
    """What runs the model servers of a cluster. The value is what the file says."""

    LOCAL = "local"  # processes of this machine
    SIMULATED = "simulated"  # nothing: for trying and teaching
    KSERVE = "kserve"  # InferenceServices of a Kubernetes cluster


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """`count` declared nodes that are alike: `name` itself for one, else `name-0`, `name-1`, …

    `gpus` are per node, `memory_gb` per GPU.
    """

    name: str
    instance_type: str
    gpu_shape: str
    gpus: int
    memory_gb: int
    count: int = 1
    cloud_provider: str = ""
    region: str = ""

    def names(self) -> tuple[str, ...]:
        """What the nodes are called."""
        if self.count == 1:
            return (self.name,)
        return tuple(f"{self.name}-{number}" for number in range(self.count))

    def __str__(self) -> str:
        return f"{self.count} x {self.instance_type} ({self.gpus} x {self.gpu_shape}, {self.memory_gb} GB)"


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """One cluster of the file. All below `node` is for Kubernetes; a path is absolute once it is read."""

    name: str
    engine: EngineKind
    node: tuple[NodeSettings, ...] = ()
    domain: str = ""
    ingress: str = ""
    kubeconfig: str = ""
    context: str = ""
    in_cluster: bool = False
    drift: Drift = Drift.RESTORE

    @property
    def connection(self) -> ClusterConnection | None:
        """How it is reached, if it is Kubernetes."""
        if self.engine is not EngineKind.KSERVE:
            return None
        return ClusterConnection(self.kubeconfig, self.context, self.in_cluster, self.drift, declared=True)

    def nodes(self) -> tuple[Node, ...]:
        """The declared nodes, each marked as simulated."""
        return tuple(
            Node(
                cluster=self.name,
                name=name,
                instance_type=each.instance_type,
                gpu_shape=each.gpu_shape,
                gpu_count=each.gpus,
                memory_gb=each.memory_gb,
                simulated=True,
                gpu_model_name=each.gpu_shape,
                cloud_provider=each.cloud_provider,
                region=each.region,
            )
            for each in self.node
            for name in each.names()
        )

    def __str__(self) -> str:
        declared = ", ".join(str(each) for each in self.node)
        if self.connection is not None:
            declared = self.connection.source
        return f"{self.name} ({self.engine}{': ' if declared else ''}{declared})"


EMBEDDED_CLUSTER = ClusterSettings(LOCAL_CLUSTER, EngineKind.LOCAL)
"""This machine: a cluster that always exists."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What is in force. Ports are TCP; 0 lets the system choose (tests do).

    `api_host` and `gateway_host` default to loopback: a stranger's laptop opens nothing to the
    network unless asked. `advertised_host` is the address put into URLs and DNS records. `clusters` are
    those of the file; `every_cluster` has the embedded one too. `custom_servers` is auto, yes or no.
    `default_access` is auto, open or key. Traces go to the collector at `otlp_endpoint` ("" for none);
    `trace_sample_percent` of the requests whose callers did not decide are traced. Without `local` nothing
    runs on this machine but the API and the controllers, neither model servers nor a gateway; several such
    platforms may share a PostgreSQL. `owner_key_file` holds the Owner key that whoever installs has chosen;
    "" where the platform makes one.
    """

    home: Path
    api_port: int = DEFAULT_API_PORT
    gateway_port: int = 7080
    domain: str = "localhost"
    database_url: str = ""
    api_host: str = "127.0.0.1"
    gateway_host: str = "127.0.0.1"
    advertised_host: str = "127.0.0.1"
    log_level: str = "info"
    model_cache_bytes_max: int = 20 * 1024**3
    fork_servers: bool = True
    custom_servers: str = "auto"
    default_access: str = "auto"
    otlp_endpoint: str = ""
    trace_sample_percent: float = 100.0
    local: bool = True
    owner_key_file: str = ""
    clusters: tuple[ClusterSettings, ...] = ()

    @property
    def allows_custom_servers(self) -> bool:
        """Whether manifests may bring commands to run on this machine; by default where only it can ask."""
        return self.custom_servers == "yes" or (
            self.custom_servers == "auto" and is_loopback(f"http://{_bracketed(self.api_host)}")
        )

    @property
    def endpoint_access(self) -> Access:
        """Who may send requests to an endpoint where nobody says: by default whoever can, if that is only
        this machine, else whoever has a key."""
        if self.default_access == "auto":
            alone = is_loopback(f"http://{_bracketed(self.gateway_host)}")
            return Access.OPEN if alone else Access.KEY
        return Access(self.default_access)

    @property
    def every_cluster(self) -> tuple[ClusterSettings, ...]:
        """The embedded cluster first unless the file declares it, then those of the file in its order."""
        declared = any(each.name == LOCAL_CLUSTER for each in self.clusters)
        return self.clusters if declared or not self.local else (EMBEDDED_CLUSTER, *self.clusters)

    @property
    def effective_database_url(self) -> str:
        """The given URL, or SQLite under the home folder."""
        return self.database_url or f"sqlite:///{self.home / 'inferplane.db'}"

    @property
    def owner_key_path(self) -> Path:
        """Where the first start leaves the Owner key (mode 0600)."""
        return self.home / "owner.key"

    @property
    def lock_path(self) -> Path:
        """What is locked for as long as a platform runs with this home."""
        return self.home / "up.lock"

    @property
    def api_url_path(self) -> Path:
        """Where a platform that runs says at which address its API is (mode 0600)."""
        return self.home / "api.url"


CLUSTER_TABLE = "cluster"
SECRET_SETTINGS = frozenset(
    {"database_url", "otlp_endpoint"}
)  # may hold a password: never repeated in an error
DOMAIN_CHARACTERS_MAX = 120  # leaves room in a DNS name for endpoint and workspace
_DOMAIN = re.compile(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_ADVERTISED_NAME = re.compile(r"(?!-)[A-Za-z0-9_.-]{1,253}", re.ASCII)
PLAIN_SETTINGS: tuple[Field[Any], ...] = tuple(each for each in fields(Settings) if each.name != "clusters")
"""Every setting that is one value: a flag, a variable of the environment, a line of the file."""


@dataclass(frozen=True, slots=True)
class Sourced:
    """One setting's value in force and its origin (`flag --api-port`, `environment …`, a file, `default`).

    Each declared cluster is one of these, a ClusterSettings by the name `cluster`.
    """

    name: str
    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings together with their origins, for `inferplane config`."""

    settings: Settings
    sources: tuple[Sourced, ...]


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """Where a client finds the platform. `api_key` is "" when none was found; `why_no_key` says why.

    `why_unreachable` is a sentence when this machine's platform is meant and none runs, else "".
    `endpoint_key` opens endpoints that want one, "" where none is set.
    """

    api_url: str
    api_key: str
    workspace: str = "default"
    why_no_key: str = ""
    why_unreachable: str = ""
    endpoint_key: str = ""


def load_client_settings(
    environment: Mapping[str, str],
    *,
    user_home: Path,
    api_url: str | None = None,
    api_key: str | None = None,
    running_at: Callable[[Settings], str] = lambda _: "",
) -> ClientSettings:
    """What was given, else the environment, else the platform of this machine.

    Address: `INFERPLANE_API_URL`, else where the platform of this home runs, else where it would. Key:
    `INFERPLANE_API_KEY`, else the Owner key under the home folder. That one is only ever offered to the
    platform that runs with this home: whoever else listens on this machine, on the usual port even, could
    be anybody. `running_at` tells where it runs, "" for nowhere. Workspace: `INFERPLANE_WORKSPACE`, else
    `default`. Raises Invalid for an address that is none, and whatever `load_settings` raises.
    """
    local = load_settings({}, environment, user_home=user_home).settings
    named = api_url or environment.get(ENVIRONMENT_PREFIX + "API_URL") or ""
    key = api_key if api_key is not None else environment.get(ENVIRONMENT_PREFIX + "API_KEY", "").strip()
    wants_local_key = api_key is None and not key
    running = running_at(local) if wants_local_key or not named else ""
    url = (named or running or _local_url(local)).rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise Invalid(
            f"{url!r} is not the address of a platform",
            reason="InvalidAddress",
            field="api_url",
            next_action="Give one like http://127.0.0.1:7070.",
        )
    why = "" if key else "no API key was given"
    if wants_local_key and running:
        key, why = _owner_key(local.owner_key_path) if url == running else ("", _not_offered(local, running))
    elif wants_local_key and is_loopback(url):
        why = f"no API key was given, and {_nobody_at(local)}, whose Owner key could be used"
    workspace = environment.get(ENVIRONMENT_PREFIX + "WORKSPACE") or "default"
    absent = "" if named or running else _nobody_at(local)
    endpoint_key = environment.get(ENVIRONMENT_PREFIX + "ENDPOINT_KEY", "").strip()
    return ClientSettings(url, key, workspace, why, absent, endpoint_key)


def _nobody_at(local: Settings) -> str:
    return f"no platform runs with the home folder {local.home}"


def _not_offered(local: Settings, running: str) -> str:
    return (
        "no API key was given, and this machine's Owner key is only for the platform that runs with the home"
        f" folder {local.home}; its address is {running}"
    )


def is_loopback(url: str) -> bool:
    """Whether `url` points at this very machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name; where it leads is not for us to say
        return False


def _local_url(local: Settings) -> str:
    host = "127.0.0.1" if local.api_host in {"", "0.0.0.0", "::", "localhost"} else local.api_host  # noqa: S104 - a comparison
    return f"http://{f'[{host}]' if ':' in host else host}:{local.api_port or DEFAULT_API_PORT}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _owner_key(path: Path) -> tuple[str, str]:
    """The Owner key that the first start left at `path`, or "" and why not."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return "", f"no API key was given, and there is no Owner key at {path}"
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        return "", f"no API key was given, and the Owner key at {path} cannot be read: {why}"
    return key, "" if key else f"the Owner key at {path} is empty"


def load_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], *, user_home: Path
) -> LoadedSettings:
    """Merge flags, environment and file over the defaults.

    `flags` maps setting names to values, None meaning not given; the key `config` names a file.
    Raises Invalid with the setting, its source and what is wrong.
    """
    config_path = flags.get("config") or environment.get(ENVIRONMENT_PREFIX + "CONFIG")
    from_file = _read_file(Path(config_path)) if config_path else {}
    values: dict[str, Any] = {}
    sources: list[Sourced] = []
    for field in PLAIN_SETTINGS:
        raw, source = _pick(field.name, flags, environment, from_file, config_path)
        if source == "default":
            value = user_home / ".inferplane" if field.name == "home" else field.default
        else:
            value = _parse(field.name, raw, source)
        values[field.name] = value
        sources.append(Sourced(field.name, value, source))
    if CLUSTER_TABLE in from_file:
        values["clusters"] = _parse_clusters(from_file[CLUSTER_TABLE])
        sources += [Sourced(CLUSTER_TABLE, each, f"file {config_path}") for each in values["clusters"]]
    if not values["local"]:
        _check_without_local(values)
    return LoadedSettings(Settings(**values), tuple(sources))


def _check_without_local(values: Mapping[str, Any]) -> None:
    """Raises Invalid for what contradicts `local = false`."""
    for each in values.get("clusters", ()):
        if each.engine is EngineKind.LOCAL:
            raise Invalid(
                f"cluster {each.name} is on this machine, and local is false: nothing is to run here",
                field="local",
                next_action=f"Leave out the cluster {each.name}, or do not say --no-local.",
            )


def _pick(
    name: str,
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    from_file: Mapping[str, Any],
    path: Any,
) -> tuple[Any, str]:
    if flags.get(name) is not None:
        return flags[name], f"flag --{name.replace('_', '-')}"
    variable = ENVIRONMENT_PREFIX + name.upper()
    if environment.get(variable):
        return environment[variable], f"environment {variable}"
    if name in from_file:
        return from_file[name], f"file {path}"
    return None, "default"


def _read_file(path: Path) -> Mapping[str, Any]:
    try:
        content = tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise Invalid(
            f"cannot read the configuration file {path}: {error.strerror}", field="config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} is not valid TOML: {error}", field="config") from error
    known = {field.name for field in PLAIN_SETTINGS} | {CLUSTER_TABLE}
    unknown = sorted(set(content) - known)
    if unknown:
        raise Invalid(
            f"{path} has unknown settings: {', '.join(unknown)}",
            field=unknown[0],
            next_action=f"known settings are: {', '.join(sorted(known))}",
        )
    return content


def _parse_clusters(raw: Any) -> tuple[ClusterSettings, ...]:
    """Raises Invalid with the field's path within the file, such as `cluster[0].node[1].gpus`."""
    clusters = []
    for path, table in _tables(raw, CLUSTER_TABLE, CLUSTERS_MAX):
        _check_known(table, {field.name for field in fields(ClusterSettings)}, path)
        name = check_name(table.get("name", ""), f"{path}.name")
        nodes = tuple(
            _parse_node(node_path, node)
            for node_path, node in _tables(table.get("node", []), f"{path}.node", NODES_MAX)
        )
        engine = _parse_engine(table, name, path)
        clusters.append(ClusterSettings(name, engine, nodes, **_parse_connection(table, engine, path)))
        _check_unique([each.name for each in clusters], "cluster", f"{path}.name")
        _check_unique([each.name for each in clusters[-1].nodes()], "node", f"{path}.node")
    if sum(each.count for cluster in clusters for each in cluster.node) > NODES_MAX:
        raise Invalid(f"more than {NODES_MAX} nodes are declared", field=CLUSTER_TABLE)
    return tuple(clusters)


def _parse_engine(table: Mapping[str, Any], name: str, path: str) -> EngineKind:
    field = f"{path}.engine"
    word = table.get("engine", EngineKind.LOCAL.value if name == LOCAL_CLUSTER else "")
    if word not in tuple(EngineKind):
        raise Invalid(f"{field} must be one of {', '.join(EngineKind)}; it is {word!r}", field=field)
    if name == LOCAL_CLUSTER and word != EngineKind.LOCAL:
        raise Invalid(
            f"{field} must be local: the cluster {LOCAL_CLUSTER} is this machine",
            field=field,
            next_action="Give the cluster another name.",
        )
    return EngineKind(word)


_KUBERNETES_SETTINGS = ("domain", "ingress", "kubeconfig", "context", "in_cluster", "drift")


def _parse_connection(table: Mapping[str, Any], engine: EngineKind, path: str) -> dict[str, Any]:
    """What only a cluster of Kubernetes has."""
    if engine is not EngineKind.KSERVE:
        if given := [each for each in _KUBERNETES_SETTINGS if each in table]:
            raise Invalid(
                f'{path}.{given[0]} is only for clusters with engine = "kserve"', field=f"{path}.{given[0]}"
            )
        return {}
    if table.get("node"):
        raise Invalid(
            f"{path}.node: the nodes of a Kubernetes cluster are seen, not declared", field=f"{path}.node"
        )
    in_cluster = table.get("in_cluster", False)
    if not isinstance(in_cluster, bool):
        raise Invalid(f"{path}.in_cluster must be true or false", field=f"{path}.in_cluster")
    kubeconfig = _text({"kubeconfig": "", **table}, "kubeconfig", path, needed=False, characters_max=4096)
    if bool(kubeconfig) == in_cluster:
        raise Invalid(
            f"{path}.kubeconfig: a kserve cluster needs either a kubeconfig or in_cluster = true",
            field=f"{path}.kubeconfig",
        )
    drift = table.get("drift", Drift.RESTORE.value)
    if drift not in tuple(Drift):
        raise Invalid(
            f"{path}.drift must be one of {', '.join(Drift)}; it is {drift!r}", field=f"{path}.drift"
        )
    domain = _text(
        {"domain": "", **table}, "domain", path, needed=False, characters_max=DOMAIN_CHARACTERS_MAX
    )
    if domain and not _DOMAIN.fullmatch(domain):
        raise Invalid(f"{path}.domain must be a DNS name such as models.example.com", field=f"{path}.domain")
    return {
        "domain": domain,
        "ingress": check_ingress(
            _text({"ingress": "", **table}, "ingress", path, needed=False), f"{path}.ingress"
        ),
        "kubeconfig": str(Path(kubeconfig).expanduser().absolute()) if kubeconfig else "",
        "context": _text({"context": "", **table}, "context", path, needed=False, characters_max=253),
        "in_cluster": in_cluster,
        "drift": Drift(drift),
    }


def _parse_node(path: str, table: Mapping[str, Any]) -> NodeSettings:
    _check_known(table, {field.name for field in fields(NodeSettings)}, path)
    node = NodeSettings(
        name=check_name(table.get("name", ""), f"{path}.name"),
        instance_type=_text(table, "instance_type", path),
        gpu_shape=_text(table, "gpu_shape", path),
        gpus=_whole(table, "gpus", path, 1, GPUS_PER_NODE_MAX),
        memory_gb=_whole(table, "memory_gb", path, 1, MEMORY_GB_MAX),
        count=_whole({"count": 1, **table}, "count", path, 1, NODES_MAX),
        cloud_provider=_text({"cloud_provider": "", **table}, "cloud_provider", path, needed=False),
        region=_text({"region": "", **table}, "region", path, needed=False),
    )
    check_name(node.names()[-1], f"{path}.name")
    return node


def _tables(raw: Any, path: str, count_max: int) -> list[tuple[str, Mapping[str, Any]]]:
    """Each table of an array of tables, with its path."""
    if not isinstance(raw, list) or not all(isinstance(each, dict) for each in raw):
        heading = ".".join(part.partition("[")[0] for part in path.split("."))
        raise Invalid(f"{path} must be tables, each headed [[{heading}]]", field=path)
    if len(raw) > count_max:
        raise Invalid(f"{path} has {len(raw)} tables; at most {count_max} are allowed", field=path)
    return [(f"{path}[{number}]", each) for number, each in enumerate(raw)]


def _check_known(table: Mapping[str, Any], known: set[str], path: str) -> None:
    if unknown := sorted(set(table) - known):
        raise Invalid(
            f"{path}.{unknown[0]} is not known",
            field=f"{path}.{unknown[0]}",
            next_action=f"known here are: {', '.join(sorted(known))}",
        )


def _check_unique(names: list[str], what: str, field: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise Invalid(f"{field}: there are two {what}s named {twice[0]}", field=field)


def _text(
    table: Mapping[str, Any],
    name: str,
    path: str,
    *,
    needed: bool = True,
    characters_max: int = DECLARED_TEXT_CHARACTERS_MAX,
) -> str:
    value = table.get(name, "")
    usable = isinstance(value, str) and len(value) <= characters_max and value.isprintable()
    if not usable or (needed and not value.strip()):
        raise Invalid(
            f"{path}.{name} must be a text of 1 to {characters_max} characters",
            field=f"{path}.{name}",
        )
    return str(value)


def _whole(table: Mapping[str, Any], name: str, path: str, lowest: int, highest: int) -> int:
    value = table.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise Invalid(
            f"{path}.{name} must be a whole number from {lowest} to {highest}"
            + ("" if value is None else f"; it is {value!r}"),
            field=f"{path}.{name}",
        )
    return value


def _port(raw: Any) -> int:
    port = int(raw)
    if not 0 <= port <= 65535:
        raise ValueError("a port is a whole number from 0 to 65535")
    return port


def _positive(raw: Any) -> int:
    number = int(raw)
    if number < 1:
        raise ValueError("must be a whole number of at least 1")
    return number


def _boolean(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).lower()
    if word not in {"true", "false", "1", "0", "yes", "no"}:
        raise ValueError("must be true or false")
    return word in {"true", "1", "yes"}


def _custom_servers(raw: Any) -> str:
    word = {"true": "yes", "false": "no"}.get(str(raw).lower(), str(raw).lower())
    if word not in {"auto", "yes", "no"}:
        raise ValueError("must be auto, yes or no")
    return word


def _default_access(raw: Any) -> str:
    word = str(raw).lower()
    if word not in {"auto", *Access}:
        raise ValueError(f"must be auto, {' or '.join(Access)}")
    return word


def _otlp_endpoint(raw: Any) -> str:
    endpoint = str(raw).strip()
    if endpoint:
        try:
            parse_collector(endpoint)
        except Invalid as error:
            raise ValueError("must be like http://127.0.0.1:4318, without credentials or query") from error
    return endpoint


def _percent(raw: Any) -> float:
    if isinstance(raw, bool) or not 0 <= (percent := float(raw)) <= 100:
        raise ValueError("must be a number from 0 to 100")
    return percent


def _log_level(raw: Any) -> str:
    level = str(raw).lower()
    if level not in {"debug", "info", "warning", "error"}:
        raise ValueError("must be one of debug, info, warning, error")
    return level


def _home(raw: Any) -> Path:
    if not str(raw).strip():
        raise ValueError("must name a folder")
    return Path(raw).expanduser().absolute()


def _domain(raw: Any) -> str:
    name = str(raw).lower()
    if len(name) > DOMAIN_CHARACTERS_MAX or not _DOMAIN.fullmatch(name):
        raise ValueError("must be a DNS name such as localhost or models.example.com")
    return name


def _advertised_host(raw: Any) -> str:
    host = str(raw).strip()
    try:
        ip_address(host)
    except ValueError:
        if host and not _ADVERTISED_NAME.fullmatch(host):
            raise ValueError(
                "must be an IP address or a DNS name, without scheme or port; a name with other letters"
                " in the form that DNS has (xn--…)"
            ) from None
    return host


def _database_url(raw: Any) -> str:
    url = str(raw)
    if url and not url.startswith(("sqlite://", "postgresql://", "postgres://")):
        raise ValueError("must begin with sqlite:// or postgresql://")
    return url


_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "home": _home,
    "domain": _domain,
    "advertised_host": _advertised_host,
    "api_port": _port,
    "gateway_port": _port,
    "database_url": _database_url,
    "log_level": _log_level,
    "model_cache_bytes_max": _positive,
    "fork_servers": _boolean,
    "local": _boolean,
    "custom_servers": _custom_servers,
    "default_access": _default_access,
    "otlp_endpoint": _otlp_endpoint,
    "trace_sample_percent": _percent,
}


def _parse(name: str, raw: Any, source: str) -> Any:
    try:
        return _PARSERS.get(name, str)(raw)
    except (TypeError, ValueError) as error:
        shown = "" if name in SECRET_SETTINGS else f": {raw!r}"
        raise Invalid(f"{name} from {source} is not valid{shown}; {error}", field=name) from error
