"""A morning on three simulated clusters, at sixty times its speed (`make demo-gpus`).

The platform is the real one: its API, its store, its admission controller and its gateway. Only the
clusters are pretended, and the clock is fast. Three workspaces ask for GPUs and endpoints as people do:
small and large, short and long, some urgent, some that may be evicted. What is shown is what the API
says; every line can be asked for from another terminal with the variable that is printed.

    python examples/demo_gpus.py [--speed 60] [--hours 5] [--seed 1] [--once]

`--once` ends when the morning is over; without it, the platform stays until Ctrl-C. A closed terminal
and SIGTERM end it in the same order: nothing is left running, and nothing on the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from inferplane.bootstrap import RunningPlatform, run_platform
from inferplane.domain.quantity import format_duration
from inferplane.observability import configure_logging
from inferplane.settings import load_settings

CONFIGURATION = Path(__file__).with_name("demo_gpus.toml")
CLUSTERS = ("east", "west", "lab")
SHAPES = {
    "NVIDIA-A100": ("east", "a2-ultragpu-4g", 4, 3),
    "NVIDIA-H100": ("west", "a3-highgpu-8g", 8, 2),
    "NVIDIA-L4": ("west", "g2-standard-24", 2, 2),
    "NVIDIA-T4": ("lab", "n1-standard-8", 1, 4),
}
WORKSPACES = {"research": 50, "products": 150, "teaching": 101}
MINUTES_BETWEEN_REQUESTS = 3.0
REFRESH_SECONDS = 0.5
QUEUE_SHOWN_MAX = 12
COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")


@dataclass(frozen=True)
class Wish:
    """A request, and the minute of the morning at which somebody makes it."""

    minute: float
    body: dict[str, Any]
    endpoint: bool


def morning(seed: int, hours: float) -> Iterator[Wish]:
    """The same morning for the same seed."""
    chance = random.Random(seed)
    minute, number = 0.0, 0
    while (minute := minute + chance.expovariate(1 / MINUTES_BETWEEN_REQUESTS)) < hours * 60:
        number += 1
        workspace = chance.choice(tuple(WORKSPACES))
        shape = chance.choice(tuple(SHAPES))
        cluster, instance_type, per_node, nodes = SHAPES[shape]
        urgent = chance.random() < 0.1
        many = chance.random() < 0.15
        yield Wish(
            minute,
            {
                "workspace": workspace,
                "name": f"{workspace}-{number}",
                "cluster": cluster,
                "gpuShape": shape,
                "instanceType": instance_type,
                "numberOfGPUs": per_node if many else chance.randint(1, max(1, per_node // 2)),
                "numberOfGPUNodes": min(2, nodes) if many else 1,
                "exitDuration": f"{chance.choice((20, 40, 60, 90, 150))}m",
                "priority": 250 if urgent else WORKSPACES[workspace],
                "enableEviction": urgent or workspace == "research",
                "requeueOnFailure": True,
            },
            endpoint=chance.random() < 0.15,
        )


class Api:
    """Calls with a fresh token each: at this speed a token's quarter of an hour is fifteen seconds."""

    def __init__(self, platform: RunningPlatform) -> None:
        self._http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{platform.api_port}/api/v1", timeout=30)
        self._key = platform.settings.owner_key_path.read_text(encoding="utf-8").strip()

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        token = (await self._http.post("/auth", json={"apiKey": self._key})).json()["data"]["token"]
        headers = {"Authorization": f"Bearer {token}"}
        answer = await self._http.request(method, path, json=body, params=query, headers=headers)
        content = answer.json()
        if answer.status_code != 200:
            raise RuntimeError(f"{method} {path}: {content['message']}")
        return content["data"]

    async def close(self) -> None:
        await self._http.aclose()


async def prepare(api: Api) -> None:
    for workspace in WORKSPACES:
        body = {"workspaceName": workspace, "clusters": list(CLUSTERS), "namespaces": []}
        await api.call(
            "POST", "/slice-workspace", body | {"username": workspace, "email": f"{workspace}@example.test"}
        )


async def ask(api: Api, wish: Wish) -> None:
    wanted = dict(wish.body)
    workspace, name, cluster = (wanted.pop(key) for key in ("workspace", "name", "cluster"))
    if wish.endpoint:
        body = {
            "endpointName": name,
            "workspace": workspace,
            "clusterName": cluster,
            "modelSpec": {"modelName": "sklearn", "storageURI": "/models/pretended.joblib"},
            "gpuSpec": wanted | {"memoryPerGPU": 1, "autoRenew": False},
        }
        await api.call("POST", "/inference-endpoint", body)
    else:
        body = wanted | {"gprName": name, "sliceName": workspace, "clusterName": cluster, "memoryPerGPU": 1}
        await api.call("POST", "/gpr", body)


async def play(api: Api, wishes: list[Wish], speed: float, said: list[str]) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for wish in wishes:
        await asyncio.sleep(max(0.0, began + wish.minute * 60 / speed - loop.time()))
        try:
            await ask(api, wish)
        except RuntimeError as error:  # a refusal is part of the morning
            said.append(str(error))


async def picture(api: Api, minutes: float, speed: float, said: list[str]) -> Group:
    """What the API says now, on one page."""
    nodes = (await api.call("GET", "/inventory/list"))["managedNodes"]
    requests = [
        item
        for workspace in WORKSPACES
        for item in (await api.call("GET", "/gpr/list", sliceName=workspace))["items"]
    ]
    colours = dict(zip(WORKSPACES, COLOURS, strict=False))
    return Group(
        Text(f"{format_duration(timedelta(minutes=round(minutes)))} into the morning, at {speed:g}x", "bold"),
        _floor(nodes, colours),
        _queue(requests, colours),
        _summary(requests, said),
    )


def _floor(nodes: list[dict[str, Any]], colours: dict[str, str]) -> Table:
    table = Table("cluster", "node", "GPUs (one square each, by workspace)", "free", expand=True)
    for node in nodes:
        squares = Text()
        for held in node.get("allocation") or ():
            squares.append("■ " * held["totalGPUsAllocated"], colours.get(held["sliceName"], "white"))
        squares.append("□ " * node["availableGPUs"], "dim")
        table.add_row(node["clusterName"], node["gpuNodeName"], squares, str(node["availableGPUs"]))
    return table


def _queue(requests: list[dict[str, Any]], colours: dict[str, str]) -> Table:
    waiting = sorted(
        (each for each in requests if each["status"]["provisioningStatus"] == "Queued"),
        key=lambda each: (each["queuePosition"] or 10**6, each["gprId"]),
    )
    why = Column("why it waits", no_wrap=True, overflow="ellipsis", ratio=1)
    table = Table("#", "request", "wants", "priority", "starts in", why, expand=True)
    for each in waiting[:QUEUE_SHOWN_MAX]:
        table.add_row(
            str(each["queuePosition"] or "?"),
            Text(each["gprName"], colours.get(each["sliceName"], "white")),
            f"{each['numberOfGPUNodes']} x {each['numberOfGPUs']} {each['gpuShape']}",
            str(each["priority"]),
            each["estimatedWaitTime"] or "?",
            each["explanation"].partition("; estimated")[0].partition("; ")[2] or each["explanation"],
        )
    if len(waiting) > QUEUE_SHOWN_MAX:
        table.caption = f"and {len(waiting) - QUEUE_SHOWN_MAX} more"
    return table


def _summary(requests: list[dict[str, Any]], said: list[str]) -> Text:
    counts: dict[str, int] = {}
    for each in requests:
        word = each["status"]["provisioningStatus"]
        counts[word] = counts.get(word, 0) + 1
    text = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
    return Text(text + (f"\nlast refusal: {said[-1]}" if said else ""))


async def show(api: Api, console: Console, hours: float, speed: float, said: list[str]) -> None:
    """Draw until the morning is over."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with Live(console=console, auto_refresh=False, screen=console.is_terminal, transient=True) as live:
        while (minutes := (loop.time() - began) * speed / 60) < hours * 60:
            live.update(await picture(api, minutes, speed, said), refresh=console.is_terminal)
            await asyncio.sleep(REFRESH_SECONDS)
    console.print(await picture(api, hours * 60, speed, said))


async def demonstrate(home: Path, given: argparse.Namespace) -> None:
    flags = {"config": str(CONFIGURATION), "home": str(home), "api_port": 0, "gateway_port": 0}
    settings = load_settings(flags, {}, user_home=home).settings
    console = Console()
    async with run_platform(settings, speed=given.speed) as platform:
        variables = f"INFERPLANE_HOME={home}"
        # Whole on one line, however narrow the terminal: it is there to be pasted.
        console.print(f"Ask it yourself from another terminal, with\n  export {variables}", soft_wrap=True)
        api = Api(platform)
        said: list[str] = []
        await prepare(api)
        wishes = list(morning(given.seed, given.hours))
        asking = asyncio.create_task(play(api, wishes, given.speed, said))
        try:
            await show(api, console, given.hours, given.speed, said)
            await asking
            if not given.once:
                console.print(f"The morning is over; the platform stays until Ctrl-C.\n  export {variables}")
                await asyncio.Event().wait()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await api.close()


class Ending:
    """What SIGTERM and SIGHUP do: have the morning end, once. More of them must not disturb the clearing away.

    Both often come twice: `make` and a shell pass on to us what the whole group got anyway.
    """

    def __init__(self) -> None:
        self._is_asked = False
        self._work: asyncio.Task[None] | None = None
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)

    async def of(self, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`, until it ends or is asked to."""
        self._work = asyncio.create_task(work)
        if self._is_asked:  # before there was anything to end
            self._work.cancel()
        with suppress(asyncio.CancelledError):
            await self._work

    def _ask(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        if self._work is not None and not self._is_asked:
            self._work.get_loop().call_soon_threadsafe(self._work.cancel)
        self._is_asked = True


def main() -> None:
    parser = argparse.ArgumentParser(description="A morning on three simulated clusters.")
    parser.add_argument("--speed", type=float, default=60.0, help="seconds of the morning in a real second")
    parser.add_argument("--hours", type=float, default=5.0, help="how long the morning is")
    parser.add_argument("--seed", type=int, default=1, help="which morning")
    parser.add_argument("--once", action="store_true", help="end when the morning is over")
    given = parser.parse_args()
    configure_logging("warning")
    ending = Ending()
    with tempfile.TemporaryDirectory(prefix="inferplane-demo-") as folder, suppress(KeyboardInterrupt):
        asyncio.run(ending.of(demonstrate(Path(folder) / "home", given)))


if __name__ == "__main__":
    main()
