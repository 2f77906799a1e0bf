"""What Envoy is told and when: the state of the conversation, without Envoy and without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from inferplane.gateway.envoy_words import Kind, Resource
from inferplane.gateway.exchange import BATCH_MAX, Exchange, Message


def one(name: str, version: str = "1", kind: Kind = Kind.UPSTREAM) -> Resource:
    return Resource(kind, name, version, {})


def subscribe(exchange: Exchange, **held: Mapping[str, str]) -> None:
    exchange.begin_anew()
    for kind in Kind:
        exchange.subscribed(kind, held.get(kind.name, {}))


def names(message: Message | None) -> list[str]:
    assert message is not None
    return [name for _, name in message.keys]


def test_upstreams_are_told_before_the_listener_and_that_before_routes() -> None:
    exchange = Exchange()
    for kind in (Kind.ROUTES, Kind.LISTENER, Kind.UPSTREAM):
        exchange.put(one("x", kind=kind))
    assert exchange.next() is None, "nobody listens yet"
    subscribe(exchange)
    kinds = []
    while (message := exchange.next()) is not None:
        kinds.append(message.kind)
    assert kinds == [Kind.UPSTREAM, Kind.LISTENER, Kind.ROUTES]


def test_who_holds_it_already_is_told_nothing() -> None:
    exchange = Exchange()
    exchange.put(one("same"))
    exchange.put(one("other", "2"))
    subscribe(exchange, UPSTREAM={"same": "1", "other": "1", "left over": "1"})
    assert names(exchange.next()) == ["other"]
    assert exchange.next() is None
    assert exchange.has(Kind.UPSTREAM, "same")
    assert not exchange.has(Kind.UPSTREAM, "other")
    exchange.forget_the_rest()
    message = exchange.next()
    assert message is not None
    assert (message.resources, message.removed) == ((), ("left over",))
    exchange.acknowledged(message.nonce)
    assert exchange.has(Kind.UPSTREAM, "left over"), "nothing is wanted, and nothing is held"


def test_an_answer_to_something_older_confirms_nothing_newer() -> None:
    exchange = Exchange()
    subscribe(exchange)
    exchange.put(one("x", "1"))
    first = exchange.next()
    exchange.put(one("x", "2"))
    second = exchange.next()
    assert first is not None
    assert second is not None
    exchange.acknowledged(first.nonce)
    assert not exchange.has(Kind.UPSTREAM, "x")
    exchange.acknowledged(second.nonce)
    assert exchange.has(Kind.UPSTREAM, "x")


def test_a_refusal_ends_when_something_else_is_wanted() -> None:
    exchange = Exchange()
    subscribe(exchange)
    exchange.put(one("x", "1"))
    message = exchange.next()
    assert message is not None
    exchange.refused(message.nonce, "no")
    (refusal,) = exchange.refusals().values()
    assert (refusal.version, refusal.words) == ("1", "no")
    assert exchange.next() is None, "it is not told again and again"
    exchange.put(one("x", "2"))
    assert not exchange.refusals()
    assert names(exchange.next()) == ["x"]


def test_large_tables_go_in_several_messages() -> None:
    exchange = Exchange()
    for number in range(BATCH_MAX * 2 + 1):
        exchange.put(one(f"x{number}"))
    subscribe(exchange)
    sizes = []
    while (message := exchange.next()) is not None:
        sizes.append(len(message.keys))
    assert sizes == [BATCH_MAX, BATCH_MAX, 1]


@dataclass
class FakeEnvoy:
    """Takes messages as a whole, except those with a version that it does not like."""

    held: dict[str, str] = field(default_factory=dict)

    def answer(self, exchange: Exchange) -> None:
        while (message := exchange.next()) is not None:
            if any(each.version == "bad" for each in message.resources):
                exchange.refused(message.nonce, "it is bad")
                continue
            self.held |= {each.name: each.version for each in message.resources}
            for name in message.removed:
                self.held.pop(name, None)  # forgetting what one does not know is nothing
            exchange.acknowledged(message.nonce)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 9), st.sampled_from(["1", "2", "bad"])),
        st.tuples(st.just("drop"), st.integers(0, 9), st.just("")),
        st.tuples(st.just("answer"), st.just(0), st.just("")),
        st.tuples(st.just("reconnect"), st.just(0), st.just("")),
        st.tuples(st.just("new envoy"), st.just(0), st.just("")),
    ),
    max_size=40,
)


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_envoy_ends_with_all_that_it_takes(steps: list[tuple[str, int, str]]) -> None:
    exchange, envoy, wanted = Exchange(), FakeEnvoy(), dict[str, str]()
    exchange.forget_the_rest()
    taken: dict[str, str] = {}
    for what, number, version in [*steps, ("reconnect", 0, ""), ("answer", 0, "")]:
        name = f"x{number}"
        if what == "put":
            wanted[name] = version
            exchange.put(one(name, version))
        elif what == "drop":
            wanted.pop(name, None)
            exchange.drop(Kind.UPSTREAM, name)
        elif what == "answer":
            envoy.answer(exchange)
        else:
            envoy = envoy if what == "reconnect" else FakeEnvoy()
            exchange.begin_anew()
            exchange.subscribed(Kind.UPSTREAM, envoy.held)
    taken = {name: version for name, version in wanted.items() if version != "bad"}
    assert {name: held for name, held in envoy.held.items() if wanted.get(name) != "bad"} == taken
    assert {name for _, name in exchange.refusals()} == {n for n, v in wanted.items() if v == "bad"}
    assert all(exchange.has(Kind.UPSTREAM, name) for name in taken)
