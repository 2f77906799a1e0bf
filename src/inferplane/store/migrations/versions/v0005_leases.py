"""Leases: which of several control planes acts.

Only adds. A version before this one takes the whole database for itself, and is not let beside this one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "leases",
        sa.Column("name", _KEY, nullable=False),
        sa.Column("holder", _KEY, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )


def downgrade() -> None:
    """Never: going back is done by restoring a backup."""
    raise NotImplementedError("restore a backup made before the upgrade")
