"""Orphaned files, which no row refers to: a deletion could not remove them, or a process was killed
between storing a file and committing its row.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute

from webapp.extensions import database_now, db
from webapp.models import (
    AnalysisKind,
    Dataset,
    DatasetAnalysis,
    Evaluation,
    Heatmap,
    JobStatus,
    ModelVersion,
    PaperExperiment,
    Preview,
    Report,
    Scan,
    TrainingRun,
)
from webapp.storage import StorageError, storage

log = logging.getLogger(__name__)

ABANDONED_AFTER = timedelta(hours=1)
"""Files are stored before the row that refers to them is committed, but only seconds before."""
ASKED_AT_ONCE = 500

FILE = re.compile(r"[a-z]+/[0-9a-f]{32}\.[^/]+|(models|evaluations)/[0-9a-f]{32}/[^/]+")
"""Keys that may be deleted: a kind and a name starting with a row's id, or a file of a model's or
an evaluation's folder. Anything else in the storage is not Hemoscan's.
"""
DATABASES = "databases"
"""Folder for the mark of the database that deletes orphans from this storage."""


def id_in(key: str) -> str:
    """Return the id at the start of a file name, such as 3f…c2 in `originals/3f…c2.dcm`."""
    return key.rsplit("/", 1)[-1].split(".", 1)[0]


def folder_of(key: str) -> str:
    """Return the folder of a file, such as `models/3f…c2` for `models/3f…c2/card.json`."""
    return key.rsplit("/", 1)[0]


def row_of_folder(key: str) -> str:
    """Return the id that names a folder, such as 3f…c2 in `evaluations/3f…c2/answers.csv`."""
    return key.split("/")[1]


OPEN = (JobStatus.QUEUED, JobStatus.RUNNING)
MAY_CONTINUE = (TrainingRun.status == JobStatus.FAILED) & (
    TrainingRun.finished_at > database_now(-7 * 24 * 3600)
)
"""The last checkpoint of a failed run is kept for a week, in case the run is retried."""
INDEXED = (DatasetAnalysis.kind == AnalysisKind.IMAGES) & DatasetAnalysis.status.in_(
    (*OPEN, JobStatus.DONE)
)
OWNERS: dict[str, tuple[InstrumentedAttribute[str], Callable[[str], str], ColumnElement[bool]]] = {
    "originals": (Scan.id, id_in, Scan.original_removed_at.is_(None)),
    "images": (Scan.id, id_in, true()),
    "thumbnails": (Scan.id, id_in, true()),
    "volumes": (Scan.id, id_in, true()),
    "outlines": (Scan.id, id_in, Scan.outline_key.is_not(None)),
    "heatmaps": (Heatmap.id, id_in, true()),
    "reports": (Report.id, id_in, true()),
    "datasets": (Dataset.archive_key, str, Dataset.status.in_((*OPEN, JobStatus.DONE))),
    "sheets": (Dataset.id, id_in, Dataset.status.in_((*OPEN, JobStatus.DONE))),
    "tiles": (DatasetAnalysis.dataset_id, id_in, INDEXED),
    "samples": (DatasetAnalysis.dataset_id, id_in, INDEXED),
    "previews": (Preview.id, id_in, Preview.status.in_((*OPEN, JobStatus.DONE))),
    "checkpoints": (TrainingRun.id, id_in, or_(TrainingRun.status.in_(OPEN), MAY_CONTINUE)),
    "papers": (PaperExperiment.id, id_in, PaperExperiment.status != JobStatus.DONE),
    "evaluations": (
        Evaluation.id,
        row_of_folder,
        Evaluation.status.in_((*OPEN, JobStatus.DONE)),
    ),
    "models": (ModelVersion.storage_prefix, folder_of, true()),
}
"""For each kind of file: the column that identifies its owner, the part of the key that this column
contains, and the condition for rows that still need their files.
"""


def remove_orphans() -> None:
    """Delete files that no row needs; if the storage is unavailable, the next run tries again."""
    try:
        if not storage_is_ours():
            return
    except StorageError as err:
        log.warning("cannot look for orphans: %s", type(err).__name__)
        return
    before = datetime.now(UTC) - ABANDONED_AFTER
    for kind, (column, name_in, needs) in OWNERS.items():
        try:
            old = [
                key
                for key, written in storage.written(kind).items()
                if written < before and FILE.fullmatch(key)
            ]
        except StorageError as err:
            log.warning("cannot look for orphans in %s: %s", kind, type(err).__name__)
            continue
        for keys in (
            old[first : first + ASKED_AT_ONCE] for first in range(0, len(old), ASKED_AT_ONCE)
        ):
            needed = set(
                db.session.scalars(
                    select(column).where(column.in_({name_in(key) for key in keys}), needs)
                )
            )
            db.session.commit()
            for key in keys:
                # A process was killed while writing a .part file.
                if key.endswith(".part") or name_in(key) not in needed:
                    storage.discard(key)
                    log.warning("%s is an orphan and was deleted", key)


def storage_is_ours() -> bool:
    """Return whether this database, and no other, has left its mark in the storage.

    A new database, one with a mistyped address or a copy for tests does not have the rows that the
    files belong to, and would delete them all. A database is identified by its first model version,
    which setup creates.
    """
    mark = db.session.scalar(
        select(ModelVersion.id).order_by(ModelVersion.created_at, ModelVersion.id).limit(1)
    )
    db.session.commit()
    if mark is None:
        return False
    marks = {key.rsplit("/", 1)[-1] for key in storage.keys(DATABASES)}
    if not marks:
        storage.put(f"{DATABASES}/{mark}", b"")
    elif marks != {mark}:
        log.error(
            "orphans are not deleted: the storage belongs to another database, see %s/ in it",
            DATABASES,
        )
        return False
    return True
