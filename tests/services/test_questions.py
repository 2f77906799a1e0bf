"""Questions about waits: one at a time, in a thread of their own, and not too many."""

from __future__ import annotations

import asyncio
import threading

import pytest

from inferplane.domain.errors import RateLimited
from inferplane.services.questions import KeepGoing, Questions

LONG = 60.0


async def test_places_are_bounded_and_given_back() -> None:
    questions = Questions()
    async with questions.place("one", 2, 2), questions.place("two", 2, 2):
        with pytest.raises(RateLimited) as refused:
            async with questions.place("three", 2, 2):
                pass
        assert refused.value.reason == "TooManyQuestions"
    async with questions.place("three", 1, 1):
        pass


async def test_no_workspace_takes_every_place() -> None:
    questions = Questions()
    async with questions.place("busy", 8, 1):
        with pytest.raises(RateLimited, match="of workspace busy"):
            async with questions.place("busy", 8, 1):
                pass
        async with questions.place("other", 8, 1):
            pass
    async with questions.place("busy", 8, 1):
        pass


async def test_who_waits_too_long_in_line_is_told_to_come_back_and_never_worked_on() -> None:
    began, go_on = threading.Event(), threading.Event()
    worked: list[str] = []

    def first(_: KeepGoing) -> str:
        began.set()
        go_on.wait(LONG)
        return "first"

    questions = Questions()
    # Once it is its turn, the time in line is no matter any more.
    asking = asyncio.create_task(questions.answer(first, LONG, 0.2))
    assert await asyncio.to_thread(began.wait, LONG)
    with pytest.raises(RateLimited) as refused:
        await questions.answer(lambda _: worked.append("second"), LONG, 0.2)
    assert refused.value.reason == "TooManyQuestions"
    go_on.set()
    assert await asking == "first"
    assert await questions.answer(lambda _: "next", LONG, LONG) == "next"
    assert worked == []


async def test_work_is_told_when_its_time_is_over() -> None:
    def work(keep_going: KeepGoing) -> bool:
        return keep_going()

    questions = Questions()
    assert await questions.answer(work, LONG, LONG)
    assert not await questions.answer(work, 0, LONG)


async def test_work_is_done_one_after_the_other_and_not_where_others_work() -> None:
    busy = 0
    names = set()

    def work(_: KeepGoing) -> int:
        nonlocal busy
        busy += 1
        names.add(threading.current_thread().name)
        at_once = busy
        busy -= 1
        return at_once

    questions = Questions()
    assert await asyncio.gather(*(questions.answer(work, LONG, LONG) for _ in range(20))) == [1] * 20
    assert len(names) == 1
    assert next(iter(names)).startswith("questions")


async def test_work_that_nobody_waits_for_comes_to_an_end() -> None:
    began, ended = threading.Event(), threading.Event()

    def work(keep_going: KeepGoing) -> None:
        began.set()
        while keep_going():
            pass
        ended.set()

    questions = Questions()
    asking = asyncio.create_task(questions.answer(work, LONG, LONG))
    assert await asyncio.to_thread(began.wait, LONG)
    asking.cancel()
    assert await asyncio.to_thread(ended.wait, LONG)
    assert await questions.answer(lambda _: "next", LONG, LONG) == "next"
