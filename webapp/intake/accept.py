"""Accepts uploads: their files become series (`webapp.intake.sorting`), which are stored and queued
as rows.

No pixel is decoded here; workers do that. So a damaged image with an intact header becomes a scan
that fails with an error message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from flask import current_app
from sqlalchemy import select
from werkzeug.datastructures import FileStorage

from webapp.audit import record
from webapp.extensions import db, utc_now
from webapp.forms import MAX_TITLE, text_problem
from webapp.intake.choices import NOTHING_CHOSEN, Choices
from webapp.intake.clean_copy import QuotaReached, UploadRejected
from webapp.intake.originals import PACKED, SUFFIXES, disk_has_room, store_series
from webapp.intake.series import SeriesFiles, study_of
from webapp.intake.sorting import SortedFiles, sort_files
from webapp.intake.spool import incoming_folder
from webapp.intake.titles import titles_of, unique_titles, untitled_number
from webapp.intake.uids import NewUids
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import IN_ITS_TURN, Act, Scan, new_id, urgent_room
from webapp.models.accounts import lock_person
from webapp.rates import per_person
from webapp.space import quota_problem, require_cap, require_space
from webapp.storage import storage

log = logging.getLogger(__name__)

LONGEST_DROP = timedelta(hours=1)
"""If a drop began longer ago than this, its uploads count as submitted when they arrive."""
MOST_OF_DROP = timedelta(seconds=20)
"""The uploads of one drop count as submitted within this time."""
SENT_TOGETHER = 16
"""More uploads of one drop than this are not sent at the same time (static/submit.js sends 3)."""
NEWEST_TITLES = 1000
"""How many of a user's newest scans are looked at for the number of the next untitled one."""

within_rate = per_person(
    lambda: f"{current_app.config['UPLOADS_PER_MINUTE']} per minute", "uploads"
)
"""Decorates the views that accept uploads."""


@dataclass(frozen=True)
class Receipt:
    """The outcome of an upload.

    Attributes:
        scans: the scans that were queued.
        refused: why a file was left out, by its position in the upload, from 0; for files in
            archives, the scans' notes say so instead.
        reachable: whether a worker could be notified at once.
    """

    scans: list[Scan]
    refused: dict[int, str]
    reachable: bool


def accept_upload(
    user_id: str,
    files: Sequence[FileStorage],
    title: str = "",
    choices: Choices = NOTHING_CHOSEN,
    require_access: Callable[[], None] = lambda: None,
    *,
    uids: NewUids | None = None,
    before_commit: Callable[[Sequence[Scan], Sequence[SeriesFiles]], None] = lambda *_: None,
) -> Receipt:
    """Store the files as queued scans of this user, each series as one, and notify a predict
    worker.

    If nothing in an upload can be read, or too much of it is damaged, nothing is stored.

    One function, because files and rows are stored together or not at all: whatever fails on the
    way, one place reverts both.

    Args:
        title: the title of the scans; several scans get the number of their series in addition.
        require_access: called when all files are stored, before the commit; raises if the user's
            access has ended, because an upload may take minutes.
        uids: generates the UIDs of the stored copies.
        before_commit: called with the new rows, and the files of each, in their transaction.

    Raises:
        UploadRejected: a file or the title is not accepted, or the account is deleted or disabled;
            a `NothingTaken` if each file is reported and none is accepted.
        StorageError: a file could not be stored; a `StorageFull` if there is no room, or all scans
            together have reached their quota.
    """
    title = title.strip()
    problem = text_problem(title, MAX_TITLE)
    if problem:
        raise UploadRejected(f"Invalid title. {problem}")
    _require_files(files)
    require_room(user_id)
    require_space(0)
    require_cap()
    # No transaction (on SQLite: write lock) is open while files are read and stored.
    db.session.commit()
    scans: list[Scan] = []
    with disk_has_room(), TemporaryDirectory(dir=incoming_folder()) as folder:
        accepted = sort_files(files, Path(folder), choices, uids or NewUids())
        try:
            for scan, series_files in zip(
                _rows(user_id, title, accepted, choices), accepted.series, strict=True
            ):
                scans.append(scan)
                scan.size = store_series(scan.original_key, series_files)
            if lock_person(user_id) is None:
                raise UploadRejected("This account has been deleted or disabled.")
            require_access()
            # Checked again now that the user's other uploads wait for this one to be committed.
            may_be_stat = urgent_room(user_id)
            require_room(user_id, sum(scan.size for scan in scans))
            _tell_apart(scans, choices)
            for scan in scans[may_be_stat:] if choices.stat else []:
                scan.stat, scan.notes = False, [*(scan.notes or []), IN_ITS_TURN]
            db.session.add_all(scans)
            for scan in scans:
                record(Act.SCAN_SUBMITTED, scan.id, actor_id=user_id)
            before_commit(scans, accepted.series)
            db.session.commit()
        except BaseException:
            db.session.rollback()
            for scan in scans:
                storage.delete(scan.original_key)
            raise
    log.info(
        "scans=%s accepted",
        ",".join(scan.id for scan in scans),
        extra={"scan_ids": [scan.id for scan in scans]},
    )
    return Receipt(scans, accepted.refused, nudge(PREDICT_SCANS))


def _rows(user_id: str, title: str, accepted: SortedFiles, choices: Choices) -> list[Scan]:
    """Return the rows of an upload's scans, whose files are still to be stored under their
    `original_key`.

    The series of a study share the time of submission. Studies are microseconds apart, so that the
    worklist shows them in the order of their folders, whichever of several uploads arrived first.
    """
    now = utc_now()
    gets_dicom_results = choices.dicom_results or current_app.config["DICOM_RESULTS"] == "all"
    dropped_at = choices.dropped_at or now
    if not now - LONGEST_DROP <= dropped_at <= now:
        dropped_at = now
    keys = [
        study_of(series, place, choices.studies) for place, series in enumerate(accepted.series)
    ]
    places = {study: place for place, study in enumerate(dict.fromkeys(keys))}
    ids = {study: new_id() for study in places}
    before = choices.number * current_app.config["MAX_FILES_PER_UPLOAD"]
    titles = titles_of(
        accepted.series, keys, title, number=choices.number, keep_names=choices.keep_names
    )
    scans = []
    for series, study, name, study_uid in zip(
        accepted.series, keys, titles, accepted.study_uids, strict=True
    ):
        scan_id, kind = new_id(), series.files[0].kind
        suffix = PACKED if len(series.files) > 1 else SUFFIXES[kind]
        scan = Scan(
            id=scan_id,
            user_id=user_id,
            study_id=ids[study],
            title=name,
            kind=kind,
            slice_count=series.slice_count,
            stat=choices.stat,
            uncut=choices.uncut,
            study_uid=study_uid,
            dicom_results=kind == "dicom" and gets_dicom_results,
            notes=[*accepted.notes, *series.notes],
            original_key=f"originals/{scan_id}{suffix}",
            created_at=dropped_at - timedelta(microseconds=before + places[study]),
            queued_at=now + timedelta(microseconds=places[study]),
        )
        scans.append(scan)
    return scans


def number_untitled(scans: Sequence[Scan]) -> None:
    """Give a user's new scans without a title one, "Scan 12": file names would identify patients,
    and many scans called "Untitled" cannot be told apart.
    """
    untitled = [scan for scan in scans if not scan.title]
    if not untitled:
        return
    newest = (
        select(Scan.title)
        .where(Scan.user_id == untitled[0].user_id)
        .order_by(Scan.created_at.desc())
        .limit(NEWEST_TITLES)
    )
    for number, scan in enumerate(untitled, untitled_number(db.session.scalars(newest))):
        scan.title = f"Scan {number}"


def _tell_apart(scans: Sequence[Scan], choices: Choices) -> None:
    """Number scans without a title, and titles that other uploads of the same drop have, too."""
    number_untitled(scans)
    if not choices.number:
        return
    theirs = select(Scan.title).where(
        Scan.user_id == scans[0].user_id, Scan.created_at.between(*_times_of_drop(scans, choices))
    )
    titles = unique_titles(
        [scan.title for scan in scans], db.session.scalars(theirs), choices.number
    )
    for scan, title in zip(scans, titles, strict=True):
        scan.title = title


def _times_of_drop(scans: Sequence[Scan], choices: Choices) -> tuple[datetime, datetime]:
    """Return the times between which the scans of this drop count as submitted (`_rows`).

    A drop has uploads up to the number of this one and a few that were sent at the same time, so
    another drop some seconds earlier is not taken for this one.
    """
    newest = max(scan.created_at for scan in scans)
    upload = timedelta(microseconds=current_app.config["MAX_FILES_PER_UPLOAD"])
    end = newest + choices.number * upload
    if end != choices.dropped_at:  # The time of the drop was not accepted.
        return newest - MOST_OF_DROP, newest + MOST_OF_DROP
    return end - min((choices.number + SENT_TOGETHER) * upload, MOST_OF_DROP), end


def _require_files(files: Sequence[FileStorage]) -> None:
    most = current_app.config["MAX_FILES_PER_UPLOAD"]
    if not files:
        raise UploadRejected("The upload contains no files.")
    if len(files) > most:
        raise UploadRejected(
            f"The upload has {len(files)} files; at most {most} are accepted per upload."
        )


def require_room(user_id: str, more: int = 0) -> None:
    """Refuse `more` bytes of a user whose scans have reached the quota.

    Raises:
        QuotaReached: they have.
    """
    if problem := quota_problem(user_id, more):
        raise QuotaReached(problem)
