"""The worklist: a user's scans as a table that is filtered, sorted and kept up to date, and actions
on several of them at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from flask import (
    Blueprint,
    Response,
    abort,
    current_app,
    flash,
    redirect,
    render_template,
    request,
    url_for,
)
from flask_login import current_user, login_required
from sqlalchemy import select
from werkzeug.wrappers import Response as WerkzeugResponse

from webapp.api.opinions import add_opinions
from webapp.api.scans import scan_as_json, with_result
from webapp.api.schemas import ScanSchema
from webapp.deletion import FILES_S, delete_chosen
from webapp.extensions import database_now, db
from webapp.forms import SHARED, WorklistFilterForm, is_id, moment_of
from webapp.intake import COUNTING_PEOPLE
from webapp.intake.dicom_series import by_numbers
from webapp.intake.rearrange import may_be_joined, may_be_split
from webapp.models import Order, Scan
from webapp.paging import requested_page
from webapp.rates import within_change_rate
from webapp.review.sharing import is_any_shared_with, visible_to
from webapp.scans.changes import CHANGES, MOST_SELECTED, change_scans
from webapp.scans.submission import QUEUE_UNAVAILABLE, ScanForm, offered_phantoms
from webapp.scans.table import as_csv
from webapp.scans.worklist_query import (
    COLUMNS,
    address_of,
    count_of,
    direction,
    filters_in,
    has_pending,
    known_order,
    next_order,
    own_scans,
    studies_around,
    studies_of_page,
    verdicts_since,
    version_of,
    visible_scans,
)

blueprint = Blueprint("worklist", __name__, url_prefix="/scans")

PER_PAGE = 50
SERIES_PER_PAGE = 500
"""The filter for the worklist of one study, from which its images are joined."""


@blueprint.get("")
@login_required
def show() -> str:
    """Show a page of the worklist, with the filters and the order in the address."""
    form = WorklistFilterForm(request.args)
    chosen, order = form.chosen, known_order(request.args.get("order", ""))
    per_page = SERIES_PER_PAGE if "study" in chosen else PER_PAGE
    places, total = count_of(current_user.id, chosen)
    page = requested_page(places, per_page)
    first = (page.number - 1) * per_page
    address = address_of(chosen, order)
    return render_template(
        "scans/worklist.html",
        form=form,
        filtered=bool(chosen.keys() - {"whose"} or form.errors),
        is_shared=chosen.get("whose") == SHARED,
        may_choose_whose=is_any_shared_with(current_user.id),
        of_study="study" in chosen,
        studies=studies_of_page(current_user.id, chosen, order, places, per_page, first),
        version_of=version_of,
        total=total,
        page=page,
        address=address,
        order=order,
        orders=list(Order),
        columns=[
            {
                "name": name,
                "heading": column.heading,
                "direction": direction(name, order),
                "address": {**address, "order": next_order(name, order)},
            }
            for name, column in COLUMNS.items()
        ],
        pending=has_pending(current_user.id),
        submit_form=ScanForm(formdata=None),
        words_before_people=COUNTING_PEOPLE,
        **offered_phantoms(),
        opened=db.session.scalar(select(database_now())),
    )


@blueprint.get("/rows")
@login_required
def rows() -> Response:
    """Return these rows (`id`, repeated) with their current values, whether any of the user's scans
    is pending, and how many results came after `opened`; 304 if the browser's copy is current.
    """
    opened = moment_of(request.args.get("opened", ""))
    if opened is None:
        abort(400, "Unknown point in time.")
    scans = visible_scans(current_user.id, _ids(request.args.getlist("id"), PER_PAGE))
    chosen, order = filters_in(request.args)
    studies = studies_around(current_user.id, chosen, scans)
    pending = has_pending(current_user.id)
    news = verdicts_since(current_user.id, opened)
    facts = [pending, news, *((scan.id, version_of(scan)) for scan in scans)]
    facts += [(study.id, study.version) for study in studies]
    answer = Response()
    answer.set_etag(hashlib.sha256(repr(facts).encode()).hexdigest()[:32])
    answer.cache_control.private = True
    answer.cache_control.no_cache = True
    answer.make_conditional(request)
    if answer.status_code == 200:
        answer.set_data(
            render_template(
                "scans/_rows.html",
                scans=scans,
                studies=studies,
                version_of=version_of,
                pending=pending,
                news=news,
                address=address_of(chosen, order),
            )
        )
    return answer


@blueprint.post("/selected")
@login_required
@within_change_rate
def act() -> str | WerkzeugResponse:
    """Apply `action` to the selected scans (`id`, repeated): cancel, retry, again, stat, routine,
    share, csv or json; join, split and delete ask for confirmation first.
    """
    ids, action = _ids(request.form.getlist("id")), request.form.get("action", "")
    if action not in {*CHANGES, *CONFIRMED_FIRST, "csv", "json"}:
        abort(400, "Unknown action.")
    exports = action in ("csv", "json")
    scans = (visible_scans if exports else own_scans)(current_user.id, ids)
    if not scans:
        flash("Please select at least one scan.", "warning")
        return _back()
    if action in CONFIRMED_FIRST:
        return _ask(action, scans)
    if exports:
        return _export(ids, action)
    outcome, change = change_scans(scans, action), CHANGES[action]
    if not outcome.reachable:
        flash(QUEUE_UNAVAILABLE, "warning")
    _report(len(outcome.changed), len(scans), change.done, change.otherwise)
    return _back()


@blueprint.post("/selected/delete")
@login_required
@within_change_rate
def delete() -> WerkzeugResponse:
    """Delete the selected scans with everything derived from them."""
    scans = own_scans(current_user.id, _ids(request.form.getlist("id")))
    if not scans:
        flash("Please select at least one scan.", "warning")
    elif delete_chosen([scan.id for scan in scans], FILES_S):
        flash(f"{_counted(len(scans))} and all results have been deleted.", "success")
    else:
        flash(
            f"{_counted(len(scans))} have been deleted. Some of the files could not be removed yet;"
            " they will be removed within a few hours.",
            "warning",
        )
    return _back()


def _ask(action: str, scans: list[Scan]) -> str | WerkzeugResponse:
    """Return the confirmation page for deleting, joining or splitting these scans."""
    may_be, otherwise = CONFIRMED_FIRST[action]
    chosen = [scan for scan in scans if may_be(scan)]
    if len(chosen) < (2 if action == "join" else 1):
        flash(f"Nothing was changed: {otherwise}", "warning")
        return _back()
    if left := len(scans) - len(chosen):
        flash(f"{_counted(left)} of the selected will stay: {otherwise}", "warning")
    title = ""
    if action == "join":
        chosen.sort(key=lambda scan: by_numbers(scan.title))
        named = {scan.title.rpartition(" · ")[0] for scan in chosen}
        title = named.pop() if len(named) == 1 else ""
    return render_template(f"scans/{action}.html", scans=chosen, title=title, address=_address())


CONFIRMED_FIRST: dict[str, tuple[Callable[[Scan], bool], str]] = {
    "delete": (lambda _: True, ""),
    "join": (may_be_joined, "only single PNG or JPEG images can be joined, at least two."),
    "split": (may_be_split, "only series of PNG or JPEG images can be split."),
}
"""By action: the scans that it can be applied to, and the message if others were selected."""


def _report(changed: int, selected: int, done: str, otherwise: str) -> None:
    if changed:
        verb = "was" if changed == 1 else "were"
        flash(f"{_counted(changed)} {verb} {done}.", "success")
    if changed < selected:
        others = selected - changed
        flash(f"{_counted(others)} {otherwise}.", "warning")


def _counted(scans: int) -> str:
    return "1 scan" if scans == 1 else f"{scans} scans"


def _ids(texts: list[str], most: int = MOST_SELECTED) -> list[str]:
    """Return those of these ids that are valid, at most this many."""
    return [each for each in texts if is_id(each)][:most]


def _address() -> dict[str, Any]:
    """Return the valid filters, the order and the page of the request as query parameters."""
    address = address_of(*filters_in(request.args))
    page = request.args.get("page", "")
    return {**address, "page": page} if page.isascii() and page.isdigit() else address


def _back() -> WerkzeugResponse:
    """Return to the worklist with the same filters, order and page."""
    return redirect(url_for("worklist.show", **_address()))


def _export(ids: list[str], form: str) -> Response:
    """Return these scans in the API's format, with the opinions on each, as a file."""
    scans = {
        scan.id: scan
        for scan in db.session.scalars(
            with_result(select(Scan)).where(Scan.id.in_(ids), visible_to(current_user.id))
        ).unique()
    }
    rows = ScanSchema(many=True).dump([scan_as_json(scans[each]) for each in ids if each in scans])
    add_opinions(rows)
    if form == "json":
        answer = Response(current_app.json.dumps(rows), mimetype="application/json")
    else:
        answer = Response(as_csv(rows), content_type="text/csv; charset=utf-8")
    answer.headers.set("Content-Disposition", "attachment", filename=f"scans.{form}")
    answer.headers["Cache-Control"] = "no-store"
    return answer
