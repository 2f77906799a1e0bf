"""Clusters of Kubernetes: how they are reached, what was found there, and their kubeconfigs apart.

Only adds: the version before this one goes on working beside it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the columns and the table."""
    op.add_column("clusters", sa.Column("ingress_address", sa.Text, nullable=False, server_default=""))
    op.add_column("clusters", sa.Column("connection", sa.Text))
    op.add_column("clusters", sa.Column("report", sa.Text))
    op.create_table(
        "cluster_secrets",
        sa.Column("cluster", _KEY, nullable=False),
        sa.Column("kubeconfig", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("cluster", name="pk_cluster_secrets"),
        sa.ForeignKeyConstraint(
            ["cluster"], ["clusters.name"], name="fk_cluster_secrets_cluster", ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    """Never: going back is done by restoring a backup."""
    raise NotImplementedError("restore a backup made before the upgrade")
