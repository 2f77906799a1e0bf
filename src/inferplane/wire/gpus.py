"""GPUs on the wire: the inventory, GPU provisioning requests (GPRs) and how long they would wait.

Memory is GB per GPU, `number_of_gpus` is per node, durations are texts (`1h15m0s`). Instants are RFC 3339
texts in UTC, "" where there is none yet: readers of the documented shapes expect every key and a text.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

SHARING_MODE = "Virtual Machine"


# --- The inventory -----------------------------------------------------------------------------


class AllocationTime(msgspec.Struct, frozen=True, rename="camel"):
    """An instant as seconds and nanoseconds since 1970; the seconds are a text."""

    seconds: str
    nanos: int = 0


class AllocationItem(msgspec.Struct, frozen=True, rename="camel"):
    """What one GPR holds of a node. `gpr_name` is its id. Both names are "" for another workspace's."""

    gpr_name: str
    slice_name: str
    total_gpus_allocated: int = msgspec.field(name="totalGPUsAllocated")
    allocation_time_stamp: AllocationTime


class SlicingProfile(msgspec.Struct, frozen=True, rename="camel"):
    """A way to cut a GPU into parts. None are offered yet."""

    profile_name: str


class DeviceItem(msgspec.Struct, frozen=True, rename="camel"):
    """One GPU of a node, and who holds it until when (`until` None: not known)."""

    index: int
    uuid: str = ""
    model_name: str = ""
    healthy: bool = True
    gpr_id: str = ""
    gpr_name: str = ""
    slice_name: str = ""
    endpoint_name: str = ""
    held: bool = False
    until: datetime | None = None


class NodeItem(msgspec.Struct, frozen=True, rename="camel"):
    """A machine with GPUs. `memory` is GB per GPU. The last two are ours."""

    gpu_node_name: str
    gpu_shape: str
    gpu_model_name: str
    instance_type: str
    cluster_name: str
    memory: int
    gpu_count: int
    available_gpus: int = msgspec.field(name="availableGPUs")
    gpu_temp_threshold: str
    gpu_power_threshold: str
    cloud_provider: str
    cloud: str
    region: str
    node_health: str
    gpu_node_state: str
    gpu_node_status: str
    allocation: tuple[AllocationItem, ...] = ()
    gpu_slicing_profile: tuple[SlicingProfile, ...] = ()
    simulated: bool = False
    gpus: tuple[DeviceItem, ...] = ()


class InventoryList(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /inventory/list`. A managed node can be granted; an unmanaged one is only known of."""

    managed_nodes: tuple[NodeItem, ...] = ()
    unmanaged_nodes: tuple[NodeItem, ...] = ()


class ShapeItem(msgspec.Struct, frozen=True, rename="camel"):
    """One kind of node that a workspace can ask for, counted."""

    instance_type: str
    gpu_shape: str
    gpu_slicing_profile: tuple[SlicingProfile, ...]
    memory_per_gpu: int
    gpu_per_node: int
    total_gpu_nodes: int
    cluster_name: str


class ShapeList(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /inventory?sliceName=`."""

    items: tuple[ShapeItem, ...] = ()


# --- Requests ----------------------------------------------------------------------------------


class CreateGpr(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`POST /gpr`, and `POST /gpr/waittime`, which also takes `requestName` for the name.

    Where: `enable_auto_cluster_selection`, or `preferred_clusters` in their order, or `cluster_name`.
    What: `enable_auto_gpu_selection` with a memory, or shape and instance type.
    """

    slice_name: str
    gpr_name: str | None = None
    request_name: str | None = None
    cluster_name: str | None = None
    preferred_clusters: list[str] | None = None
    enable_auto_cluster_selection: bool | None = None
    enable_auto_gpu_selection: bool | None = None
    number_of_gpus: int | None = msgspec.field(default=None, name="numberOfGPUs")
    number_of_gpu_nodes: int | None = msgspec.field(default=None, name="numberOfGPUNodes")
    instance_type: str | None = None
    gpu_shape: str | None = None
    memory_per_gpu: int | None = msgspec.field(default=None, name="memoryPerGPU")
    exit_duration: str | None = None
    priority: int | None = None
    idle_time_out_duration: str | None = None
    enforce_idle_time_out: bool | None = None
    enable_eviction: bool | None = None
    requeue_on_failure: bool | None = None
    multi_node: bool | None = None
    dedicated_nodes: bool | None = None
    enable_rdma: bool | None = msgspec.field(default=None, name="enableRDMA")
    enable_secondary_network: bool | None = None


class GprCreated(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to a create."""

    gpr_id: str


class UpdateGpr(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`PUT /gpr`: what is given is changed, together or not at all."""

    gpr_id: str
    priority: int | None = None
    gpr_name: str | None = None
    early_release: bool | None = None
    exit_duration: str | None = None


class GprRef(msgspec.Struct, frozen=True, rename="camel"):
    """`DELETE /gpr`."""

    gpr_id: str


class GprStatus(msgspec.Struct, frozen=True, rename="camel"):
    """Where a GPR is. `nodes` are names; `cost` is "" because nothing here is priced."""

    provisioning_status: str
    failure_reason: str
    num_gpus_allocated: int
    start_timestamp: str
    completion_timestamp: str
    cost: str
    nodes: tuple[str, ...]
    internal_state: str
    retry_count: int
    delayed_count: int


class GprItem(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /gpr`. Strict: every key, always. The block after `status` is ours.

    `queue_position` is 0 for what does not wait. `remaining_duration` is what is left of the exit
    duration.
    """

    gpr_id: str
    slice_name: str
    cluster_name: str
    number_of_gpus: int = msgspec.field(name="numberOfGPUs")
    number_of_gpu_nodes: int = msgspec.field(name="numberOfGPUNodes")
    instance_type: str
    memory_per_gpu: int = msgspec.field(name="memoryPerGPU")
    priority: int
    gpu_sharing_mode: str
    estimated_start_time: str
    estimated_wait_time: str
    exit_duration: str
    early_release: bool
    gpr_name: str
    gpu_shape: str
    multi_node: bool
    dedicated_nodes: bool
    enable_rdma: bool = msgspec.field(name="enableRDMA")
    enable_secondary_network: bool
    enforce_idle_time_out: bool
    idle_time_out_duration: str
    status: GprStatus
    queue_position: int = 0
    explanation: str = ""
    endpoint_name: str = ""
    remaining_duration: str = ""
    evicted_by: str = ""


class GprList(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /gpr/list?sliceName=`, oldest first."""

    items: tuple[GprItem, ...] = ()


class WaitTimeItem(msgspec.Struct, frozen=True, rename="camel"):
    """One kind of node that would do, and when the request would start there.

    Both estimates are "" where it would never start by what is known; `explanation` says why.
    """

    cluster_name: str
    instance_type: str
    gpu_shape: str
    memory_per_gpu: int
    estimated_wait_time: str
    estimated_start_time: str
    queue_position: int
    explanation: str


class WaitTimeList(msgspec.Struct, frozen=True, rename="camel"):
    """`POST /gpr/waittime`: every candidate, soonest first. Nothing was stored."""

    items: tuple[WaitTimeItem, ...] = ()


# --- Templates ---------------------------------------------------------------------------------


class TemplateBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`POST` and `PUT /gpr-template`. A PUT leaves alone what is absent."""

    name: str
    cluster_name: str | None = None
    number_of_gpus: int | None = msgspec.field(default=None, name="numberOfGPUs")
    number_of_gpu_nodes: int | None = msgspec.field(default=None, name="numberOfGPUNodes")
    memory_per_gpu: int | None = None
    gpu_shape: str | None = None
    instance_type: str | None = None
    exit_duration: str | None = None
    priority: int | None = None
    enforce_idle_time_out: bool | None = None
    idle_time_out_duration: str | None = None
    enable_eviction: bool | None = None
    requeue_on_failure: bool | None = None


class TemplateItem(msgspec.Struct, frozen=True, rename="camel"):
    """A template as shown: the keys of its body."""

    name: str
    cluster_name: str
    number_of_gpus: int = msgspec.field(name="numberOfGPUs")
    number_of_gpu_nodes: int = msgspec.field(name="numberOfGPUNodes")
    memory_per_gpu: int
    gpu_shape: str
    instance_type: str
    exit_duration: str
    priority: int
    enforce_idle_time_out: bool
    idle_time_out_duration: str
    enable_eviction: bool
    requeue_on_failure: bool


class TemplateName(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to a create or change (strict: no other key), and the body of a delete."""

    gpr_template_name: str


class TemplateList(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /gpr-template/list`."""

    items: tuple[TemplateItem, ...] = ()


# --- Bindings of templates to workspaces -------------------------------------------------------


class BoundClusterBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The templates that a workspace may use on one cluster; the default is added to them."""

    cluster_name: str
    default_template_name: str
    templates: list[str] | None = None


class BindingBody(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`POST` and `PUT /gpr-template-binding`. The binding's name is the workspace's.

    A PUT replaces the clusters and leaves alone what is absent.
    """

    workspace_name: str
    clusters: list[BoundClusterBody] | None = None
    enable_auto_gpr: bool | None = msgspec.field(default=None, name="enableAutoGPR")


class BoundClusterItem(msgspec.Struct, frozen=True, rename="camel"):
    """One cluster of a binding. Strict: these five keys.

    A status is `Valid` or a sentence; `template_status` has one item for each template.
    """

    cluster_name: str
    default_template_name: str
    templates: tuple[str, ...]
    default_template_status: str
    template_status: tuple[str, ...]


class BindingWritten(msgspec.Struct, frozen=True, rename="camel"):
    """Answer to a create or change. Strict: no other key. `namespace` is the workspace."""

    name: str
    namespace: str
    clusters: tuple[BoundClusterItem, ...]
    enable_auto_gpr: bool = msgspec.field(name="enableAutoGPR")


class BindingItem(msgspec.Struct, frozen=True, rename="camel"):
    """A binding as shown. Strict: no other key."""

    name: str
    clusters: tuple[BoundClusterItem, ...]
    enable_auto_gpr: bool = msgspec.field(name="enableAutoGPR")


class BindingName(msgspec.Struct, frozen=True, rename="camel"):
    """Body of a delete."""

    gpr_template_binding_name: str


class BindingList(msgspec.Struct, frozen=True, rename="camel"):
    """`GET /gpr-template-binding/list`. Strict: no other key."""

    template_bindings: tuple[BindingItem, ...] = ()
