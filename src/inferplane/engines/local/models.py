"""What the local engine needs of whatever fetches models; the model store fits, and so do fakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from inferplane.domain.artifact import ArtifactState
from inferplane.domain.preflight import Check


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model lies. `secret` holds credentials by variable name and is no part of the text form."""

    uri: str
    digest: str
    secret: Mapping[str, str]

    def __repr__(self) -> str:
        return f"ModelSource(uri={self.uri!r}, digest={self.digest!r})"


def model_reference(uid: str, revision: int) -> str:
    """Under which name a revision's model is asked for: the endpoint's uid, later ones with `.r<number>`."""
    return uid if revision == 1 else f"{uid}.r{revision}"


def owner_of(reference: str) -> tuple[str, int]:
    """The endpoint's uid and the revision of `model_reference`."""
    uid, _, number = reference.partition(".r")
    return uid, int(number) if number.isdecimal() else 1


class ModelFetcher(Protocol):
    """Brings models to this machine, one copy for all that want the same. A `uid` here is a `model_reference`.

    A source is a value with `uri`, `digest` and `secret`. Its type is left open, because fetchers
    have their own and must not be known here; a `ModelSource` is what they get.
    """

    def request(self, uid: str, source: Any, on_change: Callable[[], None]) -> None:
        """Begin or join a fetch in the background; after a failure, try anew. Returns at once."""

    def state(self, uid: str) -> ArtifactState:
        """Where the endpoint's model is."""

    async def release(self, uid: str) -> None:
        """The endpoint needs its model no more; files nobody needs may go."""

    def references(self) -> frozenset[str]:
        """Endpoint uids that need a model here."""

    async def probe(self, source: Any, suffixes: tuple[str, ...] = ()) -> tuple[Check, ...]:
        """Whether the source could be fetched and holds one file with one of the `suffixes` (all will do
        when there are none), within a few seconds."""
