"""Accepts uploads: files are identified by their content, de-identified, sorted into series,
stored, and queued as rows.

No pixel is decoded here; workers do that. So a damaged image with an intact header becomes a scan
that fails with an error message.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from flask import current_app
from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError
from werkzeug.datastructures import FileStorage

from ml.zip_end import end_of_zip
from webapp.audit import record
from webapp.deletion import discard_archive
from webapp.extensions import db, utc_now
from webapp.forms import MAX_TITLE, text_problem
from webapp.intake.archives import ArchiveRefused, is_of_system, is_zip, members
from webapp.intake.clean_copy import NoSlice, QuotaReached, Taken, UploadRejected, take
from webapp.intake.dicom import is_dicom
from webapp.intake.nifti import GZIP
from webapp.intake.series import (
    LeftOut,
    Pictures,
    SeriesFiles,
    Studies,
    disc_of,
    sentences_about,
    series_of,
    study_of,
)
from webapp.intake.spool import incoming_folder
from webapp.intake.streams import Budget, TooMuchWork
from webapp.intake.titles import titles_of, unique_titles, untitled_number
from webapp.jobs import IMPORT_DATASET, PREDICT_SCANS, nudge
from webapp.models import IN_ITS_TURN, Act, Dataset, JobStatus, Scan, new_id, urgent_room
from webapp.models.accounts import lock_person
from webapp.rates import per_person
from webapp.space import as_storage_full, quota_problem, require_cap, require_space
from webapp.storage import StorageError, new_key, storage

log = logging.getLogger(__name__)

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "dicom": ".dcm", "nifti": ".nii"}
PICTURES = ("png", "jpeg")
NAMES_OF_PICTURES = (".png", ".jpg", ".jpeg")
NAMES_OF_NOTES = (
    *(".txt", ".md", ".csv", ".tsv", ".rtf"),
    *(".doc", ".docx", ".odt", ".xls", ".xlsx", ".ods"),
)
"""Text files that people put next to a patient's images; the viewer on a CD comes with programs."""
DROPPED = "folder"
"""The prefix of the paths of files in dropped folders."""
PACKED = ".zip"
START_BYTES = 132
MOST_PACKED = 20
"""Maximum number of NIfTI files of one upload that are inflated: a malicious one takes seconds."""
LONGEST_DROP = timedelta(hours=1)
"""If a drop began longer ago than this, its uploads count as submitted when they arrive."""
MOST_OF_DROP = timedelta(seconds=20)
"""The uploads of one drop count as submitted within this time."""
NEWEST_TITLES = 1000
"""How many of a user's newest scans are looked at for the number of the next untitled one."""
HELD_IN_MEMORY = 2**20
"""Originals up to this size are stored from memory, larger ones from a file, so that memory use
stays bounded.
"""


within_rate = per_person(
    lambda: f"{current_app.config['UPLOADS_PER_MINUTE']} per minute", "uploads"
)
"""Decorates the views that accept uploads."""


@dataclass(frozen=True)
class Choices:
    """The options of an upload.

    Attributes:
        stat: its scans are analyzed first, up to the user's limit on STAT scans.
        pictures: which of its images are the slices of one scan.
        studies: which of its series form a study.
        keep_names: file names may be stored, in titles and messages; otherwise they are discarded.
        leave_out: files without slices are left out instead of refused, even outside archives.
        uncut: a film sheet is read as one slice, and not cut into its slices.
        reports_each_file: the sender gets a response for each file, so damaged ones are left out,
            however many there are.
        dicom_results: DICOM objects are made from the results of DICOM scans automatically, and
            stored with the scans.
        number: the position of this upload among those of one drop, from 1; 0 for a single upload.
        dropped_at: the time of the drop; None for now.
    """

    stat: bool = False
    pictures: Pictures = Pictures.BY_FOLDER
    studies: Studies = Studies.AS_SENT
    keep_names: bool = False
    leave_out: bool = False
    uncut: bool = False
    reports_each_file: bool = False
    dicom_results: bool = False
    number: int = 0
    dropped_at: datetime | None = None


NOTHING_CHOSEN = Choices()


class NewUids:
    """Replaces the UIDs of an upload, consistently; the originals cannot be recovered without the
    salt (DICOM PS3.5 B.2).

    A UID that it has issued is kept, so that a stored copy can be submitted again.

    Args:
        salt: the same salt gives the same UIDs; random by default.

    Attributes:
        originals: the original of each UID that it has issued.
    """

    def __init__(self, salt: bytes | None = None) -> None:
        self._salt = salt or secrets.token_bytes(16)
        self.originals: dict[str, str] = {}

    def __call__(self, uid: str) -> str:
        """Return the replacement of `uid`."""
        if self.has_given(uid):
            return uid
        start = int.from_bytes(hashlib.sha256(self._salt + uid.encode()).digest()[:12])
        new = f"2.25.{start << 32 | self._check(start)}"
        self.originals[new] = uid
        return new

    def has_given(self, uid: str) -> bool:
        """Return whether `uid` is a replacement made with this salt."""
        if not uid.startswith("2.25.") or not uid[5:].isdecimal():
            return False
        start, check = divmod(int(uid[5:]), 2**32)
        return start < 2**96 and check == self._check(start)

    def _check(self, start: int) -> int:
        return int.from_bytes(hashlib.sha256(self._salt + start.to_bytes(12)).digest()[:4])


class NothingTaken(UploadRejected):
    """All files of an upload were refused; `refused` is as in `Receipt`."""

    def __init__(self, refused: dict[int, str]) -> None:
        super().__init__(next(iter(refused.values())))
        self.refused = refused


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


@dataclass(frozen=True)
class _Sorted:
    """The files of an upload as series, the Study Instance UID in the copies of each (None if there
    is none), the message about all of them, and the files that were left out, as in
    `Receipt.refused`.
    """

    series: list[SeriesFiles]
    study_uids: list[str | None]
    notes: list[str]
    refused: dict[int, str]


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
        accepted = _sorted(files, Path(folder), choices, uids or NewUids())
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


def _rows(user_id: str, title: str, accepted: _Sorted, choices: Choices) -> list[Scan]:
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
    newest = max(scan.created_at for scan in scans)
    of_drop = Scan.created_at.between(newest - MOST_OF_DROP, newest + MOST_OF_DROP)
    theirs = select(Scan.title).where(Scan.user_id == scans[0].user_id, of_drop)
    titles = unique_titles(
        [scan.title for scan in scans], db.session.scalars(theirs), choices.number
    )
    for scan, title in zip(scans, titles, strict=True):
        scan.title = title


def accept_dataset(
    name: str, archive: Path, user_id: str | None, on_unreachable: Callable[[], None] = lambda: None
) -> Dataset:
    """Store a ZIP as a queued data set and notify a train worker, which reads it.

    Raises:
        UploadRejected: the name is taken or the file is not a ZIP.
        StorageError: the archive could not be stored.
    """
    db.session.commit()  # No transaction is open while gigabytes are stored.
    name = name.strip()
    problem = text_problem(name, 80) if name else "Please enter a title."
    if problem:
        raise UploadRejected(f"Invalid data set name. {problem}")
    with archive.open("rb") as file:
        is_archive = end_of_zip(file, file.seek(0, 2)) is not None
    if not is_archive:
        raise UploadRejected("The file is not a complete ZIP archive.")
    dataset = Dataset(
        id=new_id(), name=name, imported_by_id=user_id, archive_key=new_key("datasets", ".zip")
    )
    try:
        storage.put(dataset.archive_key, archive)
        # A data set that could not be read or was canceled is replaced.
        useless = Dataset.status.in_((JobStatus.FAILED, JobStatus.CANCELLED))
        canceled = (
            delete(Dataset)
            .where(Dataset.name == name, useless)
            .returning(Dataset.id, Dataset.archive_key)
        )
        replaced = db.session.execute(canceled).one_or_none()
        if replaced:
            record(Act.DATASET_DELETED, replaced.id, actor_id=user_id)
        db.session.add(dataset)
        record(Act.DATASET_IMPORTED, dataset.id, actor_id=user_id)
        db.session.commit()
    except IntegrityError as err:
        db.session.rollback()
        storage.delete(dataset.archive_key)
        raise UploadRejected(f"A data set named “{name}” already exists.") from err
    except BaseException:
        db.session.rollback()
        storage.delete(dataset.archive_key)
        raise
    if replaced:
        discard_archive(replaced.archive_key)
    if not nudge(IMPORT_DATASET):
        on_unreachable()
    return dataset


@contextmanager
def disk_has_room() -> Iterator[None]:
    """Convert the errors of a full or failing disk to a `StorageError`."""
    try:
        with as_storage_full():
            yield
    except OSError as err:
        raise StorageError(
            "The server could not store your files. Please try again later."
        ) from err


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


def _sorted(
    files: Sequence[FileStorage], folder: Path, choices: Choices, new_uid: NewUids
) -> _Sorted:
    """Return the series of an upload, cleaned under `folder`."""
    budget = Budget(sum(file.stream.seek(0, 2) for file in files))
    copies: list[Taken] = []
    left_out: list[LeftOut] = []
    number = packed = 0
    sent_as: dict[int, int | None] = {}
    for number, (name, content, archive_folder, place) in enumerate(_contents(files, folder), 1):
        sent_as[number] = place
        if content is None:
            left_out.append(_damaged_member(number, name, archive_folder))
            continue
        content.seek(0)
        packed += content.read(len(GZIP)) == GZIP
        if packed > MOST_PACKED:
            raise UploadRejected(
                f"The upload has more than {MOST_PACKED} compressed NIfTI files; please send them"
                " in parts."
            )
        try:
            budget.begin_file()
            file = take(
                content,
                folder / f"{number}",
                new_uid,
                number=number,
                name=name,
                folder=archive_folder,
                budget=budget,
            )
            copies.append(_as_copied(file, new_uid))
        except TooMuchWork as err:
            raise UploadRejected(
                "The upload takes too long to process for its size; please send it in parts, or"
                " without compression."
            ) from err
        except UploadRejected as err:
            (folder / f"{number}").unlink(missing_ok=True)
            left_out.append(LeftOut(number, name, err, archive_folder, is_dicom(content)))
    copies = _without_pictures_of_viewer(copies, left_out)
    if number == 0:
        raise UploadRejected("The ZIP archive contains no images.")
    refused = {
        place: str(file.reason) for file in left_out if (place := sent_as[file.number]) is not None
    }
    if choices.reports_each_file and not copies:
        raise NothingTaken(refused)
    has_folder = {file.folder for file in copies} | {file.folder for file in left_out} != {None}
    notes = sentences_about(
        left_out,
        number,
        may_leave_out=has_folder or choices.leave_out or choices.reports_each_file,
        may_be_damaged=choices.reports_each_file,
        with_names=choices.keep_names,
    )
    series = series_of(copies, choices.pictures)
    study_uids = [entry.files[0].dicom.study or None for entry in series]
    return _Sorted(series, study_uids, notes, refused)


def _damaged_member(number: int, name: str, folder: str | None) -> LeftOut:
    """Return a file that could not be unpacked: a slice, unless its name is that of an image."""
    is_dicom = not name.lower().endswith(NAMES_OF_PICTURES)
    reason = UploadRejected("The file cannot be unpacked from the ZIP archive.")
    return LeftOut(number, name, reason, folder, is_dicom)


def _as_copied(file: Taken, new_uid: NewUids) -> Taken:
    """Return a file with the study and series UIDs of its copy."""
    uids = {name: getattr(file.dicom, name) for name in ("study", "series", "concatenation")}
    new: dict[str, Any] = {name: new_uid(uid) for name, uid in uids.items() if uid}
    return replace(file, dicom=replace(file.dicom, **new))


def _without_pictures_of_viewer(copies: Sequence[Taken], left_out: list[LeftOut]) -> list[Taken]:
    """Return the files without the images in archives or dropped folders that contain DICOM slices:
    these belong to the viewer on an exported CD, whether readable or not. They are moved to
    `left_out`.

    Exception: they are kept in dropped folders of patients whose slices are images.
    """
    discs = {disc_of(file.folder) for file in copies if file.kind == "dicom"} - {None}
    of_patients = _folders_of_pictures(copies, left_out)
    reason = NoSlice(
        "PNG and JPEG images sent along with DICOM slices are skipped. Submit them separately.",
        "PNG or JPEG images sent along with DICOM slices",
    )

    def is_of_viewer(folder: str | None) -> bool:
        return disc_of(folder) in discs and folder not in of_patients

    for at, skipped in enumerate(left_out):
        if (
            is_of_viewer(skipped.folder)
            and not skipped.is_dicom
            and not isinstance(skipped.reason, NoSlice)
        ):
            left_out[at] = replace(skipped, reason=reason)
    slices = []
    for file in copies:
        if file.kind in PICTURES and is_of_viewer(file.folder):
            left_out.append(LeftOut(file.number, file.name, reason, file.folder, is_dicom=False))
            file.path.unlink()
        else:
            slices.append(file)
    return slices


def _folders_of_pictures(copies: Sequence[Taken], left_out: Sequence[LeftOut]) -> set[str]:
    """Return the dropped folders that contain, besides images, only notes or damaged DICOM files,
    with more images than damaged files.

    The page sends a folder that contains only images separately. On an exported CD, the viewer's
    images are next to its other files, and previews are next to the slices they show, in equal
    numbers.
    """
    pictures, damaged, others = Counter[str](), Counter[str](), set[str]()
    with_notes = set[str]()
    for folder, is_picture in [(file.folder, file.kind in PICTURES) for file in copies]:
        if folder is not None and is_picture:
            pictures[folder] += 1
        elif folder is not None:
            others.add(folder)
    for file in left_out:
        if file.folder is None:
            continue
        name = file.name.lower()
        is_slice = not isinstance(file.reason, NoSlice)
        if is_slice if file.is_dicom else name.endswith(SUFFIXES["dicom"]):
            damaged[file.folder] += 1
        elif name.endswith(NAMES_OF_NOTES):
            with_notes.add(file.folder)
        elif name == "dicomdir" or not (name.endswith(NAMES_OF_PICTURES) or is_of_system(name)):
            others.add(file.folder)
    return {
        folder
        for folder, count in pictures.items()
        if disc_of(folder) == DROPPED
        and damaged[folder] < count
        and (damaged[folder] or folder in with_notes)
        and folder not in others
    }


def _contents(
    files: Sequence[FileStorage], folder: Path
) -> Iterator[tuple[str, IO[bytes] | None, str | None, int | None]]:
    """Yield name and content of each file, its folder, and its position in the upload. For files in
    archives, the folder is named after the archive, and the position is None; the content of a
    damaged file is None. The limits apply to all archives together.
    """
    unpacked_files = unpacked_bytes = 0
    for place, file in enumerate(files):
        name, stream = file.filename or "", file.stream
        size = stream.seek(0, 2)
        stream.seek(0)
        start = stream.read(START_BYTES)
        stream.seek(0)
        if not (is_zip(start) or _is_behind_others(stream, size, name, start)):
            inside, is_in_folder, last = name.replace("\\", "/").rpartition("/")
            yield last, stream, f"{DROPPED}/{inside}" if is_in_folder else None, place
            continue
        config = current_app.config
        if size > config["MAX_UPLOAD_MB"] * 2**20:
            raise UploadRejected(f"The file is larger than {config['MAX_UPLOAD_MB']} MB.")
        packed_as = re.sub(r"\.zip$", "", name.replace("\\", "/"), flags=re.IGNORECASE)
        limits = {
            "most_files": config["MAX_SLICES"],
            "most_bytes": config["MAX_UNPACKED_MB"] * 2**20,
        }
        limits |= {"earlier_files": unpacked_files, "earlier_bytes": unpacked_bytes}
        try:
            for member, content, is_sound in members(stream, size, **limits, folder=folder):
                unpacked_files += 1
                unpacked_bytes += content.seek(0, 2)
                inside, _, last = member.rpartition("/")
                inside = f"{place}/{packed_as}/{inside}".rstrip("/")
                yield last, content if is_sound else None, inside, None
        except ArchiveRefused as err:
            raise UploadRejected(str(err)) from err


def _is_behind_others(stream: IO[bytes], size: int, name: str, start: bytes) -> bool:
    """Return whether a file is a ZIP archive with other bytes in front, such as a program that
    unpacks it.
    """
    is_named = name.lower().endswith((PACKED, ".exe"))
    found = is_named and start[128:132] != b"DICM" and end_of_zip(stream, size) is not None
    stream.seek(0)
    return found


def store_series(key: str, series: SeriesFiles) -> int:
    """Store a file, or the files of a series in an uncompressed ZIP, and return its size in
    bytes.
    """
    path = series.files[0].path
    if len(series.files) > 1:
        path = path.with_suffix(PACKED)
        with zipfile.ZipFile(path, "w") as packed:
            # Named by their positions in the upload, as in the notes for the owner.
            for file in series.files:
                packed.write(file.path, f"file-{file.number:04}{SUFFIXES[file.kind]}")
                file.path.unlink()
    size = path.stat().st_size
    storage.put(key, path.read_bytes() if size <= HELD_IN_MEMORY else path)
    path.unlink()
    return size
