"""The study that a series belongs to

Revision ID: 5c1e7a94d2b8
Revises: 4c81d7e2f0a9
Created: 2026-11-29 14:10:00
"""

import sqlalchemy as sa
from alembic import op

revision = "5c1e7a94d2b8"
down_revision = "4c81d7e2f0a9"
branch_labels = None
depends_on = None

NEWEST_FIRST = sa.text("created_at DESC")
FILTERED = ["stat", "status", "verdict_state", "risk"]
"""The worklist's filter and sort columns; followed by the number of slices and the title."""


def upgrade() -> None:
    op.add_column(
        "scan",
        sa.Column("study_id", sa.String(length=32), server_default=sa.text("''"), nullable=False),
    )
    op.execute("UPDATE scan SET study_id = id")  # Which scans came together was not stored.
    op.drop_index("ix_scan_worklist", "scan")
    of_person = ["user_id", NEWEST_FIRST, "study_id", "id"]
    op.create_index(
        "ix_scan_worklist", "scan", [*of_person, *FILTERED, "margin", "slice_count", "title"]
    )


def downgrade() -> None:
    op.drop_index("ix_scan_worklist", "scan")
    of_person = ["user_id", NEWEST_FIRST, "id"]
    op.create_index("ix_scan_worklist", "scan", [*of_person, *FILTERED, "slice_count", "title"])
    op.drop_column("scan", "study_id")
