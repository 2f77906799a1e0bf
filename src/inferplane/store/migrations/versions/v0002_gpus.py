"""GPU requests, what they are decided from, and what workspaces may ask for.

Only adds: the version before this one goes on working beside it. Its events get an empty
`gpu_request_id`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the tables, and let events name a GPU request."""
    op.create_table(
        "gpu_requests",
        sa.Column("id", _KEY, nullable=False),
        sa.Column("workspace", _KEY, nullable=False),
        sa.Column("endpoint_uid", _KEY, nullable=False),
        sa.Column("endpoint_name", sa.Text, nullable=False),
        sa.Column("status", _KEY, nullable=False),
        sa.Column("live", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("wait", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_gpu_requests"),
        sa.ForeignKeyConstraint(["workspace"], ["workspaces.name"], name="fk_gpu_requests_workspace"),
    )
    op.create_index(
        "ix_gpu_requests_workspace_created_at_id", "gpu_requests", ["workspace", "created_at", "id"]
    )
    op.create_index("ix_gpu_requests_live_created_at_id", "gpu_requests", ["live", "created_at", "id"])
    op.create_index("ix_gpu_requests_endpoint_uid", "gpu_requests", ["endpoint_uid"])
    op.create_table(
        "workspace_policies",
        sa.Column("workspace", _KEY, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("workspace", name="pk_workspace_policies"),
        sa.ForeignKeyConstraint(
            ["workspace"], ["workspaces.name"], name="fk_workspace_policies_workspace", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "gpr_templates",
        sa.Column("name", _KEY, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_gpr_templates"),
    )
    op.create_table(
        "gpr_template_bindings",
        sa.Column("workspace", _KEY, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("workspace", name="pk_gpr_template_bindings"),
        sa.ForeignKeyConstraint(
            ["workspace"], ["workspaces.name"], name="fk_gpr_template_bindings_workspace", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "nodes",
        sa.Column("cluster", _KEY, nullable=False),
        sa.Column("name", _KEY, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("cluster", "name", name="pk_nodes"),
    )
    op.create_table(
        "scheduler_state",
        sa.Column("name", _KEY, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_scheduler_state"),
    )
    op.add_column("events", sa.Column("gpu_request_id", _KEY, nullable=False, server_default=""))


def downgrade() -> None:
    """Never: going back is done by restoring a backup."""
    raise NotImplementedError("restore a backup made before the upgrade")
