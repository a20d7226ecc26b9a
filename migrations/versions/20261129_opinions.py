"""Opinions on scans, sharing, data sets of confirmed scans, site figures and calibrations

Revision ID: b41c7e95d3a2
Revises: c41d7b90e2f6
Created: 2026-11-29 14:20:00
"""

import sqlalchemy as sa
from alembic import op

revision = "b41c7e95d3a2"
down_revision = "c41d7b90e2f6"
branch_labels = None
depends_on = None

WHOLE, OF_SLICE = sa.text("slice_index IS NULL"), sa.text("slice_index IS NOT NULL")
REVIEWERS, PERSON = sa.text("with_user_id IS NULL"), sa.text("with_user_id IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "opinion",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("scan_id", sa.String(length=32), nullable=False),
        sa.Column("author_id", sa.String(length=32), nullable=False),
        sa.Column("slice_index", sa.Integer(), nullable=True),
        sa.Column("finding", sa.String(length=16), nullable=False),
        sa.Column("types", sa.JSON(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("region", sa.JSON(), nullable=True),
        sa.Column("model_version_id", sa.String(length=32), nullable=True),
        sa.Column("model_probability", sa.Double(), nullable=True),
        sa.Column("model_positive", sa.Boolean(), nullable=True),
        sa.Column("sampling", sa.Double(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("updated_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["scan_id"], ["scan.id"], ondelete="CASCADE", name=op.f("fk_opinion_scan_id_scan")
        ),
        sa.ForeignKeyConstraint(
            ["author_id"], ["user.id"], ondelete="CASCADE", name=op.f("fk_opinion_author_id_user")
        ),
        sa.ForeignKeyConstraint(
            ["model_version_id"],
            ["model_version.id"],
            name=op.f("fk_opinion_model_version_id_model_version"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_opinion")),
    )
    op.create_index("ix_opinion_author_id", "opinion", ["author_id"])
    _create_unique("uq_opinion_scan", "opinion", ["scan_id", "author_id"], WHOLE)
    _create_unique("uq_opinion_slice", "opinion", ["scan_id", "author_id", "slice_index"], OF_SLICE)
    op.create_table(
        "share",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("scan_id", sa.String(length=32), nullable=False),
        sa.Column("with_user_id", sa.String(length=32), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["scan_id"], ["scan.id"], ondelete="CASCADE", name=op.f("fk_share_scan_id_scan")
        ),
        sa.ForeignKeyConstraint(
            ["with_user_id"],
            ["user.id"],
            ondelete="CASCADE",
            name=op.f("fk_share_with_user_id_user"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_share")),
    )
    op.create_index("ix_share_with", "share", ["with_user_id", "scan_id"])
    _create_unique("uq_share_reviewers", "share", ["scan_id"], REVIEWERS)
    _create_unique("uq_share_person", "share", ["scan_id", "with_user_id"], PERSON)
    op.create_table(
        "dataset_scan",
        sa.Column("dataset_id", sa.String(length=32), nullable=False),
        sa.Column("scan_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["dataset.id"],
            ondelete="CASCADE",
            name=op.f("fk_dataset_scan_dataset_id_dataset"),
        ),
        sa.ForeignKeyConstraint(
            ["scan_id"], ["scan.id"], ondelete="CASCADE", name=op.f("fk_dataset_scan_scan_id_scan")
        ),
        sa.PrimaryKeyConstraint("dataset_id", "scan_id", name=op.f("pk_dataset_scan")),
    )
    op.create_index("ix_dataset_scan_scan_id", "dataset_scan", ["scan_id"])
    op.create_table(
        "site_figures",
        sa.Column("asked_by_id", sa.String(length=32), nullable=True),
        sa.Column("figures", sa.JSON(), nullable=True),
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
        sa.Column(
            "queued_at",
            sa.DateTime(),
            server_default=sa.text("'1970-01-01 00:00:00.000000'"),
            nullable=False,
        ),
        sa.Column("started_at", sa.DateTime(), nullable=True),
        sa.Column("finished_at", sa.DateTime(), nullable=True),
        sa.Column("retry_at", sa.DateTime(), nullable=True),
        sa.Column("refused_since", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["asked_by_id"],
            ["user.id"],
            ondelete="SET NULL",
            name=op.f("fk_site_figures_asked_by_id_user"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_site_figures")),
    )
    op.create_index("ix_site_figures_status", "site_figures", ["status", "queued_at"])
    op.add_column("dataset", sa.Column("made_from", sa.JSON(), nullable=True))
    op.add_column(
        "training_run",
        sa.Column("is_calibration", sa.Boolean(), server_default=sa.false(), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("training_run", "is_calibration")
    op.drop_column("dataset", "made_from")
    for table in ("site_figures", "dataset_scan", "share", "opinion"):
        op.drop_table(table)


def _create_unique(name: str, table: str, columns: list[str], where: sa.TextClause) -> None:
    op.create_index(name, table, columns, unique=True, postgresql_where=where, sqlite_where=where)
