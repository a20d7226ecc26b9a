"""Accepts the ZIP archive of a data set, which a train worker then reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from ml.files.zip_end import end_of_zip
from webapp.audit import record
from webapp.deletion import discard_archive
from webapp.extensions import db, refers_to_deleted
from webapp.forms import text_problem
from webapp.intake.clean_copy import UploadRejected
from webapp.jobs import IMPORT_DATASET, nudge
from webapp.models import Act, Dataset, JobStatus, new_id
from webapp.storage import new_key, storage


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
        if refers_to_deleted(err):
            raise
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
