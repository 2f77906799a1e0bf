"""Envoy's admin interface, over its unix socket: its statistics, and asking it to drain."""

from __future__ import annotations

from pathlib import Path

import httpx

ADMIN_SECONDS_MAX = 2.0


class AdminUnreachable(Exception):
    """Envoy does not answer: not there yet, going away, or stuck."""


class Admin:
    """A client of one Envoy's admin socket."""

    def __init__(self, socket: Path) -> None:
        # No TLS is ever spoken here; without `verify=False` httpx would load every root certificate.
        transport = httpx.AsyncHTTPTransport(uds=str(socket), verify=False)
        self._client = httpx.AsyncClient(
            transport=transport, base_url="http://admin", timeout=ADMIN_SECONDS_MAX, trust_env=False
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def listens(self) -> bool:
        """Whether the listener accepts connections, in all workers."""
        found = await self.numbers(r"^listener_manager\.(total_listeners_active|workers_started)$")
        return found.get("listener_manager.total_listeners_active", 0) > 0 and bool(
            found.get("listener_manager.workers_started", 0)
        )

    async def requests_in_flight(self) -> int:
        """Requests that have arrived and are not answered yet."""
        return sum((await self.numbers(r"^http\.gateway\.downstream_rq_active$")).values())

    async def drain(self) -> None:
        """Ask clients to go elsewhere: every answer from now on closes its connection."""
        await self._ask("POST", "/drain_listeners?graceful&skip_exit")

    async def stop_listening(self) -> None:
        """Accept no further connection."""
        await self._ask("POST", "/drain_listeners")

    async def numbers(self, pattern: str, *, unused: bool = False) -> dict[str, int]:
        """Every statistic whose name matches, by name; with `unused`, also those that were never used.

        Raises AdminUnreachable.
        """
        text = await self._ask("GET", "/stats", filter=pattern, **({} if unused else {"usedonly": ""}))
        found = {}
        for line in text.splitlines():
            name, _, value = line.rpartition(": ")
            if value.isdigit():
                found[name] = int(value)
        return found

    async def prometheus(self, pattern: str) -> str:
        """Every statistic that was ever used and whose name matches, as Prometheus text.

        Raises AdminUnreachable.
        """
        return await self._ask("GET", "/stats/prometheus", filter=pattern, usedonly="")

    async def reopen_logs(self) -> None:
        """Go on in a new file, where the old one was moved away."""
        await self._ask("POST", "/reopen_logs")

    async def _ask(self, method: str, path: str, **query: str) -> str:
        try:
            answer = await self._client.request(method, path, params=query or None)
            answer.raise_for_status()
        except (httpx.HTTPError, OSError) as error:
            raise AdminUnreachable(str(error) or type(error).__name__) from error
        return answer.text
