"""Every wait and every bound of the local engine, by name. Tests make them short."""

from __future__ import annotations

from dataclasses import dataclass

MEBIBYTE = 1024**2


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds and bytes.

    `sweep_seconds` is how often memory, start timeouts, log sizes and status files are looked at;
    it also bounds by how much a server can overshoot its memory limit or its log; `sweep_together`
    servers are looked at in one go, and of those that are ready and have no memory limit only each
    `steady_sweeps`-th time; as often it is asked which processes a server has started. A server that
    fails `health_failures_max` checks in a row is called unresponsive. `exit_record_seconds` is how
    long an observation waits for a fork server to write down a child's exit code.
    """

    sweep_seconds: float = 0.5
    sweep_together: int = 10
    steady_sweeps: int = 4
    health_interval_seconds: float = 5.0
    health_timeout_seconds: float = 5.0
    health_failures_max: int = 3
    timeout_grace_seconds: float = 5.0
    orphan_grace_seconds: float = 5.0
    close_grace_seconds: float = 10.0
    kill_seconds: float = 5.0
    exit_record_seconds: float = 0.25
    follow_seconds: float = 0.2
    fork_server_start_seconds: float = 60.0
    fork_server_wait_seconds: float = 10.0
    fork_seconds: float = 5.0
    log_bytes_max: int = 10 * MEBIBYTE
    log_tail_lines: int = 20
    log_tail_bytes: int = 8192
    log_line_bytes_max: int = 16384
    logs_lines_max: int = 10_000
    logs_bytes_max: int = 4 * MEBIBYTE
