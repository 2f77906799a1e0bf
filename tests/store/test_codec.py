"""Every value comes back as it went in; rows of other versions load all the same."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferplane.domain.access import ApiKey, Role
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.endpoint import (
    EndpointSpec,
    EndpointStatus,
    Exit,
    InferenceEndpoint,
    Milestone,
    ModelInfo,
    ModelSpec,
    Replica,
    ReplicaId,
    ReplicaState,
    Resources,
    RestartRecord,
    Scaling,
    TrafficLimits,
)
from inferplane.domain.events import Event
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.workspace import Cluster, Workspace
from inferplane.store import codec

UID = "0123456789ab"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
lines = st.lists(texts, max_size=3).map(tuple)
wholes = st.integers(-(2**63), 2**63 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
reasons = st.sampled_from(ReasonCode)
json_values = st.recursive(
    st.none() | st.booleans() | wholes | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, json_values, max_size=3)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


specs = st.builds(
    EndpointSpec,
    model=st.builds(
        ModelSpec,
        format=texts,
        storage_uri=texts,
        format_version=texts,
        runtime=texts,
        protocol_version=texts,
        args=lines,
        env=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
        resources=st.builds(Resources, cpu_millis=maybe(wholes), memory_bytes=maybe(wholes)),
        digest=texts,
        alias=texts,
        start_timeout_seconds=numbers,
    ),
    scaling=st.builds(Scaling, min_replicas=wholes, max_replicas=wholes),
    limits=st.builds(TrafficLimits, max_request_bytes=wholes, timeout_seconds=numbers),
    revision=wholes,
    stopped=st.booleans(),
    stopped_by=texts,
    stopped_at=maybe(moments),
    manifest=maybe(objects),
)
artifacts = st.builds(
    ArtifactState,
    phase=st.sampled_from(ArtifactPhase),
    uri=texts,
    path=texts,
    digest=texts,
    received_bytes=wholes,
    total_bytes=maybe(wholes),
    resumed_from_bytes=wholes,
    rate_bytes_per_second=numbers,
    started_at=maybe(moments),
    finished_at=maybe(moments),
    reason=maybe(reasons),
    message=texts,
    attempts=wholes,
    next_attempt_at=maybe(moments),
)
exits = st.builds(
    Exit, at=moments, exit_code=maybe(wholes), signal=texts, reason=reasons, message=texts, log_tail=lines
)
models = st.builds(
    ModelInfo,
    example=texts,
    inputs=st.lists(objects, max_size=2).map(tuple),
    outputs=st.lists(objects, max_size=2).map(tuple),
    protocols=lines,
)
replicas = st.builds(
    Replica,
    id=st.builds(ReplicaId, endpoint_uid=st.just(UID), revision=wholes, index=wholes),
    state=st.sampled_from(ReplicaState),
    address=texts,
    pid=maybe(wholes),
    started_at=maybe(moments),
    ready_at=maybe(moments),
    exit=maybe(exits),
    model=maybe(models),
)
statuses = st.builds(
    EndpointStatus,
    observed_generation=wholes,
    artifact=artifacts,
    replicas=st.lists(replicas, max_size=3).map(tuple),
    restarts=st.lists(
        st.builds(RestartRecord, replica=texts, failures=wholes, last_exit=exits, next_start_at=moments),
        max_size=2,
    ).map(tuple),
    routed=lines,
    milestones=st.lists(st.tuples(st.sampled_from(Milestone), moments), max_size=5).map(tuple),
    model=maybe(models),
    problem=maybe(reasons),
    problem_message=texts,
    left=lines,
    since=maybe(moments),
)
endpoints = st.builds(
    InferenceEndpoint,
    uid=st.just(UID),
    workspace=texts,
    cluster=texts,
    name=texts,
    namespace=texts,
    spec=specs,
    generation=wholes,
    created_at=moments,
    created_by=texts,
    status=statuses,
    deletion_requested_at=maybe(moments),
    deletion_requested_by=texts,
    version=wholes,
)

thorough = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@thorough
@given(endpoints)
def test_endpoints_come_back(endpoint: InferenceEndpoint) -> None:
    assert codec.endpoint_from_row(codec.endpoint_to_row(endpoint)) == endpoint


@thorough
@given(st.data())
def test_other_values_come_back(data: st.DataObject) -> None:
    event = data.draw(
        st.builds(
            Event,
            at=moments,
            kind=texts,
            message=texts,
            actor=texts,
            workspace=texts,
            endpoint=texts,
            endpoint_uid=texts,
            reason=maybe(reasons),
            data=objects,
            seq=wholes,
        )
    )
    assert codec.event_from_row(codec.event_to_row(event) | {"seq": event.seq}) == event
    workspace = data.draw(
        st.builds(
            Workspace,
            name=texts,
            clusters=lines,
            created_at=moments,
            namespaces=lines,
            username=texts,
            email=texts,
        )
    )
    assert codec.workspace_from_row(codec.workspace_to_row(workspace)) == workspace
    cluster = data.draw(st.builds(Cluster, name=texts, engine=texts, created_at=moments, domain=texts))
    assert codec.cluster_from_row(codec.cluster_to_row(cluster)) == cluster
    key = data.draw(
        st.builds(
            ApiKey,
            id=texts,
            name=texts,
            digest=texts,
            masked=texts,
            role=st.sampled_from(Role),
            workspace=texts,
            created_at=moments,
            expires_at=moments,
            created_by=texts,
            user_name=texts,
            description=texts,
            validity=texts,
            last_used_at=maybe(moments),
        )
    )
    assert codec.api_key_from_row(codec.api_key_to_row(key)) == key


def test_the_strategies_above_speak_of_every_field() -> None:
    """A field added to a value but not to the codec would otherwise go unnoticed: its default comes back."""
    seen: dict[type, set[str]] = {}

    def look(value: object) -> None:
        if is_dataclass(value) and not isinstance(value, type):
            for field in fields(value):
                item = getattr(value, field.name)
                default = field.default
                if item != default:
                    seen.setdefault(type(value), set()).add(field.name)
                look(item)
        elif isinstance(value, tuple):
            for item in value:
                look(item)

    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(endpoints)
    def collect(endpoint: InferenceEndpoint) -> None:
        look(endpoint)

    collect()
    missing = {
        kind.__name__: sorted({field.name for field in fields(kind)} - names) for kind, names in seen.items()
    }
    assert {name: lost for name, lost in missing.items() if lost} == {}
    assert len(seen) == 13  # every kind of value within an endpoint was drawn


@thorough
@given(specs, statuses, st.data())
def test_rows_with_keys_missing_or_odd_still_load(
    spec: EndpointSpec, status: EndpointStatus, data: st.DataObject
) -> None:
    for text, load in (
        (codec.spec_to_json(spec), codec.spec_from_json),
        (codec.status_to_json(status), lambda text: codec.status_from_json(text, UID)),
    ):
        damaged = _damage(json.loads(text), data)
        assert is_dataclass(load(json.dumps(damaged)))


@thorough
@given(json_values)
def test_any_json_loads_as_something(value: Any) -> None:
    text = json.dumps(value)
    assert isinstance(codec.spec_from_json(text), EndpointSpec)
    assert isinstance(codec.status_from_json(text, UID), EndpointStatus)


def test_what_a_row_lacks_takes_its_default() -> None:
    bare = codec.spec_from_json('{"model":{"format":"sklearn","storage_uri":"file:///m"}}')
    assert bare == EndpointSpec(ModelSpec(format="sklearn", storage_uri="file:///m"))
    assert codec.status_from_json("{}", UID) == EndpointStatus()
    assert codec.status_from_json("no json", UID) == EndpointStatus()


def test_words_of_a_newer_version_are_skipped() -> None:
    text = """{"new":1,"problem":"Eclipse","artifact":{"phase":"Teleporting","uri":"u"},
        "replicas":[{"revision":1,"index":0,"state":"Dreaming"},{"revision":1,"index":1,"state":"Ready","colour":"red"}],
        "milestones":[["accepted",1000000],["ascended",2000000],["ready"]],
        "restarts":[{"replica":"r1-0","failures":2,"last_exit":{"at":5,"reason":"Ennui"},"next_start_at":6},{}]}"""
    status = codec.status_from_json(text, UID)
    assert status.problem is None
    assert status.artifact == ArtifactState(uri="u")
    assert status.replicas == (Replica(ReplicaId(UID, 1, 1), ReplicaState.READY),)
    assert status.milestones == ((Milestone.ACCEPTED, datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)),)
    (record,) = status.restarts
    assert record.last_exit.reason is ReasonCode.SERVER_EXITED


def test_what_json_cannot_hold_is_replaced() -> None:
    value = {
        True: 1,
        None: [float("nan"), 10**30, {"s"}],
        "half": "\ud800",
        3: b"x",
        "when": datetime(2026, 1, 1, tzinfo=UTC),
    }
    read = codec.from_json(codec.to_json(value))
    assert read["half"] == "?"
    assert read["True"] == 1
    assert read["None"] == [None, "1" + "0" * 30, ["s"]]


def test_moments_keep_their_microseconds_and_their_meaning() -> None:
    at = datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=UTC)
    assert codec.from_micros(codec.to_micros(at)) == at
    elsewhere = at.astimezone(tz=_hours(5))
    assert codec.to_micros(elsewhere) == codec.to_micros(at)


def _hours(hours: int) -> Any:
    from datetime import timezone

    return timezone(timedelta(hours=hours))


def _damage(value: Any, data: st.DataObject) -> Any:
    """`value` with some keys gone and some items replaced by something else."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if data.draw(st.integers(0, 9)) != 0}
        return {key: _damage(item, data) for key, item in kept.items()}
    if isinstance(value, list):
        return [_damage(item, data) for item in value]
    return data.draw(json_values) if data.draw(st.integers(0, 9)) == 0 else value
