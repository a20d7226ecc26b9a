"""A scan's owner, study and time are immutable, because the totals are counted by them

Revision ID: 91b4c6e07d2f
Revises: 5d8e2b71c9f4
Created: 2026-11-30 07:00:00
"""

from alembic import op

revision = "91b4c6e07d2f"
down_revision = "5d8e2b71c9f4"
branch_labels = None
depends_on = None

# Copied from `webapp.models.totals` at this revision: a migration does not change with the models.
ON_POSTGRESQL = (
    """
    CREATE FUNCTION refuse_to_move_scan() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'the owner, the study and the time of a scan do not change'
            USING ERRCODE = 'integrity_constraint_violation';
    END $$
    """,
    """
    CREATE TRIGGER scan_totals_before_update BEFORE UPDATE OF user_id, created_at, study_id ON scan
    FOR EACH ROW WHEN ((OLD.user_id, OLD.created_at, OLD.study_id)
        IS DISTINCT FROM (NEW.user_id, NEW.created_at, NEW.study_id))
    EXECUTE FUNCTION refuse_to_move_scan()
    """,
)
ON_SQLITE = (
    """
    CREATE TRIGGER scan_totals_before_update BEFORE UPDATE OF user_id, created_at, study_id ON scan
    WHEN (OLD.user_id, OLD.created_at, OLD.study_id)
        IS NOT (NEW.user_id, NEW.created_at, NEW.study_id)
    BEGIN SELECT RAISE(ABORT, 'the owner, the study and the time of a scan do not change'); END
    """,
)


def upgrade() -> None:
    """Refuse changes to the columns that the totals are counted by."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    for statement in ON_POSTGRESQL if is_postgresql else ON_SQLITE:
        op.execute(statement)


def downgrade() -> None:
    """Allow such changes."""
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    op.execute(f"DROP TRIGGER scan_totals_before_update{' ON scan' if is_postgresql else ''}")
    if is_postgresql:
        op.execute("DROP FUNCTION refuse_to_move_scan()")
