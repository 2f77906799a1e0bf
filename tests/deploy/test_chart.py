"""The Helm chart, rendered by Helm itself, validated by Kubernetes' schemas, compared with the code."""

from __future__ import annotations

import base64
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from inferplane.engines.kserve.permissions import PLATFORM, Permission
from inferplane.services.api_keys import KEY_PREFIX, KEY_RANDOM_CHARACTERS
from inferplane.settings import ENVIRONMENT_PREFIX, PLAIN_SETTINGS, EngineKind, load_settings
from inferplane.wire.paths import HEALTH, READY

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "inferplane"
KUBERNETES = ("1.29", "1.36")
HELM_SECONDS = 60.0

VALUES: dict[str, tuple[str, ...]] = {
    "least": ("database.existingSecret=pg",),
    "to-try": ("database.url=postgresql://user:p4ss@db/inferplane", "replicas=1"),
    "everything": (
        "database.existingSecret=pg",
        "ownerKey.existingSecret=owner",
        "ingress.enabled=true",
        "ingress.host=inferplane.example.com",
        "ingress.className=nginx",
        "ingress.tlsSecret=tls",
        "ingress.annotations.a=b",
        "inCluster.domain=models.example.com",
        "inCluster.ingress=192.0.2.10",
        "inCluster.drift=leave",
        "otlpEndpoint=http://collector:4318",
        "serviceAccount.annotations.a=b",
        "service.annotations.a=b",
        "podAnnotations.a=b",
        "imagePullSecrets[0].name=registry",
        "nodeSelector.pool=control",
        "tolerations[0].key=control",
        "tolerations[0].operator=Exists",
        "extraEnv[0].name=SSL_CERT_FILE",
        "extraEnv[0].value=/etc/ssl/ca.pem",
        "networkPolicy.from[0].podSelector.matchLabels.app=proxy",
    ),
    "elsewhere": (
        "database.existingSecret=pg",
        "inCluster.enabled=false",
        "serviceAccount.create=false",
        "serviceAccount.name=mine",
        "networkPolicy.enabled=false",
        "podDisruptionBudget.enabled=false",
    ),
    "read-only": ("database.existingSecret=pg", "rbac.workspaceKubeconfigs=false"),
}

Helm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Runs the program helm, which has no cluster and a home of its own."""
    fetched = Path(sys.prefix) / "helm" / "helm"
    program = str(fetched) if fetched.exists() else shutil.which("helm")
    if program is None:
        pytest.skip("there is no helm; `make dev-helm` fetches it")
    folder = tmp_path_factory.mktemp("helm")
    environment = {f"HELM_{each}_HOME": str(folder / each) for each in ("CACHE", "CONFIG", "DATA")}
    environment |= {"HOME": str(folder), "KUBECONFIG": str(folder / "none"), "PATH": "/usr/bin:/bin"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments], env=environment, capture_output=True, text=True, timeout=HELM_SECONDS
        )

    try:
        run("version")
    except OSError as error:
        pytest.skip(f"this machine cannot run the helm that was fetched: {error}")
    return run


def _set(values: tuple[str, ...]) -> list[str]:
    return [part for each in values for part in ("--set", each)]


@pytest.fixture(scope="module")
def rendered(helm: Helm) -> Callable[[str], list[dict[str, Any]]]:
    """The objects of a release `ip` in namespace `ml`, by the name of its values."""
    known: dict[str, list[dict[str, Any]]] = {}

    def render(name: str) -> list[dict[str, Any]]:
        if name not in known:
            done = helm("template", "ip", str(CHART), "--namespace", "ml", *_set(VALUES[name]))
            assert done.returncode == 0, done.stderr
            known[name] = [each for each in yaml.safe_load_all(done.stdout) if each is not None]
        return known[name]

    return render


def the(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def environment_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (container,) = the(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each.get("value") for each in container["env"]}


@pytest.mark.parametrize("name", VALUES)
def test_it_lints(helm: Helm, name: str) -> None:
    done = helm("lint", "--strict", str(CHART), *_set(VALUES[name]))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", VALUES)
def test_every_object_is_what_kubernetes_takes(
    rendered: Callable[[str], list[dict[str, Any]]], name: str
) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for each in rendered(name):
        for version in KUBERNETES:
            validator.validate(each, version, strict=True)


def test_values_that_cannot_be_meant_are_refused(helm: Helm) -> None:
    for wrong in (
        "replicas=0",
        "replica=3",
        "inCluster.name=local",
        "logLevel=loud",
        "database.url=mysql://x",
    ):
        done = helm("template", "ip", str(CHART), *_set(("database.existingSecret=pg", wrong)))
        assert done.returncode != 0, wrong
        assert wrong.split("=", 1)[0].split(".", 1)[0] in done.stderr
    done = helm("template", "ip", str(CHART))
    assert "database.existingSecret is needed" in done.stderr


@pytest.mark.parametrize("name", VALUES)
def test_the_objects_belong_together(rendered: Callable[[str], list[dict[str, Any]]], name: str) -> None:
    objects = rendered(name)
    template = the(objects, "Deployment")["spec"]["template"]
    labels = template["metadata"]["labels"].items()
    assert the(objects, "Deployment")["spec"]["selector"]["matchLabels"].items() <= labels
    assert the(objects, "Service")["spec"]["selector"].items() <= labels
    for kind, selector in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for each in objects:
            if each["kind"] == kind:
                assert each["spec"][selector]["matchLabels"].items() <= labels
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    assert the(objects, "Service")["spec"]["ports"][0]["targetPort"] == port["name"]
    assert environment_of(objects)["INFERPLANE_API_PORT"] == str(port["containerPort"])
    for probe, path in (("startupProbe", HEALTH), ("livenessProbe", HEALTH), ("readinessProbe", READY)):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in template["spec"]["volumes"]}
    made = {each["metadata"]["name"] for each in objects if each["kind"] in ("Secret", "ConfigMap")}
    given = {each.split("=")[1] for each in VALUES[name] if "existingSecret" in each}
    used = {
        *(each["configMap"]["name"] for each in template["spec"]["volumes"] if "configMap" in each),
        *(each["secret"]["secretName"] for each in template["spec"]["volumes"] if "secret" in each),
        *(
            each["valueFrom"]["secretKeyRef"]["name"]
            for each in container["env"]
            if "secretKeyRef" in each.get("valueFrom", {})
        ),
    }
    assert used == made | given


@pytest.mark.parametrize("name", VALUES)
def test_what_is_configured_are_settings(
    rendered: Callable[[str], list[dict[str, Any]]], name: str, tmp_path: Path
) -> None:
    objects = rendered(name)
    known = {ENVIRONMENT_PREFIX + each.name.upper() for each in PLAIN_SETTINGS} | {"INFERPLANE_CONFIG"}
    environment = environment_of(objects)
    assert {each for each in environment if each.startswith(ENVIRONMENT_PREFIX)} <= known
    config = tmp_path / "inferplane.toml"
    config.write_text(the(objects, "ConfigMap")["data"]["inferplane.toml"])
    given = {key: value for key, value in environment.items() if value is not None}
    settings = load_settings(
        {"config": str(config)}, given | {"INFERPLANE_DATABASE_URL": "postgresql://h/d"}, user_home=tmp_path
    ).settings
    assert not settings.local
    assert [each.engine for each in settings.every_cluster] == (
        [] if name == "elsewhere" else [EngineKind.KSERVE]
    )
    if name == "everything":
        (cluster,) = settings.clusters
        assert (cluster.domain, cluster.ingress, cluster.drift.value) == (
            "models.example.com",
            "192.0.2.10",
            "leave",
        )


def test_it_runs_with_as_little_as_possible(rendered: Callable[[str], list[dict[str, Any]]]) -> None:
    spec = the(rendered("least"), "Deployment")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"requests", "limits"} <= container["resources"].keys()
    assert the(rendered("least"), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    elsewhere = rendered("elsewhere")
    assert not the(elsewhere, "Deployment")["spec"]["template"]["spec"]["automountServiceAccountToken"]
    assert not [each for each in elsewhere if each["kind"].startswith("ClusterRole")]


def granted(objects: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {
        (group, resource, verb)
        for rule in the(objects, "ClusterRole")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def plain(permissions: tuple[Permission, ...]) -> set[tuple[str, str, str]]:
    return {(each.group, each.resource, each.verb) for each in permissions}


def test_the_role_grants_what_the_platform_does_and_nothing_else(
    rendered: Callable[[str], list[dict[str, Any]]],
) -> None:
    objects = rendered("least")
    assert granted(objects) == plain(PLATFORM)
    assert not [each for each in granted(objects) if "*" in each]
    (subject,) = the(objects, "ClusterRoleBinding")["subjects"]
    account = the(objects, "ServiceAccount")["metadata"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    assert (
        the(objects, "ClusterRoleBinding")["roleRef"]["name"]
        == the(objects, "ClusterRole")["metadata"]["name"]
    )
    needed = plain(tuple(each for each in PLATFORM if not each.optional))
    less = granted(rendered("read-only"))
    assert needed <= less < granted(objects)
    assert not [each for each in less if each[0] == "rbac.authorization.k8s.io"]


def test_the_rules_are_those_of_the_code() -> None:
    """When this fails, run `python deploy/rules.py`."""
    files = sorted((CHART / "files").iterdir())
    before = {each.name: each.read_text() for each in files}
    assert runpy.run_path(str(ROOT / "deploy" / "rules.py"))["rules"]() == before


def test_an_owner_key_is_made_once_that_the_platform_takes(
    rendered: Callable[[str], list[dict[str, Any]]],
) -> None:
    (secret,) = (each for each in rendered("least") if each["kind"] == "Secret")
    key = base64.b64decode(secret["data"]["owner.key"]).decode()
    assert re.fullmatch(rf"{KEY_PREFIX}[a-z0-9]{{{KEY_RANDOM_CHARACTERS}}}", key)
    assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_no_password_is_anywhere_but_in_a_secret(rendered: Callable[[str], list[dict[str, Any]]]) -> None:
    with_it = [each["kind"] for each in rendered("to-try") if "p4ss" in str(each)]
    assert with_it == ["Secret"]


def test_the_notes_are_rendered(helm: Helm) -> None:
    done = helm("install", "ip", str(CHART), "-n", "ml", "--dry-run=client", *_set(VALUES["everything"]))
    assert done.returncode == 0, done.stderr
    notes = done.stdout.split("NOTES:")[1]
    assert "https://inferplane.example.com" in notes
    assert "get secret owner" in notes
    assert '{{ index .data "owner.key" | base64decode }}' in notes


def _copied(dockerfile: str) -> Iterator[str]:
    for line in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE):
        yield from line.split()[:-1]


def test_the_image_is_built_from_what_is_there() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for each in _copied(text):
        assert (ROOT / each).exists(), each
        assert f"!{each.removeprefix('./')}" in ignored
    assert "--require-hashes --requirement requirements.lock" in text
    user = yaml.safe_load((CHART / "values.yaml").read_text())["podSecurityContext"]["runAsUser"]
    assert f"USER {user}:{user}" in text
