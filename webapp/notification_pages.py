"""Notifications on pages: what a person chooses on the account page, a test message, and what pages
that are open ask for.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from flask import Blueprint, Response, abort, flash, jsonify, redirect, request, url_for
from flask_login import current_user, login_required
from werkzeug.wrappers import Response as WerkzeugResponse

from webapp.audit import whose_request
from webapp.auth import account_page
from webapp.extensions import db, limiter
from webapp.forms import NotificationsForm
from webapp.models import Channel, Wanted, choose
from webapp.models.accounts import lock_person
from webapp.notifications import channels_offered, news_since, queue_test

blueprint = Blueprint("notifications", __name__)


@blueprint.post("/account/notifications")
@login_required
def save() -> str | tuple[str, int] | WerkzeugResponse:
    """Save which results a person wants to be told of, and how."""
    form = NotificationsForm(channels_offered())
    if not form.validate_on_submit():
        return account_page(notifications_form=form)
    chosen = {Channel(field.name): Wanted(field.data) for field in form.channels}
    if lock_person(current_user.id) is None:
        abort(404)  # The account was deleted meanwhile.
    choose(current_user.id, chosen)
    db.session.commit()
    flash("Your notifications have been saved.", "success")
    return _back()


@blueprint.post("/account/notifications/test")
@login_required
@limiter.limit("6 per minute", key_func=lambda: str(whose_request()))
def send_test() -> WerkzeugResponse:
    """Queue a test message for each channel that the person chose."""
    queued = queue_test(current_user.id)
    db.session.commit()
    if queued:
        flash("A test message is on its way; see below whether it arrived.", "success")
    else:
        flash("Choose a channel first, and save it.", "warning")
    return _back()


@blueprint.get("/notifications/news")
@login_required
def news() -> Response:
    """Return the addresses of results that came after a point in time (`after`), and the point to
    ask from next.
    """
    try:
        after = datetime.fromisoformat(request.args.get("after", ""))
        if after.tzinfo is None:
            raise ValueError
    except ValueError:
        abort(400, "Unknown point in time.")
    scan_ids, now = news_since(current_user.id, after)
    told: dict[str, Any] = {
        "now": now.isoformat(),
        "results": [url_for("scans.show", scan_id=scan_id) for scan_id in scan_ids],
    }
    answer = jsonify(told)
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _back() -> WerkzeugResponse:
    return redirect(url_for("auth.account", _anchor="notifications"))
