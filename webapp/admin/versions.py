"""The pages of model versions: figures, promotion and rollback."""

from __future__ import annotations

import time
from typing import Any

from flask import flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import select, update
from sqlalchemy.orm import contains_eager, defer, joinedload
from wtforms.validators import DataRequired

from webapp.admin.operating_points import asked_for, chosen_for, described, offered_for
from webapp.admin.pages import REFUSED, blueprint, page_of
from webapp.audit import record
from webapp.charts import roc_chart, scan_roc_chart
from webapp.extensions import database_now, db, reads_only
from webapp.forms import PostedForm, TextField, at_most
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import (
    OWN_THRESHOLDS,
    Act,
    ModelVersion,
    OperatingPoint,
    Promotion,
    PromotionRefused,
    live_version,
    require_promotable,
    version_before,
    waits_for_check,
)
from webapp.models import promote as promote_version

PROMOTIONS_SHOWN = 50
LATER_COMPARED = 50
CHECK_WAIT_S, CHECK_LOOK_S = 20.0, 0.2
CHECK_HOLDS_S = 600
"""A version that a worker loaded so short a time ago is not loaded once more."""
NOT_CHECKED = (
    "No predict worker has loaded this version yet, so it was not promoted: each version has to"
    " score a test phantom first. Please try again in a minute."
)


class PromoteForm(PostedForm):
    """The reason for a promotion, and the operating point; none keeps the version's own."""

    reason = TextField(
        "Reason",
        validators=[
            DataRequired("Please enter a reason for the promotion; it is recorded in the history."),
            at_most(500),
        ],
    )
    point = TextField("Operating point")
    scan_threshold = TextField("Series from")
    slice_threshold = TextField("Single slices from")

    def operating_point(self, version: ModelVersion) -> OperatingPoint | None:
        """Return the operating point asked for, None where none is.

        Raises:
            PromotionRefused: the version has no such point.
        """
        if not self.point.data:
            return None
        try:
            return asked_for(
                version,
                self.point.data,
                self.slice_threshold.data or "",
                self.scan_threshold.data or "",
            )
        except ValueError as err:
            raise PromotionRefused(str(err)) from err


@blueprint.get("/models")
def models() -> ResponseReturnValue:
    """List all versions, newest first, with the live ones and the history of promotions."""
    page = page_of(
        ModelVersion,
        select(ModelVersion, ModelVersion.card["metrics"], ModelVersion.card["data"])
        .options(defer(ModelVersion.card))
        .order_by(ModelVersion.created_at.desc(), ModelVersion.id),
    )
    history = db.session.scalars(
        select(Promotion)
        .join(Promotion.version)
        .options(
            contains_eager(Promotion.version).defer(ModelVersion.card), joinedload(Promotion.by)
        )
        .order_by(Promotion.id.desc())
        .limit(PROMOTIONS_SHOWN)
    ).all()
    live = {reads: version for reads in ("slice", "series") if (version := live_version(reads))}
    return render_template(
        "admin/models.html",
        page=page,
        history=history,
        live=live,
        chosen={reads: chosen_for(version) for reads, version in live.items()},
        before={reads: version_before(version) for reads, version in live.items()},
        form=PromoteForm(),
    )


@blueprint.get("/models/<version_id>")
def model(version_id: str) -> ResponseReturnValue:
    """Show a version's card, its promotions, and the form that promotes it."""
    return show_version(db.get_or_404(ModelVersion, version_id), PromoteForm())


@blueprint.post("/models/<version_id>/promote")
def promote(version_id: str) -> ResponseReturnValue:
    """Make a version live that a predict worker can load; a rollback does the same with an older
    one, and a change of operating point with the live one.
    """
    version = db.get_or_404(ModelVersion, version_id)
    form = PromoteForm()
    if form.validate_on_submit():
        live = live_version(version.reads)
        was_live = live is not None and live.id == version.id
        try:
            point = form.operating_point(version)
            require_promotable(version, form.reason.data, point)
            if not was_live:
                require_check(version.id)
            promote_version(version, current_user.id, form.reason.data, point)
        except PromotionRefused as err:
            form.form_errors.append(str(err))
        else:
            act = Act.POINT_CHANGED if was_live else Act.VERSION_PROMOTED
            record(act, version.id, detail=str(version.operating_point))
            db.session.commit()
            flash(f"Version {version.card_id} is now live, {version.operating_point}.", "success")
            return redirect(url_for("admin.models"))
    return show_version(version, form), REFUSED


@blueprint.get("/models/<version_id>/threshold")
def threshold(version_id: str) -> ResponseReturnValue:
    """Show what a threshold for series would have found, as a part of the version's page."""
    version = db.get_or_404(ModelVersion, version_id)
    try:
        point = asked_for(version, OWN_THRESHOLDS, "", request.args.get("at", ""))
    except ValueError as err:
        return render_template("admin/_threshold.html", error=str(err))
    found = described(version.card, point)
    return render_template(
        "admin/_threshold.html",
        version=version,
        meaning=found.by_scan,
        threshold=found.scan_threshold,
        chart=scan_roc_chart(version.card, found.scan_threshold),
    )


def require_check(version_id: str) -> None:
    """Have a predict worker load a version and score a phantom (`worker.canary`), and wait for what
    it finds.

    Raises:
        PromotionRefused: it could not, or no worker did in time.
    """
    found = select(ModelVersion.check_error).where(
        ModelVersion.id == version_id, ~waits_for_check()
    )
    holds = ModelVersion.checked_at > database_now(-CHECK_HOLDS_S)
    passed = db.session.execute(
        found.where(holds, ModelVersion.check_error.is_(None))
    ).one_or_none()
    if passed is not None:
        return
    db.session.execute(
        update(ModelVersion)
        .where(ModelVersion.id == version_id)
        .values(check_requested_at=database_now())
    )
    db.session.commit()
    nudge(PREDICT_SCANS)
    deadline = time.monotonic() + CHECK_WAIT_S
    token = reads_only.set(True)  # Whoever only looks must not hold SQLite's write lock.
    try:
        while (row := db.session.execute(found).one_or_none()) is None:
            db.session.commit()
            if time.monotonic() > deadline:
                raise PromotionRefused(NOT_CHECKED)
            time.sleep(CHECK_LOOK_S)
        db.session.commit()
    finally:
        reads_only.reset(token)
    if row.check_error is not None:
        raise PromotionRefused(f"A predict worker could not use this version: {row.check_error}")


def show_version(version: ModelVersion, form: PromoteForm) -> str:
    """Render a version's page with this form."""
    live = live_version(version.reads)
    is_live = live is not None and live.id == version.id
    history = db.session.scalars(
        select(Promotion)
        .where(Promotion.version_id == version.id)
        .options(joinedload(Promotion.by))
        .order_by(Promotion.id.desc())
    ).all()
    chosen = chosen_for(version)
    return render_template(
        "admin/model.html",
        version=version,
        history=history,
        is_live=is_live,
        chosen=chosen,
        offered=offered_for(version),
        before=version_before(version) if is_live else None,
        comparisons=comparisons_of(version),
        roc=roc_chart(version.card),
        scan_roc=scan_roc_chart(version.card, chosen.scan_threshold),
        form=form,
    )


def comparisons_of(version: ModelVersion) -> list[dict[str, Any]]:
    """Return the comparisons of a version with others (`worker.comparison`): later versions, the
    newest first, then earlier ones.

    A version is compared with earlier ones when it is created; for those, the sign is reversed.
    """
    later = db.session.execute(
        select(ModelVersion.id, ModelVersion.card_id, ModelVersion.comparisons)
        .where(ModelVersion.created_at > version.created_at, ModelVersion.comparisons.is_not(None))
        .order_by(ModelVersion.created_at.desc())
        .limit(LATER_COMPARED)
    )
    seen_from_here = [
        {**reversed_comparison(found), "version_id": id, "card_id": card_id}
        for id, card_id, comparisons in later
        for found in comparisons or []
        if found["version_id"] == version.id
    ]
    return seen_from_here + (version.comparisons or [])


def reversed_comparison(found: Any) -> Any:
    """Return a comparison with the sign of every difference reversed."""
    if not isinstance(found, dict):
        return found
    if "value" in found and found["value"] is not None:
        low, high = (None if found[bound] is None else -found[bound] for bound in ("high", "low"))
        return {**found, "value": -found["value"], "low": low, "high": high}
    return {name: reversed_comparison(part) for name, part in found.items()}
