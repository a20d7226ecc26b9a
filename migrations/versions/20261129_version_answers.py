"""Metrics from the out-of-fold predictions of a version

Revision ID: 3ad1c0f57e92
Revises: e15d80c7b3f2
Created: 2026-11-29 17:50:00
"""

import sqlalchemy as sa
from alembic import op

revision = "3ad1c0f57e92"
down_revision = "e15d80c7b3f2"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("model_version", sa.Column("curves", sa.JSON(), nullable=True))
    op.add_column("model_version", sa.Column("mistakes", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("model_version", "mistakes")
    op.drop_column("model_version", "curves")
