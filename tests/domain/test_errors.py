"""One tree of errors, each carrying what a person and a machine need."""

from __future__ import annotations

import re

from inferplane.domain import errors
from inferplane.domain.errors import InferplaneError, Invalid, NotFound, Problem


def _tree() -> set[type[InferplaneError]]:
    found, waiting = set(), [InferplaneError]
    while waiting:
        each = waiting.pop()
        found.add(each)
        waiting.extend(each.__subclasses__())
    return {each for each in found if each.__module__ == errors.__name__}


def test_the_drawing_at_the_top_of_the_file_shows_every_error() -> None:
    drawn = set(re.findall(r"^ {4}[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE))
    assert drawn == {each.__name__ for each in _tree()} - {"InferplaneError"}


def test_an_error_without_a_reason_says_its_own_name() -> None:
    assert NotFound("no endpoint iris").reason == "NotFound"
    assert NotFound("no workspace x", reason="WorkspaceNotFound").reason == "WorkspaceNotFound"


def test_an_error_carries_field_next_action_and_details() -> None:
    problems = (Problem("a", "Missing", "a is needed"), Problem("b", "Missing", "b is needed"))
    error = Invalid("two fields are missing", field="a", next_action="Give both.", details=problems)
    assert str(error) == error.message == "two fields are missing"
    assert (error.field, error.next_action, error.details) == ("a", "Give both.", problems)


def test_every_error_has_a_sentence_on_what_it_is() -> None:
    assert all(each.__doc__ for each in _tree())
