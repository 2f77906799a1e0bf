"""What is known of one endpoint's namespace at one moment: the API server's objects, as they came, and log tails.

The engine's watches fill a `Picture`, `observe` reads it, and tests put one together from recordings or by hand.
Objects are plain dicts of the API's JSON. Lists hold whatever the namespace has; `observe` picks what belongs to
the InferenceService, so a picture may be filled without care for owners.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Raw = Mapping[str, Any]

LOG_TAIL_LINES = 20
"""As many last lines of an ended container's output are worth keeping."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One endpoint on its cluster. None and empty mean: the API server has no such object.

    `log_tails` are the last lines that containers printed, oldest first, by `log_key`. Only ended containers
    are asked for; a tail that has not come yet is simply absent.
    """

    namespace: Raw | None = None
    inference_service: Raw | None = None
    deployments: tuple[Raw, ...] = ()
    replica_sets: tuple[Raw, ...] = ()
    pods: tuple[Raw, ...] = ()
    events: tuple[Raw, ...] = ()
    ingresses: tuple[Raw, ...] = ()
    log_tails: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def log_key(pod: str, container: str, restart_count: int) -> str:
    """Names one run of one container: `demo-predictor-abc/kserve-container/3` is the fourth run."""
    return f"{pod}/{container}/{restart_count}"
