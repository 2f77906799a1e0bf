"""Text that comes into being token by token: stop strings, pieces of text, and whose turn it is.

A `TextGenerator` (a framework's) turns a prompt into tokens, one a step. The `Scheduler` has one
thread that gives every active generation one step in turn, so that a short answer is not kept waiting
by a long one; what is more than `concurrency` waits in order, and what is more than `waiting_max` on
top of that is refused as not processed. A step is short, so a generation whose caller went away ends
at its next turn. Nothing here knows HTTP or a library.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from inferplane.modelserver.errors import NotProcessed

log = logging.getLogger(__name__)

#: What a decoder writes for bytes that are no whole character (yet).
REPLACEMENT = "\ufffd"
#: A character of UTF-8 takes at most so many tokens of one byte; more of them are no character at all.
PARTIAL_TOKENS_MAX = 8


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Temperature 0 takes the likeliest; `seed` None is chance."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """One generation to be done: token ids, at most `tokens_max` new ones, and what ends it earlier."""

    tokens: tuple[int, ...]
    tokens_max: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()


class Finish(StrEnum):
    """Why a generation is over; the values are OpenAI's."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added: text (often one token's, "" while a character is incomplete or text is
    held back that may begin a stop string), the number of tokens so far, and whether it is over.
    """

    text: str
    tokens: int
    finish: Finish | None = None


class TokenSequence(Protocol):
    """One generation inside a model; used by one thread."""

    def step(self) -> int | None:
        """The next token's id; None when the model says that the text is over."""
        ...


@runtime_checkable
class TextGenerator(Protocol):
    """A model that generates text. `context_tokens` bounds prompt and answer together.

    `encode` and the prompts may be called from any thread; `start` belongs to the generating one.
    """

    context_tokens: int
    vocabulary_size: int

    def encode(self, text: str) -> list[int]:
        """A plain prompt's token ids, with the special tokens that the model wants before it."""
        ...

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The token ids of a conversation up to where the assistant speaks. Raises BadInput."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of these tokens, without special ones."""
        ...

    def start(self, tokens: Sequence[int], sampling: Sampling) -> TokenSequence:
        """Begin after these tokens."""
        ...


def generator_of(model: Any) -> TextGenerator | None:
    """The model itself if it generates text, else None."""
    return model if isinstance(model, TextGenerator) else None


class Detokenizer:
    """Turns tokens into text as they come. The pieces joined are the text of all tokens together.

    A token's text may depend on the one before it, and a character may be spread over several: so
    each piece is the difference between two decodings of a short window.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._told = 0  # of the window, how many tokens' text has been given

    def add(self, token: int) -> str:
        """The text that this token completes; "" in the middle of a character."""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(REPLACEMENT) and len(self._window) - self._told < PARTIAL_TOKENS_MAX:
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """What is left at the end: bytes that became no character."""
        return self._advance(self._decode(self._window)) if len(self._window) > self._told else ""

    def _advance(self, text: str) -> str:
        piece = text[len(self._decode(self._window[: self._told])) :]
        del self._window[: self._told]
        self._told = len(self._window)
        return piece


class StopFinder:
    """Finds the first stop string in text that comes in pieces, and lets no part of it out."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, piece: str) -> str:
        """The text that surely precedes every stop string. Sets `found`; after that nothing comes."""
        if self.found or not self._stops:
            return "" if self.found else piece
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = self._beginning_length(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _beginning_length(self, text: str) -> int:
        """Length of the longest end of `text` that is the beginning of a stop string."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[len(text) - length :]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    """How many generations take turns, and how many more may wait."""

    concurrency: int = 4
    waiting_max: int = 64


@dataclass(slots=True, eq=False)
class _Job:
    prompt: Prompt
    pieces: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    gone: bool = False  # written by the event loop, read by the thread
    running: _Running | None = None


@dataclass(slots=True, eq=False)
class _Running:
    sequence: TokenSequence
    text: Detokenizer
    stop: StopFinder
    tokens: int = 0


class Scheduler:
    """Gives generations their turns. Its public methods belong to the event loop's thread."""

    def __init__(self, generator: TextGenerator, limits: GenerationLimits) -> None:
        self._generator = generator
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._turn = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._active: list[_Job] = []
        self._closed = False
        # A daemon, because a model stuck in a computation must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="generate", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """Generations that take turns."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Generations that wait for their first turn."""
        return len(self._waiting)

    async def generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """The pieces of one generation; the last one says why it is over.

        Raises NotProcessed when too many wait already, and the model's own errors. Closing the
        iterator ends the generation.
        """
        job = _Job(prompt)
        with self._turn:
            if self._closed:
                raise NotProcessed("this server is shutting down; send the request again")
            if len(self._waiting) >= self._limits.waiting_max + max(
                0, self._limits.concurrency - len(self._active)
            ):
                raise NotProcessed("too many requests are waiting for this model; try again in a moment")
            self._waiting.append(job)
            self._turn.notify()
        try:
            while True:
                piece = await job.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish is not None:
                    return
        finally:
            with self._turn:
                job.gone = True
                if job in self._waiting:  # its place is free at once
                    self._waiting.remove(job)

    def close(self) -> None:
        """End the thread after its present step. What is unfinished gets NotProcessed."""
        with self._turn:
            self._closed = True
            self._turn.notify()

    def _work(self) -> None:
        while self._admit():
            for job in tuple(self._active):
                if job.gone or not self._advance(job):
                    with self._turn:
                        self._active.remove(job)
        for job in (*self._active, *self._waiting):
            self._tell(job, NotProcessed("this server is shutting down; send the request again"))

    def _admit(self) -> bool:
        """Wait until there is something to do. False when it is time to end."""
        with self._turn:
            while not self._closed and not self._active and not self._waiting:
                self._turn.wait()
            while self._waiting and len(self._active) < self._limits.concurrency:
                self._active.append(self._waiting.popleft())
            return not self._closed

    def _advance(self, job: _Job) -> bool:
        """One step of one generation. False when it is over."""
        try:
            piece = self._step(job)
        except Exception as error:  # noqa: BLE001 - a model raises anything; it is the caller's answer, not ours
            self._tell(job, error)
            return False
        self._tell(job, piece)
        return piece.finish is None

    def _step(self, job: _Job) -> Piece:
        if job.running is None:
            sequence = self._generator.start(job.prompt.tokens, job.prompt.sampling)
            job.running = _Running(sequence, Detokenizer(self._generator.decode), StopFinder(job.prompt.stop))
        running = job.running
        token = running.sequence.step()
        if token is None:
            return self._last(running, Finish.STOP)
        running.tokens += 1
        text = running.stop.add(running.text.add(token))
        if running.stop.found:
            return Piece(text, running.tokens, Finish.STOP)
        if running.tokens >= job.prompt.tokens_max:
            last = self._last(running, Finish.LENGTH)
            return Piece(text + last.text, last.tokens, last.finish)
        return Piece(text, running.tokens)

    @staticmethod
    def _last(running: _Running, finish: Finish) -> Piece:
        text = running.stop.add(running.text.flush())
        found = running.stop.found
        return Piece(text + running.stop.flush(), running.tokens, Finish.STOP if found else finish)

    def _tell(self, job: _Job, piece: Piece | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(job.pieces.put_nowait, piece)
