"""Whether a name leads to an ingress: found out beside the request, remembered, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest_asyncio

from inferplane.services.names import REMEMBERED_MAX, REMEMBERED_SECONDS, UNKNOWN, NameFinding, Names


class Dns:
    """Answers what it is told, when it is told."""

    def __init__(self) -> None:
        self.addresses: dict[str, tuple[str, ...]] = {}
        self.asked: list[str] = []
        self.open = asyncio.Event()
        self.open.set()
        self.broken = False
        self.now = 0.0

    async def resolve(self, host: str) -> tuple[str, ...]:
        self.asked.append(host)
        await self.open.wait()
        if self.broken:
            raise OSError("no resolver")
        return self.addresses.get(host, ())


@pytest_asyncio.fixture
async def dns() -> Dns:
    return Dns()


@pytest_asyncio.fixture
async def names(dns: Dns) -> AsyncIterator[Names]:
    names = Names(dns.resolve, lambda: dns.now)
    yield names
    await names.close()


async def test_a_name_leads_there_or_elsewhere_or_nowhere(dns: Dns, names: Names) -> None:
    dns.addresses = {
        "a.example.com": ("192.0.2.9", "192.0.2.10"),
        "b.example.com": ("198.51.100.1",),
        "six.example.com": ("2001:DB8:0::1",),
        "ingress.example.com": ("192.0.2.10",),
    }
    assert await names.check("A.example.com.", "192.0.2.10") == NameFinding(leads_there=True)
    assert await names.check("a.example.com", "ingress.example.com") == NameFinding(leads_there=True)
    assert await names.check("six.example.com", "[2001:db8::1]") == NameFinding(leads_there=True)
    assert await names.check("b.example.com", "192.0.2.10") == NameFinding(
        leads_there=False, message="b.example.com resolves to 198.51.100.1; it should lead to 192.0.2.10"
    )
    assert await names.check("c.example.com", "192.0.2.10") == NameFinding(
        leads_there=False, message="c.example.com does not resolve; it should lead to 192.0.2.10"
    )
    assert await names.check("", "192.0.2.10") == await names.check("a.example.com", "") == UNKNOWN


async def test_answers_are_remembered_for_a_while(dns: Dns, names: Names) -> None:
    for _ in range(3):
        await names.check("a.example.com", "192.0.2.10")
    assert dns.asked == ["a.example.com"]
    dns.addresses["a.example.com"] = ("192.0.2.10",)
    dns.now = REMEMBERED_SECONDS
    assert (await names.check("a.example.com", "192.0.2.10")).leads_there


async def test_a_slow_resolver_keeps_nobody_waiting(dns: Dns, names: Names) -> None:
    dns.open.clear()
    assert await names.check("a.example.com", "192.0.2.10") == UNKNOWN
    assert await names.check("a.example.com", "192.0.2.10") == UNKNOWN
    assert dns.asked == ["a.example.com"], "asked once, however many want to know"
    dns.addresses["a.example.com"] = ("192.0.2.10",)
    dns.open.set()
    while not (await names.check("a.example.com", "192.0.2.10")).leads_there:
        pass  # it waits by itself
    assert dns.asked == ["a.example.com"]


async def test_a_broken_resolver_says_nothing_about_the_name(dns: Dns, names: Names) -> None:
    dns.broken = True
    assert (await names.check("a.example.com", "192.0.2.10")).leads_there is None


async def test_what_is_remembered_is_bounded(dns: Dns, names: Names) -> None:
    for number in range(REMEMBERED_MAX + 1):
        await names.check(f"n{number}", "192.0.2.10")
    await names.check(f"n{REMEMBERED_MAX}", "192.0.2.10")
    assert len(dns.asked) == REMEMBERED_MAX + 1
    await names.check("n0", "192.0.2.10")
    assert dns.asked[-1] == "n0"
