"""Generates requested reports: claims a row, stores the file, finishes the row.

Imported inside the functions are the modules that write PDF and DICOM: they take a second and 60
MB, which workers avoid until somebody requests a report.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import joinedload

from ml.scans.slices import BoolArray
from ml.scans.volume import read_masks
from webapp.extensions import db, utc_now
from webapp.models import Prediction, Report, ReportKind, ReportRefused, Scan
from webapp.review.opinions import opinions_of
from webapp.storage import StorageError, StorageUnavailable, storage
from worker import leases
from worker.heartbeat import heartbeat
from worker.retries import in_transaction, retry_storage
from worker.scan_files import fetch_original, is_passing, sentence_for

log = logging.getLogger(__name__)


def make_next_report() -> bool:
    """Claim one report and generate it; return False if none was queued. Only one at a time,
    because scans have priority.
    """
    mine = heartbeat()

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
            # The session may hold an outdated copy of the scan.
            .execution_options(populate_existing=True)
        )

    report = in_transaction(claim)
    if report is None:
        return False
    with mine.holding(Report, [report.id]):
        try:
            content, columns = make(report)
            for key, file in zip(report.file_keys, content, strict=True):
                retry_storage(lambda key=key, file=file: storage.put(key, file))  # type: ignore[misc]
        except StorageUnavailable:
            held = in_transaction(lambda: leases.hand_back(Report, mine.owner, [report.id]))
            return not held
        except ReportRefused as err:
            sentences = {report.id: str(err)}
            in_transaction(lambda: leases.fail(Report, mine.owner, sentences))
        except Exception as err:  # noqa: BLE001 - logged by `sentence_for`.
            sentences = {report.id: sentence_for(err, report)}
            end = leases.retry_after_storage_error if is_passing(err) else leases.fail
            in_transaction(lambda: end(Report, mine.owner, sentences))
        else:
            held = in_transaction(lambda: finished(report, **columns))
            if not held and not in_transaction(
                lambda: db.session.scalar(select(Report.id).where(Report.id == report.id))
            ):
                for key in report.file_keys:
                    storage.discard(key)  # The scan was deleted in the meantime.
    return True


def finished(report: Report, study_uid: str | None = None, **columns: str) -> frozenset[str]:
    """Mark a report as done, and record the study of its object as the scan's study."""
    held = leases.finish(Report, heartbeat().owner, [report.id], **columns)
    if held and study_uid is not None:
        unknown = (Scan.id == report.scan_id) & Scan.study_uid.is_(None)
        db.session.execute(
            update(Scan).where(unknown).values(study_uid=study_uid),
            execution_options={"synchronize_session": False},
        )
    return held


def make(report: Report) -> tuple[list[bytes], dict[str, str]]:
    """Return the content of all files of a report (`Report.file_keys`), and for a DICOM object the
    UIDs of its study and series (`study_uid`, `series_uid`).

    Raises:
        ReportRefused: the scan no longer has a result, or there is no such report for it.
        StorageError: its sources cannot be read.
    """
    scan, kind = report.scan, ReportKind(report.kind)
    if scan.prediction is None:
        raise ReportRefused("This scan no longer has a result.")
    from worker.reports.content import content_of

    if kind is ReportKind.PDF:
        from worker.reports.page import pdf_of

        return [pdf_of(content_of(scan, scan.prediction, opinions_of(scan)), utc_now())], {}
    from worker.reports.dicom_web import as_json, places_of, rendered

    served = (replaced["served"] for replaced in scan.replaces or () if replaced["served"])
    replaced = dict.fromkeys((series, instance) for series, instance in served)
    file = dicom_objects_of(scan, {kind: report.sop_instance_uid}, list(replaced))[kind]
    pictures = rendered(file) if kind is ReportKind.SECONDARY_CAPTURE else []
    return [file, as_json(file), *pictures], places_of(file)


def dicom_objects_of(
    scan: Scan, uids: Mapping[ReportKind, str], predecessors: Sequence[tuple[str, str]] = ()
) -> dict[ReportKind, bytes]:
    """Return objects for a DICOM archive as files, made from a scan with a result.

    Args:
        uids: the SOP instance UID of each kind of object to be made.
        predecessors: the series and instance UIDs of the structured reports that are replaced.

    Raises:
        ReportRefused: there is no such object for this scan.
        StorageError: their sources cannot be read.
    """
    from worker.reports.content import content_of
    from worker.reports.dicom_objects import secondary_capture, segmentation, structured_report
    from worker.reports.sources import read_headers

    if scan.prediction is None:
        raise ReportRefused("This scan no longer has a result.")
    content = content_of(scan, scan.prediction, opinions_of(scan))
    objects: dict[ReportKind, bytes] = {}
    with heartbeat().work_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of every odd value, and may quote it.
        headers = read_headers(fetch_original(scan, folder), scan.study_uid)
        for kind, uid in uids.items():
            if kind is ReportKind.STRUCTURED_REPORT:
                objects[kind] = structured_report(content, headers, uid, predecessors)
            elif kind is ReportKind.SECONDARY_CAPTURE:
                objects[kind] = secondary_capture(content, headers, uid)
            else:
                objects[kind] = segmentation(content, headers, outline_of(scan), uid)
    return objects


def can_be_segmented(scan: Scan, slices: int) -> bool:
    """Return whether the DICOM files of a scan state the position of each of its slices, so that a
    segmentation can refer to them. Unexpected headers prevent the segmentation, not the result.

    Raises:
        StorageError: they cannot be read.
    """
    from worker.reports.sources import located, read_headers

    with heartbeat().work_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        paths = fetch_original(scan, folder)
        try:
            return located(read_headers(paths), slices) is not None
        except Exception:
            log.exception("scan=%s has headers to which no segmentation can refer", scan.id)
            return False


def outline_of(scan: Scan) -> BoolArray:
    """Return the stored outline of a scan: bool (slices, height, width), upright, from inferior to
    superior.

    Raises:
        ReportRefused: nothing is outlined any more.
        StorageError: it cannot be read.
    """
    if (key := scan.outline_key) is None:
        raise ReportRefused("This scan no longer has an outline.")
    try:
        return read_masks(retry_storage(lambda: storage.get(key)))
    except ValueError as err:
        raise StorageError("A stored outline is damaged.") from err
