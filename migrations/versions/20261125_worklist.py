"""The orders of the worklist: by risk and by uncertainty

Revision ID: c7d90b5e41fa
Revises: 5b0e7c92a1f3
Created: 2026-11-25 11:10:00
"""

import sqlalchemy as sa
from alembic import op

revision = "c7d90b5e41fa"
down_revision = "5b0e7c92a1f3"
branch_labels = None
depends_on = None

# Plain statements, not batches: to alter in a batch, SQLite makes the table anew, and dropping the
# old one would take the verdicts along.

OF_ITS_PREDICTION = "(SELECT {} FROM prediction WHERE prediction.scan_id = scan.id)"
SCORED = "EXISTS (SELECT 1 FROM prediction WHERE prediction.scan_id = scan.id)"


def upgrade() -> None:
    op.add_column("scan", sa.Column("risk", sa.Double(), nullable=False, server_default="0"))
    op.add_column("scan", sa.Column("margin", sa.Double(), nullable=False, server_default="1"))
    risk, margin = (
        OF_ITS_PREDICTION.format(told) for told in ("probability", "abs(probability - threshold)")
    )
    op.execute(f"UPDATE scan SET risk = {risk}, margin = {margin} WHERE {SCORED}")
    newest = (sa.text("created_at DESC"), "id")
    op.create_index(
        "ix_scan_risk", "scan", ["user_id", sa.text("stat DESC"), sa.text("risk DESC"), *newest]
    )
    op.create_index("ix_scan_margin", "scan", ["user_id", sa.text("stat DESC"), "margin", *newest])


def downgrade() -> None:
    op.drop_index("ix_scan_margin", table_name="scan")
    op.drop_index("ix_scan_risk", table_name="scan")
    op.drop_column("scan", "margin")
    op.drop_column("scan", "risk")
