"""Notifications on pages: a user's choices on the account page, a test message, and the polling of
open pages.
"""

from __future__ import annotations

from datetime import UTC, datetime

from flask import Blueprint, Response, abort, flash, jsonify, redirect, request, url_for
from flask_login import current_user, login_required
from werkzeug.wrappers import Response as WerkzeugResponse

from webapp.accounts.auth import account_page
from webapp.accounts.notifications import channels_offered, news_since, queue_test, save_choices
from webapp.extensions import db
from webapp.forms import NotificationsForm
from webapp.models import Channel, Wanted
from webapp.rates import within_settings_rate, within_test_rate

blueprint = Blueprint("notifications", __name__)


@blueprint.post("/account/notifications")
@login_required
@within_settings_rate
def save() -> str | tuple[str, int] | WerkzeugResponse:
    """Save which results a user wants to be notified of, and how."""
    form = NotificationsForm(channels_offered())
    if not form.validate_on_submit():
        return account_page(notifications_form=form)
    chosen = {Channel(field.name): Wanted(field.data) for field in form.channels}
    if not save_choices(current_user.id, chosen):
        abort(404)  # The account was deleted meanwhile.
    flash("Your notifications have been saved.", "success")
    return _back()


@blueprint.post("/account/notifications/test")
@login_required
@within_test_rate
def send_test() -> WerkzeugResponse:
    """Queue a test message for each channel that the user chose."""
    queued = queue_test(current_user.id)
    db.session.commit()
    if queued:
        flash("A test message is being sent; its status is shown below.", "success")
    else:
        flash("Choose a channel and save it first.", "warning")
    return _back()


@blueprint.get("/notifications/news")
@login_required
def news() -> Response:
    """Return the addresses of results that came after a point in time (`after`) or shortly before
    it, and the point in time for the next request.
    """
    try:
        after = datetime.fromisoformat(request.args.get("after", ""))
        if after.tzinfo is None:
            raise ValueError
        scan_ids, now = news_since(current_user.id, after.astimezone(UTC))
    except (ValueError, OverflowError):  # For example, a date after the year 9999.
        abort(400, "Unknown point in time.")
    results = [url_for("scans.show", scan_id=scan_id) for scan_id in scan_ids]
    answer = jsonify({"now": now.isoformat(), "results": results})
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _back() -> WerkzeugResponse:
    return redirect(url_for("auth.account", _anchor="notifications"))
