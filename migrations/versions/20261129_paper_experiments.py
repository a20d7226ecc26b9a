"""The paper's experiment as a job

Revision ID: 91c4e7a05bd8
Revises: 6f1b8e20d3c7
Created: 2026-11-29 18:20:00
"""

import sqlalchemy as sa
from alembic import op

revision = "91c4e7a05bd8"
down_revision = "6f1b8e20d3c7"
branch_labels = None
depends_on = None

EPOCH = sa.text("'1970-01-01 00:00:00.000000'")


def upgrade() -> None:
    op.create_table(
        "paper_experiment",
        sa.Column("dataset_id", sa.String(length=32), nullable=False),
        sa.Column("launched_by_id", sa.String(length=32), nullable=True),
        sa.Column("architectures", sa.JSON(), nullable=False),
        sa.Column("initial_weights", sa.String(length=200), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("eta_s", sa.Double(), nullable=True),
        sa.Column("cells", sa.Integer(), nullable=True),
        sa.Column("cells_done", sa.Integer(), nullable=False),
        sa.Column("results", sa.JSON(), nullable=True),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("counted_deaths", sa.Integer(), nullable=False),
        sa.Column("death_counts", sa.Boolean(), nullable=False),
        sa.Column("lease_owner", sa.String(length=100), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(), nullable=True),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("stage", sa.String(length=200), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("queued_at", sa.DateTime(), server_default=EPOCH, nullable=False),
        sa.Column("started_at", sa.DateTime(), nullable=True),
        sa.Column("finished_at", sa.DateTime(), nullable=True),
        sa.Column("retry_at", sa.DateTime(), nullable=True),
        sa.Column("refused_since", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["dataset.id"],
            name=op.f("fk_paper_experiment_dataset_id_dataset"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["launched_by_id"],
            ["user.id"],
            name=op.f("fk_paper_experiment_launched_by_id_user"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_paper_experiment")),
    )
    op.create_index("ix_paper_experiment_status", "paper_experiment", ["status", "queued_at"])
    op.create_index("ix_paper_experiment_dataset_id", "paper_experiment", ["dataset_id"])


def downgrade() -> None:
    op.drop_index("ix_paper_experiment_dataset_id", "paper_experiment")
    op.drop_index("ix_paper_experiment_status", "paper_experiment")
    op.drop_table("paper_experiment")
