"""A control plane's writing, as a process of its own: `writer_program.py URL WHAT [ARGUMENTS]`.

`many PREFIX COUNT` creates endpoints, each with secret and event in one transaction, and prints a
name only after its commit. `hang` prints from inside a transaction and then waits for ever.
`open` opens the store and prints which parts of the migration tool that has loaded.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime

from inferplane.domain.endpoint import EndpointSpec, InferenceEndpoint, ModelSpec
from inferplane.domain.errors import AlreadyExists
from inferplane.domain.events import Event
from inferplane.domain.workspace import Workspace
from inferplane.store.sql import Store, Tx

NOW = datetime(2026, 3, 1, tzinfo=UTC)


async def create(tx: Tx, name: str) -> None:
    endpoint = InferenceEndpoint(
        uid=f"uid-{name}",
        workspace="default",
        cluster="local",
        name=name,
        namespace="n",
        spec=EndpointSpec(ModelSpec(format="sklearn", storage_uri="file:///m")),
        generation=1,
        created_at=NOW,
        created_by="writer",
    )
    await tx.insert_endpoint(endpoint, {"TOKEN": name})
    await tx.append_event(
        Event(
            at=NOW,
            kind="EndpointCreated",
            message="m",
            actor="writer",
            workspace="default",
            endpoint=name,
            endpoint_uid=endpoint.uid,
        )
    )


async def many(store: Store, prefix: str, count: int) -> None:
    try:
        async with store.transaction() as tx:
            await tx.add_workspace(Workspace("default", ("local",), NOW))
    except AlreadyExists:
        pass
    for number in range(count):
        name = f"{prefix}-{number:04}"
        async with store.transaction() as tx:
            await create(tx, name)
        print(name, flush=True)


async def main(url: str, what: str, *arguments: str) -> None:
    store = await Store.open(url)
    if what == "many":
        await many(store, arguments[0], int(arguments[1]))
    elif what == "hang":
        async with store.transaction() as tx:
            await create(tx, "half-way")
            print("inside", flush=True)
            await asyncio.to_thread(sys.stdin.read)
    else:
        print(sorted(name for name in sys.modules if name.startswith("alembic")), flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
