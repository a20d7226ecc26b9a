"""An index for the queue of scans: claims go through it from person to person

Revision ID: 5b8e2f4a90c3
Revises: a41c07e9d2b8
Created: 2026-11-25 10:35:00
"""

import sqlalchemy as sa
from alembic import op

revision = "5b8e2f4a90c3"
down_revision = "a41c07e9d2b8"
branch_labels = None
depends_on = None

QUEUED = sa.text("status = 'queued'")


def upgrade() -> None:
    columns = ["user_id", sa.text("stat DESC"), "queued_at", "id"]
    op.create_index("ix_scan_queue", "scan", columns, postgresql_where=QUEUED, sqlite_where=QUEUED)


def downgrade() -> None:
    op.drop_index("ix_scan_queue", table_name="scan")
