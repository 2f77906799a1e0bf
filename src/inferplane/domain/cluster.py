"""How a cluster of Kubernetes is reached, and what was found when somebody last looked.

Credentials are no part of any of these values: a kubeconfig that was handed over lies in the store among
the secrets, one on the platform's own machine is named by its path. So these values may be shown, told and
logged as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from inferplane.domain.errors import Invalid
from inferplane.domain.preflight import Check

KUBECONFIG_BYTES_MAX = 256 * 1024
"""A kubeconfig of one context is a few KiB; one with many is still far below."""


INGRESS_CHARACTERS_MAX = 253
PORT_MAX = 65_535
_INGRESS = re.compile(
    r"(\[([0-9a-fA-F:.]+)\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:(?P<port>[0-9]{1,5}))?", re.ASCII
)


def check_ingress(text: str, field: str) -> str:
    """An address or name of a cluster's ingress, maybe with a port; may be empty. Raises Invalid.

    An IPv6 address stands in brackets, as in URLs.
    """
    text = text.strip()
    if not text:
        return ""
    match = _INGRESS.fullmatch(text) if len(text) <= INGRESS_CHARACTERS_MAX else None
    if match is None or not 0 < int(match["port"] or 80) <= PORT_MAX:
        raise Invalid(
            f"{field} must be the address or name of the cluster's ingress",
            reason="InvalidIngress",
            field=field,
            next_action="Give it like 192.0.2.10, [2001:db8::1], ingress.example.com or 192.0.2.10:8080.",
        )
    return text


class Drift(StrEnum):
    """What is done where somebody else changes or deletes what the platform made in the cluster."""

    RESTORE = "restore"  # it is put right
    LEAVE = "leave"  # it is said and left as it is


@dataclass(frozen=True, slots=True)
class ClusterConnection:
    """Where the credentials of a Kubernetes cluster are, and how the cluster is treated.

    Exactly one of three: `in_cluster` (the service account of the pod that the platform runs in),
    `kubeconfig` (path of a file on the platform's machine, read anew for each connection), or neither: the
    store keeps one that was handed over. `context` "" means the file's current one. `declared` tells that the
    configuration file says so, and not a person.
    """

    kubeconfig: str = ""
    context: str = ""
    in_cluster: bool = False
    drift: Drift = Drift.RESTORE
    declared: bool = False

    @property
    def is_handed_over(self) -> bool:
        """Whether the kubeconfig itself lies in the store."""
        return not self.in_cluster and not self.kubeconfig

    @property
    def source(self) -> str:
        """Where the credentials come from, in words."""
        if self.in_cluster:
            return "the service account of the platform's pod"
        context = f", context {self.context}" if self.context else ""
        return (f"file {self.kubeconfig}" if self.kubeconfig else "a kubeconfig in the store") + context


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """What was found when the cluster was last looked at.

    `since` is since when it has been reachable, or not. `message` says why not, "" where it is.
    `server` is the address of its API. `checks` are in the order in which they were made.
    """

    at: datetime
    reachable: bool
    since: datetime
    message: str = ""
    server: str = ""
    version: str = ""
    kserve_version: str = ""
    kserve_mode: str = ""
    runtimes: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()

    @property
    def problems(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(each for each in self.checks if not each.ok)

    def says_the_same(self, other: ClusterReport | None) -> bool:
        """Whether nothing but the moment of looking is new."""
        return other is not None and replace(self, at=other.at, since=other.since) == other

    def after(self, before: ClusterReport | None) -> ClusterReport:
        """The same, with `since` as it was if it is (un)reachable as before; what is not known any more, too."""
        since = self.at if before is None or before.reachable != self.reachable else before.since
        if self.reachable or before is None:
            return replace(self, since=since)
        return replace(
            self,
            since=since,
            server=self.server or before.server,
            version=self.version or before.version,
            kserve_version=self.kserve_version or before.kserve_version,
            kserve_mode=self.kserve_mode or before.kserve_mode,
            runtimes=self.runtimes or before.runtimes,
        )
