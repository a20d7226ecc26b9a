"""What may come in: files are judged by their content and headers, stored, and queued as rows.

No pixel is decoded here; that is the workers' part. So a damaged picture with a sound header becomes a scan that fails with a sentence.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from flask import current_app
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from werkzeug.datastructures import FileStorage

from webapp.audit import record
from webapp.extensions import db
from webapp.forms import MAX_TITLE, text_problem
from webapp.headers import PNG_SIGNATURE, DamagedFile, read_dicom_header, read_jpeg_size, read_png_size
from webapp.jobs import IMPORT_DATASET, PREDICT_SCANS, nudge
from webapp.models import Act, Dataset, JobStatus, Scan, new_id
from webapp.storage import new_key, storage

SUFFIXES = {"png": ".png", "jpeg": ".jpg", "dicom": ".dcm"}
CT_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.2"
HELD_IN_MEMORY = 2**20
"""Files up to this size go to the storage from memory; larger ones by way of a file, so that memory stays flat."""


class UploadRejected(ValueError):
    """A file or its description is not accepted; the text is one sentence for the person who sent it."""


@dataclass(frozen=True)
class _Accepted:
    """A file that passed, and what it is."""

    stream: IO[bytes]
    size: int
    kind: str


def accept_scans(
    user_id: str, files: Sequence[FileStorage], title: str = "", on_unreachable: Callable[[], None] = lambda: None
) -> list[Scan]:
    """Store each file as a queued scan of that user and wake a predict worker; where one file is refused, nothing is stored.

    `on_unreachable` is called if the queue could not be reached: the scans wait until it is back.

    Raises:
        UploadRejected: a file or the title is not accepted.
        StorageError: the storage did not take a file.
    """
    db.session.commit()  # No transaction, on SQLite the write lock, is open while files are read and stored.
    title = title.strip()
    problem = text_problem(title, MAX_TITLE)
    if problem:
        raise UploadRejected(f"The title is not accepted. {problem}")
    accepted = _checked(files)
    scans = []
    try:
        for file in accepted:
            scan_id = new_id()
            scan = Scan(id=scan_id, user_id=user_id, title=title, kind=file.kind, original_key=f"originals/{scan_id}{SUFFIXES[file.kind]}")
            scans.append(scan)
            _store(scan.original_key, file)
        db.session.add_all(scans)
        for scan in scans:
            record(Act.SCAN_SUBMITTED, scan.id, actor_id=user_id)
        db.session.commit()
    except BaseException:
        db.session.rollback()
        for scan in scans:
            storage.delete(scan.original_key)
        raise
    if not nudge(PREDICT_SCANS):
        on_unreachable()
    return scans


def accept_dataset(name: str, archive: Path, user_id: str | None, on_unreachable: Callable[[], None] = lambda: None) -> Dataset:
    """Store a ZIP as a queued data set and wake a train worker, which reads what is in it.

    Raises:
        UploadRejected: the name is taken or the file is not a ZIP.
        StorageError: the storage did not take the archive.
    """
    db.session.commit()  # No transaction is open while gigabytes are stored.
    name = name.strip()
    problem = text_problem(name, 80) if name else "Please give it one."
    if problem:
        raise UploadRejected(f"The name of the data set is not accepted. {problem}")
    if not zipfile.is_zipfile(archive):
        raise UploadRejected("The file is not a complete ZIP archive.")
    dataset = Dataset(id=new_id(), name=name, imported_by_id=user_id, archive_key=new_key("datasets", ".zip"))
    try:
        storage.put(dataset.archive_key, archive)
        # One that could not be read gives way to its correction.
        failed = delete(Dataset).where(Dataset.name == name, Dataset.status == JobStatus.FAILED).returning(Dataset.id, Dataset.archive_key)
        replaced = db.session.execute(failed).one_or_none()
        if replaced:
            record(Act.DATASET_DELETED, replaced.id, actor_id=user_id)
        db.session.add(dataset)
        record(Act.DATASET_IMPORTED, dataset.id, actor_id=user_id)
        db.session.commit()
    except IntegrityError as err:
        db.session.rollback()
        storage.delete(dataset.archive_key)
        raise UploadRejected(f"There is a data set named “{name}” already.") from err
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
def spooled(stream: IO[bytes]) -> Iterator[Path]:
    """Give an upload as a local file under `HEMOSCAN_HOME`, which is removed afterwards."""
    incoming = Path(current_app.config["HEMOSCAN_HOME"]) / "incoming"
    incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
    with NamedTemporaryFile(dir=incoming) as copy:
        stream.seek(0)
        shutil.copyfileobj(stream, copy, 2**20)
        copy.flush()
        yield Path(copy.name)


def _checked(files: Sequence[FileStorage]) -> list[_Accepted]:
    """Return what each file is; the sentence names the file where there are many."""
    most = current_app.config["MAX_FILES_PER_UPLOAD"]
    if not files:
        raise UploadRejected("There is no file in this upload.")
    if len(files) > most:
        raise UploadRejected(f"The upload has {len(files)} files; at most {most} are accepted at once.")
    accepted = []
    for number, file in enumerate(files, start=1):
        try:
            accepted.append(_check(file.stream))
        except UploadRejected as err:
            if len(files) == 1:
                raise
            name = "".join(character for character in file.filename or "" if character.isprintable())[:80] or f"number {number}"
            raise UploadRejected(f"“{name}”: {err}") from err
    return accepted


def _check(stream: IO[bytes]) -> _Accepted:
    size = stream.seek(0, 2)
    stream.seek(0)
    start = stream.read(132)
    stream.seek(0)
    if size == 0:
        raise UploadRejected("The file is empty.")
    if size > current_app.config["MAX_UPLOAD_MB"] * 2**20:
        raise UploadRejected(f"The file is larger than {current_app.config['MAX_UPLOAD_MB']} MB.")
    if start.startswith(PNG_SIGNATURE):
        _check_picture(stream, "PNG")
        return _Accepted(stream, size, "png")
    if start.startswith(b"\xff\xd8\xff"):
        _check_picture(stream, "JPEG")
        return _Accepted(stream, size, "jpeg")
    if start[128:132] == b"DICM":
        _check_dicom(stream)
        return _Accepted(stream, size, "dicom")
    raise UploadRejected("The file is not a PNG, JPEG or DICOM image.")


def _check_picture(stream: IO[bytes], kind: str) -> None:
    try:
        width, height = read_png_size(stream) if kind == "PNG" else read_jpeg_size(stream)
    except DamagedFile as err:
        raise UploadRejected(f"The {kind} picture is damaged or incomplete.") from err
    _require_fewer_pixels(width, height)


def _check_dicom(stream: IO[bytes]) -> None:
    try:
        header = read_dicom_header(stream)
        frames = int(header.frames or 1)
    except ValueError as err:  # DamagedFile is one.
        raise UploadRejected("The DICOM file is damaged or incomplete.") from err
    if header.is_deflated:  # Inflating has no limit.
        raise UploadRejected("The DICOM file is deflated, which is not read; please export it without.")
    if not header.transfer_syntax:
        raise UploadRejected("The DICOM file does not say how its pixels are coded (no transfer syntax).")
    if not header.has_pixels or header.rows < 1 or header.columns < 1:
        raise UploadRejected("The DICOM file has no picture in it.")
    modality = header.modality or ("CT" if header.sop_class == CT_SOP_CLASS else "unknown")
    if modality != "CT":
        shown = "".join(character for character in modality[:16] if character.isprintable())
        raise UploadRejected(f"The DICOM file is not a CT image: its modality is {shown}.")
    if frames != 1:
        raise UploadRejected(f"The DICOM file has {frames} frames; only files with a single slice are read.")
    if header.samples != 1:
        raise UploadRejected("The DICOM file is a color picture, not a CT slice.")
    _require_fewer_pixels(header.columns, header.rows)


def _require_fewer_pixels(width: int, height: int) -> None:
    most = current_app.config["MAX_PIXELS"]
    if width * height > most:
        raise UploadRejected(f"The picture is too large: {width} x {height} pixels, at most {most / 1e6:g} million are read.")


def _store(key: str, file: _Accepted) -> None:
    file.stream.seek(0)
    if file.size <= HELD_IN_MEMORY:
        storage.put(key, file.stream.read())
        return
    with spooled(file.stream) as path:
        storage.put(key, path)
