"""What a scan or run went through before

Revision ID: e93b1f6a20d7
Revises: 7d20c5b81e64
Created: 2026-11-25 11:52:00
"""

import sqlalchemy as sa
from alembic import op

revision = "e93b1f6a20d7"
down_revision = "7d20c5b81e64"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "attempt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("scan_id", sa.String(length=32), nullable=True),
        sa.Column("run_id", sa.String(length=32), nullable=True),
        sa.Column("started_at", sa.DateTime(), nullable=True),
        sa.Column("ended_at", sa.DateTime(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["scan_id"], ["scan.id"], name=op.f("fk_attempt_scan_id_scan"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["training_run.id"],
            name=op.f("fk_attempt_run_id_training_run"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempt")),
    )
    op.create_index(op.f("ix_attempt_scan_id"), "attempt", ["scan_id"])
    op.create_index(op.f("ix_attempt_run_id"), "attempt", ["run_id"])


def downgrade() -> None:
    op.drop_table("attempt")
