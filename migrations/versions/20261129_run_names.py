"""Names, tags, notes and the log of training runs

Revision ID: 6f1b8e20d3c7
Revises: 3ad1c0f57e92
Created: 2026-11-29 18:05:00
"""

import sqlalchemy as sa
from alembic import op

revision = "6f1b8e20d3c7"
down_revision = "3ad1c0f57e92"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("training_run", sa.Column("name", sa.String(length=80), nullable=True))
    op.add_column("training_run", sa.Column("notes", sa.Text(), nullable=True))
    op.add_column("training_run", sa.Column("log", sa.Text(), nullable=True))
    op.create_table(
        "run_tag",
        sa.Column("run_id", sa.String(length=32), nullable=False),
        sa.Column("tag", sa.String(length=30), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["training_run.id"],
            name="fk_run_tag_run_id_training_run",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "tag", name="pk_run_tag"),
    )
    op.create_index("ix_run_tag_tag", "run_tag", ["tag"])


def downgrade() -> None:
    op.drop_index("ix_run_tag_tag", "run_tag")
    op.drop_table("run_tag")
    op.drop_column("training_run", "log")
    op.drop_column("training_run", "notes")
    op.drop_column("training_run", "name")
