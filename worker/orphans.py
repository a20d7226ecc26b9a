"""Files that no row names: what a deletion could not remove, or a process that was killed between file and row left behind."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, select

from webapp.extensions import db
from webapp.models import Heatmap, JobStatus, Leased, Scan, TrainingRun
from webapp.storage import StorageError, storage

log = logging.getLogger(__name__)

ABANDONED_AFTER = timedelta(hours=1)
"""A file is stored before the row that names it is committed: seconds before, not an hour."""
ASKED_AT_ONCE = 500

OWNERS: dict[str, tuple[type[Leased], ColumnElement[bool] | None]] = {
    "originals": (Scan, None),
    "images": (Scan, None),
    "thumbnails": (Scan, None),
    "heatmaps": (Heatmap, None),
    "checkpoints": (TrainingRun, TrainingRun.status.in_((JobStatus.QUEUED, JobStatus.RUNNING))),
}
"""By kind of file the rows whose ids their names begin with, and which of these still need them."""


def remove_orphans() -> None:
    """Remove the files that nobody needs; a storage that is away is asked again at the next time."""
    before = datetime.now(UTC) - ABANDONED_AFTER
    for kind, (table, needs) in OWNERS.items():
        try:
            old = [key for key, written in storage.written(kind).items() if written < before]
        except StorageError as err:
            log.warning("orphans of %s could not be looked for: %s", kind, type(err).__name__)
            continue
        for keys in (old[first : first + ASKED_AT_ONCE] for first in range(0, len(old), ASKED_AT_ONCE)):
            named = select(table.id).where(table.id.in_({id_in(key) for key in keys}))
            needed = set(db.session.scalars(named if needs is None else named.where(needs)))
            db.session.commit()
            for key in keys:
                # A part is what a process was writing when it was killed.
                if key.endswith(".part") or id_in(key) not in needed:
                    storage.discard(key)
                    log.warning("%s belonged to nobody and is removed", key)


def id_in(key: str) -> str:
    """Return the id that the name of a file begins with: `originals/3f…c2.dcm` is of the scan 3f…c2."""
    return key.rsplit("/", 1)[-1].split(".", 1)[0]
