"""The demonstration of GPUs: however it is asked to end, it takes everything with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo_gpus.py"
HOME = "export INFERPLANE_HOME="
PATIENCE_SECONDS = 120


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_leaves_no_process_and_no_file_behind(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, str(DEMO), "--hours", "1000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as demo:
        assert demo.stdout is not None
        try:
            line = next(line for line in demo.stdout if HOME in line)
            home = Path(line.partition(HOME)[2].strip())
            family = psutil.Process(demo.pid).children(recursive=True)
            assert family
            demo.send_signal(number)
            demo.send_signal(number)  # as make and a shell pass on what the whole group got
            said, _ = demo.communicate(timeout=PATIENCE_SECONDS)
        finally:
            demo.kill()
    assert demo.returncode == 0, said
    assert not home.parent.exists()
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
    assert alive == []
