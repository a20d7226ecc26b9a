"""A shadow may answer what was answered while a promotion held

Revision ID: 2b9f60d4c81e
Revises: e91d4b7c0a35
Created: 2026-11-29 22:00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "2b9f60d4c81e"
down_revision = "e91d4b7c0a35"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("shadow", sa.Column("promotion_id", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Remove the column, and shadows that without it would take live scans."""
    op.execute(sa.text("DELETE FROM shadow WHERE promotion_id IS NOT NULL"))
    op.drop_column("shadow", "promotion_id")
