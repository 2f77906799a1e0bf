"""What is found before anything is started."""

from __future__ import annotations

from engine_world import ModelsAtHand, endpoint, target
from inferplane.domain.endpoint import Resources
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.local.engine import LocalEngine
from inferplane.engines.local.preflight import check_runtime


async def reasons(engine: LocalEngine, **model: object) -> dict[str, ReasonCode | None]:
    one = endpoint("a1", model=model)
    return {check.check: check.reason for check in await engine.preflight(target(one))}


async def test_all_is_well(engine: LocalEngine) -> None:
    assert await reasons(engine) == {"format": None, "runtime": None, "resources": None, "storage": None}


async def test_storage_that_works_elsewhere_only(engine: LocalEngine, models: ModelsAtHand) -> None:
    for uri in ("pvc://claim/model", "oci://registry/image:1"):
        assert (await reasons(engine, storage_uri=uri))["storage"] is ReasonCode.SCHEME_NOT_SUPPORTED
    assert models.asked == []


async def test_formats_nobody_knows_or_nobody_serves_here(engine: LocalEngine) -> None:
    assert (await reasons(engine, format="sklaern"))["format"] is ReasonCode.UNSUPPORTED_FORMAT
    assert (await reasons(engine, format="tensorflow"))["format"] is ReasonCode.NO_RUNTIME


async def test_more_than_this_machine_has(engine: LocalEngine) -> None:
    huge = Resources(cpu_millis=10_000_000, memory_bytes=2**60)
    assert (await reasons(engine, resources=huge))["resources"] is ReasonCode.UNSCHEDULABLE


def test_a_missing_package_names_the_extra() -> None:
    check = check_runtime(endpoint(model={"format": "xgboost"}).spec.model, lambda _package: False)
    assert check is not None
    assert check.reason is ReasonCode.MISSING_EXTRA
    assert "inferplane[xgboost]" in check.next_action
