"""An index from which a user's stored bytes are summed

Revision ID: c1d0a7f3e8b2
Revises: b27c5e9a4d10
Created: 2026-11-29 18:00:00
"""

from alembic import op

revision = "c1d0a7f3e8b2"
down_revision = "b27c5e9a4d10"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    op.create_index("ix_scan_stored", "scan", ["user_id", "size"])


def downgrade() -> None:
    """Remove the index."""
    op.drop_index("ix_scan_stored", "scan")
