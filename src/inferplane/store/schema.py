"""The tables: what must survive, and nothing that can be observed or derived again.

Text that is compared or ordered uses the "C" collation on PostgreSQL, so that both databases give the
same total order. Text of any kind goes in without the characters that no database can hold, so that an
odd name in a question finds nothing and an odd byte in a message is stored as U+FFFD. Moments are whole microseconds since 1970 UTC (`codec.to_micros`):
exact, sortable, the same everywhere. Nested values (spec, status, an event's data) are JSON kept as
text: PostgreSQL's own JSON type refuses U+0000, which a crashing server may well print, and nothing
here is ever queried by what is inside. What lists filter by has a column of its own.

Secrets live in a table of their own that no list ever reads.

Every change of this file needs a migration in `migrations/versions` and a new `HEAD`; a test compares
the three.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    UniqueConstraint,
)
from sqlalchemy import Text as PlainText
from sqlalchemy.types import TypeDecorator, TypeEngine

HEAD = "0005"
"""The newest migration. Opening compares it with the database before it imports the migration tool."""

NAMING = {
    "pk": "pk_%(table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
}


class Text(TypeDecorator[str]):
    """Text for people."""

    impl = PlainText
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 - given by the base class
        """Replace what cannot be stored: U+0000 (PostgreSQL) and halves of surrogate pairs."""
        if value is None or (value.isascii() and "\x00" not in value):
            return value
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


class Key(Text):
    """Text that is compared, ordered or unique."""

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[str]:
        """Byte order everywhere; SQLite's default is that already."""
        return dialect.type_descriptor(PlainText(collation="C" if dialect.name == "postgresql" else None))


SEQ = BigInteger().with_variant(Integer(), "sqlite")
"""A growing number; SQLite only counts columns of type INTEGER up by itself."""

metadata = MetaData(naming_convention=NAMING)

workspaces = Table(
    "workspaces",
    metadata,
    Column("name", Key, primary_key=True),
    Column("clusters", Text, nullable=False),
    Column("namespaces", Text, nullable=False),
    Column("username", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

clusters = Table(
    "clusters",
    metadata,
    Column("name", Key, primary_key=True),
    Column("engine", Text, nullable=False),
    Column("domain", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # Versions before 0004 write clusters without these.
    Column("ingress_address", Text, nullable=False, server_default=""),
    Column("connection", Text),
    # What was found when it was last looked at: derived, so without a version.
    Column("report", Text),
)

cluster_secrets = Table(
    "cluster_secrets",
    metadata,
    Column("cluster", Key, ForeignKey("clusters.name", ondelete="CASCADE"), primary_key=True),
    Column("kubeconfig", Text, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Key, primary_key=True),
    Column("digest", Key, nullable=False),
    Column("name", Text, nullable=False),
    Column("masked", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("workspace", Key, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("user_name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("validity", Text, nullable=False),
    Column("last_used_at", BigInteger),
    UniqueConstraint("digest"),
    Index(None, "workspace"),
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("uid", Key, primary_key=True),
    Column("workspace", Key, ForeignKey("workspaces.name"), nullable=False),
    Column("name", Key, nullable=False),
    Column("cluster", Key, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("model_format", Key, nullable=False),
    Column("spec", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("deletion_requested_at", BigInteger),
    Column("deletion_requested_by", Text, nullable=False),
    # In the order in which endpoints are listed, so that this index also serves the lists.
    UniqueConstraint("workspace", "name", "cluster"),
)

endpoint_secrets = Table(
    "endpoint_secrets",
    metadata,
    Column("endpoint_uid", Key, ForeignKey("endpoints.uid", ondelete="CASCADE"), primary_key=True),
    Column("secret", Text, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("seq", SEQ, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("workspace", Key, nullable=False),
    Column("endpoint", Key, nullable=False),
    Column("endpoint_uid", Key, nullable=False),
    Column("reason", Text, nullable=False),
    Column("data", Text, nullable=False),
    # Versions before 0002 write events without it.
    Column("gpu_request_id", Key, nullable=False, server_default=""),
    Index(None, "workspace", "endpoint", "seq"),
    Index(None, "endpoint_uid", "seq"),
    # AUTOINCREMENT: a number is never given twice, not even after the newest events were pruned.
    sqlite_autoincrement=True,
)

gpu_requests = Table(
    "gpu_requests",
    metadata,
    Column("id", Key, primary_key=True),
    Column("workspace", Key, ForeignKey("workspaces.name"), nullable=False),
    Column("endpoint_uid", Key, nullable=False),
    Column("endpoint_name", Text, nullable=False),
    Column("status", Key, nullable=False),
    # 1 until it has ended: the history may grow without the scheduler's reading getting slower.
    Column("live", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    # What was last said about its wait: derived, so without a version.
    Column("wait", Text),
    # In the order in which requests are listed.
    Index(None, "workspace", "created_at", "id"),
    Index(None, "live", "created_at", "id"),
    Index(None, "endpoint_uid"),
)

workspace_policies = Table(
    "workspace_policies",
    metadata,
    Column("workspace", Key, ForeignKey("workspaces.name", ondelete="CASCADE"), primary_key=True),
    Column("body", Text, nullable=False),
)

gpr_templates = Table(
    "gpr_templates",
    metadata,
    Column("name", Key, primary_key=True),
    Column("body", Text, nullable=False),
)

gpr_template_bindings = Table(
    "gpr_template_bindings",
    metadata,
    Column("workspace", Key, ForeignKey("workspaces.name", ondelete="CASCADE"), primary_key=True),
    Column("body", Text, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("cluster", Key, primary_key=True),
    Column("name", Key, primary_key=True),
    Column("body", Text, nullable=False),
)

# One row with the usage of all workspaces as of `at`, one with the generation of what GPUs are granted from
# (a number, in `at`).
scheduler_state = Table(
    "scheduler_state",
    metadata,
    Column("name", Key, primary_key=True),
    Column("value", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
)

endpoint_keys = Table(
    "endpoint_keys",
    metadata,
    Column("id", Key, primary_key=True),
    # Refers to no row: a revoked key outlives its workspace, or it would open the next one of that name.
    Column("workspace", Key, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    # 1: the gateway has to know of it. Most keys say all that it needs themselves.
    Column("at_gateway", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    # In the order in which keys are listed.
    Index(None, "workspace", "created_at", "id"),
    Index(None, "workspace", "at_gateway"),
    Index(None, "expires_at"),
)

usage_hours = Table(
    "usage_hours",
    metadata,
    Column("workspace", Key, primary_key=True),
    Column("hour", BigInteger, primary_key=True),
    Column("endpoint_uid", Key, primary_key=True),
    Column("key_id", Key, primary_key=True),
    Column("endpoint", Key, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("milliseconds", BigInteger, nullable=False),
    Index(None, "hour"),
)

log_positions = Table(
    "log_positions",
    metadata,
    Column("log", Key, primary_key=True),
    Column("file", Text, nullable=False),
    Column("offset", BigInteger, nullable=False),
)

answers = Table(
    "answers",
    metadata,
    Column("key_id", Key, primary_key=True),
    Column("idempotency_key", Key, primary_key=True),
    Column("request_digest", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Index(None, "at"),
)

installation_secrets = Table(
    "installation_secrets",
    metadata,
    Column("name", Key, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Key, primary_key=True),
    Column("holder", Key, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)
