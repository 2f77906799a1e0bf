"""How requests get to an endpoint: by which name, address and port, and the command that shows it. Pure.

Through our gateway, by host or by path; or, on a cluster with an ingress of its own, by the name that the cluster
made. What a cluster says is not trusted to be fit for a shell: a host or address that looks odd is not used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from inferplane.domain.endpoint import InferenceEndpoint, Ingress
from inferplane.services.context import DEFAULT_PORTS, GatewayAddress
from inferplane.wire.endpoints import DnsRecord

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]", re.ASCII)
_PORT = re.compile(r":([0-9]{1,5})$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Way:
    """Base URLs without a trailing slash, "" where there is no such way.

    `by_name` needs DNS, `by_path` does not. `by_address` is what a command sends to, with `lines` that name the
    endpoint. `record` is what DNS must say for `by_name`, None where nobody can tell yet.
    """

    by_name: str
    by_path: str
    by_address: str
    lines: tuple[str, ...]
    record: DnsRecord | None


def way_to(endpoint: InferenceEndpoint, gateway: GatewayAddress, ingress_address: str = "") -> Way:
    """The way to an endpoint. `ingress_address` is where its cluster lets requests in, if that was registered."""
    ingress = endpoint.status.ingress
    if ingress is not None:
        return _through_ingress(ingress, ingress_address)
    place = endpoint.workspace, endpoint.name, endpoint.host_cluster
    host = gateway.host_of(*place)
    value = gateway.advertised_host
    return Way(
        by_name=gateway.url_of(*place),
        by_path=gateway.path_url_of(*place),
        by_address=gateway.address_url(),
        lines=(f'-H "Host: {host}" \\',),
        record=DnsRecord(host, record_type(value), value),
    )


def ingress_of(endpoint: InferenceEndpoint, ingress_address: str = "") -> tuple[str, str]:
    """(host name, address without a port) of an endpoint behind its cluster's ingress, "" for what is not known."""
    ingress = endpoint.status.ingress
    if ingress is None:
        return "", ""
    host = _host_and_port(ingress.url)[0]
    return host, _PORT.sub("", _address(ingress, ingress_address))


def record_type(address: str) -> str:
    """What kind of DNS record leads to this address."""
    bare = address.strip("[]")
    if ":" in bare:
        return "AAAA"
    return "A" if all(part.isdigit() for part in bare.split(".")) else "CNAME"


def _through_ingress(ingress: Ingress, ingress_address: str) -> Way:
    host, port = _host_and_port(ingress.url)
    scheme = urlsplit(ingress.url).scheme if host else ""
    if scheme not in DEFAULT_PORTS:
        return Way("", "", "", (), None)
    own_port = port or DEFAULT_PORTS[scheme]
    base = f"{scheme}://{host}{f':{port}' if port else ''}"
    address = _address(ingress, ingress_address)
    if not address:
        return Way(base, "", base, (), None)
    bare = _PORT.sub("", address)
    there = _PORT.search(address)
    record = DnsRecord(host, record_type(bare), bare.strip("[]"))
    at = there[1] if there is not None else str(own_port)
    if scheme == "https":  # the name is part of the handshake, so it must stay in the URL
        return Way(base, "", base, (f'--connect-to "{host}:{own_port}:{bare}:{at}" \\',), record)
    suffix = "" if int(at) == DEFAULT_PORTS[scheme] else f":{at}"
    return Way(base, "", f"{scheme}://{bare}{suffix}", (f'-H "Host: {host}" \\',), record)


def _address(ingress: Ingress, registered: str) -> str:
    """Where the ingress is, maybe with a port; an IPv6 address in brackets."""
    address = registered or ingress.address
    if address.count(":") > 1 and not address.startswith("["):
        address = f"[{address}]"
    return address if _HOST.fullmatch(_PORT.sub("", address)) else ""


def _host_and_port(url: str) -> tuple[str, int | None]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "", None
    return (host, port) if _HOST.fullmatch(host) else ("", None)
