"""Previews for the pages: taken from the cache, or queued for a worker (`worker.previews`)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from webapp.extensions import database_now, db, noting, utc_now
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    JobStatus,
    Preview,
    new_preview,
    open_previews,
    preview_key,
    queue_again,
)
from webapp.models.exploration import MOST_OPEN_PREVIEWS

USED_AGAIN = timedelta(minutes=10)
"""How often the last use of a preview is recorded."""
TRIED_AGAIN = timedelta(seconds=20)
"""A preview that failed is made again when its page is opened after this time."""


def preview_of(
    what: Mapping[str, Any], settings: Mapping[str, Any], *, may_retry: bool
) -> Preview | None:
    """Return the preview of a slice with these settings, queueing it the first time. Returns None
    if too many are waiting already: the page then asks again.

    Args:
        what, settings: see `webapp.models.Preview`.
        may_retry: whether a failed one is made again.
    """
    preview = _known(what, settings)
    if preview is None:
        if open_previews() >= MOST_OPEN_PREVIEWS:
            return None
        try:
            with noting():
                new_preview(what, settings)
        except IntegrityError:
            db.session.rollback()  # Somebody else requested the same, or it was deleted.
        nudge(PREDICT_SCANS)
        return _known(what, settings)
    now = utc_now()
    if may_retry and preview.status == JobStatus.FAILED and _is_over(preview, now):
        with noting():
            queue_again(Preview, Preview.id == preview.id)
        nudge(PREDICT_SCANS)
        return _known(what, settings)
    if now - preview.used_at > USED_AGAIN:
        with noting():
            used = update(Preview).where(Preview.id == preview.id).values(used_at=database_now())
            db.session.execute(used, execution_options={"synchronize_session": False})
    return preview


def _known(what: Mapping[str, Any], settings: Mapping[str, Any]) -> Preview | None:
    return db.session.scalar(
        select(Preview).where(Preview.key == preview_key(what, settings)),
        execution_options={"populate_existing": True},
    )


def _is_over(preview: Preview, now: Any) -> bool:
    return preview.finished_at is None or now - preview.finished_at > TRIED_AGAIN
