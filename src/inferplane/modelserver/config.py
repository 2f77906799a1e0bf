"""What a model server is told: one JSON file, read once into a frozen value.

The file is written by whoever starts the server. Unknown keys are ignored, so that an older server
can be started by a newer platform; missing keys take the defaults below. This module imports
msgspec and nothing heavier, because the thread limits it carries must reach the environment before
numpy is imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from inferplane.modelserver.errors import ModelServerError

#: Extra allowance above the request time limit that a draining server waits for its requests.
DRAIN_MARGIN_SECONDS = 5.0
UNIX_PREFIX = "unix:"
#: Flags that KServe manifests pass to ask for probabilities.
PROBABILITY_FLAGS = frozenset(
    {"--predict_proba", "--predict-proba", "--predict_proba=true", "--predict-proba=true"}
)

#: The argument by which KServe manifests ask for several processes, and the most that are started.
WORKERS_FLAG = "--workers"
WORKERS_MAX = 32

_OTLP_ENDPOINT = re.compile(
    r"http://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>(?:/[A-Za-z0-9._~-]*)*)",
    re.ASCII,
)
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class ConfigError(ModelServerError):
    """The configuration file cannot be used; the message names the field."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a model server needs to know.

    `path` is a model file or a folder that holds exactly one. `address` is `unix:/path.sock` or
    `host:port`. A datagram with `notify_key` goes to the unix socket `notify_socket` whenever the
    status file changed ("" for none). `queue_rows_max` bounds the rows that wait behind the batch
    being computed. A model that generates text works on `generations_max` answers in turn while
    `generations_waiting_max` more wait. `memory_bytes_max` limits what the process may allocate beyond what the empty
    server uses. With `workers` > 1 so many processes share the address and the loaded model.
    With a `command`, that program is the server (see `outside`), ready when `ready_path` answers ("" for the
    usual ones). Requests that carry a sampled trace get a span, sent to the collector at `otlp_endpoint`
    (`http://host:port`, "" for none; see `tracing`).
    """

    name: _Text
    format: _Text
    path: _Text
    address: _Text
    status_file: str = ""
    aliases: tuple[str, ...] = ()
    notify_socket: str = ""
    notify_key: str = ""
    version: str = "1"
    threads: _Positive = 1
    workers: _Positive = 1
    max_request_bytes: _Positive = 16 * 1024 * 1024
    request_timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    predict_proba: bool = False
    max_batch_rows: _Positive = 1024
    max_batch_delay_ms: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    queue_rows_max: _Positive = 16384
    memory_bytes_max: _Positive | None = None
    generations_max: _Positive = 4
    generations_waiting_max: Annotated[int, msgspec.Meta(ge=0)] = 64
    args: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    ready_path: str = ""
    otlp_endpoint: str = ""

    @property
    def names(self) -> frozenset[str]:
        """Every name the model answers to."""
        return frozenset((self.name, *self.aliases))

    @property
    def worker_count(self) -> int:
        """How many processes serve: `workers`, or what a manifest's arguments ask for, within bounds."""
        wanted = self.workers
        for flag, following in zip(self.args, (*self.args, "")[1:], strict=True):
            name, given, value = flag.partition("=")
            text = value if given else following
            if name == WORKERS_FLAG and text.isdecimal():
                wanted = int(text[:4])
        return max(1, min(wanted, WORKERS_MAX))

    @property
    def wants_probabilities(self) -> bool:
        """Whether V1 answers carry class probabilities unless the request says otherwise."""
        return self.predict_proba or not PROBABILITY_FLAGS.isdisjoint(self.args)

    @property
    def drain_seconds(self) -> float:
        """How long a draining server waits for accepted requests to finish."""
        return self.request_timeout_seconds + DRAIN_MARGIN_SECONDS


def parse_config(text: bytes | str) -> ServerConfig:
    """Read a configuration. Raises ConfigError with the field that is wrong."""
    try:
        config = msgspec.json.decode(text, type=ServerConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the model server's configuration cannot be read: {error}") from error
    if not config.address.startswith(UNIX_PREFIX):
        _split_host_port(config.address)
    if config.otlp_endpoint:
        otlp_collector(config.otlp_endpoint)
    return config


def read_config(path: str | Path) -> ServerConfig:
    """Read a configuration file. Raises ConfigError."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the model server's configuration {path} cannot be read: {error.strerror}"
        ) from error
    return parse_config(text)


@dataclass(frozen=True, slots=True)
class Collector:
    """Where spans are sent by POST."""

    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"http://{self.authority}{self.path}"


def otlp_collector(endpoint: str) -> Collector:
    """The address for spans below an OTLP endpoint such as `http://127.0.0.1:4318`. Raises ConfigError."""
    match = _OTLP_ENDPOINT.fullmatch(endpoint)
    port = int(match["port"] or 80) if match else 0
    if match is None or not 0 < port <= 65535:
        raise ConfigError(f"otlp_endpoint {endpoint!r} is not like http://127.0.0.1:4318")
    host = match["host"].removeprefix("[").removesuffix("]")
    return Collector(host, port, f"{match['path'].rstrip('/')}/v1/traces")


def unix_path(config: ServerConfig) -> str | None:
    """The socket file to listen on, or None when the address is host:port."""
    return config.address.removeprefix(UNIX_PREFIX) if config.address.startswith(UNIX_PREFIX) else None


def host_port(config: ServerConfig) -> tuple[str, int]:
    """The TCP address to listen on; IPv6 hosts come in brackets in the configuration, without here."""
    return _split_host_port(config.address)


def thread_environment(threads: int) -> dict[str, str]:
    """The variables by which numerical libraries size their thread pools when they are loaded."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS")
    return dict.fromkeys(names, str(threads))


def _split_host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"address {address!r} is neither unix:/path.sock nor host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)
