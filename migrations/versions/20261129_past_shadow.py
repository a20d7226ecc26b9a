"""A shadow may analyze scans that were analyzed while a promotion was in force

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
    """Remove the column, and the shadows that would analyze live scans without it."""
    op.execute(sa.text("DELETE FROM shadow WHERE promotion_id IS NOT NULL"))
    op.drop_column("shadow", "promotion_id")
