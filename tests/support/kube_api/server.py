"""The HTTP side. Skeleton."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from kube_api.faults import Faults
from kube_api.rbac import ADMIN, User
from kube_api.store import Store


@dataclass(slots=True)
class Logged:
    """One request that arrived."""

    verb: str
    """As RBAC names it: get, list, watch, create, update, patch, delete, deletecollection; "apply" for a
    server-side apply; "" for what is no resource (/version)."""
    method: str
    path: str
    query: dict[str, str]
    resource: str
    """The plural, with a subresource: "pods/log"."""
    namespace: str
    name: str
    user: str
    user_agent: str
    body: Any
    """As parsed; None without one."""
    at: float
    """Of the loop's clock."""
    status: int = 0
    """What was answered; 0: nothing (yet)."""


class RequestLog:
    """The requests in order of arrival."""

    def __init__(self) -> None:
        self.all: list[Logged] = []

    def __iter__(self) -> Iterator[Logged]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def of(
        self, *, verb: str | None = None, resource: str | None = None, name: str | None = None
    ) -> list[Logged]:
        """Those that match all that is named."""
        return [
            each
            for each in self.all
            if (verb is None or each.verb == verb)
            and (resource is None or each.resource == resource)
            and (name is None or each.name == name)
        ]

    def count(self, *, verb: str | None = None, resource: str | None = None, name: str | None = None) -> int:
        """How many match."""
        return len(self.of(verb=verb, resource=resource, name=name))

    def clear(self) -> None:
        """Forgets them, to count from here on."""
        self.all.clear()


class KubeApi:
    """One emulated API server. `history`: how many changes a watch can go back; `kserve`: whether its CRDs are
    there; `pod_grace_s`: after how long a pod being deleted is gone (None: whoever plays the kubelet says)."""

    faults: Faults
    requests: RequestLog
    store: Store

    def __init__(
        self,
        *,
        users: Iterable[User] = (ADMIN,),
        history: int = 10_000,
        bookmark_s: float = 1.0,
        pod_grace_s: float | None = 0.0,
        kserve: bool = True,
    ) -> None:
        raise NotImplementedError

    async def start(self) -> KubeApi:
        """Listens on a free port of 127.0.0.1."""
        raise NotImplementedError

    async def stop(self) -> None:
        """Closes everything. Twice is fine."""

    async def __aenter__(self) -> KubeApi:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:port`."""
        raise NotImplementedError

    def kubeconfig(
        self, path: Path, user: str = "admin", *, context: str = "emulated", namespace: str = ""
    ) -> Path:
        """Writes a kubeconfig with that user's token; the path."""
        raise NotImplementedError

    def add_user(self, user: User) -> None:
        """One more token, or other rules for a name there is."""
        raise NotImplementedError

    def set_log(self, namespace: str, pod: str, container: str, text: str, *, previous: bool = False) -> None:
        """What `pods/log` answers."""
        raise NotImplementedError

    def add_nodes(self, recorded: str = "nodes-gpu", *, copies: int = 1) -> list[str]:
        """The Nodes of a recorded list, `copies` times under names of their own; the names."""
        raise NotImplementedError


class ApiInThread:
    """A KubeApi on a loop and thread of its own: `with ApiInThread() as api:`."""
