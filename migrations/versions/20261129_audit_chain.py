"""A hash chain over the audit log, and triggers that allow deletion only at its trimmed
beginning

Revision ID: c7d20e9f41ab
Revises: 9a6f20c84be1
Created: 2026-11-29 18:30:00
"""

import sqlalchemy as sa
from alembic import op

revision = "c7d20e9f41ab"
down_revision = "9a6f20c84be1"
branch_labels = None
depends_on = None

REFUSAL = "The audit log is append-only."
POSITION = "(SELECT coalesce(max(position), 0) FROM audit_anchor)"
TRIMMED_LINK = f"OLD.position <= {POSITION}"
TRIMMED_EVENT = (
    "EXISTS (SELECT 1 FROM audit_link WHERE audit_link.event_id = OLD.id"
    f" AND audit_link.position <= {POSITION})"
)
MAY_GO = {"audit_event": TRIMMED_EVENT, "audit_link": TRIMMED_LINK, "audit_anchor": None}
"""By table: the condition under which a row may be deleted; None if never."""


def upgrade() -> None:
    op.create_table(
        "audit_link",
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("event_id", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("sealed_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_audit_link")),
        sa.UniqueConstraint("event_id", name=op.f("uq_audit_link_event_id")),
    )
    op.create_table(
        "audit_anchor",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_anchor")),
    )
    op.create_table(
        "audit_check",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("events", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_check")),
    )
    op.create_index(op.f("ix_audit_event_at"), "audit_event", ["at"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER audit_event_is_append_only ON audit_event")
        for table, condition in MAY_GO.items():
            _guard_on_postgresql(table, condition)
    else:
        op.execute("DROP TRIGGER audit_event_refuses_delete")
        for table, condition in MAY_GO.items():
            _guard_on_sqlite(table, condition)


def _guard_on_postgresql(table: str, condition: str | None) -> None:
    changes = "UPDATE OR TRUNCATE" if condition else "UPDATE OR DELETE OR TRUNCATE"
    op.execute(
        f"CREATE TRIGGER {table}_is_append_only BEFORE {changes} ON {table}"
        " FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_audit_event()"
    )
    if condition:
        op.execute(
            f"CREATE FUNCTION refuse_to_delete_{table}() RETURNS trigger LANGUAGE plpgsql AS $$"
            f" BEGIN IF {condition} THEN RETURN OLD; END IF;"
            f" RAISE EXCEPTION '{REFUSAL}'; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_keeps_rows BEFORE DELETE ON {table}"
            f" FOR EACH ROW EXECUTE FUNCTION refuse_to_delete_{table}()"
        )


def _guard_on_sqlite(table: str, condition: str | None) -> None:
    refuse = f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
    if table != "audit_event":  # It already has this trigger.
        op.execute(f"CREATE TRIGGER {table}_refuses_update BEFORE UPDATE ON {table} {refuse}")
    when = f" WHEN NOT ({condition})" if condition else ""
    op.execute(f"CREATE TRIGGER {table}_refuses_delete BEFORE DELETE ON {table}{when} {refuse}")


def downgrade() -> None:
    refuses = "FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_audit_event()"
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER audit_event_keeps_rows ON audit_event")
        op.execute("DROP TRIGGER audit_event_is_append_only ON audit_event")
        op.execute("DROP FUNCTION refuse_to_delete_audit_event()")
        op.execute(
            "CREATE TRIGGER audit_event_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON"
            f" audit_event {refuses}"
        )
    else:
        op.execute("DROP TRIGGER audit_event_refuses_delete")
        op.execute(
            "CREATE TRIGGER audit_event_refuses_delete BEFORE DELETE ON audit_event"
            f" BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
        )
    op.drop_index(op.f("ix_audit_event_at"), "audit_event")
    for table in ("audit_link", "audit_anchor", "audit_check"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION refuse_to_delete_audit_link()")
