"""What a prediction was computed with, and predictions that are computed again

Revision ID: 9a6f20c84be1
Revises: e15b8d3c7a92
Created: 2026-11-29 18:15:00
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "9a6f20c84be1"
down_revision = "e15b8d3c7a92"
branch_labels = None
depends_on = None

LONG_AGO = sa.text("'1970-01-01 00:00:00.000000'")
STATUSES = ("queued", "running", "done", "failed", "cancelled")
ANSWERS = ("prediction", "earlier_answer")


def leased() -> tuple[sa.Column[Any], ...]:
    """Return the columns of a table whose rows workers claim."""
    status = sa.Enum(*STATUSES, name="jobstatus", native_enum=False, length=16)
    return (
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("status", status, nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("counted_deaths", sa.Integer(), nullable=False),
        sa.Column("death_counts", sa.Boolean(), nullable=False),
        sa.Column("lease_owner", sa.String(length=100), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(), nullable=True),
        sa.Column("progress", sa.Double(), nullable=False),
        sa.Column("stage", sa.String(length=200), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("queued_at", sa.DateTime(), nullable=False, server_default=LONG_AGO),
        sa.Column("started_at", sa.DateTime(), nullable=True),
        sa.Column("finished_at", sa.DateTime(), nullable=True),
        sa.Column("retry_at", sa.DateTime(), nullable=True),
        sa.Column("refused_since", sa.DateTime(), nullable=True),
    )


def refers(table: str, column: str, to: str, **how: str) -> sa.ForeignKeyConstraint:
    """Return the foreign key of a column."""
    name = op.f(f"fk_{table}_{column}_{to}")
    return sa.ForeignKeyConstraint([column], [f"{to}.id"], name=name, **how)


def upgrade() -> None:
    op.create_table(
        "environment",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("content", sa.JSON(), nullable=False),
        sa.Column("first_seen_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_environment")),
    )
    for table in ANSWERS:
        op.add_column(table, sa.Column("environment_id", sa.String(length=32), nullable=True))
        op.add_column(table, sa.Column("settings", sa.JSON(), nullable=True))
    op.add_column("earlier_answer", sa.Column("slices", sa.JSON(), nullable=True))
    op.create_table(
        "replay_sample",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("requested_by_id", sa.String(length=32), nullable=True),
        refers("replay_sample", "requested_by_id", "user", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replay_sample")),
    )
    op.create_table(
        "replay",
        sa.Column("scan_id", sa.String(length=32), nullable=False),
        sa.Column("prediction_id", sa.String(length=32), nullable=True),
        sa.Column("earlier_id", sa.Integer(), nullable=True),
        sa.Column("version_id", sa.String(length=32), nullable=False),
        sa.Column("sample_id", sa.String(length=32), nullable=True),
        sa.Column("urgent", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("is_same", sa.Boolean(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        *leased(),
        refers("replay", "scan_id", "scan", ondelete="CASCADE"),
        refers("replay", "prediction_id", "prediction", ondelete="CASCADE"),
        refers("replay", "earlier_id", "earlier_answer", ondelete="CASCADE"),
        refers("replay", "version_id", "model_version"),
        refers("replay", "sample_id", "replay_sample", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_replay")),
    )
    op.create_index(op.f("ix_replay_status"), "replay", ["status", "queued_at"])
    for column in ("scan_id", "prediction_id", "earlier_id", "sample_id"):
        op.create_index(op.f(f"ix_replay_{column}"), "replay", [column])


def downgrade() -> None:
    op.drop_table("replay")
    op.drop_table("replay_sample")
    op.drop_column("earlier_answer", "slices")
    for table in ANSWERS:
        op.drop_column(table, "settings")
        op.drop_column(table, "environment_id")
    op.drop_table("environment")
