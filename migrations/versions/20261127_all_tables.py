"""All tables

Revision ID: f4a07c1e58d2
Revises:
Created: 2026-11-27 00:30:00

The revision id is that of the last of the eleven migrations that this one replaces, so a database
that has all of them needs no migration.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "f4a07c1e58d2"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    "user",
    "worker",
    "api_token",
    "dataset",
    "login_session",
    "password_reset",
    "scan",
    "training_run",
    "model_version",
    "training_run_dataset",
    "prediction",
    "promotion",
    "heatmap",
    "attempt",
    "audit_event",
)
LONG_AGO = sa.text("'1970-01-01 00:00:00.000000'")
QUEUED = sa.text("status = 'queued'")
REFUSAL = "The audit log is append-only."


def upgrade() -> None:
    op.create_table(
        "user",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("username", sa.String(length=64), nullable=False),
        sa.Column("username_key", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=120), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=True),
        sa.Column("email_key", sa.String(length=254), nullable=True),
        sa.Column("phone", sa.String(length=40), nullable=False),
        sa.Column("password_hash", sa.String(length=200), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("disabled_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user")),
        sa.UniqueConstraint("email_key", name=op.f("uq_user_email_key")),
        sa.UniqueConstraint("username_key", name=op.f("uq_user_username_key")),
    )
    op.create_table(
        "worker",
        sa.Column("id", sa.String(length=100), nullable=False),
        sa.Column("queue", sa.String(length=20), nullable=False),
        sa.Column("host", sa.String(length=100), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.Column("seen_at", sa.DateTime(), nullable=False),
        sa.Column("delivered_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker")),
    )
    op.create_index(op.f("ix_worker_seen_at"), "worker", ["seen_at"])

    op.create_table(
        "api_token",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("used_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user.id"], name=op.f("fk_api_token_user_id_user"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_token")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_api_token_secret_hash")),
    )
    op.create_index(op.f("ix_api_token_user_id"), "api_token", ["user_id"])

    op.create_table(
        "dataset",
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("imported_by_id", sa.String(length=32), nullable=True),
        sa.Column("archive_key", sa.String(length=200), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=True),
        sa.Column("exploration", sa.JSON(), nullable=True),
        sa.Column("contact_sheet_key", sa.String(length=200), nullable=True),
        *leased(),
        sa.ForeignKeyConstraint(
            ["imported_by_id"],
            ["user.id"],
            name=op.f("fk_dataset_imported_by_id_user"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset")),
        sa.UniqueConstraint("name", name=op.f("uq_dataset_name")),
    )
    op.create_index(op.f("ix_dataset_status"), "dataset", ["status", "queued_at"])

    op.create_table(
        "login_session",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=False),
        sa.Column("browser", sa.String(length=40), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.Column("used_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user.id"], name=op.f("fk_login_session_user_id_user"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_session")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_login_session_secret_hash")),
    )
    op.create_index(op.f("ix_login_session_user_id"), "login_session", ["user_id"])

    op.create_table(
        "password_reset",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("made_by_id", sa.String(length=32), nullable=True),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["made_by_id"],
            ["user.id"],
            name=op.f("fk_password_reset_made_by_id_user"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["user.id"],
            name=op.f("fk_password_reset_user_id_user"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_password_reset")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_password_reset_secret_hash")),
    )
    op.create_index(op.f("ix_password_reset_user_id"), "password_reset", ["user_id"])

    op.create_table(
        "scan",
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("title", sa.String(length=80), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("original_key", sa.String(length=200), nullable=False),
        sa.Column("image_key", sa.String(length=200), nullable=True),
        sa.Column("thumbnail_key", sa.String(length=200), nullable=True),
        *leased(
            sa.Column("not_head_ct", sa.Double(), nullable=True),
            sa.Column("forced_at", sa.DateTime(), nullable=True),
        ),
        sa.Column("stat", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("slice_count", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("size", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("notes", sa.JSON(), nullable=True),
        sa.Column("volume_key", sa.String(length=200), nullable=True),
        sa.Column("original_removed_at", sa.DateTime(), nullable=True),
        sa.Column("risk", sa.Double(), nullable=False, server_default="0"),
        sa.Column("margin", sa.Double(), nullable=False, server_default="1"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user.id"], name=op.f("fk_scan_user_id_user"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scan")),
    )
    op.create_index(op.f("ix_scan_status"), "scan", ["status", "queued_at"])
    op.create_index(op.f("ix_scan_user_id"), "scan", ["user_id", "created_at"])
    newest = (sa.text("created_at DESC"), "id")
    stat, risk = sa.text("stat DESC"), sa.text("risk DESC")
    op.create_index("ix_scan_risk", "scan", ["user_id", stat, risk, *newest])
    op.create_index("ix_scan_margin", "scan", ["user_id", stat, "margin", *newest])
    create_queue_index("scan", ["user_id", stat, "queued_at", "id"])

    op.create_table(
        "training_run",
        sa.Column("launched_by_id", sa.String(length=32), nullable=True),
        sa.Column("architecture", sa.String(length=40), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("initial_weights", sa.String(length=200), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("eta_s", sa.Double(), nullable=True),
        sa.Column("current_metrics", sa.JSON(), nullable=False),
        *leased(),
        sa.ForeignKeyConstraint(
            ["launched_by_id"],
            ["user.id"],
            name=op.f("fk_training_run_launched_by_id_user"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_training_run")),
    )
    op.create_index(op.f("ix_training_run_status"), "training_run", ["status", "queued_at"])

    op.create_table(
        "model_version",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=True),
        sa.Column("card_id", sa.String(length=64), nullable=False),
        sa.Column("architecture", sa.String(length=40), nullable=False),
        sa.Column("reads", sa.String(length=16), nullable=False),
        sa.Column("storage_prefix", sa.String(length=200), nullable=False),
        sa.Column("card", sa.JSON(), nullable=False),
        sa.Column("blocked_because", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("comparisons", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(
            ["run_id"], ["training_run.id"], name=op.f("fk_model_version_run_id_training_run")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_version")),
        sa.UniqueConstraint("run_id", name=op.f("uq_model_version_run_id")),
    )
    op.create_index(op.f("ix_model_version_card_id"), "model_version", ["card_id"])

    op.create_table(
        "training_run_dataset",
        sa.Column("training_run_id", sa.String(length=32), nullable=False),
        sa.Column("dataset_id", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["dataset.id"], name=op.f("fk_training_run_dataset_dataset_id_dataset")
        ),
        sa.ForeignKeyConstraint(
            ["training_run_id"],
            ["training_run.id"],
            name=op.f("fk_training_run_dataset_training_run_id_training_run"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "training_run_id", "dataset_id", name=op.f("pk_training_run_dataset")
        ),
    )
    op.create_table(
        "prediction",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("scan_id", sa.String(length=32), nullable=False),
        sa.Column("model_version_id", sa.String(length=32), nullable=False),
        sa.Column("probability", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("positive", sa.Boolean(), nullable=False),
        sa.Column("uncertain", sa.Boolean(), nullable=False),
        sa.Column("warnings", sa.JSON(), nullable=False),
        sa.Column("slices", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("first_slices", sa.JSON(), nullable=True),
        sa.Column("types", sa.JSON(), nullable=True),
        sa.ForeignKeyConstraint(
            ["model_version_id"],
            ["model_version.id"],
            name=op.f("fk_prediction_model_version_id_model_version"),
        ),
        sa.ForeignKeyConstraint(
            ["scan_id"], ["scan.id"], name=op.f("fk_prediction_scan_id_scan"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prediction")),
        sa.UniqueConstraint("scan_id", name=op.f("uq_prediction_scan_id")),
    )
    op.create_table(
        "promotion",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.String(length=32), nullable=False),
        sa.Column("reads", sa.String(length=16), nullable=False),
        sa.Column("by_id", sa.String(length=32), nullable=True),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["by_id"], ["user.id"], name=op.f("fk_promotion_by_id_user"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["model_version.id"], name=op.f("fk_promotion_version_id_model_version")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promotion")),
    )
    op.create_index(op.f("ix_promotion_reads"), "promotion", ["reads", "id"])

    op.create_table(
        "heatmap",
        sa.Column("prediction_id", sa.String(length=32), nullable=False),
        sa.Column("image_key", sa.String(length=200), nullable=True),
        *leased(),
        sa.Column("slices", sa.JSON(), nullable=True),
        sa.Column("user_id", sa.String(length=32), nullable=False, server_default=sa.text("''")),
        sa.ForeignKeyConstraint(
            ["prediction_id"],
            ["prediction.id"],
            name=op.f("fk_heatmap_prediction_id_prediction"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_heatmap")),
        sa.UniqueConstraint("prediction_id", name=op.f("uq_heatmap_prediction_id")),
    )
    op.create_index(op.f("ix_heatmap_status"), "heatmap", ["status", "queued_at"])
    create_queue_index("heatmap", ["user_id", "queued_at", "id"])

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

    op.create_table(
        "audit_event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("act", sa.String(length=24), nullable=False),
        sa.Column("actor_id", sa.String(length=32), nullable=True),
        sa.Column("object_id", sa.String(length=32), nullable=True),
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_event")),
    )
    for column in ("act", "actor_id", "object_id", "address"):
        op.create_index(op.f(f"ix_audit_event_{column}"), "audit_event", [column, "id"])
    make_audit_log_append_only()


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_to_change_audit_event()")


def leased(*before_queued_at: sa.Column[Any]) -> tuple[sa.Column[Any], ...]:
    """Return the columns of a table whose rows workers claim, in the order in which the eleven
    migrations created them.
    """
    statuses = ("queued", "running", "done", "failed", "cancelled")
    status = sa.Enum(*statuses, name="jobstatus", native_enum=False, length=16)
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
        sa.Column("started_at", sa.DateTime(), nullable=True),
        sa.Column("finished_at", sa.DateTime(), nullable=True),
        *before_queued_at,
        sa.Column("queued_at", sa.DateTime(), nullable=False, server_default=LONG_AGO),
    )


def create_queue_index(table: str, columns: list[Any]) -> None:
    """Index a table's waiting rows in the order of claims, which take turns between users."""
    op.create_index(
        f"ix_{table}_queue", table, columns, postgresql_where=QUEUED, sqlite_where=QUEUED
    )


def make_audit_log_append_only() -> None:
    """Have the database refuse every change to the contents of the audit log."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION refuse_to_change_audit_event() RETURNS trigger LANGUAGE plpgsql "
            f"AS $$ BEGIN RAISE EXCEPTION '{REFUSAL}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_event_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON"
            " audit_event FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_audit_event()"
        )
    else:
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER audit_event_refuses_{change.lower()} BEFORE {change} ON"
                f" audit_event BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
            )
