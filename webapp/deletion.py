"""Deletes scans, data sets and accounts with everything that belongs to them: rows, then files.

A worker that has a deleted row loses its lease and deletes the files it made. Files that cannot be
deleted immediately become orphans, which `worker.orphaned_files` deletes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

from sqlalchemy import ColumnElement, delete, select
from sqlalchemy.exc import IntegrityError

from webapp.audit import record
from webapp.extensions import db, forget_deleted, retry_deadlocks
from webapp.models import (
    Act,
    Dataset,
    Evaluation,
    Heatmap,
    JobStatus,
    PaperExperiment,
    Prediction,
    Preview,
    Report,
    Scan,
    User,
    active_admins,
    preview_file,
    sample_file,
    thumbnails_file,
)
from webapp.scans.pictures import heatmap_key
from webapp.storage import storage

FILES_S = 10.0
"""How long a request may spend deleting files; a user may have thousands, on slow storage."""


class StillNeeded(ValueError):
    """This cannot be deleted; the message tells the user why."""


def delete_scan(scan_id: str) -> bool:
    """Delete a scan's rows, commit, then delete its files; return False if some files are left to
    `worker.orphaned_files` because the storage is unavailable.
    """
    return delete_chosen([scan_id])


def delete_chosen(scan_ids: Iterable[str], within_s: float = float("inf")) -> bool:
    """Delete these scans, each in its own transaction, then their files; return False if some files
    are left to `worker.orphaned_files`: the storage is unavailable, or `within_s` has passed.
    """
    keys: list[str] = []
    for scan_id in scan_ids:
        keys += retry_deadlocks(partial(_delete_rows, scan_id))
    forget_deleted()
    return discard(keys, within_s)


def _delete_rows(scan_id: str) -> list[str]:
    """Delete a scan's rows, commit, and return the keys of its files."""
    keys = files_of(Scan.id == scan_id)
    db.session.execute(delete(Scan).where(Scan.id == scan_id))
    record(Act.SCAN_DELETED, scan_id)
    db.session.commit()
    return keys


def delete_scans(which: ColumnElement[bool], most: int) -> int:
    """Delete up to `most` of these scans with their files; return how many. Scans that another
    process is deleting are skipped.
    """
    ids = db.session.scalars(
        select(Scan.id).where(which).limit(most).with_for_update(skip_locked=True)
    ).all()
    keys = files_of(Scan.id.in_(ids))
    db.session.execute(delete(Scan).where(Scan.id.in_(ids)))
    db.session.commit()
    discard(keys)
    return len(ids)


def delete_account(user_id: str) -> bool:
    """Delete an account with its scans, opinions, sessions and tokens, commit, then delete the
    scans' files; return False if some files are left to `worker.orphaned_files`.

    Data sets, runs and promotions of an administrator remain, without the administrator's name.

    Raises:
        StillNeeded: this is the only administrator.
    """
    keys = retry_deadlocks(partial(_delete_user, user_id))
    forget_deleted()
    return discard(keys, within_s=FILES_S)


def _delete_user(user_id: str) -> list[str]:
    """Delete an account's rows, commit, and return the keys of the files of its scans."""
    _require_another_admin(user_id)
    # Locked before the files are listed, so that an upload in progress is either in the list or
    # finds no account and deletes its files itself.
    db.session.execute(select(User.id).where(User.id == user_id).with_for_update())
    keys = files_of(Scan.user_id == user_id)
    db.session.execute(delete(User).where(User.id == user_id))
    record(Act.ACCOUNT_DELETED, user_id)
    db.session.commit()
    return keys


def delete_dataset(dataset_id: str) -> bool:
    """Delete a data set that is not in use, commit, then delete its files; return False if some
    files are left to `worker.orphaned_files`.

    Its evaluations and experiments are deleted with it, and so are its analyses and previews, even
    those that are queued or running: pages request them, and their workers stop without a result.

    Raises:
        StillNeeded: it is being imported or evaluated on, or a training run used it.
    """
    # Locked before its uses are looked for, so that an evaluation that is being requested is found,
    # or finds no data set.
    db.session.execute(select(Dataset.id).where(Dataset.id == dataset_id).with_for_update())
    of_dataset = Evaluation.dataset_id == dataset_id
    is_open = Evaluation.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))
    if db.session.scalar(select(Evaluation.id).where(of_dataset, is_open).limit(1)):
        raise StillNeeded(
            "An evaluation on this data set is still queued or running. Cancel it first, or wait"
            " until it ends."
        )
    of_paper = PaperExperiment.dataset_id == dataset_id
    is_open = PaperExperiment.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))
    if db.session.scalar(select(PaperExperiment.id).where(of_paper, is_open).limit(1)):
        raise StillNeeded(
            "The paper’s experiment is queued or running on this data set. Cancel it first, or wait"
            " until it ends."
        )
    checkpoints = [
        row.checkpoint_key for row in db.session.scalars(select(PaperExperiment).where(of_paper))
    ]
    folders = [
        row.storage_prefix for row in db.session.scalars(select(Evaluation).where(of_dataset))
    ]
    previews = db.session.scalars(select(Preview.id).where(Preview.dataset_id == dataset_id))
    folders += map(preview_file, previews)
    folders += [thumbnails_file(dataset_id), sample_file(dataset_id)]
    ended = Dataset.status.in_([status for status in JobStatus if status.is_final])
    row = (
        delete(Dataset)
        .where(Dataset.id == dataset_id, ended)
        .returning(Dataset.archive_key, Dataset.contact_sheet_key)
    )
    try:
        deleted = db.session.execute(row).one_or_none()
        if deleted is not None:
            record(Act.DATASET_DELETED, dataset_id)
        db.session.commit()
    except IntegrityError as err:
        db.session.rollback()
        raise StillNeeded(
            "This data set was used by a training run and cannot be deleted."
        ) from err
    if deleted is None:
        raise StillNeeded("This data set is being imported. Cancel the import first.")
    archive_key, sheet_key = deleted
    is_removed = discard_archive(archive_key)
    return discard([*filter(None, (sheet_key,)), *folders, *checkpoints]) and is_removed


def discard_archive(key: str) -> bool:
    """Delete the archive of a deleted data set, unless another version of it shares the archive;
    return False if that is left to `worker.orphaned_files`.
    """
    needed = db.session.scalar(select(Dataset.id).where(Dataset.archive_key == key).limit(1))
    db.session.commit()
    return needed is not None or storage.discard(key)


def files_of(which: ColumnElement[bool]) -> list[str]:
    """Return the storage keys of all files of these scans, including images that a worker may have
    stored before any row refers to them; their keys are derived from ids.
    """
    keys: dict[str | None, None] = {}
    for scan in db.session.execute(select(Scan.id, Scan.original_key).where(which)):
        keys |= dict.fromkeys(
            (
                scan.original_key,
                f"images/{scan.id}.png",
                f"thumbnails/{scan.id}.png",
                f"volumes/{scan.id}.nii.gz",
                f"outlines/{scan.id}.nii.gz",
            )
        )
    keys |= dict.fromkeys(heatmaps_of(which))
    reports = db.session.scalars(select(Report).join(Report.scan).where(which))
    keys |= dict.fromkeys(key for report in reports for key in report.file_keys)
    of_scans = select(Preview.id).join(Scan, Preview.scan_id == Scan.id).where(which)
    keys |= dict.fromkeys(map(preview_file, db.session.scalars(of_scans)))
    return [key for key in keys if key]


def heatmaps_of(which: ColumnElement[bool]) -> list[str]:
    """Return the storage keys of the heat maps of these scans."""
    rows = db.session.execute(
        select(Heatmap.id, Heatmap.image_key, Heatmap.slices)
        .join(Heatmap.prediction)
        .join(Prediction.scan)
        .where(which)
    )
    keys: dict[str | None, None] = {}
    for heatmap in rows:
        of_slices = [heatmap_key(heatmap.id, index) for index in heatmap.slices or ()]
        keys |= dict.fromkeys((heatmap.image_key, f"heatmaps/{heatmap.id}.png", *of_slices))
    return [key for key in keys if key]


def discard(keys: Iterable[str], within_s: float = float("inf")) -> bool:
    """Delete these files within `within_s` seconds; return False if some are left to
    `worker.orphaned_files`.
    """
    give_up_at = time.monotonic() + within_s
    all_removed = True
    for key in keys:
        all_removed &= time.monotonic() < give_up_at and storage.discard(key)
    return all_removed


def _require_another_admin(user_id: str) -> None:
    if active_admins() == [user_id]:
        db.session.rollback()
        raise StillNeeded(
            "This is the only administrator. Create another one before you delete this account."
        )
