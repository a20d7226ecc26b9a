"""Studies that arrive by DICOM, and results to be sent back

Revision ID: d1c0a5e7b342
Revises: 91c4e7a05bd8
Create Date: 2026-11-29 18:00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "d1c0a5e7b342"
down_revision = "91c4e7a05bd8"
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
        "received_study",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("closed_at", sa.DateTime(), nullable=False),
        sa.Column("sent_by", sa.String(length=100), nullable=False),
        *belongs_to("received_study", "user", optional=True),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("scans", sa.Integer(), nullable=False),
        sa.Column("sentence", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_received_study"),
    )
    op.create_index("ix_received_study_closed_at", "received_study", ["closed_at"])
    op.create_index("ix_received_study_user_id", "received_study", ["user_id"])
    op.create_table(
        "received_scan",
        sa.Column("id", sa.String(length=32), nullable=False),
        *belongs_to("received_scan", "scan"),
        sa.Column("received_at", sa.DateTime(), nullable=False),
        sa.Column("study_hash", sa.String(length=32), nullable=False),
        sa.Column("instances", sa.JSON(), nullable=False),
        sa.Column("answers", sa.JSON(), nullable=True),
        sa.Column("sealed_link", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_received_scan"),
        sa.UniqueConstraint("scan_id", name="uq_received_scan_scan_id"),
    )
    op.create_index("ix_received_scan_study_hash", "received_scan", ["study_hash"])
    op.create_table(
        "result_delivery",
        *claimed(),
        *belongs_to("result_delivery", "user"),
        *belongs_to("result_delivery", "scan"),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("sent", sa.String(length=40), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_result_delivery"),
        sa.UniqueConstraint("scan_id", "destination", name="uq_result_delivery_scan_id"),
    )
    op.create_index("ix_result_delivery_status", "result_delivery", ["status", "queued_at"])
    op.create_index(
        "ix_result_delivery_queue",
        "result_delivery",
        ["user_id", "queued_at", "id"],
        postgresql_where=QUEUED,
        sqlite_where=QUEUED,
    )


def downgrade() -> None:
    for table in ("result_delivery", "received_scan", "received_study"):
        op.drop_table(table)
