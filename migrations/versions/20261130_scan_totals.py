"""Triggers count each user's scans, studies and bytes; an index covers the scans that are not
finished

Revision ID: 5d8e2b71c9f4
Revises: 6c3e8a71f0d4
Created: 2026-11-30 02:00:00
"""

import sqlalchemy as sa
from alembic import op

revision = "5d8e2b71c9f4"
down_revision = "6c3e8a71f0d4"
branch_labels = None
depends_on = None

# Copied from `webapp.models.totals` at this revision: a migration does not change with the models.
ON_POSTGRESQL = (
    """
    CREATE FUNCTION count_scans() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'UPDATE' THEN
            UPDATE scan_totals SET size = size - OLD.size + NEW.size WHERE user_id = NEW.user_id;
        ELSIF TG_OP = 'INSERT' THEN
            INSERT INTO scan_totals (user_id, scans, studies, size)
                SELECT DISTINCT user_id, 0, 0, 0 FROM changed ORDER BY user_id
                ON CONFLICT DO NOTHING;
            PERFORM 1 FROM scan_totals WHERE user_id IN (SELECT user_id FROM changed)
                ORDER BY user_id FOR UPDATE;
            UPDATE scan_totals SET scans = scan_totals.scans + more.scans,
                studies = scan_totals.studies + more.studies, size = scan_totals.size + more.size
            FROM (
                SELECT user_id, sum(scans) AS scans, sum(size) AS size,
                    count(*) FILTER (WHERE scans = stored) AS studies
                FROM (
                    SELECT user_id, count(*) AS scans, sum(size) AS size, (
                        SELECT count(*) FROM scan WHERE scan.user_id = changed.user_id
                            AND scan.created_at = changed.created_at
                            AND scan.study_id = changed.study_id
                    ) AS stored
                    FROM changed GROUP BY user_id, created_at, study_id
                ) AS of_study GROUP BY user_id
            ) AS more WHERE more.user_id = scan_totals.user_id;
        ELSE
            PERFORM 1 FROM scan_totals WHERE user_id IN (SELECT user_id FROM changed)
                ORDER BY user_id FOR UPDATE;
            UPDATE scan_totals SET scans = scan_totals.scans - less.scans,
                studies = scan_totals.studies - less.studies, size = scan_totals.size - less.size
            FROM (
                SELECT user_id, sum(scans) AS scans, sum(size) AS size,
                    count(*) FILTER (WHERE NOT is_stored) AS studies
                FROM (
                    SELECT user_id, count(*) AS scans, sum(size) AS size, EXISTS (
                        SELECT 1 FROM scan WHERE scan.user_id = changed.user_id
                            AND scan.created_at = changed.created_at
                            AND scan.study_id = changed.study_id
                    ) AS is_stored
                    FROM changed GROUP BY user_id, created_at, study_id
                ) AS of_study GROUP BY user_id
            ) AS less WHERE less.user_id = scan_totals.user_id;
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER scan_totals_after_insert AFTER INSERT ON scan
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_scans()
    """,
    """
    CREATE TRIGGER scan_totals_after_delete AFTER DELETE ON scan
    REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION count_scans()
    """,
    """
    CREATE TRIGGER scan_totals_after_update AFTER UPDATE OF size ON scan
    FOR EACH ROW WHEN (OLD.size <> NEW.size) EXECUTE FUNCTION count_scans()
    """,
)
ON_SQLITE = (
    """
    CREATE TRIGGER scan_totals_after_insert AFTER INSERT ON scan BEGIN
        INSERT INTO scan_totals (user_id, scans, studies, size)
        VALUES (NEW.user_id, 1, NOT EXISTS (
            SELECT 1 FROM scan WHERE user_id = NEW.user_id AND created_at = NEW.created_at
                AND study_id = NEW.study_id AND id <> NEW.id
        ), NEW.size)
        ON CONFLICT (user_id) DO UPDATE SET scans = scans + 1,
            studies = studies + excluded.studies, size = size + excluded.size;
    END
    """,
    """
    CREATE TRIGGER scan_totals_after_delete AFTER DELETE ON scan BEGIN
        UPDATE scan_totals SET scans = scans - 1, size = size - OLD.size,
            studies = studies - NOT EXISTS (
                SELECT 1 FROM scan WHERE user_id = OLD.user_id AND created_at = OLD.created_at
                    AND study_id = OLD.study_id
            )
        WHERE user_id = OLD.user_id;
    END
    """,
    """
    CREATE TRIGGER scan_totals_after_update AFTER UPDATE OF size ON scan BEGIN
        UPDATE scan_totals SET size = size - OLD.size + NEW.size WHERE user_id = NEW.user_id;
    END
    """,
)


def upgrade() -> None:
    """Count the existing rows, after the triggers, whose creation locks PostgreSQL's table against
    new rows.
    """
    op.create_table(
        "scan_totals",
        sa.Column("user_id", sa.String(length=32), nullable=False),
        sa.Column("scans", sa.Integer(), nullable=False),
        sa.Column("studies", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["user.id"], name=op.f("fk_scan_totals_user_id_user"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("pk_scan_totals")),
    )
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    for statement in ON_POSTGRESQL if is_postgresql else ON_SQLITE:
        op.execute(statement)
    op.execute(
        "INSERT INTO scan_totals (user_id, scans, studies, size)"
        " SELECT user_id, sum(scans), count(*), sum(size) FROM (SELECT user_id, count(*) AS scans,"
        " sum(size) AS size FROM scan GROUP BY user_id, created_at, study_id) AS of_study"
        " GROUP BY user_id"
    )
    is_open = sa.text("finished_at IS NULL")
    op.create_index(
        "ix_scan_open",
        "scan",
        ["user_id", "stat", "status"],
        postgresql_where=is_open,
        sqlite_where=is_open,
    )
    op.drop_index("ix_scan_stored", "scan")


def downgrade() -> None:
    """Remove the totals and their triggers; sums are computed from an index again."""
    op.create_index("ix_scan_stored", "scan", ["user_id", "size"])
    op.drop_index("ix_scan_open", "scan")
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    for change in ("insert", "delete", "update"):
        of_table = " ON scan" if is_postgresql else ""
        op.execute(f"DROP TRIGGER scan_totals_after_{change}{of_table}")
    if is_postgresql:
        op.execute("DROP FUNCTION count_scans()")
    op.drop_table("scan_totals")
