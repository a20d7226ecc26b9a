"""Makes the reports that people ask for: row, then file, then row."""

from __future__ import annotations

import logging
import warnings

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from ml.scans.slices import BoolArray
from ml.scans.volume import read_masks
from webapp.extensions import db, utc_now
from webapp.models import Prediction, Report, ReportKind, ReportRefused, Scan
from webapp.opinions import opinions_of
from webapp.storage import StorageAway, StorageError, storage
from worker import leases
from worker.heartbeat import presence
from worker.retries import in_transaction, retry_storage
from worker.scan_files import fetch_original, is_passing, sentence_for

log = logging.getLogger(__name__)


def make_next_report() -> bool:
    """Claim one report and make it; return False if none was queued. Only one at a time, because
    scans have priority.
    """
    mine = presence()

    def claim() -> Report | None:
        claimed = leases.claim(Report, mine.owner, after=mine.last_reported_for)
        if not claimed:
            return None
        mine.last_reported_for = claimed[0].user_id
        with_result = joinedload(Report.scan).joinedload(Scan.prediction)
        return db.session.scalar(
            select(Report)
            .where(Report.id == claimed[0].id)
            .options(
                with_result.joinedload(Prediction.model_version),
                with_result.joinedload(Prediction.heatmap),
            )
            # This session may hold the scan as it was when it was answered.
            .execution_options(populate_existing=True)
        )

    report = in_transaction(claim)
    if report is None:
        return False
    with mine.holding(Report, [report.id]):
        try:
            content = made(report)
            retry_storage(lambda: storage.put(report.file_key, content))
        except StorageAway:
            held = in_transaction(lambda: leases.hand_back(Report, mine.owner, [report.id]))
            return not held
        except ReportRefused as err:
            sentences = {report.id: str(err)}
            in_transaction(lambda: leases.fail(Report, mine.owner, sentences))
        except Exception as err:  # noqa: BLE001 - logged by `sentence_for`.
            sentences = {report.id: sentence_for(err, report)}
            end = leases.refuse if is_passing(err) else leases.fail
            in_transaction(lambda: end(Report, mine.owner, sentences))
        else:
            held = in_transaction(lambda: leases.finish(Report, mine.owner, [report.id]))
            if not held and not in_transaction(
                lambda: db.session.scalar(select(Report.id).where(Report.id == report.id))
            ):
                storage.discard(report.file_key)  # The scan was deleted in the meantime.
    return True


def made(report: Report) -> bytes:
    """Return the content of a report's file.

    Raises:
        ReportRefused: the scan has no result any more, or there is no such report of it.
        StorageError: what it is made from cannot be read.
    """
    scan, kind = report.scan, ReportKind(report.kind)
    if scan.prediction is None:
        raise ReportRefused("This scan has no result any more.")
    # Imported here because they take a second and 60 MB, which workers do without until somebody
    # asks for a report.
    from worker.reports.content import content_of

    content = content_of(scan, scan.prediction, opinions_of(scan))
    if kind is ReportKind.PDF:
        from worker.reports.page import pdf_of

        return pdf_of(content, utc_now())
    from worker.reports.dicom_objects import (
        secondary_capture,
        segmentation,
        structured_report,
        uid_of,
    )
    from worker.reports.sources import read_headers

    uid = uid_of(report.id)
    with presence().work_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of every odd value, and may quote it.
        headers = read_headers(fetch_original(scan, folder))
        if kind is ReportKind.SEGMENTATION:
            return segmentation(content, headers, outline_of(scan), uid)
        make = structured_report if kind is ReportKind.STRUCTURED_REPORT else secondary_capture
        return make(content, headers, uid)


def outline_of(scan: Scan) -> BoolArray:
    """Return the stored outline of a scan: bool (slices, height, width), upright, from foot to
    head.

    Raises:
        ReportRefused: nothing is outlined any more.
        StorageError: it cannot be read.
    """
    if (key := scan.outline_key) is None:
        raise ReportRefused("This scan has no outline any more.")
    try:
        return read_masks(retry_storage(lambda: storage.get(key)))
    except ValueError as err:
        raise StorageError("A stored outline is damaged.") from err
