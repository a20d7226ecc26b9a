"""What people do with a scan besides looking at it: give opinions, share it, and go through the
review queue.
"""

from __future__ import annotations

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_required

from webapp.extensions import db
from webapp.forms import OpinionForm, ShareForm, is_id
from webapp.models import Finding
from webapp.opinions import GONE, OpinionRefused, Said, ScanGone, give, withdraw
from webapp.review import counts_for, next_in_queue, queue_of, random_share
from webapp.scans import own_scan, scan_page, visible_scan
from webapp.sharing import THE_REVIEWERS, SharingRefused, end_share, share

blueprint = Blueprint("opinions", __name__)

QUEUE_SHOWN = 25


@blueprint.post("/scans/<scan_id>/opinions")
@login_required
def save(scan_id: str) -> ResponseReturnValue:
    """Give or change one's own opinion on a scan or on one of its slices."""
    form = OpinionForm()
    if not is_id(scan_id):
        abort(404, "Scan not found.")
    if not form.validate_on_submit():
        return scan_page(visible_scan(scan_id), form), 400
    said = Said(
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
            said,
            from_queue=bool(form.queue.data),
            only_finding="comment" not in request.form,
        )
    except ScanGone:
        db.session.rollback()
        abort(404, GONE)
    except OpinionRefused as err:
        db.session.rollback()
        form.form_errors.append(str(err))
        return scan_page(visible_scan(scan_id), form), 400
    db.session.commit()
    if form.queue.data and current_user.is_reviewer:
        return _next()
    flash("Your opinion has been saved.", "success")
    return redirect(url_for("scans.show", scan_id=scan_id, _anchor="opinions"))


@blueprint.post("/scans/<scan_id>/opinions/<opinion_id>/withdraw")
@login_required
def take_back(scan_id: str, opinion_id: str) -> ResponseReturnValue:
    """Withdraw one's own opinion."""
    scan = visible_scan(scan_id)
    if not is_id(opinion_id) or not withdraw(scan.id, opinion_id, current_user.id):
        db.session.rollback()
        abort(404, "Opinion not found.")
    db.session.commit()
    flash("Your opinion has been withdrawn.", "success")
    return redirect(url_for("scans.show", scan_id=scan_id, _anchor="opinions"))


@blueprint.post("/scans/<scan_id>/shares")
@login_required
def add_share(scan_id: str) -> ResponseReturnValue:
    """Share an own scan with the reviewers, if `reviewers` was posted, or with the person named."""
    scan = own_scan(scan_id)
    form = ShareForm()
    name = None if "reviewers" in request.form else form.username.data or ""
    if not form.validate_on_submit():
        flash(" ".join(form.username.errors) or "Please enter a username.", "error")
        return scan_page(scan), 400
    try:
        made = share(scan, name)
    except SharingRefused as err:
        db.session.rollback()
        flash(str(err), "error")
        return scan_page(own_scan(scan_id)), 400
    db.session.commit()
    whom = made.with_user.username if made.with_user else THE_REVIEWERS
    flash(f"The scan is now shared with {whom}.", "success")
    return redirect(url_for("scans.show", scan_id=scan_id, _anchor="opinions"))


@blueprint.post("/scans/<scan_id>/shares/<share_id>/end")
@login_required
def remove_share(scan_id: str, share_id: str) -> ResponseReturnValue:
    """Take back what an own scan was shared with."""
    scan = own_scan(scan_id)
    if not is_id(share_id) or not end_share(scan.id, share_id):
        db.session.rollback()
        abort(404, "The scan is no longer shared like this.")
    db.session.commit()
    flash("The scan is no longer shared like this. Opinions that were given remain.", "success")
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


def _next() -> ResponseReturnValue:
    scan_id = next_in_queue(current_user.id)
    if scan_id is None:
        flash("You have reviewed everything in the queue.", "success")
        return redirect(url_for("opinions.review"))
    return redirect(url_for("scans.show", scan_id=scan_id, queue=1))
