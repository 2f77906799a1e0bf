"""The emulated cluster as a process, for suites that take any KUBECONFIG:

    python -m kube_api --kubeconfig FILE [--tls] [--nodes]

It writes the kubeconfig of a user who may do everything, says so, and serves until it is ended.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

from kube_api.behaving import Behaving
from kube_api.server import KubeApi


async def serve(kubeconfig: Path, *, tls: bool, nodes: bool, pace_s: float) -> None:
    """Serves until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, ended.set)
    async with KubeApi(tls=tls) as api:
        if nodes:
            api.add_nodes()
        async with Behaving(api, pace_s=pace_s):
            api.kubeconfig(kubeconfig)
            print(f"{api.url} as {kubeconfig}", flush=True)
            await ended.wait()


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m kube_api", description="An emulated Kubernetes with a KServe"
    )
    parser.add_argument("--kubeconfig", type=Path, required=True, help="where to write the kubeconfig")
    parser.add_argument("--tls", action="store_true", help="speak TLS")
    parser.add_argument("--nodes", action="store_true", help="with the recorded node instead of a roomy one")
    parser.add_argument("--pace", type=float, default=0.05, help="seconds between two steps of what happens")
    said = parser.parse_args()
    asyncio.run(serve(said.kubeconfig, tls=said.tls, nodes=said.nodes, pace_s=said.pace))


if __name__ == "__main__":
    main()
