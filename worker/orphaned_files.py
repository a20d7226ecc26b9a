"""Files that no row names: what a deletion could not remove, or a process that was killed between
file and row left behind.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute

from webapp.extensions import database_now, db
from webapp.models import Dataset, Heatmap, JobStatus, ModelVersion, Scan, TrainingRun
from webapp.storage import StorageError, storage

log = logging.getLogger(__name__)

ABANDONED_AFTER = timedelta(hours=1)
"""A file is stored before the row that names it is committed: seconds before, not an hour."""
ASKED_AT_ONCE = 500

FILE = re.compile(r"[a-z]+/[0-9a-f]{32}\.[^/]+|models/[0-9a-f]{32}/[^/]+")
"""What is removed looks like this: a kind and a name that begins with a row's id, or a model's
folder. Anything else in the storage is not ours."""
DATABASES = "databases"
"""Under this name a database leaves its mark in the storage whose orphans it removes."""


def id_in(key: str) -> str:
    """Return the id that the name of a file begins with: `originals/3f…c2.dcm` is of the scan
    3f…c2.
    """
    return key.rsplit("/", 1)[-1].split(".", 1)[0]


def folder_of(key: str) -> str:
    """Return the folder that a file lies in: `models/3f…c2/card.json` lies in `models/3f…c2`."""
    return key.rsplit("/", 1)[0]


OPEN = (JobStatus.QUEUED, JobStatus.RUNNING)
MAY_CONTINUE = (TrainingRun.status == JobStatus.FAILED) & (
    TrainingRun.finished_at > database_now(-7 * 24 * 3600)
)
"""A run that failed may have kept its last checkpoint, for whoever tries it again within a week."""
OWNERS: dict[str, tuple[InstrumentedAttribute[str], Callable[[str], str], ColumnElement[bool]]] = {
    "originals": (Scan.id, id_in, Scan.original_removed_at.is_(None)),
    "images": (Scan.id, id_in, true()),
    "thumbnails": (Scan.id, id_in, true()),
    "volumes": (Scan.id, id_in, true()),
    "heatmaps": (Heatmap.id, id_in, true()),
    "datasets": (Dataset.archive_key, str, Dataset.status.in_((*OPEN, JobStatus.DONE))),
    "sheets": (Dataset.id, id_in, Dataset.status.in_((*OPEN, JobStatus.DONE))),
    "checkpoints": (TrainingRun.id, id_in, or_(TrainingRun.status.in_(OPEN), MAY_CONTINUE)),
    "models": (ModelVersion.storage_prefix, folder_of, true()),
}
"""By kind of file the column that names its owners, what stands there of a file's key, and which
rows still need their files.
"""


def remove_orphans() -> None:
    """Remove the files that nobody needs; a storage that is away is asked again at the next
    time.
    """
    try:
        if not storage_is_ours():
            return
    except StorageError as err:
        log.warning("orphans could not be looked for: %s", type(err).__name__)
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
            log.warning("orphans of %s could not be looked for: %s", kind, type(err).__name__)
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
                # A part is what a process was writing when it was killed.
                if key.endswith(".part") or name_in(key) not in needed:
                    storage.discard(key)
                    log.warning("%s belonged to nobody and is removed", key)


def storage_is_ours() -> bool:
    """True where this database alone has left its mark in the storage, now or earlier.

    A new database, a mistaken address or a copy for tests knows none of the rows that the files
    belong to, and would remove them all. A database is known by its first model version, which
    setup makes.
    """
    ours = db.session.scalar(
        select(ModelVersion.id).order_by(ModelVersion.created_at, ModelVersion.id).limit(1)
    )
    db.session.commit()
    if ours is None:
        return False
    marks = {key.rsplit("/", 1)[-1] for key in storage.keys(DATABASES)}
    if not marks:
        storage.put(f"{DATABASES}/{ours}", b"")
    elif marks != {ours}:
        log.error(
            "orphans are not removed: the storage belongs to another database, as %s/ in it says",
            DATABASES,
        )
        return False
    return True
