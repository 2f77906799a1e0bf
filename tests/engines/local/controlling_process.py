"""A control plane reduced to its engine: starts the endpoints it is told to, then waits to be killed.

python controlling_process.py HOME UID[:ARG,ARG…] …
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from engine_world import SHORT, STAND_IN, ModelsAtHand, endpoint, first_replica, now, target, wait_for_state
from inferplane.domain.endpoint import ReplicaState
from inferplane.engines.local.engine import LocalEngine
from inferplane.engines.local.launchers import FreshLauncher
from inferplane.engines.port import FetchModel, StartReplica


async def main(home: Path, wanted: list[str]) -> None:
    engine = LocalEngine(
        home=home,
        models=ModelsAtHand(home.parent / "models"),
        clock=now,
        launcher=FreshLauncher(STAND_IN),
        limits=SHORT,
        environment={"PATH": os.environ["PATH"]},
    )
    await engine.start(lambda _uid: None)
    for text in wanted:
        uid, _, args = text.partition(":")
        one = endpoint(uid, *(arg for arg in args.split(",") if arg))
        await engine.apply(target(one), FetchModel())
        await engine.apply(target(one), StartReplica(first_replica(one)))
        await wait_for_state(engine, first_replica(one), ReplicaState.READY)
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
