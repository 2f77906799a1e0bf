"""Prepared GPU requests, and which of them a workspace uses without being asked.

A template is a GPR's shape under a name. A binding gives a workspace templates by cluster, and one of
them as the default: with `enable_auto_gpr` an endpoint whose manifest asks for GPUs without saying which
gets its request from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from inferplane.domain.gpu_request import EXIT_DURATION_DEFAULT, PRIORITY_DEFAULT, Selection


@dataclass(frozen=True, slots=True)
class GprTemplate:
    """One template, for one cluster. `memory_gb` is per GPU; `gpus_per_node` on each of `nodes` nodes."""

    name: str
    cluster: str
    gpus_per_node: int = 1
    nodes: int = 1
    memory_gb: int = 0
    gpu_shape: str = ""
    instance_type: str = ""
    exit_duration: timedelta = EXIT_DURATION_DEFAULT
    priority: int = PRIORITY_DEFAULT
    enforce_idle: bool = False
    idle_timeout: timedelta | None = None
    enable_eviction: bool = False
    requeue_on_failure: bool = False

    @property
    def selection(self) -> Selection:
        """Which GPUs a request made from this template asks for."""
        return Selection(
            cluster_name=self.cluster,
            gpu_shape=self.gpu_shape,
            instance_type=self.instance_type,
            memory_gb=self.memory_gb,
            gpus_per_node=self.gpus_per_node,
            nodes=self.nodes,
        )


@dataclass(frozen=True, slots=True)
class BoundCluster:
    """The templates of one cluster that a workspace may use. `default_template` is "" for none."""

    cluster: str
    default_template: str = ""
    templates: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GprTemplateBinding:
    """A workspace's templates by cluster; a workspace has at most one binding, named like itself."""

    workspace: str
    clusters: tuple[BoundCluster, ...] = ()
    enable_auto_gpr: bool = False

    def default_template(self, cluster: str) -> str:
        """The name of the default template of `cluster`, or ""."""
        return next((each.default_template for each in self.clusters if each.cluster == cluster), "")
