"""Studies that arrive in several requests: new scans wait for a while, and the next request for the
same study includes their files, so that each series becomes one scan. If more of a series arrives
after its analysis, one new scan replaces the earlier ones (`webapp.intake.completing`).

UIDs of a study are replaced by a keyed hash of account and UID, the same in each request, so no
mapping has to be stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from flask import current_app
from sqlalchemy import Select, delete, or_, select, update
from werkzeug.datastructures import FileStorage

from webapp.audit import record
from webapp.extensions import database_now, db
from webapp.intake import NewUids
from webapp.intake.completing import Changed, NothingNew, copies_of, take_place
from webapp.intake.dicom import DicomFile
from webapp.intake.series import SeriesFiles
from webapp.intake.spool import incoming_folder
from webapp.intake.streams import DamagedFile, TooMuchWork
from webapp.models import Act, JobStatus, Scan, lead_on
from webapp.review.sharing import move_shares
from webapp.storage import MissingFile

JOINING_S = 120
"""Minimum wait of scans that are being joined."""


@dataclass(frozen=True)
class Stored:
    """A stored scan that is no longer waiting for more of its study.

    Attributes:
        key: the storage key of its original.
        series, instances: the new UIDs in its copies.
        is_whole: it is one multi-slice file, which no other file extends.
        counts: it is analyzed or being analyzed; the files of a failed or canceled scan may be sent
            again.
    """

    scan_id: str
    key: str
    series: frozenset[str]
    instances: frozenset[str]
    is_whole: bool
    counts: bool


class Waiting(NamedTuple):
    """A stored scan that waits for more of its study: the storage key of its original, and the new
    instance UIDs in its copies.
    """

    key: str
    instances: frozenset[str]


@dataclass(frozen=True)
class Earlier:
    """What had arrived of a request's studies before the request.

    Attributes:
        waiting: the scans that wait for more, by their ids.
        stored: scans to whose series the request adds slices.
        known: the ids of all earlier scans of these studies, including those that are not replaced.
        files: the copies of waiting and stored slices that were not sent again.
        gone: the storage keys of the files of scans that were replaced.
    """

    waiting: Mapping[str, Waiting]
    stored: Sequence[Stored]
    known: Set[str]
    files: Sequence[FileStorage]
    gone: list[str] = field(default_factory=list)

    def replace_by(
        self, scans: Sequence[Scan], series: Sequence[SeriesFiles], uids: NewUids
    ) -> None:
        """Replace the earlier scans by the new ones, which wait for more of the study; the caller
        commits, and then discards the files in `gone`.

        Raises:
            Changed: one of them has changed, or another request stored one meanwhile.
            NothingNew: none of the new slices of a stored series was accepted.
        """
        if quiet_s := current_app.config["DICOMWEB_QUIET_S"]:
            for scan in scans:
                scan.retry_at = database_now(quiet_s)
        # Not through the session, which would reload the times of the new rows.
        db.session.flush()
        # The owner's row is locked, so no other request stores scans of these studies now.
        of_studies = _of_studies(scans[0].user_id, {scan.study_uid or "" for scan in scans})
        if set(db.session.scalars(of_studies)) - self.known - {scan.id for scan in scans}:
            raise Changed
        new = [{uids(file.dicom.instance) for file in each.files} for each in series]
        self._replace_stored(scans, series, new)
        if not self.waiting:
            return
        for scan_id, row in self.waiting.items():
            heir = max(range(len(scans)), key=lambda place: len(new[place] & row.instances))
            lead_on([scan_id], scans[heir].id)
            move_shares(scan_id, scans[heir].id)
        waiting = Scan.id.in_(self.waiting) & (Scan.status == JobStatus.QUEUED)
        replaced = db.session.scalars(
            delete(Scan).where(waiting).returning(Scan.id),
            execution_options={"synchronize_session": False},
        ).all()
        if len(replaced) < len(self.waiting):
            raise Changed
        self.gone.extend(row.key for row in self.waiting.values())
        for scan_id in [*replaced, *(scan.id for scan in scans)]:
            detail = f"{len(replaced)} into {len(scans)}"
            record(Act.SCANS_JOINED, scan_id, actor_id=scans[0].user_id, detail=detail)

    def _replace_stored(
        self, scans: Sequence[Scan], series: Sequence[SeriesFiles], new: Sequence[Set[str]]
    ) -> None:
        known = {uid for scan in self.stored if scan.counts for uid in scan.instances}
        replaced: dict[int, list[str]] = {}
        for scan in self.stored:
            same = [
                place
                for place, each in enumerate(series)
                if not scan.series.isdisjoint(file.dicom.series for file in each.files)
            ]
            if all(new[place] <= known for place in same):
                raise NothingNew
            heir = max(same, key=lambda place: len(new[place] & scan.instances))
            replaced.setdefault(heir, []).append(scan.scan_id)
        for place, scan_ids in replaced.items():
            self.gone.extend(take_place(scans[place], scan_ids))


@contextmanager
def taken_along(
    user_id: str,
    study_uids: Sequence[str],
    instance_uids: Collection[str],
    stored: Sequence[Stored],
    grows: Collection[Stored],
) -> Iterator[Earlier]:
    """Yield what had arrived of these studies: the waiting scans, and the stored scans that will be
    extended.
    A scan whose copies are gone is ignored.

    Args:
        study_uids, instance_uids: new UIDs, of the studies and of the instances of the request.
        stored: the scans that do not wait (`stored_scans`).
        grows: selects the stored scans that get more slices.

    Raises:
        StorageError: it cannot be read.
    """
    waits = (Scan.status == JobStatus.QUEUED) & (Scan.retry_at > database_now())
    of_study = Scan.study_uid.in_(set(study_uids)) & Scan.dicom_results
    postponed = db.session.execute(
        update(Scan)
        .where(Scan.user_id == user_id, waits, of_study)
        .values(retry_at=database_now(JOINING_S))
        .returning(Scan.id, Scan.original_key),
        execution_options={"synchronize_session": False},
    ).all()
    db.session.commit()
    waiting: dict[str, Waiting] = {}
    with TemporaryDirectory(dir=incoming_folder()) as folder, ExitStack() as opened:
        files, taken = [], set(instance_uids) - {""}
        known = {row.id for row in postponed} | {scan.scan_id for scan in stored}
        keys = {row.id: row.original_key for row in postponed}
        for scan_id, key in [*keys.items(), *((scan.scan_id, scan.key) for scan in grows)]:
            try:
                copies = copies_of(key, Path(folder) / scan_id)
            except MissingFile:
                grows = [scan for scan in grows if scan.scan_id != scan_id]
                continue
            if scan_id in keys:
                waiting[scan_id] = Waiting(key, frozenset(uid for uid, _ in copies) - {""})
            for uid, path in copies:
                if uid not in taken:
                    taken.update({uid} - {""})
                    files.append(FileStorage(opened.enter_context(path.open("rb")), ""))
        yield Earlier(waiting, list(grows), known, files)


def stored_scans(user_id: str, study_uids: Sequence[str]) -> list[Stored]:
    """Return the scans of these studies that do not wait for more, newest first; a scan whose
    copies are gone has no instances.

    Raises:
        StorageError: the stored copies cannot be read.
    """
    waits_no_more = or_(
        Scan.status != JobStatus.QUEUED, Scan.retry_at.is_(None), Scan.retry_at <= database_now()
    )
    rows = db.session.execute(
        _of_studies(user_id, study_uids)
        .where(waits_no_more)
        .add_columns(Scan.original_key, Scan.status, Scan.slice_count)
        .order_by(Scan.created_at.desc(), Scan.id)
    ).all()
    db.session.commit()
    stored = []
    for row in rows:
        with TemporaryDirectory(dir=incoming_folder()) as folder:
            try:
                copies = copies_of(row.original_key, Path(folder) / row.id)
            except MissingFile:
                copies = []
            series = frozenset(_series_of(path) for _, path in copies)
        stored.append(
            Stored(
                row.id,
                row.original_key,
                series - {""},
                frozenset(uid for uid, _ in copies) - {""},
                is_whole=len(copies) == 1 < row.slice_count,
                counts=row.status not in (JobStatus.FAILED, JobStatus.CANCELLED),
            )
        )
    return stored


def _of_studies(user_id: str, study_uids: Collection[str]) -> Select[str]:
    """Select the ids of the scans of these studies that this module made or may add to."""
    return select(Scan.id).where(
        Scan.user_id == user_id,
        Scan.study_uid.in_(set(study_uids)),
        Scan.dicom_results,
        Scan.original_removed_at.is_(None),
    )


def _series_of(path: Path) -> str:
    with path.open("rb") as content:
        try:
            return DicomFile(content).header.series
        except (DamagedFile, TooMuchWork):
            return ""
