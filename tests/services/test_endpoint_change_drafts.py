"""What a request to change an endpoint makes of its spec: laid over what is there, and held to the same rules."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from inferplane.domain.endpoint import (
    EndpointSpec,
    GpuSpec,
    InferenceEndpoint,
    ModelSpec,
    Replica,
    ReplicaId,
    ReplicaState,
    Resources,
    Scaling,
)
from inferplane.domain.errors import Conflict, Invalid
from inferplane.domain.gpu_request import Selection
from inferplane.domain.rollout import Guard, Rollout, RolloutNote, RolloutPhase, Strategy
from inferplane.services.endpoint_change_drafts import (
    CanaryDraft,
    Change,
    ChangeDraft,
    GuardDraft,
    ModelChange,
    understand_change,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
UID = "0123456789ab"
DIGEST = "sha256:" + "0" * 64
MODEL = ModelSpec(
    "sklearn",
    "/models/one.joblib",
    args=("--verbose",),
    env=(("A", "1"),),
    resources=Resources(500, 1024**3),
    digest=DIGEST,
    alias="flowers",
)
TWO = ModelChange(storage_uri="/models/two.joblib")
GPU = GpuSpec(Selection(gpu_shape="A100"))


def endpoint(*, serving: bool = True, **spec: Any) -> InferenceEndpoint:
    made = InferenceEndpoint(
        UID, "w", "local", "iris", "w-iris-000000", EndpointSpec(MODEL, **spec), 1, T0, "ada"
    )
    if not serving:
        return made
    ready = Replica(ReplicaId(UID, made.spec.revision, 0), ReplicaState.READY)
    return replace(made, status=replace(made.status, replicas=(ready,)))


def change(before: InferenceEndpoint, **given: Any) -> Change:
    draft = ChangeDraft("w", "iris", **given)
    return understand_change(before, draft, manifest_bytes_max=64 * 1024, at=T0, by="bob")


def on_its_way(**rollout: Any) -> InferenceEndpoint:
    """An endpoint of which revision 2 gets its share beside revision 1."""
    before = endpoint()
    started = replace(before, spec=change(before, model=TWO, canary=CanaryDraft(10)).spec)
    assert started.spec.rollout is not None
    spec = replace(started.spec, rollout=replace(started.spec.rollout, **rollout))
    note = RolloutNote(1, 2, RolloutPhase.SHIFTED, T0)
    return replace(started, spec=spec, status=replace(started.status, rollout=note))


def manifest(predictor: str = "", uri: str = "/models/two.joblib") -> str:
    return (
        "spec:\n  predictor:\n    model:\n      modelFormat: {name: sklearn}\n"
        f"      storageUri: {uri}\n{predictor}"
    )


# The model


def test_what_is_not_given_of_a_model_stays() -> None:
    made = change(endpoint(), model=ModelChange(args=(), cpu=2))
    assert made.spec.model == replace(MODEL, args=(), resources=Resources(2000, 1024**3))
    assert (made.spec.revision, made.secret) == (2, None)


def test_another_place_takes_the_old_digest_away_unless_one_is_given() -> None:
    assert change(endpoint(), model=TWO).spec.model.digest == ""
    other = "sha256:" + "1" * 64
    assert change(endpoint(), model=replace(TWO, digest=other)).spec.model.digest == other
    assert change(endpoint(), model=ModelChange(cpu=1)).spec.model.digest == DIGEST


def test_what_model_spec_has_no_words_for_stays() -> None:
    assert change(endpoint(), model=TWO).spec.model.alias == "flowers"


def test_a_model_that_only_a_manifest_describes_is_changed_by_a_manifest() -> None:
    own = replace(MODEL, format="custom", command=("serve",))
    with pytest.raises(Invalid) as caught:
        change(replace(endpoint(), spec=EndpointSpec(own)), model=TWO)
    assert caught.value.details[0].reason == "NeedsManifest"


def test_arguments_without_effect_are_told_of_when_they_are_given() -> None:
    assert change(endpoint(), model=TWO).warnings == ()
    assert "--idle" in change(endpoint(), model=ModelChange(args=("--idle",))).warnings[0]


def test_the_same_again_changes_nothing_and_says_so() -> None:
    made = change(endpoint(), model=ModelChange(storage_uri=MODEL.storage_uri))
    assert made.changes_nothing
    assert made.spec == endpoint().spec
    assert "nothing of this is different" in made.warnings[-1]


def test_a_restart_is_a_revision_of_the_same_model() -> None:
    made = change(endpoint(), restart=True)
    assert (made.spec.model, made.spec.revision) == (MODEL, 2)
    assert made.spec.rollout == Rollout(1)
    assert made.message.startswith(
        "revision 2, the same sklearn model from /models/one.joblib again, takes over"
    )
    careful = change(endpoint(), restart=True, canary=CanaryDraft(10), min_replicas=2)
    assert careful.spec.rollout is not None
    assert (careful.spec.rollout.canary_percent, careful.spec.scaling.min_replicas) == (10, 2)
    assert change(on_its_way(), restart=True).spec.revision == 3
    on_gpus = change(endpoint(gpu=GPU), restart=True)
    assert on_gpus.spec.rollout == Rollout(1, strategy=Strategy.STOP_THEN_START)


def test_other_credentials_alone_make_no_revision() -> None:
    made = change(endpoint(), model=ModelChange(secret={"TOKEN": "hunter2"}))
    assert (made.spec.revision, made.secret) == (1, {"TOKEN": "hunter2"})
    assert not made.changes_nothing
    assert "hunter2" not in repr(made) + repr(made.wish) + made.message


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        change(
            endpoint(),
            model=ModelChange(storage_uri="ftp://x", digest="no"),
            canary=CanaryDraft(percent=101),
            guard=GuardDraft(requests_min=0),
            strategy="both",
        )
    assert [each.field for each in caught.value.details] == [
        "modelSpec.storageURI",
        "modelSpec.digest",
        "canary.percent",
        "guard.requestsMin",
        "strategy",
    ]


# Manifests


def test_a_manifest_replaces_model_and_bounds() -> None:
    made = change(endpoint(scaling=Scaling(2, 4)), manifest_text=manifest("    maxReplicas: 3\n"))
    assert (made.spec.model.storage_uri, made.spec.model.args) == ("/models/two.joblib", ())
    assert made.spec.scaling == Scaling(1, 3)
    assert made.spec.manifest is not None


def test_a_canary_that_a_manifest_gives_counts_for_a_new_revision() -> None:
    text = manifest("    canaryTrafficPercent: 20\n")
    made = change(endpoint(), manifest_text=text)
    assert made.spec.rollout is not None
    assert made.spec.rollout.canary_percent == 20
    assert not any("canaryTrafficPercent" in each for each in made.warnings)
    done = replace(endpoint(), spec=replace(made.spec, rollout=None))
    assert change(done, manifest_text=text).changes_nothing


def test_a_manifest_that_says_stop_stops() -> None:
    text = "metadata: {annotations: {serving.kserve.io/stop: 'true'}}\n" + manifest()
    made = change(endpoint(), manifest_text=text)
    assert (made.spec.stopped, made.spec.stopped_by) == (True, "bob")


# Bounds


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"min_replicas": 3}, Scaling(3, 3, target_rate=5.0)),
        ({"max_replicas": 1}, Scaling(1, 1, target_rate=5.0)),
        ({"max_replicas": 9}, Scaling(2, 9, target_rate=5.0)),
        ({"target_concurrency": 4.0}, Scaling(2, 2, 4.0, 5.0)),
        ({"target_rate": 0.0}, Scaling(2, 2)),
    ],
)
def test_bounds_are_laid_over_those_there_are(given: dict[str, Any], wanted: Scaling) -> None:
    made = change(endpoint(scaling=Scaling(2, 2, target_rate=5.0)), **given)
    assert (made.spec.scaling, made.spec.revision) == (wanted, 1)


def test_a_contradiction_among_bounds_is_refused() -> None:
    with pytest.raises(Invalid, match="minReplicas 5 is greater"):
        change(endpoint(), min_replicas=5, max_replicas=2)


# How it takes over


def test_without_more_said_it_takes_over_once_it_answers() -> None:
    made = change(endpoint(), model=TWO)
    assert made.spec.rollout == Rollout(1)
    assert made.message.endswith("takes over from revision 1 once it answers")


def test_a_canary_is_kept_with_all_that_belongs_to_it() -> None:
    guard = GuardDraft(error_points=0.2, window_seconds=5)
    made = change(endpoint(), model=TWO, canary=CanaryDraft(10, 5, "X-User"), guard=guard)
    rollout = made.spec.rollout
    assert rollout is not None
    assert (rollout.canary_percent, rollout.mirror_percent, rollout.sticky_header) == (10, 5, "x-user")
    assert (rollout.guard.error_points, rollout.guard.window.seconds) == (0.2, 5)
    assert rollout.guard.requests_min == Guard().requests_min
    assert "10 % of requests and copies of 5 % of requests" in made.message


@pytest.mark.parametrize("before", [endpoint(serving=False), endpoint(stopped=True)], ids=["new", "stopped"])
def test_where_nothing_serves_nothing_is_taken_over(before: InferenceEndpoint) -> None:
    made = change(before, model=TWO, canary=CanaryDraft(10))
    assert (made.spec.revision, made.spec.rollout) == (2, None)
    assert "canary has no effect" in made.warnings[0]


@pytest.mark.parametrize("strategy", [None, "startThenStop"])
def test_what_needs_two_revisions_is_refused_on_gpus(strategy: str | None) -> None:
    with pytest.raises(Invalid) as caught:
        change(endpoint(gpu=GPU), model=TWO, canary=CanaryDraft(10), strategy=strategy)
    assert caught.value.reason == "NoRoomForBoth"


def test_on_gpus_it_starts_in_place_and_that_is_said() -> None:
    made = change(endpoint(gpu=GPU), model=TWO)
    assert made.spec.rollout == Rollout(1, strategy=Strategy.STOP_THEN_START)
    assert made.message.endswith("in place of revision 1: on GPUs there is no room for both")
    assert "in between nothing answers" in made.warnings[0]


def test_gpus_that_are_shared_out_are_not_shared_out_anew() -> None:
    with pytest.raises(Invalid) as caught:
        change(endpoint(gpu=GPU), max_replicas=2)
    assert (caught.value.reason, caught.value.field) == ("CannotChange", "autoscaling.maxReplicas")
    assert change(endpoint(gpu=GPU, stopped=True), max_replicas=2).spec.scaling.max_replicas == 2


# The revision on its way


def test_another_share_is_no_revision() -> None:
    made = change(on_its_way(), canary=CanaryDraft(50, sticky_header="x-user"))
    assert made.spec.revision == 2
    assert made.spec.rollout is not None
    assert (made.spec.rollout.canary_percent, made.spec.rollout.sticky_header) == (50, "x-user")
    assert made.message == "50 % of requests for revision 2"


def test_the_model_on_its_way_given_again_with_another_share_is_only_the_share() -> None:
    made = change(on_its_way(), model=TWO, canary=CanaryDraft(50))
    assert (made.spec.revision, made.message) == (2, "50 % of requests for revision 2")


def test_a_share_with_nobody_on_its_way_is_refused() -> None:
    with pytest.raises(Conflict) as caught:
        change(endpoint(), canary=CanaryDraft(50))
    assert caught.value.reason == "NoRollout"


def test_a_guard_can_be_changed_on_the_way_and_counts_for_nothing_else() -> None:
    made = change(on_its_way(), guard=GuardDraft(enabled=False))
    assert made.spec.rollout is not None
    assert not made.spec.rollout.guard.enabled
    in_place = on_its_way(canary_percent=None, strategy=Strategy.STOP_THEN_START)
    assert not change(in_place, guard=GuardDraft(enabled=False)).changes_nothing
    assert "guard has no effect" in change(endpoint(), guard=GuardDraft(enabled=False)).warnings[0]


def test_a_strategy_without_another_model_has_no_effect() -> None:
    made = change(endpoint(), min_replicas=2, strategy="stopThenStart")
    assert made.spec.rollout is None
    assert "strategy has no effect" in made.warnings[0]
