"""Locks that live as long as a process does: who lives is asked of the kernel, not of a file of numbers.

Whoever starts a process locks a file and lets the process inherit the open file. The lock belongs to
that open file, so it ends with the process however that ends, and no second one can be started beside
it. Linux also tells, for each open file of each process, which locks hang on it: that is how the
holders are found, and why somebody who merely reads the file is not taken for one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

LOCK_FILE_MODE = 0o600

_PROC = Path("/proc")


def acquire_lock(path: Path) -> int | None:
    """Open and lock the file; return the descriptor, or None when a living process holds it.

    A process that inherits the descriptor keeps the lock when ours is closed. Raises OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, LOCK_FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock. Asking takes a shared lock for a moment."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def lock_holders(path: Path) -> tuple[int, ...]:
    """Processes that hold the lock, in order of their numbers; ours is left out.

    Slow: it looks at every process.
    """
    try:
        wanted = path.stat()
    except OSError:
        return ()
    others = [entry for entry in _PROC.iterdir() if entry.name.isdecimal() and entry.name != str(os.getpid())]
    return tuple(sorted(int(entry.name) for entry in others if _holds(entry, wanted)))


def _holds(process: Path, wanted: os.stat_result) -> bool:
    with contextlib.suppress(OSError):  # it has ended meanwhile, or is somebody else's
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                found = link.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino) and "FLOCK" in (
                    process / "fdinfo" / link.name
                ).read_text(errors="replace"):
                    return True
    return False
