"""Film sheets that are read as a single slice

Revision ID: 4c81d7e2f0a9
Revises: 8d3f2b6a90c7
Created: 2026-11-29 14:50:00
"""

import sqlalchemy as sa
from alembic import op

revision = "4c81d7e2f0a9"
down_revision = "8d3f2b6a90c7"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "scan", sa.Column("uncut", sa.Boolean(), server_default=sa.false(), nullable=False)
    )


def downgrade() -> None:
    op.drop_column("scan", "uncut")
