"""The NVIDIA GPUs of this machine, as their driver tells (NVML).

    driver → Reading (devices, or why there are none) → nodes of the inventory

The library is an optional extra. That it is missing, or that there is no driver, is the usual case on
a laptop and no error: the reading then has no devices and says why. A GPU that the driver has lost
stays in the reading as unhealthy, so that nobody is granted it and everybody can see it.

A node is called after the machine and the kind of its GPUs, whatever else is in the machine, so that a
card that comes or goes renames nobody's node. GPU indexes are the machine's own, on every node.

GPUs that are split into instances (MIG) are listed whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from typing import Any

from inferplane.domain.inventory import Gpu, Node, NodeHealth
from inferplane.domain.names import NAME_CHARACTERS_MAX
from inferplane.engines.port import Clock
from inferplane.observability import get_logger

INSTANCE_TYPE = "local"
GPU_EXTRA = "inferplane[gpu]"
DEVICES_MAX = 100
METER_SECONDS = 5.0
_GIBIBYTE = 1024**3
_DIGEST_CHARACTERS = 6

log = get_logger("engines.nvml")


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU. A lost one has no name and no memory. `busy_percent` is None where it cannot be told."""

    index: int
    uuid: str = ""
    name: str = ""
    memory_bytes: int = 0
    busy_percent: int | None = None

    @property
    def lost(self) -> bool:
        """Whether the driver cannot reach it any more."""
        return not self.uuid


@dataclass(frozen=True, slots=True)
class Reading:
    """What the driver said. `problem` is why there are no devices, or ""."""

    devices: tuple[Device, ...] = ()
    problem: str = ""


def load_library() -> Any | None:
    """The module that speaks to the driver, or None when it is not installed."""
    try:
        return import_module("pynvml")
    except ImportError:
        return None


def read_devices(library: Any | None) -> Reading:
    """Ask the driver once. Blocks for milliseconds; the first time loads the driver's library."""
    if library is None:
        return Reading(problem=f"GPUs of this machine are not looked for: {GPU_EXTRA} is not installed")
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        return Reading(problem=f"there is no NVIDIA driver here that answers: {error}")
    try:
        count = min(library.nvmlDeviceGetCount(), DEVICES_MAX)
        devices = tuple(_device(library, index) for index in range(count))
    except library.NVMLError as error:
        return Reading(problem=f"the NVIDIA driver does not answer: {error}")
    finally:
        library.nvmlShutdown()
    return Reading(devices, "" if devices else "the NVIDIA driver knows no GPU")


def _device(library: Any, index: int) -> Device:
    try:
        handle = library.nvmlDeviceGetHandleByIndex(index)
        uuid, name = library.nvmlDeviceGetUUID(handle), library.nvmlDeviceGetName(handle)
        memory = int(library.nvmlDeviceGetMemoryInfo(handle).total)
    except library.NVMLError:  # lost, or being reset: it is there, and nothing more can be said
        return Device(index)
    try:
        busy = int(library.nvmlDeviceGetUtilizationRates(handle).gpu)
    except library.NVMLError:  # not every device counts
        busy = None
    return Device(index, str(uuid), str(name), memory, busy)


def visible_devices(devices: Sequence[Device], allowed: str | None) -> tuple[Device, ...]:
    """Those that `CUDA_VISIBLE_DEVICES` leaves to the platform itself. None: all.

    As the driver reads it: indexes or beginnings of UUIDs, up to the first that means nothing.
    """
    if allowed is None:
        return tuple(devices)
    found: list[Device] = []
    for word in (part.strip() for part in allowed.split(",")):
        match = next((each for each in devices if _is_named(each, word)), None)
        if match is None or match in found:
            break
        found.append(match)
    return tuple(sorted(found, key=lambda each: each.index))


def _is_named(device: Device, word: str) -> bool:
    if word.isdecimal():
        return device.index == int(word)
    return word.startswith("GPU-") and device.uuid.startswith(word)


def nodes_of(cluster: str, host: str, devices: Sequence[Device]) -> tuple[Node, ...]:
    """The machine as nodes of GPUs that are alike, one for each kind (shape and memory), by name.

    GPU indexes are the machine's own on every node. What kind a lost device was it does not say itself:
    it is listed with the first kind, and the inventory knows better where it has seen it before. With
    nothing but lost devices there is no node.
    """
    kinds: dict[tuple[str, int], list[Device]] = {}
    for device in sorted(devices, key=lambda each: each.index):
        if not device.lost:
            kind = (shape_of(device.name), round(device.memory_bytes / _GIBIBYTE))
            kinds.setdefault(kind, []).append(device)
    if kinds:
        kinds[min(kinds)] += [device for device in devices if device.lost]
    nodes = []
    for (shape, memory_gb), alike in kinds.items():
        members = sorted(alike, key=lambda each: each.index)
        gpus = tuple(Gpu(each.index, each.uuid, each.name, healthy=not each.lost) for each in members)
        nodes.append(
            Node(
                cluster=cluster,
                name=node_name(host, shape, memory_gb),
                instance_type=INSTANCE_TYPE,
                gpu_shape=shape,
                gpu_count=len(gpus),
                memory_gb=memory_gb,
                health=NodeHealth.HEALTHY,
                gpus=gpus,
                gpu_model_name=next(each.name for each in members if not each.lost),
                host=host_label(host),
            )
        )
    return tuple(sorted(nodes, key=lambda each: each.name))


def shape_of(name: str) -> str:
    """A GPU's product name as a shape: `NVIDIA A100-SXM4-80GB` → `NVIDIA-A100-SXM4-80GB`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-") or "NVIDIA-GPU"


def node_name(host: str, shape: str, memory_gb: int) -> str:
    """The node of one kind: `<host>-<shape>-<memory>gb`, in lower case; a DNS label.

    Where that would be too long, or another shape could be called the same, a digest keeps it unique.
    """
    whole = f"{host_label(host)}-{shape.lower()}-{memory_gb}gb"
    name = _label(whole)
    if name == whole and len(name) <= NAME_CHARACTERS_MAX:
        return name
    digest = hashlib.blake2b(whole.encode(), digest_size=_DIGEST_CHARACTERS // 2).hexdigest()
    return f"{name[: NAME_CHARACTERS_MAX - _DIGEST_CHARACTERS - 1].strip('-')}-{digest}"


def host_label(host: str) -> str:
    """The machine's name: its first label, in lower case."""
    return _label(host.partition(".")[0].lower())[:NAME_CHARACTERS_MAX].strip("-") or "this-machine"


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9-]+", "-", text).strip("-")


class NvmlNodes:
    """The nodes of this machine, read anew each time in a thread.

    `allowed` is what the platform's own `CUDA_VISIBLE_DEVICES` says, None when it says nothing.
    """

    def __init__(
        self,
        cluster: str,
        host: str,
        *,
        allowed: str | None = None,
        read: Callable[[], Reading] | None = None,
    ) -> None:
        self._cluster = cluster
        self._host = host
        self._allowed = allowed
        self._read = read or read_this_machine

    async def nodes(self) -> tuple[tuple[Node, ...], str]:
        """What there is, and why there is nothing ("" if there is something)."""
        reading = await asyncio.to_thread(self._read)
        devices = visible_devices(reading.devices, self._allowed)
        problem = reading.problem
        nodes = nodes_of(self._cluster, self._host, devices)
        if reading.devices and not devices:
            problem = f"CUDA_VISIBLE_DEVICES={self._allowed} leaves the platform no GPU"
        elif devices and not nodes:
            problem = f"the NVIDIA driver has lost every GPU of this machine, {len(devices)} in all"
        return nodes, problem


class DeviceMeter:
    """When each GPU was last seen at work, from the driver's utilisation, looked at every few seconds.

    What it does not see (no driver, a device that does not count) it says nothing about: requests
    through the gateway are then all there is to go by.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        read: Callable[[], Reading] | None = None,
        poll_seconds: float = METER_SECONDS,
    ) -> None:
        self._clock = clock
        self._read = read or read_this_machine
        self._poll_seconds = poll_seconds
        self._busy_at: dict[int, datetime] = {}
        self._counted_since: dict[int, datetime] = {}  # of devices that count their utilisation
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look once, and then regularly if there is anything to look at."""
        if await self.look():
            self._task = asyncio.create_task(self._look_forever())

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def busy_at(self, indexes: Iterable[int]) -> datetime | None:
        """When one of these GPUs was last seen at work; None if never."""
        return max((self._busy_at[index] for index in indexes if index in self._busy_at), default=None)

    def idle_since(self, indexes: Iterable[int]) -> datetime | None:
        """Since when all of these GPUs have been seen without work, from when they were first looked at.

        None where one of them is not measured: then nobody knows.
        """
        wanted = tuple(indexes)
        counted = [self._counted_since.get(index) for index in wanted]
        known = [since for since in counted if since is not None]
        if not known or len(known) < len(counted):
            return None
        busy_at = self.busy_at(wanted)
        return max(known) if busy_at is None else max(*known, busy_at)

    async def look(self) -> bool:
        """One look; whether there are devices."""
        reading = await asyncio.to_thread(self._read)
        now = self._clock()
        self._busy_at |= {each.index: now for each in reading.devices if each.busy_percent}
        counted = [each.index for each in reading.devices if each.busy_percent is not None]
        self._counted_since = {index: self._counted_since.get(index, now) for index in counted}
        return bool(reading.devices)

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            try:
                await self.look()
            except Exception:  # one failed look must not end the meter; the next one tries again
                log.exception("cannot measure GPUs")


def read_this_machine() -> Reading:
    """Ask this machine's driver, if the library for it is installed."""
    return read_devices(load_library())
