"""What knowing a cluster's endpoints takes: memory for each in the cache, and one observation.

    python bench/kserve_cache.py [endpoints]

Objects are those of one endpoint of an emulated cluster, made under other names; each goes through JSON, as
from a watch, so that no two share a string by chance.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / each) for each in ("src", "tests/support")]

from engine_world import endpoint, first_replica, target, wait_for_state  # noqa: E402
from inferplane.domain.endpoint import ReplicaState  # noqa: E402
from inferplane.engines.kserve.cache import Cache  # noqa: E402
from inferplane.engines.kserve.client import DEPLOYMENT, EVENT, INFERENCE_SERVICE, NAMESPACE, POD, REPLICA_SET  # noqa: E402
from inferplane.engines.kserve.observe import observe  # noqa: E402
from inferplane.engines.kserve.records import with_record  # noqa: E402
from inferplane.engines.port import FetchModel, StartReplica  # noqa: E402
from kube_api import Behaving  # noqa: E402
from kube_world import kube_world  # noqa: E402

KINDS = (NAMESPACE, INFERENCE_SERVICE, DEPLOYMENT, REPLICA_SET, POD, EVENT)


async def one_endpoint() -> dict[str, list[dict[str, Any]]]:
    """The objects of an endpoint that runs, by kind."""
    with tempfile.TemporaryDirectory() as folder:
        async with kube_world(Path(folder)) as world, Behaving(world.api):
            engine, one = await world.started(), endpoint()
            await engine.apply(target(one), FetchModel())
            await engine.apply(target(one), StartReplica(first_replica(one)))
            await wait_for_state(engine, first_replica(one), ReplicaState.READY)
            await asyncio.sleep(0.5)  # what follows: events, the ingress
            return {kind.name: world.api.store.list(kind.name) for kind in KINDS}


def resident_mib() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * resource.getpagesize() / 2**20


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    objects = asyncio.run(one_endpoint())
    texts = {kind: json.dumps(objects[kind.name]) for kind in KINDS}
    cache, now = Cache(), datetime.now(UTC)
    gc.collect()
    before, began = resident_mib(), time.perf_counter()
    for index in range(count):
        uid = f"{index:012x}"
        for kind in KINDS:
            text = (
                texts[kind].replace("0123456789ab", uid).replace("default-e-abcdef", f"default-e-{index:06d}")
            )
            for each in json.loads(text):
                if kind is not NAMESPACE or "inferplane.io/endpoint" in str(each["metadata"].get("labels")):
                    cache.put(kind, each)
    filled = time.perf_counter() - began
    gc.collect()
    after = resident_mib()
    size = sum(len(text) for text in texts.values())
    print(f"{count} endpoints: {after - before:.0f} MiB, {(after - before) * 1024 / count:.1f} KiB each")
    print(f"as JSON {size / 1024:.1f} KiB each; taken in at {filled * 1e6 / count:.0f} µs each")
    began = time.perf_counter()
    for index in range(min(count, 2000)):
        picture = cache.picture(f"{index:012x}")
        assert picture is not None
        seen = with_record(observe(f"{index:012x}", picture, now), picture, leave=False)
        assert seen.replicas, seen
    print(f"one observation: {(time.perf_counter() - began) * 1e6 / min(count, 2000):.0f} µs")


if __name__ == "__main__":
    main()
