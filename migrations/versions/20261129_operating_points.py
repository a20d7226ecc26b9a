"""The operating point that was chosen for a version, and how an audit event records it

Revision ID: 3f6a92d8b1e5
Revises: 7d1e90b3a6c4
Created: 2026-11-29 11:10:00
"""

import sqlalchemy as sa
from alembic import op

revision = "3f6a92d8b1e5"
down_revision = "7d1e90b3a6c4"
branch_labels = None
depends_on = None


def columns() -> list[tuple[str, sa.Column[object]]]:
    """Return the new columns with their tables, in the order in which they are added."""
    of_points: list[tuple[str, sa.Column[object]]] = []
    for table in ("model_version", "promotion"):
        of_points += [
            (table, sa.Column("point", sa.String(length=16), nullable=True)),
            (table, sa.Column("slice_threshold", sa.Double(), nullable=True)),
            (table, sa.Column("scan_threshold", sa.Double(), nullable=True)),
        ]
    return [*of_points, ("audit_event", sa.Column("detail", sa.String(length=120), nullable=True))]


def upgrade() -> None:
    for table, column in columns():
        op.add_column(table, column)


def downgrade() -> None:
    for table, column in reversed(columns()):
        op.drop_column(table, column.name)
