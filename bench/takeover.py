"""How long nothing happens by itself when a control plane is killed, or ended.

Two control planes share a PostgreSQL (embedded). One holds every lease; it is killed (`kill -9`) or ended
(SIGTERM), an endpoint is created through the other one at the same moment, and the time until that endpoint runs
is taken. Without anybody having gone, the same takes what `undisturbed` says.

    python bench/takeover.py [--rounds 10]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS / "support"))

from control_planes import Installation, installation  # noqa: E402


def _fixture(name: str) -> Callable[..., Any]:
    """What stands behind a fixture of tests/conftest.py: PostgreSQL is started in one place only."""
    spec = importlib.util.spec_from_file_location("conftest", TESTS / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["conftest"] = module
    spec.loader.exec_module(module)
    found: Callable[..., Any] = getattr(module, name).__wrapped__
    return found


def until_running(planes: Installation, name: str) -> float:
    """Seconds from asking for an endpoint until it runs."""
    began = time.monotonic()
    planes.create(name, "worker-1")
    while planes.statuses().get(name) != "Running":
        time.sleep(0.02)
    return time.monotonic() - began


def holder(planes: Installation, world: Any) -> int:
    """Who acted last."""
    last = world(planes.planes[0].world).acts()[-1].holder
    return next(number for number, each in enumerate(planes.planes) if each.home.name == last)


def main() -> None:
    """Print one line for each way of going."""
    from shared_world import World

    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=10)
    rounds = arguments.parse_args().rounds
    servers = contextlib.contextmanager(_fixture("postgres_server"))
    with servers() as server, tempfile.TemporaryDirectory() as folder:
        server.sql("CREATE DATABASE bench")
        with installation(Path(folder) / "planes", server.url("bench")) as planes:
            took: dict[str, list[float]] = {"undisturbed": [], "killed": [], "ended": []}
            for number in range(rounds):
                took["undisturbed"].append(until_running(planes, f"u{number}"))
                for way, how in (("killed", signal.SIGKILL), ("ended", signal.SIGTERM)):
                    victim = planes.planes[holder(planes, World)]
                    victim.signal(how)
                    victim.api = ""
                    took[way].append(until_running(planes, f"{way[0]}{number}"))
                    victim.start()
                    victim.wait()
            for way, seconds in took.items():
                print(
                    f"{way:12} median {statistics.median(seconds):5.2f} s"
                    f"   lowest {min(seconds):5.2f} s   highest {max(seconds):5.2f} s   ({rounds} rounds)"
                )


if __name__ == "__main__":
    main()
