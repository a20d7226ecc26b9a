"""Individual images of data sets, label corrections, analyses of data sets by workers, and
previews

Revision ID: e15d80c7b3f2
Revises: c7d20e9f41ab
Created: 2026-11-29 18:00:00
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "e15d80c7b3f2"
down_revision = "c7d20e9f41ab"
branch_labels = None
depends_on = None

LONG_AGO = sa.text("'1970-01-01 00:00:00.000000'")
STATUSES = ("queued", "running", "done", "failed", "cancelled")


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


def deleted_with(table: str, column: str, other: str = "dataset") -> sa.ForeignKeyConstraint:
    """Return a column for the id of a row with which this row is deleted."""
    name = op.f(f"fk_{table}_{column}_{other}")
    return sa.ForeignKeyConstraint([column], [f"{other}.id"], name=name, ondelete="CASCADE")


def upgrade() -> None:
    op.add_column("dataset", sa.Column("corrected_from_id", sa.String(length=32), nullable=True))
    op.add_column("dataset", sa.Column("corrections", sa.JSON(), nullable=True))
    create_images()
    op.create_table(
        "label_correction",
        sa.Column("dataset_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("label", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(length=200), nullable=False),
        sa.Column("by_id", sa.String(length=32), nullable=True),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["by_id"], ["user.id"], name=op.f("fk_label_correction_by_id_user"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id", "number"],
            ["dataset_image.dataset_id", "dataset_image.number"],
            name=op.f("fk_label_correction_dataset_id_dataset_image"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("dataset_id", "number", name=op.f("pk_label_correction")),
    )
    op.create_table(
        "dataset_analysis",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("dataset_id", sa.String(length=32), nullable=False),
        sa.Column("other_id", sa.String(length=32), nullable=True),
        sa.Column("question", sa.String(length=60), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        *leased(),
        deleted_with("dataset_analysis", "dataset_id"),
        deleted_with("dataset_analysis", "other_id"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset_analysis")),
        sa.UniqueConstraint(
            "dataset_id", "kind", "question", name=op.f("uq_dataset_analysis_dataset_id")
        ),
    )
    op.create_index(op.f("ix_dataset_analysis_status"), "dataset_analysis", ["status", "queued_at"])
    op.create_index(op.f("ix_dataset_analysis_other_id"), "dataset_analysis", ["other_id"])
    create_previews()


def create_images() -> None:
    """Create the tables of images and of their near-duplicates."""
    texts = ("name", "source")
    op.create_table(
        "dataset_image",
        sa.Column("dataset_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.Text(), nullable=False) for name in texts),
        *(
            sa.Column(name, sa.Integer(), nullable=True)
            for name in (
                *("label", "patient", "group_number", "scan", "slice", "scan_label"),
                *("thumbnail_at", "thumbnail_bytes"),
            )
        ),
        *(sa.Column(name, sa.Double(), nullable=True) for name in ("place_mm", "gray")),
        sa.Column("head_share", sa.Double(), nullable=True),
        sa.Column("types", sa.String(length=120), nullable=True),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in ("width", "height", "bytes")),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("dhash", sa.String(length=64), nullable=False),
        sa.Column("problems", sa.JSON(), nullable=False),
        sa.Column("kinds", sa.String(length=120), nullable=False),
        sa.Column("files", sa.JSON(), nullable=False),
        sa.Column("mask", sa.Text(), nullable=True),
        deleted_with("dataset_image", "dataset_id"),
        sa.PrimaryKeyConstraint("dataset_id", "number", name=op.f("pk_dataset_image")),
    )
    for name, column in (("label", "label"), ("group", "group_number")):
        columns = ["dataset_id", column, "number"]
        op.create_index(op.f(f"ix_dataset_image_{name}"), "dataset_image", columns)
    op.create_table(
        "dataset_pair",
        sa.Column("dataset_id", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("other", sa.Integer(), nullable=False),
        deleted_with("dataset_pair", "dataset_id"),
        sa.PrimaryKeyConstraint("dataset_id", "number", "other", name=op.f("pk_dataset_pair")),
    )


def create_previews() -> None:
    """Create the table of previews."""
    op.create_table(
        "preview",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("dataset_id", sa.String(length=32), nullable=True),
        sa.Column("scan_id", sa.String(length=32), nullable=True),
        sa.Column("what", sa.JSON(), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("used_at", sa.DateTime(), nullable=False),
        *leased(),
        deleted_with("preview", "dataset_id"),
        deleted_with("preview", "scan_id", "scan"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_preview")),
        sa.UniqueConstraint("key", name=op.f("uq_preview_key")),
    )
    op.create_index(op.f("ix_preview_status"), "preview", ["status", "queued_at"])
    for column in ("dataset_id", "scan_id", "used_at"):
        op.create_index(op.f(f"ix_preview_{column}"), "preview", [column])


def downgrade() -> None:
    op.drop_table("preview")
    op.drop_table("dataset_analysis")
    op.drop_table("label_correction")
    op.drop_table("dataset_pair")
    op.drop_table("dataset_image")
    op.drop_column("dataset", "corrections")
    op.drop_column("dataset", "corrected_from_id")
