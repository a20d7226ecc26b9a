"""Evaluations, comparisons as separate rows, what was known at each promotion, and training
curves

Revision ID: b27c5e9a4d10
Revises: b41c7e95d3a2
Created: 2026-11-29 14:35:00
"""

import uuid
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "b27c5e9a4d10"
down_revision = "b41c7e95d3a2"
branch_labels = None
depends_on = None

LONG_AGO = sa.text("'1970-01-01 00:00:00.000000'")
STATUSES = ("queued", "running", "done", "failed", "cancelled")
OUT_OF_FOLD = "out of fold"

VERSIONS = sa.table(
    "model_version",
    sa.column("id", sa.String),
    sa.column("card_id", sa.String),
    sa.column("created_at", sa.DateTime),
    sa.column("comparisons", sa.JSON),
)


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


def id_columns(*names: str) -> list[sa.Column[Any]]:
    """Return columns for the ids of other rows."""
    return [sa.Column(name, sa.String(length=32), nullable=False) for name in names]


def upgrade() -> None:
    op.create_table(
        "evaluation",
        *id_columns("version_id", "dataset_id"),
        sa.Column("requested_by_id", sa.String(length=32), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("curves", sa.JSON(), nullable=True),
        sa.Column("mistakes", sa.JSON(), nullable=True),
        *leased(),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["model_version.id"],
            name=op.f("fk_evaluation_version_id_model_version"),
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id"],
            ["dataset.id"],
            name=op.f("fk_evaluation_dataset_id_dataset"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["requested_by_id"],
            ["user.id"],
            name=op.f("fk_evaluation_requested_by_id_user"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluation")),
        sa.UniqueConstraint("version_id", "dataset_id", name=op.f("uq_evaluation_version_id")),
    )
    op.create_index(op.f("ix_evaluation_status"), "evaluation", ["status", "queued_at"])
    op.create_index(op.f("ix_evaluation_dataset_id"), "evaluation", ["dataset_id"])
    comparison = op.create_table(
        "comparison",
        *id_columns("version_id", "other_id"),
        sa.Column("results", sa.JSON(), nullable=True),
        *leased(),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["model_version.id"],
            name=op.f("fk_comparison_version_id_model_version"),
        ),
        sa.ForeignKeyConstraint(
            ["other_id"], ["model_version.id"], name=op.f("fk_comparison_other_id_model_version")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_comparison")),
        sa.UniqueConstraint("version_id", "other_id", name=op.f("uq_comparison_version_id")),
    )
    op.create_index(op.f("ix_comparison_status"), "comparison", ["status", "queued_at"])
    op.create_index(op.f("ix_comparison_other_id"), "comparison", ["other_id"])
    op.create_table(
        "training_point",
        *id_columns("run_id"),
        sa.Column("metric", sa.String(length=40), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("stage", sa.String(length=200), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["training_run.id"],
            name=op.f("fk_training_point_run_id_training_run"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "metric", "step", name=op.f("pk_training_point")),
    )
    move_into(comparison)
    op.drop_column("model_version", "comparisons")
    op.add_column("promotion", sa.Column("evidence", sa.JSON(), nullable=True))


def move_into(comparison: sa.Table) -> None:
    """Create a row for each comparison that was stored with a version."""
    bind = op.get_bind()
    rows = bind.execute(
        sa.select(VERSIONS.c.id, VERSIONS.c.created_at, VERSIONS.c.comparisons)
    ).all()
    known = {row.id for row in rows}
    now = datetime.now(UTC).replace(tzinfo=None)
    for row in rows:
        for found in {one["version_id"]: one for one in row.comparisons or ()}.values():
            if found["version_id"] not in known:
                continue
            figures = {
                name: found[name] for name in ("slice", "patient", "reason") if name in found
            }
            bind.execute(
                sa.insert(comparison).values(
                    id=uuid.uuid4().hex,
                    version_id=row.id,
                    other_id=found["version_id"],
                    results=[{"source": OUT_OF_FOLD, **figures}],
                    status="done",
                    attempts=0,
                    counted_deaths=0,
                    death_counts=False,
                    progress=1.0,
                    created_at=row.created_at,
                    queued_at=row.created_at,
                    finished_at=now,
                )
            )


def downgrade() -> None:
    op.drop_column("promotion", "evidence")
    op.add_column("model_version", sa.Column("comparisons", sa.JSON(), nullable=True))
    move_back()
    op.drop_table("training_point")
    op.drop_index(op.f("ix_comparison_other_id"), "comparison")
    op.drop_index(op.f("ix_comparison_status"), "comparison")
    op.drop_table("comparison")
    op.drop_index(op.f("ix_evaluation_dataset_id"), "evaluation")
    op.drop_index(op.f("ix_evaluation_status"), "evaluation")
    op.drop_table("evaluation")


def move_back() -> None:
    """Store the comparisons of out-of-fold predictions with their versions again."""
    bind = op.get_bind()
    comparison = sa.table(
        "comparison",
        sa.column("version_id", sa.String),
        sa.column("other_id", sa.String),
        sa.column("results", sa.JSON),
    )
    card_ids = dict(bind.execute(sa.select(VERSIONS.c.id, VERSIONS.c.card_id)).all())
    kept: dict[str, list[dict[str, Any]]] = {}
    for row in bind.execute(sa.select(comparison)):
        for found in row.results or ():
            if found["source"] == OUT_OF_FOLD:
                figures = {name: value for name, value in found.items() if name != "source"}
                about = {"version_id": row.other_id, "card_id": card_ids[row.other_id]}
                kept.setdefault(row.version_id, []).append({**about, **figures})
    for version_id, comparisons in kept.items():
        bind.execute(
            sa.update(VERSIONS).where(VERSIONS.c.id == version_id).values(comparisons=comparisons)
        )
