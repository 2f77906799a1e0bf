"""How a model server ended, in words: a function from the evidence to an `Exit`.

The most telling evidence wins: why we ended it; what it said itself before it ended; what the
kernel says. An exit code alone explains nothing, so it is shown but never the reason.
"""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass
from datetime import datetime

from inferplane.domain.endpoint import Exit
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.local.records import ServerStatus, StopRecord, reason_code


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of an end. `code` is the exit code, negative for a signal, None when unseen.

    `kernel_short_of_memory` tells that the kernel ended processes for lack of memory in that time.
    """

    at: datetime
    code: int | None
    stop: StopRecord | None = None
    status: ServerStatus | None = None
    kernel_short_of_memory: bool = False
    log_tail: tuple[str, ...] = ()


def explain_exit(evidence: Evidence) -> Exit:
    """Total: every end has a reason and a sentence."""
    reason, message = _explain(evidence)
    code = evidence.code
    return Exit(
        at=evidence.at,
        exit_code=code if code is not None and code >= 0 else None,
        signal=signal_name(-code) if code is not None and code < 0 else "",
        reason=reason,
        message=message,
        log_tail=evidence.log_tail,
    )


def _explain(evidence: Evidence) -> tuple[ReasonCode, str]:
    stop, status, code = evidence.stop, evidence.status, evidence.code
    if stop is not None and stop.reason is not None:
        return stop.reason, stop.message
    if status is not None and status.state == "failed":
        reason = reason_code(status.reason) or ReasonCode.MODEL_LOAD_FAILED
        return reason, status.message or "the model server could not load the model"
    if stop is not None:
        how = "had to be killed" if stop.forced else "ended"
        return ReasonCode.SERVER_EXITED, f"the model server was asked to stop and {how}"
    if code is None:
        return ReasonCode.SERVER_EXITED, "the model server ended while nobody watched it"
    if code == -signal.SIGKILL:
        if evidence.kernel_short_of_memory:
            return (
                ReasonCode.OUT_OF_MEMORY,
                "the kernel killed the model server because the machine, or the group of processes"
                " it belongs to, ran out of memory",
            )
        return (
            ReasonCode.SERVER_EXITED,
            "the model server was killed by SIGKILL, not by the platform: a person did it, or the"
            " kernel because memory ran out (OutOfMemory)",
        )
    if code < 0:
        return ReasonCode.SERVER_EXITED, f"the model server was ended by {signal_name(-code)}"
    return ReasonCode.SERVER_EXITED, f"the model server ended with exit code {code}"


def signal_name(number: int) -> str:
    """`SIGKILL` for 9, and so on; `signal 77` for a number without a name."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
