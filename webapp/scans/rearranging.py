"""The pages on which selected images are joined into one series, and series are split again."""

from __future__ import annotations

from flask import Blueprint, flash, redirect, render_template, request, url_for
from flask_login import current_user, login_required
from werkzeug.wrappers import Response as WerkzeugResponse

from webapp.forms import is_id
from webapp.intake import (
    NotRearranged,
    join_pictures,
    split_series,
    within_rate,
)
from webapp.scans.worklist_query import own_scans

blueprint = Blueprint("rearranging", __name__, url_prefix="/scans/selected")


@blueprint.post("/join")
@within_rate
@login_required
def join() -> tuple[str, int] | WerkzeugResponse:
    """Join single images (`id`, repeated) into one series, in the order of their positions
    (`place`, repeated, one for each).
    """
    ids = [each for each in request.form.getlist("id") if is_id(each)]
    title = request.form.get("title", "").strip()
    places = request.form.getlist("place")
    try:
        series = join_pictures(current_user.id, _in_order(ids, places), title)
    except NotRearranged as err:
        scans = own_scans(current_user.id, ids)
        page = render_template(
            "scans/join.html", scans=scans, places=places, title=title, error=str(err)
        )
        return page, 400
    flash(f"{series.slice_count} images were joined. The series is being reanalyzed.", "success")
    return redirect(url_for("scans.show", scan_id=series.id))


@blueprint.post("/split")
@within_rate
@login_required
def split() -> WerkzeugResponse:
    """Split series of images (`id`, repeated) into single images."""
    pictures = 0
    for scan_id in dict.fromkeys(request.form.getlist("id")):
        if not is_id(scan_id):
            continue
        try:
            pictures += len(split_series(current_user.id, scan_id))
        except NotRearranged as err:
            flash(str(err), "warning")
    if pictures:
        flash(f"{pictures} images are being reanalyzed, each as a separate scan.", "success")
    return redirect(url_for("worklist.show"))


def _in_order(ids: list[str], places: list[str]) -> list[str]:
    """Return the ids in the order of their positions.

    Raises:
        NotRearranged: a position is missing, not a number, or duplicated.
    """
    entered = [place.strip() for place in places]
    if len(entered) != len(ids) or not all(
        place.isascii() and place.isdigit() and len(place) < 7 for place in entered
    ):
        raise NotRearranged("Please enter each image’s position as a whole number.")
    numbers = [int(place) for place in entered]
    if len(set(numbers)) < len(numbers):
        raise NotRearranged("Two images have the same position.")
    return [each for _, each in sorted(zip(numbers, ids, strict=True))]
