"""Ends in words."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from inferplane.domain.reasons import ReasonCode
from inferplane.engines.local.exits import Evidence, explain_exit, signal_name
from inferplane.engines.local.records import ServerStatus, StopRecord

AT = datetime(2026, 1, 2, tzinfo=UTC)
STOP = StopRecord(AT, AT)
FAILED = ServerStatus("failed", AT, "ModelLoadFailed", "not a pickle")


def test_why_we_ended_it_wins_over_everything() -> None:
    stop = replace(STOP, reason=ReasonCode.OUT_OF_MEMORY, message="used 3, limit 2", forced=True)
    ended = explain_exit(Evidence(AT, -9, stop, FAILED, kernel_short_of_memory=True))
    assert (ended.reason, ended.message, ended.signal) == (
        ReasonCode.OUT_OF_MEMORY,
        "used 3, limit 2",
        "SIGKILL",
    )


def test_what_the_server_said_wins_over_its_code() -> None:
    ended = explain_exit(Evidence(AT, 3, None, FAILED))
    assert (ended.reason, ended.message, ended.exit_code) == (ReasonCode.MODEL_LOAD_FAILED, "not a pickle", 3)
    unknown = explain_exit(Evidence(AT, 3, None, replace(FAILED, reason="Nonsense", message="")))
    assert unknown.reason is ReasonCode.MODEL_LOAD_FAILED
    assert unknown.message


def test_a_kill_is_the_kernels_when_the_kernel_says_so() -> None:
    assert explain_exit(Evidence(AT, -9, kernel_short_of_memory=True)).reason is ReasonCode.OUT_OF_MEMORY
    suspected = explain_exit(Evidence(AT, -9))
    assert suspected.reason is ReasonCode.SERVER_EXITED
    assert "OutOfMemory" in suspected.message


def test_a_stop_by_the_controller_is_no_failure_of_its_own() -> None:
    assert explain_exit(Evidence(AT, 0, STOP)).message == "the model server was asked to stop and ended"


def test_every_end_has_a_sentence() -> None:
    for code in (None, 0, 1, 255, -6, -9, -11, -77):
        ended = explain_exit(Evidence(AT, code))
        assert ended.message
        assert (ended.exit_code is None) == (code is None or code < 0)
    assert signal_name(77) == "signal 77"
