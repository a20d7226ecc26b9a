"""Earlier predictions of a scan, and which warnings make a prediction less reliable

Revision ID: 71a4c0d9e2b8
Revises: 5c1e7a94d2b8
Created: 2026-11-29 14:10:00
"""

import sqlalchemy as sa
from alembic import op

revision = "71a4c0d9e2b8"
down_revision = "5c1e7a94d2b8"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("prediction", sa.Column("doubts", sa.JSON(), nullable=True))
    op.create_table(
        "earlier_answer",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("scan_id", sa.String(length=32), nullable=False),
        sa.Column("model_version_id", sa.String(length=32), nullable=False),
        sa.Column("answered_at", sa.DateTime(), nullable=False),
        sa.Column("probability", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("positive", sa.Boolean(), nullable=False),
        sa.Column("uncertain", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["scan_id"],
            ["scan.id"],
            name=op.f("fk_earlier_answer_scan_id_scan"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["model_version_id"],
            ["model_version.id"],
            name=op.f("fk_earlier_answer_model_version_id_model_version"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_earlier_answer")),
    )
    op.create_index(op.f("ix_earlier_answer_scan_id"), "earlier_answer", ["scan_id"])


def downgrade() -> None:
    op.drop_table("earlier_answer")
    op.drop_column("prediction", "doubts")
