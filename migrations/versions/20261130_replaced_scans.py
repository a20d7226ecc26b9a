"""What a scan records about the earlier scans of its series that it replaced

Revision ID: 6c3e8a71f0d4
Revises: 2b9f60d4c81e
Created: 2026-11-30 01:40:00
"""

import sqlalchemy as sa
from alembic import op

revision = "6c3e8a71f0d4"
down_revision = "2b9f60d4c81e"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("scan", sa.Column("replaces", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Remove the column."""
    op.drop_column("scan", "replaces")
