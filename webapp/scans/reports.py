"""Reports of a scan, for the pages and the API: queued for a worker, waited for, sent."""

from __future__ import annotations

import time

from flask import Response, abort
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import joinedload

from webapp.audit import record
from webapp.extensions import db
from webapp.forms import is_id
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    Act,
    Report,
    ReportKind,
    ReportRefused,
    Scan,
    ask_for_report,
)
from webapp.rates import per_person
from webapp.scans.pictures import private_response
from webapp.storage import storage

WAIT_S = 2.0
"""How long a request waits for a report; most are ready within a second."""
LOOK_S = 0.1
NO_SUCH_REPORT = "This report no longer exists. Please request it again."
within_report_rate = per_person("60 per minute", "reports")
"""Decorates views that request reports."""


def queue_report(scan_id: str, is_allowed: ColumnElement[bool], kind: str) -> Report:
    """Queue a report of a scan that the user may see, commit and notify a worker; return the
    report.

    Raises:
        NotFound: there is no such scan for this user, or no such kind of report.
        ReportRefused: it is refused; the message says why.
    """
    scan = is_id(scan_id) and db.session.scalar(
        select(Scan).where(Scan.id == scan_id, is_allowed).options(joinedload(Scan.prediction))
    )
    if not scan:
        abort(404, "Scan not found.")
    try:
        report, replaced = ask_for_report(scan, _known_kind(kind))
    except ReportRefused:
        db.session.rollback()
        raise
    record(Act.REPORT_ASKED_FOR, scan.id, detail=kind)
    db.session.commit()
    for key in replaced:
        storage.discard(key)
    nudge(PREDICT_SCANS)  # If the broker is unreachable, the next sweep does.
    return report


def finished_report(scan_id: str, is_allowed: ColumnElement[bool], kind: str) -> Report | None:
    """Wait up to `WAIT_S` for a report of a scan that the user may see; return its state then, or
    None if nobody requested it or it has expired.

    Raises:
        NotFound: there is no such scan for this user, or no such kind of report.
    """
    known = _known_kind(kind)
    if not is_id(scan_id) or not db.session.scalar(
        select(Scan.id).where(Scan.id == scan_id, is_allowed)
    ):
        abort(404, "Scan not found.")
    find = (
        select(Report)
        .where(Report.scan_id == scan_id, Report.kind == known)
        .execution_options(populate_existing=True)
    )
    give_up_at = time.monotonic() + WAIT_S
    while True:
        report = db.session.scalar(find)
        # No transaction is open while this request waits; objects read before are not refreshed.
        db.session.commit()
        if report is None or report.status.is_final or time.monotonic() >= give_up_at:
            return report
        time.sleep(LOOK_S)


def report_file(report: Report) -> Response:
    """Return the file of a finished report."""
    key, kind = report.file_key, ReportKind(report.kind)
    answer = private_response(kind.media_type, key, lambda: storage.get(key))
    answer.headers.set("Content-Disposition", "attachment", filename=report.file_name)
    return answer


def _known_kind(kind: str) -> ReportKind:
    try:
        return ReportKind(kind)
    except ValueError:
        abort(404, "There is no such report.")
