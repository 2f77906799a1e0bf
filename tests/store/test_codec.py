"""Every value comes back as it went in; rows of other versions load all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from inferplane.domain.access import ApiKey, Role
from inferplane.domain.artifact import ArtifactPhase, ArtifactState
from inferplane.domain.cluster import ClusterConnection, ClusterReport, Drift
from inferplane.domain.endpoint import (
    EndpointSpec,
    EndpointStatus,
    Exit,
    GpuNote,
    GpuSpec,
    InferenceEndpoint,
    Ingress,
    Milestone,
    ModelInfo,
    ModelSpec,
    Replica,
    ReplicaId,
    ReplicaState,
    Resources,
    RestartRecord,
    Revision,
    ScaleNote,
    Scaling,
    TrafficLimits,
    Waiting,
)
from inferplane.domain.endpoint_access import Access
from inferplane.domain.events import Event
from inferplane.domain.gpr_template import BoundCluster, GprTemplate, GprTemplateBinding
from inferplane.domain.gpu_request import GpuRequest, Grant, ProvisioningStatus, Selection
from inferplane.domain.inventory import Gpu, Node, NodeHealth
from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode
from inferplane.domain.rollout import Guard, Rollout, RolloutNote, RolloutPhase, Strategy
from inferplane.domain.wait_note import WaitNote
from inferplane.domain.workspace import Cluster, Workspace, WorkspacePolicy
from inferplane.store import codec, gpu_codec, values

UID = "0123456789ab"
NOW = datetime(2026, 1, 1, tzinfo=UTC)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
lines = st.lists(texts, max_size=3).map(tuple)
wholes = st.integers(-(2**63), 2**63 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
spans = st.timedeltas(timedelta(0), timedelta(days=400))
reasons = st.sampled_from(ReasonCode)
provisioning = st.sampled_from(ProvisioningStatus)
json_values = st.recursive(
    st.none() | st.booleans() | wholes | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, json_values, max_size=3)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


node_gpus = st.lists(st.tuples(texts, st.lists(wholes, max_size=3).map(tuple)), max_size=2).map(tuple)
selections = st.builds(
    Selection,
    cluster_name=texts,
    preferred_clusters=lines,
    auto_cluster=st.booleans(),
    auto_gpu=st.booleans(),
    gpu_shape=texts,
    instance_type=texts,
    memory_gb=wholes,
    gpus_per_node=wholes,
    nodes=wholes,
)
gpu_specs = st.builds(
    GpuSpec,
    selection=selections,
    exit_duration=spans,
    priority=wholes,
    idle_timeout=maybe(spans),
    enforce_idle=st.booleans(),
    auto_renew=st.booleans(),
    enable_eviction=st.booleans(),
    requeue_on_failure=st.booleans(),
)
gpu_notes = st.builds(
    GpuNote,
    gpr_id=texts,
    status=provisioning,
    cluster=texts,
    nodes=node_gpus,
    position=maybe(wholes),
    message=texts,
    estimated_start=maybe(moments),
    since=maybe(moments),
    ended_reason=maybe(reasons),
    requeues=st.booleans(),
    assumption=texts,
    remedy=texts,
    reason=reasons,
)
grants = st.builds(
    Grant, cluster=texts, nodes=node_gpus, gpu_shape=texts, instance_type=texts, memory_gb=wholes
)
gpu_requests = st.builds(
    GpuRequest,
    id=texts,
    name=texts,
    workspace=texts,
    selection=selections,
    created_at=moments,
    queued_at=moments,
    exit_duration=spans,
    priority=wholes,
    created_by=texts,
    endpoint_uid=texts,
    endpoint_name=texts,
    idle_timeout=maybe(spans),
    enforce_idle=st.booleans(),
    enable_eviction=st.booleans(),
    requeue_on_failure=st.booleans(),
    auto_renew=st.booleans(),
    multi_node=st.booleans(),
    dedicated_nodes=st.booleans(),
    enable_rdma=st.booleans(),
    enable_secondary_network=st.booleans(),
    status=provisioning,
    grant=maybe(grants),
    granted_at=maybe(moments),
    started_at=maybe(moments),
    renewed_until=maybe(moments),
    idle_since=maybe(moments),
    draining_since=maybe(moments),
    completed_at=maybe(moments),
    ending_as=maybe(provisioning),
    early_release=st.booleans(),
    failure_reason=texts,
    failure_code=maybe(reasons),
    released_by=texts,
    evicted_by=texts,
    evicted_at=maybe(moments),
    retry_count=wholes,
    delayed_count=wholes,
    version=wholes,
)
wait_notes = st.builds(
    WaitNote,
    position=maybe(wholes),
    explanation=texts,
    estimated_start=maybe(moments),
    assumption=texts,
    at=moments,
    remedy=texts,
    reason=reasons,
)
policies = st.builds(
    WorkspacePolicy,
    workspace=texts,
    priority_lowest=wholes,
    priority_highest=wholes,
    max_requests=maybe(wholes),
    max_queued=wholes,
    max_exit_duration=maybe(spans),
    gpu_shapes=lines,
    max_gpus_per_request=maybe(wholes),
    max_memory_gb_per_request=maybe(wholes),
    max_endpoints=maybe(wholes),
    requeue_on_failure=st.booleans(),
    auto_eviction=st.booleans(),
    enforce_idle_timeout=st.booleans(),
)
templates = st.builds(
    GprTemplate,
    name=texts,
    cluster=texts,
    gpus_per_node=wholes,
    nodes=wholes,
    memory_gb=wholes,
    gpu_shape=texts,
    instance_type=texts,
    exit_duration=spans,
    priority=wholes,
    enforce_idle=st.booleans(),
    idle_timeout=maybe(spans),
    enable_eviction=st.booleans(),
    requeue_on_failure=st.booleans(),
)
bindings = st.builds(
    GprTemplateBinding,
    workspace=texts,
    clusters=st.lists(
        st.builds(BoundCluster, cluster=texts, default_template=texts, templates=lines), max_size=2
    ).map(tuple),
    enable_auto_gpr=st.booleans(),
)
nodes = st.builds(
    Node,
    cluster=texts,
    name=texts,
    instance_type=texts,
    gpu_shape=texts,
    gpu_count=wholes,
    memory_gb=wholes,
    health=st.sampled_from(NodeHealth),
    simulated=st.booleans(),
    gpus=st.lists(
        st.builds(Gpu, index=wholes, uuid=texts, model_name=texts, healthy=st.booleans()), max_size=2
    ).map(tuple),
    gpu_model_name=texts,
    cloud_provider=texts,
    region=texts,
    host=texts,
    health_since=maybe(moments),
)
model_specs = st.builds(
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
    command=st.lists(texts, max_size=2).map(tuple),
    ready_path=texts,
    start_timeout_seconds=numbers,
)
first_and_later = st.integers(1, 2**31)
positive_spans = st.timedeltas(timedelta(microseconds=1), timedelta(days=400))
revisions = st.builds(
    Revision,
    number=first_and_later,
    model=model_specs,
    created_at=moments,
    created_by=texts,
    rolled_back=st.booleans(),
)
rollouts = st.builds(
    Rollout,
    base=first_and_later,
    canary_percent=maybe(wholes),
    mirror_percent=wholes,
    sticky_header=texts,
    strategy=st.sampled_from(Strategy),
    observe=positive_spans,
    guard=st.builds(
        Guard,
        enabled=st.booleans(),
        error_points=numbers,
        latency_factor=numbers,
        latency_least_ms=numbers,
        requests_min=wholes,
        window=positive_spans,
    ),
)
rollout_notes = st.builds(
    RolloutNote,
    base=wholes,
    candidate=wholes,
    phase=st.sampled_from(RolloutPhase),
    since=moments,
    message=texts,
)
specs = st.builds(
    EndpointSpec,
    model=model_specs,
    scaling=st.builds(
        Scaling,
        min_replicas=wholes,
        max_replicas=wholes,
        target_concurrency=maybe(numbers),
        target_rate=maybe(numbers),
        scale_to_zero_after=spans,
    ),
    limits=st.builds(
        TrafficLimits,
        max_request_bytes=wholes,
        timeout_seconds=numbers,
        requests_per_second=maybe(numbers),
        burst=maybe(wholes),
        requests_per_second_per_key=maybe(numbers),
        concurrency_max=maybe(wholes),
        concurrency_max_per_key=maybe(wholes),
    ),
    revision=wholes,
    stopped=st.booleans(),
    stopped_by=texts,
    stopped_at=maybe(moments),
    stopped_because=texts,
    manifest=maybe(objects),
    gpu=maybe(gpu_specs),
    revisions=st.lists(revisions, max_size=2).map(tuple),
    rollout=maybe(rollouts),
    qualified_host=st.booleans(),
    access=st.sampled_from(Access),
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
    note=texts,
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
    waiting=maybe(
        st.builds(
            Waiting,
            reason=reasons,
            message=texts,
            since=maybe(moments),
            fails=st.booleans(),
            next_try_at=maybe(moments),
        )
    ),
)
scale_notes = st.builds(
    ScaleNote,
    replicas=st.integers(0, 100),
    message=texts,
    since=maybe(moments),
    last_request_at=maybe(moments),
    waking_since=maybe(moments),
    wake_seconds=maybe(numbers),
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
    ends=st.lists(st.tuples(texts, wholes), max_size=2).map(tuple),
    routed=lines,
    milestones=st.lists(st.tuples(st.sampled_from(Milestone), moments), max_size=5).map(tuple),
    model=maybe(models),
    problem=maybe(reasons),
    problem_message=texts,
    left=lines,
    since=maybe(moments),
    gpu=maybe(gpu_notes),
    rollout=maybe(rollout_notes),
    scale=maybe(scale_notes),
    ingress=maybe(st.builds(Ingress, url=texts, address=texts, ready=st.booleans(), message=texts)),
    unreachable_since=maybe(moments),
    unreachable_message=texts,
    drift=texts,
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

KINDS = 32
"""Kinds of values that are stored as JSON."""

ROUNDS_MAX = 20

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
            gpu_request_id=texts,
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
    connection = st.builds(
        ClusterConnection,
        kubeconfig=texts,
        context=texts,
        in_cluster=st.booleans(),
        drift=st.sampled_from(Drift),
        declared=st.booleans(),
    )
    check = st.builds(Check, check=texts, ok=st.booleans(), reason=maybe(reasons), message=texts)
    report = st.builds(
        ClusterReport,
        at=moments,
        reachable=st.booleans(),
        since=moments,
        message=texts,
        version=texts,
        kserve_mode=texts,
        runtimes=lines,
        checks=st.lists(check, max_size=2).map(tuple),
    )
    cluster = data.draw(
        st.builds(
            Cluster,
            name=texts,
            engine=texts,
            created_at=moments,
            domain=texts,
            ingress_address=texts,
            connection=maybe(connection),
            report=maybe(report),
        )
    )
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


@thorough
@given(gpu_requests, wait_notes)
def test_gpu_requests_and_what_is_said_of_them_come_back(request: GpuRequest, note: WaitNote) -> None:
    assert gpu_codec.gpu_request_from_row(gpu_codec.gpu_request_to_row(request)) == request
    assert gpu_codec.wait_note_from_json(gpu_codec.wait_note_to_json(note)) == note


@thorough
@given(policies, templates, bindings, nodes)
def test_what_gpu_requests_are_decided_from_comes_back(
    policy: WorkspacePolicy, template: GprTemplate, binding: GprTemplateBinding, node: Node
) -> None:
    assert gpu_codec.policy_from_row(gpu_codec.policy_to_row(policy)) == policy
    assert gpu_codec.template_from_row(gpu_codec.template_to_row(template)) == template
    assert gpu_codec.binding_from_row(gpu_codec.binding_to_row(binding)) == binding
    assert gpu_codec.node_from_row(gpu_codec.node_to_row(node)) == node


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

    def missing() -> dict[str, list[str]]:
        lost = {kind: sorted({field.name for field in fields(kind)} - names) for kind, names in seen.items()}
        return {kind.__name__: names for kind, names in lost.items() if names}

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.one_of(
            endpoints, statuses, gpu_notes, gpu_requests, wait_notes, policies, templates, bindings, nodes
        )
    )
    def collect(value: object) -> None:
        look(value)

    # What is drawn depends on more than the seed. A field may be left out by chance in one round, not in all of them.
    for number in range(ROUNDS_MAX):
        seed(number)(collect)()
        if len(seen) == KINDS and not missing():
            break
    assert missing() == {}
    assert len(seen) == KINDS  # every kind of value that is stored as JSON was drawn


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
@given(
    st.one_of(
        st.tuples(gpu_requests.map(gpu_codec.gpu_request_to_row), st.just(gpu_codec.gpu_request_from_row)),
        st.tuples(policies.map(gpu_codec.policy_to_row), st.just(gpu_codec.policy_from_row)),
        st.tuples(templates.map(gpu_codec.template_to_row), st.just(gpu_codec.template_from_row)),
        st.tuples(bindings.map(gpu_codec.binding_to_row), st.just(gpu_codec.binding_from_row)),
        st.tuples(nodes.map(gpu_codec.node_to_row), st.just(gpu_codec.node_from_row)),
    ),
    st.data(),
)
def test_rows_about_gpus_with_keys_missing_or_odd_still_load(
    stored: tuple[dict[str, Any], Callable[[Any], object]], data: st.DataObject
) -> None:
    row, load = stored
    damaged = data.draw(json_values) if data.draw(st.booleans()) else _damage(json.loads(row["body"]), data)
    assert is_dataclass(load(row | {"body": json.dumps(damaged)}))


@thorough
@given(json_values)
def test_any_json_loads_as_something(value: Any) -> None:
    text = json.dumps(value)
    assert isinstance(codec.spec_from_json(text), EndpointSpec)
    assert isinstance(codec.status_from_json(text, UID), EndpointStatus)
    assert gpu_codec.wait_note_from_json(text) is None or isinstance(value["at"], int)
    assert all(isinstance(seconds, float) for seconds in gpu_codec.usage_from_json(text).values())


def test_a_gpu_request_in_a_status_of_a_newer_version_keeps_its_gpus() -> None:
    row = gpu_codec.gpu_request_to_row(
        GpuRequest("gpr-1", "n", "w", Selection(), NOW, NOW, grant=Grant("c", (("node", (0, 1)),)))
    )
    held = gpu_codec.gpu_request_from_row(row | {"status": "Hibernating"})
    assert (held.status, held.gpus_allocated) == (ProvisioningStatus.DRAINING, 2)
    bare = gpu_codec.gpu_request_from_row(row | {"status": "Hibernating", "body": "{}"})
    assert (bare.status, bare.queued_at) == (ProvisioningStatus.FAILED, NOW)


def test_a_node_in_a_state_that_is_not_known_gets_no_work() -> None:
    row = gpu_codec.node_to_row(Node("c", "n", "t", "s", 8, 80)) | {"body": '{"health":"Sleepy","gpus":[{}]}'}
    node = gpu_codec.node_from_row(row)
    assert not node.schedulable
    assert node.gpus == ()


def test_a_node_says_whose_machine_it_is_part_of_and_an_older_row_does_not() -> None:
    node = Node("c", "n", "t", "s", 8, 80, host="box")
    assert gpu_codec.node_from_row(gpu_codec.node_to_row(node)) == node
    assert gpu_codec.node_from_row(gpu_codec.node_to_row(node) | {"body": '{"health":"Healthy"}'}).host == ""


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
    read = values.from_json(values.to_json(value))
    assert read["half"] == "?"
    assert read["True"] == 1
    assert read["None"] == [None, "1" + "0" * 30, ["s"]]


def test_moments_keep_their_microseconds_and_their_meaning() -> None:
    at = datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=UTC)
    assert values.from_micros(values.to_micros(at)) == at
    elsewhere = at.astimezone(tz=_hours(5))
    assert values.to_micros(elsewhere) == values.to_micros(at)


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
