"""The first schema.

Migrations are frozen: they spell their tables out and do not import `schema`. Each comes as expand
(add what the new version needs, in a way the running version does not notice) and, a release later,
contract (drop what no running version uses any more).
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make every table."""
    op.create_table(
        "workspaces",
        sa.Column("name", _KEY, nullable=False),
        sa.Column("clusters", sa.Text, nullable=False),
        sa.Column("namespaces", sa.Text, nullable=False),
        sa.Column("username", sa.Text, nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_workspaces"),
    )
    op.create_table(
        "clusters",
        sa.Column("name", _KEY, nullable=False),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("domain", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_clusters"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("digest", _KEY, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("masked", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("workspace", _KEY, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("user_name", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("validity", sa.Text, nullable=False),
        sa.Column("last_used_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
    )
    op.create_index("ix_api_keys_workspace", "api_keys", ["workspace"])
    op.create_table(
        "endpoints",
        sa.Column("uid", _KEY, nullable=False),
        sa.Column("workspace", _KEY, nullable=False),
        sa.Column("name", _KEY, nullable=False),
        sa.Column("cluster", _KEY, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("model_format", _KEY, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("created_by", sa.Text, nullable=False),
        sa.Column("deletion_requested_at", sa.BigInteger),
        sa.Column("deletion_requested_by", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("uid", name="pk_endpoints"),
        sa.ForeignKeyConstraint(["workspace"], ["workspaces.name"], name="fk_endpoints_workspace"),
        sa.UniqueConstraint("workspace", "name", "cluster", name="uq_endpoints_workspace_name_cluster"),
    )
    op.create_table(
        "endpoint_secrets",
        sa.Column("endpoint_uid", _KEY, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("endpoint_uid", name="pk_endpoint_secrets"),
        sa.ForeignKeyConstraint(
            ["endpoint_uid"], ["endpoints.uid"], name="fk_endpoint_secrets_endpoint_uid", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "events",
        sa.Column("seq", _SEQ, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("workspace", _KEY, nullable=False),
        sa.Column("endpoint", _KEY, nullable=False),
        sa.Column("endpoint_uid", _KEY, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_events_workspace_endpoint_seq", "events", ["workspace", "endpoint", "seq"])
    op.create_index("ix_events_endpoint_uid_seq", "events", ["endpoint_uid", "seq"])
    op.create_table(
        "answers",
        sa.Column("key_id", _KEY, nullable=False),
        sa.Column("idempotency_key", _KEY, nullable=False),
        sa.Column("request_digest", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("key_id", "idempotency_key", name="pk_answers"),
    )
    op.create_index("ix_answers_at", "answers", ["at"])
    op.create_table(
        "installation_secrets",
        sa.Column("name", _KEY, nullable=False),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_installation_secrets"),
    )


def downgrade() -> None:
    """Never: going back is done by restoring a backup."""
    raise NotImplementedError("restore a backup made before the upgrade")
