"""A cluster's objects → what the platform knows of one endpoint. Pure."""

from __future__ import annotations

from datetime import datetime

from inferplane.engines.kserve.picture import Picture
from inferplane.engines.port import Observation


def observe(endpoint_uid: str, picture: Picture, now: datetime) -> Observation:
    """What `picture` says of the endpoint at `now`."""
    del endpoint_uid, picture, now
    return Observation()
