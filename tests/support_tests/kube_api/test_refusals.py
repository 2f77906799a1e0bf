"""What is refused, in the words of the real one where those were recorded."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube_api import SHARED, KubeApi, needs_recordings
from kube_api.recordings import answer, kserve_data

pytestmark = needs_recordings
ISVCS = "/apis/serving.kserve.io/v1beta1/namespaces/rejected/inferenceservices"


def sent(name: str) -> Any:
    """What was sent to the real one."""
    return yaml.safe_load((kserve_data() / "recordings" / f"{name}.yaml").read_text())


def named(kind: str) -> list[str]:
    """The recorded answers whose manifest is there and is of one object."""
    if SHARED is None:
        return []
    folder = Path(kserve_data() / "recordings")
    return sorted(
        path.name.removesuffix(f".{kind}.json")
        for path in folder.glob(f"*.{kind}.json")
        if (manifest := folder / path.name.replace(f".{kind}.json", ".yaml")).exists()
        and "\n---\n" not in manifest.read_text()
    )


@pytest.fixture
async def rejected(api: KubeApi) -> KubeApi:
    api.store.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "rejected"}})
    return api


@pytest.mark.parametrize("name", named("rejected"))
async def test_what_the_real_one_refuses_is_refused_alike(rejected: KubeApi, admin: Any, name: str) -> None:
    recorded, body = answer(f"{name}.rejected"), sent(name)
    query = {"fieldValidation": "Strict"} if name.endswith("-strict") else {}
    if name == "reject-already-exists":
        assert (await admin.ask("POST", ISVCS, body)).status_code == 201
    got = await admin.ask("POST", ISVCS, body, **query)
    assert (got.status_code, got.json()) == (recorded["httpStatus"], recorded["body"])


@pytest.mark.parametrize("name", named("accepted"))
async def test_what_the_real_one_accepts_is_kept_alike(rejected: KubeApi, admin: Any, name: str) -> None:
    recorded = answer(f"{name}.accepted")
    got = await admin.ask("POST", ISVCS, sent(name))
    assert (got.status_code, got.headers.get("warning")) == (recorded["httpStatus"], recorded["warning"])
    body, expected = got.json(), copy.deepcopy(recorded["body"])
    for each in (body, expected):
        for key in ("uid", "resourceVersion", "creationTimestamp", "managedFields"):
            each["metadata"].pop(key, None)
    assert body == expected


async def test_other_recorded_answers(rejected: KubeApi, admin: Any) -> None:
    body = sent("reject-already-exists")
    made = (await admin.ask("POST", ISVCS, body)).json()
    name = made["metadata"]["name"]

    def alike(got: Any, recorded: str) -> None:
        said = answer(f"{recorded}.rejected")
        assert (got.status_code, got.json()) == (said["httpStatus"], said["body"])

    alike(await admin.ask("GET", f"{ISVCS}/nope"), "not-found")
    await admin.merge(f"{ISVCS}/{name}", {"metadata": {"labels": {"a": "b"}}})
    alike(await admin.ask("PUT", f"{ISVCS}/{name}", made), "reject-update-conflict")
    elsewhere = copy.deepcopy(body)
    elsewhere["metadata"].pop("namespace", None)
    place = ISVCS.replace("rejected", "no-such-namespace")
    alike(await admin.ask("POST", place, elsewhere), "reject-namespace-missing")
    mode = {"metadata": {"annotations": {"serving.kserve.io/deploymentMode": "Knative"}}}
    alike(await admin.merge(f"{ISVCS}/{name}", mode), "reject-deployment-mode-change")
    torn = await admin.http.post(
        ISVCS,
        content=b'{"apiVersion":"serving.kserve.io/v1beta1","kind":',
        headers={"content-type": "application/json"},
    )
    alike(torn, "reject-malformed-json")
    stranger = await admin.http.get(ISVCS, headers={"authorization": "Bearer nonsense"})
    alike(stranger, "unauthorized")


async def test_without_webhooks_wrong_types_are_the_schemas_to_refuse(speaker: Any) -> None:
    async with KubeApi(webhooks=False) as api:
        api.store.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "rejected"}})
        client = speaker(api, "token-of-admin")
        got = await client.ask("POST", ISVCS, sent("reject-field-type"))
        assert (got.status_code, got.json()["reason"]) == (422, "Invalid")
        assert got.json()["details"]["causes"] == [
            {
                "reason": "FieldValueTypeInvalid",
                "message": 'Invalid value: "string": spec.predictor.minReplicas in body must be of type integer: "string"',
                "field": "spec.predictor.minReplicas",
            }
        ]
        await client.http.aclose()


async def test_an_apply_of_what_the_schema_does_not_know_is_an_error_of_its_own(
    rejected: KubeApi, admin: Any
) -> None:
    body = sent("warn-unknown-field")
    got = await admin.apply(f"{ISVCS}/demo", body)
    assert (got.status_code, "reason" in got.json()) == (500, False)
    assert got.json()["message"] == (
        "failed to create typed patch object (rejected/demo; serving.kserve.io/v1beta1, Kind=InferenceService): "
        ".spec.predictor.model.storageURI: field not declared in schema"
    )


async def test_ports_of_containers_get_their_default_and_shared_lists_their_keys(
    rejected: KubeApi, admin: Any
) -> None:
    container = {"name": "kserve-container", "image": "a:1", "ports": [{"containerPort": 8080}]}
    body = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "own"},
        "spec": {"predictor": {"containers": [container]}},
    }
    first = await admin.apply(f"{ISVCS}/own", body)
    assert first.json()["spec"]["predictor"]["containers"][0]["ports"] == [
        {"containerPort": 8080, "protocol": "TCP"}
    ]
    again = await admin.apply(f"{ISVCS}/own", body)
    assert again.json()["metadata"]["resourceVersion"] == first.json()["metadata"]["resourceVersion"]


@pytest.mark.parametrize(
    ("metadata", "status"),
    [
        ({"name": "a", "labels": {"a": "b c"}}, 422),
        ({"name": "a", "labels": {"a": "x" * 64}}, 422),
        ({"name": "a", "labels": {"a": 1}}, 400),
        ({"name": "a", "annotations": {"a/b/c": "x"}}, 422),
        ({"name": "A"}, 422),
        ({}, 422),
    ],
)
async def test_metadata_is_checked(admin: Any, metadata: Any, status: int) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    assert (await admin.ask("POST", "/api/v1/namespaces/here/configmaps", body)).status_code == status


async def test_secrets_are_base64(admin: Any) -> None:
    secrets = "/api/v1/namespaces/here/secrets"
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "stringData": {"key": "word"}}
    assert (await admin.ask("POST", secrets, body)).json()["data"] == {"key": "d29yZA=="}
    bad = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "b"}, "data": {"key": "not base64!"}}
    assert (await admin.ask("POST", secrets, bad)).status_code == 400
    unknown = {**body, "metadata": {"name": "c"}, "dta": {}}
    assert (await admin.ask("POST", secrets, unknown)).headers["warning"] == '299 - "unknown field \\"dta\\""'
    wrong = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "d"}, "data": ["x"]}
    assert (await admin.ask("POST", secrets, wrong)).status_code == 400
