"""The page of a promotion: its reason, and the results that would differ without it."""

from __future__ import annotations

from dataclasses import dataclass

from flask import Response, abort, flash, redirect, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import select

from webapp.admin.pages import ROWS_PER_PAGE, blueprint, live_page, warn_of_delay
from webapp.admin.promotion_effects import (
    MOST_SCANS,
    Beside,
    effect_of,
    find_out,
    promotion_with_version,
)
from webapp.audit import record
from webapp.extensions import db
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import Act, Promotion, Scan, Shadow, ShadowRefused
from webapp.paging import requested_page
from webapp.review.sharing import visible_to


@dataclass(frozen=True)
class Changed:
    """A scan whose result would have been different; `scan` is None if it is not shared with the
    reader.
    """

    beside: Beside
    scan: Scan | None


@blueprint.get("/promotions/<int:promotion_id>")
@blueprint.get("/promotions/<int:promotion_id>/progress", endpoint="promotion_progress")
def promotion(promotion_id: int) -> Response:
    """Show why a version went live, and which results would have been different without it."""
    row = _promotion(promotion_id)
    effect = effect_of(row)
    page = requested_page(len(effect.changed), ROWS_PER_PAGE)
    begin = (page.number - 1) * ROWS_PER_PAGE
    shown = effect.changed[begin : begin + ROWS_PER_PAGE]
    seen = select(Scan).where(
        Scan.id.in_([pair.result.scan_id for pair in shown]), visible_to(current_user.id)
    )
    scans = {scan.id: scan for scan in db.session.scalars(seen)}
    return live_page(
        "promotion_effect",
        pending=effect.running is not None,
        promotion=row,
        effect=effect,
        changed=[Changed(pair, scans.get(pair.result.scan_id)) for pair in shown],
        page=page,
        most=MOST_SCANS,
    )


@blueprint.post("/promotions/<int:promotion_id>/find-out")
def find_out_effect(promotion_id: int) -> ResponseReturnValue:
    """Let the previous version analyze the scans from the period in which a promotion was in
    force.
    """
    try:
        _, was_nudged = begin_finding_out(_promotion(promotion_id), current_user.id)
        if not was_nudged:
            warn_of_delay()
    except ShadowRefused as err:
        flash(str(err), "warning")
    return redirect(url_for("admin.promotion", promotion_id=promotion_id))


def begin_finding_out(promotion: Promotion, by_id: str) -> tuple[Shadow, bool]:
    """Let the previous version analyze the scans from the period in which a promotion was in force,
    and commit; return the shadow, and whether a worker could be notified.

    Raises:
        ShadowRefused: as `find_out`.
    """
    try:
        shadow = find_out(promotion, by_id)
    except ShadowRefused:
        db.session.rollback()
        raise
    record(Act.SHADOW_STARTED, shadow.version_id)
    db.session.commit()
    return shadow, nudge(PREDICT_SCANS)


def _promotion(promotion_id: int) -> Promotion:
    row = promotion_with_version(promotion_id)
    if row is None:
        abort(404)
    return row
