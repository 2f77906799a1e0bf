"""kill -9 before each single file operation of a fetch, and what the next process makes of it.

A process of its own imports everything once and forks. Each child counts the operations on the
store's folder (by Python's audit events) and ends without a farewell before the n-th. A second child
then opens what is left, checks it and finishes the job. n grows until a child gets through.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from range_server import RangeServer

MODEL = b"\x80\x04" + os.urandom(50_000)

SCRIPT = """
import asyncio, json, os, shutil, signal, sys
from datetime import UTC, datetime
from pathlib import Path
import httpx, structlog
from inferplane.modelstore.limits import StoreLimits
from inferplane.modelstore.store import ModelStore, Source

OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.utime"}
root, uri, expected = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

def make_store():
    limits = StoreLimits(write_bytes=8192, disk_reserve_bytes=0)
    return ModelStore(root, clock=lambda: datetime.now(UTC), cache_bytes_max=1 << 30, limits=limits)

async def fetched(store, uid):
    changed = asyncio.Event()
    store.request(uid, Source(uri), changed.set)
    while store.state(uid).phase.value == "Fetching":
        await changed.wait()
        changed.clear()
    return store.state(uid)

def content(state):
    assert state.phase.value == "Present", state
    return Path(state.path, "model.joblib").read_bytes().hex()[:64]

async def life():
    store = make_store()
    await store.start()
    await fetched(store, "u1")
    await fetched(store, "u2")
    await store.release("u2")
    await store.close()

async def afterlife():
    store = make_store()
    await store.start()
    for uid in store.references():
        if store.state(uid).phase.value == "Present":
            assert content(store.state(uid)) == expected
    for uid in ("u1", "u3"):
        assert content(await fetched(store, uid)) == expected
    for uid in ("u1", "u2", "u3"):
        await store.release(uid)
    await store.close()
    assert not any((root / "partial").iterdir()), list((root / "partial").rglob("*"))
    assert not any((root / "refs").iterdir()), list((root / "refs").iterdir())
    assert len(list((root / "entries").iterdir())) == 1
    store = make_store()
    await store.start()
    await store.close()
    assert not any((root / "trash").iterdir())
    assert not list(root.rglob("*.tmp")), list(root.rglob("*.tmp"))

def in_child(job):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        asyncio.run(job())
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def dying_before(n):
    left = n
    def hook(event, arguments):
        nonlocal left
        if event in OPERATIONS and str(arguments[0]).startswith(str(root)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    async def job():
        sys.addaudithook(hook)
        await life()
    return job

def main():
    n = 1
    while True:
        shutil.rmtree(root, ignore_errors=True)
        ended = in_child(dying_before(n))
        assert ended in {0, -signal.SIGKILL}, (n, ended)
        after = in_child(afterlife)
        assert after == 0, f"killed before operation {n}: see above"
        if ended == 0:
            print(json.dumps(n))
            return
        n += int(sys.argv[4])

main()
"""


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 9])
async def test_killed_before_any_file_operation_nothing_is_wrong_afterwards(
    server: RangeServer, tmp_path: Path, step: int
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr("model.joblib", MODEL)
        bundle.writestr("notes/readme.txt", "x")
    url = server.put("/m.zip", buffer.getvalue())
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SCRIPT,
        str(tmp_path / "store"),
        url,
        MODEL.hex()[:64],
        str(step),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]
    assert json.loads(output) > 30  # there were many moments to die at
