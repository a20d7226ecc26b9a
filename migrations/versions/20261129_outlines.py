"""Outlines of hemorrhages: where they are stored, their areas and the volume

Revision ID: c41d7e2f9b36
Revises: 71a4c0d9e2b8
Created: 2026-11-29 14:20:00
"""

import sqlalchemy as sa
from alembic import op

revision = "c41d7e2f9b36"
down_revision = "71a4c0d9e2b8"
branch_labels = None
depends_on = None


def columns() -> list[tuple[str, sa.Column[object]]]:
    """Return the new columns with their tables, in the order in which they are added."""
    return [
        ("scan", sa.Column("outline_key", sa.String(length=200), nullable=True)),
        ("prediction", sa.Column("outlined_slices", sa.JSON(), nullable=True)),
        ("prediction", sa.Column("areas_mm2", sa.JSON(), nullable=True)),
        ("prediction", sa.Column("volume_ml", sa.Double(), nullable=True)),
        ("prediction", sa.Column("no_volume_because", sa.String(length=120), nullable=True)),
    ]


def upgrade() -> None:
    for table, column in columns():
        op.add_column(table, column)


def downgrade() -> None:
    for table, column in reversed(columns()):
        op.drop_column(table, column.name)
