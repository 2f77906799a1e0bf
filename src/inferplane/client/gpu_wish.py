"""Which GPUs, how many and for how long: one value for endpoints, GPU requests, wait times and templates."""

from __future__ import annotations

from dataclasses import dataclass

from inferplane.wire.endpoints import GpuSpecBody


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuWish:
    """What is not said is left to the platform's default, or in a change to what it was.

    `gpus` are per node, `memory_gb` per GPU. Either `shape` and `instance_type` name the GPUs, or `auto`
    lets the platform choose among those with at least `memory_gb`. Durations are texts (`2h30m`), priorities
    1 to 299. `evictable` lets a request of higher priority take these GPUs; `requeue` asks for others then.
    """

    gpus: int | None = None
    nodes: int | None = None
    shape: str = ""
    instance_type: str = ""
    memory_gb: int | None = None
    auto: bool = False
    exit_duration: str = ""
    priority: int | None = None
    idle_timeout: str = ""
    enforce_idle: bool | None = None
    evictable: bool | None = None
    requeue: bool | None = None

    def for_endpoint(self, *, auto_cluster: bool, auto_renew: bool | None) -> GpuSpecBody:
        """The same as an endpoint's `gpuSpec`."""
        return GpuSpecBody(
            gpu_shape=self.shape or None,
            instance_type=self.instance_type or None,
            memory_per_gpu=self.memory_gb,
            number_of_gpus=self.gpus,
            number_of_gpu_nodes=self.nodes,
            exit_duration=self.exit_duration or None,
            priority=self.priority,
            enable_auto_gpu_selection=self.auto or None,
            enable_auto_cluster_selection=auto_cluster or None,
            idle_time_out_duration=self.idle_timeout or None,
            enforce_idle_time_out=self.enforce_idle,
            enable_eviction=self.evictable,
            requeue_on_failure=self.requeue,
            auto_renew=auto_renew,
        )
