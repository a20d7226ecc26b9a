"""How many breaks of the audit log's hash chain are acknowledged

Revision ID: e4f1a8c25d70
Revises: c07e5d9a3b16
Created: 2026-11-30 07:50:00
"""

import sqlalchemy as sa
from alembic import op

revision = "e4f1a8c25d70"
down_revision = "c07e5d9a3b16"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column(
        "audit_check", sa.Column("acknowledged", sa.Integer(), server_default="0", nullable=False)
    )


def downgrade() -> None:
    """Remove the column."""
    op.drop_column("audit_check", "acknowledged")
