"""Keys, limits and usage with everything real: what the platform promises, Envoy keeps, and the log counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import jwt

from platform_stack import Stack, wait_for

ROW = [5.1, 3.5, 1.4, 0.2]


def made(stack: Stack, **more: Any) -> tuple[str, str]:
    """A key's value and id."""
    body = {"workspace": "default", "name": "app", "validity": "1d", **more}
    status, answer = stack.request("POST", "endpoint-key", body)
    assert status == 200, answer
    return answer["data"]["endpointKey"], answer["data"]["keyId"]


def create(stack: Stack, name: str, model: Path, **more: Any) -> None:
    body = {
        "endpointName": name,
        "workspace": "default",
        "modelSpec": {"modelName": "sklearn", "storageURI": str(model)},
        **more,
    }
    status, answer = stack.request("POST", "inference-endpoint", body)
    assert status == 200, answer


def ask(stack: Stack, name: str, key: str = "", rows: int = 1) -> httpx.Response:
    url = f"{stack.gateway}/serving/default/{name}/v1/models/{name}:predict"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.post(url, json={"instances": [ROW] * rows}, headers=headers, timeout=30)


def refused(answer: httpx.Response, status: int, reason: str) -> None:
    assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.json()["error"].split()) > 4, "a sentence"


def test_keys_limits_and_usage(stack: Stack, iris_model: Path) -> None:
    create(stack, "open", iris_model)
    create(stack, "guarded", iris_model, access="key")
    create(stack, "other", iris_model, access="key")
    create(stack, "slow", iris_model, limits={"requestsPerSecond": 0.05, "burst": 2})
    for name in ("open", "guarded", "other", "slow"):
        stack.wait_until(name, "Running")
    assert any(
        "$INFERPLANE_ENDPOINT_KEY" in line for line in stack.wait_until("guarded", "Running")["tryCommand"]
    )

    one, one_id = made(stack, endpoints=["guarded"])
    every, every_id = made(stack)
    foreign, _ = made(stack, endpoints=["other"])
    short, _ = made(stack, validity="1s")
    api_key = (stack.home / "owner.key").read_text().strip()

    # Who gets in.
    assert ask(stack, "open").status_code == 200
    assert ask(stack, "guarded", one, rows=3).status_code == 200
    assert ask(stack, "guarded", every, rows=2).status_code == 200
    assert ask(stack, "other", every).status_code == 200
    refused(ask(stack, "guarded"), 401, "KeyRequired")
    refused(ask(stack, "guarded", "nonsense"), 401, "KeyRequired")
    refused(ask(stack, "guarded", api_key), 401, "KeyRequired")
    refused(ask(stack, "guarded", foreign), 403, "KeyRefused")
    refused(ask(stack, "other", one), 403, "KeyRefused")
    wait_for(lambda: ask(stack, "guarded", short).status_code == 401, "the short key to end")

    # An endpoint key opens nothing but endpoints.
    answer = httpx.get(
        f"{stack.api}/api/v1/inference-endpoint/list", headers={"Authorization": f"Bearer {one}"}, timeout=30
    )
    assert answer.status_code == 401
    assert "endpoint key" in answer.json()["message"]

    # Limits.
    answers = [ask(stack, "slow") for _ in range(4)]
    assert [each.status_code for each in answers] == [200, 200, 429, 429]
    refused(answers[-1], 429, "RateLimited")
    assert int(answers[-1].headers["retry-after"]) >= 1

    # Revoked, and still so after a kill -9 of the control plane.
    status, _ = stack.request("DELETE", "endpoint-key", {"keyId": one_id})
    assert status == 200
    wait_for(lambda: ask(stack, "guarded", one).status_code == 403, "the revocation to be in force", 5)
    assert ask(stack, "guarded", every).status_code == 200

    def usage(endpoint: str) -> dict[str, dict[str, int]]:
        status, answer = stack.request("GET", "usage", workspace="default", endpoint=endpoint)
        assert status == 200, answer
        found: dict[str, dict[str, int]] = {}
        for item in answer["data"]["items"]:
            known = found.setdefault(item["keyId"], {"requests": 0, "errors": 0, "rows": 0})
            for name in known:
                known[name] += item[name]
        return found

    assert wait_for(lambda: usage("slow").get("", {}).get("requests") == 4, "usage to be counted")
    assert usage("slow") == {"": {"requests": 4, "errors": 2, "rows": 2}}
    stack.kill()
    for _ in range(5):
        assert ask(stack, "guarded", every, rows=4).status_code == 200, "the gateway goes on by itself"
    stack.restart()
    refused(ask(stack, "guarded", one), 403, "KeyRefused")
    expected = {"requests": 7, "errors": 0, "rows": 2 + 1 + 5 * 4}
    wait_for(lambda: usage("guarded").get(every_id, {}).get("requests") == 7, "usage to go on")
    assert usage("guarded")[every_id] == expected
    assert usage("guarded")[one_id]["rows"] == 3
    assert usage("open")[""] == {"requests": 1, "errors": 0, "rows": 1}

    # Nothing of a key is anywhere on disk.
    secret = one.rpartition(".")[2].encode()
    assert not [
        path
        for path in stack.home.rglob("*")
        if path.is_file() and path.stat().st_size < 64 << 20 and secret in path.read_bytes()
    ]
    key_file = stack.home / "endpoint-signing-key.pem"
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in stack.gateway_files()
    assert jwt.get_unverified_header(one)["alg"] == "ES256"


def test_access_is_key_where_the_gateway_is_open_to_others(home: Path, iris_model: Path) -> None:
    stack = Stack(home, {"INFERPLANE_GATEWAY_HOST": "0.0.0.0"})
    try:
        stack.start()
        status, answer = stack.request(
            "POST",
            "inference-endpoint",
            {
                "endpointName": "iris",
                "workspace": "default",
                "modelSpec": {"modelName": "sklearn", "storageURI": str(iris_model)},
            },
        )
        assert (status, answer["data"]["access"]) == (200, "key")
        assert "POST /endpoint-key" in answer["data"]["warnings"][0]
        stack.wait_until("iris", "Running")
        refused(ask(stack, "iris"), 401, "KeyRequired")
        assert ask(stack, "iris", made(stack)[0]).status_code == 200
        assert stack.stop() == 0
    finally:
        for process in stack.processes():
            process.kill()
