"""Reports of scans as files, and notifications of results

Revision ID: c41d7b90e2f6
Revises: c41d7e2f9b36
Created: 2026-11-29 14:20:00
"""

import sqlalchemy as sa
from alembic import op

revision = "c41d7b90e2f6"
down_revision = "c41d7e2f9b36"
branch_labels = None
depends_on = None

LONG_AGO = sa.text("'1970-01-01 00:00:00.000000'")
QUEUED = sa.text("status = 'queued'")


def claimed() -> list[sa.Column[object]]:
    """Return the columns that every table has whose rows workers claim."""
    return [
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
        sa.Column("queued_at", sa.DateTime(), nullable=False, server_default=LONG_AGO),
        sa.Column("started_at", sa.DateTime(), nullable=True),
        sa.Column("finished_at", sa.DateTime(), nullable=True),
        sa.Column("retry_at", sa.DateTime(), nullable=True),
        sa.Column("refused_since", sa.DateTime(), nullable=True),
    ]


def belongs_to(table: str, name: str, *, optional: bool = False) -> list[sa.schema.SchemaItem]:
    """Return a column of `table` that refers to a row of `name` and is deleted with that row."""
    key = f"fk_{table}_{name}_id_{name}"
    return [
        sa.Column(f"{name}_id", sa.String(length=32), nullable=optional),
        sa.ForeignKeyConstraint([f"{name}_id"], [f"{name}.id"], name=key, ondelete="CASCADE"),
    ]


def upgrade() -> None:
    op.create_table(
        "report",
        *claimed(),
        *belongs_to("report", "scan"),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_report"),
    )
    op.create_table(
        "notification_choice",
        sa.Column("id", sa.String(length=32), nullable=False),
        *belongs_to("notification_choice", "user"),
        sa.Column("channel", sa.String(length=16), nullable=False),
        sa.Column("wanted", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_notification_choice"),
        sa.UniqueConstraint("user_id", "channel", name="uq_notification_choice_user_id"),
    )
    op.create_table(
        "notification",
        *claimed(),
        *belongs_to("notification", "user"),
        *belongs_to("notification", "scan", optional=True),
        sa.Column("channel", sa.String(length=16), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_notification"),
    )
    for table in ("report", "notification"):
        op.create_index(f"ix_{table}_status", table, ["status", "queued_at"])
        op.create_index(
            f"ix_{table}_queue",
            table,
            ["user_id", "queued_at", "id"],
            postgresql_where=QUEUED,
            sqlite_where=QUEUED,
        )
    op.create_index("ix_report_scan_id", "report", ["scan_id", "kind"], unique=True)
    op.create_index("ix_notification_scan_id", "notification", ["scan_id"])
    op.create_index("ix_notification_of_user", "notification", ["user_id", "created_at"])


def downgrade() -> None:
    for table in ("notification", "notification_choice", "report"):
        op.drop_table(table)
