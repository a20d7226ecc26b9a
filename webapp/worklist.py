"""The worklist: a person's scans as a table that is filtered, sorted and kept up to date, and what
can be done with several of them at once.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable
from datetime import datetime
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

from webapp.api.scans import scan_as_json, with_result
from webapp.api.schemas import ScanSchema
from webapp.audit import record
from webapp.deletion import FILES_S, delete_chosen
from webapp.extensions import database_now, db
from webapp.forms import SHARED, WorklistFilterForm, is_id
from webapp.intake.dicom_series import by_numbers
from webapp.intake.rearrange import may_be_joined, may_be_split
from webapp.jobs import PREDICT_SCANS, nudge
from webapp.models import Act, Order, Scan, cancel, retry, score_again, set_stat
from webapp.paging import requested_page
from webapp.sharing import SharingRefused, is_any_shared_with, share, visible_to
from webapp.submission import QUEUE_AWAY, ScanForm, offered_phantoms
from webapp.worklist_query import (
    COLUMNS,
    address_of,
    asked_for,
    conditions,
    count_of,
    direction,
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
"""In the worklist of one study: its pictures are joined from there."""
MOST_SELECTED = 500
FIELDS_OF_CSV = (
    "id",
    "study_id",
    "title",
    "status",
    "state",
    "verdict",
    "probability",
    "threshold",
    "stat",
    "kind",
    "slice_count",
    "created_at",
    "finished_at",
    "model_version",
    "architecture",
    "warnings",
    "notes",
    "error",
)


@blueprint.get("")
@login_required
def show() -> str:
    """Show a page of the worklist, with the filters and the order of the address."""
    form = WorklistFilterForm(request.args)
    chosen, order = form.chosen, known_order(request.args.get("order", ""))
    per_page = SERIES_PER_PAGE if "study" in chosen else PER_PAGE
    places, total = count_of(conditions(current_user.id, chosen), apart="study" in chosen)
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
        studies=studies_of_page(current_user.id, chosen, order, per_page, first),
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
        **offered_phantoms(),
        opened=db.session.scalar(select(database_now())),
    )


@blueprint.get("/rows")
@login_required
def rows() -> Response:
    """Return these rows (`id`, repeated) as they are now, whether anything of the person's is
    pending, and how many verdicts came after `opened`; 304 if the browser's copy is current.
    """
    try:
        opened = datetime.fromisoformat(request.args.get("opened", ""))
    except ValueError:
        abort(400, "Unknown point in time.")
    scans = visible_scans(current_user.id, _ids(request.args.getlist("id"), PER_PAGE))
    chosen, order = asked_for(request.args)
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
def act() -> str | WerkzeugResponse:
    """Do to the selected scans (`id`, repeated) what `action` says: cancel, retry, again, stat,
    routine, share, csv or json; join, split and delete ask first.
    """
    ids, action = _ids(request.form.getlist("id")), request.form.get("action", "")
    if action not in {*CHANGES, *ASKED_FIRST, "csv", "json"}:
        abort(400, "Unknown action.")
    exports = action in ("csv", "json")
    scans = (visible_scans if exports else own_scans)(current_user.id, ids)
    if not scans:
        flash("Please select at least one scan.", "warning")
        return _back()
    if action in ASKED_FIRST:
        return _ask(action, scans)
    if exports:
        return _export(ids, action)
    change, done, otherwise = CHANGES[action]
    changed = sum(change(scan) for scan in scans)
    if action in ("retry", "again") and changed and not nudge(PREDICT_SCANS):
        flash(QUEUE_AWAY, "warning")
    _report(changed, len(scans), done, otherwise)
    return _back()


@blueprint.post("/selected/delete")
@login_required
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
    """Return the page that asks whether these scans are to be deleted, joined or split."""
    may_be, otherwise = ASKED_FIRST[action]
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
    return render_template(f"scans/{action}.html", scans=chosen, title=title, address=_asked())


ASKED_FIRST: dict[str, tuple[Callable[[Scan], bool], str]] = {
    "delete": (lambda _: True, ""),
    "join": (may_be_joined, "only single PNG or JPEG pictures can be joined, at least two."),
    "split": (may_be_split, "only series of PNG or JPEG pictures can be split."),
}
"""By action: to which scans it can be done, and what is told where there are others."""


def _cancel(scan: Scan) -> bool:
    return _recorded(cancel(Scan, Scan.id == scan.id), Act.SCAN_CANCELLED, scan)


def _retry(scan: Scan) -> bool:
    return _recorded(retry(scan.id), Act.SCAN_RETRIED, scan)


def _score_again(scan: Scan) -> bool:
    return _recorded(score_again(scan.id), Act.SCAN_SCORED_AGAIN, scan)


def _make_stat(scan: Scan) -> bool:
    return _recorded(set_stat(scan.id, scan.user_id, True), Act.SCAN_MADE_STAT, scan)


def _make_routine(scan: Scan) -> bool:
    return _recorded(set_stat(scan.id, scan.user_id, False), Act.SCAN_MADE_ROUTINE, scan)


def _share(scan: Scan) -> bool:
    try:
        share(scan, None)
    except SharingRefused:
        db.session.rollback()
        return False
    db.session.commit()
    return True


CHANGES: dict[str, tuple[Callable[[Scan], bool], str, str]] = {
    "cancel": (_cancel, "canceled", "had already finished"),
    "retry": (
        _retry,
        "queued again",
        "cannot be retried: only failed or canceled scans whose file is still stored can",
    ),
    "again": (
        _score_again,
        "queued again",
        "has no result to replace, or its file is no longer stored",
    ),
    "stat": (
        _make_stat,
        "made STAT",
        "stay as they are: they are STAT already, or too many STAT scans are waiting",
    ),
    "share": (_share, "shared with the reviewers", "were shared with the reviewers already"),
    "routine": (_make_routine, "made routine", "were routine already"),
}
"""By action: what is done to one scan and says whether it was, and how that is reported of the
scans it was done to and of the others.
"""


def _recorded(changed: bool, act: Act, scan: Scan) -> bool:
    """Commit what was done to one scan together with its record: no transaction locks several scans
    at once, which workers would lock in another order.
    """
    if changed:
        record(act, scan.id)
    db.session.commit()
    return changed


def _report(changed: int, selected: int, done: str, otherwise: str) -> None:
    if changed:
        verb = "was" if changed == 1 else "were"
        flash(f"{_counted(changed)} {verb} {done}.", "success")
    if changed < selected:
        others = selected - changed
        flash(f"{_counted(others)} {otherwise}.", "warning")


def _counted(scans: int) -> str:
    return "1 scan" if scans == 1 else f"{scans} scans"


def _ids(given: list[str], most: int = MOST_SELECTED) -> list[str]:
    """Return the ids among these, at most so many."""
    return [each for each in given if is_id(each)][:most]


def _asked() -> dict[str, Any]:
    """Return the valid filters, the order and the page of the request as such parameters."""
    address = address_of(*asked_for(request.args))
    page = request.args.get("page", "")
    return {**address, "page": page} if page.isascii() and page.isdigit() else address


def _back() -> WerkzeugResponse:
    """Return to the worklist as it was."""
    return redirect(url_for("worklist.show", **_asked()))


def _export(ids: list[str], form: str) -> Response:
    """Return what the API tells of these scans, as a file."""
    found = {
        scan.id: scan
        for scan in db.session.scalars(
            with_result(select(Scan)).where(Scan.id.in_(ids), visible_to(current_user.id))
        ).unique()
    }
    told = ScanSchema(many=True).dump([scan_as_json(found[each]) for each in ids if each in found])
    if form == "json":
        answer = Response(current_app.json.dumps(told), mimetype="application/json")
    else:
        answer = Response(_as_csv(told), content_type="text/csv; charset=utf-8")
    answer.headers.set("Content-Disposition", "attachment", filename=f"scans.{form}")
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _as_csv(told: list[dict[str, Any]]) -> str:
    """Return scans as the API tells them as a table: a row for each, without its slices."""
    file = io.StringIO()
    table = csv.DictWriter(file, FIELDS_OF_CSV, extrasaction="ignore")
    table.writeheader()
    for scan in told:
        result = scan["result"] or {}
        version = result.get("model_version", {})
        row = {
            **result,
            **scan,
            "model_version": version.get("id"),
            "architecture": version.get("architecture"),
            "warnings": " ".join(result.get("warnings", [])),
            "notes": " ".join(scan["notes"]),
        }
        table.writerow({name: _inert(row.get(name)) for name in FIELDS_OF_CSV})
    return file.getvalue()


def _inert(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value
