"""A program that behaves like a model server towards its engine, starts fast, and misbehaves on demand.

What it does beside the usual is asked for in the configuration's `args`:

    --load-seconds=N   takes that long to load            --fail=REASON    fails to load, exits 3
    --exit=N           exits with N once it is ready      --ignore-sigterm does not end when asked
    --mute             is ready but never answers         --grow-mib=N     takes that much memory
    --print=N          prints N numbered lines            --environment    prints its environment
    --helper           starts a helper that outlives it   --silent         never says anything of itself
    --child-grow-mib=N starts a process that takes that much memory
    --abort            ends itself by SIGABRT once ready  --print-forever  prints without end
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    options = {name: value for name, _, value in (arg.partition("=") for arg in config["args"])}
    print("stand-in started", flush=True)
    if "--environment" in options:
        print(json.dumps(dict(os.environ)), flush=True)
    if "--silent" in options:
        signal.pause()
    if "--ignore-sigterm" in options:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    say(config, "loading")
    time.sleep(float(options.get("--load-seconds", 0)))
    if "--fail" in options:
        say(config, "failed", reason=options["--fail"], message="this model cannot be loaded")
        print("Traceback: the reason why", flush=True)
        sys.exit(3)
    ballast = bytearray(int(options.get("--grow-mib", 0)) * 1024**2)
    if "--child-grow-mib" in options:
        code = f"import time; ballast = b'x' * ({int(options['--child-grow-mib'])} << 20); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", code])
    for start in range(0, len(ballast), 4096):
        ballast[start] = 1
    if "--helper" in options:
        subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(config["address"].removeprefix("unix:"))
    listener.listen()
    if "--mute" not in options:
        threading.Thread(target=answer, args=(listener, config["name"]), daemon=True).start()
    for number in range(int(options.get("--print", 0))):
        print(f"line {number}", flush=True)
    say(config, "ready", model={"example": '{"instances":[[1]]}'})
    if "--exit" in options:
        sys.exit(int(options["--exit"]))
    if "--abort" in options:
        os.abort()
    while "--print-forever" in options:
        print("x" * 1000, flush=True)
        time.sleep(0.0005)
    while True:
        signal.pause()


def say(config: dict[str, Any], state: str, **more: object) -> None:
    status = {"pid": os.getpid(), "state": state, "at": time.time(), **more}
    temporary = Path(config["status_file"] + ".new")
    temporary.write_text(json.dumps(status), encoding="utf-8")
    temporary.replace(config["status_file"])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto(config["notify_key"].encode(), config["notify_socket"])


def answer(listener: socket.socket, name: str) -> None:
    """A thread for each connection: one that was opened and says nothing yet must not hold up the next."""
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=converse, args=(connection, name), daemon=True).start()


def converse(connection: socket.socket, name: str) -> None:
    with connection, contextlib.suppress(OSError):
        connection.recv(65536)
        body = json.dumps({"server": name, "pid": os.getpid()}).encode()
        head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        connection.sendall(head.encode() + body)


if __name__ == "__main__":
    main()
