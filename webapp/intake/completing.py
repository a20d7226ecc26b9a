"""Handles series of which more arrives after they became scans: one scan with all slices replaces
the earlier ones, so that a series is one scan, however often and in however many parts it is sent.
"""

from __future__ import annotations

import hashlib
import hmac
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flask import current_app
from sqlalchemy import ColumnElement, Row, delete, select, update

from webapp.audit import record
from webapp.deletion import files_of
from webapp.extensions import database_now, db
from webapp.intake.dicom import meta_of
from webapp.intake.originals import PACKED
from webapp.intake.uids import NewUids
from webapp.models import (
    MORE_ARRIVED,
    Act,
    JobStatus,
    Opinion,
    Prediction,
    ReceivedScan,
    Report,
    ReportKind,
    ResultDelivery,
    Scan,
    Share,
    lead_on,
)
from webapp.models.learning import enter_successor
from webapp.storage import storage


class Changed(Exception):
    """A scan that was to be replaced has changed: it was replaced or deleted meanwhile, or its
    result is currently being sent.
    """


class NothingNew(Exception):
    """All slices that arrived are already in the scan of their series."""


def uids_of(user_id: str, way: str) -> NewUids:
    """Return the UID replacement for all studies that arrive for an account in the same way: a
    keyed hash of account and UID, which is the same whenever a study arrives.
    """
    key = str(current_app.config["SECRET_KEY"]).encode()
    return NewUids(hmac.digest(key, f"UIDs of {way}: {user_id}".encode(), hashlib.sha256))


def copies_of(key: str, folder: Path) -> list[tuple[str, Path]]:
    """Download the stored copies of the files of a DICOM scan to a new folder; return the instance
    UID ("" if it has none) and the path of each.

    Raises:
        StorageError: they cannot be read.
    """
    folder.mkdir()
    whole = folder / "original"
    storage.fetch(key, whole)
    paths = [whole]
    if key.endswith(PACKED):
        with zipfile.ZipFile(whole) as packed:
            paths = [Path(packed.extract(name, folder)) for name in packed.namelist()]
        whole.unlink()
    copies = []
    for path in paths:
        with path.open("rb") as content:
            meta = meta_of(content)
        copies.append((meta.sop_instance if meta else "", path))
    return copies


def take_place(scan: Scan, earlier: Collection[str]) -> list[str]:
    """Replace earlier scans that hold parts of its series by a new scan of the same owner, in the
    caller's transaction; return the storage keys of their files, to be discarded after the commit.

    Other users' work is preserved: a scan that is shared or has opinions is kept in addition to the
    new one. Unsent results of the earlier scans are no longer sent; the reports of the new scan
    refer to those that were sent (`Scan.replaces`).

    Raises:
        Changed: one of them is gone, or its result is currently being sent.
    """
    db.session.flush()
    columns = (Scan.id, Scan.study_id, Scan.slice_count, Scan.verdict_state, Scan.notes)
    rows = db.session.execute(
        select(*columns, Scan.replaces)
        .where(Scan.id.in_(earlier))
        .order_by(Scan.created_at, Scan.id)
        .with_for_update()
    ).all()
    if len(rows) < len(set(earlier)):
        raise Changed
    # First, so that no delivery begins after the check below.
    _send_no_more(earlier)
    of_earlier = ResultDelivery.scan_id.in_(earlier)
    is_sending = of_earlier & (ResultDelivery.status == JobStatus.RUNNING)
    if db.session.scalar(select(ResultDelivery.id).where(is_sending).limit(1)):
        raise Changed
    kept, documents = _of_others(earlier), _documents(earlier)
    scan.notes, scan.replaces = list(scan.notes or []), []
    for row in rows:
        sentence = _sentence(row, is_kept=row.id in kept)
        if row.id in kept:
            notes = list(dict.fromkeys([*(row.notes or []), MORE_ARRIVED]))
            _update(Scan, Scan.id == row.id, notes=notes)
        scan.notes = [*scan.notes, sentence]
        item = {"sentence": sentence, **documents[row.id]}
        scan.replaces = [*scan.replaces, *(row.replaces or []), item]
        detail = f"{row.slice_count} slices into {scan.slice_count}"
        record(Act.SCANS_JOINED, row.id, actor_id=scan.user_id, detail=detail)
        record(Act.SCANS_JOINED, scan.id, actor_id=scan.user_id, detail=detail)
    enter_successor({row.study_id for row in rows} - {scan.study_id}, scan.id, scan.study_id)
    lead_on(set(earlier), scan.id)
    gone = Scan.id.in_(set(earlier) - kept)
    keys = files_of(gone)
    db.session.execute(delete(Scan).where(gone), execution_options={"synchronize_session": False})
    return keys


def _sentence(scan: Row[Any], *, is_kept: bool) -> str:
    slices = f"{scan.slice_count} {'slice' if scan.slice_count == 1 else 'slices'}"
    about = f"an earlier scan of {slices} of this series"
    if scan.verdict_state:
        about += f" (result: {scan.verdict_state})"
    if is_kept:
        return f"There is {about}, which is kept because it is shared or has opinions."
    return f"Replaces {about}; the series was completed or sent again."


def _of_others(scan_ids: Collection[str]) -> set[str]:
    """Return those of these scans that have opinions or are shared."""
    with_opinions = select(Opinion.scan_id).where(Opinion.scan_id.in_(scan_ids))
    shared = select(Share.scan_id).where(Share.scan_id.in_(scan_ids))
    return {*db.session.scalars(with_opinions), *db.session.scalars(shared)}


def _send_no_more(scan_ids: Collection[str]) -> None:
    """Cancel the waiting and failed results of these scans, and delete their links."""
    unsent = ResultDelivery.status.in_((JobStatus.QUEUED, JobStatus.FAILED))
    _update(
        ResultDelivery,
        ResultDelivery.scan_id.in_(scan_ids) & unsent,
        status=JobStatus.CANCELLED,
        finished_at=database_now(),
    )
    _update(ReceivedScan, ReceivedScan.scan_id.in_(scan_ids), sealed_link=None)


def _documents(scan_ids: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return, by scan, the structured reports that others may have, as in `Scan.replaces`."""
    documents: dict[str, dict[str, Any]] = {
        each: {"sent": None, "served": None} for each in scan_ids
    }
    # A delivery that started before the current prediction sent an earlier one.
    was_sent = (
        (ResultDelivery.status == JobStatus.DONE)
        & ResultDelivery.sent.contains(ReportKind.STRUCTURED_REPORT.value)
        & (ResultDelivery.finished_at >= Prediction.created_at)
    )
    sent = (
        select(Prediction.scan_id, Prediction.id)
        .join(ResultDelivery, ResultDelivery.scan_id == Prediction.scan_id)
        .where(Prediction.scan_id.in_(scan_ids), was_sent)
    )
    for scan_id, prediction_id in db.session.execute(sent):
        documents[scan_id]["sent"] = prediction_id
    is_report = Report.scan_id.in_(scan_ids) & (Report.kind == ReportKind.STRUCTURED_REPORT)
    for report in db.session.scalars(
        select(Report).where(is_report, Report.series_uid.is_not(None))
    ):
        documents[report.scan_id]["served"] = [report.series_uid, report.sop_instance_uid]
    return documents


def _update(table: type[Any], which: ColumnElement[bool], **values: Any) -> None:
    db.session.execute(
        update(table).where(which).values(**values),
        execution_options={"synchronize_session": False},
    )
