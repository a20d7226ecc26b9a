"""The pages of model versions: figures, promotion, rollback, and the timeline of live versions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO

from flask import Response, abort, flash, redirect, render_template, request, send_file, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import select, update
from sqlalchemy.orm import contains_eager, defer, joinedload
from wtforms.validators import DataRequired

from webapp.admin.comparisons import both_at, comparisons_of
from webapp.admin.evaluations import EvaluateForm, evaluations_of
from webapp.admin.operating_points import (
    chosen_for,
    offered_for,
    requested_point,
    threshold_of,
)
from webapp.admin.pages import REFUSED, blueprint, page_of, requested_tab, warn_of_delay
from webapp.admin.promotion_checks import (
    Decision,
    checklist_of,
    mark_of_live,
    promote_as_admin,
)
from webapp.admin.site import on_confirmed_scans
from webapp.admin.version_figures import CARD_TABS, figures_of, requested_threshold
from webapp.audit import record
from webapp.charts.roc import roc_chart
from webapp.display import name_of_version
from webapp.extensions import database_now, db, reads_only
from webapp.forms import PostedForm, TextField, at_most, moment_of
from webapp.jobs import PREDICT_SCANS, TRAIN_MODEL, nudge
from webapp.learning.confirmed import RequestRefused
from webapp.learning.shadow_figures import shadows_of
from webapp.models import (
    OWN_THRESHOLDS,
    Act,
    ModelVersion,
    OperatingPoint,
    Promotion,
    PromotionRefused,
    compare_newest_with,
    comparison_of,
    earlier_promotions,
    live_version,
    promotion_after,
    promotion_at,
    request_comparison,
    require_promotable,
    waits_for_check,
)
from webapp.storage import MissingFile, storage

KINDS = ("slice", "series")
TABS = {"promotion": "Promotion", "evaluations": "Evaluations", **CARD_TABS}
PROMOTIONS_SHOWN = 50
CHECK_WAIT_S, CHECK_LOOK_S = 20.0, 0.2
CHECK_HOLDS_S = 600
"""A version that a worker loaded this recently is not loaded again."""
NOT_CHECKED = (
    "This version was not promoted because no predict worker has loaded it yet: each version has to"
    " score a test phantom first. Please try again in a minute."
)


class PromoteForm(PostedForm):
    """The reason for a promotion, and the operating point; none keeps the version's current one.
    `seen` is the version that was live when the page was displayed, `confirmation` the text to type
    for a version that is worse or not comparable.
    """

    reason = TextField(
        "Reason",
        validators=[
            DataRequired("Please enter a reason for the promotion; it is recorded in the history."),
            at_most(500),
        ],
    )
    seen = TextField("What was live")
    confirmation = TextField("Confirmation", validators=[at_most(100)])
    point = TextField("Operating point")
    scan_threshold = TextField("Series from")
    slice_threshold = TextField("Single slices from")

    def operating_point(self, version: ModelVersion) -> OperatingPoint | None:
        """Return the requested operating point; None if none was requested.

        Raises:
            PromotionRefused: the version has no such point.
        """
        if not self.point.data:
            return None
        try:
            return requested_point(
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
    live = {reads: version for reads in KINDS if (version := live_version(reads))}
    at = request.args.get("at", "")
    moment = moment_of(at)
    return render_template(
        "admin/models.html",
        page=page,
        timeline=periods_of(history),
        live=live,
        chosen={reads: chosen_for(version) for reads, version in live.items()},
        earlier={reads: earlier_promotions(version) for reads, version in live.items()},
        at=at,
        moment=moment,
        live_then={reads: period_at(reads, moment) for reads in KINDS} if moment else {},
    )


@dataclass(frozen=True)
class Period:
    """A promotion, and the end of its period; None while it is in force."""

    promotion: Promotion
    until: datetime | None


def periods_of(history: Sequence[Promotion]) -> list[Period]:
    """Return the periods of the newest promotions, newest first."""
    until: dict[str, datetime] = {}
    periods = []
    for promotion in history:
        periods.append(Period(promotion, until.get(promotion.reads)))
        until[promotion.reads] = promotion.at
    return periods


def period_at(reads: str, moment: datetime) -> Period | None:
    """Return the promotion in force for `reads` at a point in time; None if there was none yet."""
    promotion = promotion_at(reads, moment)
    if promotion is None:
        return None
    after = promotion_after(promotion)
    return Period(promotion, after.at if after else None)


@blueprint.get("/models/<version_id>")
def model(version_id: str) -> ResponseReturnValue:
    """Show a version's card, its promotions, and the form that promotes it."""
    version = db.get_or_404(ModelVersion, version_id)
    form = PromoteForm()
    if at := request.args.get("use"):  # Values from the page's section on thresholds.
        form.point.data = OWN_THRESHOLDS
        of_scans = request.args.get("level") != "slice"
        (form.scan_threshold if of_scans else form.slice_threshold).data = at
    return show_version(version, form)


@blueprint.post("/models/<version_id>/promote")
def promote(version_id: str) -> ResponseReturnValue:
    """Make a version live, after a predict worker has loaded it; a rollback does the same with an
    older one, and a change of operating point with the live one.
    """
    version = db.get_or_404(ModelVersion, version_id)
    form = PromoteForm()
    if form.validate_on_submit():
        try:
            decision = Decision(
                current_user.id,
                form.reason.data,
                form.operating_point(version),
                seen=form.seen.data or "",
                confirmation=form.confirmation.data or "",
            )
            make_live(version, decision)
        except PromotionRefused as err:
            form.form_errors.append(str(err))
        else:
            flash(f"{name_of_version(version)} is now live, {version.operating_point}.", "success")
            return redirect(url_for("admin.models"))
    return show_version(version, form), REFUSED


def make_live(version: ModelVersion, decision: Decision) -> Promotion:
    """Promote a version, after a predict worker has loaded it, or change the operating point of the
    live one, and commit.

    Raises:
        PromotionRefused: it may not be promoted, or no worker could load it; nothing was changed.
    """
    live = live_version(version.reads)
    was_live = live is not None and live.id == version.id
    try:
        require_promotable(version, decision.reason, decision.point)
        if not was_live:
            require_check(version.id)
        promotion = promote_as_admin(version, decision)
    except PromotionRefused:
        db.session.rollback()
        raise
    act = Act.POINT_CHANGED if was_live else Act.VERSION_PROMOTED
    record(act, version.id, detail=str(version.operating_point))
    if not was_live:
        compare_newest_with(version)
    db.session.commit()
    if not was_live:
        nudge(TRAIN_MODEL)
    return promotion


@blueprint.post("/models/<version_id>/compare")
def compare_with_live(version_id: str) -> ResponseReturnValue:
    """Queue the comparison of a version with the live one."""
    version = db.get_or_404(ModelVersion, version_id)
    try:
        if not request_comparison_with_live(version):
            warn_of_delay()
    except RequestRefused as err:
        flash(str(err), "warning")
    return redirect(url_for("admin.model", version_id=version.id, _anchor="promotion"))


def request_comparison_with_live(version: ModelVersion) -> bool:
    """Queue the comparison of a version with the live one; return whether a worker could be
    notified.

    Raises:
        RequestRefused: no other version is live.
    """
    live = live_version(version.reads)
    if live is None or live.id == version.id:
        raise RequestRefused("There is no other live version to compare this one with.")
    request_comparison(version.id, live.id)
    record(Act.COMPARISON_REQUESTED, version.id)
    db.session.commit()
    return nudge(TRAIN_MODEL)


@blueprint.get("/models/<version_id>/both")
def both_versions(version_id: str) -> ResponseReturnValue:
    """Show the figures of a version and of the live one at a threshold, on the same patients, as a
    fragment of the version's page.
    """
    version = db.get_or_404(ModelVersion, version_id)
    try:
        threshold = threshold_of(request.args.get("at", ""))
    except ValueError as err:
        return render_template("admin/_version_comparison.html", error=str(err))
    rows = both_at(checklist_of(version).compared, threshold)
    return render_template("admin/_version_comparison.html", threshold=threshold, rows=rows)


@blueprint.get("/models/<version_id>/threshold")
def threshold(version_id: str) -> ResponseReturnValue:
    """Show the figures at a threshold, as a fragment of the version's page."""
    version = db.get_or_404(ModelVersion, version_id)
    try:
        at = requested_threshold(version, request.args)
    except ValueError as err:
        return render_template("admin/_threshold.html", error=str(err))
    return render_template("admin/_threshold.html", version=version, at=at)


@blueprint.get("/models/<version_id>/mistakes/<int:index>.png")
@blueprint.get(
    "/models/<version_id>/mistakes/<int:index>-heat.png", endpoint="version_mistake_heat"
)
def version_mistake(version_id: str, index: int) -> ResponseReturnValue:
    """Send the image of one of a version's worst out-of-fold mistakes, or its heat map."""
    version = db.get_or_404(ModelVersion, version_id)
    return stored_mistake(version, index, "-heat" if request.path.endswith("-heat.png") else "")


def stored_mistake(version: ModelVersion, index: int, layer: str = "") -> Response:
    """Return the image of a mistake, or its heat map ("-heat"); 404 if there is none."""
    if index >= len(version.mistakes or ()):
        abort(404, "This version has no such mistake.")
    try:
        content = storage.get(version.mistake_key(index, layer))
    except MissingFile:
        abort(404)
    return send_file(BytesIO(content), mimetype="image/png", max_age=0)


def require_check(version_id: str) -> None:
    """Have a predict worker load a version and score a phantom (`worker.canary`), and wait for the
    result.

    Raises:
        PromotionRefused: it failed, or no worker did so in time.
    """
    result = select(ModelVersion.check_error).where(
        ModelVersion.id == version_id, ~waits_for_check()
    )
    holds = ModelVersion.checked_at > database_now(-CHECK_HOLDS_S)
    passed = db.session.execute(
        result.where(holds, ModelVersion.check_error.is_(None))
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
    token = reads_only.set(True)  # A read-only wait must not hold SQLite's write lock.
    try:
        while (row := db.session.execute(result).one_or_none()) is None:
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
    comparisons = comparisons_of(version)
    compared = select(ModelVersion).where(
        ModelVersion.id.in_({comparison["version_id"] for comparison in comparisons})
    )
    chosen = chosen_for(version)
    checklist = None if is_live else checklist_of(version)
    return render_template(
        "admin/model.html",
        version=version,
        tabs=TABS,
        tab=requested_tab(TABS),
        history=history,
        is_live=is_live,
        chosen=chosen,
        offered=offered_for(version),
        earlier=earlier_promotions(version) if is_live else [],
        checklist=checklist,
        both=both_at(checklist.compared, chosen.scan_threshold) if checklist else [],
        comparison=comparison_of(version, live) if live and not is_live else None,
        site=on_confirmed_scans(version, live) if live and not is_live else None,
        seen=mark_of_live(version.reads),
        comparisons=comparisons,
        names={
            each.id: name_of_version(each)
            for each in db.session.scalars(compared.options(defer(ModelVersion.card)))
        },
        evaluations=evaluations_of(version),
        evaluate_form=EvaluateForm(),
        shadows=shadows_of(version),
        roc=roc_chart(version.card),
        figures=figures_of(version, request.args),
        form=form,
    )
