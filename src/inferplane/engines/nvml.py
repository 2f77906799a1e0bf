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
import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from inferplane.domain.inventory import Gpu, Node, NodeHealth
from inferplane.domain.names import NAME_CHARACTERS_MAX
from inferplane.engines.port import Clock
from inferplane.observability import get_logger

INSTANCE_TYPE = "local"
GPU_EXTRA = "inferplane[gpu]"
DEVICES_MAX = 100
METER_SECONDS = 5.0
NO_DEVICES_SECONDS = 30.0
"""How often a meter looks while there is no GPU: a driver that loads late, or a card that comes, is found."""
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
    """What the driver said. `problem` is why there are no devices, or "".

    `asked` is False where nothing is installed that could ask: looking again is then of no use.
    """

    devices: tuple[Device, ...] = ()
    problem: str = ""
    asked: bool = True


def load_library() -> Any | None:
    """The module that speaks to the driver, or None when it is not installed."""
    try:
        return import_module("pynvml")
    except ImportError:
        return None


def read_devices(library: Any | None) -> Reading:
    """Ask the driver once. Blocks for milliseconds; the first time loads the driver's library."""
    if library is None:
        problem = f"GPUs of this machine are not looked for: {GPU_EXTRA} is not installed"
        return Reading(problem=problem, asked=False)
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


def visible_devices(
    devices: Sequence[Device], allowed: str | None, seen_before: Mapping[int, str] | None = None
) -> tuple[Device, ...]:
    """Those that `CUDA_VISIBLE_DEVICES` leaves to the platform itself. None: all.

    As the driver reads it: indexes or beginnings of UUIDs, up to the first that means nothing. A lost
    device does not say its UUID: `seen_before` has those that were seen at each index. Where that does
    not tell either, a UUID that no device has may be of a lost one, and hides nothing that comes after it.
    """
    if allowed is None:
        return tuple(devices)
    remembered = seen_before or {}
    named = [(each, each.uuid or remembered.get(each.index, "")) for each in devices]
    nameless = [each for each, uuid in named if not uuid]
    found: list[Device] = []
    nobodys = 0
    for word in (part.strip() for part in allowed.split(",")):
        match = next((each for each, uuid in named if _is_named(each.index, uuid, word)), None)
        if match in found:
            break
        if match is not None:
            found.append(match)
        elif nameless and word.startswith("GPU-"):
            nobodys += 1
        else:
            break
    if nobodys:
        left = [each for each in nameless if each not in found]
        if nobodys >= len(left):  # else nobody can tell which of them are meant
            found += left
    return tuple(sorted(found, key=lambda each: each.index))


def _is_named(index: int, uuid: str, word: str) -> bool:
    if word.isdecimal():
        return index == int(word)
    return word.startswith("GPU-") and uuid.startswith(word)


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
        self._uuids: dict[int, str] = {}  # by index, of devices seen so far

    async def nodes(self) -> tuple[tuple[Node, ...], str]:
        """What there is, and why there is nothing ("" if there is something)."""
        reading = await asyncio.to_thread(self._read)
        self._uuids |= {each.index: each.uuid for each in reading.devices if not each.lost}
        devices = visible_devices(reading.devices, self._allowed, self._uuids)
        problem = reading.problem
        nodes = nodes_of(self._cluster, self._host, devices)
        if reading.devices and not devices:
            lost = sum(each.lost for each in reading.devices)
            but = (
                f"; the NVIDIA driver has lost {lost} of this machine's {len(reading.devices)}"
                if lost
                else ""
            )
            problem = f"CUDA_VISIBLE_DEVICES={self._allowed} leaves the platform no GPU{but}"
        elif devices and not nodes:
            problem = f"the NVIDIA driver has lost every GPU of this machine, {len(devices)} in all"
        return nodes, problem


@dataclass(frozen=True, slots=True)
class Use:
    """What is remembered of one GPU that counts its use.

    `counted_at` is the latest look that could tell. `idle_since` is from when on it was seen without work,
    without the time during which nobody looked. `busy_at` is when it was last seen at work, None for never.
    """

    uuid: str
    counted_at: datetime
    idle_since: datetime
    busy_at: datetime | None = None


def observe(
    before: Mapping[int, Use], devices: Iterable[Device], counted: Container[int], now: datetime
) -> dict[int, Use]:
    """What to remember after a look, by index. `counted` are those of which the look before could tell.

    What this look cannot tell anything about stays as it was. What happened between two looks that are
    not one after the other nobody has seen: that time counts neither as work nor as idleness.
    """
    after = dict(before)
    for each in devices:
        if each.busy_percent is None:
            continue
        known = before.get(each.index)
        if known is None or known.uuid != each.uuid:
            known = Use(each.uuid, now, now)
        if each.busy_percent:
            after[each.index] = Use(each.uuid, now, now, now)
            continue
        unseen = timedelta(0) if each.index in counted else max(timedelta(0), now - known.counted_at)
        after[each.index] = Use(
            each.uuid,
            now,
            min(now, known.idle_since + unseen),  # a clock that was put back makes nothing future
            None if known.busy_at is None else min(now, known.busy_at),
        )
    return after


class DeviceMeter:
    """When each GPU was last seen at work, from the driver's utilisation, looked at every few seconds.

    What it does not see (no driver, a device that does not count) it says nothing about: requests
    through the gateway are then all there is to go by. `file` is where what was seen is kept, so that
    idle times go on after a restart.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        file: Path | None = None,
        read: Callable[[], Reading] | None = None,
        poll_seconds: float = METER_SECONDS,
        no_devices_seconds: float = NO_DEVICES_SECONDS,
    ) -> None:
        self._clock = clock
        self._file = file
        self._read = read or read_this_machine
        self._poll_seconds = poll_seconds
        self._no_devices_seconds = no_devices_seconds
        self._uses: dict[int, Use] = {}
        self._counted: frozenset[int] = frozenset()  # those of which the latest look could tell
        self._reading = Reading()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take up what was seen before, look once, and then regularly if anything can be asked."""
        if self._file is not None:
            self._uses = read_uses(self._file)
        await self._try_to_look()
        if self._reading.asked:
            self._task = asyncio.create_task(self._look_forever())

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def busy_at(self, indexes: Iterable[int]) -> datetime | None:
        """When one of these GPUs was last seen at work; None if never."""
        uses = (self._uses[index] for index in indexes if index in self._uses)
        return max((each.busy_at for each in uses if each.busy_at is not None), default=None)

    def measures(self, indexes: Iterable[int]) -> bool:
        """Whether the latest look could tell of all of these GPUs whether they work. Of none it cannot."""
        wanted = frozenset(indexes)
        return bool(wanted) and wanted <= self._counted

    def idle_since(self, indexes: Iterable[int]) -> datetime | None:
        """Since when all of these GPUs have been seen without work, from when they were first looked at.

        None where one of them is not measured: then nobody knows.
        """
        wanted = tuple(indexes)
        return max(self._uses[index].idle_since for index in wanted) if self.measures(wanted) else None

    async def look(self) -> bool:
        """One look; whether there are devices."""
        reading = await asyncio.to_thread(self._read)
        uses = observe(self._uses, reading.devices, self._counted, self._clock())
        self._reading = reading
        self._counted = frozenset(each.index for each in reading.devices if each.busy_percent is not None)
        if uses != self._uses:
            self._uses = uses
            if self._file is not None:
                write_uses(self._file, uses)
        return bool(reading.devices)

    async def _try_to_look(self) -> None:
        try:
            await self.look()
        except Exception:  # one failed look must not end the meter; the next one tries again
            self._counted = frozenset()
            log.exception("cannot measure GPUs")

    async def _look_forever(self) -> None:
        while True:
            devices = self._reading.devices
            await asyncio.sleep(self._poll_seconds if devices else self._no_devices_seconds)
            await self._try_to_look()


def read_uses(file: Path) -> dict[int, Use]:
    """What was written; nothing when that cannot be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
        content = json.loads(file.read_text(encoding="utf-8"))
        return {
            int(index): Use(
                str(uuid),
                _aware(counted_at),
                _aware(idle_since),
                None if busy_at is None else _aware(busy_at),
            )
            for index, (uuid, counted_at, idle_since, busy_at) in content.items()
        }
    return {}


def _aware(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("a time without its zone")
    return at


def write_uses(file: Path, uses: Mapping[int, Use]) -> None:
    """Replace the file in one step. On a full disk it stays as it was; idle times then go on from there."""
    content = {
        index: (
            each.uuid,
            each.counted_at.isoformat(),
            each.idle_since.isoformat(),
            None if each.busy_at is None else each.busy_at.isoformat(),
        )
        for index, each in sorted(uses.items())
    }
    partial = file.with_name(file.name + ".new")
    try:
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        log.warning("cannot keep what was seen of GPUs", error=str(error))


def read_this_machine() -> Reading:
    """Ask this machine's driver, if the library for it is installed."""
    return read_devices(load_library())
