"""The scan columns that the worklist shows, filters and sorts by

Revision ID: 8d3f2b6a90c7
Revises: 3f6a92d8b1e5
Created: 2026-11-29 11:10:00
"""

import sqlalchemy as sa
from alembic import op

revision = "8d3f2b6a90c7"
down_revision = "3f6a92d8b1e5"
branch_labels = None
depends_on = None

NEWEST_FIRST = sa.text("created_at DESC")
WORKLIST = ["user_id", NEWEST_FIRST, "id", "stat", "status", "verdict_state", "risk"]
"""The worklist's columns; followed by the number of slices and the title."""


def upgrade() -> None:
    op.add_column("scan", sa.Column("verdict_state", sa.String(length=16), nullable=True))
    op.add_column("scan", sa.Column("opened_at", sa.DateTime(), nullable=True))
    # Results from before results could be marked as read do not count as unread.
    op.execute("UPDATE scan SET opened_at = finished_at")
    op.execute(
        "UPDATE scan SET verdict_state = (SELECT CASE WHEN uncertain THEN 'inconclusive'"
        " WHEN positive THEN 'suspected' ELSE 'not found' END"
        " FROM prediction WHERE prediction.scan_id = scan.id)"
    )
    op.create_index("ix_scan_worklist", "scan", [*WORKLIST, "slice_count", "title"])
    op.create_index("ix_scan_finished", "scan", ["user_id", "finished_at"])
    op.drop_index("ix_scan_user_id", "scan")


def downgrade() -> None:
    op.create_index("ix_scan_user_id", "scan", ["user_id", "created_at"])
    op.drop_index("ix_scan_finished", "scan")
    op.drop_index("ix_scan_worklist", "scan")
    op.drop_column("scan", "opened_at")
    op.drop_column("scan", "verdict_state")
