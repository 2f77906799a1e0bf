"""What KServe, Deployment controller and kubelet do to the objects. Two ways: `Player` repeats what was recorded,
`Behaving` does by rules. Skeleton."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from kube_api.recordings import Line, Recording

if TYPE_CHECKING:
    from kube_api.server import KubeApi


class Player:
    """Plays a recording into the cluster, as what happens to the InferenceService `namespace/name` of ours.

    Names, namespace, uids, labels and annotations are those of ours; the recorded spec of the InferenceService
    is not written, its status is.
    """

    def __init__(self, api: KubeApi, recording: Recording, *, namespace: str, name: str) -> None:
        raise NotImplementedError

    @property
    def next_t(self) -> float | None:
        """When the next line was recorded; None at the end."""
        raise NotImplementedError

    def step(self) -> Line | None:
        """Plays one line; None at the end."""
        raise NotImplementedError

    def until(self, t: float) -> int:
        """Plays the lines up to that time of the recording; how many."""
        raise NotImplementedError

    async def run(self, speed: float = 100.0) -> None:
        """Plays the rest at so many times the recorded speed."""
        raise NotImplementedError


class Failure(Enum):
    """What happens to an InferenceService's pods instead of becoming ready, shaped as recorded."""

    IMAGE_PULL = "image-not-found"
    CRASH_LOOP = "crashloop"
    OOM_KILLED = "oomkilled"
    UNSCHEDULABLE = "unschedulable-gpu-none"
    QUOTA = "quota-exceeded"
    NEVER_READY = "readiness-never"
    DOWNLOAD = "storage-initializer-fails"
    PENDING = "pending"
    """Nothing more happens after the pod is there: for tests that stop half-way."""


class Behaving:
    """A KServe that does what it should, at `pace_s` a step. `async with Behaving(api) as kserve:`."""

    def __init__(self, api: KubeApi, *, pace_s: float = 0.005, domain: str = "example.com") -> None:
        raise NotImplementedError

    def fail(self, namespace: str, failure: Failure, *, image: str | None = None) -> None:
        """From now on pods of that namespace (with that image only, where named) fail so."""
        raise NotImplementedError

    def mend(self, namespace: str) -> None:
        """No longer: the pods there are recover."""
        raise NotImplementedError
