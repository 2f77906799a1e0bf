"""What is found before anything is started."""

from __future__ import annotations

from engine_world import ModelsAtHand, endpoint, target
from inferplane.domain.endpoint import Resources
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.local.engine import LocalEngine
from inferplane.engines.local.preflight import check_resources, check_runtime


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


async def test_more_memory_than_this_machine_has(engine: LocalEngine) -> None:
    huge = Resources(memory_bytes=2**60)
    assert (await reasons(engine, resources=huge))["resources"] is ReasonCode.UNSCHEDULABLE


def test_memory_counts_for_every_replica() -> None:
    asked = Resources(memory_bytes=3 * 2**30)
    assert check_resources(asked, replicas=2, cores=2, memory_bytes=6 * 2**30).ok
    check = check_resources(asked, replicas=3, cores=2, memory_bytes=8 * 2**30)
    assert check.reason is ReasonCode.UNSCHEDULABLE
    assert check.message == "3 replicas ask for 9.0 GiB of memory, and this machine has 8.0 GiB"


def test_more_cpus_than_there_are_only_set_threads() -> None:
    check = check_resources(Resources(cpu_millis=500_000), replicas=1, cores=2, memory_bytes=2**30)
    assert check.ok
    assert "it has 2 CPUs, so a replica uses at most those and not 500" in check.message


async def test_the_models_are_asked_for_the_files_of_the_format(
    engine: LocalEngine, models: ModelsAtHand
) -> None:
    await engine.preflight(target(endpoint("a1", model={"format": "onnx"})))
    assert models.suffixes == (".onnx",)


def test_a_missing_package_names_the_extra() -> None:
    check = check_runtime(endpoint(model={"format": "xgboost"}).spec.model, lambda _package: False)
    assert check is not None
    assert check.reason is ReasonCode.MISSING_EXTRA
    assert "inferplane[xgboost]" in check.next_action
