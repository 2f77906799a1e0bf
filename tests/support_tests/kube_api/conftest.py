"""An emulated API server and a client that speaks plain HTTP to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from kube_api import KubeApi

Raw = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Speaker:
    """A client with one user's token."""

    http: httpx.AsyncClient

    async def ask(self, method: str, path: str, body: Any = None, **query: str) -> httpx.Response:
        """One request with a JSON body."""
        return await self.http.request(method, path, json=body, params=query)

    async def apply(
        self, path: str, body: Raw, manager: str = "us", *, force: bool = False, **query: str
    ) -> httpx.Response:
        """A server-side apply."""
        said = {"fieldManager": manager, **({"force": "true"} if force else {}), **query}
        kind = {"content-type": "application/apply-patch+yaml"}
        return await self.http.patch(path, content=json.dumps(body), params=said, headers=kind)

    async def merge(self, path: str, body: Raw, **query: str) -> httpx.Response:
        """A JSON merge patch."""
        kind = {"content-type": "application/merge-patch+json"}
        return await self.http.patch(path, content=json.dumps(body), params=query, headers=kind)

    async def events(self, path: str, count: int, **query: str) -> list[Raw]:
        """The first events of a watch; fewer where the server ends it."""
        found: list[Raw] = []
        said = {"watch": "1", **query}
        async with self.http.stream("GET", path, params=said) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                found.append(json.loads(line))
                if len(found) == count:
                    break
        return found


@pytest.fixture
async def api() -> AsyncIterator[KubeApi]:
    """The server, with a namespace "here"."""
    async with KubeApi() as server:
        server.store.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "here"}})
        yield server


def speaker_for(api: KubeApi, token: str) -> Speaker:
    """A client with a token."""
    headers = {"authorization": f"Bearer {token}", "user-agent": "tester/1.0"}
    return Speaker(httpx.AsyncClient(base_url=api.url, headers=headers, timeout=10))


@pytest.fixture
async def admin(api: KubeApi) -> AsyncIterator[Speaker]:
    """Who may do everything."""
    speaker = speaker_for(api, "token-of-admin")
    yield speaker
    await speaker.http.aclose()


@pytest.fixture
def speaker() -> Any:
    """Makes clients with other tokens: close `.http` of them."""
    return speaker_for
