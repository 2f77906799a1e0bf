"""Where traces are collected: the address in the settings, read once for all who use it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from inferplane.domain.errors import Invalid

DEFAULT_PORT = 80
TRACES_PATH = "/v1/traces"
HOST_CHARACTERS_MAX = 253

_ENDPOINT = re.compile(
    r"http://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[A-Za-z0-9._~-]*)*)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Collector:
    """Where spans are sent by POST, as OpenTelemetry's protocol over HTTP has it."""

    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """`host:port`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole address."""
        return f"http://{self.authority}{self.path}"


def parse_collector(endpoint: str) -> Collector:
    """The address for traces below an OTLP endpoint such as `http://127.0.0.1:4318`. Raises Invalid.

    Only http without credentials: a collector that wants more belongs behind one that runs nearby.
    """
    match = _ENDPOINT.fullmatch(endpoint)
    port = int(match["port"] or DEFAULT_PORT) if match else 0
    if match is None or not 0 < port <= 65535 or len(match["host"]) > HOST_CHARACTERS_MAX:
        raise Invalid(
            f"{endpoint!r} is not the address of a collector",
            field="otlp_endpoint",
            next_action="Give one like http://127.0.0.1:4318, without credentials or query.",
        )
    host = match["host"].removeprefix("[").removesuffix("]")
    return Collector(host, port, match["path"].rstrip("/") + TRACES_PATH)
