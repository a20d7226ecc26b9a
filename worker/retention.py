"""Hourly cleanup: deletes scans and originals whose retention has expired, then orphaned files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from flask import Flask, current_app
from sqlalchemy import ColumnElement, delete, select, update

from webapp.deletion import delete_scans
from webapp.extensions import database_now, db, forget_deleted
from webapp.models import JobStatus, Report, ReportKind, Scan
from webapp.models.reports import KEPT_S, file_key
from webapp.storage import storage
from worker.deliveries import remove_old_notifications
from worker.orphaned_files import remove_orphans
from worker.retries import in_transaction

log = logging.getLogger(__name__)

AT_ONCE = 200
"""Scans per transaction, which then holds SQLite's write lock for milliseconds."""
DAY_S = 24 * 3600

_tidying = threading.Lock()


def tidy_meanwhile(app: Flask) -> None:
    """Tidy in a thread, so that no sweep waits for a slow storage; not while that is going on
    already.
    """

    def tidy() -> None:
        with _tidying, app.app_context():
            for remove in (
                remove_expired,
                remove_old_reports,
                remove_old_notifications,
                remove_orphans,
            ):
                try:
                    remove()
                # The others are not to suffer from it; all are tried again in an hour.
                except Exception:
                    db.session.rollback()
                    log.exception("%s failed", remove.__name__)

    if not _tidying.locked():
        threading.Thread(target=tidy, name="tidies", daemon=True).start()


def remove_expired() -> None:
    """Remove what ended longer ago than `KEEP_SCANS_DAYS` and `KEEP_ORIGINALS_DAYS`; any number of
    processes may do so at once.

    A scan that waits or is read is never touched, however old.
    """
    removals: dict[str, Callable[[ColumnElement[bool]], int]] = {
        "KEEP_SCANS_DAYS": remove_scans,
        "KEEP_ORIGINALS_DAYS": remove_originals,
    }
    for setting, remove in removals.items():
        days = current_app.config[setting]
        if not days:
            continue
        before = database_now(-days * DAY_S)
        ended = Scan.status.in_([status for status in JobStatus if status.is_final])
        total = 0
        # The index knows since when a scan waited, which was before it ended.
        while removed := remove(ended & (Scan.queued_at < before) & (Scan.finished_at < before)):
            total += removed
        if total:
            forget_deleted()
            log.info("scans=%d deleted after %d days (%s)", total, days, setting)


def remove_old_reports() -> None:
    """Delete reports that were made `KEPT_S` ago, with their files."""
    ended = Report.status.in_([status for status in JobStatus if status.is_final])
    old = ended & (Report.finished_at < database_now(-KEPT_S))
    reports = in_transaction(
        lambda: db.session.execute(
            delete(Report).where(old).returning(Report.id, Report.kind)
        ).all()
    )
    for report in reports:
        storage.discard(file_key(report.id, ReportKind(report.kind)))


def remove_scans(which: ColumnElement[bool]) -> int:
    """Delete some of these scans with all that was made of them; return how many."""
    return delete_scans(which, AT_ONCE)


def remove_originals(which: ColumnElement[bool]) -> int:
    """Remove some of these scans' submitted files, after their rows say so; return how many."""
    some = (
        select(Scan.id)
        .where(which, Scan.original_removed_at.is_(None))
        .limit(AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    keys = in_transaction(
        lambda: db.session.scalars(
            update(Scan)
            .where(Scan.id.in_(some))
            .values(original_removed_at=database_now(), size=0)
            .returning(Scan.original_key),
            execution_options={"synchronize_session": False},
        ).all()
    )
    for key in keys:
        storage.discard(key)
    return len(keys)
