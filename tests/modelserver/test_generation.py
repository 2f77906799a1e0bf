"""Turns, stop texts and pieces of text, without any model."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.modelserver.errors import NotProcessed
from inferplane.modelserver.generation import (
    Detokenizer,
    Finish,
    GenerationLimits,
    Prompt,
    Sampling,
    Scheduler,
    StopFinder,
    generator_of,
)


def _bytes_decoder(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode("utf-8", "replace")


@given(st.text(max_size=40))
def test_pieces_joined_are_the_text(text: str) -> None:
    detokenizer = Detokenizer(_bytes_decoder)
    pieces = [detokenizer.add(token) for token in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_come_out_all_the_same(content: bytes) -> None:
    detokenizer = Detokenizer(_bytes_decoder)
    pieces = [detokenizer.add(token) for token in content]
    joined = "".join(pieces) + detokenizer.flush()
    assert joined.replace("\ufffd", "") == content.decode("utf-8", "replace").replace("\ufffd", "")


@given(
    st.text("ab.", max_size=30),
    st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3),
    st.integers(1, 5),
)
def test_nothing_of_a_stop_text_gets_out(text: str, stops: list[str], size: int) -> None:
    finder = StopFinder(stops)
    told = "".join(finder.add(text[start : start + size]) for start in range(0, len(text), size))
    found = finder.found
    told += finder.flush()
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    assert found == bool(places)
    if len(set(map(len, stops))) <= 1 or not places:  # of several lengths, the one complete first wins
        assert told == (text[: min(places)] if places else text)
    assert all(stop not in told for stop in stops)


class _Counting:
    """A model that counts up from its prompt's last token; every step waits until it is let go on."""

    context_tokens = 1000
    vocabulary_size = 1000

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def encode(self, text: str) -> list[int]:
        return [int(text)]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return [int(messages[0]["content"])]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(f"{token} " for token in tokens)

    def start(self, tokens: Sequence[int], sampling: Sampling) -> Any:
        if tokens[-1] == 666:
            raise RuntimeError("no such number")
        return _Count(self, tokens[-1])


class _Count:
    def __init__(self, model: _Counting, at: int) -> None:
        self._model = model
        self._at = at

    def step(self) -> int | None:
        self._model.go.wait(30)
        self._at += 1
        self._model.steps.append(self._at)
        return None if self._at % 100 == 99 else self._at


async def _text(scheduler: Scheduler, prompt: Prompt) -> tuple[str, Finish | None]:
    text, finish = "", None
    async for piece in scheduler.generate(prompt):
        text, finish = text + piece.text, piece.finish
    return text, finish


def _prompt(number: int, most: int, *stop: str) -> Prompt:
    return Prompt((number,), most, stop=stop)


def test_a_model_of_this_shape_is_known() -> None:
    assert generator_of(_Counting()) is not None
    assert generator_of(object()) is None


async def test_it_ends_by_length_by_the_model_and_by_a_stop_text() -> None:
    scheduler = Scheduler(_Counting(), GenerationLimits())
    assert await _text(scheduler, _prompt(0, 3)) == ("1 2 3 ", Finish.LENGTH)
    assert await _text(scheduler, _prompt(96, 50)) == ("97 98 ", Finish.STOP)
    assert await _text(scheduler, _prompt(0, 50, "4 ")) == ("1 2 3 ", Finish.STOP)
    assert await _text(scheduler, _prompt(0, 2, "2 9")) == ("1 2 ", Finish.LENGTH)
    scheduler.close()


async def test_generations_take_turns_and_the_others_wait_in_order() -> None:
    model = _Counting()
    model.go.clear()
    scheduler = Scheduler(model, GenerationLimits(concurrency=2, waiting_max=1))
    tasks = [asyncio.create_task(_text(scheduler, _prompt(number, 3))) for number in (100, 200, 300)]
    await asyncio.sleep(0)
    with pytest.raises(NotProcessed):
        await _text(scheduler, _prompt(400, 3))
    model.go.set()
    texts = [text for text, _ in await asyncio.gather(*tasks)]
    assert texts == ["101 102 103 ", "201 202 203 ", "301 302 303 "]
    assert model.steps.index(201) < model.steps.index(103)
    assert model.steps.index(301) > model.steps.index(103)
    scheduler.close()


async def test_who_goes_away_leaves_the_place_to_others() -> None:
    model = _Counting()
    scheduler = Scheduler(model, GenerationLimits(concurrency=1, waiting_max=1))
    generation = scheduler.generate(_prompt(100, 90))
    async with contextlib.aclosing(generation):
        assert (await anext(generation)).text == "101 "
    waiting = asyncio.create_task(_text(scheduler, _prompt(200, 2)))
    assert (await waiting)[0] == "201 202 "
    scheduler.close()


async def test_a_failure_is_its_own_callers_only() -> None:
    scheduler = Scheduler(_Counting(), GenerationLimits())
    bad, good = await asyncio.gather(
        _text(scheduler, _prompt(666, 2)), _text(scheduler, _prompt(1, 2)), return_exceptions=True
    )
    assert isinstance(bad, RuntimeError)
    assert good == ("2 3 ", Finish.LENGTH)
    scheduler.close()


async def test_closing_refuses_what_is_unfinished() -> None:
    model = _Counting()
    model.go.clear()
    scheduler = Scheduler(model, GenerationLimits(concurrency=1, waiting_max=5))
    tasks = [asyncio.create_task(_text(scheduler, _prompt(number, 3))) for number in (100, 200)]
    await asyncio.sleep(0)
    scheduler.close()
    model.go.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[1], NotProcessed)
    with pytest.raises(NotProcessed):
        await _text(scheduler, _prompt(1, 1))
