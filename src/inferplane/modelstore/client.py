"""HTTP clients for fetching: one per fetch, so that no cookie or connection is shared between users.

Proxies and certificates come from the environment that the composition root passed in, never from
the process's own. Host names are looked up here first, in threads of their own: a name that does
not exist can take a resolver many seconds, and the few threads that the event loop has for look-ups
must not be used up by one user's misspelt hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Mapping

import httpx

from inferplane.domain.reasons import ReasonCode
from inferplane.modelstore.failure import FetchFailed
from inferplane.modelstore.limits import StoreLimits

USER_AGENT = "inferplane-modelstore"


class HttpClients:
    """Makes clients; keeps only the certificates, which are slow to load, and bounds look-ups."""

    def __init__(
        self,
        environment: Mapping[str, str],
        limits: StoreLimits,
        resolves: Callable[[str], bool] | None = None,
    ) -> None:
        """`resolves` tells whether a host's name is known; it blocks. The system's resolver by default."""
        self._environment = environment
        self._limits = limits
        self._resolves = resolves or _resolves
        self._context: ssl.SSLContext | None = None
        self._lookups = asyncio.Semaphore(limits.lookups_at_once)

    def prepare(self) -> None:
        """Load the certificates, which blocks for some tens of milliseconds the first time."""
        self._certificates()

    async def check_host(self, host: str, shown: str) -> None:
        """Raise FetchFailed (HostNotFound) when `host` cannot be looked up. Behind a proxy, it is the
        proxy that knows; then nothing is asked.
        """
        if _is_address(host) or any(proxy_for(self._environment, scheme) for scheme in ("http", "https")):
            return
        await self._lookups.acquire()
        answer = self._look_up(host)
        await asyncio.wait({answer}, timeout=self._limits.lookup_seconds)
        if not answer.done() or not answer.result():
            raise FetchFailed(
                ReasonCode.HOST_NOT_FOUND, f"the host {host} of {shown} cannot be found", transient=True
            )

    def new(self) -> httpx.AsyncClient:
        """A client for one fetch; the caller closes it."""
        limits = self._limits
        return httpx.AsyncClient(
            trust_env=False,
            verify=self._certificates(),
            mounts=self._proxies(),
            follow_redirects=True,
            max_redirects=limits.redirects_max,
            timeout=httpx.Timeout(limits.read_seconds, connect=limits.connect_seconds, pool=None),
            headers={"user-agent": USER_AGENT},
        )

    def _look_up(self, host: str) -> asyncio.Future[bool]:
        """Whether the name resolves, told later. The place among the look-ups at once is held until the
        thread has ended, however long nobody has waited for it: places bound threads. The thread is a
        daemon, so that a hanging resolver holds up no exit.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bool] = loop.create_future()

        def tell(found: bool) -> None:
            self._lookups.release()
            if not answer.done():
                answer.set_result(found)

        def ask() -> None:
            found = False
            try:
                found = self._resolves(host)
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed; nobody waits any more
                    loop.call_soon_threadsafe(tell, found)

        threading.Thread(target=ask, name="modelstore-lookup", daemon=True).start()
        return answer

    def _certificates(self) -> ssl.SSLContext:
        if self._context is None:
            own = self._environment.get("SSL_CERT_FILE"), self._environment.get("SSL_CERT_DIR")
            if any(own):
                self._context = ssl.create_default_context(cafile=own[0] or None, capath=own[1] or None)
            else:
                self._context = httpx.create_ssl_context()
        return self._context

    def _proxies(self) -> dict[str, httpx.AsyncBaseTransport | None]:
        mounts: dict[str, httpx.AsyncBaseTransport | None] = {}
        for scheme in ("http", "https"):
            proxy = proxy_for(self._environment, scheme)
            if proxy:
                mounts[f"{scheme}://"] = httpx.AsyncHTTPTransport(proxy=proxy, verify=self._certificates())
        if mounts:
            mounts |= dict.fromkeys(direct_patterns(self._environment))
        return mounts


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def proxy_for(environment: Mapping[str, str], scheme: str) -> str:
    """The proxy for http or https as a URL; "" for none."""
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
    proxy = next((environment[name] for name in names if environment.get(name)), "")
    if "*" in _no_proxy(environment) or not proxy:
        return ""
    return proxy if "://" in proxy else f"http://{proxy}"


def direct_patterns(environment: Mapping[str, str]) -> tuple[str, ...]:
    """httpx's patterns for hosts that are reached without the proxy (a name covers its subdomains)."""
    patterns: list[str] = []
    for host in _no_proxy(environment):
        name = host.lstrip(".")
        is_address = name == "localhost" or ":" in name or name.replace(".", "").isdigit()
        patterns.append(f"all://{name}" if is_address else f"all://*{name}")
    return tuple(patterns)


def _no_proxy(environment: Mapping[str, str]) -> tuple[str, ...]:
    text = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    return tuple(host.strip() for host in text.split(",") if host.strip())
