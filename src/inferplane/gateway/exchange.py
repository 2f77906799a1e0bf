"""What Envoy is to have, what it has, and what to tell it next. Decisions only: no network, no clock.

Envoy is told by xDS in its incremental form: named resources with versions, each message with a number
(nonce) that Envoy acknowledges, or refuses with a sentence. A refusal takes a message as a whole, so one
with several resources is told again in halves, until those that Envoy does not want stand alone; all
others go on.

    wanted      what Envoy is to have                       put, drop
    held        the versions that it said it has            subscribed, acknowledged
    pending     what is yet to be told                      next
    in flight   what was told and is not answered yet
    refused     versions that Envoy does not take, and why

A connection begins with Envoy saying what it holds. So a new control plane tells an old Envoy only what
differs, and an old control plane tells a new Envoy everything.

Order: within one connection Envoy goes through messages one after the other. Upstreams are told before
the listener and the listener before routes, so that no route comes before what it leads to. What goes
away is for the publisher to drop only after the routes that led there are `held` without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from inferplane.gateway.envoy_words import Kind, Resource

BATCH_MAX = 100

Key = tuple[Kind, str]


@dataclass(frozen=True, slots=True)
class Message:
    """One message to Envoy: resources to have, and names to forget."""

    nonce: str
    kind: Kind
    resources: tuple[Resource, ...]
    removed: tuple[str, ...]

    @property
    def keys(self) -> tuple[Key, ...]:
        """Everything that it speaks of."""
        return tuple((self.kind, each.name) for each in self.resources) + tuple(
            (self.kind, name) for name in self.removed
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version that Envoy does not take, and its own words on it."""

    version: str
    words: str


class Exchange:
    """The state of the conversation with one Envoy."""

    def __init__(self) -> None:
        self._wanted: dict[Key, Resource] = {}
        self._held: dict[Key, str] = {}
        self._pending: dict[Key, None] = {}
        self._alone: list[tuple[Key, ...]] = []
        self._in_flight: dict[str, Message] = {}
        self._refused: dict[Key, Refusal] = {}
        self._subscribed: set[Kind] = set()
        self._nonce = 0
        self._may_remove = False

    # --- what is wanted ---

    def put(self, resource: Resource) -> None:
        """Envoy is to have this."""
        key = (resource.kind, resource.name)
        if self._wanted.get(key) == resource:
            return
        self._wanted[key] = resource
        self._refused.pop(key, None)
        self._pending[key] = None

    def drop(self, kind: Kind, name: str) -> None:
        """Envoy is not to have this."""
        key = (kind, name)
        self._refused.pop(key, None)
        if self._wanted.pop(key, None) is not None or key in self._held:
            self._pending[key] = None

    def forget_the_rest(self) -> None:
        """From now on Envoy is not to have anything that nobody put."""
        self._may_remove = True
        self._pending.update(dict.fromkeys(key for key in self._held if key not in self._wanted))

    # --- what Envoy says ---

    def begin_anew(self) -> None:
        """A connection begins or has ended; nothing is known of what Envoy has."""
        self._subscribed.clear()
        self._in_flight.clear()
        self._alone.clear()
        self._held.clear()
        self._refused.clear()
        self._pending = dict.fromkeys(self._wanted)

    def subscribed(self, kind: Kind, versions: Mapping[str, str]) -> tuple[Key, ...]:
        """Envoy wants to hear of this kind, and has these versions (by name)."""
        self._subscribed.add(kind)
        for name, version in versions.items():
            key = (kind, name)
            self._held[key] = version
            wanted = self._wanted.get(key)
            if wanted is not None and wanted.version == version:
                self._pending.pop(key, None)
            elif wanted is not None or self._may_remove:
                self._pending[key] = None
        return tuple((kind, name) for name in versions)

    def acknowledged(self, nonce: str) -> tuple[Key, ...]:
        """Envoy took this message; what it was about."""
        message = self._in_flight.pop(nonce, None)
        if message is None:
            return ()
        for each in message.resources:
            self._held[(message.kind, each.name)] = each.version
        for name in message.removed:
            self._held.pop((message.kind, name), None)
        return message.keys

    def refused(self, nonce: str, words: str) -> tuple[Key, ...]:
        """Envoy did not take this message; what of it is refused for good (nothing, if it is told in halves)."""
        message = self._in_flight.pop(nonce, None)
        if message is None:
            return ()
        keys = message.keys
        if len(keys) > 1:
            middle = len(keys) // 2
            self._alone += [keys[:middle], keys[middle:]]
            return ()
        for each in message.resources:
            key = (message.kind, each.name)
            if self._wanted.get(key) == each:
                self._refused[key] = Refusal(each.version, words)
        return keys

    # --- what to tell ---

    def next(self) -> Message | None:
        """The next message, which is then in flight; None when there is nothing to tell."""
        while self._alone:
            message = self._message(self._alone.pop(0))
            if message is not None:
                return message
        for kind in Kind:
            if kind not in self._subscribed:
                continue
            keys = [key for key in self._pending if key[0] is kind][:BATCH_MAX]
            for key in keys:
                del self._pending[key]
            message = self._message(tuple(keys))
            if message is not None:
                return message
        return None

    def _message(self, keys: tuple[Key, ...]) -> Message | None:
        resources = tuple(self._wanted[key] for key in keys if key in self._wanted)
        removed = tuple(name for kind, name in keys if (kind, name) not in self._wanted)
        if not resources and not removed:
            return None
        self._nonce += 1
        message = Message(str(self._nonce), keys[0][0], resources, removed)
        self._in_flight[message.nonce] = message
        return message

    # --- what is known ---

    def has(self, kind: Kind, name: str) -> bool:
        """Whether Envoy holds exactly what is wanted by this name, which may be nothing."""
        key = (kind, name)
        wanted = self._wanted.get(key)
        return self._held.get(key) == (None if wanted is None else wanted.version)

    def refusals(self) -> Mapping[Key, Refusal]:
        """What Envoy does not take."""
        return self._refused

    def answered(self) -> bool:
        """Whether Envoy is connected, and has answered all that it was told."""
        return (
            Kind.ROUTES in self._subscribed and not self._in_flight and not self._pending and not self._alone
        )

    def unanswered(self) -> Iterable[str]:
        """The numbers of messages in flight, oldest first."""
        return self._in_flight.keys()
