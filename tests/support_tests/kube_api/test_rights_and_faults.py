"""Rights by token, questions about them, discovery; and what can go wrong on the way."""

from __future__ import annotations

import asyncio
import base64
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import kube_api
from kube_api import ApiInThread, KubeApi, Rule, User

MAPS = "/api/v1/namespaces/here/configmaps"
ACCOUNTS = "/api/v1/namespaces/here/serviceaccounts"
RBAC = "/apis/rbac.authorization.k8s.io/v1"


def config(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}


async def test_a_user_may_what_the_rules_say(api: KubeApi, speaker: Any) -> None:
    rules = (Rule(("get", "list"), ("",), ("configmaps",), ("here",)),)
    api.add_user(User("reader", "token-of-reader", rules))
    reader = speaker(api, "token-of-reader")
    assert (await reader.ask("GET", MAPS)).status_code == 200
    refused = await reader.ask("POST", MAPS, config("a"))
    assert refused.status_code == 403
    assert refused.json()["message"] == (
        'configmaps is forbidden: User "reader" cannot create resource "configmaps" in API group "" in the namespace '
        '"here"'
    )
    everywhere = await reader.ask("GET", "/api/v1/nodes")
    assert everywhere.json()["message"].endswith("at the cluster scope")
    applied = await reader.apply(f"{MAPS}/a", config("a"))
    assert "cannot patch" in applied.json()["message"]
    asked = {"verb": "create", "group": "", "resource": "configmaps", "namespace": "here"}
    reviews = "/apis/authorization.k8s.io/v1"
    review = {"spec": {"resourceAttributes": asked}}
    answer = (await reader.ask("POST", f"{reviews}/selfsubjectaccessreviews", review)).json()
    assert answer["status"]["allowed"] is False
    review = {"spec": {"resourceAttributes": {**asked, "verb": "get"}}}
    answer = (await reader.ask("POST", f"{reviews}/selfsubjectaccessreviews", review)).json()
    assert answer["status"]["allowed"] is True
    listed = await reader.ask("POST", f"{reviews}/selfsubjectrulesreviews", {"spec": {"namespace": "here"}})
    assert listed.json()["status"]["resourceRules"] == [
        {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["configmaps"]}
    ]
    await reader.http.aclose()


async def test_a_service_account_has_the_rights_that_are_bound_to_it(
    api: KubeApi, admin: Any, speaker: Any
) -> None:
    await admin.ask("POST", ACCOUNTS, {"metadata": {"name": "robot"}})
    role = {
        "metadata": {"name": "look"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}],
    }
    binding = {
        "metadata": {"name": "look"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "here"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "look"},
    }
    assert (await admin.ask("POST", f"{RBAC}/namespaces/here/roles", role)).status_code == 201
    assert (await admin.ask("POST", f"{RBAC}/namespaces/here/rolebindings", binding)).status_code == 201
    short = await admin.ask("POST", f"{ACCOUNTS}/robot/token", {"spec": {"expirationSeconds": 10}})
    assert (short.status_code, short.json()["reason"]) == (422, "Invalid")
    issued = await admin.ask("POST", f"{ACCOUNTS}/robot/token", {"spec": {"expirationSeconds": 600}})
    robot = speaker(api, issued.json()["status"]["token"])
    assert (await robot.ask("GET", MAPS)).status_code == 200
    assert (await robot.ask("GET", "/api/v1/namespaces/default/configmaps")).status_code == 403
    # Nobody grants what they do not have.
    greedy = {
        "metadata": {"name": "more"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}],
    }
    api.store.edit(
        "Role",
        "look",
        "here",
        lambda found: found["rules"].append(
            {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["create"]}
        ),
    )
    refused = await robot.ask("POST", f"{RBAC}/namespaces/here/roles", greedy)
    assert (refused.status_code, "attempting to grant" in refused.json()["message"]) == (403, True)
    await admin.ask("DELETE", f"{ACCOUNTS}/robot")
    assert (await robot.ask("GET", MAPS)).status_code == 401
    await robot.http.aclose()


async def test_discovery_tells_what_there_is(admin: Any) -> None:
    assert (await admin.ask("GET", "/version")).json()["gitVersion"].startswith("v1.")
    groups = {each["name"] for each in (await admin.ask("GET", "/apis")).json()["groups"]}
    assert {"apps", "serving.kserve.io", "networking.k8s.io"} <= groups
    listed = (await admin.ask("GET", "/apis/serving.kserve.io/v1beta1")).json()["resources"]
    assert {each["name"] for each in listed} == {"inferenceservices", "inferenceservices/status"}
    assert (await admin.ask("GET", "/apis/example.com/v1/things")).status_code == 404


async def test_a_cluster_without_kserve_has_none_of_it(speaker: Any) -> None:
    async with KubeApi(kserve=False) as api:
        client = speaker(api, "token-of-admin")
        assert (await client.ask("GET", "/apis/serving.kserve.io/v1beta1")).status_code == 404
        await client.http.aclose()


async def test_custom_resources_come_with_their_definition(admin: Any) -> None:
    size = {"type": "integer", "default": 3}
    schema = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": {"size": size}, "required": ["size"]}},
    }
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"kind": "Thing", "plural": "things"},
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
            ],
        },
    }
    assert (
        await admin.ask("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
    ).status_code == 201
    things = "/apis/example.com/v1/namespaces/here/things"
    body = {
        "apiVersion": "example.com/v1",
        "kind": "Thing",
        "metadata": {"name": "a"},
        "spec": {"colour": "red"},
    }
    made = await admin.ask("POST", things, body)
    assert (made.status_code, made.json()["spec"]) == (201, {"size": 3})


async def test_the_kubeconfig_leads_here(api: KubeApi, tmp_path: Path) -> None:
    path = api.kubeconfig(tmp_path / "config", namespace="here")
    said = yaml.safe_load(path.read_text())
    assert said["clusters"][0]["cluster"]["server"] == api.url
    assert said["users"][0]["user"]["token"] == "token-of-admin"
    assert said["contexts"][0]["context"]["namespace"] == "here"


async def test_it_speaks_tls_and_knows_users_by_their_certificates(tmp_path: Path) -> None:
    async with KubeApi(tls=True) as api:
        said = yaml.safe_load(api.kubeconfig(tmp_path / "config", by_certificate=True).read_text())
        both = tmp_path / "admin.pem"
        user = said["users"][0]["user"]
        both.write_bytes(
            b"".join(base64.b64decode(user[key]) for key in ("client-certificate-data", "client-key-data"))
        )
        trusted = ssl.create_default_context(
            cadata=base64.b64decode(said["clusters"][0]["cluster"]["certificate-authority-data"]).decode()
        )
        async with httpx.AsyncClient(base_url=api.url, verify=trusted) as nobody:
            assert (await nobody.get("/api/v1/namespaces")).status_code == 401
        trusted.load_cert_chain(both)
        async with httpx.AsyncClient(base_url=api.url, verify=trusted) as somebody:
            assert (await somebody.get("/api/v1/namespaces")).status_code == 200
        async with httpx.AsyncClient(base_url=api.url) as distrustful:
            with pytest.raises(httpx.ConnectError):
                await distrustful.get("/version")
        assert [each.user for each in api.requests] == ["", "admin"]


async def test_it_runs_as_a_process_for_suites_that_take_a_kubeconfig(tmp_path: Path) -> None:
    path = tmp_path / "config"
    support = Path(kube_api.__file__).parents[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "kube_api",
        "--kubeconfig",
        str(path),
        cwd=support,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    said = yaml.safe_load(path.read_text())
    headers = {"authorization": f"Bearer {said['users'][0]['user']['token']}"}
    async with httpx.AsyncClient(base_url=said["clusters"][0]["cluster"]["server"], headers=headers) as http:
        assert len((await http.get("/api/v1/nodes")).json()["items"]) == 1
    process.terminate()
    assert await process.wait() == 0


async def test_a_watcher_that_leaves_is_noticed(api: KubeApi, admin: Any) -> None:
    async with admin.http.stream("GET", MAPS, params={"watch": "1"}) as answer:
        await anext(answer.aiter_lines())
        assert api.watches == 1
    async with asyncio.timeout(5):
        while api.watches:  # noqa: ASYNC110 - the server learns of it by itself
            await asyncio.sleep(0.005)


async def test_a_connection_lasts_beyond_a_watch_that_ended(admin: Any) -> None:
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(
        base_url=admin.http.base_url, headers=admin.http.headers, limits=limits
    ) as http:
        first = await http.get(MAPS, params={"watch": "1", "timeoutSeconds": "0"})
        assert first.status_code == 200
        assert (await http.get(MAPS)).status_code == 200


async def test_the_log_tells_who_did_what(api: KubeApi, admin: Any) -> None:
    await admin.ask("POST", MAPS, config("a"))
    await admin.apply(f"{MAPS}/a", config("a"))
    await admin.ask("GET", MAPS)
    assert [(each.verb, each.resource, each.name, each.status) for each in api.requests] == [
        ("create", "configmaps", "a", 201),
        ("apply", "configmaps", "a", 200),
        ("list", "configmaps", "", 200),
    ]
    first = api.requests.all[0]
    assert (first.user, first.user_agent, first.namespace, first.body["kind"]) == (
        "admin",
        "tester/1.0",
        "here",
        "ConfigMap",
    )
    assert api.requests.count(verb="create", resource="configmaps") == 1


# -- faults -------------------------------------------------------------------------------------------


async def test_too_many_requests_say_when_to_come_again(api: KubeApi, admin: Any) -> None:
    api.faults.too_many(retry_after_s=7, times=1)
    answer = await admin.ask("GET", MAPS)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert (await admin.ask("GET", MAPS)).status_code == 200


async def test_half_of_the_requests_fail(api: KubeApi, admin: Any) -> None:
    api.faults.half()
    seen = [(await admin.ask("GET", MAPS)).status_code for _ in range(4)]
    assert seen == [200, 500, 200, 500]
    api.faults.clear()
    assert [(await admin.ask("GET", MAPS)).status_code for _ in range(2)] == [200, 200]


async def test_a_fault_can_concern_some_requests_only(api: KubeApi, admin: Any) -> None:
    api.faults.error(503, when=lambda each: each.verb == "create")
    assert (await admin.ask("GET", MAPS)).status_code == 200
    assert (await admin.ask("POST", MAPS, config("a"))).status_code == 503
    assert api.store.get("ConfigMap", "a", "here") is None


async def test_a_write_whose_answer_is_lost_is_done(api: KubeApi, admin: Any) -> None:
    api.faults.lose_answer(when=lambda each: each.verb == "create")
    with pytest.raises(httpx.TransportError):
        await admin.ask("POST", MAPS, config("a"))
    assert api.store.get("ConfigMap", "a", "here") is not None
    assert (await admin.ask("POST", MAPS, config("a"))).json()["reason"] == "AlreadyExists"


async def test_an_answer_that_never_comes(api: KubeApi, admin: Any) -> None:
    api.faults.hang(times=1)
    with pytest.raises(httpx.ReadTimeout):
        await admin.http.get(MAPS, timeout=0.05)
    assert (await admin.ask("GET", MAPS)).status_code == 200


async def test_away_refuses_connections_until_it_is_back_at_the_same_address(
    api: KubeApi, admin: Any
) -> None:
    url = api.url
    await admin.ask("GET", MAPS)
    api.faults.away()
    for _ in range(2):
        with pytest.raises(httpx.TransportError):
            await admin.ask("GET", MAPS)
    async with httpx.AsyncClient() as stranger:
        with pytest.raises(httpx.ConnectError):
            await stranger.get(f"{url}/version")
    await api.faults.back()
    assert (await admin.ask("GET", MAPS)).status_code == 200
    assert api.url == url


@pytest.mark.parametrize("mid_line", [True, False])
async def test_watches_are_cut_at_any_moment(api: KubeApi, admin: Any, mid_line: bool) -> None:
    async def watch() -> None:
        async with admin.http.stream("GET", MAPS, params={"watch": "1"}) as answer:
            async for _ in answer.aiter_lines():
                pass

    task = asyncio.create_task(watch())
    async with asyncio.timeout(5):
        while not api.watches:  # noqa: ASYNC110 - the watch arrives by itself
            await asyncio.sleep(0.005)
    assert api.faults.cut_watches(mid_line=mid_line) == 1
    with pytest.raises(httpx.TransportError):
        await task


async def test_a_slow_answer_comes(api: KubeApi, admin: Any) -> None:
    api.faults.slow(0.01, times=1)
    assert (await admin.ask("GET", MAPS)).status_code == 200


async def test_logs_of_containers_are_answered_in_the_kubelets_words(api: KubeApi, admin: Any) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "here"},
        "spec": {"containers": [{"name": "server"}]},
        "status": {"containerStatuses": [{"name": "server", "state": {"running": {}}, "lastState": {}}]},
    }
    api.store.put(pod)
    api.set_log("here", "p", "server", "one\ntwo\nthree\n")
    path = "/api/v1/namespaces/here/pods/p/log"
    assert (await admin.ask("GET", path, tailLines="2")).text == "two\nthree\n"
    before = await admin.ask("GET", path, previous="true")
    assert before.json()["message"] == 'previous terminated container "server" in pod "p" not found'
    unknown = await admin.ask("GET", path, container="other")
    assert unknown.json()["message"] == "container other is not valid for pod p"
    async with admin.http.stream("GET", path, params={"follow": "true"}) as answer:
        lines = answer.aiter_lines()
        assert [await anext(lines) for _ in range(3)] == ["one", "two", "three"]
        api.logs.append("here", "p", "server", "four\n")
        assert await anext(lines) == "four"


def test_it_runs_on_a_thread_for_tests_that_do_not_await() -> None:
    with ApiInThread() as there:
        headers = {"authorization": "Bearer token-of-admin"}
        assert httpx.get(f"{there.api.url}/api/v1/namespaces/default", headers=headers).status_code == 200
        assert there.call(lambda: there.api.requests.count(verb="get")) == 1
