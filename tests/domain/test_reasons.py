"""The closed list of reason codes is complete, and each helps."""

from __future__ import annotations

import re

import pytest

from inferplane.domain.reasons import REASONS, ReasonCode, reason_of

# The codes that the state contract names; more may be added, none may go.
PROMISED = """
AwaitingGpu QuotaExceeded NoSuchShape ClusterUnreachable ModelNotFound StorageUnauthorized StorageUnreachable
DownloadInterrupted ChecksumMismatch UnsupportedFormat NoRuntime ModelLoadFailed OutOfMemory OutOfGpuMemory
CrashLoop StartTimeout PortUnavailable ImagePullBackOff Unschedulable GpuReleased Evicted IdleTimeout
ExitDurationReached StoppedByUser ScaledToZero RolledBack RouteNotReady DnsNotReady
"""


def test_every_promised_code_exists() -> None:
    assert set(PROMISED.split()) <= {code.value for code in ReasonCode}


@pytest.mark.parametrize("code", list(ReasonCode))
def test_each_code_has_a_meaning_evidence_and_a_next_action(code: ReasonCode) -> None:
    reason = reason_of(code)
    assert reason.code is code
    for sentence in (reason.meaning, reason.evidence, reason.next_action):
        assert sentence.endswith("."), sentence
        assert sentence[0].isupper() or sentence[0] == "`"
    assert len(reason.next_action) > 10


def test_codes_are_camel_case_words_used_once() -> None:
    values = [code.value for code in ReasonCode]
    assert len(set(values)) == len(values) == len(REASONS)
    assert all(re.fullmatch(r"([A-Z][a-z]*)+", value) for value in values)
    assert all(code.name.replace("_", "").lower() == code.value.lower() for code in ReasonCode)


def test_what_retrying_mends_does_not_ask_a_person_to_act_first() -> None:
    """Where only a person can help, the next action is an instruction, not "wait"."""
    for reason in REASONS.values():
        if not reason.retry_helps:
            assert not reason.next_action.startswith(("Wait", "Nothing to do")), reason.code
