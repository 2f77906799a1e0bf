"""Where the migration tool meets our connection. `store.upgrade` opens it; nothing else does.

The connection arrives inside a transaction that already excludes every other upgrader, and all steps
run in that one transaction: a process killed half-way leaves the old schema whole.
"""

from __future__ import annotations

from alembic import context

from inferplane.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
context.run_migrations()
