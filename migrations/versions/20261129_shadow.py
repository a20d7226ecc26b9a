"""Candidates that analyze live scans in shadow

Revision ID: e15b8d3c7a92
Revises: a83f15c6d270
Created: 2026-11-29 18:00:00
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "e15b8d3c7a92"
down_revision = "a83f15c6d270"
branch_labels = None
depends_on = None

LONG_AGO = sa.text("'1970-01-01 00:00:00.000000'")
STATUSES = ("queued", "running", "done", "failed", "cancelled")
OPEN = sa.text("ended_at IS NULL")


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
        "shadow",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("version_id", sa.String(length=32), nullable=False),
        sa.Column("against_id", sa.String(length=32), nullable=False),
        sa.Column("reads", sa.String(length=16), nullable=False),
        sa.Column("started_by_id", sa.String(length=32), nullable=True),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
        sa.Column("ended_because", sa.Text(), nullable=True),
        sa.Column("skipped", sa.Integer(), nullable=False),
        refers("shadow", "version_id", "model_version"),
        refers("shadow", "against_id", "model_version"),
        refers("shadow", "started_by_id", "user", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shadow")),
    )
    op.create_index(op.f("ix_shadow_version_id"), "shadow", ["version_id"])
    op.create_index(
        "uq_shadow_open",
        "shadow",
        ["reads"],
        unique=True,
        postgresql_where=OPEN,
        sqlite_where=OPEN,
    )
    op.create_table(
        "shadow_answer",
        sa.Column("shadow_id", sa.String(length=32), nullable=False),
        sa.Column("scan_id", sa.String(length=32), nullable=False),
        sa.Column("live_probability", sa.Double(), nullable=False),
        sa.Column("live_threshold", sa.Double(), nullable=False),
        sa.Column("live_state", sa.String(length=16), nullable=False),
        sa.Column("probability", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        *leased(),
        refers("shadow_answer", "shadow_id", "shadow", ondelete="CASCADE"),
        refers("shadow_answer", "scan_id", "scan", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shadow_answer")),
    )
    table = "shadow_answer"
    op.create_index(op.f("ix_shadow_answer_status"), table, ["status", "queued_at"])
    op.create_index(op.f("ix_shadow_answer_scan_id"), table, ["scan_id"])
    op.create_index("ix_shadow_answer_finished", table, ["shadow_id", "finished_at"])
    op.create_index("uq_shadow_answer_scan", table, ["shadow_id", "scan_id"], unique=True)


def downgrade() -> None:
    op.drop_table("shadow_answer")
    op.drop_table("shadow")
