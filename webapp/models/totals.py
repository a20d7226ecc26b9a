"""How much each user has stored, counted by the database itself: triggers keep the totals correct
whatever statement inserts or deletes scans, even if an account is deleted with its scans. Updates
that would move a scan to another owner, study or time are refused.

Therefore an upload and the worklist read only one row, however many scans there are.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import DDL, BigInteger, ForeignKey, event, func, select
from sqlalchemy.orm import Mapped, mapped_column

from webapp.extensions import db
from webapp.models.scans import Scan


class ScanTotals(db.Model):
    """The totals of a user's scans; there is no row before the first scan.

    Attributes:
        scans: how many there are.
        studies: how many entries they form in the worklist: scans of one study share `study_id` and
            `created_at`.
        size: bytes of the originals.
    """

    user_id: Mapped[str] = mapped_column(
        ForeignKey("user.id", ondelete="CASCADE"), primary_key=True
    )
    scans: Mapped[int]
    studies: Mapped[int]
    size: Mapped[int] = mapped_column(BigInteger)


class Totals(NamedTuple):
    """The totals of a user's scans, as in `ScanTotals`."""

    scans: int
    studies: int
    size: int


def totals_of(user_id: str) -> Totals:
    """Return the totals of a user's scans."""
    columns = ScanTotals.scans, ScanTotals.studies, ScanTotals.size
    row = db.session.execute(select(*columns).where(ScanTotals.user_id == user_id)).one_or_none()
    return Totals(0, 0, 0) if row is None else Totals(*row)


def size_of_all() -> int:
    """Return the bytes of the originals of all scans."""
    return int(db.session.scalar(select(func.sum(ScanTotals.size))) or 0)


# Existing databases get the triggers from a migration, which has its own copy: a change here
# requires a new migration, too. A test compares what both create.
#
# A user's totals are locked before the scans of a study are counted, so that of two transactions
# that change the same study the second sees the changes of the first; always in the order of users.
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
    """
    CREATE TRIGGER scan_totals_before_update BEFORE UPDATE OF user_id, created_at, study_id ON scan
    WHEN (OLD.user_id, OLD.created_at, OLD.study_id)
        IS NOT (NEW.user_id, NEW.created_at, NEW.study_id)
    BEGIN SELECT RAISE(ABORT, 'the owner, the study and the time of a scan do not change'); END
    """,
)
# Both tables must exist.
ScanTotals.__table__.add_is_dependent_on(Scan.__table__)
for dialect, statements in (("postgresql", ON_POSTGRESQL), ("sqlite", ON_SQLITE)):
    for statement in statements:
        event.listen(
            ScanTotals.__table__,
            "after_create",
            DDL(statement).execute_if(dialect=dialect),  # type: ignore[no-untyped-call]
        )
