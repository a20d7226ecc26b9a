"""Whole series, urgent scans, and since when a row waits

Revision ID: a41c07e9d2b8
Revises: 8d1f52c6a7e4
Created: 2026-11-25 10:20:00
"""

import sqlalchemy as sa
from alembic import op

revision = "a41c07e9d2b8"
down_revision = "8d1f52c6a7e4"
branch_labels = None
depends_on = None

# Plain statements, not batches: to alter in a batch, SQLite makes the table anew, and dropping the
# old one would take the verdicts along.

LEASED = ("scan", "heatmap", "dataset", "training_run")
LONG_AGO = sa.text("'1970-01-01 00:00:00.000000'")


def upgrade() -> None:
    for table in LEASED:
        op.add_column(
            table, sa.Column("queued_at", sa.DateTime(), nullable=False, server_default=LONG_AGO)
        )
        op.execute(sa.text(f"UPDATE {table} SET queued_at = created_at"))
        op.drop_index(f"ix_{table}_status", table_name=table)
        op.create_index(f"ix_{table}_status", table, ["status", "queued_at"])
    op.add_column(
        "scan", sa.Column("stat", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column(
        "scan", sa.Column("slice_count", sa.Integer(), nullable=False, server_default="1")
    )
    op.add_column("scan", sa.Column("size", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("scan", sa.Column("notes", sa.JSON(), nullable=True))
    op.add_column("scan", sa.Column("volume_key", sa.String(length=200), nullable=True))
    op.add_column("prediction", sa.Column("first_slices", sa.JSON(), nullable=True))
    op.add_column("heatmap", sa.Column("slices", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("heatmap", "slices")
    op.drop_column("prediction", "first_slices")
    for column in ("volume_key", "notes", "size", "slice_count", "stat"):
        op.drop_column("scan", column)
    for table in LEASED:
        op.drop_index(f"ix_{table}_status", table_name=table)
        op.create_index(f"ix_{table}_status", table, ["status", "created_at"])
        op.drop_column(table, "queued_at")
