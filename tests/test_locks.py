"""Who holds a lock, asked of the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from inferplane.locks import acquire_lock, is_locked, lock_holders

WAIT = "import sys; sys.stdin.read()"


def waiting(*, lock: int | None = None, reads: Path | None = None) -> subprocess.Popen[bytes]:
    """A process that ends when its input does; it inherits `lock`, or opens a file to read it."""
    program = (
        f"file = open({str(reads)!r}); print(1, flush=True); {WAIT}"
        if reads
        else f"print(1, flush=True); {WAIT}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=() if lock is None else (lock,),
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_lock_belongs_to_those_who_inherited_it_and_to_no_mere_reader(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert lock_holders(path) == ()
    lock = acquire_lock(path)
    assert lock is not None
    with waiting(lock=lock) as holder, waiting(reads=path) as reader:
        os.close(lock)
        assert is_locked(path)
        assert acquire_lock(path) is None
        assert lock_holders(path) == (holder.pid,)
        assert reader.poll() is None
        holder.communicate()
        assert not is_locked(path)
        assert lock_holders(path) == ()
        reader.communicate()
    again = acquire_lock(path)
    assert again is not None
    os.close(again)
