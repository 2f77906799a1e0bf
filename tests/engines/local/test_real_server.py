"""The real model server, started as the platform starts it, in a new interpreter."""

from __future__ import annotations

from pathlib import Path

import httpx
import joblib
from sklearn.linear_model import LinearRegression

from engine_world import ModelsAtHand, endpoint, first_replica, now, target, wait_for_state
from inferplane.domain.endpoint import ReplicaState
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.local.engine import LocalEngine
from inferplane.engines.port import FetchModel, StartReplica, StopReplica


async def test_a_model_answers_stops_in_order_and_rubbish_is_called_so(home: Path) -> None:
    good, bad = home.parent / "good.joblib", home.parent / "bad.joblib"
    joblib.dump(LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0]), good)
    bad.write_bytes(b"this is no model")
    models = ModelsAtHand(home.parent / "models", good)
    engine = LocalEngine(home=home, models=models, clock=now, fork_servers=False)
    await engine.start(lambda _uid: None)
    try:
        one = endpoint("a1")
        await engine.apply(target(one), FetchModel())
        await engine.apply(target(one), StartReplica(first_replica(one)))
        replica = await wait_for_state(engine, first_replica(one), ReplicaState.READY, seconds=60)
        transport = httpx.AsyncHTTPTransport(uds=replica.address.removeprefix("unix:"))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            answer = await client.post(f"/v1/models/{one.name}:predict", json={"instances": [[2.0]]})
        assert answer.status_code == 200
        assert round(answer.json()["predictions"][0], 6) == 4
        await engine.apply(target(one), StopReplica(replica.id, 30))
        ended = await wait_for_state(engine, replica.id, ReplicaState.EXITED)
        assert ended.exit is not None
        assert ended.exit.exit_code == 0

        models.path = bad
        other = endpoint("a2")
        await engine.apply(target(other), FetchModel())
        await engine.apply(target(other), StartReplica(first_replica(other)))
        failed = await wait_for_state(engine, first_replica(other), ReplicaState.EXITED, seconds=60)
        assert failed.exit is not None
        assert (failed.exit.reason, failed.exit.exit_code) == (ReasonCode.MODEL_LOAD_FAILED, 3)
        assert failed.exit.log_tail
    finally:
        await engine.close(stop_servers=True)
