"""What KServe, Deployment controller, scheduler and kubelet do to the objects: `Player` repeats what was recorded,
`Behaving` does by rules."""

from __future__ import annotations

from kube_api.behaving import Behaving, Failure
from kube_api.player import Player

__all__ = ["Behaving", "Failure", "Player"]
