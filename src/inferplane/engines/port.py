"""The engine port: what the endpoint controller asks of whatever runs model servers.

An engine owns everything it creates under an endpoint's `uid`: processes or pods, sockets, log
files, model files. The contract is about failure and time:

* `observe` tells what *is*, from the world itself (processes, files, pods), never from what this
  object remembers having done, so that it is right after a `kill -9` and a restart. It is cheap
  (tens of milliseconds at most) and does not wait for anything to change.
* `apply` takes one step and returns quickly; slow work (a download, a stop with its grace) goes on
  in the background and shows in later observations. Applying the same action twice is harmless.
  An action that cannot be taken raises `EngineError`; the controller tries again with backoff.
* What happens by itself (a server became ready, ended, a download moved) is announced by calling
  `wake(uid)`. That is a hint and carries only the key: a lost hint costs time, never correctness.

Two kinds of engines keep this contract. Where `Observation.ingress` is None, replicas are started and stopped
one by one, and our gateway routes to them. Where it is set, the cluster has controllers of its own that
keep replicas running, scale them, replace them by those of another revision, and route to them. There one
`StartReplica` says all of what there should be of an endpoint, as of its revision: the engine remembers its
`mark` with what it created, so that whether it has to be said again is a comparison. One `StopReplica` puts
all of it to rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from inferplane.domain.artifact import ArtifactState
from inferplane.domain.endpoint import InferenceEndpoint, Ingress, Replica, ReplicaId
from inferplane.domain.errors import InferplaneError
from inferplane.domain.preflight import Check

Clock = Callable[[], datetime]


class EngineError(InferplaneError):
    """A step could not be taken. The message is safe to show; the cause is chained."""


class EngineAway(EngineError):
    """The engine could not be asked at all. That says nothing about the endpoint; `Observation.unreachable` will."""


@dataclass(frozen=True, slots=True)
class FetchModel:
    """Bring a revision's model here (or notice that it is here). Progress shows in `artifacts`.

    Asked again after the fetch failed, it tries anew.
    """

    revision: int = 1


@dataclass(frozen=True, slots=True)
class DropModel:
    """No replica of this revision runs or will: its model is needed no more. Files that nothing else
    uses may go. Harmless when there is none.
    """

    revision: int


@dataclass(frozen=True, slots=True)
class StartReplica:
    """Start the named replica unless it runs. Needs its revision's model to be present.

    `gpus` are the granted ones, as (node, indexes); a replica sees these and no others, none when empty.
    """

    id: ReplicaId
    gpus: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class StopReplica:
    """Ask the replica to finish its requests and end; force it after `grace_seconds`."""

    id: ReplicaId
    grace_seconds: float


@dataclass(frozen=True, slots=True)
class Release:
    """Undo what is left of the endpoint once no replica runs: fetch, model files that no other
    endpoint uses, sockets, logs. Afterwards `observe` returns an empty observation.
    """


Action = FetchModel | DropModel | StartReplica | StopReplica | Release


def mark(endpoint: InferenceEndpoint, step: StartReplica) -> str:
    """Names what a StartReplica of an endpoint says: equal marks, nothing to say again."""
    gpus = hashlib.sha256(repr(step.gpus).encode()).hexdigest()[:8] if step.gpus else "cpu"
    return f"{endpoint.generation}.r{step.id.revision}.{gpus}"


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The cluster has not answered since then. What is said beside this is what was seen last."""

    since: datetime
    message: str


@dataclass(frozen=True, slots=True)
class Observation:
    """What the engine has of one endpoint. Exited replicas stay listed (with their `exit`) until
    the same replica is started again or the endpoint is released. `artifacts` are the models that were
    asked for, by revision. `left` names what `Release` would undo, in words for a person ("model files",
    "log files"); empty means nothing.

    On a cluster that runs replicas by itself `ingress` is set, and `mark` is that of the last StartReplica as
    far as what it created is still there and unchanged, "" otherwise; `drift` then says what somebody else did to it.
    `look_again_seconds` is when this would read differently by time alone (None: never).
    """

    artifacts: Mapping[int, ArtifactState] = field(default_factory=dict)
    replicas: tuple[Replica, ...] = ()
    left: tuple[str, ...] = ()
    ingress: Ingress | None = None
    mark: str = ""
    drift: str = ""
    unreachable: Unreachable | None = None
    look_again_seconds: float | None = None

    def artifact(self, revision: int) -> ArtifactState:
        """Where that revision's model is; ABSENT where it was never asked for."""
        return self.artifacts.get(revision, ArtifactState())


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line a model server printed. `replica` is `r<revision>-<index>`."""

    replica: str
    text: str


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint together with its secret (credentials for storage, by variable name).

    The endpoint is as of the revision that the step is about (`InferenceEndpoint.at_revision`).
    The secret is handed over for one call and kept nowhere else by the caller; an engine must not
    let it reach a log, an error or a model server.
    """

    endpoint: InferenceEndpoint
    secret: Mapping[str, str]


class Engine(Protocol):
    """Adapter to one cluster. See the module's docstring for the promises."""

    async def start(self, wake: Callable[[str], None]) -> None:
        """Find what runs already and begin announcing changes by `wake(endpoint_uid)`."""

    async def close(self, *, stop_servers: bool) -> None:
        """Stop announcing. With `stop_servers`, end every model server first and leave no process."""

    async def observe(self, uid: str) -> Observation:
        """What there is of the endpoint; an empty observation when nothing is."""

    async def apply(self, target: Target, action: Action) -> None:
        """Take one step. Raises EngineError."""

    async def owned(self) -> frozenset[str]:
        """Every endpoint uid of which something exists here; the janitor compares it with the store."""

    async def release_orphan(self, uid: str) -> None:
        """Stop and undo everything of an endpoint that the store does not know."""

    def logs(
        self,
        uid: str,
        *,
        replica: str = "",
        previous: bool = False,
        follow: bool = False,
        tail_lines: int = 200,
    ) -> AsyncIterator[LogLine]:
        """The last `tail_lines` lines, then, with `follow`, each new one until the caller stops.

        `previous` reads the run before the present one. Raises EngineError when there is no such log.
        """

    async def preflight(self, target: Target) -> tuple[Check, ...]:
        """What would happen if this endpoint were created: storage and credentials, size, format, runtime.

        Changes nothing, and answers within a few seconds.
        """
