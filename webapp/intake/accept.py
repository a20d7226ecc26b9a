"""Accepts uploads: files are identified by their content, de-identified, sorted into series,
stored, and queued as rows.

No pixel is decoded here; workers do that. So a damaged picture with a sound header becomes a scan
that fails with a sentence.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from flask import current_app
from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from werkzeug.datastructures import FileStorage

from webapp.audit import record, whose_request
from webapp.extensions import db, limiter, utc_now
from webapp.forms import MAX_TITLE, text_problem
from webapp.intake.archives import EMPTY_ZIP, ZIP, ArchiveRefused, members
from webapp.intake.clean_copy import NoSlice, Taken, UploadRejected, take
from webapp.intake.nifti import GZIP
from webapp.intake.series import (
    LeftOut,
    Pictures,
    SeriesFiles,
    Studies,
    disc_of,
    printable,
    sentences_about,
    series_of,
    study_of,
)
from webapp.intake.spool import incoming_folder
from webapp.intake.streams import Budget, TooMuchWork
from webapp.jobs import IMPORT_DATASET, PREDICT_SCANS, nudge
from webapp.models import IN_ITS_TURN, Act, Dataset, JobStatus, Scan, new_id, urgent_room
from webapp.models.accounts import lock_person
from webapp.space import disk_full_is_told, require_cap, require_space
from webapp.storage import StorageError, new_key, storage

log = logging.getLogger(__name__)

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "dicom": ".dcm", "nifti": ".nii"}
PACKED = ".zip"
MOST_PACKED = 20
"""NIfTI files of one upload that are inflated: a hostile one takes seconds."""
HELD_IN_MEMORY = 2**20
"""Originals up to this size go to the storage from memory; larger ones by way of a file, so that
memory stays flat.
"""


within_rate = limiter.shared_limit(
    lambda: f"{current_app.config['UPLOADS_PER_MINUTE']} per minute",
    scope="uploads",
    key_func=lambda: str(whose_request()),
)
"""Decorates what takes uploads in: a person's are counted together, whichever of their tokens and
browsers they come by.
"""


@dataclass(frozen=True)
class Choices:
    """What a person may ask for with an upload.

    Attributes:
        stat: its scans are read before all others, as far as that person's urgent ones are few.
        pictures: which of its pictures are the slices of one scan.
        studies: which of its series stand together.
        keep_names: names of files may be kept, as title and in what is told; without it they are
            forgotten.
        leave_out: files that are no slices may stand beside slices, and are left out, also where
            they do not lie in an archive.
        uncut: a picture of several slices is read as one, and not cut into them.
    """

    stat: bool = False
    pictures: Pictures = Pictures.BY_FOLDER
    studies: Studies = Studies.AS_SENT
    keep_names: bool = False
    leave_out: bool = False
    uncut: bool = False


NOTHING_CHOSEN = Choices()


@dataclass(frozen=True)
class Receipt:
    """What became of an upload.

    Attributes:
        scans: the scans that were queued.
        refused: why a file was left out, by its place in the upload, counted from 0; what an
            archive holds is told in the scans' notes instead.
        reachable: whether a worker could be told at once.
    """

    scans: list[Scan]
    refused: dict[int, str]
    reachable: bool


@dataclass(frozen=True)
class _Sorted:
    """The files of an upload as series, what their owner is told of all of them, and the files that
    were left out, as in `Receipt.refused`.
    """

    series: list[SeriesFiles]
    notes: list[str]
    refused: dict[int, str]


def accept_scans(
    user_id: str,
    files: Sequence[FileStorage],
    title: str = "",
    choices: Choices = NOTHING_CHOSEN,
) -> list[Scan]:
    """Do as `accept_upload`, and return the scans alone."""
    return accept_upload(user_id, files, title, choices).scans


def accept_upload(
    user_id: str,
    files: Sequence[FileStorage],
    title: str = "",
    choices: Choices = NOTHING_CHOSEN,
    require_access: Callable[[], None] = lambda: None,
) -> Receipt:
    """Store the files as queued scans of that user, each series as one, and wake a predict worker.

    Where nothing of an upload can be read, or too much of it is damaged, nothing is stored.

    Args:
        title: what the scans are called; several get their series' number besides.
        require_access: is called when all is stored, before it counts, and raises where that
            person may not come in any more: an upload may last for minutes.

    Raises:
        UploadRejected: a file or the title is not accepted, or the account is gone or disabled.
        StorageError: the storage did not take a file; a `StorageFull` where there is no room, or
            where all scans take as much as they may.
    """
    title = title.strip()
    problem = text_problem(title, MAX_TITLE)
    if problem:
        raise UploadRejected(f"Invalid title. {problem}")
    _require_files(files)
    _require_room(user_id)
    require_space(0)
    require_cap()
    # No transaction, on SQLite the write lock, is open while files are read and stored.
    db.session.commit()
    scans: list[Scan] = []
    with disk_has_room(), TemporaryDirectory(dir=incoming_folder()) as folder:
        found = _sorted(files, Path(folder), choices)
        try:
            for scan, one in zip(_rows(user_id, title, found, choices), found.series, strict=True):
                scans.append(scan)
                scan.size = store_series(scan.original_key, one)
            if lock_person(user_id) is None:
                raise UploadRejected("This account was deleted or disabled meanwhile.")
            require_access()
            # Asked once more where other uploads of that person wait for this one to be committed.
            may_be_stat = urgent_room(user_id)
            _require_room(user_id, sum(scan.size for scan in scans))
            for scan in scans[may_be_stat:] if choices.stat else []:
                scan.stat, scan.notes = False, [*(scan.notes or []), IN_ITS_TURN]
            db.session.add_all(scans)
            for scan in scans:
                record(Act.SCAN_SUBMITTED, scan.id, actor_id=user_id)
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
    return Receipt(scans, found.refused, nudge(PREDICT_SCANS))


def _rows(user_id: str, title: str, found: _Sorted, choices: Choices) -> list[Scan]:
    """Return the rows of an upload's scans, whose files are still to be stored under their
    `original_key`. They came at one time, as the series of a study must.
    """
    now = utc_now()
    studies: defaultdict[tuple[object, ...], str] = defaultdict(new_id)
    scans = []
    for place, one in enumerate(found.series):
        scan_id, kind = new_id(), one.files[0].kind
        name = _title(title, one, several=len(found.series) > 1, keep_names=choices.keep_names)
        scan = Scan(
            id=scan_id,
            user_id=user_id,
            study_id=studies[study_of(one, place, choices.studies)],
            title=name,
            kind=kind,
            slice_count=one.slice_count,
            stat=choices.stat,
            uncut=choices.uncut,
            notes=[*found.notes, *one.notes],
            original_key=f"originals/{scan_id}{PACKED if len(one.files) > 1 else SUFFIXES[kind]}",
            created_at=now,
            queued_at=now,
        )
        scans.append(scan)
    return scans


def accept_dataset(
    name: str, archive: Path, user_id: str | None, on_unreachable: Callable[[], None] = lambda: None
) -> Dataset:
    """Store a ZIP as a queued data set and wake a train worker, which reads what is in it.

    Raises:
        UploadRejected: the name is taken or the file is not a ZIP.
        StorageError: the storage did not take the archive.
    """
    db.session.commit()  # No transaction is open while gigabytes are stored.
    name = name.strip()
    problem = text_problem(name, 80) if name else "Please enter a title."
    if problem:
        raise UploadRejected(f"Invalid data set name. {problem}")
    if not zipfile.is_zipfile(archive):
        raise UploadRejected("The file is not a complete ZIP archive.")
    dataset = Dataset(
        id=new_id(), name=name, imported_by_id=user_id, archive_key=new_key("datasets", ".zip")
    )
    try:
        storage.put(dataset.archive_key, archive)
        # One that could not be read, or was cancelled, gives way to its correction.
        useless = Dataset.status.in_((JobStatus.FAILED, JobStatus.CANCELLED))
        given_up = (
            delete(Dataset)
            .where(Dataset.name == name, useless)
            .returning(Dataset.id, Dataset.archive_key)
        )
        replaced = db.session.execute(given_up).one_or_none()
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
        storage.delete(replaced.archive_key)
    if not nudge(IMPORT_DATASET):
        on_unreachable()
    return dataset


@contextmanager
def disk_has_room() -> Iterator[None]:
    """Turn a disk that is full, or refuses, into a `StorageError`."""
    try:
        with disk_full_is_told():
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


def _require_room(user_id: str, more: int = 0) -> None:
    """Refuse `more` bytes, or any, of a person who has stored as much as one may.

    Raises:
        UploadRejected: so it is.
    """
    most_mb = current_app.config["QUOTA_MB"]
    stored = int(db.session.scalar(select(func.sum(Scan.size)).where(Scan.user_id == user_id)) or 0)
    if most_mb and stored >= most_mb * 2**20:
        raise UploadRejected(
            f"Your scans use {stored >> 20} of the {most_mb} MB that you may store; please delete"
            " some."
        )
    if most_mb and stored + more > most_mb * 2**20:
        with_it = -(-(stored + more) >> 20)
        raise UploadRejected(
            f"With this upload your scans would use {with_it} MB, but you may store {most_mb} MB;"
            " please delete some."
        )


def _sorted(files: Sequence[FileStorage], folder: Path, choices: Choices) -> _Sorted:
    """Return the series of an upload, cleaned under `folder`."""
    salt = secrets.token_bytes(16)

    def new_uid(uid: str) -> str:
        """Return a UID that stands for `uid` in this upload; which it was cannot be found again
        (DICOM PS3.5 B.2).
        """
        return f"2.25.{int.from_bytes(hashlib.sha256(salt + uid.encode()).digest()[:16])}"

    budget = Budget(sum(file.stream.seek(0, 2) for file in files))
    taken: list[Taken] = []
    left_out: list[LeftOut] = []
    has_archive = False
    number = packed = 0
    sent_as: dict[int, int] = {}
    for name, content, archive_folder, place in _contents(files, folder):
        number += 1
        if place is not None:
            sent_as[number] = place
        content.seek(0)
        packed += content.read(len(GZIP)) == GZIP
        if packed > MOST_PACKED:
            raise UploadRejected(
                f"The upload has more than {MOST_PACKED} compressed NIfTI files; please send them"
                " in parts."
            )
        has_archive |= archive_folder is not None
        try:
            budget.begin_file()
            taken.append(
                take(
                    content,
                    folder / f"{number}",
                    new_uid,
                    number=number,
                    name=name,
                    folder=archive_folder,
                    budget=budget,
                )
            )
        except TooMuchWork as err:
            raise UploadRejected(
                "The upload takes too long to process for its size; please send it in parts, or"
                " without compression."
            ) from err
        except UploadRejected as err:
            (folder / f"{number}").unlink(missing_ok=True)
            left_out.append(LeftOut(number, name, err))
    taken = _without_pictures_of_viewer(taken, left_out)
    if number == 0:
        raise UploadRejected("The ZIP archive contains no images.")
    notes = sentences_about(
        left_out,
        number,
        may_leave_out=has_archive or choices.leave_out,
        with_names=choices.keep_names,
    )
    refused = {sent_as[one.number]: str(one.reason) for one in left_out if one.number in sent_as}
    return _Sorted(series_of(taken, choices.pictures), notes, refused)


def _without_pictures_of_viewer(taken: Sequence[Taken], left_out: list[LeftOut]) -> list[Taken]:
    """Return the files without the pictures of archives that hold DICOM slices: they are those of
    the viewer on an exported CD. They go to `left_out`.
    """
    discs = {disc_of(file) for file in taken if file.kind == "dicom"} - {None}
    kept = []
    for file in taken:
        if file.kind in ("png", "jpeg") and disc_of(file) in discs:
            reason = NoSlice("A picture beside DICOM slices.", "pictures beside DICOM slices")
            left_out.append(LeftOut(file.number, file.name, reason))
            file.path.unlink()
        else:
            kept.append(file)
    return kept


def _contents(
    files: Sequence[FileStorage], folder: Path
) -> Iterator[tuple[str, IO[bytes], str | None, int | None]]:
    """Yield name and content of each file, the folder it lies in, and its place in the upload; of
    those in archives the folder there and no place. The limits are those of all archives.
    """
    unpacked_files = unpacked_bytes = 0
    for place, file in enumerate(files):
        name, stream = file.filename or "", file.stream
        size = stream.seek(0, 2)
        stream.seek(0)
        start = stream.read(len(ZIP))
        stream.seek(0)
        if start not in (ZIP, EMPTY_ZIP):
            inside, is_in_folder, last = name.replace("\\", "/").rpartition("/")
            yield last, stream, f"folder/{inside}" if is_in_folder else None, place
            continue
        config = current_app.config
        if size > config["MAX_UPLOAD_MB"] * 2**20:
            raise UploadRejected(f"The file is larger than {config['MAX_UPLOAD_MB']} MB.")
        limits = {
            "most_files": config["MAX_SLICES"],
            "most_bytes": config["MAX_UNPACKED_MB"] * 2**20,
        }
        limits |= {"earlier_files": unpacked_files, "earlier_bytes": unpacked_bytes}
        try:
            for member, content in members(stream, size, **limits, folder=folder):
                unpacked_files += 1
                unpacked_bytes += content.seek(0, 2)
                inside, _, last = member.rpartition("/")
                yield last, content, f"{place}/{inside}", None
        except ArchiveRefused as err:
            raise UploadRejected(str(err)) from err


def _title(title: str, one: SeriesFiles, *, several: bool, keep_names: bool) -> str:
    """Return what a scan is called: by its owner, by its file's name if that may be kept, and by
    its series where there are several.
    """
    if not title and keep_names:
        title = printable(one.files[0].name)
    label = one.label if several or (one.slice_count > 1 and not title) else ""
    return f"{title[: MAX_TITLE - len(label) - 3]} · {label}" if title and label else title or label


def store_series(key: str, one: SeriesFiles) -> int:
    """Store a file, or the files of a series in an uncompressed ZIP, and return its size in
    bytes.
    """
    path = one.files[0].path
    if len(one.files) > 1:
        path = path.with_suffix(PACKED)
        with zipfile.ZipFile(path, "w") as packed:
            # Named by their places in the upload, as in what its owner is told.
            for file in one.files:
                packed.write(file.path, f"file-{file.number:04}{SUFFIXES[file.kind]}")
                file.path.unlink()
    size = path.stat().st_size
    storage.put(key, path.read_bytes() if size <= HELD_IN_MEMORY else path)
    path.unlink()
    return size
