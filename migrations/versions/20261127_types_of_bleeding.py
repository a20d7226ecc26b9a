"""Which types of bleeding a model tells

Revision ID: f4a07c1e58d2
Revises: e93b1f6a20d7
Created: 2026-11-27 00:30:00
"""

import sqlalchemy as sa
from alembic import op

revision = "f4a07c1e58d2"
down_revision = "e93b1f6a20d7"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("prediction", sa.Column("types", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("prediction", "types")
