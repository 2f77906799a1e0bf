"""What a user is told, second by second, while a real cluster did what it did.

The expectations in tests/golden/kserve/told were read one by one against the recordings' own descriptions: the true
cause as soon as the pod or its events show it, nothing on its way called a failure, nothing that flaps. After a
change on purpose: `PYTHONPATH=tests/support python tests/support/kserve_told.py tests/golden/kserve/told`, and read
what changed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from inferplane.domain.endpoint import PublicStatus, public_state
from kserve_told import play, told
from kube_api import needs_recordings, recording, recordings

FOLDER = Path(__file__).parents[2] / "golden" / "kserve" / "told"
UNLABELLED_DIFFERS = frozenset({"runtime-updated"})
"""Where the cluster makes a new ReplicaSet for the same revision, only the label tells that it is the same."""


@needs_recordings
@pytest.mark.parametrize("scenario", recordings())
def test_what_a_user_is_told(scenario: str) -> None:
    assert told(recording(scenario)) == reviewed(scenario)


@needs_recordings
@pytest.mark.parametrize("scenario", sorted(set(recordings()) - UNLABELLED_DIFFERS))
def test_without_our_label_the_same_states_are_told(scenario: str) -> None:
    assert states(told(recording(scenario), labelled=False)) == states(reviewed(scenario))


def reviewed(scenario: str) -> str:
    """The expectation, where somebody has read what is told of the scenario and written it down."""
    expected = FOLDER / f"{scenario}.txt"
    if not expected.exists():
        pytest.skip(f"nobody has reviewed yet what is told of {scenario}")
    return expected.read_text()


def states(text: str) -> list[str]:
    """`12.1 s  Loading Loading: …` → `Loading Loading`, without those that only change their message."""
    words = [line.partition(" s  ")[2].partition(":")[0] for line in text.splitlines()]
    return [word for word, before in zip(words, ["", *words], strict=False) if word != before]


@needs_recordings
@pytest.mark.parametrize("scenario", recordings())
def test_every_word_has_a_reason_and_a_next_action(scenario: str) -> None:
    for _, endpoint in play(recording(scenario)):
        state = public_state(endpoint)
        if state.status is not PublicStatus.RUNNING:
            assert state.reason is not None
            assert state.message
            assert state.next_action
