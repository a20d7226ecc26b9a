"""Predictions record whether a DICOM Segmentation can be made of their outlines

Revision ID: a83f15c6d270
Revises: 6e2d94b7a1c8
Created: 2026-11-29 18:05:00
"""

import sqlalchemy as sa
from alembic import op

revision = "a83f15c6d270"
down_revision = "6e2d94b7a1c8"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("prediction", sa.Column("can_be_segmented", sa.Boolean(), nullable=True))


def downgrade() -> None:
    op.drop_column("prediction", "can_be_segmented")
