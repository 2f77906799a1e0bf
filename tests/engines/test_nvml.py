"""GPUs from the driver's answers, with a hand-written library in the driver's place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from inferplane.domain.names import check_name
from inferplane.engines.nvml import (
    Device,
    DeviceMeter,
    NvmlNodes,
    Reading,
    host_label,
    load_library,
    node_name,
    nodes_of,
    read_devices,
    shape_of,
    visible_devices,
)

GIB = 1024**3
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
A100 = Device(0, "GPU-aa", "NVIDIA A100-SXM4-80GB", 80 * GIB, 0)
T4 = Device(2, "GPU-cc", "Tesla T4", 15 * GIB, 3)


class DriverError(Exception):
    """What the library raises."""


@dataclass
class Library:
    """Answers as the driver of a machine with these devices; the sets name what fails."""

    devices: tuple[Device, ...] = ()
    fails: frozenset[str] = frozenset()
    lost: frozenset[int] = frozenset()
    calls: list[str] = field(default_factory=list)
    NVMLError: type[Exception] = DriverError

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise DriverError(f"{name} failed")

    def nvmlInit(self) -> None:
        self._call("init")

    def nvmlShutdown(self) -> None:
        self._call("shutdown")

    def nvmlDeviceGetCount(self) -> int:
        self._call("count")
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Device:
        if index in self.lost:
            raise DriverError("GPU is lost")
        return self.devices[index]

    def nvmlDeviceGetUUID(self, handle: Device) -> str:
        return handle.uuid

    def nvmlDeviceGetName(self, handle: Device) -> str:
        return handle.name

    def nvmlDeviceGetMemoryInfo(self, handle: Device) -> SimpleNamespace:
        return SimpleNamespace(total=handle.memory_bytes)

    def nvmlDeviceGetUtilizationRates(self, handle: Device) -> SimpleNamespace:
        self._call("utilisation")
        return SimpleNamespace(gpu=handle.busy_percent)


def test_what_the_driver_says_is_read_and_the_driver_let_go() -> None:
    library = Library((A100, replace(A100, index=1, uuid="GPU-bb")))
    assert read_devices(library) == Reading((A100, replace(A100, index=1, uuid="GPU-bb")))
    assert library.calls[-1] == "shutdown"


@pytest.mark.parametrize(
    ("library", "said"),
    [
        (None, "inferplane[gpu] is not installed"),
        (Library(fails=frozenset({"init"})), "no NVIDIA driver"),
        (Library(fails=frozenset({"count"})), "does not answer"),
        (Library(), "knows no GPU"),
    ],
)
def test_no_gpu_is_no_error_but_says_why(library: Library | None, said: str) -> None:
    reading = read_devices(library)
    assert reading.devices == ()
    assert said in reading.problem


def test_a_lost_gpu_stays_and_is_not_granted() -> None:
    reading = read_devices(Library((A100, replace(A100, index=1, uuid="GPU-bb")), lost=frozenset({0})))
    assert reading.devices[0] == Device(0)
    (node,) = nodes_of("local", "host", reading.devices)
    assert (node.gpu_count, node.indexes) == (2, (1,))


def test_with_every_gpu_lost_there_is_no_node_and_a_problem() -> None:
    assert nodes_of("local", "host", (Device(0), Device(1))) == ()


def test_a_card_that_comes_or_goes_renames_nobodys_node() -> None:
    every_kind = {node.gpu_shape: node.name for node in nodes_of("local", "host", (A100, T4))}
    for devices in ((T4,), (A100,), (replace(T4, index=0), replace(A100, index=5)), (Device(0), T4)):
        for node in nodes_of("local", "host", devices):
            assert node.name == every_kind[node.gpu_shape]
            assert node.host == "host"


def test_a_device_that_counts_no_use_is_a_device_all_the_same() -> None:
    (device,) = read_devices(Library((A100,), fails=frozenset({"utilisation"}))).devices
    assert device == replace(A100, busy_percent=None)


def test_the_real_library_says_something_on_any_machine() -> None:
    reading = read_devices(load_library())
    assert bool(reading.devices) != bool(reading.problem)


def test_gpus_that_are_alike_are_one_node_and_keep_their_indexes() -> None:
    devices = (A100, replace(A100, index=1, uuid="GPU-bb"), T4)
    first, second = nodes_of("local", "Big-Box.example", devices)
    assert (first.name, first.gpu_shape, first.memory_gb, first.indexes) == (
        "big-box-nvidia-a100-sxm4-80gb-80gb",
        "NVIDIA-A100-SXM4-80GB",
        80,
        (0, 1),
    )
    assert (second.name, second.gpu_shape, second.memory_gb, second.indexes) == (
        "big-box-tesla-t4-15gb",
        "Tesla-T4",
        15,
        (2,),
    )
    assert not first.simulated
    assert first.gpus[1].uuid == "GPU-bb"


@pytest.mark.parametrize(
    ("allowed", "indexes"),
    [(None, (0, 2)), ("", ()), ("2", (2,)), ("GPU-c,0", (0, 2)), ("2,7,0", (2,)), ("-1", ()), ("0,0", (0,))],
)
def test_the_platform_offers_only_what_it_was_left_itself(
    allowed: str | None, indexes: tuple[int, ...]
) -> None:
    assert tuple(each.index for each in visible_devices((A100, T4), allowed)) == indexes


@pytest.mark.parametrize(
    ("host", "name"), [("A_b.c", "a-b"), ("", "this-machine"), ("...", "this-machine"), ("x" * 99, "x" * 63)]
)
def test_any_host_has_a_label(host: str, name: str) -> None:
    assert host_label(host) == name


def test_a_node_is_called_after_machine_and_kind_and_no_two_kinds_alike() -> None:
    assert node_name("box.example", "Tesla-T4", 15) == "box-tesla-t4-15gb"
    hard = [
        node_name(host, shape, memory_gb)
        for host in ("box", "x" * 99)
        for shape in ("a.b", "a_b", "a-b", "y" * 200)
        for memory_gb in (8, 80)
    ]
    assert len(set(hard)) == len(hard)
    for name in hard:
        assert check_name(name, "node") == name


def test_any_product_name_makes_a_shape() -> None:
    assert shape_of("NVIDIA H100 80GB HBM3") == "NVIDIA-H100-80GB-HBM3"
    assert shape_of("  ") == "NVIDIA-GPU"


async def test_the_source_reads_anew_each_time_and_explains_an_empty_machine() -> None:
    readings = iter([Reading(problem="no driver"), Reading((A100,)), Reading((A100,))])
    source = NvmlNodes("local", "host", allowed="0", read=lambda: next(readings))
    assert await source.nodes() == ((), "no driver")
    nodes, problem = await source.nodes()
    assert ([node.name for node in nodes], problem) == (["host-nvidia-a100-sxm4-80gb-80gb"], "")
    blind = NvmlNodes("local", "host", allowed="", read=lambda: Reading((A100,)))
    assert await blind.nodes() == ((), "CUDA_VISIBLE_DEVICES= leaves the platform no GPU")
    broken = NvmlNodes("local", "host", read=lambda: Reading((Device(0), Device(1))))
    assert await broken.nodes() == ((), "the NVIDIA driver has lost every GPU of this machine, 2 in all")


async def test_a_gpu_at_work_is_seen_and_one_at_rest_says_nothing() -> None:
    first = datetime(2026, 1, 1, tzinfo=UTC)
    second = first + timedelta(minutes=1)
    times = iter((first, second))
    readings = iter(
        [Reading((A100, T4)), Reading((replace(A100, busy_percent=7), replace(T4, busy_percent=0)))]
    )
    meter = DeviceMeter(lambda: next(times), read=lambda: next(readings))
    assert await meter.look()
    assert (meter.busy_at((0,)), meter.busy_at((2,))) == (None, first)
    assert await meter.look()
    assert (meter.busy_at((0,)), meter.busy_at((2,)), meter.busy_at((0, 2))) == (second, first, second)
    assert meter.busy_at(()) is None


async def test_gpus_are_idle_since_all_of_them_were_seen_idle_and_unknown_where_one_does_not_count() -> None:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    times = iter([began + timedelta(seconds=5 * n) for n in range(4)])
    uses = iter([(0, 0, None), (0, 60, None), (0, 0, None), (None, 0, 7)])

    def read() -> Reading:
        return Reading(tuple(Device(n, f"GPU-{n}", busy_percent=busy) for n, busy in enumerate(next(uses))))

    meter = DeviceMeter(lambda: next(times), read=read)
    assert meter.idle_since((0,)) is None
    await meter.look()
    assert (meter.idle_since((0, 1)), meter.idle_since((0, 2)), meter.idle_since(())) == (began, None, None)
    await meter.look()
    await meter.look()
    assert meter.idle_since((0,)) == began
    assert meter.idle_since(iter((0, 1))) == began + timedelta(seconds=5)
    await meter.look()
    assert (meter.idle_since((0,)), meter.idle_since((1,))) == (None, began + timedelta(seconds=5))


async def _until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 - a look in a thread has no event to wait for
            await asyncio.sleep(0.001)


async def test_a_gpu_that_comes_later_is_measured_then() -> None:
    looks: list[None] = []

    def read() -> Reading:
        looks.append(None)
        return Reading(problem="no driver") if len(looks) < 3 else Reading((A100,))

    meter = DeviceMeter(lambda: BEGAN, read=read, poll_seconds=3600, no_devices_seconds=0)
    await meter.start()
    assert not meter.measures((0,))
    await _until(lambda: meter.measures((0,)))
    await meter.close()
    assert (len(looks), meter.idle_since((0,))) == (3, BEGAN)


async def test_without_the_library_nobody_looks_twice() -> None:
    looks: list[None] = []

    def read() -> Reading:
        looks.append(None)
        return read_devices(None)

    meter = DeviceMeter(lambda: BEGAN, read=read, poll_seconds=0, no_devices_seconds=0)
    await meter.start()
    for _ in range(20):
        await asyncio.sleep(0)
    await meter.close()
    assert len(looks) == 1


async def test_what_a_look_cannot_tell_is_not_measured_and_a_failed_look_forgets_nothing() -> None:
    answers: list[Reading | Exception] = [
        Reading((A100, replace(T4, busy_percent=None))),
        Reading((A100,)),
        Reading(problem="the NVIDIA driver does not answer"),
        RuntimeError("the library is broken"),
        Reading((A100,)),
        Reading((A100,)),
    ]
    times = iter([BEGAN + timedelta(minutes=n) for n in (0, 1, 2, 5, 6)])

    def read() -> Reading:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    meter = DeviceMeter(lambda: next(times), read=read)
    await meter.look()
    assert (meter.measures((0,)), meter.measures((2,)), meter.measures(())) == (True, False, False)
    await meter.look()
    assert meter.idle_since((0,)) == BEGAN
    await meter.look()
    assert (meter.measures((0,)), meter.idle_since((0,))) == (False, None)
    with pytest.raises(RuntimeError):
        await meter.look()
    await meter.look()
    # Four minutes passed unseen: they count neither way.
    assert meter.idle_since((0,)) == BEGAN + timedelta(minutes=4)
    await meter.look()
    assert meter.idle_since((0,)) == BEGAN + timedelta(minutes=4)


async def test_idle_time_goes_on_after_a_restart_without_the_time_in_between(tmp_path: Path) -> None:
    file = tmp_path / "gpus.json"
    minute = timedelta(minutes=1)

    async def look(meter: DeviceMeter, times: int) -> DeviceMeter:
        for _ in range(times):
            await meter.look()
        return meter

    def meter(*minutes: int, uses: tuple[int, ...]) -> DeviceMeter:
        times, percents = iter([BEGAN + n * minute for n in minutes]), iter(uses)
        return DeviceMeter(
            lambda: next(times),
            file=file,
            read=lambda: Reading((replace(A100, busy_percent=next(percents)),)),
            poll_seconds=3600,
        )

    first = await look(meter(0, 10, 30, uses=(0, 60, 0)), 3)
    assert first.idle_since((0,)) == BEGAN + 10 * minute
    second = meter(32, uses=(0,))
    await second.start()
    await second.close()
    assert (second.idle_since((0,)), second.busy_at((0,))) == (BEGAN + 12 * minute, BEGAN + 10 * minute)
    third = meter(35, uses=(3,))
    await third.start()
    await third.close()
    assert third.idle_since((0,)) == BEGAN + 35 * minute
    other = DeviceMeter(
        lambda: BEGAN + 40 * minute, file=file, read=lambda: Reading((replace(A100, uuid="GPU-new"),))
    )
    await other.start()
    await other.close()
    assert (other.idle_since((0,)), other.busy_at((0,))) == (BEGAN + 40 * minute, None)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"0": 7}', '{"0": ["GPU-aa", "2026-01-01", "2026-01-01", null]}']
)
async def test_what_cannot_be_read_is_no_memory(tmp_path: Path, content: str) -> None:
    file = tmp_path / "gpus.json"
    file.write_text(content, encoding="utf-8")
    meter = DeviceMeter(lambda: BEGAN, file=file, read=lambda: Reading((A100,)))
    await meter.start()
    await meter.close()
    assert meter.idle_since((0,)) == BEGAN


async def test_a_clock_that_was_put_back_leaves_nothing_in_the_future() -> None:
    times = iter([BEGAN + timedelta(hours=1), BEGAN])
    uses = iter([5, 0])
    meter = DeviceMeter(lambda: next(times), read=lambda: Reading((replace(A100, busy_percent=next(uses)),)))
    await meter.look()
    await meter.look()
    assert (meter.idle_since((0,)), meter.busy_at((0,))) == (BEGAN, BEGAN)


async def test_a_meter_that_cannot_keep_what_it_saw_goes_on(tmp_path: Path) -> None:
    meter = DeviceMeter(lambda: BEGAN, file=tmp_path / "missing" / "gpus.json", read=lambda: Reading((A100,)))
    await meter.start()
    await meter.close()
    assert meter.idle_since((0,)) == BEGAN


LOST_FIRST = (Device(0), replace(A100, index=1, uuid="GPU-bb"), replace(A100, index=2, uuid="GPU-cc"))


@pytest.mark.parametrize(
    ("allowed", "seen_before", "indexes"),
    [
        ("GPU-aa,GPU-bb", {0: "GPU-aa", 1: "GPU-bb"}, (0, 1)),
        ("GPU-aa,GPU-bb", {}, (0, 1)),
        ("GPU-bb,GPU-aa,GPU-cc", {}, (0, 1, 2)),
        ("GPU-bb,GPU-zz,GPU-cc", {0: "GPU-aa"}, (1,)),  # of nobody: as without a lost one
        ("GPU-bb", {}, (1,)),
        ("GPU-bb,7,GPU-cc", {}, (1,)),
        ("0,GPU-cc", {}, (0, 2)),
    ],
)
def test_a_lost_gpu_hides_none_that_is_named_after_it(
    allowed: str, seen_before: dict[int, str], indexes: tuple[int, ...]
) -> None:
    assert tuple(each.index for each in visible_devices(LOST_FIRST, allowed, seen_before)) == indexes


def test_which_of_several_lost_gpus_is_meant_is_not_guessed() -> None:
    devices = (Device(0), *LOST_FIRST[1:2], Device(2))
    assert tuple(each.index for each in visible_devices(devices, "GPU-aa,GPU-bb")) == (1,)


async def test_a_gpu_that_gets_lost_is_shown_as_lost_and_the_others_stay() -> None:
    before = (replace(A100, uuid="GPU-aa"), *LOST_FIRST[1:])
    readings = iter([Reading(before), Reading(LOST_FIRST)])
    source = NvmlNodes("local", "host", allowed="GPU-aa,GPU-bb", read=lambda: next(readings))
    ((node,), _) = await source.nodes()
    assert node.indexes == (0, 1)
    ((node,), problem) = await source.nodes()
    assert ([(gpu.index, gpu.healthy) for gpu in node.gpus], problem) == ([(0, False), (1, True)], "")
    gone = NvmlNodes("local", "host", allowed="GPU-aa", read=lambda: Reading((Device(0), Device(1))))
    assert (await gone.nodes())[1] == (
        "CUDA_VISIBLE_DEVICES=GPU-aa leaves the platform no GPU; the NVIDIA driver has lost 2 of this machine's 2"
    )
