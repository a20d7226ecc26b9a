"""The pages of shadows: a candidate analyzes live scans, and its predictions are compared with
those of the live version. No other page shows them.
"""

from __future__ import annotations

from dataclasses import dataclass

from flask import Response, flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import func, select
from sqlalchemy.orm import defer, joinedload

from ml.verdict import STATES
from webapp.admin.pages import ROWS_PER_PAGE, blueprint, live_page
from webapp.audit import record
from webapp.charts.over_time import drift_chart
from webapp.extensions import db
from webapp.learning.shadow_figures import agreement_of, cost_of, disagreements, drift_of
from webapp.models import (
    Act,
    ModelVersion,
    Scan,
    Shadow,
    ShadowAnswer,
    ShadowRefused,
    end_shadow,
    start_shadow,
)
from webapp.paging import PageNumbers, requested_page
from webapp.review.sharing import visible_to

HAS_ENDED = "Shadow mode has already ended."


@dataclass(frozen=True)
class Disagreement:
    """A prediction whose state differs from the live version's; `scan` is None if it is not shared
    with the reader.
    """

    answer: ShadowAnswer
    scan: Scan | None


@blueprint.post("/models/<version_id>/shadow")
def launch_shadow(version_id: str) -> ResponseReturnValue:
    """Start a shadow: a version analyzes live scans without showing the results to users."""
    version = db.get_or_404(ModelVersion, version_id)
    try:
        shadow = begin_shadow(version, current_user.id)
    except ShadowRefused as err:
        flash(str(err), "warning")
        return redirect(url_for("admin.model", version_id=version_id, _anchor="shadow"))
    return redirect(url_for("admin.shadow", shadow_id=shadow.id))


def begin_shadow(version: ModelVersion, by_id: str) -> Shadow:
    """Start a shadow, and commit.

    Raises:
        ShadowRefused: it cannot be started.
    """
    try:
        shadow = start_shadow(version, by_id)
    except ShadowRefused:
        db.session.rollback()
        raise
    record(Act.SHADOW_STARTED, version.id)
    db.session.commit()
    return shadow


@blueprint.get("/shadows/<shadow_id>")
@blueprint.get("/shadows/<shadow_id>/progress", endpoint="shadow_progress")
def shadow(shadow_id: str) -> Response:
    """Show the agreement of candidate and live version, their disagreements, drift and cost."""
    versions = (joinedload(Shadow.version), joinedload(Shadow.against))
    row = db.get_or_404(
        Shadow,
        shadow_id,
        options=[
            joinedload(Shadow.started_by),
            *(version.options(defer(ModelVersion.card)) for version in versions),
        ],
    )
    pair = request.args.get("live"), request.args.get("candidate")
    listed, numbers = _disagreements(row.id, *pair)
    drift = drift_of(row.id)
    return live_page(
        "shadow",
        pending=row.ended_at is None,
        shadow=row,
        agreement=agreement_of(row.id),
        states=STATES,
        cost=cost_of(row.id),
        drift=drift,
        chart=drift_chart(drift),
        disagreements=listed,
        page=numbers,
        pair=pair if all(state in STATES for state in pair) else None,
    )


@blueprint.post("/shadows/<shadow_id>/stop")
def stop_shadow(shadow_id: str) -> ResponseReturnValue:
    """End a shadow, and cancel its unfinished scans."""
    if not finish_shadow(db.get_or_404(Shadow, shadow_id)):
        flash(HAS_ENDED, "warning")
    return redirect(url_for("admin.shadow", shadow_id=shadow_id))


def finish_shadow(shadow: Shadow) -> bool:
    """End a shadow at an administrator's request, and commit; return False if it has already
    ended.
    """
    ended = end_shadow(shadow.id, "An administrator stopped it.")
    if ended:
        record(Act.SHADOW_STOPPED, shadow.version_id)
    db.session.commit()
    return ended


def _disagreements(
    shadow_id: str, live: str | None, own: str | None
) -> tuple[list[Disagreement], PageNumbers]:
    """Return the requested page of disagreements, newest first, and its number.

    As elsewhere, an administrator sees images and titles only of their own scans and of those
    shared with them.
    """
    which = disagreements(shadow_id, live, own)
    total = db.session.scalar(select(func.count()).select_from(ShadowAnswer).where(*which)) or 0
    page = requested_page(total, ROWS_PER_PAGE)
    answers = db.session.scalars(
        select(ShadowAnswer)
        .where(*which)
        .order_by(ShadowAnswer.queued_at.desc(), ShadowAnswer.id)
        .limit(ROWS_PER_PAGE)
        .offset((page.number - 1) * ROWS_PER_PAGE)
    ).all()
    ids = [answer.scan_id for answer in answers]
    seen = select(Scan).where(Scan.id.in_(ids), visible_to(current_user.id))
    scans = {scan.id: scan for scan in db.session.scalars(seen)}
    return [Disagreement(answer, scans.get(answer.scan_id)) for answer in answers], page
