"""What tests of the kserve engine share: an emulated API server, engines on it, and pods made by hand."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from engine_world import now
from inferplane.domain.endpoint import InferenceEndpoint
from inferplane.engines.kserve.client import KubeClient
from inferplane.engines.kserve.engine import KServeEngine, Options
from inferplane.engines.kserve.http_api import credentials_of
from inferplane.engines.kserve.manifests import service_name
from kube_api import KubeApi

AT_ONCE = timedelta(0)


@dataclass
class KubeWorld:
    """An API server, and the engines that were made on it; `wakes` is what any of them announced."""

    api: KubeApi
    folder: Path
    wakes: list[str] = field(default_factory=list)
    engines: list[KServeEngine] = field(default_factory=list)

    def engine(self, *, fence: int = 0, user: str = "admin", **options: Any) -> KServeEngine:
        """One that was not started. It calls the cluster unreachable at once, unless told otherwise."""
        kubeconfig = self.api.kubeconfig(self.folder / "kubeconfig", user)
        credentials = credentials_of(kubeconfig.read_bytes(), "", lambda _: b"")
        one = KServeEngine(
            KubeClient(credentials),
            now,
            options=Options(**{"unreachable_after": AT_ONCE, **options}),
            fence=lambda: fence,
            chance=random.Random(1),
        )
        self.engines.append(one)
        return one

    async def started(self, *, fence: int = 0, user: str = "admin", **options: Any) -> KServeEngine:
        """One that was started."""
        one = self.engine(fence=fence, user=user, **options)
        await one.start(self.wakes.append)
        return one

    def service(self, endpoint: InferenceEndpoint) -> dict[str, Any]:
        """The InferenceService as it is."""
        found = self.api.store.get("InferenceService", service_name(endpoint), endpoint.namespace)
        assert found is not None
        return found

    def put_pod(self, endpoint: InferenceEndpoint, name: str = "pod-1", **container: Any) -> dict[str, Any]:
        """A pod of the endpoint's first revision with one container in that state; as somebody else would."""
        status = {
            "name": "kserve-container",
            "ready": False,
            "restartCount": 0,
            "image": "server:1",
            "imageID": "",
            "state": {"waiting": {"reason": "ContainerCreating"}},
            **container,
        }
        ready = "True" if status["ready"] else "False"
        return self.api.store.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": name,
                    "namespace": endpoint.namespace,
                    "labels": {
                        "serving.kserve.io/inferenceservice": service_name(endpoint),
                        "component": "predictor",
                        "inferplane.io/revision": "1",
                    },
                },
                "spec": {
                    "nodeName": "node-1",
                    "containers": [{"name": "kserve-container", "image": "server:1"}],
                },
                "status": {
                    "phase": "Running",
                    "startTime": "2026-11-25T07:00:00Z",
                    "conditions": [
                        {"type": "PodScheduled", "status": "True"},
                        {"type": "Ready", "status": ready, "lastTransitionTime": "2026-11-25T07:00:05Z"},
                    ],
                    "containerStatuses": [status],
                },
            }
        )


@asynccontextmanager
async def kube_world(folder: Path, **settings: Any) -> AsyncIterator[KubeWorld]:
    """An API server with nothing in it; engines on it are closed at the end."""
    async with KubeApi(**settings) as api:
        world = KubeWorld(api, folder)
        try:
            yield world
        finally:
            await api.faults.back()
            for engine in world.engines:
                await engine.close(stop_servers=False)
