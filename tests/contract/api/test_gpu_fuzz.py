"""Requests about GPUs that are nearly right: an envelope, never a 500, and nothing stored half."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api_world import checked
from gpu_world import A100, A100_TYPE, BIG, BIG_TYPE, FIRST, SECOND, GpuWorld

WORDS = st.sampled_from(
    [
        FIRST,
        SECOND,
        "local",
        "",
        "nowhere",
        A100,
        BIG,
        A100_TYPE,
        BIG_TYPE,
        "1h",
        "0m",
        "5d",
        "\x00",
        "x" * 300,
        "low",
        "1-200",
        "1M",
        "None",
        "ü",
        "a\nb",
        "../..",
        "%2e",
        "1e999",
    ]
)
NUMBERS = st.one_of(
    st.integers(-2, 9), st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**30, 1.5, 1e308, 299, 300])
)
VALUES = st.one_of(
    st.none(), st.booleans(), NUMBERS, WORDS, st.lists(WORDS, max_size=3), st.just({}), st.just([{}])
)
GPR = {
    "gprName": "g",
    "sliceName": "fuzzed",
    "clusterName": FIRST,
    "preferredClusters": None,
    "enableAutoClusterSelection": None,
    "enableAutoGpuSelection": None,
    "numberOfGPUs": 1,
    "numberOfGPUNodes": 1,
    "instanceType": A100_TYPE,
    "gpuShape": A100,
    "memoryPerGPU": 80,
    "exitDuration": "1h",
    "priority": None,
    "idleTimeOutDuration": None,
    "enforceIdleTimeOut": None,
    "enableEviction": None,
    "requeueOnFailure": None,
    "multiNode": None,
    "requestName": None,
}
TEMPLATE = {
    "name": "t",
    "clusterName": FIRST,
    "numberOfGPUs": 1,
    "numberOfGPUNodes": 1,
    "memoryPerGpu": 80,
    "gpuShape": A100,
    "instanceType": A100_TYPE,
    "exitDuration": "1h",
    "priority": 7,
    "enforceIdleTimeOut": False,
    "idleTimeOutDuration": None,
    "enableEviction": None,
}
BOUND = [{"clusterName": FIRST, "defaultTemplateName": "t", "templates": ["t"]}]
POLICY = dict.fromkeys(
    [
        "priorityRange",
        "maxGPRs",
        "maxQueuedGPRs",
        "maxExitDurationPerGPR",
        "requeueOnFailure",
        "enableAutoEviction",
        "enforceIdleTimeOut",
        "globalGPUConstraints",
        "gpuShapes",
        "maxGpuPerGpr",
        "maxMemoryPerGpr",
        "maxInferenceEndpoints",
    ]
)
ENDPOINT = {
    "endpointName": "e",
    "workspace": "fuzzed",
    "clusterName": None,
    "clusterPrecedence": [FIRST, SECOND],
    "modelSpec": {"modelName": "sklearn", "storageURI": "/m.joblib"},
    "gpuSpec": {
        key: value for key, value in GPR.items() if key not in ("gprName", "sliceName", "clusterName")
    },
}
CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/api/v1/gpr", GPR),
    ("POST", "/api/v1/gpr/waittime", GPR),
    ("PUT", "/api/v1/gpr", {"gprId": "gpr", "priority": 7, "gprName": "n", "exitDuration": "2h"}),
    ("DELETE", "/api/v1/gpr", {"gprId": "gpr"}),
    ("POST", "/api/v1/gpr-template", TEMPLATE),
    ("PUT", "/api/v1/gpr-template", TEMPLATE),
    ("DELETE", "/api/v1/gpr-template", {"gprTemplateName": "t"}),
    ("POST", "/api/v1/gpr-template-binding", {"workspaceName": "fuzzed", "clusters": BOUND}),
    ("PUT", "/api/v1/gpr-template-binding", {"workspaceName": "fuzzed", "clusters": BOUND}),
    ("PUT", "/api/v1/workspace-policies/fuzzed", POLICY),
    ("POST", "/api/v1/inference-endpoint?dryRun=true", ENDPOINT),
    ("POST", "/api/v1/inference-endpoint", ENDPOINT),
    ("POST", "/api/v1/cluster", {"name": FIRST, "engine": "simulated", "domain": ""}),
]
QUERIES = [
    *("/api/v1/gpr", "/api/v1/gpr/list", "/api/v1/inventory", "/api/v1/inventory/list", "/api/v1/audit"),
    *("/api/v1/gpr-template", "/api/v1/gpr-template/list", "/api/v1/gpr-template-binding"),
    *("/api/v1/workspace-policies", "/api/v1/workspace-policies/fuzzed", "/api/v1/workspace-policies/ü%00"),
]


def test_nearly_right_bodies_get_an_envelope(gpus: GpuWorld) -> None:
    token = gpus.owner.token()
    body = {"workspaceName": "fuzzed", "clusters": [FIRST, SECOND, "local"], "namespaces": []}
    gpus.owner("POST", "/api/v1/slice-workspace", {**body, "username": "", "email": ""}).ok()
    known = [gpus.ask("fuzzed") for _ in range(2)]

    @settings(
        max_examples=400,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(data=st.data())
    def fuzz(data: st.DataObject) -> None:
        method, path, whole = data.draw(st.sampled_from(CALLS))
        nested = data.draw(st.booleans()) and isinstance(whole.get("gpuSpec"), dict)
        part = dict(whole["gpuSpec"]) if nested else dict(whole)
        for key in data.draw(st.lists(st.sampled_from(sorted(part)), max_size=3)):
            part[key] = data.draw(VALUES)
        sent = {**whole, "gpuSpec": part} if nested else part
        if sent.get("gprId") == "gpr":
            sent["gprId"] = data.draw(st.sampled_from(known))
        response = gpus.http.request(
            method,
            path,
            content=json.dumps(sent).encode(),
            headers={"Authorization": f"Bearer {token}"},
        )
        assert checked(response).status != 500, (method, path, sent, response.text)

    fuzz()
    # Whatever was let in can be shown.
    for place in QUERIES[:-1]:
        reply = gpus.owner(
            "GET", f"{place}?gprId={known[0]}&sliceName=fuzzed&gprTemplateName=t&workspace=fuzzed"
        )
        assert reply.status in {200, 404}
    gpus.owner("GET", "/api/v1/inference-endpoint/list?workspace=fuzzed").ok()


def test_any_query_gets_an_envelope(gpus: GpuWorld) -> None:
    token = gpus.owner.token()
    names = ["gprId", "sliceName", "gprTemplateName", "gprTemplateBindingName", "workspace", "since", "until"]

    @settings(
        max_examples=200,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(
        path=st.sampled_from(QUERIES),
        query=st.dictionaries(
            st.sampled_from([*names, "after", "limit", "kind", "actor"]), WORDS, max_size=4
        ),
    )
    def fuzz(path: str, query: dict[str, str]) -> None:
        response = gpus.http.get(path, params=query, headers={"Authorization": f"Bearer {token}"})
        assert checked(response).status != 500, (path, query, response.text)

    fuzz()
