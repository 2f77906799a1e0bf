"""The engine on an API server: what it says there, what it makes of what happens there, and what of its absence."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine_world import endpoint, first_replica, now, target, wait_until
from inferplane.domain.artifact import ArtifactPhase
from inferplane.domain.endpoint import GpuSpec, InferenceEndpoint, ReplicaState, Scaling
from inferplane.domain.gpu_request import Selection
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.kserve.engine import KServeEngine
from inferplane.engines.port import (
    Action,
    DropModel,
    EngineAway,
    EngineError,
    FetchModel,
    Observation,
    Release,
    StartReplica,
    StopReplica,
    mark,
)
from kube_api import KubeApi, Logged, Rule, User, needs_recordings
from kube_world import KubeWorld, kube_world

pytestmark = needs_recordings


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[KubeWorld]:
    async with kube_world(tmp_path) as one:
        yield one


def start(one: InferenceEndpoint) -> StartReplica:
    return StartReplica(first_replica(one))


async def said(engine: KServeEngine, one: InferenceEndpoint) -> None:
    """Everything that a running endpoint needs to be said."""
    await engine.apply(target(one), FetchModel(one.spec.revision))
    await engine.apply(target(one), start(one))


async def seen(
    engine: KServeEngine, uid: str, that: Callable[[Observation], object], what: str
) -> Observation:
    async def probe() -> Observation | None:
        found = await engine.observe(uid)
        return found if that(found) else None

    return await wait_until(probe, what)


async def insistently(engine: KServeEngine, one: InferenceEndpoint, action: Action) -> None:
    """As the controller does: again until it succeeds."""

    async def probe() -> bool:
        try:
            await engine.apply(target(one), action)
        except EngineAway:
            return False
        return True

    await wait_until(probe, "the step to succeed")


def has_replicas(count: int) -> Callable[[Observation], bool]:
    return lambda observation: len(observation.replicas) == count


def changes(resource: str) -> Callable[[Logged], bool]:
    return lambda request: request.resource == resource and request.method == "PATCH"


def created(api: KubeApi) -> list[str]:
    """Whatever was made, in order."""
    return [each.path for each in api.requests if each.status == 201]


# --- saying ---------------------------------------------------------------------------------------


async def test_what_is_said_is_noted_and_not_said_again(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()
    assert await engine.observe(one.uid) == Observation()
    await engine.apply(target(one), FetchModel())
    prepared = await engine.observe(one.uid)
    assert prepared.artifact(1).phase is ArtifactPhase.PRESENT
    assert prepared.mark == ""
    await engine.apply(target(one), start(one))
    assert (await engine.observe(one.uid)).mark == mark(one, start(one))
    assert await engine.owned() == {one.uid}
    world.api.requests.clear()
    await engine.apply(target(one), start(one))
    assert {each.verb for each in world.api.requests if each.verb != "watch"} == {"get"}
    world.api.requests.clear()
    for _ in range(50):
        await engine.observe(one.uid)
    assert [each for each in world.api.requests if each.verb not in ("watch", "")] == []


async def test_a_new_control_plane_sees_what_was_said_and_says_it_not_again(world: KubeWorld) -> None:
    first, one = await world.started(), endpoint()
    await said(first, one)
    before = await first.observe(one.uid)
    await first.close(stop_servers=True)
    second = await world.started()
    after = await second.observe(one.uid)
    assert replace(after, look_again_seconds=None) == replace(before, look_again_seconds=None)
    assert await second.owned() == {one.uid}
    world.api.requests.clear()
    await second.apply(target(one), start(one))
    assert [each.verb for each in world.api.requests if each.verb in ("apply", "patch", "create")] == []


async def test_the_secret_is_in_a_secret_of_the_cluster_and_nowhere_else(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()
    await said(engine, one)
    assert "must-not-be-seen" not in str(await engine.observe(one.uid))
    assert "must-not-be-seen" not in str(world.service(one))
    found = world.api.store.get("Secret", "inferplane-storage-s3", one.namespace)
    assert found is not None
    assert found["data"]["AWS_SECRET_ACCESS_KEY"]


async def test_a_change_is_said_and_a_stop_and_a_start(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()
    await said(engine, one)
    more = replace(one, generation=2, spec=replace(one.spec, scaling=Scaling(2, 4)))
    await engine.apply(target(more), start(more))
    assert world.service(one)["spec"]["predictor"]["minReplicas"] == 2
    await engine.apply(target(more), StopReplica(first_replica(one), 1))
    assert world.service(one)["metadata"]["annotations"]["serving.kserve.io/stop"] == "true"
    assert (await engine.observe(one.uid)).mark == ""
    await engine.apply(target(more), StopReplica(first_replica(one), 1))
    await engine.apply(target(more), start(more))
    assert world.service(one)["metadata"]["annotations"]["serving.kserve.io/stop"] == "false"
    assert (await engine.observe(one.uid)).mark == mark(more, start(more))


async def test_a_revision_that_was_not_prepared_is_not_started_and_one_may_be_forgotten(
    world: KubeWorld,
) -> None:
    engine, one = await world.started(), endpoint()
    with pytest.raises(EngineError):
        await engine.apply(target(one), start(one))
    await said(engine, one)
    await engine.apply(target(one), FetchModel(2))
    assert set((await engine.observe(one.uid)).artifacts) == {1, 2}
    for _ in range(2):
        await engine.apply(target(one), DropModel(1))
    assert set((await engine.observe(one.uid)).artifacts) == {2}


async def test_what_is_released_is_gone_and_releasing_it_again_is_harmless(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()
    await said(engine, one)
    assert "namespace" in (await engine.observe(one.uid)).left
    await engine.apply(target(one), Release())
    await seen(engine, one.uid, lambda o: o == Observation(), "nothing to be left")
    assert await engine.owned() == frozenset()
    await engine.apply(target(one), Release())
    await engine.apply(target(one), StopReplica(first_replica(one), 1))
    await engine.release_orphan(one.uid)
    assert world.api.store.get("Namespace", one.namespace) is None


async def test_an_orphan_is_found_by_its_label(world: KubeWorld) -> None:
    engine, one, other = await world.started(), endpoint(), endpoint("ffffffffffff")
    other = replace(other, namespace="default-other-abcdef")
    await said(engine, one)
    await said(engine, other)
    await engine.release_orphan(one.uid)
    await seen(engine, one.uid, lambda o: o == Observation(), "the orphan to be gone")
    assert await engine.owned() == {other.uid}


async def test_another_installation_on_the_same_cluster_owns_what_is_its_own(world: KubeWorld) -> None:
    mine, theirs = endpoint(), replace(endpoint("ffffffffffff"), namespace="default-theirs-abcdef")
    here = await world.started(installation="aaaaaaaaaaaa")
    there = await world.started(installation="bbbbbbbbbbbb")
    await said(here, mine)
    await said(there, theirs)
    await seen(here, theirs.uid, lambda found: found.artifacts, "both to be seen")
    await seen(there, mine.uid, lambda found: found.artifacts, "both to be seen")
    assert await here.owned() == {mine.uid}
    assert await there.owned() == {theirs.uid}


async def test_somebody_elses_namespace_is_left_alone(world: KubeWorld) -> None:
    one = endpoint()
    world.api.store.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": one.namespace}})
    engine = await world.started()
    for action in (FetchModel(), start(one), StopReplica(first_replica(one), 1), Release()):
        with pytest.raises(EngineError, match="not this endpoint's"):
            await engine.apply(target(one), action)
    found = world.api.store.get("Namespace", one.namespace)
    assert found is not None
    assert "labels" not in found["metadata"] or "inferplane.io/endpoint" not in found["metadata"]["labels"]


async def test_a_quota_is_made_where_one_is_asked_for(world: KubeWorld) -> None:
    engine, one = await world.started(quota={"pods": "4"}), endpoint()
    await said(engine, one)
    found = world.api.store.get("ResourceQuota", "inferplane-quota", one.namespace)
    assert found is not None
    assert found["spec"]["hard"] == {"pods": "4"}


async def test_what_the_cluster_refuses_is_said_in_its_words(world: KubeWorld) -> None:
    everything_but = Rule(("get", "list", "watch"))
    world.api.add_user(User("reader", "token-of-reader", (everything_but,)))
    engine, one = await world.started(user="reader"), endpoint()
    with pytest.raises(EngineError, match="cannot") as refused:
        await engine.apply(target(one), FetchModel())
    assert not isinstance(refused.value, EngineAway)
    assert refused.value.reason == ReasonCode.CLUSTER_FORBIDDEN.value


# --- others ---------------------------------------------------------------------------------------


async def test_a_change_of_somebody_else_is_noticed_and_put_right(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()
    await said(engine, one)
    changed = world.service(one)
    changed["spec"]["predictor"]["model"]["storageUri"] = "s3://somewhere/else"
    world.api.store.put(changed, manager="kubectl-edit")
    found = await seen(engine, one.uid, lambda o: o.drift, "the change to be noticed")
    assert "changed by kubectl-edit" in found.drift
    assert found.mark == ""
    await engine.apply(target(one), start(one))
    after = await engine.observe(one.uid)
    assert (after.drift, after.mark) == ("", mark(one, start(one)))
    assert world.service(one)["spec"]["predictor"]["model"]["storageUri"] == "/models/iris.joblib"


async def test_what_somebody_deleted_is_noticed_and_made_again(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()
    await said(engine, one)
    world.api.store.vanish("InferenceService", one.name, one.namespace)
    found = await seen(engine, one.uid, lambda o: o.drift, "the deletion to be noticed")
    assert "deleted" in found.drift
    await engine.apply(target(one), start(one))
    assert world.service(one)
    assert (await engine.observe(one.uid)).drift == ""


async def test_a_change_is_left_where_the_setting_says_so(world: KubeWorld) -> None:
    engine, one = await world.started(leave_drift=True), endpoint()
    await said(engine, one)
    changed = world.service(one)
    changed["spec"]["predictor"]["maxReplicas"] = 7
    world.api.store.put(changed, manager="kubectl-edit")
    found = await seen(engine, one.uid, lambda o: o.drift, "the change to be noticed")
    assert found.mark == mark(one, start(one))


async def test_a_change_of_status_is_no_drift(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()
    await said(engine, one)
    changed = world.service(one)
    changed["status"] = {"url": "http://iris.example.com"}
    world.api.store.put(changed, manager="manager")
    found = await seen(engine, one.uid, lambda o: o.ingress and o.ingress.url, "the status to be noticed")
    assert (found.drift, found.mark) == ("", mark(one, start(one)))


async def test_one_control_plane_acts_at_a_time(world: KubeWorld) -> None:
    old, new, one = await world.started(fence=3), await world.started(fence=4), endpoint()
    await said(old, one)
    await new.apply(target(one), start(one))
    more = replace(one, generation=2, spec=replace(one.spec, scaling=Scaling(5, 5)))
    await new.apply(target(more), start(more))
    for action in (FetchModel(2), start(one), StopReplica(first_replica(one), 1), DropModel(1), Release()):
        with pytest.raises(EngineError, match="taken over"):
            await old.apply(target(one), action)
    assert world.service(one)["spec"]["predictor"]["minReplicas"] == 5


# --- trouble --------------------------------------------------------------------------------------


async def test_a_cluster_that_is_away_says_nothing_about_the_endpoint(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()
    await said(engine, one)
    before = await engine.observe(one.uid)
    world.wakes.clear()
    world.api.faults.away()
    gone = await seen(engine, one.uid, lambda o: o.unreachable, "its absence to be said")
    assert gone.unreachable is not None
    assert gone.unreachable.since <= now()
    assert (gone.mark, gone.artifacts, gone.left) == (before.mark, before.artifacts, before.left)
    assert one.uid in world.wakes
    assert await engine.owned() == {one.uid}
    for action in (FetchModel(2), start(replace(one, generation=2)), Release()):
        with pytest.raises(EngineAway):
            await engine.apply(target(one), action)
    world.wakes.clear()
    await world.api.faults.back()
    back = await seen(engine, one.uid, lambda o: o.unreachable is None, "its return to be said")
    assert back.mark == before.mark
    assert one.uid in world.wakes


async def test_before_anything_was_seen_nothing_is_known(world: KubeWorld) -> None:
    world.api.faults.error(503, when=lambda request: request.resource == "pods")
    engine = world.engine()
    assert (await engine.observe("0123456789ab")).unreachable is not None
    assert await engine.owned() == frozenset()


async def test_half_of_all_requests_fail_and_nothing_is_made_twice(world: KubeWorld) -> None:
    world.api.faults.half()
    engine = await world.started()
    ones = [
        replace(endpoint(f"{index:012x}"), namespace=f"default-e-{index:06d}", name=f"e{index}")
        for index in range(3)
    ]
    for one in ones:
        await insistently(engine, one, FetchModel())
        await insistently(engine, one, start(one))
    world.api.faults.clear()
    for one in ones:
        await seen(engine, one.uid, lambda o: o.unreachable is None and o.mark, "it to catch up")
    made = created(world.api)
    assert len(made) == len(set(made))
    assert len([path for path in made if "inferenceservices" in path]) == 3


async def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_is_made_twice(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()
    for resource in ("namespaces", "secrets", "serviceaccounts", "inferenceservices"):
        world.api.faults.lose_answer(when=changes(resource))
    await insistently(engine, one, FetchModel())
    await insistently(engine, one, start(one))
    found = await seen(engine, one.uid, lambda o: o.mark, "it to be said")
    assert found.drift == ""
    assert len(world.api.store.list("InferenceService")) == 1


async def test_a_busy_api_server_is_asked_again_later(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()
    world.api.faults.too_many(retry_after_s=60, when=lambda request: request.verb == "apply")
    with pytest.raises(EngineAway, match="429"):
        await engine.apply(target(one), FetchModel())
    world.api.faults.clear()
    await engine.apply(target(one), FetchModel())


async def test_watches_that_are_cut_go_on_where_they_were(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()
    await said(engine, one)
    lists = world.api.requests.count(verb="list")
    for mid_line in (True, False):
        assert world.api.faults.cut_watches(mid_line=mid_line)
        name = f"pod-{mid_line}".lower()
        world.put_pod(one, name, ready=True, state={"running": {"startedAt": "2026-11-25T07:00:01Z"}})
        count = 1 if mid_line else 2
        await seen(engine, one.uid, has_replicas(count), "the pod")
        await wait_until(lambda: _true(world.api.watches >= 7), "the watches to be open again")
    assert world.api.requests.count(verb="list") == lists


async def _true(value: bool) -> bool:
    return value


async def test_what_a_watch_can_no_longer_tell_is_listed_anew(tmp_path: Path) -> None:
    async with kube_world(tmp_path, history=5) as world:
        engine, one = await world.started(), endpoint()
        await said(engine, one)
        world.put_pod(one, "early", ready=True, state={"running": {"startedAt": "2026-11-25T07:00:01Z"}})
        await seen(engine, one.uid, lambda o: len(o.replicas) == 1, "the pod")
        world.api.faults.away()
        world.api.store.vanish("Pod", "early", one.namespace)
        for index in range(20):
            world.put_pod(one, f"late-{index}")
            if index < 18:
                world.api.store.vanish("Pod", f"late-{index}", one.namespace)
        await world.api.faults.back()
        found = await seen(engine, one.uid, lambda o: len(o.replicas) == 2, "exactly the pods there are")
        assert {each.state for each in found.replicas} == {ReplicaState.STARTING}


# --- logs -----------------------------------------------------------------------------------------


CRASHED: dict[str, Any] = {
    "restartCount": 2,
    "state": {
        "waiting": {"reason": "CrashLoopBackOff", "message": "back-off 20s restarting failed container"}
    },
    "lastState": {
        "terminated": {
            "exitCode": 3,
            "reason": "Error",
            "startedAt": "2026-11-25T07:00:01Z",
            "finishedAt": "2026-11-25T07:00:02Z",
        }
    },
}


async def test_the_last_lines_of_a_run_that_ended_are_evidence_and_asked_for_once(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()
    await said(engine, one)
    text = "".join(f"line {index}\n" for index in range(100)) + "ValueError: bad model\n"
    world.api.set_log(one.namespace, "pod-1", "kserve-container", text, previous=True)
    world.put_pod(one, **CRASHED)

    def has_tail(observation: Observation) -> bool:
        return any(each.exit and each.exit.log_tail for each in observation.replicas)

    found = await seen(engine, one.uid, has_tail, "the last lines")
    ended = found.replicas[0].exit
    assert ended is not None
    assert ended.log_tail[-1] == "ValueError: bad model"
    assert ended.exit_code == 3
    pod = world.put_pod(one, **CRASHED)
    await wait_until(
        lambda: _true(world.api.store.get("Pod", "pod-1", one.namespace) == pod), "the pod to be written"
    )
    await seen(engine, one.uid, has_tail, "the last lines to be kept")
    assert world.api.requests.count(resource="pods/log") == 1


async def test_logs_of_this_run_and_of_the_one_before(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()

    async def read(**asked: Any) -> list[tuple[str, str]]:
        return [(line.replica, line.text) async for line in engine.logs(one.uid, **asked)]

    with pytest.raises(EngineError, match="no pod"):
        await read()
    await said(engine, one)
    world.put_pod(
        one,
        ready=True,
        restartCount=1,
        state={"running": {"startedAt": "2026-11-25T07:00:03Z"}},
        lastState=CRASHED["lastState"],
    )
    world.api.set_log(one.namespace, "pod-1", "kserve-container", "one\ntwo\nthree\n")
    world.api.set_log(one.namespace, "pod-1", "kserve-container", "before\n", previous=True)
    await seen(engine, one.uid, lambda o: o.replicas[0].state is ReplicaState.READY, "the pod")
    assert await read() == [("r1-0", "one"), ("r1-0", "two"), ("r1-0", "three")]
    assert await read(replica="r1-0", tail_lines=1) == [("r1-0", "three")]
    assert await read(previous=True) == [("r1-0", "before")]
    with pytest.raises(EngineError, match="r9-9"):
        await read(replica="r9-9")


# --- preflight ------------------------------------------------------------------------------------


async def test_a_preflight_says_what_is_missing_and_changes_nothing(world: KubeWorld) -> None:
    engine, one = await world.started(), endpoint()
    gpu = GpuSpec(Selection(cluster_name="c", gpus_per_node=64))
    wanting = replace(one, spec=replace(one.spec, gpu=gpu))
    checks = {each.check: each for each in await engine.preflight(target(wanting))}
    assert checks["permissions"].ok
    assert checks["runtime"].reason is ReasonCode.NO_RUNTIME
    assert not checks["capacity"].ok
    assert created(world.api) in ([], [each for each in created(world.api) if "selfsubject" in each])
    assert await engine.owned() == frozenset()
