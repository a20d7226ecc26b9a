"""How a version compares with those made before it

Revision ID: 8d1f52c6a7e4
Revises: 3c7a90d41be2
Created: 2026-11-25 03:10:00
"""

import sqlalchemy as sa
from alembic import op

revision = "8d1f52c6a7e4"
down_revision = "3c7a90d41be2"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_version", sa.Column("comparisons", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("model_version", "comparisons")
