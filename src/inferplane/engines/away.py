"""Stands in for the engine of a cluster that is registered and cannot be connected to.

Its kubeconfig's file may be gone, or name what is not there. As long as it is registered the cluster is there, and
what runs on it runs; so nobody may conclude that nothing is left, as of a cluster that is configured no longer.
Whatever is asked, the answer is that nobody can tell.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime

from inferplane.domain.preflight import Check
from inferplane.domain.reasons import ReasonCode, reason_of
from inferplane.engines.port import Action, EngineError, LogLine, Observation, Target, Unreachable


class AwayEngine:
    """An engine that reaches nobody, since when. `problem` says why, in a sentence that is safe to show."""

    def __init__(self, problem: str, since: datetime) -> None:
        self._problem = problem
        self._unreachable = Unreachable(since, problem)

    async def start(self, wake: Callable[[str], None]) -> None:
        """Nothing will ever be announced."""

    async def close(self, *, stop_servers: bool) -> None:
        """There is nothing to close."""

    async def observe(self, uid: str) -> Observation:  # noqa: ARG002 - whichever it is
        """That nobody can tell."""
        return Observation(unreachable=self._unreachable)

    async def apply(self, target: Target, action: Action) -> None:  # noqa: ARG002 - whatever it is
        """Raises EngineError."""
        raise self._error()

    async def owned(self) -> frozenset[str]:
        """Nobody can tell."""
        return frozenset()

    async def release_orphan(self, uid: str) -> None:  # noqa: ARG002 - whichever it is
        """Raises EngineError."""
        raise self._error()

    async def logs(
        self,
        uid: str,  # noqa: ARG002 - whatever is asked
        *,
        replica: str = "",  # noqa: ARG002
        previous: bool = False,  # noqa: ARG002
        follow: bool = False,  # noqa: ARG002
        tail_lines: int = 200,  # noqa: ARG002
    ) -> AsyncIterator[LogLine]:
        """Raises EngineError."""
        lines: tuple[LogLine, ...] = ()
        for line in lines:  # there is none, but this makes it an iterator
            yield line
        raise self._error()

    async def preflight(self, target: Target) -> tuple[Check, ...]:  # noqa: ARG002 - whatever it is
        """One check, which fails."""
        code = ReasonCode.CLUSTER_UNREACHABLE
        action = reason_of(code).next_action
        return (Check("cluster", ok=False, reason=code, message=self._problem, next_action=action),)

    def _error(self) -> EngineError:
        return EngineError(self._problem, reason=ReasonCode.CLUSTER_UNREACHABLE.value)
