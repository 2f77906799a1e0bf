"""What the engine leans on in an API server: if one of these does not hold, neither does the engine."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import pytest

from inferplane.engines.kserve.client import NAMESPACE, SECRET, KubeClient
from inferplane.engines.kserve.http_api import ApiError
from inferplane.engines.kserve.raw import is_going, text


class Cluster(Protocol):
    """As in conftest."""

    client: KubeClient

    def uid(self) -> str: ...


async def made_namespace(cluster: Cluster) -> str:
    """A namespace that is taken away afterwards."""
    uid = cluster.uid()
    called = f"inferplane-test-{uid}"
    labels = {"inferplane.io/endpoint": uid, "app.kubernetes.io/managed-by": "inferplane-test"}
    await cluster.client.apply(
        NAMESPACE.path(name=called),
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": called, "labels": labels}},
    )
    return called


def secret(namespace: str, **data: str) -> dict[str, Any]:
    metadata = {"name": "one", "namespace": namespace, "labels": {"test": "yes"}}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}


def version(raw: object) -> str:
    return text(raw, "metadata", "resourceVersion")


async def test_applying_the_same_twice_writes_nothing(cluster: Cluster) -> None:
    place = await made_namespace(cluster)
    path = SECRET.path(place, "one")
    first = await cluster.client.apply(path, secret(place, a="YQ==", b="Yg=="))
    again = await cluster.client.apply(path, secret(place, a="YQ==", b="Yg=="))
    assert version(again) == version(first)
    less = await cluster.client.apply(path, secret(place, a="YQ=="))
    assert less["data"] == {"a": "YQ=="}


async def test_what_is_applied_beside_a_merged_note_leaves_the_note(cluster: Cluster) -> None:
    place = await made_namespace(cluster)
    path = SECRET.path(place, "one")
    await cluster.client.apply(path, secret(place, a="YQ=="))
    noted = await cluster.client.merge(path, {"metadata": {"annotations": {"inferplane.io/mark": "1"}}})
    assert noted["metadata"]["annotations"]["inferplane.io/mark"] == "1"
    after = await cluster.client.apply(path, secret(place, a="Yg=="))
    assert after["metadata"]["annotations"]["inferplane.io/mark"] == "1"
    gone = await cluster.client.merge(path, {"metadata": {"annotations": {"inferplane.io/mark": None}}})
    assert "inferplane.io/mark" not in gone["metadata"].get("annotations", {})


async def test_a_patch_of_an_earlier_version_is_refused(cluster: Cluster) -> None:
    place = await made_namespace(cluster)
    path = SECRET.path(place, "one")
    first = await cluster.client.apply(path, secret(place, a="YQ=="))
    await cluster.client.apply(path, secret(place, a="Yg=="))
    stale = {"metadata": {"resourceVersion": version(first), "annotations": {"x": "y"}}}
    with pytest.raises(ApiError) as refused:
        await cluster.client.merge(path, stale)
    assert refused.value.status == 409


async def test_a_watch_goes_on_from_a_list_and_from_where_it_ended(cluster: Cluster) -> None:
    place = await made_namespace(cluster)
    path = SECRET.path(place)
    listed = ""
    async for page, listed in cluster.client.pages(path, "test=yes"):  # noqa: B007 - the last counts
        assert page == []
    first = await cluster.client.apply(SECRET.path(place, "one"), secret(place, a="YQ=="))
    await cluster.client.apply(SECRET.path(place, "one"), secret(place, a="Yg=="))
    await cluster.client.delete(SECRET.path(place, "one"))

    async def kinds(since: str, count: int) -> list[str]:
        found: list[str] = []
        async with asyncio.timeout(60):
            async for kind, raw in cluster.client.watch(path, since, "test=yes"):
                if kind in ("ADDED", "MODIFIED", "DELETED"):
                    assert version(raw)
                    found.append(kind)
                if len(found) == count:
                    break
        return found

    assert await kinds(listed, 3) == ["ADDED", "MODIFIED", "DELETED"]
    assert await kinds(version(first), 2) == ["MODIFIED", "DELETED"]


async def test_only_that_very_object_is_deleted(cluster: Cluster) -> None:
    place = await made_namespace(cluster)
    path = SECRET.path(place, "one")
    first = await cluster.client.apply(path, secret(place, a="YQ=="))
    assert not await cluster.client.delete(path, uid="00000000-0000-0000-0000-000000000000")
    assert await cluster.client.find(path) is not None
    assert await cluster.client.delete(path, uid=text(first, "metadata", "uid"))
    assert not await cluster.client.delete(path)
    assert await cluster.client.find(path) is None


async def test_a_namespace_that_goes_takes_its_content_along(cluster: Cluster) -> None:
    place = await made_namespace(cluster)
    await cluster.client.apply(SECRET.path(place, "one"), secret(place, a="YQ=="))
    await cluster.client.delete(NAMESPACE.path(name=place))
    found = await cluster.client.find(NAMESPACE.path(name=place))
    assert found is None or is_going(found)


async def test_what_is_not_there_and_what_is_not_meant_are_told_apart(cluster: Cluster) -> None:
    place = await made_namespace(cluster)
    assert await cluster.client.find(SECRET.path(place, "nobody")) is None
    wrong = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "one", "namespace": place}, "data": 3}
    with pytest.raises(ApiError) as refused:
        await cluster.client.apply(SECRET.path(place, "one"), wrong)
    assert 400 <= refused.value.status < 500
