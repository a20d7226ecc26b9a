"""What users do with a scan besides viewing it: give opinions, share it, and go through the
review queue.
"""

from __future__ import annotations

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_required

from webapp.display import finding_label
from webapp.extensions import db
from webapp.forms import OpinionForm, ShareForm, is_id
from webapp.models import Finding
from webapp.rates import within_opinion_rate, within_sharing_rate
from webapp.review.opinions import GONE, NewOpinion, OpinionRefused, ScanGone, give, withdraw
from webapp.review.queue import counts_for, next_in_queue, queue_of, random_share
from webapp.review.sharing import THE_REVIEWERS, SharingRefused, end_share, share
from webapp.scans.pages import opinions_panel, own_scan, scan_page, visible_scan

blueprint = Blueprint("opinions", __name__)

QUEUE_SHOWN = 25


@blueprint.post("/scans/<scan_id>/opinions")
@login_required
@within_opinion_rate
def save(scan_id: str) -> ResponseReturnValue:
    """Give or change one's own opinion on a scan or on one of its slices."""
    form = OpinionForm()
    if not is_id(scan_id):
        abort(404, "Scan not found.")
    if not form.validate_on_submit():
        return _refused(scan_id, form)
    opinion = NewOpinion(
        finding=Finding(form.finding.data),
        slice_index=None if form.slice.data is None else form.slice.data - 1,
        types=tuple(form.types.data or ()),
        comment=form.comment.data or "",
        region=form.region.data,
    )
    try:
        give(
            scan_id,
            current_user.id,
            opinion,
            from_queue=bool(form.queue.data),
            only_finding="comment" not in request.form,
        )
    except ScanGone:
        db.session.rollback()
        abort(404, GONE)
    except OpinionRefused as err:
        db.session.rollback()
        form.form_errors.append(str(err))
        return _refused(scan_id, form)
    db.session.commit()
    saved = f"Saved: {finding_label(opinion.finding).lower()}{_where(opinion.slice_index)}."
    if form.queue.data and current_user.is_reviewer:
        return _next(saved)
    if _wants_panel():
        return {"message": saved, "panel": opinions_panel(visible_scan(scan_id))}
    flash(saved, "success")
    return redirect(url_for("scans.show", scan_id=scan_id, _anchor="opinions"))


@blueprint.post("/scans/<scan_id>/opinions/<opinion_id>/withdraw")
@login_required
@within_opinion_rate
def withdraw_opinion(scan_id: str, opinion_id: str) -> ResponseReturnValue:
    """Withdraw one's own opinion."""
    scan = visible_scan(scan_id)
    if not is_id(opinion_id) or not withdraw(scan.id, opinion_id, current_user.id):
        db.session.rollback()
        abort(404, "Opinion not found.")
    db.session.commit()
    flash("Opinion withdrawn.", "success")
    return redirect(url_for("scans.show", scan_id=scan_id, _anchor="opinions"))


@blueprint.post("/scans/<scan_id>/shares")
@login_required
@within_sharing_rate
def add_share(scan_id: str) -> ResponseReturnValue:
    """Share one's own scan with the reviewers, if `reviewers` was posted, or with the named
    user.
    """
    scan = own_scan(scan_id)
    form = ShareForm()
    name = None if "reviewers" in request.form else form.username.data or ""
    if not form.validate_on_submit():
        return scan_page(scan, share_form=form), 400
    try:
        created = share(scan, name)
    except SharingRefused as err:
        db.session.rollback()
        form.username.errors = [str(err)]
        return scan_page(own_scan(scan_id), share_form=form), 400
    db.session.commit()
    whom = created.with_user.username if created.with_user else THE_REVIEWERS
    flash(f"The scan is now shared with {whom}.", "success")
    return redirect(url_for("scans.show", scan_id=scan_id, _anchor="opinions"))


@blueprint.post("/scans/<scan_id>/shares/<share_id>/end")
@login_required
@within_sharing_rate
def remove_share(scan_id: str, share_id: str) -> ResponseReturnValue:
    """Stop sharing one's own scan with a user or the reviewers."""
    scan = own_scan(scan_id)
    if not is_id(share_id) or not end_share(scan.id, share_id):
        db.session.rollback()
        abort(404, "This share no longer exists.")
    db.session.commit()
    flash("Sharing has been stopped. Existing opinions remain.", "success")
    return redirect(url_for("scans.show", scan_id=scan_id, _anchor="opinions"))


@blueprint.get("/review")
@login_required
def review() -> str:
    """Show which of the scans that are shared with the reviewers should be read next."""
    _require_reviewer()
    return render_template(
        "scans/review.html",
        queue=queue_of(current_user.id, QUEUE_SHOWN),
        counts=counts_for(current_user.id),
        random_share=random_share(),
    )


@blueprint.get("/review/next")
@login_required
def review_next() -> ResponseReturnValue:
    """Go to the scan that should be read next."""
    _require_reviewer()
    return _next()


def _require_reviewer() -> None:
    if not current_user.is_reviewer:
        abort(404)


def _next(saved: str = "") -> ResponseReturnValue:
    """Go to the next scan of the queue, with a message that the opinion on the previous one was
    `saved`.
    """
    scan_id = next_in_queue(current_user.id)
    sentences = [saved] * bool(saved) + ["That was the last scan in the queue."] * (scan_id is None)
    if sentences:
        flash(" ".join(sentences), "success")
    address = (
        url_for("opinions.review")
        if scan_id is None
        else url_for("scans.show", scan_id=scan_id, queue=1)
    )
    return {"next": address} if _wants_panel() else redirect(address)


def _wants_panel() -> bool:
    """True for opinions.js, which stays on the page and updates the panel."""
    return request.accept_mimetypes.best == "application/json"


def _refused(scan_id: str, form: OpinionForm) -> ResponseReturnValue:
    scan = visible_scan(scan_id)
    if _wants_panel():
        return {"panel": opinions_panel(scan, form)}, 400
    return scan_page(scan, form), 400


def _where(slice_index: int | None) -> str:
    return "" if slice_index is None else f" in slice {slice_index + 1}"
