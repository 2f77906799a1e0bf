"""Where words go: results to stdout, everything else to stderr.

A script reads stdout and gets nothing but the result, as text or with `-o json` as JSON. People watch
stderr: progress (a moving line on a terminal, one plain line per step elsewhere), notes and errors.
"""

from __future__ import annotations

import re
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import msgspec
from rich.console import Console
from rich.status import Status
from rich.text import Text

from inferplane.client.errors import ClientError
from inferplane.domain.errors import InferplaneError


class Format(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSON = "json"


FOLDED_CHARACTERS_MIN = 30
"""A value is not folded into fewer columns than this."""

_FACT = re.compile(r"[A-Z][\w .-]*:\s{2,}(?=\S)")

_STYLES = {
    "Running": "green",
    "Idle": "green",
    "Failed": "bold red",
    "Degraded": "yellow",
    "Updating": "cyan",
    "Stopped": "dim",
    "Terminating": "dim",
}


def print_json(value: Any) -> None:
    """One JSON value, indented, as the result."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_json_line(value: Any) -> None:
    """One JSON value on one line: results that come one after the other."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def print_result(text: str) -> None:
    """A result as text; where a person can see it, statuses are coloured and long values folded."""
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True, markup=False, emoji=False)
    if not console.is_terminal or console.no_color:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
        return
    shown = Text(folded(text, console.width))
    for word, style in _STYLES.items():
        shown.highlight_regex(rf"\b{word}\b", style)
    console.print(shown)


def folded(text: str, width: int) -> str:
    """`text` with each `Name:  value` line that is too long folded between words, under its value.

    Only where a person reads: what a script reads is one line a value. Nothing else is touched, neither
    tables nor commands to paste.
    """
    lines = []
    for line in text.split("\n"):
        fact = _FACT.match(line) if len(line) > width else None
        indent = fact.end() if fact is not None else 0
        if not indent or " " not in line[indent:] or width - indent < FOLDED_CHARACTERS_MIN:
            lines.append(line)
            continue
        lines += textwrap.wrap(
            line,
            width,
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        )
    return "\n".join(lines)


def note(text: str) -> None:
    """Something a person may want to know, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_error(error: ClientError | InferplaneError) -> None:
    """What went wrong, why, where, and what to do; on stderr."""
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True, markup=False, emoji=False)
    console.print(Text.assemble(("Error: ", "bold red"), error.message))
    facts = [("reason", error.reason), ("field", error.field)]
    several = len(error.details) > 1
    facts += [
        (detail.field or detail.reason, detail.message)
        for detail in error.details
        if several or detail.message != error.message
    ]
    facts.append(("next", error.next_action))
    if isinstance(error, ClientError):
        facts.append(("request", error.request_id))
    for name, value in facts:
        if value:
            console.print(Text.assemble(("  " + name + ": ", "dim"), value))


class Progress:
    """What is being waited for, as it changes."""

    def __init__(self, status: Status | None) -> None:
        self._status = status
        self._began = time.monotonic()
        self._last_step = ""

    def show(self, step: str, text: str) -> None:
        """`text` says how things are; without a terminal it is said once for each new `step`."""
        if self._status is not None:
            elapsed = time.monotonic() - self._began
            self._status.update(Text(f"{text} ({elapsed:.0f} s)"))
        elif step != self._last_step:
            note(text)
        self._last_step = step


@contextmanager
def progress(first: str) -> Iterator[Progress]:
    """A moving line on stderr while something takes time."""
    console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        shown = Progress(None)
        shown.show(first, first)
        yield shown
        return
    with console.status(Text(first)) as status:
        yield Progress(status)
