"""In the place of a gateway where there is none: clusters bring an ingress of their own.

A control plane that keeps no cluster on its own machine runs no Envoy. Routes are confirmed as soon as they
are had, because nobody sends anything by them.
"""

from __future__ import annotations

from inferplane.gateway.route_table import EndpointRoutes


class AbsentGateway:
    """Has routes and sends nothing."""

    def __init__(self) -> None:
        self._routes: dict[str, EndpointRoutes] = {}

    def set(self, routes: EndpointRoutes) -> None:
        """Have these routes for their endpoint."""
        self._routes[routes.uid] = routes

    def remove(self, uid: str) -> None:
        """Have no routes for the endpoint."""
        self._routes.pop(uid, None)

    def confirmed(self, uid: str) -> EndpointRoutes | None:
        """The routes that were set last."""
        return self._routes.get(uid)
