"""The small files in a replica's folder: written whole, read with suspicion.

A file is replaced by rename, so that a reader (or a control plane that comes back from a `kill -9`)
sees the old or the new content and never half of one. What cannot be read counts as not there:
every reader has an answer for that, and none for a traceback.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inferplane.domain.endpoint import Exit, ModelInfo
from inferplane.domain.reasons import ReasonCode
from inferplane.engines.local.launch import Intent

RECORD_BYTES_MAX = 4 * 1024**2


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What a model server last said about itself. `state` is its own word ("starting", "ready", …)."""

    state: str
    at: datetime | None
    reason: str = ""
    message: str = ""
    model: ModelInfo | None = None


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process, so that a later one with the same number is not taken for it.

    `start_ticks` is the kernel's start time in clock ticks since boot. `forked` tells that a fork
    server is its parent and will write down its exit code.
    """

    pid: int
    start_ticks: int
    forked: bool = False


@dataclass(frozen=True, slots=True)
class StopRecord:
    """That a server was asked to end.

    `reason` is None when the controller wanted it. `forced` is set before the server is killed.
    `quiet` marks a stop that nobody will ask about: the whole platform is going down.
    """

    at: datetime
    deadline: datetime
    reason: ReasonCode | None = None
    message: str = ""
    forced: bool = False
    quiet: bool = False


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file as a whole; only its owner may read it. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file)
    temporary.replace(path)


def read_record(path: Path) -> Mapping[str, Any] | None:
    """The mapping in the file; None when there is none, or nothing that can be read as one."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(RECORD_BYTES_MAX))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def remove(*paths: Path) -> None:
    """Remove files that may be gone already. Raises OSError for any other trouble."""
    for path in paths:
        path.unlink(missing_ok=True)


def read_intent(path: Path) -> Intent | None:
    """What was about to be started, or None."""
    content = read_record(path)
    if content is None:
        return None
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return Intent.from_json(content)
    return None


def read_status(path: Path) -> ServerStatus | None:
    """What the server says about itself, or None when it has not said anything yet."""
    content = read_record(path)
    if content is None:
        return None
    model = content.get("model")
    return ServerStatus(
        state=str(content.get("state", "")),
        at=_moment(content.get("at")),
        reason=str(content.get("reason", "")),
        message=str(content.get("message", "")),
        model=_model(model) if isinstance(model, dict) else None,
    )


def write_process(path: Path, record: ProcessRecord) -> None:
    """Note which process runs. Raises OSError."""
    write_record(path, {"pid": record.pid, "startTicks": record.start_ticks, "forked": record.forked})


def read_process(path: Path) -> ProcessRecord | None:
    """The process that was started, or None."""
    content = read_record(path)
    if content is None:
        return None
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return ProcessRecord(
            int(content["pid"]), int(content["startTicks"]), bool(content.get("forked", False))
        )
    return None


def write_stop(path: Path, stop: StopRecord) -> None:
    """Note that the server is being ended. Raises OSError."""
    write_record(
        path,
        {
            "at": stop.at.isoformat(),
            "deadline": stop.deadline.isoformat(),
            "reason": stop.reason.value if stop.reason else "",
            "message": stop.message,
            "forced": stop.forced,
            "quiet": stop.quiet,
        },
    )


def read_stop(path: Path) -> StopRecord | None:
    """Whether and why the server was asked to end, or None."""
    content = read_record(path)
    if content is None:
        return None
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return StopRecord(
            at=datetime.fromisoformat(content["at"]),
            deadline=datetime.fromisoformat(content["deadline"]),
            reason=reason_code(str(content.get("reason", ""))),
            message=str(content.get("message", "")),
            forced=bool(content.get("forced", False)),
            quiet=bool(content.get("quiet", False)),
        )
    return None


def write_ended(path: Path, ended: Exit) -> None:
    """Note how the run ended. Raises OSError."""
    write_record(
        path,
        {
            "at": ended.at.isoformat(),
            "exitCode": ended.exit_code,
            "signal": ended.signal,
            "reason": ended.reason.value,
            "message": ended.message,
            "logTail": list(ended.log_tail),
        },
    )


def read_ended(path: Path) -> Exit | None:
    """How the last run ended, or None while it has not, or nobody has looked yet."""
    content = read_record(path)
    if content is None:
        return None
    with contextlib.suppress(KeyError, TypeError, ValueError):
        code = content.get("exitCode")
        return Exit(
            at=datetime.fromisoformat(content["at"]),
            exit_code=None if code is None else int(code),
            signal=str(content.get("signal", "")),
            reason=reason_code(str(content.get("reason", ""))) or ReasonCode.SERVER_EXITED,
            message=str(content.get("message", "")),
            log_tail=tuple(str(line) for line in content.get("logTail", ())),
        )
    return None


def reason_code(word: str) -> ReasonCode | None:
    """The code spelled `word`, or None."""
    with contextlib.suppress(ValueError):
        return ReasonCode(word)
    return None


def _moment(seconds: Any) -> datetime | None:
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(float(seconds), UTC)
    return None


def _model(content: Mapping[str, Any]) -> ModelInfo:
    return ModelInfo(
        example=str(content.get("example", "")),
        inputs=_mappings(content.get("inputs")),
        outputs=_mappings(content.get("outputs")),
        protocols=tuple(str(protocol) for protocol in content.get("protocols", ("v1", "v2"))),
    )


def _mappings(value: Any) -> tuple[Mapping[str, Any], ...]:
    return tuple(item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()
