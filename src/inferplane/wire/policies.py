"""What an Owner allows a workspace, on the wire."""

from __future__ import annotations

import msgspec


class GpuConstraints(msgspec.Struct, frozen=True, rename="camel"):
    """Bounds on each GPR of the workspace. `max_gpu_per_gpr` counts the GPUs of all its nodes.

    None and () mean no bound.
    """

    gpu_shapes: tuple[str, ...] = ()
    max_gpu_per_gpr: int | None = msgspec.field(default=None, name="maxGPUPerGpr")
    max_memory_per_gpr: int | None = None


class PolicyItem(msgspec.Struct, frozen=True, rename="camel"):
    """One workspace's policy.

    `priority_range` is `low` (1-100), `medium` (101-200), `high` (201-299) or two numbers such as `1-200`.
    None and "" mean no limit beyond the platform's own. `enable_auto_eviction` and `requeue_on_failure`
    hold for every GPR; without them it is each GPR's own to say. The last two are ours.
    """

    workspace_name: str
    priority_range: str = msgspec.field(name="PriorityRange")
    max_gprs: int | None = msgspec.field(name="maxGPRs")
    max_exit_duration_per_gpr: str = msgspec.field(name="maxExitDurationPerGPR")
    requeue_on_failure: bool
    enable_auto_eviction: bool
    global_gpu_constraints: GpuConstraints | None = msgspec.field(name="globalGPUConstraints")
    max_inference_endpoints: int | None
    enforce_idle_time_out: bool = False
    max_queued_gprs: int = msgspec.field(default=100, name="maxQueuedGPRs")


class PolicyEnvelope(msgspec.Struct, frozen=True, rename="camel"):
    """`GET` and `PUT /workspace-policies/{workspace}`."""

    item: PolicyItem


class PolicyList(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /workspace-policies`: one item for each workspace the caller may see."""

    items: tuple[PolicyItem, ...] = ()


class GpuConstraintsBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The same bounds, grouped as they are shown."""

    gpu_shapes: list[str] | None = None
    max_gpu_per_gpr: int | None = None
    max_memory_per_gpr: int | None = None


class PolicyBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`PUT /workspace-policies/{workspace}`: what is absent or null stays as it is.

    To take a limit away again, send -1 for a number, "" for a text, [] for a list.
    """

    priority_range: str | None = None
    max_gprs: int | None = msgspec.field(default=None, name="maxGPRs")
    max_queued_gprs: int | None = msgspec.field(default=None, name="maxQueuedGPRs")
    max_exit_duration_per_gpr: str | None = msgspec.field(default=None, name="maxExitDurationPerGPR")
    requeue_on_failure: bool | None = None
    enable_auto_eviction: bool | None = None
    enforce_idle_time_out: bool | None = None
    global_gpu_constraints: GpuConstraintsBody | None = msgspec.field(
        default=None, name="globalGPUConstraints"
    )
    gpu_shapes: list[str] | None = None
    max_gpu_per_gpr: int | None = None
    max_memory_per_gpr: int | None = None
    max_inference_endpoints: int | None = None
