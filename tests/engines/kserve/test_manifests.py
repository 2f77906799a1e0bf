"""What an endpoint is made of on a cluster: golden files, and what must hold for each of them.

A case is a function below and `tests/golden/kserve/manifests/<case>.yaml`. After a change that is meant, write
the files anew with `REGENERATE_GOLDEN=1`, and review them as what they are: what is said to a cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_world import endpoint
from inferplane.domain.endpoint import EndpointSpec, InferenceEndpoint, ModelSpec, Resources, Scaling
from inferplane.domain.manifest import model_from_isvc
from inferplane.engines.kserve import manifests
from inferplane.engines.kserve.manifests import Gpus, Manifest

GOLDEN = Path(__file__).parents[2] / "golden" / "kserve" / "manifests"
LIMITS = Resources(cpu_millis=1500, memory_bytes=2 * 2**30)


def iris(**model: Any) -> InferenceEndpoint:
    """A small endpoint of a modelSpec."""
    spec = ModelSpec("sklearn", "s3://models/iris/model.joblib", resources=LIMITS)
    one = endpoint(model={"args": (), **model})
    return replace(
        one,
        name="iris",
        namespace="team-a-iris-x7k2m9",
        workspace="team-a",
        spec=EndpointSpec(replace(spec, **model), scaling=Scaling(1, 3)),
    )


def raw(text: str) -> InferenceEndpoint:
    """An endpoint of a manifest."""
    parsed = model_from_isvc(yaml.safe_load(text), endpoint_name="iris")
    spec = EndpointSpec(parsed.model, scaling=parsed.scaling, limits=parsed.limits, manifest=parsed.completed)
    return replace(iris(), spec=spec)


def whole(one: InferenceEndpoint, secret: Mapping[str, str] | None = None, gpus: Gpus = ()) -> list[Manifest]:
    """Everything that is said of an endpoint, in order."""
    secrets = manifests.secrets(one, secret or {})
    return [
        manifests.namespace(one),
        *secrets,
        manifests.service_account(one, secrets),
        manifests.inference_service(one, gpus),
    ]


def s3_with_an_endpoint_of_its_own() -> list[Manifest]:
    secret = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": "http://minio.example.com:9000",
        "AWS_REGION": "eu-west-1",
        "DATABASE_PASSWORD": "of no storage, so it goes nowhere",
    }
    return whole(iris(), secret)


def several_kinds_of_storage() -> list[Manifest]:
    secret = {
        "awsAnonymousCredential": "true",
        "GOOGLE_SERVICE_ACCOUNT": '{"client_email": "a@example.com"}',
        "HF_TOKEN": "hf_token",
        "HTTP_USERNAME": "user",
        "HTTP_PASSWORD": "password",
        "AZ_CLIENT_ID": "client",
    }
    return whole(iris(storage_uri="https://models.example.com/iris.joblib"), secret)


def model_with_everything() -> list[Manifest]:
    one = iris(
        format_version="1",
        runtime="kserve-mlserver",
        protocol_version="v2",
        args=("--workers=2",),
        env=(("OMP_NUM_THREADS", "2"), ("EMPTY", "")),
        resources=Resources(250, 300 * 2**20),
    )
    return whole(one)


def gpus_of_two_machines() -> list[Manifest]:
    one = iris(format="huggingface", storage_uri="hf://owner/repo", resources=Resources())
    one = replace(one, spec=replace(one.spec, scaling=Scaling(2, 2)))
    return whole(one, gpus=(("gpu-1", (0, 1)), ("gpu-2", (2, 3))))


def part_of_a_gpu() -> list[Manifest]:
    one = replace(iris(), spec=replace(iris().spec, scaling=Scaling(1, 1)))
    return whole(one, gpus=(("gpu-1/mig-1g.10gb", (0,)),))


def container_of_ones_own() -> list[Manifest]:
    return whole(
        raw(
            """
            metadata: {name: iris, labels: {team: vision}, annotations: {note: "keep"}}
            spec:
              predictor:
                minReplicas: 2
                containers:
                - name: kserve-container
                  image: registry.example.com/server:1
                  command: [serve]
                  ports: [{containerPort: 8080}]
                  env: [{name: TOKEN, valueFrom: {secretKeyRef: {name: t, key: t}}}]
            """
        )
    )


def manifest_with_its_own_place() -> list[Manifest]:
    one = raw(
        """
        spec:
          predictor:
            canaryTrafficPercent: 10
            serviceAccountName: theirs
            timeout: 120
            tolerations: [{key: team, operator: Exists}]
            affinity:
              nodeAffinity:
                requiredDuringSchedulingIgnoredDuringExecution:
                  nodeSelectorTerms:
                  - matchExpressions: [{key: zone, operator: In, values: [a]}]
            sklearn:
              storageURI: gs://models/iris
              resources: {limits: {cpu: "1", memory: 1Gi, nvidia.com/gpu: "2"}}
        """
    )
    return whole(one, gpus=(("gpu-1", (0, 1, 2, 3)),))


def earlier_revision_of_a_manifest() -> list[Manifest]:
    one = raw(
        """
        spec:
          predictor:
            nodeSelector: {disk: fast}
            model:
              modelFormat: {name: sklearn}
              storageUri: gs://models/iris/2
              args: [--new]
              env: [{name: A, value: "2"}, {name: T, valueFrom: {secretKeyRef: {name: t, key: t}}}]
        """
    )
    earlier = replace(one.spec.model, storage_uri="gs://models/iris/1", args=(), env=(("A", "1"),))
    return whole(replace(one, spec=replace(one.spec, model=earlier, revision=3)))


CASES: dict[str, Callable[[], list[Manifest]]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        s3_with_an_endpoint_of_its_own,
        several_kinds_of_storage,
        model_with_everything,
        gpus_of_two_machines,
        part_of_a_gpu,
        container_of_ones_own,
        manifest_with_its_own_place,
        earlier_revision_of_a_manifest,
    )
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_golden(case: str) -> None:
    said = yaml.safe_dump_all(CASES[case](), sort_keys=False, width=110)
    path = GOLDEN / f"{case}.yaml"
    if os.environ.get("REGENERATE_GOLDEN"):
        path.write_text(said)
    assert list(yaml.safe_load_all(path.read_text())) == list(yaml.safe_load_all(said))


@pytest.mark.parametrize("case", sorted(CASES))
def test_everything_is_labelled_as_ours_and_lies_in_the_endpoints_namespace(case: str) -> None:
    for each in CASES[case]():
        labels = each["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "inferplane"
        assert labels["inferplane.io/endpoint"] == "0123456789ab"
        assert labels["inferplane.io/workspace"] == "team-a"
        place = each["metadata"]["name" if each["kind"] == "Namespace" else "namespace"]
        assert place == "team-a-iris-x7k2m9"


def test_every_golden_file_has_a_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(CASES)


def test_a_secret_of_no_storage_goes_nowhere() -> None:
    assert "goes nowhere" not in str(s3_with_an_endpoint_of_its_own())
    assert manifests.secrets(iris(), {"PASSWORD": "x", "HF_TOKEN": ""}) == []


def test_a_small_limit_is_also_the_request() -> None:
    resources = model_with_everything()[-1]["spec"]["predictor"]["model"]["resources"]
    assert resources["requests"] == resources["limits"] == {"cpu": "250m", "memory": "300Mi"}


@pytest.mark.parametrize(
    ("name", "namespace", "called"),
    [
        ("iris", "team-a-iris-x7k2m9", "iris"),
        ("2nd-model", "team-a-2nd-model-x7k2m9", "e-2nd-model"),
        ("a" * 50, "team-a-" + "a" * 12 + "-x7k2m9", "a" * 19 + "-"),
        ("a" * 63, "w" * 43 + "-" + "a" * 12 + "-x7k2m9", "a" * 5 + "-"),
    ],
)
def test_a_name_of_which_kserve_can_make_hosts(name: str, namespace: str, called: str) -> None:
    one = replace(iris(), name=name, namespace=namespace)
    found = manifests.service_name(one)
    assert found.startswith(called)
    assert found == manifests.service_name(one)
    assert found[0].isalpha()
    assert len(f"{found}-predictor-{namespace}") <= 63 or len(found) <= manifests.NAME_CHARACTERS_MIN


def test_nothing_that_changes_by_itself_stands_on_the_inference_service() -> None:
    one = iris()
    later = replace(one, generation=9, spec=replace(one.spec, scaling=Scaling(2, 5)))
    before, after = (manifests.inference_service(each)["metadata"] for each in (one, later))
    assert before == after


def test_gpus_are_shared_out_so_that_no_pod_spans_machines() -> None:
    def each(counts: tuple[int, ...], parts: int) -> str:
        one = replace(iris(), spec=replace(iris().spec, scaling=Scaling(1, parts)))
        gpus = tuple((f"n{index}", tuple(range(count))) for index, count in enumerate(counts))
        model = manifests.inference_service(one, gpus)["spec"]["predictor"]["model"]
        return str(model["resources"]["limits"]["nvidia.com/gpu"])

    assert each((4,), 1) == "4"
    assert each((4,), 2) == "2"
    assert each((4, 4), 1) == "4"
    assert each((3, 3), 3) == "1"
    assert each((1,), 4) == "1"


@pytest.mark.parametrize(
    ("version", "mode"),
    [("v0.15.2", "RawDeployment"), ("0.16.0", "Standard"), ("v1.0.0", "Standard"), ("", "Standard")],
)
def test_the_mode_of_plain_deployments_is_called_as_that_kserve_calls_it(version: str, mode: str) -> None:
    assert manifests.standard_mode(version) == mode
