"""What every client leans on: versions, conflicts, lists, watches, apply, deletion."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from kube_api import KubeApi

MAPS = "/api/v1/namespaces/here/configmaps"
ISVCS = "/apis/serving.kserve.io/v1beta1/namespaces/here/inferenceservices"


def config(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def isvc(name: str = "demo", **predictor: Any) -> dict[str, Any]:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://models.example.com/a"}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"predictor": {"model": model, **predictor}},
    }


async def until(done: Any, seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not done():  # noqa: ASYNC110 - the cluster moves by itself; there is nothing to wait on
            await asyncio.sleep(0.005)


async def test_versions_move_with_every_change_and_an_old_one_is_refused(admin: Any) -> None:
    made = (await admin.ask("POST", MAPS, config("a", x="1"))).json()
    changed = await admin.ask("PUT", f"{MAPS}/a", {**made, "data": {"x": "2"}})
    assert int(changed.json()["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])
    late = await admin.ask("PUT", f"{MAPS}/a", {**made, "data": {"x": "3"}})
    assert (late.status_code, late.json()["reason"]) == (409, "Conflict")
    assert late.json()["message"] == (
        'Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to '
        "the latest version and try again"
    )


async def test_a_write_that_changes_nothing_makes_no_version(admin: Any) -> None:
    made = (await admin.ask("POST", MAPS, config("a", x="1"))).json()
    again = (await admin.merge(f"{MAPS}/a", {"data": {"x": "1"}})).json()
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


async def test_generation_counts_changes_of_spec_only_and_status_is_apart(admin: Any) -> None:
    await admin.ask("POST", ISVCS, isvc())
    labelled = (await admin.merge(f"{ISVCS}/demo", {"metadata": {"labels": {"a": "b"}}})).json()
    assert labelled["metadata"]["generation"] == 1
    both: dict[str, Any] = {
        "spec": {"predictor": {"minReplicas": 2}},
        "status": {"url": "http://x.example.com"},
    }
    through_main = (await admin.merge(f"{ISVCS}/demo", both)).json()
    assert (through_main["metadata"]["generation"], "status" in through_main) == (2, False)
    both["spec"]["predictor"]["minReplicas"] = 3
    through_status = (await admin.merge(f"{ISVCS}/demo/status", both)).json()
    assert through_status["metadata"]["generation"] == 2
    assert through_status["spec"]["predictor"]["minReplicas"] == 2
    assert through_status["status"] == {"url": "http://x.example.com"}


async def test_a_list_goes_on_where_it_stopped_as_of_its_first_page(admin: Any) -> None:
    for name in "abcde":
        await admin.ask("POST", MAPS, config(name))
    first = (await admin.ask("GET", MAPS, limit="2")).json()
    await admin.ask("DELETE", f"{MAPS}/e")
    seen, page = [each["metadata"]["name"] for each in first["items"]], first
    while page["metadata"].get("continue"):
        page = (await admin.ask("GET", MAPS, limit="2", **{"continue": page["metadata"]["continue"]})).json()
        seen += [each["metadata"]["name"] for each in page["items"]]
        assert page["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert seen == ["a", "b", "c", "d", "e", "kube-root-ca.crt"]


async def test_a_page_that_is_too_old_is_gone(api: KubeApi, admin: Any) -> None:
    for name in "abc":
        await admin.ask("POST", MAPS, config(name))
    first = (await admin.ask("GET", MAPS, limit="1")).json()
    await admin.ask("DELETE", f"{MAPS}/c")
    api.store.forget_history()
    late = await admin.ask("GET", MAPS, limit="1", **{"continue": first["metadata"]["continue"]})
    assert (late.status_code, late.json()["reason"]) == (410, "Expired")


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("team=a", ["one"]),
        ("team!=a", ["kube-root-ca.crt", "three", "two"]),
        ("team in (a, b),tier", ["two"]),
        ("!team", ["kube-root-ca.crt", "three"]),
        ("team notin (a)", ["kube-root-ca.crt", "three", "two"]),
    ],
)
async def test_labels_select(admin: Any, selector: str, names: list[str]) -> None:
    for name, labels in (("one", {"team": "a"}), ("two", {"team": "b", "tier": "x"}), ("three", {})):
        body = config(name)
        body["metadata"]["labels"] = labels
        await admin.ask("POST", MAPS, body)
    found = (await admin.ask("GET", MAPS, labelSelector=selector)).json()["items"]
    assert [each["metadata"]["name"] for each in found] == names


async def test_fields_select_where_the_kind_allows_it(api: KubeApi, admin: Any) -> None:
    for name, node in (("a", "node1"), ("b", "node2")):
        api.store.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "here"},
                "spec": {"nodeName": node},
            }
        )
    found = (await admin.ask("GET", "/api/v1/pods", fieldSelector="spec.nodeName=node2")).json()["items"]
    assert [each["metadata"]["name"] for each in found] == ["b"]
    refused = await admin.ask("GET", "/api/v1/pods", fieldSelector="spec.colour=red")
    assert (refused.status_code, refused.json()["message"]) == (400, "field label not supported: spec.colour")


async def test_a_watch_resumes_where_it_was(admin: Any) -> None:
    start = (await admin.ask("GET", MAPS)).json()["metadata"]["resourceVersion"]
    await admin.ask("POST", MAPS, config("a", x="1"))
    await admin.merge(f"{MAPS}/a", {"data": {"x": "2"}})
    await admin.ask("DELETE", f"{MAPS}/a")
    found = await admin.events(MAPS, 3, resourceVersion=start)
    assert [each["type"] for each in found] == ["ADDED", "MODIFIED", "DELETED"]
    middle = found[1]["object"]["metadata"]["resourceVersion"]
    assert [each["type"] for each in await admin.events(MAPS, 1, resourceVersion=middle)] == ["DELETED"]


async def test_a_watch_from_before_what_is_remembered_is_gone() -> None:
    async with KubeApi(history=3) as api, httpx.AsyncClient(base_url=api.url) as http:
        http.headers["authorization"] = "Bearer token-of-admin"
        start = (await http.get("/api/v1/nodes")).json()["metadata"]["resourceVersion"]
        for number in range(4):
            api.store.put({"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"n{number}"}})
        answer = await http.get("/api/v1/nodes", params={"watch": "1", "resourceVersion": start})
        event = answer.json()
        assert (answer.status_code, event["type"], event["object"]["code"]) == (200, "ERROR", 410)
        assert event["object"]["reason"] == "Expired"


async def test_bookmarks_tell_the_version_though_nothing_of_this_kind_changed() -> None:
    async with KubeApi(bookmark_s=0.02) as api, httpx.AsyncClient(base_url=api.url) as http:
        http.headers["authorization"] = "Bearer token-of-admin"
        start = (await http.get("/api/v1/nodes")).json()["metadata"]["resourceVersion"]
        api.store.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}})
        query = {"watch": "1", "resourceVersion": start, "allowWatchBookmarks": "true"}
        async with http.stream("GET", "/api/v1/nodes", params=query) as answer:
            line = await anext(answer.aiter_lines())
        assert '"BOOKMARK"' in line
        assert str(api.store.version) in line


async def test_a_watch_by_labels_sees_coming_and_going(admin: Any) -> None:
    start = (await admin.ask("GET", MAPS)).json()["metadata"]["resourceVersion"]
    await admin.ask("POST", MAPS, config("a"))
    await admin.merge(f"{MAPS}/a", {"metadata": {"labels": {"ours": "yes"}}})
    await admin.merge(f"{MAPS}/a", {"metadata": {"labels": {"ours": None}}})
    found = await admin.events(MAPS, 2, resourceVersion=start, labelSelector="ours=yes")
    assert [each["type"] for each in found] == ["ADDED", "DELETED"]


async def test_a_watch_without_a_version_begins_with_what_is_there(admin: Any) -> None:
    await admin.ask("POST", MAPS, config("a"))
    found = await admin.events(MAPS, 2)
    assert [each["object"]["metadata"]["name"] for each in found] == ["a", "kube-root-ca.crt"]


# -- server-side apply --------------------------------------------------------------------------------


async def test_an_apply_makes_and_then_changes_nothing(admin: Any) -> None:
    first = await admin.apply(f"{MAPS}/a", config("a", x="1"))
    again = await admin.apply(f"{MAPS}/a", config("a", x="1"))
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json()["metadata"]["resourceVersion"] == first.json()["metadata"]["resourceVersion"]
    entry = again.json()["metadata"]["managedFields"][0]
    assert (entry["manager"], entry["operation"], entry["fieldsV1"]) == (
        "us",
        "Apply",
        {"f:data": {"f:x": {}}},
    )


async def test_what_an_applier_no_longer_says_goes_unless_another_says_it(admin: Any) -> None:
    await admin.apply(f"{MAPS}/a", config("a", x="1", y="1", z="1"))
    await admin.apply(f"{MAPS}/a", config("a", y="1"), "them")
    found = (await admin.apply(f"{MAPS}/a", config("a", x="1"))).json()
    assert found["data"] == {"x": "1", "y": "1"}


async def test_fields_of_others_are_a_conflict_unless_forced(admin: Any) -> None:
    await admin.apply(f"{MAPS}/a", config("a", x="1"))
    await admin.merge(f"{MAPS}/a", {"data": {"x": "edited"}}, fieldManager="kubectl-edit")
    refused = await admin.apply(f"{MAPS}/a", config("a", x="1"))
    assert (refused.status_code, refused.json()["reason"]) == (409, "Conflict")
    assert (
        refused.json()["message"]
        == 'Apply failed with 1 conflict: conflict with "kubectl-edit" using v1: .data.x'
    )
    assert refused.json()["details"]["causes"] == [
        {
            "reason": "FieldManagerConflict",
            "message": 'conflict with "kubectl-edit" using v1',
            "field": ".data.x",
        }
    ]
    forced = (await admin.apply(f"{MAPS}/a", config("a", x="1"), force=True)).json()
    assert forced["data"] == {"x": "1"}
    assert [each["manager"] for each in forced["metadata"]["managedFields"]] == ["us"]


async def test_lists_with_keys_are_shared_by_their_items(admin: Any) -> None:
    def account(*secrets: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "robot"},
            "secrets": [{"name": each} for each in secrets],
        }

    path = "/api/v1/namespaces/here/serviceaccounts/robot"
    await admin.apply(path, account("a", "b"))
    await admin.apply(path, account("c"), "them")
    found = (await admin.apply(path, account("b"))).json()
    assert sorted(each["name"] for each in found["secrets"]) == ["b", "c"]


async def test_an_apply_needs_a_manager_and_its_own_name(admin: Any) -> None:
    nameless = await admin.apply(f"{MAPS}/a", config("a"), "")
    assert (nameless.status_code, nameless.json()["reason"]) == (422, "Invalid")
    wrong = await admin.apply(f"{MAPS}/a", config("b"))
    assert wrong.json()["message"] == "the name of the object (b) does not match the name on the URL (a)"


# -- deletion -----------------------------------------------------------------------------------------


async def test_finalizers_hold_what_is_deleted(admin: Any) -> None:
    body = isvc()
    body["metadata"]["finalizers"] = ["example.com/hold"]
    made = (await admin.ask("POST", ISVCS, body)).json()
    held = await admin.ask("DELETE", f"{ISVCS}/demo")
    assert held.json()["metadata"]["deletionTimestamp"]
    assert held.json()["metadata"]["generation"] == made["metadata"]["generation"] + 1
    await admin.merge(f"{ISVCS}/demo", {"metadata": {"finalizers": None}})
    assert (await admin.ask("GET", f"{ISVCS}/demo")).status_code == 404


async def test_what_an_owner_leaves_is_collected(api: KubeApi, admin: Any) -> None:
    owner = (await admin.ask("POST", MAPS, config("owner"))).json()
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "owner",
        "uid": owner["metadata"]["uid"],
    }
    for name in ("child", "grandchild"):
        body = config(name)
        body["metadata"]["ownerReferences"] = [reference]
        made = (await admin.ask("POST", MAPS, body)).json()
        reference = {**reference, "name": name, "uid": made["metadata"]["uid"]}
    await admin.ask("DELETE", f"{MAPS}/owner")
    await until(lambda: not api.store.get("ConfigMap", "grandchild", "here"))
    assert api.store.get("ConfigMap", "child", "here") is None


async def test_a_namespace_takes_its_content_along(api: KubeApi, admin: Any) -> None:
    body = isvc()
    body["metadata"]["finalizers"] = ["example.com/hold"]
    await admin.ask("POST", ISVCS, body)
    answer = (await admin.ask("DELETE", "/api/v1/namespaces/here")).json()
    assert answer["status"]["phase"] == "Terminating"
    refused = await admin.ask("POST", MAPS, config("late"))
    assert (refused.status_code, refused.json()["reason"]) == (403, "Forbidden")
    assert refused.json()["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    await until(lambda: "conditions" in (api.store.get("Namespace", "here") or {})["status"])
    assert api.store.list("ConfigMap", "here") == []
    await admin.merge(f"{ISVCS}/demo", {"metadata": {"finalizers": []}})
    await until(lambda: api.store.get("Namespace", "here") is None)


async def test_a_delete_is_of_the_object_that_is_meant(admin: Any) -> None:
    await admin.ask("POST", MAPS, config("a"))
    refused = await admin.ask("DELETE", f"{MAPS}/a", {"preconditions": {"uid": "another"}})
    assert (refused.status_code, refused.json()["reason"]) == (409, "Conflict")
    done = (await admin.ask("DELETE", f"{MAPS}/a")).json()
    assert (done["status"], done["details"]["kind"]) == ("Success", "configmaps")


async def test_a_dry_run_leaves_nothing(api: KubeApi, admin: Any) -> None:
    made = await admin.ask("POST", MAPS, config("a"), dryRun="All")
    assert made.status_code == 201
    assert (await admin.apply(f"{MAPS}/b", config("b"), dryRun="All")).status_code == 201
    assert api.store.list("ConfigMap", "here", {}) == [api.store.get("ConfigMap", "kube-root-ca.crt", "here")]


async def test_names_are_made_on_request(admin: Any) -> None:
    body = config("")
    body["metadata"] = {"generateName": "job-"}
    made = (await admin.ask("POST", MAPS, body)).json()
    assert made["metadata"]["name"].startswith("job-")
    assert len(made["metadata"]["name"]) == len("job-") + 5
