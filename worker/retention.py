"""Hourly cleanup: deletes scans and originals whose retention has expired, then orphaned files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from flask import Flask, current_app
from sqlalchemy import ColumnElement, delete, select, update

from webapp.audit_chain import seal, trim, verify_and_note
from webapp.deletion import delete_scans
from webapp.extensions import LARGEST_INTEGER, database_now, db, forget_deleted
from webapp.models import ApiToken, IdempotentRequest, JobStatus, Report, ReportKind, Scan
from webapp.models.idempotency import KEEP_H
from webapp.models.reports import KEEP_S, file_keys, is_kept
from webapp.storage import storage
from worker.orphaned_files import remove_orphans
from worker.retries import in_transaction
from worker.sending.notifications import remove_old_notifications
from worker.sending.results import remove_old_deliveries

log = logging.getLogger(__name__)

AT_ONCE = 200
"""Scans per transaction, which then holds SQLite's write lock for milliseconds."""
DAY_S = 24 * 3600
EXPIRED_TOKENS_DAYS = 30

_cleaning_up = threading.Lock()


def clean_up_in_background(app: Flask) -> None:
    """Clean up in a thread, so that no sweep waits for a slow storage, unless a cleanup is already
    in progress.
    """

    def clean_up() -> None:
        with _cleaning_up, app.app_context():
            for remove in (
                remove_expired,
                remove_old_reports,
                remove_old_answers,
                remove_expired_tokens,
                remove_old_notifications,
                remove_old_deliveries,
                remove_orphans,
                keep_audit_log,
            ):
                try:
                    remove()
                # A failure must not affect the other steps; all are retried in an hour.
                except Exception:
                    db.session.rollback()
                    log.exception("%s failed", remove.__name__)

    if not _cleaning_up.locked():
        threading.Thread(target=clean_up, name="clean-up", daemon=True).start()


def remove_expired() -> None:
    """Delete what ended longer ago than `KEEP_SCANS_DAYS` and `KEEP_ORIGINALS_DAYS`; any number of
    processes may do this at the same time.

    A scan that is waiting or being analyzed is never touched, however old.
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
        # The index has the time of queueing, which is before the end.
        while removed := remove(ended & (Scan.queued_at < before) & (Scan.finished_at < before)):
            total += removed
        if total:
            forget_deleted()
            log.info("scans=%d deleted after %d days (%s)", total, days, setting)


def remove_old_reports() -> None:
    """Delete reports that were generated `KEEP_S` ago, with their files, except those that are kept
    with their scan.
    """
    ended = Report.status.in_([status for status in JobStatus if status.is_final])
    old = ended & (Report.finished_at < database_now(-KEEP_S)) & ~is_kept()
    reports = in_transaction(
        lambda: db.session.execute(
            delete(Report).where(old).returning(Report.id, Report.kind)
        ).all()
    )
    for report in reports:
        for key in file_keys(report.id, ReportKind(report.kind)):
            storage.discard(key)


def remove_old_answers() -> None:
    """Delete expired responses to requests with an `Idempotency-Key`."""
    old = IdempotentRequest.created_at < database_now(-KEEP_H * 3600)
    in_transaction(lambda: db.session.execute(delete(IdempotentRequest).where(old)))


def remove_expired_tokens() -> None:
    """Delete API tokens that expired `EXPIRED_TOKENS_DAYS` ago; until then their owners can see why
    their scripts stopped working.
    """
    old = ApiToken.expires_at < database_now(-EXPIRED_TOKENS_DAYS * DAY_S)
    in_transaction(lambda: db.session.execute(delete(ApiToken).where(old)))


def keep_audit_log() -> None:
    """Verify the audit log, and trim it after `KEEP_AUDIT_DAYS`; a broken log is not trimmed,
    because that might remove the break and with it the alarm.
    """
    in_transaction(lambda: seal(LARGEST_INTEGER))
    verification = in_transaction(verify_and_note)
    days = current_app.config["KEEP_AUDIT_DAYS"]
    if days and verification.problem is None and (trimmed := trim(days)):
        log.info("events=%d trimmed from the audit log after %d days", trimmed, days)
        in_transaction(verify_and_note)


def remove_scans(which: ColumnElement[bool]) -> int:
    """Delete some of these scans with everything derived from them; return how many."""
    return delete_scans(which, AT_ONCE)


def remove_originals(which: ColumnElement[bool]) -> int:
    """Delete some of these scans' submitted files, after recording that in their rows; return how
    many.
    """
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
