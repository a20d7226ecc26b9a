"""Rows that are postponed, versions that are checked, and workers that raise an alarm

Revision ID: 7d1e90b3a6c4
Revises: 5b0e9d7c2a41
Created: 2026-11-29 10:20:00
"""

import sqlalchemy as sa
from alembic import op

revision = "7d1e90b3a6c4"
down_revision = "5b0e9d7c2a41"
branch_labels = None
depends_on = None

LEASED = ("scan", "heatmap", "dataset", "training_run")


def columns() -> list[tuple[str, sa.Column[object]]]:
    """Return the new columns with their tables, in the order in which they are added."""
    return [
        *(
            (table, sa.Column(name, sa.DateTime(), nullable=True))
            for table in LEASED
            for name in ("retry_at", "refused_since")
        ),
        ("worker", sa.Column("alarm", sa.Text(), nullable=True)),
        ("model_version", sa.Column("canary", sa.Double(), nullable=True)),
        ("model_version", sa.Column("check_requested_at", sa.DateTime(), nullable=True)),
        ("model_version", sa.Column("checked_at", sa.DateTime(), nullable=True)),
        ("model_version", sa.Column("check_error", sa.Text(), nullable=True)),
    ]


def upgrade() -> None:
    for table, column in columns():
        op.add_column(table, column)


def downgrade() -> None:
    for table, column in reversed(columns()):
        op.drop_column(table, column.name)
