"""Model versions: what each can do, which is live, and who decided so."""

from __future__ import annotations

from typing import Any

from flask import flash, redirect, render_template, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user
from sqlalchemy import select
from sqlalchemy.orm import contains_eager, defer, joinedload
from wtforms.validators import DataRequired

from webapp.admin.operating_points import asked_for, chosen_for, offered_for
from webapp.admin.pages import REFUSED, blueprint, page_of
from webapp.audit import record
from webapp.extensions import db
from webapp.forms import PostedForm, TextField, at_most
from webapp.models import (
    Act,
    ModelVersion,
    OperatingPoint,
    Promotion,
    PromotionRefused,
    live_version,
    version_before,
)
from webapp.models import promote as promote_version

PROMOTIONS_SHOWN = 50
LATER_COMPARED = 50


class PromoteForm(PostedForm):
    """Why a version should go live, and at which operating point; without one it keeps its own."""

    reason = TextField(
        "Reason",
        validators=[
            DataRequired("A promotion needs a reason, which is recorded in the history."),
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
    """List all versions, newest first, with what is live and the history of promotions."""
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
    """Make a version live; a rollback does the same with an older one, and a change of operating
    point with the live one.
    """
    version = db.get_or_404(ModelVersion, version_id)
    form = PromoteForm()
    if form.validate_on_submit():
        live = live_version(version.reads)
        was_live = live is not None and live.id == version.id
        try:
            point = form.operating_point(version)
            promote_version(version, current_user.id, form.reason.data, point)
        except PromotionRefused as err:
            form.form_errors.append(str(err))
        else:
            act = Act.POINT_CHANGED if was_live else Act.VERSION_PROMOTED
            record(act, version.id, detail=str(version.operating_point))
            db.session.commit()
            flash(
                f"The version {version.card_id} is now live, {version.operating_point}.", "success"
            )
            return redirect(url_for("admin.models"))
    return show_version(version, form), REFUSED


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
    return render_template(
        "admin/model.html",
        version=version,
        history=history,
        is_live=is_live,
        chosen=chosen_for(version),
        offered=offered_for(version),
        before=version_before(version) if is_live else None,
        comparisons=comparisons_of(version),
        form=form,
    )


def comparisons_of(version: ModelVersion) -> list[dict[str, Any]]:
    """Return how a version differs from others, as `worker.comparison` writes it: from later ones,
    the newest first, then from earlier ones.

    A version is compared once, when it is made, with some made before it; seen from those the sign
    is the other.
    """
    later = db.session.execute(
        select(ModelVersion.id, ModelVersion.card_id, ModelVersion.comparisons)
        .where(ModelVersion.created_at > version.created_at, ModelVersion.comparisons.is_not(None))
        .order_by(ModelVersion.created_at.desc())
        .limit(LATER_COMPARED)
    )
    seen_from_here = [
        {**turned_round(found), "version_id": id, "card_id": card_id}
        for id, card_id, comparisons in later
        for found in comparisons or []
        if found["version_id"] == version.id
    ]
    return seen_from_here + (version.comparisons or [])


def turned_round(found: Any) -> Any:
    """Return a comparison with every difference seen from the other side."""
    if not isinstance(found, dict):
        return found
    if "value" in found and found["value"] is not None:
        low, high = (None if found[bound] is None else -found[bound] for bound in ("high", "low"))
        return {**found, "value": -found["value"], "low": low, "high": high}
    return {name: turned_round(part) for name, part in found.items()}
