"""The API with GPUs: two simulated clusters, and a test in the place of the admission controller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from api_world import Client, World
from inferplane.domain.endpoint import GpuNote
from inferplane.domain.gpu_request import (
    GpuRequest,
    Grant,
    ProvisioningStatus,
    draining,
    ended,
    granted,
    started,
)
from inferplane.domain.inventory import Node
from inferplane.domain.wait_note import WaitNote
from inferplane.domain.workspace import Cluster

GPR = "/api/v1/gpr"
A100, BIG = "NVIDIA-A100", "NVIDIA-H100"
A100_TYPE, BIG_TYPE = "a2-ultragpu-1g", "a3-highgpu-8g"
FIRST, SECOND = "worker-1", "worker-2"


class GpuWorld(World):
    """worker-1: two nodes of one A100 80 GB. worker-2: one node of eight H100 80 GB, one A100 of 40 GB."""

    async def _open(self) -> None:
        await super()._open()
        now = self.now()
        async with self.store.transaction() as tx:
            for name in (FIRST, SECOND):
                await tx.put_cluster(Cluster(name, "simulated", now))
            await tx.save_nodes(
                FIRST,
                [
                    Node(FIRST, f"gpu-{i}", A100_TYPE, A100, 1, 80, simulated=True, region="here")
                    for i in range(2)
                ],
            )
            await tx.save_nodes(
                SECOND,
                [
                    Node(SECOND, "big", BIG_TYPE, BIG, 8, 80, simulated=True),
                    Node(SECOND, "small", "a2-highgpu-1g", A100, 1, 40, simulated=True),
                ],
            )

    def team(self, *clusters: str) -> str:
        return self.workspace(*(clusters or (FIRST, SECOND)))

    # Requests

    def body(self, team: str, **change: Any) -> dict[str, Any]:
        return {
            "gprName": self.name("g"),
            "sliceName": team,
            "clusterName": FIRST,
            "numberOfGPUs": 1,
            "numberOfGPUNodes": 1,
            "instanceType": A100_TYPE,
            "gpuShape": A100,
            "memoryPerGPU": 80,
            "exitDuration": "0d1h0m",
            **change,
        }

    def ask(self, team: str, client: Client | None = None, **change: Any) -> str:
        data = (client or self.owner)("POST", GPR, self.body(team, **change)).data
        assert set(data) == {"gprId"}
        gpr_id: str = data["gprId"]
        return gpr_id

    def gpr(self, gpr_id: str, client: Client | None = None) -> dict[str, Any]:
        data: dict[str, Any] = (client or self.owner)("GET", f"{GPR}?gprId={gpr_id}").data
        return data

    def request(self, gpr_id: str) -> GpuRequest:
        async def get() -> GpuRequest:
            async with self.store.read() as tx:
                return await tx.get_gpu_request(gpr_id)

        return self.do(get())

    def requests_of(self, uid: str) -> list[GpuRequest]:
        async def get() -> list[GpuRequest]:
            async with self.store.read() as tx:
                return await tx.list_gpu_requests(endpoint_uid=uid)

        return self.do(get())

    def gprs_of(self, team: str) -> list[GpuRequest]:
        async def get() -> list[GpuRequest]:
            async with self.store.read() as tx:
                return await tx.list_gpu_requests(workspace=team)

        return self.do(get())

    # What the admission controller would do

    def admit(self, gpr_id: str, change: Callable[[GpuRequest], GpuRequest]) -> None:
        async def save() -> None:
            async with self.store.transaction() as tx:
                await tx.save_gpu_request(change(await tx.get_gpu_request(gpr_id)))

        self.do(save())

    def grant(
        self, gpr_id: str, node: str = "gpu-0", indexes: tuple[int, ...] = (0,), *, run: bool = True
    ) -> None:
        first = node.startswith("gpu")
        given = Grant(
            FIRST if first else SECOND,
            ((node, indexes),),
            A100 if first else BIG,
            A100_TYPE if first else BIG_TYPE,
            80,
        )
        self.admit(gpr_id, lambda each: granted(each, given, self.now()))
        if run:
            self.admit(gpr_id, lambda each: started(each, self.now()))

    def drain(self, gpr_id: str, ending_as: ProvisioningStatus, **why: Any) -> None:
        self.admit(gpr_id, lambda each: draining(each, ending_as, self.now(), **why))

    def end(self, gpr_id: str) -> None:
        self.admit(gpr_id, lambda each: ended(each, self.now()))

    def note(self, gpr_id: str, position: int, start_in: timedelta | None, explanation: str) -> None:
        start = None if start_in is None else self.now() + start_in
        note = WaitNote(position, explanation, start, "every request ahead runs to its end", self.now())

        async def save() -> None:
            async with self.store.transaction() as tx:
                await tx.save_wait_note(gpr_id, note)

        self.do(save())

    def tell_endpoint(self, team: str, name: str, note: GpuNote, cluster: str = "") -> None:
        endpoint = self.stored(team, name, cluster)
        status = replace(endpoint.status, gpu=note, observed_generation=endpoint.generation)
        self.become(endpoint, status)
