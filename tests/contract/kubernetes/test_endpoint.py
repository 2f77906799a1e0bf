"""An endpoint's life on a cluster, through the engine: with KServe's own controller and real pods where there are some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol

from engine_world import endpoint, target
from inferplane.domain.endpoint import (
    EndpointSpec,
    InferenceEndpoint,
    Replica,
    ReplicaId,
    ReplicaState,
    Revision,
    Scaling,
)
from inferplane.domain.manifest import model_from_isvc
from inferplane.engines.kserve.client import INFERENCE_SERVICE, KubeClient
from inferplane.engines.kserve.engine import KServeEngine
from inferplane.engines.kserve.manifests import service_name
from inferplane.engines.port import FetchModel, Observation, Release, StartReplica, StopReplica, mark

READY = ReplicaState.READY
SERVES = "echo serving; touch /tmp/ready; trap 'exit 0' TERM; while true; do sleep 0.2; done"
BREAKS = "echo loading; echo 'ValueError: not a model' >&2; exit 3"


class Cluster(Protocol):
    """As in conftest."""

    client: KubeClient
    image: str
    host_network: bool

    def uid(self) -> str: ...
    async def engine(self, **options: Any) -> KServeEngine: ...
    async def until(
        self, engine: KServeEngine, uid: str, that: Callable[[Observation], object], what: str
    ) -> Observation: ...
    def break_servers(self, namespace: str) -> None: ...


def manifest(cluster: Cluster, script: str, **container: Any) -> Mapping[str, Any]:
    """A server that is a shell: ready at once, or ended at once."""
    predictor: dict[str, Any] = {
        "terminationGracePeriodSeconds": 2,
        "containers": [
            {
                "name": "kserve-container",
                "image": cluster.image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["/bin/sh", "-c"],
                "args": [script],
                "readinessProbe": {"exec": {"command": ["test", "-f", "/tmp/ready"]}, "periodSeconds": 1},
                "resources": {
                    "requests": {"cpu": "10m", "memory": "16Mi"},
                    "limits": {"cpu": "200m", "memory": "64Mi"},
                },
                **container,
            }
        ],
    }
    if cluster.host_network:
        predictor["hostNetwork"] = True
    return {"spec": {"predictor": predictor}}


def made(cluster: Cluster, script: str = SERVES, **container: Any) -> InferenceEndpoint:
    uid = cluster.uid()
    parsed = model_from_isvc(manifest(cluster, script, **container), endpoint_name="demo")
    return replace(
        endpoint(uid),
        name="demo",
        namespace=f"inferplane-test-{uid}",
        spec=EndpointSpec(parsed.model, manifest=parsed.completed),
    )


def changed(one: InferenceEndpoint, cluster: Cluster, script: str) -> InferenceEndpoint:
    """The endpoint with another revision wished."""
    number = one.spec.revision + 1
    parsed = model_from_isvc(manifest(cluster, script), endpoint_name="demo")
    at = datetime(2026, 11, 25, tzinfo=UTC)
    known = one.spec.revisions or (Revision(one.spec.revision, one.spec.model, at),)
    spec = replace(
        one.spec,
        model=parsed.model,
        manifest=parsed.completed,
        revision=number,
        revisions=(*known, Revision(number, parsed.model, at)),
    )
    return replace(one, spec=spec, generation=one.generation + 1)


def start(one: InferenceEndpoint) -> StartReplica:
    return StartReplica(ReplicaId(one.uid, one.spec.revision, 0))


async def said(engine: KServeEngine, one: InferenceEndpoint) -> None:
    await engine.apply(target(one), FetchModel(one.spec.revision))
    await engine.apply(target(one), start(one))


def ready(seen: Observation, revision: int) -> list[Replica]:
    return [each for each in seen.replicas if each.id.revision == revision and each.state is READY]


def serves(revision: int) -> Callable[[Observation], object]:
    """Its pods are ready, and those of no other revision are."""
    return lambda seen: (
        ready(seen, revision)
        and all(each.id.revision == revision for each in seen.replicas if each.state is READY)
    )


async def test_what_is_said_is_noted_and_adopted(cluster: Cluster) -> None:
    engine, one = await cluster.engine(), made(cluster)
    await said(engine, one)
    seen = await engine.observe(one.uid)
    assert (seen.mark, seen.drift) == (mark(one, start(one)), "")
    assert one.uid in await engine.owned()
    path = INFERENCE_SERVICE.path(one.namespace, service_name(one))
    before = await cluster.client.find(path)
    other = await cluster.engine()
    assert (await other.observe(one.uid)).mark == seen.mark
    await said(other, one)
    after = await cluster.client.find(path)
    assert before is not None
    assert after is not None
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert after["spec"] == before["spec"]


async def test_what_somebody_changes_is_put_right(cluster: Cluster) -> None:
    engine, one = await cluster.engine(), made(cluster)
    await said(engine, one)
    path = INFERENCE_SERVICE.path(one.namespace, service_name(one))
    await cluster.client.merge(path, {"spec": {"predictor": {"maxReplicas": 4}}})
    await cluster.until(engine, one.uid, lambda seen: seen.drift, "the change to be noticed")
    await engine.apply(target(one), start(one))
    seen = await engine.observe(one.uid)
    assert (seen.mark, seen.drift) == (mark(one, start(one)), "")
    found = await cluster.client.find(path)
    assert found is not None
    assert found["spec"]["predictor"]["maxReplicas"] == 1


async def test_deleted_while_it_comes_up_nothing_is_left(cluster: Cluster) -> None:
    engine, one = await cluster.engine(), made(cluster)
    await said(engine, one)
    for _ in range(2):
        await engine.apply(target(one), Release())
    await cluster.until(engine, one.uid, lambda seen: seen == Observation(), "nothing to be left")
    assert one.uid not in await engine.owned()


async def test_it_runs_is_updated_breaks_goes_back_stops_scales_and_goes(controlled: Cluster) -> None:
    engine, one = await controlled.engine(), made(controlled)
    await said(engine, one)
    seen = await controlled.until(engine, one.uid, serves(1), "a pod to be ready")
    assert seen.ingress is not None

    two = changed(one, controlled, f"echo second; {SERVES}")
    await said(engine, two)
    await controlled.until(engine, one.uid, serves(2), "the second revision to take over")

    three = changed(two, controlled, BREAKS)
    controlled.break_servers(one.namespace)
    await said(engine, three)

    def has_failed(seen: Observation) -> bool:
        return any(each.id.revision == 3 and each.exit and each.exit.log_tail for each in seen.replicas)

    seen = await controlled.until(engine, one.uid, has_failed, "the failure with its last lines")
    failed = next(each for each in seen.replicas if each.id.revision == 3)
    assert failed.exit is not None
    assert failed.exit.exit_code not in (None, 0)
    assert "ValueError" in "".join(failed.exit.log_tail)
    assert ready(seen, 2), "what serves goes on serving"

    if (kserve := getattr(controlled, "kserve", None)) is not None:
        kserve.mend(one.namespace)
    back = replace(three, generation=9, spec=replace(two.spec, revisions=three.spec.revisions))
    await engine.apply(target(back), start(back))
    await controlled.until(engine, one.uid, serves(2), "the way back")

    await engine.apply(target(back), StopReplica(ReplicaId(one.uid, 2, 0), 5))
    await controlled.until(engine, one.uid, lambda seen: not seen.replicas, "no pod to be left")
    await engine.apply(target(back), start(back))
    await controlled.until(engine, one.uid, serves(2), "it to start again")

    more = replace(back, generation=10, spec=replace(back.spec, scaling=Scaling(2, 2)))
    await engine.apply(target(more), start(more))
    await controlled.until(engine, one.uid, lambda seen: len(ready(seen, 2)) == 2, "two pods")
    assert [line.replica for line in [each async for each in engine.logs(one.uid, replica="r2-1")]] in (
        [],
        ["r2-1"],
        ["r2-1", "r2-1"],
    )

    await engine.apply(target(more), Release())
    await controlled.until(engine, one.uid, lambda seen: seen == Observation(), "nothing to be left")


async def test_what_does_not_fit_is_said(controlled: Cluster) -> None:
    if getattr(controlled, "kserve", None) is not None:
        return  # its scheduler fits everything
    limits = {"requests": {"cpu": "10m", "memory": "900Ti"}, "limits": {"cpu": "1", "memory": "900Ti"}}
    engine, one = await controlled.engine(), made(controlled, resources=limits)
    await said(engine, one)
    seen = await controlled.until(
        engine,
        one.uid,
        lambda seen: any(each.waiting and each.waiting.reason == "Unschedulable" for each in seen.replicas),
        "it to say that nothing is large enough",
    )
    assert "memory" in str(seen.replicas)
