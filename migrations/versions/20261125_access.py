"""Disabled users, when logins and tokens were last used, and an audit log that nobody can change

Revision ID: 5b0e7c92a1f3
Revises: 5be3c92d70f1
Created: 2026-11-25 10:30:00
"""

import sqlalchemy as sa
from alembic import op

revision = "5b0e7c92a1f3"
down_revision = "5be3c92d70f1"
branch_labels = None
depends_on = None

INDEXES = ("act", "actor_id", "object_id", "address")
REFUSAL = "The audit log is append-only."


def upgrade() -> None:
    op.add_column("user", sa.Column("disabled_at", sa.DateTime(), nullable=True))
    op.add_column("api_token", sa.Column("used_at", sa.DateTime(), nullable=True))
    # Logins are short-lived, so those that there are end here rather than get a made-up past.
    op.drop_table("login_session")
    create_login_session(
        sa.Column("browser", sa.String(length=40), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.Column("used_at", sa.DateTime(), nullable=False),
    )
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
    for column in INDEXES:
        op.create_index(op.f(f"ix_audit_event_{column}"), "audit_event", [column, "id"])
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


def downgrade() -> None:
    op.drop_table("audit_event")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_to_change_audit_event()")
    op.drop_table("login_session")
    create_login_session()
    op.drop_column("api_token", "used_at")
    op.drop_column("user", "disabled_at")


def create_login_session(*more: sa.Column) -> None:
    op.create_table(
        "login_session",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=False),
        *more,
        sa.ForeignKeyConstraint(
            ["user_id"], ["user.id"], name=op.f("fk_login_session_user_id_user"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_login_session")),
        sa.UniqueConstraint("secret_hash", name=op.f("uq_login_session_secret_hash")),
    )
    op.create_index(op.f("ix_login_session_user_id"), "login_session", ["user_id"])
