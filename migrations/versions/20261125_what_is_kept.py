"""Since when a scan's original is not kept any longer

Revision ID: 5be3c92d70f1
Revises: 5b8e2f4a90c3
Created: 2026-11-25 10:30:00
"""

import sqlalchemy as sa
from alembic import op

revision = "5be3c92d70f1"
down_revision = "5b8e2f4a90c3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("scan", sa.Column("original_removed_at", sa.DateTime(), nullable=True))


def downgrade() -> None:
    op.drop_column("scan", "original_removed_at")
