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
    async with questions.place(2), questions.place(2):
        with pytest.raises(RateLimited) as refused:
            async with questions.place(2):
                pass
        assert refused.value.reason == "TooManyQuestions"
    async with questions.place(1):
        pass


async def test_work_is_told_when_its_time_is_over() -> None:
    def work(keep_going: KeepGoing) -> bool:
        return keep_going()

    questions = Questions()
    assert await questions.answer(work, LONG)
    assert not await questions.answer(work, 0)


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
    assert await asyncio.gather(*(questions.answer(work, LONG) for _ in range(20))) == [1] * 20
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
    asking = asyncio.create_task(questions.answer(work, LONG))
    assert await asyncio.to_thread(began.wait, LONG)
    asking.cancel()
    assert await asyncio.to_thread(ended.wait, LONG)
    assert await questions.answer(lambda _: "next", LONG) == "next"
