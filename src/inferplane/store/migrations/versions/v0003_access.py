"""Keys for endpoints, and what was used of endpoints by the hour.

Only adds: the version before this one goes on working beside it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "endpoint_keys",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("workspace", _KEY, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("at_gateway", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_endpoint_keys"),
    )
    op.create_index(
        "ix_endpoint_keys_workspace_created_at_id", "endpoint_keys", ["workspace", "created_at", "id"]
    )
    op.create_index("ix_endpoint_keys_workspace_at_gateway", "endpoint_keys", ["workspace", "at_gateway"])
    op.create_index("ix_endpoint_keys_expires_at", "endpoint_keys", ["expires_at"])
    op.create_table(
        "usage_hours",
        sa.Column("hour", sa.BigInteger, nullable=False),
        sa.Column("workspace", _KEY, nullable=False),
        sa.Column("endpoint_uid", _KEY, nullable=False),
        sa.Column("key_id", _KEY, nullable=False),
        sa.Column("endpoint", _KEY, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("errors", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("milliseconds", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("workspace", "hour", "endpoint_uid", "key_id", name="pk_usage_hours"),
    )
    op.create_index("ix_usage_hours_hour", "usage_hours", ["hour"])
    op.create_table(
        "log_positions",
        sa.Column("log", _KEY, nullable=False),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("log", name="pk_log_positions"),
    )


def downgrade() -> None:
    """Never: going back is done by restoring a backup."""
    raise NotImplementedError("restore a backup made before the upgrade")
