"""Two control planes, as the chart runs them, before an API server, with the rights that the chart grants."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from control_planes import Installation, installation
from kube_api import ApiInThread, Rule, User
from platform_stack import wait_for

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "inferplane"
FENCE = "inferplane.io/fence"
CLUSTER = "main"


def rules_of_the_chart() -> tuple[Rule, ...]:
    """What its ClusterRole grants. Asking what one may do is everybody's right."""
    listed = [
        each for file in sorted((CHART / "files").iterdir()) for each in yaml.safe_load(file.read_text())
    ]
    return (
        *(Rule(tuple(each["verbs"]), tuple(each["apiGroups"]), tuple(each["resources"])) for each in listed),
        Rule(("create",), ("authorization.k8s.io",), ("selfsubjectaccessreviews", "selfsubjectrulesreviews")),
    )


@pytest.fixture
def there() -> Iterator[ApiInThread]:
    """A cluster in which the platform's account may do what the chart grants."""
    platform = User("platform", "token-of-the-platform", rules_of_the_chart())
    with ApiInThread() as there:
        there.call(lambda: there.api.add_user(platform))
        there.call(there.api.add_nodes)
        yield there


@pytest.fixture
def two(there: ApiInThread, tmp_path: Path, postgres_url: str) -> Iterator[Installation]:
    kubeconfig = there.call(lambda: there.api.kubeconfig(tmp_path / "kubeconfig", "platform"))
    configuration = f'[[cluster]]\nname = "{CLUSTER}"\nengine = "kserve"\nkubeconfig = "{kubeconfig}"\n'
    with installation(tmp_path / "planes", postgres_url, configuration) as planes:
        yield planes


def services(there: ApiInThread) -> dict[str, dict[str, Any]]:
    """The InferenceServices, by name."""
    return {
        each["metadata"]["name"]: each
        for each in there.call(lambda: there.api.store.list("InferenceService"))
    }


def is_there(there: ApiInThread, name: str) -> bool:
    return name in services(there)


def fences(there: ApiInThread) -> dict[str, int]:
    """The epoch that stands at each endpoint's namespace."""
    return {
        each["metadata"]["name"]: int(each["metadata"]["annotations"][FENCE])
        for each in there.call(lambda: there.api.store.list("Namespace"))
        if FENCE in each["metadata"].get("annotations", {})
    }


@pytest.mark.slow
def test_one_acts_and_is_followed_within_the_rights_of_the_chart(
    two: Installation, there: ApiInThread
) -> None:
    two.create("first", CLUSTER)
    wait_for(lambda: "first" in services(there), "the InferenceService")
    before = fences(there)
    for each in two.planes:
        each.signal(signal.SIGKILL)
        each.start()
        each.wait()
        last = f"after-{each.home.name}"
        two.create(last, CLUSTER)
        wait_for(partial(is_there, there, last), f"the InferenceService of {last}")
    assert max(fences(there).values()) > max(before.values()), "whoever took over has a higher epoch"
    two.delete("first")
    wait_for(lambda: "first" not in two.endpoints(), "it to be deleted")
    assert "first" not in services(there)
    status, answer = two.request("POST", "slice-workspace/kube-config", {"workspaceName": "default"})
    assert status == 200, answer

    verbs = there.call(lambda: {each.verb for each in there.api.requests if each.user == "platform"})
    refused = there.call(lambda: [each.path for each in there.api.requests if each.status == 403])
    assert refused == [], "all that is asked for is granted"
    assert {"get", "list", "watch", "apply", "delete"} <= verbs
    generations = {name: each["metadata"]["generation"] for name, each in services(there).items()}
    assert set(generations.values()) == {1}, "nobody changed what another one had said"
